"""Fleet: a simulated cluster with the methods that tests need most often.

    async def test_a_partition_is_noticed(fleet: Fleet) -> None:
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
from fleetlm.testing.cluster import SETTINGS, NodeLike, SimCluster
from fleetlm.testing.loop import SimulationError
from fleetlm.testing.network import LATENCY_S

T = TypeVar("T")

UNTIL_STEP_S = 0.01
"""Virtual seconds between two tries of a condition."""
MESH_TIMEOUT_S = 60.0
"""Virtual seconds: longer than a DNS failure, a back-off and a new dial take together."""


class NotReached(SimulationError, TimeoutError):
    """The condition of `Fleet.until` did not hold within the timeout.

    Attributes:
        condition: the condition, as it is written in the test.
        timeout_s: the timeout, in virtual seconds.
        last: a description of its last result.
    """

    def __init__(self, condition: str, timeout_s: float, last: str) -> None:
        super().__init__(condition, timeout_s, last)
        self.condition = condition
        self.timeout_s = timeout_s
        self.last = last

    def __str__(self) -> str:
        return f"not within {self.timeout_s:g} s: {self.condition}; {self.last}"


class Fleet(SimCluster):
    """A `SimCluster` whose `start` waits until the nodes are connected. The fixture ``fleet`` makes one.

    Args:
        seed: the seed of everything random in the cluster.
        settings: the settings of every node; a dict has only those that differ from the default.
        latency_s: shortest and longest time that a frame travels, in seconds.

    Attributes:
        rng: a generator for the test's own choices, seeded with `seed`.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        settings: Settings | dict[str, Any] | None = None,
        latency_s: tuple[float, float] = LATENCY_S,
    ) -> None:
        super().__init__(seed, settings=_complete_settings(settings), latency_s=latency_s)
        self.rng: random.Random = self.rng_of("test")

    def __repr__(self) -> str:
        return f"<Fleet seed={self.seed}>"  # printed after the test: other state would be that of the end

    @property
    def now(self) -> float:
        """Virtual seconds since the test began; the same clock as the event loop's."""
        return self.loop.time()

    # Nodes.

    async def start(
        self, count: int = 1, *, hosts: int | None = None, wait: bool = True, **settings: Any
    ) -> list[Node]:
        """Start nodes at the same virtual time, and wait until every node lists every other.

        Args:
            count: the number of nodes.
            hosts: the number of new addresses; None: one for each node.
            wait: False returns without waiting, for tests of the time before or under a partition.
            settings: fields of `Settings` that differ for these nodes.

        Returns:
            The new nodes.

        Raises:
            NotMeshed: the nodes did not connect in time, for example under a partition. They run.
        """
        started = await super().start(count, hosts=hosts, **settings)
        if wait:
            await self.mesh(MESH_TIMEOUT_S)
        return started

    async def node(self, *, wait: bool = True, **settings: Any) -> Node:
        """Start one more node; arguments and errors as for `start`."""
        [node] = await self.start(1, wait=wait, **settings)
        return node

    async def restart(
        self, who: NodeLike, *, clock_s: float = 0.0, wait: bool = True, **settings: Any
    ) -> Node:
        """Start a new incarnation at an address that had a node; a node that still runs is crashed first.

        Args:
            who: the node, its name or its address.
            clock_s: seconds by which its machine's wall clock is ahead; negative if it is behind.
            wait: as for `start`.
            settings: fields of `Settings` that differ for this node.
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
        """Wait until a condition returns a true value, and return that value.

        The condition is tried every 10 virtual milliseconds. It may be a coroutine function or return
        an awaitable, such as a call. `AssertionError`, `TimeoutError` and `FleetError` in it mean
        "not yet"; any other exception is raised here.

        Args:
            condition: a function without arguments.
            timeout: virtual seconds.

        Raises:
            NotReached: the timeout passed first. The error shows the condition and its last result.
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
                last = "it was still waiting" if still_waiting else f"it raised {_describe_error(error)}"
            if self.now >= deadline_s:
                raise NotReached(_condition_source(condition), timeout, last + _describe_variables(condition))
            await asyncio.sleep(min(UNTIL_STEP_S, deadline_s - self.now))


def _complete_settings(given: Settings | dict[str, Any] | None) -> Settings:
    """Fill in what a test left out: a cluster always has the DNS name that `SimDns` answers for."""
    if not isinstance(given, Settings):
        return SETTINGS.replace(**(given or {}))
    return given if given.dns_query else given.replace(dns_query=SETTINGS.dns_query)


def _describe_error(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _condition_source(condition: Callable[[], object]) -> str:
    """Return a condition as it is written in the test: the body of a lambda, or a function's name."""
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


def _describe_variables(condition: Callable[[], object]) -> str:
    """Describe the variables that a condition reads, except objects without a useful repr."""
    try:
        around = inspect.getclosurevars(condition).nonlocals
    except (TypeError, ValueError):  # not a function; a variable that is not set yet
        return ""
    shown = [
        f"{name} = {reprlib.repr(value)}"
        for name, value in around.items()
        if " object at 0x" not in repr(value)
    ]
    return f"; {', '.join(shown)}" if shown else ""
