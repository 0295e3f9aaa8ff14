"""One live entity: its process, and how it is saved and ended.

States of a seat, each left once and in this order:

* **open**: the process runs, or loads. Requests go into its mailbox.
* **closing**: it is to be saved and ended, for its passivation or a handoff (`Seat.close`). Calls that it has
  not begun were taken out of its mailbox and wait here, with those that come now. Casts stay, since they have
  been acknowledged: it runs them before it is saved. If `save` raises, it is open again.
* **ended**: its process ends. What waits is given back to the `Hosting`, which begins anew or refuses.

An entity that crashes, is killed or stops goes from open to ended. What it had not saved is lost, and the
next one knows that (`restarted`).

With a store (`Seat.storing`), `load` waits for it, and what is saved goes there instead of to the `Hosting`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fleetlm.actors.between import BetweenHandlers
from fleetlm.actors.handlers import ActorObject
from fleetlm.call import Call
from fleetlm.entities.states import States
from fleetlm.entities.storing import Storing
from fleetlm.errors import Fenced, ProcessExit, StoreFailed, VersionConflict
from fleetlm.processes.boundary import exit_in, is_from_signal
from fleetlm.records import Row
from fleetlm.texts import loggable, text_of
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.processes.running import RunningProcess

log: logging.Logger = logging.getLogger("fleetlm")


class EntityObject(ActorObject, Protocol):
    """An `Entity` as the runtime sees it."""

    __fleetlm_entity__: ClassVar[bool]

    async def load(self, state: Any) -> None:
        """See `Entity.load`."""

    async def save(self) -> Any:
        """See `Entity.save`."""

    async def merge(self, other: Any) -> None:
        """See `Entity.merge`."""

    def stop(self, reason: Any = "normal") -> None:
        """See `Actor.stop`."""


class Kept(Row):
    """What is left of an entity that does not live now.

    Attributes:
        packed: what `Entity.save` returned last, or None.
        was_lost: whether it has lost what it did since then.
    """

    packed: bytes | None
    was_lost: bool


def size_of(key: str, kept: Kept) -> int:
    """Return about how many bytes it takes to keep this."""
    return len(key) + len(kept.packed or b"") + 64


class Host(Protocol):
    """What a seat asks of the `Hosting` of its kind."""

    kind: str
    states: States
    kept: dict[int, dict[str, Kept]]
    """Shard → key → what is left of an entity."""

    def make(self, seat: Seat) -> EntityObject:
        """Make the object of an entity, ready to run."""

    def epoch_of(self, seat: Seat) -> int:
        """Return the epoch under which this node owns an entity."""

    @property
    def save_s(self) -> float:
        """Seconds that `Entity.save` may take."""

    def keep(self, seat: Seat, packed: bytes | None) -> None:
        """Keep what an entity has saved, or note that it is stored."""

    def stays(self, seat: Seat) -> None:
        """Note that an entity could not be saved, and serves again."""

    def again(self, message: Any) -> None:
        """Take a call anew that came while its entity was being saved."""

    def ended(self, seat: Seat, rest: list[Any]) -> None:
        """Take back the requests that an entity leaves behind, now that it ends."""


CURRENT: ContextVar[Seat | None] = ContextVar("fleetlm_entity", default=None)
"""The entity on whose behalf this code runs."""


class Seat:
    """The place of one live entity on this node; also the function that its process runs.

    Attributes:
        host: of its kind.
        key: of the entity.
        shard: to which it belongs.
        epoch: under which it takes requests; -1 while its shard is being handed over.
        kept: what it was made from.
        process: which runs it.
        box: the mailbox of that process.
        is_open: see the module.
        is_ready: whether its `load` is done.
        is_saved: whether its last state is kept.
        storing: stores it; None: its kind has no store.
        used_at: when it got its last request, on the loop's clock.
        outcome: set when it has ended (True), or could not be saved (False), after `close`.
    """

    __slots__ = (
        "__qualname__", "box", "entity", "epoch", "host", "is_open", "is_ready", "is_saved", "kept", "key",
        "outcome", "process", "shard", "storing", "used_at", "waiting",
    )  # fmt: skip

    process: RunningProcess
    box: Mailbox
    entity: EntityObject

    def __init__(self, host: Host, key: str, shard: int, epoch: int, kept: Kept, name: str) -> None:
        self.__qualname__ = name
        self.host: Host = host
        self.key: str = key
        self.shard: int = shard
        self.epoch: int = epoch
        self.kept: Kept = kept
        self.is_open: bool = True
        self.is_ready: bool = False
        self.is_saved: bool = False
        self.used_at: float = 0.0
        self.outcome: asyncio.Future[bool] | None = None
        self.storing: Storing | None = None
        self.waiting: list[Any] = []

    async def __call__(self, process: RunningProcess) -> None:
        """Run the entity as this process."""
        CURRENT.set(self)
        try:
            self.entity = self.host.make(self)
            await self.entity(process)
        finally:
            self._end()

    async def saved(self) -> Any:
        """Return what `Entity.save` returns. Raises: TimeoutError: it did not end; and what it raises."""
        limit_s = self.host.save_s
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await self.entity.save()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"save() did not end within {limit_s:g} s") from None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, and none has come."""
        return self.is_open and self.is_ready and self.box.waited_for and not self.box.queue

    @property
    def takes(self) -> bool:
        """Whether a message that is put into its mailbox now is served, or given back by its end."""
        process = self.process
        return self.is_open and not (process._is_ending or process._is_gone)  # noqa: SLF001  # the runtime's half

    @property
    def states(self) -> States:
        """Implement `storing.LiveEntity`."""
        return self.host.states

    @property
    def state(self) -> Any:
        """What the entity is made from. Raises: ValueError: this node does not know its type."""
        return self.host.states.read(self.kept.packed)

    async def fetch(self) -> None:
        """Load what is stored. Raises: ProcessExit: it cannot be loaded."""
        storing, was_lost = self.storing, self.kept.was_lost
        assert storing is not None
        stored = await storing.load()
        was_lost = was_lost or storing.was_left_open
        if was_lost and self.key not in self.host.kept.get(self.shard, ()):  # The shard was taken over.
            was_lost = storing.may_miss(stored)
        self.kept = Kept(stored.state, was_lost and not storing.is_write)

    @property
    def has_lost(self) -> bool:
        """Whether it has ended, and what it did since it was saved last is lost."""
        is_stored = self.storing is not None and self.storing.is_write
        return self.is_ready and not (self.is_saved or is_stored)

    def acknowledge(self, cast: Call) -> None:
        """Acknowledge a cast in its mailbox, once it is loaded."""
        if self.storing is None or self.is_ready:
            cast.reply(None)
        else:
            self.storing.acks.append(cast)

    def ready(self) -> None:
        """Note that `load` is done."""
        self.is_ready = True
        if self.storing is not None:
            self.kept = Kept(None, self.kept.was_lost)  # The store has the rest.
            self.storing.loaded()

    def close(self, reason: str = "passivated") -> asyncio.Future[bool]:
        """Have the entity saved and ended, after the handler that runs. Returns what `outcome` says."""
        outcome = self.outcome
        if outcome is None:
            outcome = self.outcome = asyncio.get_running_loop().create_future()
            if self.takes:
                self.is_open = False
                self.waiting += self.box.discard(_is_call)
                self.box.put(_Save(self, reason))
        return outcome

    def end(self, reason: str) -> None:
        """End the entity after the handler that runs, without saving it. Casts that wait are still run."""
        if self.takes:
            self.is_open = False
            self.waiting += self.box.discard(_is_call)
        self.box.put(_Stop(self, reason))

    def take_waiting(self) -> list[Any]:
        """Take the calls out of the mailbox that the entity has not begun."""
        return self.box.discard(_is_call)

    def run_between(self, order: BetweenHandlers) -> None:
        """Have the entity do something between two handlers."""
        self.box.put(order)

    def reopen(self) -> None:
        """Serve again, since it could not be saved."""
        self.is_open = True
        self.host.stays(self)
        waiting, self.waiting = self.waiting, []
        for message in waiting:
            if type(message.message.handler) is str:  # It was in the mailbox.
                self.box.put(message)
            else:
                self.host.again(message)
        self._settle(False)

    def _end(self) -> None:
        self.is_open = False
        rest = [*self.box.discard(_is_request), *self.waiting]
        self.waiting = []
        if self.storing is not None:
            self.storing.close()
            rest += self.storing.acks
        self.host.ended(self, rest)
        self._settle(True)

    def _settle(self, outcome: bool) -> None:
        future, self.outcome = self.outcome, None
        if future is not None and not future.done():
            future.set_result(outcome)


class _Save(BetweenHandlers):
    """Save the entity and end it."""

    __slots__ = ("_reason", "_seat")

    def __init__(self, seat: Seat, reason: str) -> None:
        self._seat = seat
        self._reason = reason

    async def run(self) -> None:
        seat = self._seat
        try:
            packed = None
            if seat.storing is None:
                packed = seat.host.states.pack(await seat.saved())
            else:
                await seat.storing.save()
            seat.host.keep(seat, packed)
        except (asyncio.CancelledError, ProcessExit):
            raise
        except StoreFailed:  # The store's trouble has its own line in the log.
            seat.reopen()
        except (Fenced, VersionConflict) as error:
            log.warning(
                "the entity %s/%s ends, and what it has not stored is lost: %s",
                seat.host.kind,
                seat.key,
                error,
            )
            seat.entity.stop("fenced")
        except BaseException as error:
            if is_from_signal(error) or exit_in(error) is not None:
                raise
            why = text_of(error)
            log.exception(
                "the entity %s/%s cannot be saved, and goes on: %s", seat.host.kind, seat.key, why,
                exc_info=loggable(error),
            )  # fmt: skip
            seat.reopen()
        else:
            seat.is_saved = True
            seat.entity.stop(self._reason)


class _Stop(BetweenHandlers):
    """End the entity."""

    __slots__ = ("_reason", "_seat")

    def __init__(self, seat: Seat, reason: str) -> None:
        self._seat = seat
        self._reason = reason

    async def run(self) -> None:
        self._seat.entity.stop(self._reason)


class Merge(BetweenHandlers):
    """Give the entity the state of another one with its key, which lived beside it.

    Args:
        seat: of the entity.
        other: the state.
    """

    __slots__ = ("_other", "_seat")

    def __init__(self, seat: Seat, other: Any) -> None:
        self._seat = seat
        self._other = other

    async def run(self) -> None:
        """See `BetweenHandlers`. What `merge` raises is logged: it must not cost what the winner has."""
        seat = self._seat
        try:
            await seat.entity.merge(self._other)
        except (asyncio.CancelledError, ProcessExit):
            raise
        except BaseException as error:
            if is_from_signal(error) or exit_in(error) is not None:
                raise
            log.exception(
                "the entity %s/%s cannot merge the state of another one, and goes on without it",
                seat.host.kind, seat.key, exc_info=loggable(error),
            )  # fmt: skip


def base_merge(actor: type[EntityObject]) -> Callable[..., Any]:
    """Return the `merge` of `Entity` itself, which an entity may override."""
    bases = reversed(actor.__mro__)
    found: Callable[..., Any] = next(vars(base)["merge"] for base in bases if "merge" in vars(base))
    return found


async def close_all(seats: Iterable[Seat], timeout_s: float) -> None:
    """Have entities saved and ended, as many as can be in this time."""
    outcomes = [seat.close() for seat in seats]
    if outcomes:
        await asyncio.wait(outcomes, timeout=max(0.0, timeout_s))


def refuse_all(messages: Iterable[Any], target: str, storing: Storing | None = None) -> None:
    """Refuse requests that no entity has begun, since it has ended or could not be loaded."""
    for message in messages:
        if type(message) is not Call:
            continue
        if storing is not None and storing.why_not_loaded:
            storing.refuse(message)
        else:
            message.no_process(target)


def _is_call(message: Any) -> bool:
    return type(message) is Call


def _is_request(message: Any) -> bool:
    return type(message) is Call or type(message) is Invoke
