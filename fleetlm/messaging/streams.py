"""Streams as their consumer sees them: asks for one, hands its items on, gives it up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.messaging.onto import waiting
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.targets import MAX_TIMEOUT_S, expire
from fleetlm.messaging.windows import UNIT_BYTES, units
from fleetlm.wire.frames import Op
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.messaging.targets import Target
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec


class Streams:
    """The consuming side of a node."""

    def __init__(
        self, messenger: Messenger, settings: Settings, codec: Codec, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._messenger = messenger
        self._settings = settings
        self._codec = codec
        self._loop = loop

    async def open(self, to: Target, message: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """See `Node.stream`."""
        now = self._loop.time()
        deadline = math.inf if timeout_s is None else now + min(timeout_s, MAX_TIMEOUT_S)
        ref = self._messenger.take_ref()
        inlet, calls, stop = await self._ask(to, message, ref, deadline)
        calls[ref] = inlet
        idle_s = self._settings.stream_idle_s
        try:
            while True:
                while inlet:
                    yield inlet.take()
                until = min(deadline, self._loop.time() + idle_s)
                allowed_s = timeout_s if timeout_s is not None and until == deadline else idle_s
                timer = self._loop.call_at(until, expire, inlet, to, allowed_s)
                try:
                    if not await inlet.wait():
                        return
                finally:
                    timer.cancel()
        finally:
            if calls.pop(ref, None) is not None:
                stop()

    async def _ask(
        self, to: Target, message: Any, ref: int, deadline: float
    ) -> tuple[ConsumerEnd, dict[int, Any], Callable[[], None]]:
        """Ask for a stream. Returns its end here, where that must be known, and what gives it up."""
        window = self._settings.stream_window
        timeout_s = self._settings.stream_idle_s if deadline == math.inf else deadline - self._loop.time()
        until = self._loop.time() + timeout_s
        session, key = self._messenger.route(to)
        if session is None:
            box = self._messenger.box_of(to, key)
            if box.full:
                await self._messenger.wait_for_room(box, to, timeout_s, until)
                box = self._messenger.box_of(to, key)
            here = self._messenger
            call = Call(here.copied(to, message), here, ref, deadline, self._loop.time, window)
            box.put(call)
            inlet = ConsumerEnd(window, call.more)
            if deadline == math.inf:
                return inlet, here.local_calls, call.abandon
            timer = self._loop.call_at(deadline, call.abandon)  # Its consumer may hold it and take no more.

            def abandon() -> None:
                timer.cancel()
                call.abandon()

            return inlet, here.local_calls, abandon
        if waiting(session, key) >= session.window or session.full:
            await self._messenger.wait_for_room(session, to, timeout_s, until, 0, key)
        timeout_ms = 0 if deadline == math.inf else max(1, int((deadline - self._loop.time()) * 1000))
        operation, payload = Op.STREAM, message  # An Invoke travels as its parts.
        if type(message) is Invoke:
            operation, payload = Op.YIELD, message.parts()
        request = [int(operation), key, payload, ref, timeout_ms, window, 1]
        packed = self._codec.pack(request, payload)
        if len(packed) >= UNIT_BYTES:
            request[-1] = units(len(packed), session.windows.limit)
            packed = self._codec.pack(request, payload)
        if len(packed) > session.small_bytes and session.crowded:
            await self._messenger.wait_for_room(session, to, timeout_s, until, len(packed), key)
        sender = asyncio.current_task()
        session.append(packed, sender)
        if len(packed) > session.small_bytes:  # In pieces, its receiver weighs it as it has become.
            request[-1] = units(len(packed), session.windows.limit)
        session.windows.sent(key, request[-1])

        def stop() -> None:
            session.control([int(Op.CANCEL), ref, None], after=sender)

        return (
            ConsumerEnd(window, lambda count: session.control([int(Op.MORE), ref, count])),
            session.calls,
            stop,
        )
