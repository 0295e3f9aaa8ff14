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
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.between import BetweenHandlers
from fleetlm.actors.handlers import Handler, Handlers
from fleetlm.entities.keeping import Keeper
from fleetlm.errors import Fenced, NotLoaded, NotStored, ProcessExit, StoreError, VersionConflict
from fleetlm.messaging.deadline import SERVING
from fleetlm.processes.boundary import exit_in, is_from_signal
from fleetlm.texts import loggable, text_of

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.entities.keeping import KindStore
    from fleetlm.entities.states import States
    from fleetlm.stores.interface import Stored

log: logging.Logger = logging.getLogger("fleetlm")


class LiveEntity(Protocol):
    """The seat of an entity, as this module sees it."""

    key: str
    shard: int
    entity: Any

    @property
    def states(self) -> States:
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

    Attributes:
        acks: casts that are acknowledged when the entity has been loaded.
        was_left_open: whether a former owner of its shard may have lost changes.
        why_not_loaded: why it could not be loaded; empty: it could, or nobody knows yet.
    """

    __slots__ = (
        "_due",
        "_keeper",
        "_keeps",
        "_seat",
        "_task",
        "_timer",
        "acks",
        "was_left_open",
        "why_not_loaded",
    )

    def __init__(self, seat: LiveEntity, keeps: KindStore) -> None:
        self._seat = seat
        self._keeps = keeps
        self._keeper = Keeper(keeps, seat.key, seat.shard)
        self._due: float | None = None
        """When a change is to be stored, on the loop's clock; None: there is none."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        """The write that goes on beside the handlers."""
        self.acks: list[Call] = []
        self.was_left_open: bool = False
        self.why_not_loaded: str = ""

    @property
    def _target(self) -> str:
        return f"{self._keeps.kind}/{self._seat.key}"

    async def load(self) -> Stored:
        """Return what is stored. Raises: ProcessExit: it cannot be loaded, which ends the entity."""
        try:
            if not self.is_write:
                self.was_left_open = await self._keeps.was_left_open(self._seat.shard)
            return await self._keeper.load()
        except StoreError as error:
            self.why_not_loaded = text_of(error)
            raise ProcessExit("not loaded") from error

    @property
    def is_write(self) -> bool:
        """Whether everything that was acknowledged is stored."""
        return self._keeps.is_write

    def may_miss(self, stored: Stored) -> bool:
        """Whether a shard that was taken over from a lost node may have lost what was to follow on this."""
        return stored.epoch < self._keeps.taken_over_at(self._seat.shard)

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
        return seat.states.pack(await seat.entity.save())

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


def stored_handlers(handlers: Handlers, keeps: KindStore) -> Handlers:
    """Return the handlers of a class, after which an entity is stored if its kind wants that."""
    if not keeps.is_write and keeps.after_s is None:
        return handlers
    by_name = {name: _stored_handler(found) for name, found in handlers.by_name.items()}
    return Handlers(by_name, handlers.names)


def _stored_handler(found: Handler) -> Handler:
    function = found.function

    def begin(entity: Any, *args: Any, **kwargs: Any) -> Any:
        running = function(entity, *args, **kwargs)  # Raises a TypeError at once if they do not fit.
        storing: Storing = entity._Entity__seat.storing  # noqa: SLF001  # as `Hosting.make` has set it
        return storing.streamed(running) if found.streams else storing.handled(running)

    return dataclasses.replace(found, function=begin)
