"""Traces of OpenTelemetry over simulated nodes: one trace over three nodes and a stream, and each outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry import baggage, context as contexts, propagate, trace
from opentelemetry.propagators import textmap
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fleetlm import (
    Actor,
    ActorRef,
    Call,
    CallTimeout,
    Node,
    NoHandler,
    NoProcess,
    Process,
    RemoteError,
    handler,
    tracing,
)
from fleetlm.messaging.carrying import CARRYING
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


async def pass_time(seconds: float) -> None:
    assert isinstance(asyncio.get_running_loop(), SimLoop)  # No time passes really.
    await asyncio.sleep(seconds)


class Spans:
    """The spans that nodes have ended, in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("program")

    def all(self) -> list[ReadableSpan]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name and span.kind is kind]

    def one(self, name: str, kind: SpanKind) -> ReadableSpan:
        (span,) = self.named(name, kind)
        return span


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return span.parent is not None and (span.parent.trace_id, span.parent.span_id) == ids(of)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


class Failing(textmap.TextMapPropagator):
    """A propagator that takes nothing well."""

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        raise ValueError("hostile")

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        carrier["one"] = "1"
        raise ValueError("full")

    @property
    def fields(self) -> set[str]:
        return set()


class Model(Actor):
    @handler
    async def tokens(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @handler
    async def spoilt(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("spoilt")


class Front(Actor):
    """Asks a model on another node."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self.tracer = tracer
        self.model: ActorRef[Model] | None = None
        self.seen: list[int] = []

    @handler
    async def answer(self, count: int) -> int:
        assert self.model is not None
        with self.tracer.start_as_current_span("in the handler"):
            return sum([token async for token in self.model.stream(Model.tokens, count)])

    @handler(concurrent=True)
    async def slow(self) -> None:
        await pass_time(60)

    @handler
    async def broken(self) -> None:
        raise ValueError("no such prompt")

    @handler
    async def unspeakable(self) -> None:
        raise Unspeakable

    @handler
    async def note(self) -> None:
        self.seen.append(trace.get_current_span().get_span_context().trace_id)

    @handler
    async def noted(self) -> list[int]:
        return self.seen

    @handler
    async def whose(self) -> list[Any]:
        return [trace.get_current_span().get_span_context().span_id, baggage.get_baggage("tenant")]

    async def handle_info(self, message: Any) -> None:
        if isinstance(message, Call):
            message.reply(trace.get_current_span().get_span_context().is_valid)


@contextlib.contextmanager
def instrumented(spans: Spans, *nodes: Node) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.enter_context(tracing.instrument(node, spans.provider))
        yield
    assert not CARRYING.is_active


@simulated
async def test_one_trace_goes_over_three_nodes_and_a_stream(fleet: Fleet) -> None:
    spans = Spans()
    one, two, three = await fleet.mesh(3)
    await three.start_actor(Model(), name="model")
    front = Front(spans.tracer)
    front.model = two.ref(Model, "model", at=three.name)
    await two.start_actor(front, name="front")
    with instrumented(spans, one, two, three):
        with spans.tracer.start_as_current_span("a user asks"):
            assert await one.ref(Front, "front", at=two.name).call(Front.answer, 5) == 10
        await pass_time(1)

    root = spans.one("a user asks", SpanKind.INTERNAL)
    asked = spans.one("Front/answer", SpanKind.CLIENT)
    served = spans.one("Front/answer", SpanKind.SERVER)
    inner = spans.one("in the handler", SpanKind.INTERNAL)
    opened = spans.one("Model/tokens", SpanKind.CLIENT)
    streamed = spans.one("Model/tokens", SpanKind.SERVER)
    chain = [root, asked, served, inner, opened, streamed]
    assert len(spans.all()) == len(chain)
    assert all(is_child(child, of=parent) for parent, child in pairwise(chain))
    assert attributes(asked) == {
        "rpc.system": "fleetlm", "rpc.service": "Front", "rpc.method": "answer",
        "fleetlm.node": one.name, "fleetlm.verb": "call", "fleetlm.peer": two.name,
        "fleetlm.process.name": "front", "server.address": "10.0.0.2", "fleetlm.outcome": "ok",
    }  # fmt: skip
    assert attributes(served) == {
        "rpc.system": "fleetlm", "rpc.service": "Front", "rpc.method": "answer",
        "fleetlm.node": two.name, "fleetlm.peer": one.name, "client.address": "10.0.0.1",
        "fleetlm.process": str(await one.whereis("front", at=two.name)), "fleetlm.process.name": "front",
        "fleetlm.mailbox.wait": 0.0, "fleetlm.outcome": "ok",
    }  # fmt: skip
    assert {attributes(span)["fleetlm.stream.items"] for span in (opened, streamed)} == {5}
    assert attributes(streamed)["fleetlm.peer"] == two.name


@simulated
async def test_a_cast_has_a_producer_and_a_consumer(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)
    for node in (one, two):
        await node.start_actor(Front(spans.tracer), name="front")
    with instrumented(spans, one, two):
        for name in (one.name, two.name):
            front = one.ref(Front, "front", at=name)
            await front.cast(Front.note)
            front.cast_nowait(Front.note)
        with pytest.raises(NoProcess):
            one.ref(Front, "nobody").cast_nowait(Front.note)
        await pass_time(1)
    *sent, failed = spans.named("send Front/note", SpanKind.PRODUCER)
    assert attributes(failed)["fleetlm.outcome"] == "not delivered"
    assert attributes(failed)["error.type"] == "NoProcess"
    for span in sent:
        (served,) = [each for each in spans.all() if is_child(each, of=span)]
        assert (served.name, served.kind) == ("process Front/note", SpanKind.CONSUMER)
        assert attributes(served)["fleetlm.mailbox.wait"] >= 0
        expected = {"messaging.system": "fleetlm", "messaging.destination.name": "front"}
        for side, verb in ((span, "send"), (served, "process")):
            assert expected.items() <= attributes(side).items()
            assert attributes(side)["messaging.operation.type"] == verb
    assert len(sent) == 4


@simulated
async def test_many_are_asked_in_one_span_and_serve_in_one_each(fleet: Fleet) -> None:
    spans = Spans()
    nodes = await fleet.mesh(3)
    for node in nodes:
        await node.start_actor(Front(spans.tracer), name="front")
    with instrumented(spans, *nodes):
        everywhere = nodes[0].refs(Front, [("front", node.name) for node in nodes])
        await everywhere.multicall(Front.noted)
        await everywhere.broadcast(Front.note)
        assert await nodes[0].multicall([("front", nodes[1].name)], "plain") == [True]
        await pass_time(1)
    asked = spans.one("Front/noted", SpanKind.CLIENT)
    told = spans.one("send Front/note", SpanKind.PRODUCER)
    assert attributes(asked)["fleetlm.targets"] == attributes(told)["messaging.batch.message_count"] == 3
    served = [
        *spans.named("Front/noted", SpanKind.SERVER),
        *spans.named("process Front/note", SpanKind.CONSUMER),
    ]
    parents = [parent for parent in (asked, told) for each in served if is_child(each, of=parent)]
    assert parents == [asked] * 3 + [told] * 3
    plain = spans.one("multicall", SpanKind.CLIENT)
    assert is_child(spans.one("Front/handle_info", SpanKind.SERVER), of=plain)


@simulated
async def test_an_error_is_recorded_on_both_sides(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)
    await two.start_actor(Front(spans.tracer), name="front")
    await two.start_actor(Model(), name="model")
    with instrumented(spans, one, two):
        with pytest.raises(RemoteError):
            await one.ref(Front, "front", at=two.name).call(Front.broken)
        with pytest.raises(RemoteError):
            [token async for token in one.ref(Model, "model", at=two.name).stream(Model.spoilt)]
        with pytest.raises(NoHandler):
            await one.ref(Front, "model", at=two.name).call(Front.broken)
    for name in ("Front/broken", "Model/spoilt"):
        asked, served = spans.named(name, SpanKind.CLIENT)[0], spans.one(name, SpanKind.SERVER)
        assert is_child(served, of=asked)
        for span in (asked, served):
            assert attributes(span)["fleetlm.outcome"] == "raised"
            assert attributes(span)["error.type"] == "ValueError"
            assert span.status.status_code is StatusCode.ERROR
            assert [event.name for event in span.events] == ["exception"]
    assert attributes(spans.one("Model/spoilt", SpanKind.SERVER))["fleetlm.stream.items"] == 1
    refused = spans.named("Front/broken", SpanKind.CLIENT)[1]
    assert attributes(refused)["fleetlm.outcome"] == "not delivered"


@simulated
async def test_an_exception_without_a_text_is_still_that_exception(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)
    await two.start_actor(Front(spans.tracer), name="front")
    with instrumented(spans, one, two), pytest.raises(RemoteError) as caught:
        await one.ref(Front, "front", at=two.name).call(Front.unspeakable)
    assert caught.value.type_name == "Unspeakable"
    served = spans.one("Front/unspeakable", SpanKind.SERVER)
    assert attributes(served)["error.type"] == "Unspeakable"
    (event,) = served.events
    found = dict(event.attributes or {})
    assert found["exception.type"] == f"{__name__}.Unspeakable"
    assert "Unspeakable" in str(found["exception.message"])
    assert "raise Unspeakable" in str(found["exception.stacktrace"])


def test_a_propagator_that_raises_harms_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Failing())
    monkeypatch.setattr(tracing, "_COMPLAINTS", set())

    @simulated
    async def play(fleet: Fleet) -> None:
        spans = Spans()
        one, two = await fleet.mesh(2)
        await two.start_actor(Front(spans.tracer), name="front")
        front = one.ref(Front, "front", at=two.name)
        with instrumented(spans, one, two):
            for _ in range(3):
                await front.cast(Front.note)
            assert len(await front.call(Front.noted)) == 3
            assert len(spans.named("process Front/note", SpanKind.CONSUMER)) == 3

    play()
    assert caplog.text.count("could not be read") == caplog.text.count("could not be written") == 1


def test_a_span_that_cannot_be_ended_leaves_the_outcome(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no exporter")

    monkeypatch.setattr(tracing, "_note_outcome", fail)
    monkeypatch.setattr(tracing, "_COMPLAINTS", set())

    @simulated
    async def play(fleet: Fleet) -> None:
        spans = Spans()
        (node,) = await fleet.mesh(1)
        front = await node.start_actor(Front, spans.tracer)
        with instrumented(spans, node):
            for _ in range(2):
                assert await front.call(Front.noted) == []

    play()
    assert caplog.text.count("a span could not be ended") == 1


@simulated
async def test_callers_that_give_up_and_streams_that_are_given_up(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)
    await two.start_actor(Front(spans.tracer), name="front")
    await two.start_actor(Model(), name="model")
    front, model = one.ref(Front, "front", at=two.name), one.ref(Model, "model", at=two.name)
    with instrumented(spans, one, two):
        with pytest.raises(CallTimeout):
            await front.within(2).call(Front.slow)
        calling = asyncio.ensure_future(front.call(Front.slow))
        await pass_time(1)
        calling.cancel()
        await asyncio.wait([calling])
        async with model.stream(Model.tokens, 1_000_000) as tokens:
            async for token in tokens:
                if token == 3:
                    break
        await model.stream(Model.tokens, 3).aclose()  # It was never asked for.
        await pass_time(1)
    expired, cancelled = spans.named("Front/slow", SpanKind.CLIENT)
    assert (attributes(expired)["fleetlm.outcome"], attributes(expired)["error.type"]) == (
        "unknown",
        "CallTimeout",
    )
    assert attributes(cancelled)["fleetlm.outcome"] == "cancelled"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert {attributes(span)["fleetlm.outcome"] for span in spans.named("Front/slow", SpanKind.SERVER)} == {
        "cancelled"
    }
    given_up = attributes(spans.one("Model/tokens", SpanKind.CLIENT))
    assert (given_up["fleetlm.outcome"], given_up["fleetlm.stream.items"] >= 4) == ("given up", True)
    assert spans.one("Model/tokens", SpanKind.SERVER).end_time is not None


@simulated
async def test_the_time_in_the_mailbox_is_told(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)

    class Slow(Actor):
        @handler
        async def work(self) -> None:
            await pass_time(3)

    for node in (one, two):
        await node.start_actor(Slow(), name="slow")
    with instrumented(spans, one, two):
        for name in (one.name, two.name):
            slow = one.ref(Slow, "slow", at=name)
            slow = slow.within(60)
            await asyncio.gather(slow.call(Slow.work), slow.call(Slow.work), slow.cast(Slow.work))
        await pass_time(5)
    served = [span for span in spans.all() if span.kind in (SpanKind.SERVER, SpanKind.CONSUMER)]
    waits = [attributes(span)["fleetlm.mailbox.wait"] for span in served]
    assert [round(wait) for wait in waits] == [0, 3, 6] * 2


@simulated
async def test_a_handler_without_a_traced_caller_begins_a_trace_of_its_own(fleet: Fleet) -> None:
    spans = Spans()
    with spans.tracer.start_as_current_span("the program starts"):
        one, two = await fleet.mesh(2)
        await two.start_actor(Front(spans.tracer), name="front")
    front = one.ref(Front, "front", at=two.name)
    with instrumented(spans, two):
        assert await front.call(Front.whose) != [0, None]
    assert spans.one("Front/whose", SpanKind.SERVER).parent is None
    assert "fleetlm.peer" not in attributes(spans.one("Front/whose", SpanKind.SERVER))


@simulated
async def test_baggage_travels_and_processes_take_the_context_of_a_call_themselves(fleet: Fleet) -> None:
    spans = Spans()
    one, two = await fleet.mesh(2)
    await two.start_actor(Front(spans.tracer), name="front")

    async def serve(process: Process) -> None:
        async for message in process.mailbox:
            assert isinstance(message, Call)
            context = tracing.context_of(message)
            with spans.tracer.start_as_current_span("serve", context):
                message.reply(baggage.get_baggage("tenant", context))

    two.spawn(serve, name="serve")
    with instrumented(spans, one, two):
        assert await one.call(("serve", two.name), "x") is None
        token = contexts.attach(baggage.set_baggage("tenant", "blue"))
        assert await one.call(("serve", two.name), "x") == "blue"
        span_id, tenant = await one.ref(Front, "front", at=two.name).call(Front.whose)
        contexts.detach(token)
    assert (span_id, tenant) == (ids(spans.one("Front/whose", SpanKind.SERVER))[1], "blue")
    asked = spans.named("call", SpanKind.CLIENT)
    served = spans.named("serve", SpanKind.INTERNAL)
    assert [is_child(child, of=parent) for child, parent in zip(served, asked, strict=True)] == [True, True]
    assert await one.call(("serve", two.name), "x") is None  # No carrier comes any more.


@simulated
async def test_a_node_is_traced_once_and_until_it_is_told_to_stop(fleet: Fleet) -> None:
    spans = Spans()
    (node,) = await fleet.mesh(1)
    await node.start_actor(Front(spans.tracer), name="front")
    tracing_it = tracing.instrument(node, spans.provider)
    with pytest.raises(ValueError, match="is traced already"):
        tracing.instrument(node, spans.provider)
    await node.ref(Front, "front").call(Front.noted)
    tracing_it.uninstrument()
    tracing_it.uninstrument()
    await node.ref(Front, "front").call(Front.noted)
    assert len(spans.all()) == 2
    tracing.instrument(node, spans.provider).uninstrument()
