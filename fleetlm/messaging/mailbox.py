"""The queue of one process, and the record of which connections its messages came from.

**Putting and taking.** The runtime appends, only the owner takes. `put` wakes an owner that waits; the
owner then takes everything that came in this turn of the event loop without waiting again. A message that
was accepted from the network is never refused: the limit makes *senders* wait. Senders of this node look at
`full` and wait in `room`, until the queue has drained to half; senders of other nodes wait for the window
of the process (`messaging.windows`).

**Origins.** Messages of other nodes count against a `Window` of their connection until the owner takes
them. No message carries a mark for that. A position in the sequence of all messages that ever came is
``taken`` plus the place in the queue, and an `_Origin` is a run of positions that came over one connection.
`settle` tells each window how much of its runs lies before ``taken``. ``_due`` is the value of ``taken`` at
which the next settling, or waking of local senders, is due, so taking a message costs one comparison.

Races. An owner that is cancelled while it waits has taken nothing: it takes after it was woken. Messages
that `discard` takes out of the middle move those behind them forward, so that a window may be told of
another connection's messages a little early; over the whole queue the sums stay right. `close` counts
everything as taken, so that no sender waits for a process that has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any, Protocol

from fleetlm.call import Call
from fleetlm.messaging.turns import FREE, Turns
from fleetlm.seconds import check_seconds

_NEVER = 1 << 62
_NOTHING: Any = ()
"""The queue of a mailbox that has had no message."""
LONG_WAIT_S = 0.25
"""Seconds for which a call must have waited before its owner is told: shorter waits are no news."""
MOST_BEYOND = 8
"""A mailbox holds at most this many times its limit of messages that cannot wait: those that its owner sends
to itself, and those of processes that wait in a circle."""

Key = int | str
"""A process as its sender names it: its number, or a name."""


class Window(Protocol):
    """The window that messages from one connection count against until they are taken."""

    step: int
    """Units after which it is worth telling the sender what was taken."""

    def took(self, key: Key, count: int, /) -> None:
        """Count ``count`` units for this process as taken."""


class _Origin:
    """A run of messages that came over one connection for one key, each of the same weight.

    Args:
        start: position of its first message that is not settled.
        end: position behind its last message.
        window: what it counts against.
        key: the process as the sender named it.
        weight: units of each message.
    """

    __slots__ = ("end", "key", "start", "step", "weight", "window")

    def __init__(self, start: int, end: int, window: Window, key: Key, weight: int) -> None:
        self.start = start
        self.end = end
        self.window = window
        self.key = key
        self.weight = weight
        self.step: int = max(1, window.step // weight)
        """Messages after which it is worth telling the window."""


class Owner(Protocol):
    """The process that a mailbox belongs to."""

    def _accept_call(self, call: Call) -> bool:
        """Become responsible for a call taken from the mailbox. False if the owner refused the call."""

    def _note_wait(self, call: Call, now: float) -> None:
        """Note that a call has waited in the mailbox for half of its time, or for all of it."""

    def _has_task(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task runs the process, or one of its concurrent handlers."""


class Mailbox:
    """Messages for one process, in the order in which each sender sent them.

    ::

        async for message in process.mailbox: ...
        message = await process.mailbox.get(timeout=2.0)
    """

    __slots__ = (
        "_due", "_favoured", "_kept", "_origins", "_owner", "_rooms", "_waiter", "limit",
        "queue", "taken", "turns",
    )  # fmt: skip

    def __init__(self, limit: int, owner: Owner, turns: Turns = FREE) -> None:
        self.queue: deque[Any] = _NOTHING
        """The messages, the oldest first. Its memory is only taken with the first message: a third of what an
        idle process needs."""
        self.limit: int = limit
        self.taken: int = 0
        """Messages that the owner has taken so far, and those that `discard` and `close` took out."""
        self._waiter: asyncio.Future[None] | None = None
        self._rooms: dict[asyncio.Future[None], asyncio.Task[Any] | None] | None = None
        """What senders of this node wait for, in their order."""
        self._favoured: dict[asyncio.Task[Any], None] | None = None
        """The senders that do not wait, since they wait in a circle otherwise: see `favour`."""
        self._kept = 0
        """Places kept for senders that were woken and have not run yet."""
        self._owner = owner
        self.turns: Turns = turns
        self._origins: list[_Origin] | None = None
        self._due = _NEVER
        """The value of `taken` at which a window or a local sender is to be told."""

    def __len__(self) -> int:
        return len(self.queue)

    def __aiter__(self) -> Mailbox:
        return self

    @property
    def full(self) -> bool:
        """Whether senders should wait."""
        return len(self.queue) + self._kept >= self.limit

    @property
    def owner(self) -> Owner:
        """The process that takes its messages."""
        return self._owner

    def belongs_to(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task works for the owner: it runs the owner, or one of its concurrent handlers."""
        return self._owner._has_task(task)  # noqa: SLF001  # as in `_next`

    def may_exceed(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task may put a message here beyond the limit: it is favoured, or works for the owner.

        If it waited for room it would wait for itself. `MOST_BEYOND` bounds it nevertheless.
        """
        most = self.limit * MOST_BEYOND
        return len(self.queue) < most and (task in (self._favoured or ()) or self.belongs_to(task))

    def favour(self, task: asyncio.Task[Any]) -> None:
        """Let this task send beyond the limit until `unfavour`, up to `MOST_BEYOND`: it waits in a circle."""
        if self._favoured is None:
            self._favoured = {}
        self._favoured[task] = None
        for waiter, sender in (self._rooms or {}).items():
            if sender is task and not waiter.done() and self.may_exceed(task):
                waiter.set_result(None)
                self._kept += 1

    def unfavour(self, task: asyncio.Task[Any]) -> None:
        """Treat this task as any other again."""
        if self._favoured is not None:
            self._favoured.pop(task, None)
            self._favoured = self._favoured or None

    @property
    def waited_for(self) -> bool:
        """Whether its owner waits for the next message."""
        return self._waiter is not None and not self._waiter.done()

    def park(self) -> bool:
        """Let no message wake the owner any more, which is about to be cancelled.

        Returns:
            False if the owner does not wait for a message.
        """
        waiter, self._waiter = self._waiter, None
        return waiter is not None and not waiter.done()

    def put(self, message: Any) -> None:
        """Append, and wake the owner if it waits. Never blocks; see `room` for the limit."""
        try:
            self.queue.append(message)
        except AttributeError:  # The first message.
            self.queue = deque((message,))
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def room(self) -> None:
        """Return when there is room for one message, or the mailbox was closed.

        Senders wake in the order in which they began to wait. The place of one that was woken is kept for it
        until it runs, so that a sender that never waits cannot take it: the caller must send, or give up,
        before it waits for anything else.
        """
        if not self.full:
            return
        if self._rooms is None:
            self._rooms = {}
        rooms, waiter = self._rooms, asyncio.get_running_loop().create_future()
        rooms[waiter] = asyncio.current_task()
        self._due = 0
        try:
            await waiter
        finally:
            del rooms[waiter]
            if waiter.done() and not waiter.cancelled():
                self._kept -= 1
                if rooms:  # If this sender gives up, perhaps no message is taken to wake the next one.
                    asyncio.get_running_loop().call_soon(self._tell_taken)

    def get(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """Take the next message; wait for it up to ``timeout`` seconds (None: for ever).

        Calls whose deadline has passed, or whose caller has given up, are passed over.

        Raises:
            TimeoutError: no message came; nothing was taken.
            RuntimeError: another task waits for this mailbox already; only its process may.
        """
        return self.__anext__() if timeout is None else self._next_within(timeout)

    async def _next_within(self, timeout: float) -> Any:
        check_seconds(timeout)
        try:
            async with asyncio.timeout(timeout):
                return await self.__anext__()
        except TimeoutError:
            if not self.queue:
                raise
        async with asyncio.timeout(0):  # A message came while the owner waited for its turn.
            return await self.__anext__(FREE)

    async def __anext__(  # noqa: C901  # each helper would cost every message a call
        self, turns: Turns | None = None
    ) -> Any:
        turns = turns or self.turns
        while True:
            while not self.queue:
                if self._waiter is not None and not self._waiter.done():
                    raise RuntimeError("two tasks wait for one mailbox; only the process itself may receive")
                self._waiter = turns.future()
                await self._waiter
            queue = self.queue
            if turns.left:
                turns.left -= 1
            elif turns.is_over():
                await turns.next()
                if not queue:
                    continue  # `discard` has emptied it meanwhile.
            message = queue.popleft()
            self.taken += 1
            if self.taken >= self._due:
                self._tell_taken()
            if type(message) is Call:
                if message._done or (now := message._clock()) >= message.deadline:  # noqa: SLF001  # `wanted`
                    self._pass_over(message)
                    continue
                if message._caller.is_behind:  # noqa: SLF001  # It takes no answers, which would fill memory.
                    queue.appendleft(message)
                    self.taken -= 1
                    await message._caller.caught_up()  # noqa: SLF001
                    continue
                if now - message.began > 0.25:  # `LONG_WAIT_S`, which as a name costs more
                    self._note_wait(message, now)
                if not self._owner._accept_call(message):  # noqa: SLF001  # private: programs hold the owner
                    continue  # The owner has refused the call.
            return message

    def _note_wait(self, call: Call, now: float) -> None:
        """Tell the owner of a call that has waited for half of its time."""
        if now + now > call.began + call.deadline:
            self._owner._note_wait(call, now)  # noqa: SLF001

    def _pass_over(self, call: Call) -> None:
        """Drop a call whose deadline has passed, or whose caller has given up."""
        now = call._clock()  # noqa: SLF001
        if now >= call.deadline:
            self._owner._note_wait(call, now)  # noqa: SLF001
        call.abandon()

    async def get_any(self) -> Any:
        """Take the next message for the owner to pass on: a call as it is, for which it does not answer.

        So one caller that takes no answers does not keep the messages of others.
        """
        turns = self.turns
        while not self.queue:
            self._waiter = turns.future()
            await self._waiter
        if turns.left:
            turns.left -= 1
        elif turns.is_over():
            await turns.next()
        message = self.queue.popleft()
        self.taken += 1
        if self.taken >= self._due:
            self._tell_taken()
        return message

    def discard(self, unwanted: Callable[[Any], bool]) -> list[Any]:
        """Take the unwanted messages out of the queue, and return them in their order."""
        out: list[Any] = []
        kept: list[Any] = []
        for message in self.queue:
            (out if unwanted(message) else kept).append(message)
        if out:
            self.taken += len(out)
            self.queue.clear()
            self.queue.extend(kept)
        if self.taken >= self._due:
            self._tell_taken()
        return out

    def close(self) -> list[Any]:
        """The owner has ended: return the messages that it never took, and wake the senders that wait."""
        rest = list(self.queue)
        if rest:
            self.queue.clear()
        self.taken += len(rest)
        self.settle()
        self._tell_room(len(self._rooms or ()))
        return rest

    def relieve(self) -> bool:
        """Let nodes send more although their windows are full: the owner waits in a circle of processes.

        Their messages that wait here count as taken from now on.

        Returns:
            Whether that was possible: `MOST_BEYOND` is the bound.
        """
        if len(self.queue) >= self.limit * MOST_BEYOND:
            return False
        self.settle()
        origins, self._origins = self._origins, None
        for origin in origins or ():
            origin.window.took(origin.key, (origin.end - origin.start) * origin.weight)
        return True

    def arrived(self, window: Window, key: Key, count: int, weight: int) -> None:
        """Note that the last ``count`` messages of the queue came over one connection.

        Args:
            window: told when they are taken.
            key: the process as the sender named it.
            count: messages.
            weight: units of each.
        """
        end = self.taken + len(self.queue)
        origins = self._origins
        if origins:
            last = origins[-1]
            if (
                last.end == end - count
                and last.window is window
                and last.key == key
                and last.weight == weight
            ):
                last.end = end  # `_due` is set already.
                return
        elif origins is None:
            origins = self._origins = []
        last = _Origin(end - count, end, window, key, weight)
        origins.append(last)
        self._due = min(self._due, self.taken + last.step)

    def settle(self) -> None:
        """Tell each window what was taken since the last settling."""
        origins = self._origins
        if not origins:
            return
        taken, done = self.taken, 0
        for origin in origins:
            if origin.start >= taken:
                break
            upto = min(origin.end, taken)
            origin.window.took(origin.key, (upto - origin.start) * origin.weight)
            origin.start = upto
            done += upto == origin.end
        del origins[:done]

    def trim(self, windows: Collection[Window], most_units: int) -> int:
        """Drop the newest of the messages that count against some windows, beyond so many units of them.

        Returns:
            How many were dropped. The windows are told that they were taken.
        """
        self.settle()
        origins, first = self._origins or [], self.taken
        ours = [origin for origin in origins if origin.window in windows]
        if sum((origin.end - origin.start) * origin.weight for origin in ours) <= most_units:
            return 0
        queue, kept, at, dropped = list(self.queue), list[Any](), 0, 0
        left: list[_Origin] = []
        for origin in origins:
            start, count = origin.start - first, origin.end - origin.start
            stay = count
            if origin.window in windows:
                stay = min(count, most_units // origin.weight)
                most_units -= stay * origin.weight
                origin.window.took(origin.key, (count - stay) * origin.weight)
            kept += queue[at : start + stay]
            at = start + count
            origin.start -= dropped
            origin.end = origin.start + stay
            dropped += count - stay
            if stay:
                left.append(origin)
        self.queue.clear()
        self.queue.extend([*kept, *queue[at:]])
        self._origins = left
        return dropped

    def count_keys(self, window: Window) -> int:
        """Return under how many keys messages wait that count against a window."""
        return len({origin.key for origin in self._origins or () if origin.window is window})

    def key_of(self, window: Window) -> Key | None:
        """Return the key of the first message here that counts against this window; None: there is none."""
        return next((origin.key for origin in self._origins or () if origin.window is window), None)

    def senders(self) -> Iterator[tuple[Window, int]]:
        """Yield how many messages that wait here count against which window; a window may come often."""
        for origin in self._origins or ():
            yield origin.window, origin.end - max(origin.start, self.taken)

    def _tell_taken(self) -> None:
        """Settle, wake local senders if there is room for them, and set when to look again."""
        self.settle()
        if self._rooms and len(self.queue) <= self.limit // 2:
            self._tell_room(self.limit - len(self.queue) - self._kept)
        if self._rooms:
            self._due = 0
        elif self._origins:
            self._due = self.taken + min(origin.step for origin in self._origins)
        else:
            self._due = _NEVER

    def _tell_room(self, places: int) -> None:
        """Wake up to so many of the senders that wait, and keep a place for each."""
        for waiter in self._rooms or ():
            if places <= 0:
                break
            if not waiter.done():
                waiter.set_result(None)
                self._kept += 1
                places -= 1
