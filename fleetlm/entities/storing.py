"""When the state of a live entity is stored, and what its callers hear if it is not.

The handlers of a kind with a store are wrapped (`stored_handlers`), so that kinds without one pay nothing.
What follows after a handler depends on ``durable``:

* ``"write"``: `Entity.save` runs, and what it returns is stored if it has changed; only then the result
  leaves, and so does an exception. A stream sends its items at once; its end is told after the write. If the
  write fails, the caller gets `NotStored`, and the entity ends. The next request makes it again from what is
  stored. The same happens after a handler whose cast nobody waits for.
* seconds: the first change starts a timer. When it is over, the entity is saved between two handlers, and the
  write goes on beside those that follow. If it fails, the time begins anew. If another owner has written, the
  entity ends.
* ``"passivate"``: nothing happens here. `Seat.close` saves the entity before it ends.

A handler that was cancelled, since its caller has gone, may have changed the state. It is stored after the
next handler, before anything that shows the change leaves.

A cast is acknowledged when its entity has been loaded, so that what was acknowledged does not end with a
store that does not answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.between import BetweenHandlers
from fleetlm.actors.handlers import Handler, Handlers
from fleetlm.errors import Fenced, NotLoaded, NotStored, ProcessExit, StoreError, VersionConflict
from fleetlm.messaging.deadline import SERVING
from fleetlm.processes.boundary import exit_in, is_from_signal
from fleetlm.texts import loggable, text_of

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.entities.keeping import Keeper, KindStore
    from fleetlm.stores.interface import Stored

log: logging.Logger = logging.getLogger("fleetlm")


class Saved(Protocol):
    """An entity that can be saved."""

    async def save(self) -> Any:
        """See `Entity.save`."""


class Packs(Protocol):
    """Packs states."""

    kind: str

    def pack(self, state: Any) -> bytes | None:
        """Return a state as bytes. Raises: NotSerializable, MessageTooLarge."""


class LiveEntity(Protocol):
    """The seat of an entity, as this module sees it."""

    key: str

    async def saved(self) -> Any:
        """Return what `Entity.save` returns. Raises: TimeoutError: it did not end in time; what it raises."""

    @property
    def packs(self) -> Packs:
        """Packs its state."""

    @property
    def takes(self) -> bool:
        """Whether it is open."""

    def run_between(self, order: BetweenHandlers) -> None:
        """Have it do something between two handlers."""

    def end(self, reason: str) -> None:
        """End it without saving it."""


class Storing:
    """Stores one live entity.

    Args:
        seat: of the entity.
        keeps: the store of its kind.
        keeper: keeps its state.

    Attributes:
        acks: casts that are acknowledged when the entity has been loaded.
        why_not_loaded: why it could not be loaded; empty: it could, or nobody knows yet.
    """

    __slots__ = ("_due", "_keeper", "_keeps", "_seat", "_task", "_timer", "acks", "why_not_loaded")

    def __init__(self, seat: LiveEntity, keeps: KindStore, keeper: Keeper) -> None:
        self._seat = seat
        self._keeps = keeps
        self._keeper = keeper
        self._due: float | None = None
        """When a change is to be stored, on the loop's clock; None: there is none."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        """The write that goes on beside the handlers."""
        self.acks: list[Call] = []
        self.why_not_loaded: str = ""

    @property
    def _target(self) -> str:
        return f"{self._keeps.kind}/{self._seat.key}"

    async def load(self) -> Stored:
        """Return what is stored. Raises: ProcessExit: it cannot be loaded, which ends the entity."""
        try:
            return await self._keeper.load()
        except StoreError as error:
            self.why_not_loaded = text_of(error)
            raise ProcessExit("not loaded") from error

    def loaded(self) -> None:
        """Acknowledge the casts that have waited for it."""
        acks, self.acks = self.acks, []
        for call in acks:
            call.reply(None)

    def refuse(self, call: Call) -> None:
        """Refuse a call to an entity that could not be loaded."""
        call.refuse(NotLoaded(self._target, self.why_not_loaded))

    async def save(self) -> None:
        """Store the entity, which is about to end.

        Raises:
            StoreError, Exception: it is not stored, or `Entity.save` raised.
        """
        if self._task is not None:
            await asyncio.wait({self._task})
        await self._keeper.store(await self._packed())

    def close(self) -> None:
        """The entity has ended. A write that is under way goes on."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Around a handler.

    async def handled(self, running: Awaitable[Any]) -> Any:
        """Run a handler that returns, and do what must be done before its result leaves."""
        try:
            result = await running
        except BaseException as error:
            if not is_failure(error) or SERVING.get() is None:  # The entity ends, or the caller has gone.
                self._changed()
                raise
            await self._settle()
            raise
        await self._settle()
        return result

    async def streamed(self, items: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Run a handler that yields, and do what must be done before its end is told."""
        step = anext(items)
        while True:
            try:
                item = await step
            except StopAsyncIteration:
                break
            except BaseException as error:
                if not is_failure(error):
                    self._changed()
                    raise
                await self._settle()
                raise
            try:
                yield item
            except GeneratorExit:
                self._changed()
                await items.aclose()
                raise
            except BaseException as error:  # noqa: BLE001  # the handler's, which may raise it again
                step = items.athrow(error)
            else:
                step = anext(items)
        await self._settle()

    async def _settle(self) -> None:
        if self._keeps.is_write:
            await self._store_result()
        elif self._due is not None and self._keeps.loop.time() >= self._due:
            await self.snapshot()
        else:
            self._changed()

    async def _store_result(self) -> None:
        """Store the entity, or end it. Raises: ProcessExit: it is not stored, and its caller knows."""
        try:
            await self._keeper.store(await self._packed())
        except BaseException as error:
            if not is_failure(error):
                raise
            why = text_of(error)
            if not isinstance(error, StoreError):
                why = f"{type(error).__name__}: {why}"
                log.exception(
                    "the entity %s cannot be saved, and is made again", self._target,
                    exc_info=loggable(error),
                )  # fmt: skip
            call = SERVING.get()
            if call is not None:
                call.refuse(NotStored(self._target, why))
            else:
                self._keeps.lost_cast(self._target, why)
            raise ProcessExit("not stored") from None

    async def _packed(self) -> bytes | None:
        seat = self._seat
        return seat.packs.pack(await seat.saved())

    # By time.

    def _changed(self) -> None:
        """Note that the state may have changed."""
        if self._keeps.after_s is not None and self._due is None:
            self._due = self._keeps.loop.time() + self._keeps.after_s
            self._timer = self._keeps.loop.call_at(self._due, self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        if self._seat.takes:
            self._seat.run_between(_Snapshot(self))

    async def snapshot(self) -> None:
        """Save the entity, and begin to store it, if that is due."""
        loop = self._keeps.loop
        if self._task is not None or self._due is None or loop.time() < self._due:
            return
        try:
            packed = await self._packed()
        except BaseException as error:
            if not is_failure(error):
                raise
            log.exception(
                "the entity %s cannot be saved, and goes on", self._target, exc_info=loggable(error)
            )
            self._again()
            return
        self.close()
        self._task = loop.create_task(self._keeper.store(packed), name=f"store of {self._target}")
        self._task.add_done_callback(self._stored)

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Fenced | VersionConflict):
            log.warning("the entity %s ends, and what it has not stored is lost: %s", self._target, error)
            self._seat.end("not stored")
        elif (error is not None or task.cancelled() or self._is_late) and self._seat.takes:
            self._again()

    @property
    def _is_late(self) -> bool:
        """Whether a change has been due since before the last write has ended."""
        return self._due is not None and self._timer is None

    def _again(self) -> None:
        """Store it after another while."""
        self.close()
        self._changed()


class _Snapshot(BetweenHandlers):
    """Store the entity if that is due."""

    __slots__ = ("_storing",)

    def __init__(self, storing: Storing) -> None:
        self._storing = storing

    async def run(self) -> None:
        """See `BetweenHandlers`."""
        await self._storing.snapshot()


def is_failure(error: BaseException) -> bool:
    """Whether an exception is one of a request, after which the entity goes on.

    It is not where the entity, or the program, is to end, or where the caller has gone (`actors.run`).
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not (isinstance(error, GeneratorExit) or is_from_signal(error) or exit_in(error) is not None)


def stored_handlers(handlers: Handlers, storing_of: Callable[[Any], Storing]) -> Handlers:
    """Return handlers after which an entity is stored.

    Args:
        handlers: of the class.
        storing_of: returns what stores an entity.
    """
    by_name = {name: _stored_handler(found, storing_of) for name, found in handlers.by_name.items()}
    return Handlers(by_name, handlers.names)


def _stored_handler(found: Handler, storing_of: Callable[[Any], Storing]) -> Handler:
    function = found.function

    def begin(entity: Any, *args: Any, **kwargs: Any) -> Any:
        running = function(entity, *args, **kwargs)  # Raises a TypeError at once if they do not fit.
        storing = storing_of(entity)
        return storing.streamed(running) if found.streams else storing.handled(running)

    return dataclasses.replace(found, function=begin)
