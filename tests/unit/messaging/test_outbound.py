"""The sending side of a node: over a session to a peer that the test plays, and to its own processes.

What needs two whole nodes is in tests/sim/test_node_api.py.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgpack
import pytest

from fleetlm.core.topology import Topology
from fleetlm.errors import (
    CallTimeout,
    InvalidName,
    MessageTooLarge,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    NotSerializable,
    Undecodable,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.messaging.fan_out import FanOut
from fleetlm.messaging.multicall import Multicall
from fleetlm.messaging.outbound import Outbound
from fleetlm.messaging.wheel import SLOTS_PER_S
from fleetlm.names import Address
from fleetlm.process import Process
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire.frames import HEADER_BYTES
from tests.support.session_fakes import HERE, THERE, Pair, identity, local_processes, turns, virtual, waits_of

KIB = 1024
SETTINGS = Settings(
    window_bytes=64 * KIB, chunk_bytes=4 * KIB, bulk_window_bytes=8 * KIB, mailbox_limit=1_000
)
FOUR = SETTINGS.replace(mailbox_limit=4)


class Rig:
    """The sending side of a node with one session; `wire` shows what the peer received."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.pair = Pair(settings)
        self.session = self.pair.here.session
        self.box = self.pair.there.box("echo")
        loop = SimLoop.current()
        me = identity(HERE, 1, settings)
        self.topology = Topology(me, settings, loop.rng)
        self.local = local_processes(self, settings.mailbox_limit)
        self.sessions = {THERE: self.session}
        self.outbound = Outbound(
            HERE,
            1,
            settings,
            self.pair.here.codec,
            self.local.boxes,
            self.sessions,
            self.topology,
            waits_of(self.local),
        )
        self.multicall = Multicall(self.pair.here.codec, self.outbound)
        self.fan_out = FanOut(HERE, self.sessions, self.outbound)

    def name_of(self, pid: Pid) -> str | None:
        return None

    def start(self, coro: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(coro)

    async def settle(self) -> None:
        for _ in range(3):
            await turns()
            self.pair.settle()

    def wire(self) -> list[Any]:
        """Small messages that left since the last look."""
        self.pair.here.flush()
        return [m for data in self.pair.here.transport.take() for m in msgpack.unpackb(data[HEADER_BYTES:])]

    def fill(self) -> None:
        while not self.session.is_full:
            self.session.append(self.pair.here.codec.pack_whole(["echo", m := b"x" * KIB], m))


@virtual
async def test_every_kind_of_target_is_routed() -> None:
    rig = Rig()
    for to in [("echo", THERE), Address("echo", THERE), ["echo", THERE], Pid(THERE, 2, 5)]:
        await rig.outbound.send(to, "hi")  # type: ignore[arg-type]
    assert rig.wire() == [["echo", "hi"]] * 3 + [[5, "hi"]]
    v6 = "fleetlm@fd00::7"
    rig.sessions[v6] = rig.session
    await rig.outbound.send(("echo", "fleetlm@FD00:0::7"), 1)
    assert rig.wire() == [["echo", 1]]


@virtual
async def test_targets_that_are_nowhere_say_why() -> None:
    rig = Rig()
    with pytest.raises(NoConnection, match="no such node is known"):
        await rig.outbound.send(("echo", "fleetlm@10.9.9.9"), 1)
    peer = rig.topology.meet(0.0, "fleetlm@10.0.0.3")
    assert peer is not None
    with pytest.raises(NoConnection, match="it is wanted"):
        await rig.outbound.send(("echo", "fleetlm@10.0.0.3"), 1)
    peer.connection.last_error = "connection refused"
    with pytest.raises(NoConnection, match="connection refused"):
        rig.outbound.send_nowait(Pid("fleetlm@10.0.0.3", 1, 1), 1)
    with pytest.raises(InvalidName):
        await rig.outbound.send(("echo", "localhost"), 1)
    with pytest.raises(NoProcess):
        await rig.outbound.send("nobody", 1)
    with pytest.raises(NoProcess):
        await rig.outbound.send(("nobody", HERE), 1)


@virtual
async def test_a_pid_of_another_incarnation_raises_no_process_and_nothing_is_sent() -> None:
    rig = Rig()

    async def idle(process: Process) -> None:
        await process.receive()

    assert rig.local.spawn(idle, (), None) == Pid(HERE, 1, 1)
    for node in (HERE, THERE):
        for attempt in (rig.outbound.send, lambda to, m: rig.outbound.call(to, m, 1.0)):
            with pytest.raises(NoProcess):
                await attempt(Pid(node, 99, 1), "hi")
    assert rig.wire() == []
    await rig.local.stop()


@virtual
async def test_what_cannot_travel_is_refused_and_nothing_is_sent() -> None:
    rig = Rig(SETTINGS.replace(max_message_bytes=50 * KIB))
    for attempt in (
        lambda m: rig.outbound.send(("echo", THERE), m),
        lambda m: rig.outbound.call(("echo", THERE), m, 1.0),
        lambda m: rig.fan_out.broadcast("echo", m, None),
    ):
        with pytest.raises(NotSerializable):
            await attempt({"a": [object()]})
        with pytest.raises(MessageTooLarge):
            await attempt(b"x" * 51 * KIB)
    assert rig.wire() == []
    assert not rig.session.calls


@virtual
async def test_a_full_window_makes_send_wait_and_send_nowait_raise() -> None:
    rig = Rig()
    rig.fill()
    with pytest.raises(WouldBlock, match="bytes are in flight to fleetlm@"):
        rig.outbound.send_nowait(("echo", THERE), 1)
    sending = rig.start(rig.outbound.send(("echo", THERE), "last"))
    await turns()
    assert not sending.done()
    await rig.settle()
    await sending
    await rig.settle()
    assert rig.box.queue[-1] == "last"


@virtual
async def test_a_sender_in_a_tight_loop_lets_the_loop_turn() -> None:
    rig = Rig(SETTINGS.replace(batch_messages=10))
    seen: list[int] = []

    async def look() -> None:
        while len(seen) < 5:
            seen.append(rig.session.messages_sent)
            await asyncio.sleep(0)

    looking = rig.start(look())
    for number in range(100):
        await rig.outbound.send(("echo", THERE), number)
    await looking
    assert seen in ([0, 10, 20, 30, 40], [10, 20, 30, 40, 50])


# Calls.


@virtual
async def test_a_call_carries_its_deadline() -> None:
    rig = Rig()
    calling = rig.start(rig.outbound.call(("echo", THERE), "hi", 2.5))
    await rig.settle()
    call = await rig.box.get()
    assert call.remaining_s == pytest.approx(2.5, abs=0.002)
    call.reply("ho")
    await rig.settle()
    assert await calling == "ho"
    assert not rig.session.calls


@virtual
async def test_the_wait_for_the_window_counts_against_the_deadline() -> None:
    rig = Rig()
    rig.fill()
    calling = rig.start(rig.outbound.call(("echo", THERE), "hi", 3.0))
    await asyncio.sleep(2)
    await rig.settle()
    assert rig.box.queue.pop().remaining_s == pytest.approx(1.0, abs=0.002)
    with pytest.raises(CallTimeout):
        await calling


@virtual
async def test_a_window_that_stays_full_was_not_delivered() -> None:
    rig = Rig()
    rig.fill()
    with pytest.raises(WouldBlock, match="stayed full for the 2 s"):
        await rig.outbound.call(("echo", THERE), "hi", 2.0)
    (result,) = await rig.multicall([("echo", THERE)], "hi", 2.0)
    assert isinstance(result, WouldBlock)
    assert not rig.session.byte_window._waiters


@pytest.mark.parametrize("timeout_s", [0, -1, 1e12, float("inf")])
def test_odd_deadlines_are_deadlines(timeout_s: float) -> None:
    async def main() -> None:
        rig = Rig()
        calling = rig.start(rig.outbound.call(("echo", THERE), "hi", timeout_s))
        await rig.settle()
        assert type(rig.box.queue[0]).__name__ == "Call"
        if timeout_s > 0:
            rig.box.queue[0].reply("ho")
            await rig.settle()
            assert await calling == "ho"
        else:
            with pytest.raises(CallTimeout):
                await calling
            await rig.settle()
            assert not rig.box.queue[0].wanted

    run(main())


@pytest.mark.parametrize("size", [1, 100 * KIB])
@pytest.mark.parametrize("many", [False, True])
def test_a_caller_that_gives_up_sends_its_cancel_after_the_request(size: int, many: bool) -> None:
    async def main() -> None:
        rig = Rig()
        to, message = ("echo", THERE), b"x" * size
        calling = rig.start(
            rig.multicall([to], message, 60.0) if many else rig.outbound.call(to, message, 60.0)
        )
        await turns()
        calling.cancel()
        await turns()
        await rig.settle()
        (call,) = rig.box.queue
        assert not call.wanted
        assert not rig.session.calls
        assert not rig.pair.there.session.requests
        assert calling.cancelled()

    run(main())


@virtual
async def test_a_call_over_a_session_that_ends_may_have_run() -> None:
    rig = Rig()
    calling = rig.start(rig.outbound.call(("echo", THERE), "hi", 5.0))
    await turns()
    rig.session.close("it broke")
    with pytest.raises(NodeLost, match="it broke"):
        await calling


@virtual
async def test_a_call_that_waited_for_a_session_that_ends_was_not_delivered() -> None:
    rig = Rig()
    rig.fill()
    calling = rig.start(rig.outbound.call(("echo", THERE), "hi", 5.0))
    await turns()
    rig.session.close("it broke")
    with pytest.raises(NoConnection, match="it broke"):
        await calling


@virtual
async def test_a_small_multicall_does_not_overtake_a_large_message_of_the_same_sender() -> None:
    rig = Rig()
    await rig.outbound.send(("echo", THERE), b"x" * 30 * KIB)
    calling = rig.start(rig.multicall([("echo", THERE)], "other task", 1.0))
    await turns()

    async def sender() -> Any:
        await rig.outbound.send(("echo", THERE), b"y" * 20 * KIB)
        return await rig.multicall([("echo", THERE)], "same task", 1.0)

    sending = rig.start(sender())
    await rig.settle()
    kinds = [m[:1] if isinstance(m, bytes) else m.message for m in rig.box.queue]
    assert kinds.index("same task") > kinds.index(b"y")
    assert kinds.index("other task") < kinds.index(b"x")
    for each in (calling, sending):
        (result,) = await each
        assert isinstance(result, CallTimeout)


# One to many.


@virtual
async def test_multicall_keeps_the_order_of_its_targets_and_mixes_outcomes() -> None:
    rig = Rig()

    async def echo(process: Process) -> None:
        call = await process.mailbox.get()
        await asyncio.sleep(0.1)
        call.reply("here")

    rig.local.spawn(echo, (), "echo")
    targets = [
        ("echo", THERE),
        "nobody",
        "echo",
        ("echo", "fleetlm@10.9.9.9"),
        ("echo", "bad"),
        ("no", THERE),
    ]
    calling = rig.start(rig.multicall(targets, "hi", 1.0))  # type: ignore[arg-type]
    await rig.settle()
    (await rig.box.get()).reply("there")
    await rig.settle()
    results = await calling
    shown = [r if isinstance(r, str) else type(r) for r in results]
    assert shown == ["there", NoProcess, "here", NoConnection, InvalidName, NoProcess]
    assert await rig.multicall([], "hi", 1.0) == []


@virtual
async def test_calls_of_a_multicall_end_together_at_its_deadline_each_with_its_target() -> None:
    rig = Rig()
    other, now = rig.pair.there.box("other"), asyncio.get_running_loop().time
    began = now()
    calling = rig.start(rig.multicall([("echo", THERE), ("other", THERE)], "hi", 1.0))
    await rig.settle()
    other.queue[0].reply("in time")
    await rig.settle()
    late, reply = await calling
    assert reply == "in time"
    assert isinstance(late, CallTimeout)
    assert late.target == ("echo", THERE)
    assert 0 <= now() - began - 1.0 <= 1 / SLOTS_PER_S
    assert rig.session.calls == rig.session.open_calls == {}


@virtual
async def test_a_multicall_goes_on_in_the_turn_after_the_last_reply() -> None:
    rig = Rig()
    calling = rig.start(rig.multicall([("echo", THERE)] * 3, "hi", 5.0))
    await turns()
    first, second, third = cast("list[asyncio.Future[Any]]", list(rig.session.calls.values()))
    third.set_result("third")
    await turns()
    assert not calling.done()
    second.set_exception(NoProcess("echo"))
    first.set_result("first")
    await asyncio.sleep(0)
    assert calling.done()
    one, failed, three = calling.result()
    assert (one, three) == ("first", "third")
    assert isinstance(failed, NoProcess)
    assert failed.__traceback__ is None, "it and the frame that waited would hold each other"


@virtual
async def test_outcomes_of_a_multicall_that_was_given_up_are_not_reported_by_asyncio() -> None:
    rig = Rig()
    calling = rig.start(rig.multicall([("echo", THERE)] * 3, "hi", 5.0))
    await turns()
    first, second, third = cast("list[asyncio.Future[Any]]", list(rig.session.calls.values()))
    second.set_exception(NoProcess("echo"))
    third.set_result("third")
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert first.cancelled()
    assert not second._log_traceback
    assert rig.session.calls == {}
    await rig.local.stop()


@virtual
async def test_broadcast_counts_the_nodes_to_which_it_went() -> None:
    rig = Rig()

    async def sink(process: Process) -> None:
        await process.receive()
        await process.receive()

    assert await rig.fan_out.broadcast("echo", 1, None) == 1
    rig.local.spawn(sink, (), "echo")
    assert await rig.fan_out.broadcast("echo", 2, None) == 2
    assert await rig.fan_out.broadcast("echo", 3, [HERE]) == 1
    assert await rig.fan_out.broadcast("echo", 4, ["fleetlm@10.9.9.9"]) == 0
    assert await rig.fan_out.broadcast("echo", 5, []) == 0
    assert rig.wire() == [["echo", 1], ["echo", 2]]
    await turns()


@virtual
async def test_broadcast_reaches_the_others_before_it_waits_for_one_that_is_behind() -> None:
    rig, other = Rig(), Pair(SETTINGS)
    rig.sessions["fleetlm@10.0.0.3"] = other.here.session
    rig.fill()
    sending = rig.start(rig.fan_out.broadcast("echo", "hi", None))
    await turns()
    assert not sending.done()
    assert other.here.session.in_flight > 0
    rig.session.close("it broke")
    assert await sending == 1


# On this node.


@virtual
async def test_a_full_mailbox_here_makes_send_wait_and_send_nowait_raise() -> None:
    rig = Rig(FOUR)
    got: list[int] = []

    async def slow(process: Process) -> None:
        async for message in process.mailbox:
            got.append(message)
            await asyncio.sleep(1)

    rig.local.spawn(slow, (), "slow")
    for number in range(4):
        rig.outbound.send_nowait("slow", number)
    with pytest.raises(WouldBlock, match="its mailbox holds 4 messages"):
        rig.outbound.send_nowait("slow", 4)
    await rig.outbound.send("slow", 4)
    assert SimLoop.current().time() == pytest.approx(1.0, abs=1.0)
    await asyncio.sleep(10)
    assert got == [0, 1, 2, 3, 4]
    await rig.local.stop()


@virtual
async def test_a_process_that_ends_while_a_sender_waits_raises_no_process() -> None:
    rig = Rig(FOUR)

    async def brief(process: Process) -> None:
        await asyncio.sleep(1)

    pid = rig.local.spawn(brief, (), "brief")
    for number in range(4):
        await rig.outbound.send(pid, number)
    with pytest.raises(NoProcess):
        await rig.outbound.send("brief", 4)


@virtual
async def test_a_local_call_that_is_cancelled_or_expires_is_no_longer_wanted() -> None:
    rig = Rig()
    seen: list[Any] = []

    async def hold(process: Process) -> None:
        while True:
            seen.append(await process.receive())

    rig.local.spawn(hold, (), "hold")
    with pytest.raises(CallTimeout):
        await rig.outbound.call("hold", 1, 0.5)
    calling = rig.start(rig.outbound.call("hold", 2, 5.0))
    await turns()
    calling.cancel()
    await turns()
    assert [call.wanted for call in seen] == [False, False]
    assert not rig.outbound.local_calls
    await rig.local.stop()


@virtual
async def test_locally_the_same_object_is_handed_over_and_in_debug_a_copy() -> None:
    for debug in (False, True):
        rig = Rig(SETTINGS.replace(debug=debug))

        async def echo(process: Process) -> None:
            async for call in process.mailbox:
                call.reply(call.message)

        rig.local.spawn(echo, (), "echo")
        message = {"a": [1, (2, 3)]}
        reply = await rig.outbound.call("echo", message, 1.0)
        assert reply == message
        assert (reply is message) is not debug
        if debug:
            for attempt in (
                rig.outbound.send("echo", object()),
                rig.outbound.call("echo", object(), 1.0),
                rig.fan_out.broadcast("echo", object(), [HERE]),
            ):
                with pytest.raises(NotSerializable):
                    await attempt
        await rig.local.stop()


# Stopped.


@virtual
async def test_after_the_end_nothing_is_sent() -> None:
    rig = Rig()

    async def hold(process: Process) -> None:
        await asyncio.sleep(100)

    pid = rig.local.spawn(hold, (), "hold")
    calling = rig.start(rig.outbound.call(pid, 1, 5.0))
    await turns()
    rig.outbound.close("shutdown")
    with pytest.raises(NodeLost, match="shutdown"):
        await calling
    for attempt in (
        rig.outbound.send("hold", 1),
        rig.outbound.call(("echo", THERE), 1, 1.0),
        rig.outbound.ask(THERE, "ping", None, 1.0),
        rig.fan_out.broadcast("hold", 1, None),
    ):
        with pytest.raises(NodeStopped):
            await attempt
    with pytest.raises(NodeStopped):
        rig.outbound.send_nowait("hold", 1)
    results = await rig.multicall(["hold"], 1, 1.0)
    assert [type(each) for each in results] == [NodeStopped]
    await rig.local.stop()


@virtual
async def test_in_debug_a_reply_that_cannot_be_read_is_an_error() -> None:
    rig = Rig(SETTINGS.replace(debug=True))
    assert rig.outbound.copied("x", (1, {2})) == (1, {2})
    rig.pair.here.codec._readers.clear()  # as if this node knew no extension at all
    with pytest.raises(Undecodable):
        rig.outbound.copied("x", (1,))
