from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import fleetlm
from fleetlm import (
    Actor,
    ActorRef,
    ActorRefs,
    Child,
    Entity,
    EntityRef,
    EntityRefs,
    Process,
    Supervisor,
    Timer,
)
from tests.sim.fleet import A, Fleet, simulated

PACKAGE: Any = fleetlm
"""As it is when it runs: type checkers see its stub."""


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(fleetlm.__file__).with_suffix(".pyi")
    for_types = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fleetlm.")
        for alias in node.names
    }
    assert for_types == PACKAGE._MODULE_OF
    assert sorted(PACKAGE.__all__) == sorted(for_types)  # type: ignore[type-var]


@pytest.mark.parametrize("name", PACKAGE.__all__)
def test_every_public_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(PACKAGE._MODULE_OF[name])

    assert getattr(fleetlm, name) is getattr(module, name)
    assert name in dir(fleetlm)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nood'"):
        PACKAGE.Nood  # noqa: B018 - the access is what is tested


PUBLIC = {
    "Node": """
        add_check broadcast call connect cron disconnect drain drain_report entities events exit
        factories failure groups incarnation info is_draining join list multicall name name_of on_leaving
        overview own_address ping process_info process_pool processes readiness ready ref refs register
        registered
        registry remove_check retry run_blocking run_in_process send send_nowait settings singleton
        singletons spawn spawn_at start start_actor stop stream stream_blocking supervisors sync table
        telemetry undrain unregister wait_stopped whereis
    """,
    "Groups": """
        broadcast call chosen describe join leave list local_members members pick ref refs stream watch
    """,
    "Registry": "list lookup ref register resolve resolve_name unregister wait_for watch whereis",
    "Factories": "list register unregister",
    "Entities": "host info kinds ref unhost",
    "Singletons": "call epoch find names send where withdraw",
    "Subscription": "close",
    "SyncNode": """
        add_check broadcast call connect disconnect drain drain_report events exit factories failure
        groups incarnation info is_draining join list multicall name name_of on_leaving overview own_address
        ping process_info processes readiness ready ref refs register registered registry
        remove_check retry run_in_process send send_nowait settings spawn spawn_at start_actor stop
        stream supervisors table undrain unregister wait_stopped whereis
    """,
}
"""What completion shows on each object: what a program may use, and nothing of the machinery."""


@simulated
async def test_completion_shows_what_a_program_may_use_and_nothing_else(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = (node.groups, node.registry, node.factories, node.entities, node.singletons)
    held = (node, *parts, node.events(), node.sync)
    shown = {type(it).__name__: [name for name in dir(it) if not name.startswith("_")] for it in held}
    assert shown == {name: sorted(names.split()) for name, names in PUBLIC.items()}


@simulated
async def test_every_public_method_says_what_it_does(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = (node.groups, node.registry, node.entities, node.singletons, node.factories)
    for held in (node, *parts, node.events(), node.sync):
        for name in dir(type(held)):
            if not name.startswith("_"):
                assert inspect.getdoc(getattr(type(held), name)), f"{type(held).__name__}.{name}"


OF_CLASSES = {
    Process: """
        create_task demonitor epoch exit info link mailbox monitor name node parent pid receive runs
        send_after send_every spawn_link spawn_link_at spawn_monitor spawn_monitor_at
        start_actor_link trap_drain trap_exit unlink
    """,
    Actor: """
        cast_after cast_every create_task handle_info init node on_drain on_undrain pid process
        process_pool run_blocking run_in_process send_after send_every stop stream_blocking
        terminate
    """,
    ActorRef: "call cast cast_nowait pid send stream target within",
    ActorRefs: "broadcast multicall targets within",
    Entity: """
        cast_after cast_every create_task epoch handle_info init key kind load merge node on_drain
        on_undrain passivate pid process process_pool restarted run_blocking run_in_process save
        send_after send_every stop stream_blocking terminate
    """,
    EntityRef: "call cast key kind stream within",
    EntityRefs: "epoch kind list move shard shards where",
    Supervisor: "backoff_s max_restarts period_s specs strategy",
    Timer: "active cancel",
    Child: "args function init_s local name register restart shutdown_s",
}


@pytest.mark.parametrize("cls", OF_CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_shows_what_a_program_may_use_and_nothing_else(cls: type) -> None:
    shown = dir(Supervisor() if cls is Supervisor else cls) + list(getattr(cls, "__dataclass_fields__", ()))
    assert {name for name in shown if not name.startswith("_")} == set(OF_CLASSES[cls].split())


@pytest.mark.parametrize("cls", [Process, Actor, ActorRef, ActorRefs, Entity, EntityRef, EntityRefs])
def test_every_public_method_of_a_class_says_what_it_does(cls: type) -> None:
    slots = {slot for base in cls.__mro__ for slot in getattr(base, "__slots__", ())}
    for name in set(OF_CLASSES[cls].split()) - slots:
        assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name}"
