"""The driver with a kernel that is scripted, or a real one whose peer is played by hand."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from fleetlm.core.dns_answers import Answer as DnsAnswer, Outcome
from fleetlm.core.effects import Dial, HangUp, Reply, Report, Send
from fleetlm.core.kernel import Kernel
from fleetlm.errors import NoConnection
from fleetlm.messages import NodeDown, NodeUp
from fleetlm.messaging import backlog, inbound
from fleetlm.messaging.inbound import Inbound
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.session import Session
from fleetlm.runtime import driver
from fleetlm.runtime.driver import PEERS_TOLD_AT_ONCE, STEPS_PER_TURN, TICKED_EACH_TIME, Driver
from fleetlm.runtime.events import EventHub
from fleetlm.runtime.last_words import LAST_WORDS_S
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire import frames, operations
from fleetlm.wire.codec import Codec
from fleetlm.wire.frames import HEADER_BYTES, Kind, Ready
from fleetlm.wire.operations import Op
from tests.support.session_fakes import (
    HERE,
    THERE,
    FakePeerService,
    FakeTransport,
    Taker,
    context,
    identity,
    turns,
    virtual,
)

SETTINGS = Settings(gossip_s=2.0, dials_per_turn=64)
EPOCH = 77


class Rig:
    """A driver on a fake transport; the test plays the network and the peers."""

    def __init__(self, road: int = 0, turn_s: float = math.inf) -> None:
        loop = SimLoop.current()
        self.transport = FakeTransport()
        self.road = road
        """The number of each node's listener for local roads."""
        self.events = EventHub(100)
        self.kernel = Kernel(identity(HERE, 1, SETTINGS, road), SETTINGS, random.Random(1))
        codec = Codec()
        self.service = FakePeerService()
        self.boxes: dict[int | str, Mailbox] = {"sink": Mailbox(100, Taker())}
        taking = Inbound(self.boxes, codec, self.service, loop.time, 100, turn_s=turn_s)
        self.driver = Driver(
            context(SETTINGS), codec, self.kernel, self.transport, taking,  # type: ignore[arg-type]
            self.events, random.Random(1), self,
        )  # fmt: skip
        self.losses = 0
        self.steps = 0
        """How many steps the follower needs for a lost node."""
        self.taken: list[int] = []
        self.seq: dict[bytes, int] = {}

    def node_up(self, session: Session) -> None:
        """Nothing else of a node follows its sessions here."""

    def node_down(self, name: str) -> Iterator[None]:
        for step in range(self.steps):
            self.taken.append(step)
            yield

    def changed(self) -> None:
        """Likewise."""

    def pulsed(self) -> None:
        """Likewise."""

    def connection_lost(self) -> None:
        self.losses += 1

    def bring_up(self, name: str = THERE, incarnation: int = 2) -> tuple[int, bytes]:
        """Play the whole handshake of a peer. Returns our channel and its source."""
        self.driver.asked_for(name)
        channel, ip, _port = self.transport.dialled[-1]
        source = f"{name} {incarnation} {channel}".encode()
        self.driver.channel_opened(channel)
        hello = identity(name, incarnation, SETTINGS, self.road).hello(HERE)
        self.driver.source_met(source, ip)
        self.frame(source, Kind.HELLO, frames.pack_hello(hello))
        outgoing = self.kernel.topology.peers[name].connection.outgoing
        assert outgoing is not None
        self.frame(source, Kind.READY, frames.pack_ready(Ready(outgoing.epoch, hello)))
        assert name in self.driver.sessions
        return channel, source

    def frame(self, source: bytes, kind: int, body: bytes) -> None:
        seq = self.seq.get(source, 0)
        self.seq[source] = seq + 1
        self.driver.frame_arrived(source, frames.header(kind, EPOCH, seq) + body)

    def batch(self, source: bytes, *messages: Any) -> None:
        self.frame(source, Kind.BATCH, msgpack.packb(list(messages)))

    def operations(self, op: int) -> list[Any]:
        """Messages of one kind in the batches that were sent."""
        batches = [frame for frame in self.transport.take() if frame[0] == Kind.BATCH]
        return [m for data in batches for m in msgpack.unpackb(data[HEADER_BYTES:]) if m[0] == op]

    async def next_events(self, subscription: Any, count: int) -> list[Any]:
        return [await anext(subscription) for _ in range(count)]


class Scripted:
    """A kernel that effects what it is told to."""

    is_leaving = False

    def __init__(self, *effects: Any) -> None:
        self.effects = list(effects)

    def deadline(self) -> None:
        return None

    def opened(self, now: float, channel: int) -> list[Any]:
        return self.effects


def test_orders_are_performed_in_the_order_given(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        rig = Rig()
        rig.driver.kernel = Scripted(  # type: ignore[assignment]
            Dial(5, "10.0.0.9", 4370),
            Send(5, b"x"),
            Reply(b"s", b"y"),
            HangUp(5, 0.5),
            Report("warning", "said"),
        )
        rig.driver.channel_opened(5)
        assert rig.transport.dialled == [(5, "10.0.0.9", 4370)]
        assert rig.transport.frames == [(5, b"x")]
        assert rig.transport.answers == [(b"s", b"y")]
        assert rig.transport.hung_up == [5]

    with caplog.at_level(logging.INFO):
        run(main())
    assert ("fleetlm", logging.WARNING, "said") in caplog.record_tuples


@virtual
async def test_a_handshake_makes_a_link_an_event_and_lets_messages_through() -> None:
    rig = Rig()
    events = rig.events.subscribe()
    _, source = rig.bring_up()
    assert await anext(events) == NodeUp(THERE, 2)
    rig.batch(source, ["sink", "hi"])
    assert list(rig.boxes["sink"].queue) == ["hi"]
    rig.driver.source_lost(source)
    assert await anext(events) == NodeDown(THERE, 2, "connection closed")
    assert rig.driver.sessions == {}
    assert rig.losses == 1
    rig.batch(source, ["sink", "late"])
    assert len(rig.boxes["sink"]) == 1


@virtual
async def test_a_bad_batch_takes_that_connection_down_only() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    _, other = rig.bring_up("fleetlm@10.0.0.3", 3)
    rig.frame(source, Kind.BATCH, b"\xc1")
    assert list(rig.driver.sessions) == ["fleetlm@10.0.0.3"]
    rig.batch(other, ["sink", "fine"])
    assert list(rig.boxes["sink"].queue) == ["fine"]


@virtual
async def test_the_transport_is_told_which_sources_are_of_peers() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    assert (rig.transport.admitted, rig.transport.disconnected) == ([source], [])
    rig.frame(source, Kind.GOODBYE, frames.pack_goodbye("bye"))
    assert rig.transport.disconnected == [(source, SETTINGS.handshake_timeout_s)]


@virtual
async def test_a_source_that_breaks_the_protocol_is_disconnected() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.frame(source, Kind.BATCH, b"\xc1")
    assert rig.transport.disconnected[-1] == (source, SETTINGS.goodbye_flush_s)
    rig.driver.source_met(b"stranger", "192.0.2.1")
    rig.driver.frame_arrived(b"stranger", b"")
    assert rig.transport.disconnected[-1] == (b"stranger", 0.0)


@virtual
async def test_a_source_that_the_transport_disconnects_ends_its_session() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver.source_broke(source, "it sent two parts")
    assert rig.driver.sessions == {}
    assert rig.kernel.topology.peers[THERE].connection.last_error == "protocol error: it sent two parts"


@virtual
async def test_a_batch_of_an_unknown_source_changes_nothing() -> None:
    rig = Rig()
    rig.bring_up()
    rig.driver.source_met(b"stranger", "192.0.2.1")
    for data in (b"", b"\x03", frames.header(Kind.BATCH, 1, 1) + b"\x90"):
        rig.driver.frame_arrived(b"stranger", data)
        rig.driver.frame_arrived(b"unmet", data)
    assert list(rig.driver.sessions) == [THERE]


def test_an_error_of_ours_while_a_frame_is_taken_ends_the_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of its batch is lost, and a gap must never be silent."""

    def fails(*_: object) -> None:
        raise RecursionError("too deep")

    async def main() -> None:
        rig = Rig()
        _, source = rig.bring_up()
        monkeypatch.setattr(rig.driver.inbound, "frame", fails)
        rig.batch(source, ["sink", 1])
        assert THERE not in rig.driver.sessions
        last_error = rig.kernel.topology.peers[THERE].connection.last_error
        assert last_error == "protocol error: RecursionError on this node while it handled a frame"

    run(main())
    assert "cannot handle a frame from" in caplog.text


@virtual
async def test_what_a_peer_sent_is_quoted_in_short() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver._perform(rig.kernel.broken(rig.driver._loop.time(), source, "x" * 100_000))
    assert len(rig.kernel.topology.peers[THERE].connection.last_error) < 600


@virtual
async def test_sending_that_fails_takes_the_connection_down_afterwards() -> None:
    rig = Rig()
    events = rig.events.subscribe()
    rig.bring_up()
    session = rig.driver.sessions[THERE]
    rig.transport.broken = True
    session.append(b"\x92\x01\x01")
    session.append(b"\x92\x01\x01")
    await turns()
    assert THERE in rig.driver.sessions, "the peer may have said more before it ended the channel"
    await asyncio.sleep(LAST_WORDS_S)
    assert rig.driver.sessions == {}
    _, down = await rig.next_events(events, 2)
    assert down.reason == "connection closed: sending failed"
    await turns()


@virtual
async def test_a_send_that_fails_in_the_handshake_is_a_lost_channel() -> None:
    rig = Rig()
    rig.driver.asked_for(THERE)
    rig.transport.broken = True
    rig.driver.channel_opened(1)
    await turns()
    assert rig.kernel.topology.peers[THERE].connection.last_error == (
        "connection closed during the handshake"
    )


@virtual
async def test_links_are_flushed_once_at_the_end_of_the_turn() -> None:
    rig = Rig()
    rig.bring_up()
    rig.transport.take()
    session = rig.driver.sessions[THERE]
    for _ in range(3):
        session.append(b"\x92\x01\x01")
    assert rig.transport.frames == []
    await turns()
    assert len(rig.transport.frames) == 1


@virtual
async def test_it_ticks_and_tells_of_its_lag() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver.start()
    await asyncio.sleep(3.5)
    ticks = rig.operations(Op.TICK)
    assert len(ticks) in (3, 4)
    assert ticks[-1] == [Op.TICK, 0, None]
    assert rig.driver.lag_ms == 0
    rig.batch(source, [Op.TICK, 9, None])
    assert rig.service.ticks == [9]
    rig.driver.leave("done")
    await asyncio.sleep(5)
    assert rig.operations(Op.TICK) == []


@virtual
async def test_nodes_of_one_host_tick_at_one_moment() -> None:
    for pause_s in (0.37, 0.21, 0.4):
        await asyncio.sleep(pause_s)
        rig = Rig()
        rig.bring_up()
        rig.driver.start(ticks_with_host=True)
        loop = SimLoop.current()
        ticked_at = []
        while len(ticked_at) < 3:
            await asyncio.sleep(0.01)
            if rig.operations(Op.TICK):
                ticked_at.append(loop.time())
        assert [moment % 1 for moment in ticked_at] == pytest.approx([0, 0, 0], abs=0.015)
        assert ticked_at[2] - ticked_at[0] == pytest.approx(2, abs=0.015)
        rig.driver.leave("done")


@virtual
async def test_a_timer_that_is_early_does_not_tick_twice() -> None:
    driver = Rig().driver
    driver._ticks_with_host = True
    for now, due in [(7.0, 8.0), (6.99, 8.0), (7.6, 8.0), (7.89, 8.0), (7.95, 9.0)]:
        assert driver._next_pulse(now) == due
    driver._ticks_with_host = False
    assert driver._next_pulse(7.25, 0.5) == 7.75


@virtual
async def test_a_peer_that_sees_the_ticks_gets_the_first_one_alone() -> None:
    """With its first tick a peer knows that all has come that was sent before."""
    rig = Rig()
    channel, _ = rig.bring_up()
    rig.transport.shown_to.add(channel)
    rig.driver.start()
    await asyncio.sleep(4.5)
    assert rig.operations(Op.TICK) == [[Op.TICK, 0, None]]
    assert len(rig.transport.noted_ticks) >= 4
    rig.transport.shown_to.clear()
    await asyncio.sleep(2)
    assert len(rig.operations(Op.TICK)) == 2
    rig.driver.leave("done")


@virtual
async def test_a_tick_that_is_seen_counts_as_one_that_came() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver.start(ticks_with_host=True)
    peer = rig.kernel.topology.peers[THERE]
    stall = rig.driver.sessions[THERE]._stall
    loop = SimLoop.current()
    await asyncio.sleep(5.5 - loop.time() % 1)
    assert peer.is_busy
    for noted, heard_s in [(-0.1, -0.1), (-7.0, -1.0), (math.inf, 0.0), (-math.inf, -1.0)]:
        began = math.floor(loop.time()) + 1.0
        rig.transport.seen_ticks[source] = began + noted, 12
        await asyncio.sleep(1)
        assert peer.last_heard == pytest.approx(began + heard_s, abs=0.001), noted
        assert (peer.is_busy, peer.lag_ms) == (False, 12)
        assert stall._ticked_at == pytest.approx(began, abs=0.001)
    assert rig.service.ticks == [], "it does not say that anything else has come"
    rig.driver.leave("done")


@virtual
async def test_many_peers_get_a_tick_in_every_second_interval() -> None:
    rig = Rig()
    for number in range(TICKED_EACH_TIME):
        rig.bring_up(f"fleetlm@10.0.1.{number}", number + 10)
    rig.driver.start(ticks_with_host=True)
    await asyncio.sleep(4.5)
    assert len(rig.operations(Op.TICK)) in (4 * TICKED_EACH_TIME, 5 * TICKED_EACH_TIME)
    rig.bring_up()
    await turns()
    rig.transport.take()
    await asyncio.sleep(4)
    assert len(rig.operations(Op.TICK)) == 2 * (TICKED_EACH_TIME + 1)
    rig.driver.leave("done")


@virtual
async def test_with_its_pulse_it_tells_what_it_took_and_forgets_what_expired() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.batch(source, [Op.CALL, "sink", "hi", 1, 500, 0], [Op.MARK, 77, 0])
    session = rig.driver.sessions[THERE]
    assert list(session.requests) == [1]
    rig.driver.start()
    await asyncio.sleep(1.5)
    assert rig.operations(Op.CREDIT) == [[Op.CREDIT, 77, None]]
    assert not session.requests
    rig.driver.leave("done")


@virtual
async def test_a_silent_peer_becomes_busy() -> None:
    rig = Rig()
    rig.bring_up()
    rig.driver.start()
    await asyncio.sleep(5)
    assert rig.kernel.topology.select(["busy"]) == [THERE]
    rig.driver.leave("done")


@virtual
async def test_a_newcomer_is_told_of_the_others_and_everybody_from_time_to_time() -> None:
    rig = Rig()
    names = [f"fleetlm@10.0.1.{n}" for n in range(40)]
    for number, name in enumerate(names):
        rig.bring_up(name, number + 10)
    await turns()
    rig.transport.take()
    rig.bring_up()
    await turns()
    ((_, told, _),) = rig.operations(Op.PEERS)
    assert len(told) == PEERS_TOLD_AT_ONCE
    assert set(told) < set(names)
    rig.driver.start()
    await asyncio.sleep(3.5)
    tellings = rig.operations(Op.PEERS)
    assert tellings
    assert all(len(told) == 40 for _, told, _ in tellings)
    rig.driver.leave("done")


@virtual
async def test_dials_are_repeated_by_the_timer() -> None:
    rig = Rig()
    rig.driver.looked_up(DnsAnswer(Outcome.ADDRESSES, ("10.0.0.2",), "one"))
    for _ in range(5):
        channel = rig.transport.dialled[-1][0]
        rig.driver.channel_lost(channel, "connection refused")
        await asyncio.sleep(20)
    channels = [channel for channel, _, _ in rig.transport.dialled]
    assert len(channels) >= 6
    assert len(set(channels)) == len(channels)
    rig.driver.disconnected(THERE, "enough")
    rig.driver.leave("done")


@virtual
async def test_names_that_peers_tell_of_are_dialled() -> None:
    rig = Rig()
    rig.driver.told_of(["fleetlm@10.0.0.7", HERE], THERE)
    assert [ip for _, ip, _ in rig.transport.dialled] == ["10.0.0.7"]
    rig.driver.leave("done")


@virtual
async def test_leaving_flushes_says_goodbye_and_does_not_count_as_a_loss() -> None:
    rig = Rig()
    events = rig.events.subscribe()
    channel, _ = rig.bring_up()
    rig.transport.take()
    rig.driver.sessions[THERE].append(b"\x92\x01\x01")
    rig.driver.leave("shutdown")
    assert [frame[0] for frame in rig.transport.take()] == [Kind.BATCH, Kind.GOODBYE]
    assert rig.transport.hung_up == [channel]
    _, down = await rig.next_events(events, 2)
    assert isinstance(down, NodeDown)
    assert rig.losses == 0
    rig.driver.channel_lost(channel, "late")
    rig.driver.source_lost(b"late")
    rig.driver.stranger_refused("192.0.2.1", "late")
    rig.driver.channel_answered(channel, b"late")
    await asyncio.sleep(60)
    assert rig.transport.frames == []


# A node that takes much with it.


@virtual
async def test_a_lost_node_is_dealt_with_in_slices_before_its_nodedown_and_before_it_is_dialled_again() -> (
    None
):
    rig = Rig()
    events = rig.events.subscribe()
    _, source = rig.bring_up()
    assert await anext(events) == NodeUp(THERE, 2)
    rig.steps = 3 * STEPS_PER_TURN + 1
    dialled = len(rig.transport.dialled)
    rig.driver.source_lost(source)
    assert len(rig.taken) == STEPS_PER_TURN
    rig.driver.asked_for(THERE)  # The program wants it back at once.
    for slices in (2, 3):
        await turns(1)
        assert len(rig.taken) == slices * STEPS_PER_TURN
        assert len(rig.transport.dialled) == dialled
    await turns(1)
    assert len(rig.taken) == rig.steps
    assert await anext(events) == NodeDown(THERE, 2, "connection closed")
    assert len(rig.transport.dialled) == dialled + 1


@virtual
async def test_a_dial_that_is_given_up_while_it_waits_never_begins() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.steps = 2 * STEPS_PER_TURN
    rig.driver.source_lost(source)
    rig.driver.asked_for(THERE)
    dialled = len(rig.transport.dialled)
    rig.driver.disconnected(THERE, "not wanted any more")
    await turns(5)
    assert len(rig.taken) == rig.steps
    assert len(rig.transport.dialled) == dialled


@virtual
async def test_a_node_that_leaves_finishes_what_it_owes_its_processes() -> None:
    rig = Rig()
    events = rig.events.subscribe()
    _, source = rig.bring_up()
    rig.steps = 5 * STEPS_PER_TURN
    rig.driver.source_lost(source)
    rig.driver.leave("shutdown")
    assert len(rig.taken) == rig.steps
    assert [type(event) for event in await rig.next_events(events, 2)] == [NodeUp, NodeDown]
    await turns(5)
    assert len(rig.taken) == rig.steps


# Turns.


@virtual
async def test_what_follows_an_unfinished_frame_waits_for_it_and_so_do_goodbye_and_the_end() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    _, other = rig.bring_up("fleetlm@10.0.0.3", 3)
    rig.driver.inbound.turn_s = 1e-9
    signals = [[Op.SIGNAL, n, None] for n in range(3)]
    rig.batch(source, *signals)
    rig.batch(source, ["sink", "behind"])
    rig.frame(source, Kind.GOODBYE, frames.pack_goodbye("over"))
    rig.driver.source_lost(source)
    rig.batch(other, [Op.SIGNAL, "other", None])
    assert [what for _, what in rig.service.questions] == [0, "other"]
    assert THERE in rig.driver.sessions
    await turns(9)
    assert [what for _, what in rig.service.questions] == [0, "other", 1, 2]
    assert list(rig.boxes["sink"].queue) == ["behind"]
    assert THERE not in rig.driver.sessions
    assert source not in rig.driver._backlog


@virtual
async def test_after_a_turn_of_what_peers_sent_the_rest_of_the_node_has_the_loop() -> None:
    clock = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        for module in (inbound, driver):
            patch.setattr(module, "monotonic", lambda: clock[0])
        patch.setattr(backlog, "thread_time", lambda: clock[0])
        rig = Rig(turn_s=0.002)
        _, source = rig.bring_up()
        take = rig.service.signalled

        def signalled(session: Session, signal: Any) -> None:
            clock[0] += 0.002
            take(session, signal)

        patch.setattr(rig.service, "signalled", signalled)
        rig.batch(source, *[[Op.SIGNAL, n, None] for n in range(3)])
        assert [what for _, what in rig.service.questions] == [0]
        for _ in range(3):
            clock[0] += 0.000_5
            await turns(1)
        assert [what for _, what in rig.service.questions] == [0], "each round was used for something else"
        clock[0] += 0.000_5
        await turns(1)
        assert [what for _, what in rig.service.questions] == [0, 1]
        await turns(2)
        assert [what for _, what in rig.service.questions] == [0, 1, 2], "nothing else was done"


@virtual
async def test_there_is_no_room_for_a_frame_behind_others_that_wait() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    head = frames.CHUNK_HEAD.pack(1, 1, 0, 3_000, 0)
    rig.frame(source, Kind.CHUNK, head + bytes(1_000))
    start = frames.header(Kind.CHUNK, EPOCH, rig.seq[source]) + head
    assert rig.driver.room(b"a stranger", start, len(start) + 10) is None
    rig.driver._backlog.park(source)
    assert rig.driver.room(source, start, len(start) + 10) is None
    rig.driver._backlog.drop(source)
    room = rig.driver.room(source, start, len(start) + 10)
    assert room is not None
    assert len(room) == 10


@virtual
async def test_a_lost_channel_does_not_overtake_the_last_words_of_a_peer_that_left() -> None:
    rig = Rig()
    channel, source = rig.bring_up()
    session = rig.driver.sessions[THERE]
    answered, waits = (SimLoop.current().create_future() for _ in range(2))
    session.calls.update({1: answered, 2: waits})
    rig.driver.inbound.turn_s = 1e-9
    rig.batch(source, *[[Op.SIGNAL, n, None] for n in range(3)])
    rig.batch(source, operations.reply(1, "in time"))
    rig.batch(source, operations.settled([], 0))
    rig.frame(source, Kind.GOODBYE, frames.pack_goodbye("shutdown"))
    _, other = rig.bring_up("fleetlm@10.0.0.3", 3)
    rig.batch(other, *[[Op.SIGNAL, n, None] for n in range(2)])
    rig.driver.channel_lost(channel, "connection closed")
    assert THERE in rig.driver.sessions
    await turns(12)
    assert await answered == "in time"
    with pytest.raises(NoConnection, match=r"left: shutdown\. It had not taken the request"):
        await waits
    assert THERE not in rig.driver.sessions
    assert "fleetlm@10.0.0.3" in rig.driver.sessions


# Local roads.


@virtual
async def test_a_road_is_followed_when_its_announcement_comes_and_not_when_it_is_taken() -> None:
    """The peer may leave meanwhile, and what it sent on its local road queues behind the announcement."""
    rig = Rig(road=7)
    _, source = rig.bring_up()
    session = rig.driver.sessions[THERE]
    answered, waits = (SimLoop.current().create_future() for _ in range(2))
    session.calls.update({1: answered, 2: waits})
    rig.driver._backlog.park(source)
    rig.frame(source, Kind.MOVED, b"")
    assert rig.transport.followed == [source]
    assert not session.incoming.is_local
    rig.batch(source, operations.reply(1, "over the local road"))
    rig.batch(source, operations.settled([], 0))
    rig.frame(source, Kind.GOODBYE, frames.pack_goodbye("shutdown"))
    rig.driver.source_lost(source)
    rig.transport.let_in.clear()
    rig.driver._backlog.resume(source, None)
    await turns(3)
    assert await answered == "over the local road"
    with pytest.raises(NoConnection, match=r"left: shutdown\. It had not taken the request"):
        await waits
    assert session.incoming.is_local
    assert rig.transport.followed == [source], "once"
    assert "protocol error" not in rig.kernel.topology.peers[THERE].connection.last_error


@virtual
async def test_a_road_whose_announcement_need_not_wait_is_followed_once() -> None:
    rig = Rig(road=7)
    _, source = rig.bring_up()
    rig.frame(source, Kind.MOVED, b"")
    rig.batch(source, ["sink", "behind"])
    await turns()
    assert rig.transport.followed == [source]
    assert list(rig.boxes["sink"].queue) == ["behind"]
    assert THERE in rig.driver.sessions


@pytest.mark.parametrize("waits", [False, True])
def test_a_peer_that_changes_over_without_having_been_let_in_is_cut(waits: bool) -> None:
    async def main() -> None:
        rig = Rig(road=7)
        _, source = rig.bring_up()
        rig.transport.let_in.clear()
        if waits:
            rig.driver._backlog.park(source)
        rig.frame(source, Kind.MOVED, b"")
        assert THERE in rig.driver.sessions, "not within the effects of the frame"
        await turns()
        assert THERE not in rig.driver.sessions
        why = "protocol error: it changes over to a local road on which it was not let in"
        assert rig.kernel.topology.peers[THERE].connection.last_error == why

    run(main())


@virtual
async def test_a_second_announcement_is_refused_though_it_waits_behind_the_first() -> None:
    rig = Rig(road=7)
    _, source = rig.bring_up()
    rig.driver._backlog.park(source)
    for _ in range(2):
        rig.frame(source, Kind.MOVED, b"")
    rig.driver._backlog.resume(source, None)
    await turns()
    assert THERE not in rig.driver.sessions
    why = "protocol error: it changes over to a local road that there is not"
    assert rig.kernel.topology.peers[THERE].connection.last_error == why


@virtual
async def test_a_lost_channel_whose_peer_said_nothing_more_ends_the_session_behind_what_came() -> None:
    rig = Rig()
    channel, source = rig.bring_up()
    rig.driver.inbound.turn_s = 1e-9
    rig.batch(source, *[[Op.SIGNAL, n, None] for n in range(3)])
    rig.driver.channel_lost(channel, "connection closed")
    rig.transport.broken = True
    rig.driver.tick_sessions()
    rig.batch(source, ["sink", "behind"])
    rig.driver.source_lost(source)
    rig.batch(source, ["sink", "never"])
    await turns(12)
    assert [what for _, what in rig.service.questions] == [0, 1, 2]
    assert list(rig.boxes["sink"].queue) == ["behind"]
    assert THERE not in rig.driver.sessions
    assert rig.kernel.topology.peers[THERE].connection.last_error == "connection closed"


def last_words(rig: Rig, source: bytes) -> tuple[asyncio.Future[Any], asyncio.Future[Any]]:
    """Open two requests, and return how the peer answers the one and how it leaves the other."""
    session = rig.driver.sessions[THERE]
    answered, waits = (SimLoop.current().create_future() for _ in range(2))
    session.calls.update({1: answered, 2: waits})
    return answered, waits


def say_last_words(rig: Rig, source: bytes) -> None:
    rig.batch(source, operations.reply(1, "in time"))
    rig.batch(source, operations.settled([], 0))
    rig.frame(source, Kind.GOODBYE, frames.pack_goodbye("shutdown"))


@virtual
async def test_a_lost_channel_that_is_read_before_the_last_words_does_not_put_requests_in_doubt() -> None:
    """A loop that has stood still finds both at once, and may read them in any order."""
    rig = Rig()
    channel, source = rig.bring_up()
    answered, waits = last_words(rig, source)
    rig.driver.channel_lost(channel, "connection closed")
    rig.transport.broken = True
    rig.driver.tick_sessions()  # sending fails meanwhile
    await turns()
    say_last_words(rig, source)
    rig.driver.source_lost(source)
    assert await answered == "in time"
    with pytest.raises(NoConnection, match=r"left: shutdown\. It had not taken the request"):
        await waits
    await asyncio.sleep(2 * LAST_WORDS_S)


@virtual
async def test_a_channel_that_alone_was_lost_ends_its_session_a_little_later() -> None:
    rig = Rig()
    channel, _ = rig.bring_up()
    rig.driver.channel_lost(channel, "reset")
    await asyncio.sleep(0.9 * LAST_WORDS_S)
    assert THERE in rig.driver.sessions
    await asyncio.sleep(0.2 * LAST_WORDS_S)
    assert THERE not in rig.driver.sessions
    assert rig.kernel.topology.peers[THERE].connection.last_error == "reset"


@virtual
async def test_the_end_of_the_source_is_told_with_the_reason_of_the_channel() -> None:
    rig = Rig()
    channel, source = rig.bring_up()
    rig.driver.channel_lost(channel, "reset")
    rig.driver.source_lost(source)
    assert THERE not in rig.driver.sessions
    assert rig.kernel.topology.peers[THERE].connection.last_error == "reset"


@virtual
async def test_a_peer_that_takes_nothing_is_cut_without_waiting_for_last_words() -> None:
    rig = Rig()
    rig.bring_up()
    rig.driver._session_lost(rig.driver.sessions[THERE], "it took nothing")
    assert THERE in rig.driver.sessions, "a program may be in the middle of a send"
    await turns()
    assert THERE not in rig.driver.sessions


def restart(rig: Rig, source: bytes) -> bytes:
    """Let another incarnation of the peer dial, and prove that it is there. Returns its source."""
    after = source + b" restarted"
    hello = identity(THERE, 3, SETTINGS).hello(HERE)
    rig.driver.source_met(after, "10.0.0.2")
    rig.frame(after, Kind.HELLO, frames.pack_hello(hello))
    check = rig.transport.dialled[-1][0]
    rig.driver.channel_opened(check)
    out = rig.kernel.topology.peers[THERE].connection.check
    assert out is not None
    rig.frame(after, Kind.READY, frames.pack_ready(Ready(out.out.epoch, hello)))
    return after


@pytest.mark.parametrize("waits_in", ["the backlog", "the transport"])
def test_a_successor_does_not_overtake_the_last_words_of_a_peer_that_was_restarted(waits_in: str) -> None:
    async def main() -> None:
        rig = Rig()
        channel, source = rig.bring_up()
        answered, waits = last_words(rig, source)
        if waits_in == "the backlog":
            rig.driver._backlog.park(source)
            say_last_words(rig, source)
        restart(rig, source)
        assert THERE in rig.driver.sessions
        if waits_in == "the backlog":
            await asyncio.sleep(2 * LAST_WORDS_S)
            assert THERE in rig.driver.sessions, "its frames are still being taken"
            rig.driver._backlog.resume(source, None)
            await turns()
        else:
            say_last_words(rig, source)
        assert await answered == "in time"
        with pytest.raises(NoConnection, match=r"left: shutdown\. It had not taken the request"):
            await waits
        assert THERE not in rig.driver.sessions
        await asyncio.sleep(1.0)
        assert rig.transport.dialled[-1][0] > channel + 1, "it dials the successor"
        rig.driver.leave("done")

    run(main())


@virtual
async def test_a_peer_that_was_restarted_without_last_words_is_down_a_little_later() -> None:
    rig = Rig()
    events = rig.events.subscribe()
    channel, source = rig.bring_up()
    restart(rig, source)
    rig.driver.channel_lost(channel, "reset")
    await asyncio.sleep(LAST_WORDS_S)
    assert THERE not in rig.driver.sessions
    _, down = await rig.next_events(events, 2)
    assert down.reason == "restarted: another incarnation"


@virtual
async def test_the_end_of_a_check_that_waits_for_last_words_does_not_keep_the_session() -> None:
    """The proof comes too late then; what else has told the end still counts."""
    rig = Rig()
    _, source = rig.bring_up()
    restart(rig, source)
    rig.kernel.topology.peers[THERE].connection.end_check()
    rig.driver.source_lost(source)
    assert THERE not in rig.driver.sessions


@pytest.mark.parametrize(
    "frame", [b"", b"x", bytes([Kind.READY]), frames.header(Kind.READY, EPOCH, 0) + b"x"]
)
def test_a_stranger_that_sends_nonsense_for_a_proof_ends_nothing(frame: bytes) -> None:
    async def main() -> None:
        rig = Rig()
        rig.bring_up()
        rig.driver.frame_arrived(b"a stranger", frame)
        hello = identity(THERE, 3, SETTINGS).hello(HERE)
        rig.frame(b"a stranger", Kind.READY, frames.pack_ready(Ready(12345, hello)))
        await asyncio.sleep(2 * LAST_WORDS_S)
        assert THERE in rig.driver.sessions

    run(main())


@virtual
async def test_a_peer_that_ignores_its_window_while_it_waits_is_cut_and_another_is_not() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver._backlog._max_bytes = 10_000
    rig.driver.inbound.turn_s = 1e-9
    rig.batch(source, *[[Op.SIGNAL, n, None] for n in range(3)])
    for _ in range(9):
        rig.batch(source, ["sink", bytes(1_000)])
    assert THERE in rig.driver.sessions
    rig.batch(source, ["sink", bytes(1_000)])
    assert THERE not in rig.driver.sessions
    await turns(9)
    assert not rig.boxes["sink"]
    assert rig.service.questions == [("signal", 0)]


@virtual
async def test_a_malformed_message_in_the_rest_of_a_frame_ends_the_session() -> None:
    rig = Rig()
    _, source = rig.bring_up()
    rig.driver.inbound.turn_s = 1e-9
    rig.batch(source, [Op.SIGNAL, 0, None], [99, 1, 2], ["sink", 1])
    assert THERE in rig.driver.sessions
    await turns(5)
    assert THERE not in rig.driver.sessions
    assert not rig.boxes["sink"]
