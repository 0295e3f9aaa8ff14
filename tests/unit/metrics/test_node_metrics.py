"""A scrape from another thread asks the node's loop, and waits for it no longer than it must."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fleetlm import Node, Settings
from fleetlm.metrics import NodeMetrics, node_metrics
from tests.support.patience import allowed_s


def stale(text: bytes) -> float:
    [line] = [line for line in text.decode().splitlines() if line.startswith("fleetlm_scrape_stale ")]
    return float(line.split()[1])


def with_node(test: Callable[[Node], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on a real event loop with a node that listens on this machine."""

    async def main() -> None:
        settings = Settings(node_ip="127.0.0.1", node_ports=(28_440, 28_480), remote=False)
        async with Node.start(settings) as node:
            await test(node)

    def start() -> None:
        asyncio.run(main())

    start.__name__, start.__doc__ = test.__name__, test.__doc__
    return start


@with_node
async def test_another_thread_gets_a_fresh_reading(node: Node) -> None:
    metrics = NodeMetrics(node)
    assert stale(await asyncio.to_thread(metrics.render)) == 0


@with_node
async def test_a_loop_that_stands_still_gives_the_last_reading_and_says_so(node: Node) -> None:
    metrics = NodeMetrics(node)
    first = metrics.render()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(node_metrics, "ANSWER_S", 0.02)
        text = pool.submit(metrics.render).result(allowed_s(10))  # It holds this loop up meanwhile.
    assert (stale(first), stale(text)) == (0, 1)
    assert b'fleetlm_table_entries{table="peers"} 0.0' in text
    assert stale(await asyncio.to_thread(metrics.render)) == 0


@with_node
async def test_before_the_first_reading_a_loop_that_stands_still_gives_none(node: Node) -> None:
    metrics = NodeMetrics(node)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(node_metrics, "ANSWER_S", 0.02)
        text = pool.submit(metrics.render).result(allowed_s(10))
    assert stale(text) == 1
    assert b"\nfleetlm_uptime_seconds " not in text


@with_node
async def test_scrapes_at_the_same_time_share_one_question(node: Node) -> None:
    metrics = NodeMetrics(node)
    readings = 0
    read = metrics._reader.read

    def count() -> Any:
        nonlocal readings
        readings += 1
        return read()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(metrics._reader, "read", count)
        patch.setattr(node_metrics, "ANSWER_S", allowed_s(10))
        barrier = threading.Barrier(9)

        def scrape() -> bytes:
            barrier.wait(allowed_s(10))
            return metrics.render()

        scrapes = [pool.submit(scrape) for _ in range(8)]
        barrier.wait(allowed_s(10))  # Nothing runs on this loop until here.
        texts = await asyncio.gather(*map(asyncio.wrap_future, scrapes))
    assert [stale(text) for text in texts] == [0] * 8
    assert readings < 8


@with_node
async def test_an_error_of_a_reading_reaches_who_asked_and_nobody_else(node: Node) -> None:
    metrics = NodeMetrics(node)
    with pytest.MonkeyPatch.context() as patch:

        def fail() -> Any:
            raise ValueError("of the reading")

        patch.setattr(metrics._reader, "read", fail)
        with pytest.raises(ValueError, match="of the reading"):
            await asyncio.to_thread(metrics.render)
        with pytest.raises(ValueError, match="of the reading"):
            metrics.render()
    assert stale(await asyncio.to_thread(metrics.render)) == 0


def test_a_node_whose_loop_has_ended_shows_what_it_was() -> None:
    made: list[NodeMetrics] = []

    async def main() -> None:
        settings = Settings(node_ip="127.0.0.1", node_ports=(28_440, 28_480), remote=False)
        async with Node.start(settings) as node:
            made.append(NodeMetrics(node))
            made[0].render()

    asyncio.run(main())
    text = made[0].render()
    assert stale(text) == 1
    assert b"\nfleetlm_uptime_seconds " in text


@with_node
async def test_it_is_made_on_the_loop_of_its_node(node: Node) -> None:
    with pytest.raises(RuntimeError, match=r"Telemetry\.listen was called from the thread"):
        await asyncio.to_thread(NodeMetrics, node)


def test_the_package_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib  # for this test alone
    import sys

    for name in [name for name in sys.modules if name.startswith(("fleetlm.metrics", "prometheus_client"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'fleetlm\[metrics\]'"):
        importlib.import_module("fleetlm.metrics")
