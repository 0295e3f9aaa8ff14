"""One trace over three nodes and a stream, and a request id that travels with it.

``python tracing.py`` runs three nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first),
and prints the spans as a tree. It needs ``pip install fleetlm[tracing] opentelemetry-sdk``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import fleetlm
import fleetlm.tracing
from fleetlm import Actor, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24391"))

request_id: ContextVar[str] = ContextVar("request_id", default="-")
fleetlm.carry(request_id)

tracer = trace.get_tracer("example")


class Model(Actor):
    """Answers with a stream of words."""

    @handler
    async def complete(self, prompt: str) -> AsyncIterator[str]:
        """Yield the words of the answer."""
        with tracer.start_as_current_span("look into the cache"):
            words = [f"({request_id.get()})", *prompt.split()]
        for word in words:
            yield word


class Front(Actor):
    """Asks the model on another node for its callers."""

    def __init__(self, model_at: str) -> None:
        self.model_at = model_at

    @handler
    async def answer(self, prompt: str) -> str:
        """Return the whole answer."""
        model = self.process.node.ref(Model, "model", at=self.model_at)
        return " ".join([word async for word in model.stream(Model.complete, prompt)])


async def ask(node: Node, front_at: str) -> None:
    """Do what a web server does for one request."""
    request_id.set("r-17")
    with tracer.start_as_current_span("GET /answer"):
        front = node.ref(Front, "front", at=front_at)
        print(await front.within(5).call(Front.answer, "all nodes are here"))


def show(spans: Sequence[ReadableSpan], parent: int | None = None, depth: int = 0) -> None:
    """Print the spans below one as a tree, in the order in which they began."""
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if (span.parent.span_id if span.parent else None) == parent and span.context is not None:
            told = span.attributes or {}
            where = ["on", told["fleetlm.node"]] if "fleetlm.node" in told else []
            items = ["with", told["fleetlm.stream.items"], "items"] if "fleetlm.stream.items" in told else []
            print(f"{'  ' * depth}{span.name} ({span.kind.name.lower()})", *where, *items)
            show(spans, span.context.span_id, depth + 1)


def settings(ip: str) -> Settings:
    """Settings for this example; in production they come from the environment."""
    return Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)


async def main() -> None:
    """Run three nodes: one asks, one has the front, and one the model."""
    exporter = InMemorySpanExporter()  # In production the OTLP exporter, in a BatchSpanProcessor.
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    async with AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(Node.start(settings(ip))) for ip in ADDRESSES]
        for node in (one, two, three):
            fleetlm.tracing.instrument(node)
            await node.ready(2, timeout=5)
        await three.start_actor(Model(), name="model")
        await two.start_actor(Front(three.name), name="front")
        await ask(one, two.name)
    show(exporter.get_finished_spans())


if __name__ == "__main__":
    asyncio.run(main())
