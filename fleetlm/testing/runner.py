"""FleetRun: one test on its own loop, from its first async fixture to the search for leaks.

Theory of operation. A test is more than one coroutine: async fixtures run before and after it, on the
same `SimLoop`. So the loop is started and stopped several times, each time by `FleetRun.run`:

1. `set_up` runs each async fixture up to its value. The rest of a generator fixture waits in one task.
2. `test` runs the test.
3. `_end` runs the rest of the fixtures in reverse order, stops the nodes, and cleans the loop up. It runs
   once, also if no test ran; later calls find nothing.

All errors of step 3 are collected. The test's own exception is raised with them as notes; without one,
the first of them is raised. All coroutines share one context, so a test sees the context variables that
its fixtures set.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fleetlm.settings import Settings
from fleetlm.testing.fleet import Fleet
from fleetlm.testing.loop import (
    CLEAN_UP_S,
    Deadlock,
    LeftOver,
    LimitReached,
    NotSimulated,
    SimLoop,
    SimulationError,
    clean_up,
    isolated,
)
from fleetlm.testing.network import LATENCY_S

T = TypeVar("T")

LIMIT_S = 3600.0
"""Virtual seconds of a test: three idle nodes take half a real second for them."""
_SLEEP = time.sleep


class RealSleep(NotSimulated):
    """The test called ``time.sleep``, which would stop every node and let no virtual time pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"time.sleep({seconds:g})")

    def __str__(self) -> str:
        return (
            f"{self.what} would block every node of this test in real time; `await asyncio.sleep()`"
            " takes virtual time. Replace code that has to block with a fake"
        )


class FleetRun:
    """A `SimLoop`, the `Fleet` on it, and the async fixtures of one test.

    Args:
        seed: the seed of the loop, the cluster and the random module.
        settings: as for `Fleet`.
        latency_s: as for `Fleet`.
        limit_s: virtual seconds after which the test fails with `LimitReached`.

    Attributes:
        fleet: the cluster, without nodes at first.
    """

    def __init__(
        self,
        seed: int,
        *,
        settings: Settings | dict[str, Any] | None = None,
        latency_s: tuple[float, float] = LATENCY_S,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._around = contextlib.ExitStack()
        self._around.enter_context(isolated(seed))
        self._loop = SimLoop(seed=seed, limit_s=limit_s)
        self._around.enter_context(contextlib.closing(self._loop))
        self._context = contextvars.copy_context()  # the test sees the context variables that a fixture sets
        self._fixtures: list[_Fixture] = []
        self._ended = False
        try:
            self.fleet: Fleet = self.run(_make_fleet(seed, settings, latency_s), "fleet")
        except BaseException:
            self._around.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Run a coroutine to its end.

        Raises:
            SimulationError: as for `fleetlm.testing.run`; the coroutine has been cancelled.
        """
        __tracebackhide__ = True
        task = self._loop.create_task(coroutine, name=name, context=self._context)
        try:
            with _without_real_sleep(self._loop):
                return self._loop.run_until_complete(task)
        except (Deadlock, LimitReached) as error:
            for frame in task.get_stack():
                error.add_note(f"{name} waits at {frame.f_code.co_filename}:{frame.f_lineno}")
            raise
        finally:
            self._cancel(task)

    def set_up(self, function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
        """Run an async fixture up to its value; the rest of it runs when the test ends."""
        __tracebackhide__ = True
        if not inspect.isasyncgenfunction(function):
            return self.run(function(**arguments), name)
        fixture = _Fixture(self._loop, function(**arguments), name, self._context)
        try:
            value = self.run(fixture.value(), name)
        except BaseException:
            self._cancel(fixture.task)
            raise
        self._fixtures.append(fixture)
        return value

    def test(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Run the test, end its async fixtures and its nodes, and search for leaks.

        Raises:
            Exception: the test's own, with the other errors as notes; without it, the first other error.
        """
        __tracebackhide__ = True
        try:
            result = self.run(coroutine, name)
        except BaseException as error:
            for trouble in self._end():
                if not isinstance(trouble, LeftOver):
                    error.add_note(f"Also: {type(trouble).__name__}: {trouble}")
            raise
        self.end()
        return result

    def end(self) -> None:
        """End the fixtures and the nodes as `test` does, if the test did not run. Idempotent."""
        __tracebackhide__ = True
        found = self._end()
        if found:
            for trouble in found[1:]:
                found[0].add_note(f"Also: {type(trouble).__name__}: {trouble}")
            raise found[0]

    def _end(self) -> list[BaseException]:
        if self._ended:
            return []
        self._ended = True
        found: list[BaseException] = []
        with self._around:
            for fixture in reversed(self._fixtures):
                self._run_to_end(fixture.rest(), fixture.task.get_name(), found)
            self._run_to_end(self.fleet.close(), "fleet", found)
            found += clean_up(self._loop)
        return found

    def _run_to_end(
        self, coroutine: Coroutine[Any, Any, None], name: str, found: list[BaseException]
    ) -> None:
        self._loop.extend(CLEAN_UP_S)
        try:
            self.run(coroutine, name)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # raised or noted with the others
            found.append(error)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task.done():
            return
        task.cancel()
        self._loop.extend(CLEAN_UP_S)
        with contextlib.suppress(SimulationError):  # the test has failed already; clean_up() reports
            self._loop.run_until_complete(asyncio.wait({task}))


class _Fixture:
    """An async generator fixture: one task from start to end, so that it may hold a task group."""

    def __init__(
        self, loop: SimLoop, generator: AsyncGenerator[Any], name: str, context: contextvars.Context
    ) -> None:
        self._yielded: asyncio.Future[Any] = loop.create_future()
        self._ending = asyncio.Event()
        self.task = loop.create_task(self._live(generator), name=name, context=context)

    async def _live(self, generator: AsyncGenerator[Any]) -> None:
        async with contextlib.aclosing(generator):
            try:
                value = await anext(generator)
            except StopAsyncIteration:
                raise ValueError(f"the fixture {self.task.get_name()} did not yield a value") from None
            self._yielded.set_result(value)
            await self._ending.wait()
            async for _ in generator:
                raise ValueError(f"the fixture {self.task.get_name()} yields more than once")

    async def value(self) -> Any:
        await asyncio.wait({self.task, self._yielded}, return_when=asyncio.FIRST_COMPLETED)
        return self._yielded.result() if self._yielded.done() else await self.task

    async def rest(self) -> None:
        self._ending.set()
        await self.task


async def _make_fleet(
    seed: int, settings: Settings | dict[str, Any] | None, latency_s: tuple[float, float]
) -> Fleet:
    return Fleet(seed, settings=settings, latency_s=latency_s)


@contextlib.contextmanager
def _without_real_sleep(loop: SimLoop) -> Iterator[None]:
    """Raise `RealSleep` if code on the loop calls ``time.sleep``; other threads sleep normally."""
    if time.sleep is not _SLEEP:  # replaced by the test
        yield
        return

    def sleep(seconds: Any) -> None:
        __tracebackhide__ = True  # pytest shows the line that sleeps
        if seconds > 0 and asyncio._get_running_loop() is loop:  # noqa: SLF001  # else it would raise
            raise RealSleep(seconds)
        _SLEEP(seconds)

    time.sleep = sleep
    try:
        yield
    finally:
        if time.sleep is sleep:
            time.sleep = _SLEEP
