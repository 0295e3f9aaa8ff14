"""What a request takes along, byte for byte, and what a tracer is told of its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from fleetlm.actors.sender import ActorSender
from fleetlm.errors import CallTimeout, NoConnection, NodeLost, WouldBlock
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.multicall import Multicall
from fleetlm.messaging.request_context import RequestContext, TracedConsumerEnd
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.streams import Streams
from fleetlm.wire import operations
from fleetlm.wire.carriers import pack_carrier, unpack_carrier
from fleetlm.wire.invocation import Invoke
from tests.support.session_fakes import HERE, THERE, virtual
from tests.unit.messaging.test_outbound import FOUR, SETTINGS, Rig as Outgoing

REQUEST_ID: ContextVar[Any] = ContextVar("request-id")
REQUEST = Invoke("work", (1,), {})
TO = ("echo", THERE)


class Rig(Outgoing):
    """The sending side of a node, with what actor references use of it."""

    def __init__(self, settings: Any = SETTINGS) -> None:
        super().__init__(settings)
        self.session.carries = True
        loop = asyncio.get_running_loop()
        self.streams = Streams(self.outbound, settings, self.pair.here.codec, loop)
        self.sender = ActorSender(
            self.outbound, lambda: self.streams, self.fan_out, lambda: self.multicall, 5.0
        )

    def last(self) -> bytes:
        """The bytes of the message that was sent last, which still waits for the end of the turn."""
        return self.session._batch[-1]


class Asked:
    """What was asked of a tracer for one request, and what it was told."""

    def __init__(self, verb: str, to: Any, message: Any, count: int) -> None:
        self.asked = (verb, to, count)
        self.message = message
        self.ends: list[Any] = []

    def inject(self, values: dict[str, Any]) -> None:
        values["traceparent"] = "00-1-2-01"

    def end(
        self, error: BaseException | None = None, items: int | None = None, is_whole: bool = True
    ) -> None:
        self.ends.append((type(error).__name__, items, is_whole))


class Tracer:
    def __init__(self) -> None:
        self.requests: list[Asked] = []

    def ask(self, verb: str, to: Any, message: Any, count: int = 1) -> Asked:
        asked = Asked(verb, to, message, count)
        self.requests.append(asked)
        return asked

    def serve(self, work: Any, served: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def variable() -> Iterator[ContextVar[Any]]:
    CARRYING.add(REQUEST_ID, "request-id")
    token = REQUEST_ID.set(None)
    yield REQUEST_ID
    REQUEST_ID.reset(token)
    CARRYING.remove("request-id")


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    made = Tracer()
    CARRYING.trace(HERE, 1, made)
    yield made
    CARRYING.untrace(HERE, 1)


@virtual
async def test_with_nothing_to_take_along_the_bytes_are_those_of_the_schema() -> None:
    rig = Rig()
    pack = rig.pair.here.codec.pack_value
    assert not CARRYING.is_active
    expected = pack(operations.cast("echo", ["work", [1], {}], 1))
    rig.sender.cast_nowait(TO, REQUEST)
    assert rig.last() == expected
    CARRYING.add(REQUEST_ID, "request-id")
    try:
        rig.sender.cast_nowait(TO, REQUEST)  # The variable is not set here.
        assert rig.last() == expected
        REQUEST_ID.set("r-1")
        rig.session.carries = False
        rig.sender.cast_nowait(TO, REQUEST)
        assert rig.last() == expected
        rig.session.carries = True
        rig.sender.cast_nowait(TO, REQUEST)
        carrier = pack_carrier({"request-id": "r-1"})
        assert rig.last() == pack(operations.cast("echo", ["work", [1], {}, carrier], 1))
    finally:
        CARRYING.remove("request-id")
        REQUEST_ID.set(None)


def test_each_kind_of_request_takes_it_along(variable: ContextVar[Any]) -> None:
    @virtual
    async def play() -> None:
        rig = Rig()
        variable.set("r-1")
        asking = [
            rig.start(rig.sender.call(TO, REQUEST)),
            rig.start(rig.sender.call(TO, "plain")),
            rig.start(rig.sender.cast(TO, REQUEST)),
            rig.start(rig.sender.multicall([TO], REQUEST)),
            rig.start(rig.sender.fan_out([TO], REQUEST)),
            rig.start(rig.sender.stream(TO, REQUEST).__anext__()),
            rig.start(rig.sender.stream(TO, "plain").__anext__()),
        ]
        await rig.settle()
        found = list(rig.box.queue)
        assert len(found) == len(asking)
        assert [unpack_carrier(each.carrier) for each in found] == [{"request-id": "r-1"}] * len(asking)
        assert [getattr(each, "message", each) for each in found].count("plain") == 2
        for each in asking:
            each.cancel()
        await asyncio.wait(asking)

    play()


def test_a_broadcast_reaches_each_target_once_though_sessions_change(
    variable: ContextVar[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def is_able(_: RequestContext, to: Any) -> bool:
        asked.append(to)
        return to == TO and asked.count(to) == 1

    @virtual
    async def play() -> None:
        rig = Rig()
        variable.set("r-1")
        monkeypatch.setattr(RequestContext, "is_able", is_able)
        assert await rig.sender.fan_out([TO, ("none", THERE)], REQUEST) == 2
        await rig.settle()
        assert len(rig.box.queue) == 1

    play()


def test_a_multicall_in_a_mixed_cluster_leaves_nothing_behind_when_it_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[str] = []

    async def ask(_: Multicall, targets: Any, *__: Any) -> Any:
        if targets == ["able"]:
            raise RuntimeError("a fault")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    @virtual
    async def play() -> None:
        rig = Rig()
        with pytest.raises(RuntimeError, match="a fault"):
            await rig.multicall._ask_mixed([("able", True), ("old", False)], REQUEST, REQUEST, 5.0)
        await rig.settle()

    monkeypatch.setattr(Multicall, "_ask", ask)
    play()
    assert ends == ["cancelled"]


def test_a_tracer_is_told_each_outcome_once(tracer: Tracer) -> None:
    @virtual
    async def play() -> None:
        rig = Rig()
        calling = [rig.start(rig.sender.call(TO, REQUEST, 2.0)) for _ in range(3)]
        await rig.settle()
        rig.box.queue.popleft().reply("done")
        calling[1].cancel()
        await rig.settle()
        with pytest.raises(CallTimeout):
            await calling[2]
        assert await calling[0] == "done"
        with pytest.raises(NoConnection):
            await rig.sender.cast(("echo", "fleetlm@10.0.0.9"), REQUEST)
        with pytest.raises(NoConnection):
            rig.sender.cast_nowait(("echo", "fleetlm@10.0.0.9"), REQUEST)
        lost = rig.start(rig.sender.multicall([TO, TO], REQUEST))
        await rig.settle()
        rig.session.close("gone")
        assert [type(each) for each in await lost] == [NodeLost, NodeLost]

    play()
    assert [asked.ends for asked in tracer.requests] == [
        [("NoneType", None, True)],
        [("CancelledError", None, True)],
        [("CallTimeout", None, True)],
        [("NoConnection", None, True)],
        [("NoConnection", None, True)],
        [("NoneType", None, True)],  # A multicall has results, of which some are errors.
    ]
    assert [asked.asked[0] for asked in tracer.requests] == ["call"] * 3 + ["cast"] * 2 + ["multicall"]
    assert tracer.requests[-1].asked == ("multicall", None, 2)


def test_a_traced_stream_ends_once_and_counts_what_came(tracer: Tracer) -> None:
    @virtual
    async def play() -> None:
        rig = Rig()
        streams = [rig.sender.stream(TO, REQUEST, 2.0) for _ in range(4)]
        reading = [rig.start(anext(stream)) for stream in streams]
        await rig.settle()
        whole, raised, given_up, _expired = list(rig.box.queue)
        for call in (whole, raised, given_up):
            await call.put(1)
        await whole.put(2)
        whole.reply()
        raised.fail(ValueError("spoilt"))
        await rig.settle()
        assert [await each for each in reading[:3]] == [1, 1, 1]
        assert [item async for item in streams[0]] == [2]
        await streams[2].aclose()
        with pytest.raises(CallTimeout):
            await reading[3]
        for stream in streams:
            await stream.aclose()
        with pytest.raises(NoConnection):
            await anext(rig.sender.stream(("echo", "fleetlm@10.0.0.9"), REQUEST))
        await rig.sender.stream(TO, REQUEST).aclose()

    play()
    assert [asked.ends for asked in tracer.requests] == [
        [("NoneType", 2, True)],
        [("RemoteError", 1, True)],
        [("NoneType", 1, False)],
        [("CallTimeout", 0, True)],
        [("NoConnection", 0, True)],
    ]


def test_a_request_that_finds_no_room_is_told_too(tracer: Tracer) -> None:
    @virtual
    async def play() -> None:
        rig = Rig(FOUR)
        for _ in range(4):
            rig.sender.cast_nowait(TO, REQUEST)
        with pytest.raises(WouldBlock):
            rig.sender.cast_nowait(TO, REQUEST)
        with pytest.raises(WouldBlock):
            await rig.sender.cast(TO, REQUEST, 1.0)
        with pytest.raises(WouldBlock):
            await anext(rig.sender.stream(TO, REQUEST, 1.0))

    play()
    ends = [asked.ends for asked in tracer.requests]
    assert ends[4:] == [[("WouldBlock", None, True)]] * 2 + [[("WouldBlock", 0, True)]]
    assert ends[:4] == [[("NoneType", None, True)]] * 4


@virtual
async def test_a_consumer_counts_only_where_its_node_is_traced() -> None:
    rig = Rig()
    context = rig.outbound.context
    assert type(rig.streams.consumer()) is type(context.consumer(64)) is ConsumerEnd
    CARRYING.trace(HERE, 1, Tracer())
    try:
        assert type(rig.streams.consumer()) is type(context.consumer(64)) is TracedConsumerEnd
    finally:
        CARRYING.untrace(HERE, 1)
