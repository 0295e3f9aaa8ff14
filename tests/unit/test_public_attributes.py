"""Completion on a public object shows what a program may use, and none of the machinery."""

from __future__ import annotations

import pytest

from fleetlm import Actor, Child, Process, Supervisor
from fleetlm.processes.remote_spawn import Factories

ATTRIBUTES = {
    Process: (
        "demonitor exit info link mailbox monitor name node parent pid receive runs spawn_link spawn_link_at "
        "spawn_monitor spawn_monitor_at start_actor_link trap_exit unlink"
    ),
    Actor: "handle_info init node pid process run_blocking run_in_process stop terminate",
    Supervisor: "backoff_s max_restarts period_s specs strategy",
    Child: "args function name register restart shutdown_s",
    Factories: "list register unregister",
}
OBJECTS = {Supervisor: Supervisor(), Factories: Factories(1)}


@pytest.mark.parametrize("cls", ATTRIBUTES, ids=lambda cls: cls.__name__)
def test_completion_shows_what_a_program_may_use(cls: type) -> None:
    shown = {name for name in dir(OBJECTS.get(cls, cls)) if not name.startswith("_")}
    assert shown | set(getattr(cls, "__dataclass_fields__", ())) == set(ATTRIBUTES[cls].split())
