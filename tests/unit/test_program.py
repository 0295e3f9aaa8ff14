from __future__ import annotations

import asyncio
from typing import Any

import pytest

import fleetlm
from fleetlm import Actor, Child, Node, Process, Settings, Supervisor
from fleetlm.program import _check_program


async def main(node: Node) -> None: ...


async def takes_nothing() -> None: ...


async def child(process: Process) -> None: ...


def test_a_function_of_the_node_is_a_program() -> None:
    assert _check_program(main) is main
    assert _check_program(None) is None
    assert _check_program(print) is print


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (takes_nothing, r"takes_nothing\(\) -> 'None' must take the node as its only argument"),
        (7, "takes a function of the node, not int"),
    ],
)
def test_what_is_no_program_is_refused_before_anything_starts(wrong: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        fleetlm.run(wrong)


def test_a_coroutine_in_place_of_its_function_is_refused_and_closed() -> None:
    coroutine: Any = takes_nothing()
    with pytest.raises(
        TypeError, match=r"fleetlm.run\(takes_nothing\), not fleetlm.run\(takes_nothing\(\)\)"
    ):
        fleetlm.run(coroutine)
    assert coroutine.cr_frame is None


@pytest.mark.parametrize("kind", ["supervisor", "actor"])
def test_a_supervisor_or_an_actor_is_spawned_as_an_essential_process(kind: str) -> None:
    spawned: list[Any] = []

    class FakeNode:
        def spawn(self, function: Any, *, name: str, essential: bool) -> None:
            spawned.append((function, name, essential))

    root: Any = Supervisor([Child("c", child)]) if kind == "supervisor" else type("Own", (Actor,), {})
    program: Any = _check_program(root)
    assert program(FakeNode()) is None
    assert spawned == [(root, "root", True)]


def test_run_inside_a_running_loop_says_what_to_use_there() -> None:
    async def inside() -> None:
        with pytest.raises(RuntimeError, match=r"use async with fleetlm\.Node\.start"):
            fleetlm.run(main, Settings())

    asyncio.run(inside())
