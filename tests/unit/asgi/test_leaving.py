"""A worker that is told to leave drains its node at once, beside the server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fleetlm import Node, Settings
from fleetlm.asgi.leaving import Leaving
from fleetlm.errors import Draining, FleetError
from fleetlm.testing import Fleet, SimTransport


@pytest.fixture
def server() -> Iterator[list[int]]:
    """The handlers of a server for SIGTERM and SIGINT. Yields the signals that they get."""
    got: list[int] = []

    def handle(number: int, _frame: object) -> None:
        got.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    yield got
    assert all(signal.getsignal(number) is handle for number in before)
    for number, handler in before.items():
        signal.signal(number, handler)


async def own_node(fleet: Fleet, **more: Any) -> Node:
    settings = Settings(node_ip="10.0.9.1", **more)
    return await Node.start(settings, transport=SimTransport(fleet.network, settings), rng=fleet.rng)


class Response:
    def __init__(self) -> None:
        self.error: FleetError | None = None

    def cut(self, error: FleetError) -> None:
        self.error = error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_signal_begins_the_drain_and_reaches_the_server(
    fleet: Fleet, server: list[int], number: int
) -> None:
    node = await own_node(fleet)
    leaving = Leaving(node)
    leaving.begin()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert server == [number, number]
    await fleet.until(lambda: node.is_draining, timeout=0.1)
    await leaving.drain()
    assert node.drain_report is not None
    assert node.drain_report.source == "signal"
    await leaving.end()
    signal.raise_signal(number)
    assert server == [number] * 3
    await node.wait_stopped()


async def test_without_a_signal_the_node_drains_at_the_end(fleet: Fleet, server: list[int]) -> None:
    node = await own_node(fleet)
    leaving = Leaving(node)
    leaving.begin()
    await leaving.drain()
    assert node.is_draining
    assert node.drain_report is not None
    assert node.drain_report.source == "api"
    await leaving.end()
    assert server == []


async def test_responses_are_ended_when_the_time_of_the_drain_is_over(
    fleet: Fleet, server: list[int]
) -> None:
    node = await own_node(fleet, drain_s=3.0)
    leaving = Leaving(node)
    leaving.begin()
    response = Response()
    leaving.enter(response)
    signal.raise_signal(signal.SIGTERM)
    await fleet.sleep(2.9)
    assert response.error is None
    await fleet.sleep(0.2)
    assert isinstance(response.error, Draining)
    assert response.error.has_begun
    late = Response()
    leaving.enter(late)
    await fleet.sleep(0.1)
    assert isinstance(late.error, Draining)
    assert not late.error.has_begun
    assert server == [signal.SIGTERM]
    await leaving.end()


async def test_a_program_without_a_server_keeps_its_signals(fleet: Fleet) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        leaving = Leaving(await own_node(fleet))
        leaving.begin()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        await leaving.end()
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_handler_that_came_later_is_left_alone(fleet: Fleet, server: list[int]) -> None:
    leaving = Leaving(await own_node(fleet))
    leaving.begin()
    later = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await leaving.end()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, later)
    signal.raise_signal(signal.SIGTERM)  # of a server that kept ours: it still gets its signal
    assert server == [signal.SIGTERM]
    # As the server puts its own one back when it ends.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))


async def test_a_node_that_ends_by_itself_takes_its_worker_along(
    fleet: Fleet, server: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    node = await own_node(fleet)
    leaving = Leaving(node)
    leaving.begin()

    async def vital(_process: object) -> None:
        raise ValueError("no GPU")

    node.spawn(vital, name="vital", essential=True)
    await node.wait_stopped()
    await fleet.until(lambda: server == [signal.SIGTERM], timeout=1)
    assert "the node of this worker has ended (" in caplog.text
    await leaving.drain()
    await leaving.end()


async def test_an_end_without_a_drain_stops_the_node(fleet: Fleet, server: list[int]) -> None:
    node = await own_node(fleet)
    leaving = Leaving(node)
    leaving.begin()
    await asyncio.sleep(0)
    await leaving.end()
    await node.wait_stopped()
    assert server == []


def test_a_request_finds_it_in_its_state() -> None:
    assert Leaving.of({}) is None
    assert Leaving.of({"state": {"fleetlm.leaving": "something else"}}) is None
