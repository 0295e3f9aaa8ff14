from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.ids import Pid
from fleetlm.process import Process
from fleetlm.processes.spawn_pace import SpawnPace
from fleetlm.runtime.requests import PeerRequests
from fleetlm.settings import Settings
from fleetlm.testing.loop import run
from fleetlm.wire.failures import FailureKind
from tests.support.session_fakes import HERE, Pair, context, processes_and_signals, virtual


class Asker:
    def __init__(self) -> None:
        self.outcome: Any = None

    def replied(self, ref: int, value: Any) -> None:
        self.outcome = value

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        self.outcome = (kind, *details[:2])

    def forget(self, ref: int) -> None:
        raise AssertionError("nobody forgets")


class FakeNames:
    def asked_to_claim(self, *args: Any) -> Any:
        return ["claimed", *args]

    def asked_to_disclaim(self, *args: Any) -> Any:
        return ["disclaimed", *args]


class Rig:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.ticks: list[tuple[str, int]] = []
        self.local, signals = processes_and_signals(self, context(Settings(mailbox_limit=10)))
        self.service = PeerRequests(
            self, self.local, signals, self, FakeNames(),  # type: ignore[arg-type]
            SimpleNamespace(pace=SpawnPace(asyncio.get_running_loop(), 100.0)),  # type: ignore[arg-type]
            None, None,  # type: ignore[arg-type]
        )  # fmt: skip
        self.session = Pair().here.session

    def told_of(self, names: list[str], teller: str) -> None:
        self.told += names

    def ticked(self, name: str, lag_ms: int) -> None:
        self.ticks.append((name, lag_ms))

    def name_of(self, pid: Pid) -> str | None:
        return None

    def ask(self, verb: Any, argument: Any = None) -> Any:
        asker = Asker()
        self.service.asked(self.session, verb, argument, Call(argument, asker, 1, 5.0, lambda: 0.0))  # type: ignore[arg-type]
        return asker.outcome


async def idle(process: Process) -> None:
    await process.receive()


@virtual
async def test_names_are_asked_given_and_taken() -> None:
    rig = Rig()
    pid = rig.local.spawn(idle, (), None)
    assert rig.ask("ping") == "pong"
    assert rig.ask("whereis", "a") is None
    assert rig.ask("register", ["a", pid]) is True
    assert rig.ask("whereis", "a") == pid
    assert rig.ask("registered") == {"a": pid}
    assert rig.ask("unregister", "a") is True
    assert rig.ask("unregister", "a") is False
    await rig.local.stop()


@virtual
async def test_what_cannot_be_done_is_answered_with_the_error() -> None:
    rig = Rig()
    pid = rig.local.spawn(idle, (), "b")
    raised = FailureKind.RAISED
    gone = Pid(HERE, 9, pid.number)
    assert rig.ask("register", ["a", gone]) == (FailureKind.NO_PROCESS, str(gone))
    assert rig.ask("register", ["a", pid]) == (FailureKind.NAME_TAKEN, "b", str(pid))
    assert rig.ask("register", ["", rig.local.spawn(idle, (), None)])[:2] == (raised, "InvalidName")
    await rig.local.stop()


@virtual
async def test_names_of_the_cluster_are_the_registrys() -> None:
    rig = Rig()
    pid = Pid(HERE, 1, 3)
    assert rig.ask("claim", ["a", pid, b"meta", "exit"]) == ["claimed", "a", pid, b"meta", "exit"]
    assert rig.ask("disclaim", ["a", pid]) == ["disclaimed", "a", pid]


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("claim", ["a", Pid(HERE, 1, 1), b"meta", "ignore"]),
        ("claim", ["a", Pid(HERE, 1, 1), "meta", "exit"]),
        ("claim", ["a", 1, b"meta", "exit"]),
        ("disclaim", "a"),
        ("halt", None),
        (None, None),
        ([1], {}),
        ("whereis", 5),
        ("register", ["a"]),
        ("register", ["a", "not a pid"]),
        ("register", "ab"),
        ("spawn", None),
        ("spawn", {"factory": "f"}),
        ("spawn", ["f", (), None, Pid(HERE, 1, 1), 1, None]),
        ("x" * 100_000, "y" * 100_000),
    ],
)
def test_an_unknown_request_is_answered_with_an_error(verb: Any, argument: Any) -> None:
    async def main() -> None:
        kind, name, text = Rig().ask(verb, argument)
        assert (kind, name) == (FailureKind.RAISED, "InvalidName")
        assert "does not answer that request" in text
        assert len(text) < 500

    run(main())


@virtual
async def test_ticks_and_names_are_passed_on() -> None:
    rig = Rig()
    rig.service.ticked(rig.session, 12)
    assert rig.ticks == [(rig.session.name, 12)]
    rig.service.told_of(["fleetlm@10.0.0.3"], rig.session.name)
    assert rig.told == ["fleetlm@10.0.0.3"]
