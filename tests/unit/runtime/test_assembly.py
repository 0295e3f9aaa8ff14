"""How the parts of a node are connected: the calls that run against the order of their making."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from fleetlm import Node, NodeStopped, Settings
from fleetlm.blocking import forks
from fleetlm.blocking.forks import FORKED
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.address_watch import AddressProblem, Verdict
from fleetlm.node import parts_of
from fleetlm.runtime.assembly import Assembly
from fleetlm.runtime.events import ChangeSignal
from fleetlm.testing.loop import run
from fleetlm.testing.network import SimTransport
from tests.sim.fleet import A, B, Fleet, collector, simulated
from tests.support.session_fakes import turns, virtual


def watched(parts: Assembly, *methods: tuple[Any, str]) -> list[str]:
    """Note calls of these methods, in their order."""
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def called(*args: Any) -> Any:
            seen.append(f"{type(owner).__name__}.{name}")
            return real(*args)

        setattr(owner, name, called)

    for owner, name in methods:
        watch(owner, name)
    return seen


@simulated
async def test_the_tables_forget_a_process_before_others_are_told_of_its_end(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = parts_of(node)
    seen = watched(parts, (parts.replication, "exited"), (parts.signals, "exited"))
    pid = node.spawn(collector([]))
    node.exit(pid, "kill")
    await node.join(pid)
    assert seen == ["Replication.exited", "Signals.exited"]


@simulated
async def test_the_tables_forget_a_node_before_processes_are_told_of_its_loss(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    parts = parts_of(a)
    seen = watched(parts, (parts.replication, "node_down"), (parts.signals, "node_down"))
    await fleet.crash(b)
    await asyncio.sleep(60)
    assert seen == ["Replication.node_down", "Signals.node_down"]


@simulated
async def test_dns_is_asked_when_a_connection_is_lost(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    poller = parts_of(a).poller
    assert poller is not None
    seen = watched(parts_of(a), (poller, "kick"))
    a.disconnect(b.name)
    assert seen == ["Poller.kick"]


@simulated
async def test_a_node_without_discovery_has_no_poller_and_may_lose_a_connection(fleet: Fleet) -> None:
    settings = Settings(node_ip=A)
    a = await Node.start(settings, transport=SimTransport(fleet.net, settings))
    fleet.nodes.append(a)
    b = await fleet.start(B, A)
    await b.ready(timeout=30)
    await a.ready(timeout=30)
    assert parts_of(a).poller is None
    assert a.disconnect(b.name)


@simulated
async def test_a_process_gets_its_node_and_is_spawned_with_the_checks_of_the_node(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    got: list[Any] = []

    async def tells(process: Any) -> None:
        got.append(process.node)

    b.factories.register("tells", tells)
    await a.spawn_at(b.name, "tells")
    await a.send(("nobody", b.name), 1)
    await asyncio.sleep(1)
    assert got == [b]


@simulated
async def test_an_answer_that_contradicts_this_nodes_address_is_shown(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = parts_of(node)
    parts._own_address = Contradicts()  # type: ignore[assignment]
    parts._looked_up(Answer(Outcome.ADDRESSES, (B,), "one"))
    assert parts.own_address_warning == "another address"
    info: Any = node.info()
    assert info.own_address_warning == "another address"
    assert f"fleetlm@{B}" in node.list("known")


@simulated
async def test_a_node_that_has_lost_its_address_stops_and_has_failed(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = parts_of(node)
    parts._own_address = Contradicts(Verdict.GONE)  # type: ignore[assignment]
    parts._looked_up(Answer(Outcome.EMPTY, (), "none"))
    await node.wait_stopped()
    assert node.failure == "another address"


@pytest.mark.parametrize(("may_restart", "has_met"), [(True, False), (True, True), (False, False)])
def test_a_node_decides_its_address_again_only_while_no_peer_was_ever_connected(
    may_restart: bool, has_met: bool
) -> None:
    async def play() -> None:
        fleet = Fleet()
        [node] = [await fleet.start(A)] if not has_met else (await fleet.mesh(2))[:1]
        parts = parts_of(node)
        parts.may_restart = may_restart
        parts._own_address = Contradicts()  # type: ignore[assignment]
        parts._looked_up(Answer(Outcome.ADDRESSES, (B,), "one"))
        await asyncio.sleep(1)
        is_restarted = may_restart and not has_met
        assert parts.restart_because == ("another address" if is_restarted else "")
        assert bool(parts.outbound.stopped) == is_restarted
        assert node.failure == ""
        for each in fleet.nodes:
            await each.stop()

    run(play())


@simulated
async def test_a_node_whose_port_is_another_in_dns_goes_on_and_shows_it(fleet: Fleet) -> None:
    node = await fleet.start(A)
    parts = parts_of(node)
    parts.may_restart = True
    parts._own_address = Contradicts(Verdict.OTHER_PORT)  # type: ignore[assignment]
    parts._looked_up(Answer(Outcome.ADDRESSES, (B,), "one"))
    await asyncio.sleep(1)
    assert parts.own_address_warning == "another address"
    assert not parts.outbound.stopped


@simulated
async def test_a_node_that_comes_to_be_exposed_goes_on_and_says_so(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    parts = parts_of(await fleet.start(A))
    parts.may_restart = True
    parts._own_address = Contradicts(Verdict.EXPOSED)  # type: ignore[assignment]
    parts._looked_up(Answer(Outcome.ADDRESSES, (B,), "one"))
    await asyncio.sleep(1)
    assert (parts.exposure_warning, parts.own_address_warning) == ("another address", None)
    assert not parts.outbound.stopped
    said = {record.levelname for record in caplog.records if record.getMessage() == "another address"}
    assert said == {"ERROR"}


class Contradicts:
    def __init__(self, verdict: Verdict = Verdict.MOVED) -> None:
        self.verdict = verdict

    def look(self, addresses: Any) -> AddressProblem:
        return AddressProblem(self.verdict, "another address")


@simulated
async def test_in_a_forked_child_every_request_is_refused(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    parts = parts_of(a)
    sessions = dict(parts.driver.sessions)
    with mock.patch.object(forks, "leave_loop"):  # This process is not a child, and keeps its loop.
        parts.after_fork()
    for refused in (lambda: a.spawn(collector([])), lambda: a.send_nowait(("x", b.name), 1)):
        with pytest.raises(NodeStopped, match="forked"):
            refused()
    with pytest.raises(NodeStopped, match="forked"):
        await a.call(("x", b.name), 1)
    await a.stop()  # It does nothing: the parent process has the node.
    assert parts.outbound.stopped == FORKED
    assert a.list() == [b.name], "nothing was said to the peers"
    parts.outbound.stopped = ""  # This process is not a child, and must end the node.
    parts.driver.sessions.update(sessions)


@virtual
async def test_a_change_wakes_each_that_waits_and_is_not_kept() -> None:
    changes = ChangeSignal()
    changes.announce()
    waiting = [asyncio.ensure_future(changes.wait()) for _ in range(3)]
    await turns()
    assert not any(each.done() for each in waiting)
    changes.announce()
    await asyncio.gather(*waiting)
