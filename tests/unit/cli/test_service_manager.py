"""What a node tells systemd: messages, their order, and that nothing goes wrong where nobody listens."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetlm.cli import service_manager
from fleetlm.cli.foreground import Foreground
from fleetlm.cli.service_manager import EXTEND_BY_S, EXTEND_EVERY_S, ServiceManager, find, message
from fleetlm.node import Node, parts_of
from fleetlm.runtime.readiness import Readiness
from fleetlm.settings import Settings
from fleetlm.testing import SimLoop
from tests.support.service_managers import FakeManager

ALONE = Settings(remote=False)


class FakeNode:
    """Is ready after some looks."""

    name = "fleetlm@10.0.0.1"

    def __init__(self, *reasons: str) -> None:
        self.reasons = [*reasons]

    async def readiness(self) -> Readiness:
        why = self.reasons.pop(0) if self.reasons else ""
        return Readiness(self.name, not why, 0, (why,) if why else ())


def fake(*reasons: str) -> Any:
    return FakeNode(*reasons)


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with FakeManager(tmp_path / "notify") as listening:
        yield listening


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def test_a_message_has_one_field_a_line() -> None:
    assert message(READY="1", STATUS="it is ready") == b"READY=1\nSTATUS=it is ready"


def test_no_text_can_add_a_field() -> None:
    assert message(STATUS="a\nMAINPID=1\r\x1b[31m") == b"STATUS=a MAINPID=1  [31m"


def test_a_long_status_is_cut() -> None:
    assert message(STATUS="é" * 1_000) == f"STATUS={'é' * 256}".encode()


# ── the address ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["vsock:2:1234", "notify", "@", "/"])
def test_an_address_of_another_kind_is_named_and_passed_over(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert find({"NOTIFY_SOCKET": address}) is None
    assert f"NOTIFY_SOCKET={address} is neither" in caplog.text


def test_a_path_gets_the_message(manager: FakeManager) -> None:
    found = find({"NOTIFY_SOCKET": manager.address})
    assert found is not None
    assert found.send(READY="1")
    assert manager.read() == [{"READY": "1"}]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_an_abstract_socket_gets_the_message() -> None:
    with FakeManager(f"@fleetlm-test-{os.getpid()}") as listening:
        assert ServiceManager(listening.address).send(READY="1")
        assert listening.read() == [{"READY": "1"}]


def test_where_nobody_listens_one_warning_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = ServiceManager(str(tmp_path / "gone"))
    assert [gone.send(READY="1") for _ in range(3)] == [False] * 3
    assert caplog.text.count("cannot be told: ") == 1


def test_a_path_that_is_too_long_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    assert not ServiceManager("/" + "x" * 200).send(READY="1")
    assert "too long" in caplog.text


def test_a_manager_that_reads_nothing_does_not_hold_the_node_up(manager: FakeManager) -> None:
    teller = ServiceManager(manager.address)
    sent = [teller.send(STATUS="x" * 200) for _ in range(100_000) if not teller._has_warned]
    assert sent[0]
    assert not sent[-1]  # the queue of the socket is full
    assert len(manager.read()) == len(sent) - 1


# ── ready ────────────────────────────────────────────────────────────────────────────────────────


def on_virtual_time(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=SimLoop) as runner:
        return runner.run(coroutine)


def test_ready_is_told_once_and_only_when_the_checks_pass(manager: FakeManager) -> None:
    node = fake("the check model says no", "the check model says no", "it is draining")
    on_virtual_time(ServiceManager(manager.address).tell_when_ready(node))
    assert [fields.get("READY") for fields in manager.read()] == [None, None, "1"]
    said = [fields["STATUS"] for fields in manager.received]
    assert said == [
        "fleetlm@10.0.0.1 is not ready: the check model says no",  # told once, though it was seen twice
        "fleetlm@10.0.0.1 is not ready: it is draining",
        "fleetlm@10.0.0.1 is ready, connected to 0",
    ]


def test_ready_is_repeated_until_it_went_out(tmp_path: Path) -> None:
    path = tmp_path / "late"

    async def story() -> list[str]:
        telling = asyncio.create_task(ServiceManager(str(path)).tell_when_ready(fake()))
        await asyncio.sleep(10)
        assert not telling.done()
        with FakeManager(path) as late:
            await telling
            return late.names()

    assert on_virtual_time(story()) == ["READY"]


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_leaves_asks_for_more_time_until_its_limit(manager: FakeManager) -> None:
    limit_s = 3 * EXTEND_EVERY_S + 1
    on_virtual_time(ServiceManager(manager.address).tell_that_it_stops(fake(), limit_s))
    first, *others = manager.read()
    assert first["STOPPING"] == "1"
    assert first["EXTEND_TIMEOUT_USEC"] == f"{EXTEND_BY_S * 1e6:.0f}"
    assert [sorted(fields) for fields in others] == [["EXTEND_TIMEOUT_USEC"]] * 3
    asked_until = [
        number * EXTEND_EVERY_S + int(fields["EXTEND_TIMEOUT_USEC"]) / 1e6
        for number, fields in enumerate(manager.received)
    ]
    assert asked_until == sorted(asked_until)
    assert asked_until[-1] == pytest.approx(limit_s, abs=0.01)


def test_a_lost_message_or_two_do_not_matter() -> None:
    assert EXTEND_BY_S >= 3 * EXTEND_EVERY_S


# ── a whole run ──────────────────────────────────────────────────────────────────────────────────


async def run(program: Any, settings: Settings = ALONE) -> int:
    return await Foreground(settings, program, print, lambda _: None).run()


@pytest.fixture
def named(manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setattr(service_manager, "LOOK_S", 0.01)
    return manager


async def test_a_program_tells_ready_and_stopping_in_this_order(named: FakeManager) -> None:
    loaded = asyncio.Event()
    seen: list[list[str]] = []

    async def main(node: Node) -> None:
        node.add_check("model", loaded.is_set)
        while not any("the check model says no" in each.get("STATUS", "") for each in named.read()):
            await asyncio.sleep(0)
        seen.append(named.names())
        loaded.set()
        while "READY" not in named.names():
            await asyncio.sleep(0)
        seen.append(named.names())

    assert await run(main) == 0
    assert seen == [[], ["READY"]]
    assert named.names() == ["READY", "STOPPING"]


async def test_a_program_that_ends_before_it_is_ready_never_says_ready(named: FakeManager) -> None:
    async def main(node: Node) -> None:
        node.add_check("model", lambda: False)

    assert await run(main) == 0
    assert named.names() == ["STOPPING"]


async def test_a_node_that_leaves_is_not_asked_any_more_whether_it_is_ready(named: FakeManager) -> None:
    asking: list[int] = []

    async def main(node: Node) -> None:
        node.add_check("model", lambda: False)
        node.on_leaving(look, phase="before_drain")
        while not named.read():
            await asyncio.sleep(0)

    async def look() -> None:
        tasks = [each for each in asyncio.all_tasks() if "tell_when_ready" in repr(each.get_coro())]
        asking.append(sum(not each.cancelling() for each in tasks))

    assert await run(main) == 0
    assert asking == [0]


async def test_a_crash_says_stopping_too(named: FakeManager) -> None:
    async def main(node: Node) -> None:
        raise ValueError("broken")

    assert await run(main) == 1
    assert named.names() == ["STOPPING"]


async def test_without_a_service_manager_its_module_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(service_manager, "find", lambda _: pytest.fail("nobody wants to be told"))

    async def main(node: Node) -> None: ...

    assert await run(main) == 0


async def test_a_node_that_is_started_again_says_nothing_of_a_stop(
    named: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = 0

    async def main(node: Node) -> None:
        nonlocal nodes
        nodes += 1
        while named.names().count("READY") < nodes:
            await asyncio.sleep(0)
        if nodes == 1:
            parts_of(node).restart_because = "another address"

    assert await run(main) == 0
    assert nodes == 2
    assert named.names() == ["READY", "READY", "STOPPING"]


def test_the_level_of_its_warnings_is_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).send(READY="1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
