"""Metrics for Prometheus, in a program that has metrics of its own.

``python metrics.py`` needs `prometheus-client` (``pip install 'fleetlm[metrics]'``). It runs one node, serves
what Prometheus scrapes, and scrapes it once itself.
"""

from __future__ import annotations

import asyncio
import os
import urllib.request

from prometheus_client import CollectorRegistry, Counter, start_http_server

from fleetlm import Actor, Node, Settings, handler
from fleetlm.metrics import NodeMetrics

PORT = int(os.environ.get("EXAMPLE_PORT", "24384"))
REGISTRY = CollectorRegistry()
TOKENS = Counter("tokens", "Tokens that the models have made.", registry=REGISTRY)


class Model(Actor):
    """Counts what it makes."""

    @handler
    async def infer(self, prompt: str) -> str:
        TOKENS.inc(len(prompt.split()))
        return prompt.upper()


def scrape(port: int) -> str:
    """Do what Prometheus does."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


async def serve() -> None:
    """Put the node's metrics beside those of the program, serve both, and look at some."""
    settings = Settings(node_ip="127.0.0.1", node_ports=(PORT, PORT), remote=False)
    async with Node.start(settings) as node:
        NodeMetrics(node, REGISTRY)
        server, thread = start_http_server(0, "127.0.0.1", REGISTRY)  # It answers in a thread of its own.
        model = await node.start_actor(Model)
        for prompt in ("tell me", "tell me more"):
            await model.call(Model.infer, prompt)
        text = await asyncio.to_thread(scrape, server.server_port)
        server.shutdown()
        server.server_close()
        thread.join()
    shown = (
        "tokens_total",
        "fleetlm_call_seconds_count",
        "fleetlm_handler_seconds_count",
        "fleetlm_processes ",
    )
    for line in text.splitlines():
        if line.startswith(shown):
            print(line)


if __name__ == "__main__":
    asyncio.run(serve())
