"""Streams out of blocking generators, which run in a thread beside the event loop.

A generator runs in one thread from its first line to its last, since its objects may belong to that thread.
It runs in *steps*: a step is a job of a pool of one thread, and goes on until it has used up the room that
its consumer has. Between two steps the thread is idle and the generator stands at its ``yield``. So a
consumer that is slow holds the generator back, and the memory of what waits is bounded.

What crosses threads: the deque of items, which the thread fills and the loop empties (append and popleft are
atomic); ``is_closed``, which the loop sets; and two counters of units, each written on one side only.

The end. The generator returns or raises: the last step is done, and the consumer gets the end behind the
items. The consumer gives up: a step that runs finds ``is_closed`` at the generator's next ``yield`` and
closes it there, in its thread (GeneratorExit); between two steps a further step does it. A generator that
blocks for ever keeps its thread, since a thread cannot be stopped. The node stops: the thread closes the
generator before it ends.

Source: trio's `to_thread.run_sync` for each item, and janus' queues; differs: one thread for all items, and
no switch of threads for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from fleetlm.blocking.function_call import catch_result
from fleetlm.blocking.pool import FunctionThread, Job
from fleetlm.texts import SHORT, name_of

if TYPE_CHECKING:
    from fleetlm.blocking.pool import Pool

_END = object()

OpenPool = Callable[["Generation"], "contextlib.AbstractAsyncContextManager[Pool]"]
"""Waits for a thread, and gives it back at the end of the block."""
Weigh = Callable[[Any], int]
"""Returns the units that an item counts."""


class Generation:
    """A generator as its thread sees it.

    Args:
        make: calls the generator function; runs in the thread, as everything here but ``is_closed``.
        weigh: returns the units of an item.
        arrived: called in the thread when an item has come.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], weigh: Weigh, arrived: Callable[[], None]) -> None:
        self.items: deque[tuple[Any, int]] = deque()
        """What was yielded and not taken yet, each with its units."""
        self.put_units: int = 0
        self.is_closed = False
        """Set on the loop: no further item is wanted."""
        self._make: Callable[[], Iterable[Any]] | None = make
        """None once the generator has begun."""
        self._weigh = weigh
        self._arrived = arrived
        self._iterator: Iterator[Any] | None = None

    def step(self, until_units: int) -> bool:
        """Run the generator until it has yielded this many units in all, has ended, or is closed.

        Returns:
            Whether it has ended.
        """
        make, self._make = self._make, None
        if make is not None and not self.is_closed:
            self._iterator = iter(make())
        while self._iterator is not None and not self.is_closed:
            if self.put_units >= until_units:
                return False
            item = next(self._iterator, _END)
            if item is _END:
                self._iterator = None
            elif not self.is_closed:
                units = self._weigh(item)
                self.put_units += units
                self.items.append((item, units))
                self._arrived()
        self.close()
        return True

    def close(self) -> None:
        """Raise GeneratorExit in the generator, if it has begun and not ended."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


class GeneratorThread(FunctionThread):
    """The thread of one generator, which it closes before it ends."""

    def __init__(self, generation: Generation, name: str, idle: list[FunctionThread]) -> None:
        super().__init__(name, idle)
        self._generation = generation

    def finish(self) -> None:
        """Close the generator, if the node has stopped before its end."""
        catch_result(self._generation.close)  # What its clean-up raises has no consumer any more.


class GeneratorSource:
    """A blocking generator as its consumer sees it; implements `stream.Source`. It begins at the first wait.

    Args:
        function: the generator function, or any function that returns an iterable.
        args: its positional arguments.
        kwargs: its named arguments.
        window: units that it may be ahead of its consumer.
        weigh: returns the units of an item.
        open_pool: waits for a thread.

    Raises:
        TypeError: ``function`` cannot be called, or is async.
    """

    def __init__(
        self,
        function: Callable[..., Iterable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        window: int,
        weigh: Weigh,
        open_pool: OpenPool,
    ) -> None:
        _check_generator_function(function)
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._window = window
        self._open_pool = open_pool
        self._context = contextvars.copy_context()
        make = functools.partial(function, *args, **kwargs)
        self._generation = Generation(make, weigh, self._tell_arrived)
        self._taken_units = 0
        self._running: asyncio.Task[None] | None = None
        self._is_told = False
        """Whether `_wake` has been scheduled by the thread and has not run."""
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        """What `_run` waits for while the consumer is behind."""
        self._has_ended = False
        self._error: BaseException | None = None
        self.items: Sized = self._generation.items

    def take(self) -> Any:
        """See `Source`."""
        item, units = self._generation.items.popleft()
        self._taken_units += units
        if self._generation.put_units - self._taken_units <= self._window // 2:
            _set(self._room)
        return item

    async def wait(self) -> bool:
        """See `Source`. Raises: what the generator raised; NodeStopped."""
        if self._running is None and not self._generation.is_closed:
            name = f"generator {name_of(self._function)}"
            self._running = self._loop.create_task(self._run(), name=name, context=contextvars.Context())
        while not self.items:
            if self._error is not None:
                raise self._error
            if self._has_ended or self._generation.is_closed:
                return False
            self._waiter = self._loop.create_future()
            await self._waiter
        return True

    def close(self) -> None:
        """See `Source`: the generator is closed in its thread, at its next ``yield``."""
        self._generation.is_closed = True
        self._generation.items.clear()
        _set(self._room)
        _set(self._waiter)

    async def _run(self) -> None:
        """Run the generator step by step, until it or its consumer has ended."""
        generation = self._generation
        try:
            async with self._open_pool(generation) as pool:
                while not await pool.run(self._step()):
                    await self._wait_for_room()
        except Exception as error:  # noqa: BLE001  # the consumer gets it
            self._error = error
        finally:
            self._has_ended = True
            _set(self._waiter)

    def _step(self) -> Job:
        step = functools.partial(self._generation.step, self._taken_units + self._window)
        return Job(self._function, functools.partial(self._context.run, step))

    async def _wait_for_room(self) -> None:
        while not self._generation.is_closed:
            if self._generation.put_units - self._taken_units <= self._window // 2:
                return
            self._room = self._loop.create_future()
            await self._room

    def _tell_arrived(self) -> None:
        """Wake the consumer, from the thread; one call for all items that come in one turn of the loop."""
        if not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # The loop has been closed.
                self._generation.is_closed = True

    def _wake(self) -> None:
        self._is_told = False
        _set(self._waiter)


def _set(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _check_generator_function(function: object) -> None:
    if not callable(function):
        raise TypeError(f"stream_blocking() takes a generator function, not {SHORT.repr(function)}")
    if inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function):
        name = name_of(function)
        raise TypeError(f"stream_blocking() takes a plain generator function, and {name} is async")
