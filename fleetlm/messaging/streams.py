"""The consuming side of streams: requests a stream, hands its items on, and gives the stream up.

A stream is a request whose `Waiting` is a `ConsumerEnd`. The producer may send items of
`Settings.stream_window` units beyond those that were consumed; MORE gives that credit back (`stream_items`).

**Its end.** A stream ends exactly once: when the producer returns or fails; with `NodeLost` when the session
ends; with `CallTimeout` at its deadline; with `StreamIdle` at its idle limit; or when its consumer gives it
up. Whatever the end is, the `ConsumerEnd` calls ``on_end``, which takes the request out of the table in which
it waits by ref and out of the load of its process. If the producer has not ended, it is cancelled: by a
CANCEL behind the request itself, in the order of the task that asked, or directly on this node.

**Limits.** A stream has a deadline or an idle limit or both. A limit that the consumer names overrules the
default: a deadline alone switches `Settings.stream_idle_s` off. The idle limit holds for both sides. A
consumer that waits for an item counts the silence since it first found none, however often its wait is
cancelled and begun again. A producer that waits for its consumer counts in `Call.put`.

**What refers to what.** The runtime holds the `ConsumerEnd`, never the `StreamSource`: a `Stream` that the
program drops closes its source.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.errors import CallTimeout, NotSerializable, StreamIdle
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.request_context import end_stream
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.targets import MAX_TIMEOUT_S
from fleetlm.seconds import check_timeout
from fleetlm.stream import Source, Stream
from fleetlm.wire import operations
from fleetlm.wire.blobs import Packed
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Target
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec

_Cancel = Callable[[], None]
"""Cancels the producer of a stream."""


class Streams:
    """The consuming side of a node."""

    def __init__(
        self, outbound: Outbound, settings: Settings, codec: Codec, loop: asyncio.AbstractEventLoop
    ) -> None:
        default_s = settings.stream_idle_s
        self.idle_s: float = math.inf if default_s is None else default_s
        """The idle limit of a stream without limits of its own, in seconds."""
        self._outbound = outbound
        self._settings = settings
        self._codec = codec
        self._loop = loop

    def open(
        self, to: Target, message: Any, timeout_s: float | None, idle_s: float | None = None
    ) -> Stream[Any]:
        """Make a stream; see `source`."""
        return self.held(self.source(to, message, timeout_s, idle_s))

    def held(self, source: Source) -> Stream[Any]:
        """Return what a program holds of a stream."""
        return Stream(source, self._loop, self._outbound.waits.turns.pause)

    def source(
        self, to: Target, message: Any, timeout_s: float | None, idle_s: float | None = None
    ) -> StreamSource:
        """Make the source of a stream that begins when its first item is waited for. See `Node.stream`.

        Args:
            to: the process.
            message: what it is asked.
            timeout_s: seconds for the whole stream, from its begin; None: without limit.
            idle_s: seconds that it may pause; ``math.inf``: without limit; None: the default, which is no
                limit for a stream with ``timeout_s``.
        """
        check_timeout(timeout_s)
        check_timeout(idle_s, "idle")
        if idle_s is None:
            idle_s = self.idle_s if timeout_s is None else math.inf
        deadline_s = math.inf if timeout_s is None else min(timeout_s, MAX_TIMEOUT_S)
        return StreamSource(self, to, message, deadline_s, idle_s, self._loop)

    @property
    def window(self) -> int:
        """Units of items that a producer may send ahead."""
        return self._settings.stream_window

    def consumer(self) -> ConsumerEnd:
        """Make the consumer's end of a stream."""
        return (
            self._outbound.context.consumer(self.window) if CARRYING.is_active else ConsumerEnd(self.window)
        )

    async def ask(
        self, to: Target, message: Any, consumer: ConsumerEnd, deadline: float, idle_s: float
    ) -> _Cancel:
        """Ask for a stream, waiting for room at most until its limits. Raises: as `Node.call`."""
        if not CARRYING.is_active:
            return await self._ask(to, message, consumer, deadline, idle_s)
        message = self._outbound.context.begin_stream(to, message, consumer)
        try:
            return await self._ask(to, message, consumer, deadline, idle_s)
        except BaseException as error:
            end_stream(consumer, error)
            raise

    async def _ask(
        self, to: Target, message: Any, consumer: ConsumerEnd, deadline: float, idle_s: float
    ) -> _Cancel:
        began = self._loop.time()
        until = min(deadline, began + min(idle_s, MAX_TIMEOUT_S))
        timeout_s = until - began
        outbound = self._outbound
        ref = outbound.take_ref()
        session, key = outbound.route(to)
        if session is not None:
            if session.obstacle(key) is not None:
                await outbound.wait_for_room(session, to, timeout_s, until, key)
            in_flight = outbound.in_flight.admit(session, began, message)
            packed = self._pack(key, message, ref, deadline, idle_s, in_flight)
            extra_bytes = self._codec.extra_bytes
            while session.admit(key, packed, extra_bytes=extra_bytes, is_call=True) is not None:
                await outbound.wait_for_room(session, to, timeout_s, until, key, len(packed))
                packed = outbound.in_flight.mark(packed, began)
            return self._open_on(session, key, ref, consumer)
        box = outbound.box_of(to, key)
        outbound.refuse_own(to, box)
        if box.full:
            await outbound.wait_for_room(box, to, timeout_s, until)
            box = outbound.box_of(to, key)  # The process may have ended meanwhile.
        copy = outbound.copied(to, message)
        began = -math.inf if self._is_in_flight(began) else began
        call = Call(copy, outbound, ref, deadline, self._loop.time, self.window, idle_s, began)
        self._open_here(call, ref, consumer)
        box.put(call)
        return call.abandon

    def _is_in_flight(self, began: float) -> bool:
        watch = self._outbound.in_flight
        return watch.is_watched and watch.covers(began)

    def _pack(
        self, key: Key, message: Any, ref: int, deadline: float, idle_s: float, in_flight: int
    ) -> Packed:
        timeout_ms = 0 if deadline == math.inf else max(1, int((deadline - self._loop.time()) * 1000))
        idle_ms = 0 if idle_s == math.inf else max(1, int(min(idle_s, MAX_TIMEOUT_S) * 1000))
        window = self.window
        if type(message) is Invoke:
            parts = message.parts()
            request = operations.yield_(key, parts, ref, timeout_ms, window, idle_ms, in_flight, 1)
            try:
                return self._codec.pack(request, parts)
            except NotSerializable as error:
                raise message.explain(error) from None
        request = operations.stream(key, message, ref, timeout_ms, window, idle_ms, in_flight, 1)
        return self._codec.pack(request, message)

    def _open_on(self, session: Session, key: Key, ref: int, consumer: ConsumerEnd) -> _Cancel:
        sender = asyncio.current_task()

        def more(units: int) -> None:
            session.control(operations.more(ref, units))

        def ended() -> None:
            session.calls.pop(ref, None)
            session.call_ended(key)

        def cancel() -> None:
            session.control(operations.cancel(ref), after=sender)

        session.calls[ref] = consumer
        consumer.begin(more, ended)
        return cancel

    def _open_here(self, call: Call, ref: int, consumer: ConsumerEnd) -> None:
        """A stream of this node ends at its deadline even if its consumer holds it and takes nothing."""
        calls = self._outbound.local_calls
        timer = None if call.deadline == math.inf else self._loop.call_at(call.deadline, call.abandon)

        def ended() -> None:
            calls.pop(ref, None)
            if timer is not None:
                timer.cancel()

        calls[ref] = consumer
        consumer.begin(call.more, ended)


class StreamSource:
    """One stream as its consumer sees it; implements `stream.Source`.

    Args:
        streams: asks for it.
        to: the process.
        message: what it is asked.
        timeout_s: seconds for the whole stream, from its begin.
        idle_s: seconds that it may pause; ``math.inf``: without limit.
        loop: the node's.
    """

    __slots__ = (
        "_cancel", "_consumer", "_deadline", "_failure", "_idle_s", "_is_closed", "_loop", "_message",
        "_silent_since", "_streams", "_timeout_s", "_to", "items", "take",
    )  # fmt: skip

    def __init__(
        self,
        streams: Streams,
        to: Target,
        message: Any,
        timeout_s: float,
        idle_s: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._streams = streams
        self._to = to
        self._message = message
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._loop = loop
        self._deadline: float | None = None
        """On the loop's clock; None until the stream begins."""
        self._consumer = consumer = streams.consumer()
        self.items: Sized = consumer.items
        self.take: Callable[[], Any] = consumer.take
        self._cancel: _Cancel | None = None
        """None until the request was sent."""
        self._silent_since: float | None = None
        """When the consumer found no item for the first time since the last one."""
        self._is_closed = False
        self._failure: Exception | None = None
        """Why the request could not be sent."""

    async def wait(self) -> bool:
        """See `Source`. Raises: as `Node.stream`."""
        if self._is_closed:
            return False
        consumer = self._consumer
        if self._cancel is None:
            await self._begin()
        if consumer.done():
            return await self._wait(consumer)
        now = self._loop.time()
        if self._silent_since is None:
            self._silent_since = now
        assert self._deadline is not None
        until = min(self._deadline, self._silent_since + self._idle_s)
        timer = None if until == math.inf else self._loop.call_at(until, self._expire)
        try:
            has_item = await self._wait(consumer)
        finally:
            if timer is not None:
                timer.cancel()
        self._silent_since = None
        return has_item

    def close(self) -> None:
        """See `Source`."""
        self._is_closed = True
        is_running = not self._consumer.done()
        self._consumer.close()
        if is_running and self._cancel is not None:
            self._cancel()

    async def _begin(self) -> None:
        """Send the request. A wait that is cancelled here has sent nothing, and the next one sends it."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._deadline is None:
            self._deadline = self._loop.time() + self._timeout_s
        try:
            self._cancel = await self._streams.ask(
                self._to, self._message, self._consumer, self._deadline, self._idle_s
            )
        except Exception as error:
            self._failure = error
            raise
        self._message = None
        if self._consumer.done():  # It was given up while the request waited for room.
            self._cancel()

    async def _wait(self, consumer: ConsumerEnd) -> bool:
        try:
            return await consumer.wait()
        except StreamIdle as error:  # The producer does not know under which name it was asked.
            raise StreamIdle(self._to, self._idle_s, error.is_unread) from None

    def _expire(self) -> None:
        """End a stream that is silent for too long, or too old, while its consumer waits."""
        consumer = self._consumer
        if consumer.done():
            return
        if self._deadline is not None and self._loop.time() >= self._deadline:
            consumer.set_exception(CallTimeout(self._to, self._timeout_s))
        else:
            consumer.set_exception(StreamIdle(self._to, self._idle_s))
        if self._cancel is not None:
            self._cancel()
