"""Fleet: the simulated cluster as a test sees it, with what a test asks for most often.

    async def test_sessions_survive_a_node(fleet: Fleet) -> None:
        one, two, three = await fleet.start(3)
        three.spawn(sessions, name="sessions")
        fleet.partition(three)
        await fleet.until(lambda: one.list() == [two.name], timeout=15)

The fixture ``fleet`` of `fleetlm.testing.pytest_plugin` makes one for each test.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import random
import reprlib
from collections.abc import Awaitable, Callable
from types import CodeType
from typing import Any, TypeVar, overload

from fleetlm.errors import FleetError
from fleetlm.node import Node
from fleetlm.settings import Settings
from fleetlm.testing.cluster import SETTINGS, SimCluster, Who
from fleetlm.testing.loop import SimulationError
from fleetlm.testing.network import LATENCY_S

T = TypeVar("T")

UNTIL_STEP_S = 0.01
MESH_TIMEOUT_S = 60.0
"""Longer than DNS trouble, back-off and a new dial together take."""


class NotReached(SimulationError, TimeoutError):
    """`Fleet.until` waited in vain.

    Attributes:
        condition: what was waited for, as it is written in the test.
        timeout_s: the time there was, in virtual seconds.
        last: what came of it the last time, in words.
    """

    def __init__(self, condition: str, timeout_s: float, last: str) -> None:
        super().__init__(condition, timeout_s, last)
        self.condition = condition
        self.timeout_s = timeout_s
        self.last = last

    def __str__(self) -> str:
        return f"not within {self.timeout_s:g} s: {self.condition}; {self.last}"


class Fleet(SimCluster):
    """A `SimCluster` whose nodes are connected once they are started. Made by the fixture ``fleet``.

    Args:
        seed: of everything random in the cluster.
        settings: what every node is told; a dict has only what differs from the usual.
        latency_s: shortest and longest time of a frame on its way, in seconds.

    Attributes:
        rng: for the test's own choices; seeded with `seed`.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        settings: Settings | dict[str, Any] | None = None,
        latency_s: tuple[float, float] = LATENCY_S,
    ) -> None:
        super().__init__(seed, settings=_settings(settings), latency_s=latency_s)
        self.rng: random.Random = self.rng_of("test")

    def __repr__(self) -> str:
        return f"<Fleet seed={self.seed}>"  # its nodes and its time would be those of the end

    @property
    def now(self) -> float:
        """Virtual seconds since the test began; `asyncio` measures in the same."""
        return self.loop.time()

    # Nodes.

    async def start(self, count: int = 1, *, wait: bool = True, **settings: Any) -> list[Node]:
        """Start so many nodes at one instant, and wait until every node lists every other.

        Args:
            count: how many.
            wait: False does not wait: for tests of what happens before, or under a partition.
            settings: fields of `Settings` that differ for them.

        Raises:
            NotMeshed: a partition, say, keeps them apart. They run nevertheless.
        """
        started = await super().start(count, **settings)
        if wait:
            await self.mesh(MESH_TIMEOUT_S)
        return started

    async def node(self, *, wait: bool = True, **settings: Any) -> Node:
        """Start one more node; as `start`."""
        [node] = await self.start(1, wait=wait, **settings)
        return node

    async def restart(self, who: Who, *, clock_s: float = 0.0, wait: bool = True, **settings: Any) -> Node:
        """A new incarnation at an address that had a node; one that still runs is killed first.

        Args:
            who: the node: itself, its name or its address.
            clock_s: how far its machine's wall clock is ahead; negative where it went back.
            wait: as `start`.
            settings: fields of `Settings` that differ for it.
        """
        node = await super().restart(who, clock_s=clock_s, **settings)
        if wait:
            await self.mesh(MESH_TIMEOUT_S)
        return node

    # Time.

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass; the same as `asyncio.sleep`."""
        await asyncio.sleep(seconds)

    @overload
    async def until(self, condition: Callable[[], Awaitable[T]], timeout: float = ...) -> T: ...
    @overload
    async def until(self, condition: Callable[[], T], timeout: float = ...) -> T: ...

    async def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        """Wait until a condition holds, and return what it returned.

        It is tried every 10 virtual milliseconds. It may be a coroutine function, or return an
        awaitable, such as a call. `AssertionError`, `TimeoutError` and `FleetError` (nobody there
        yet) count as not yet; anything else that it raises is raised here.

        Args:
            condition: without arguments; whatever is true is taken.
            timeout: virtual seconds.

        Raises:
            NotReached: it never held, telling what came of it last.
        """
        __tracebackhide__ = True  # pytest shows the line that waits
        deadline_s = self.now + timeout
        while True:
            limit = asyncio.timeout_at(deadline_s)
            try:
                async with limit:
                    result = condition()
                    if inspect.isawaitable(result):
                        result = await result
                if result:
                    return result
                last = f"it was {reprlib.repr(result)}"
            except (AssertionError, TimeoutError, FleetError) as error:
                still_waiting = limit.expired() and type(error) is TimeoutError
                last = "it was still waiting" if still_waiting else f"it raised {_said(error)}"
            if self.now >= deadline_s:
                raise NotReached(_written(condition), timeout, last + _seen(condition))
            await asyncio.sleep(min(UNTIL_STEP_S, deadline_s - self.now))


def _settings(told: Settings | dict[str, Any] | None) -> Settings:
    """What every node is told; every cluster has the name that the simulated DNS answers for."""
    if not isinstance(told, Settings):
        return SETTINGS.replace(**(told or {}))
    return told if told.dns_query else told.replace(dns_query=SETTINGS.dns_query)


def _said(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _written(condition: Callable[[], object]) -> str:
    """A condition as it is written in the test: the body of a lambda, the name of a function."""
    code = getattr(condition, "__code__", None)
    name = getattr(condition, "__qualname__", None) or repr(condition)
    if not isinstance(code, CodeType) or code.co_name != "<lambda>":
        return name
    lines = linecache.getlines(code.co_filename)
    places = [
        (line, column, end_line, end_column)
        for line, end_line, column, end_column in code.co_positions()
        if line is not None and end_line is not None and column is not None and end_column
    ]
    if not places or max(place[2] for place in places) > len(lines):
        return name
    first, start = min(place[:2] for place in places)
    last, end = max(place[2:] for place in places)
    body = [line.encode() for line in lines[first - 1 : last]]  # columns count bytes
    body[-1] = body[-1][:end]
    body[0] = body[0][start:]
    return " ".join(line.decode().strip() for line in body)


def _seen(condition: Callable[[], object]) -> str:
    """The values that a condition looks at, where they say something."""
    try:
        around = inspect.getclosurevars(condition).nonlocals
    except (TypeError, ValueError):  # not a function; a variable that is not set yet
        return ""
    told = [
        f"{name} = {reprlib.repr(value)}"
        for name, value in around.items()
        if " object at 0x" not in repr(value)
    ]
    return f"; {', '.join(told)}" if told else ""
