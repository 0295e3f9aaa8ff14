"""The consuming side of streams: requests a stream, hands its items on, and gives the stream up.

A stream is a request whose `Waiting` is a `ConsumerEnd`. The producer may send `Settings.stream_window`
items beyond those that were consumed; MORE gives that credit back (`stream_items`). It ends exactly once:
when the producer returns or fails, with `NodeLost` when the session ends, or with `CallTimeout` when its
deadline passes or no item comes for `Settings.stream_idle_s`. Items that came before the end are still
handed on.

A consumer that leaves its loop, or is cancelled, closes the generator, whose ``finally`` takes the request
out; if the stream had not ended, it sends a CANCEL behind the request itself, in the order of the task that
asked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.targets import MAX_TIMEOUT_S, expire
from fleetlm.wire import operations
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Target
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec

_Opened = tuple[ConsumerEnd, dict[int, Any], Callable[[], None]]
"""An open stream: its end here, the table in which it waits by ref, and what gives it up."""


class Streams:
    """The consuming side of a node."""

    def __init__(
        self, outbound: Outbound, settings: Settings, codec: Codec, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._outbound = outbound
        self._settings = settings
        self._codec = codec
        self._loop = loop

    async def open(self, to: Target, message: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """See `Node.stream`."""
        now = self._loop.time()
        deadline = math.inf if timeout_s is None else now + min(timeout_s, MAX_TIMEOUT_S)
        ref = self._outbound.take_ref()
        consumer, calls, give_up = await self._ask(to, message, ref, deadline)
        calls[ref] = consumer
        idle_s = self._settings.stream_idle_s
        try:
            while True:
                while consumer:
                    yield consumer.take()
                until = min(deadline, self._loop.time() + idle_s)
                allowed_s = timeout_s if timeout_s is not None and until == deadline else idle_s
                timer = self._loop.call_at(until, expire, consumer, to, allowed_s)
                try:
                    if not await consumer.wait():
                        return
                finally:
                    timer.cancel()
        finally:
            if calls.pop(ref, None) is not None:
                give_up()

    async def _ask(self, to: Target, message: Any, ref: int, deadline: float) -> _Opened:
        """Ask for a stream, waiting for room at most until its deadline. Raises: as `Node.call`."""
        timeout_s = self._settings.stream_idle_s if deadline == math.inf else deadline - self._loop.time()
        until = self._loop.time() + timeout_s
        outbound = self._outbound
        session, key = outbound.route(to)
        if session is not None:
            if session.obstacle(key) is not None:
                await outbound.wait_for_room(session, to, timeout_s, until, key)
            packed = self._pack(key, message, ref, deadline)
            while session.admit(key, packed) is not None:
                await outbound.wait_for_room(session, to, timeout_s, until, key, len(packed))
            return self._open_on(session, ref)
        box = outbound.box_of(to, key)
        if box.full:
            await outbound.wait_for_room(box, to, timeout_s, until)
            box = outbound.box_of(to, key)  # The process may have ended meanwhile.
        window = self._settings.stream_window
        call = Call(outbound.copied(to, message), outbound, ref, deadline, self._loop.time, window)
        box.put(call)
        return self._open_here(call, deadline)

    def _pack(self, key: int | str, message: Any, ref: int, deadline: float) -> bytes:
        timeout_ms = 0 if deadline == math.inf else max(1, int((deadline - self._loop.time()) * 1000))
        window = self._settings.stream_window
        if type(message) is Invoke:
            parts = message.parts()
            return self._codec.pack(operations.yield_(key, parts, ref, timeout_ms, window, 1), parts)
        return self._codec.pack(operations.stream(key, message, ref, timeout_ms, window, 1), message)

    def _open_on(self, session: Session, ref: int) -> _Opened:
        sender = asyncio.current_task()

        def more(count: int) -> None:
            session.control(operations.more(ref, count))

        def give_up() -> None:
            session.control(operations.cancel(ref), after=sender)

        return ConsumerEnd(self._settings.stream_window, more), session.calls, give_up

    def _open_here(self, call: Call, deadline: float) -> _Opened:
        """A stream of this node ends at its deadline even if its consumer holds it and takes nothing."""
        consumer = ConsumerEnd(self._settings.stream_window, call.more)
        calls = self._outbound.local_calls
        if deadline == math.inf:
            return consumer, calls, call.abandon
        timer = self._loop.call_at(deadline, call.abandon)

        def give_up() -> None:
            timer.cancel()
            call.abandon()

        return consumer, calls, give_up
