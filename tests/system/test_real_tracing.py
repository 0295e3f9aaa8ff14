"""Traces and carried variables between real nodes: over three nodes, into threads, from plain threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from contextvars import ContextVar

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import fleetlm
import fleetlm.tracing
from fleetlm import Actor, Node, handler
from fleetlm.messaging.carrying import CARRYING
from tests.system.cluster_tools import Fleet

REQUEST_ID: ContextVar[str] = ContextVar("request-id", default="-")


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    fleetlm.carry(REQUEST_ID)
    yield
    CARRYING.remove("request-id")


def seen() -> list[object]:
    """What code sees of its caller, wherever it runs."""
    return [REQUEST_ID.get(), trace.get_current_span().get_span_context().trace_id]


class Model(Actor):
    @handler
    async def complete(self) -> AsyncIterator[list[object]]:
        yield seen()
        yield await self.process.node.run_blocking(seen)
        yield await self.process.create_task(self._beside())

    async def _beside(self) -> list[object]:
        return seen()


class Front(Actor):
    def __init__(self, model_at: str) -> None:
        self.model_at = model_at

    @handler
    async def answer(self) -> list[list[object]]:
        model = self.process.node.ref(Model, "model", at=self.model_at)
        return [found async for found in model.stream(Model.complete)]


async def test_one_trace_over_three_real_nodes_reaches_threads_and_tasks() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with Fleet(static=(2, 3, 4)) as fleet, AsyncExitStack() as stack:
        one, two, three = [await fleet.node(number) for number in (2, 3, 4)]
        for node in (one, two, three):
            await node.ready(2, timeout=20)
            stack.enter_context(fleetlm.tracing.instrument(node, provider))
        await three.start_actor(Model(), name="model")
        await two.start_actor(Front(three.name), name="front")
        REQUEST_ID.set("r-1")
        with provider.get_tracer("test").start_as_current_span("root") as root:
            found = await one.ref(Front, "front", at=two.name).call(Front.answer)
            found += await asyncio.to_thread(ask_in_a_thread, one, two.name)
        trace_id = root.get_span_context().trace_id
        assert found == [["r-1", trace_id]] * 6
    spans = exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans if span.context} == {trace_id}
    assert len(spans) == 1 + 2 * 4


def ask_in_a_thread(node: Node, front_at: str) -> list[list[object]]:
    """Ask as a thread without an event loop does."""
    return node.sync.ref(Front, "front", at=front_at).call(Front.answer)
