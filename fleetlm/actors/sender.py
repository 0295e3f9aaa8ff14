"""Sends the requests of actor references, with the default deadlines of the node."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.deadline import within_deadline
from fleetlm.messaging.telling import tell_of
from fleetlm.seconds import check_timeout

if TYPE_CHECKING:
    from fleetlm.messaging.fan_out import FanOut
    from fleetlm.messaging.multicall import Multicall
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.streams import Streams
    from fleetlm.messaging.targets import Target
    from fleetlm.stream import Source, Stream
    from fleetlm.wire.invocation import Invoke


class ActorSender:
    """Implements `ref.Sender` and `refs.ManySender`: what references ask of the node that made them.

    Args:
        outbound: sends, casts and calls.
        streams: returns what opens streams.
        fan_out: sends to many actors.
        multicall: returns what calls many actors.
        call_timeout_s: deadline of a call that names none, in seconds.
    """

    __slots__ = ("_call_timeout_s", "_fan_out", "_multicall", "_outbound", "_streams")

    def __init__(
        self, outbound: Outbound, streams: Callable[[], Streams], fan_out: FanOut,
        multicall: Callable[[], Multicall], call_timeout_s: float,
    ) -> None:  # fmt: skip
        self._outbound = outbound
        self._streams = streams
        self._fan_out = fan_out
        self._multicall = multicall
        self._call_timeout_s = call_timeout_s

    def send(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """See `Node.send`."""
        return self._outbound.send(to, message, timeout)

    def cast(self, to: Target, request: Invoke, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """As `send`, for a request to a handler of an actor."""
        outbound = self._outbound
        if CARRYING.is_active:
            return outbound.context.ask("cast", outbound.cast, to, request, timeout)
        return outbound.cast(to, request, timeout)

    def cast_nowait(self, to: Target, request: Invoke) -> None:
        """As `Node.send_nowait`, for a request to a handler of an actor."""
        outbound = self._outbound
        if CARRYING.is_active:
            outbound.context.ask_now("cast", outbound.cast_nowait, to, request)
        else:
            outbound.cast_nowait(to, request)

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """See `Node.call`."""
        outbound = self._outbound
        if CARRYING.is_active:
            call = outbound.context.ask("call", outbound.call, to, message, timeout)
        else:
            call = outbound.call(to, message, timeout)
        sampler = outbound.waits.taps.calls
        if sampler is None:
            return call
        sampler.nth = nth = sampler.nth + 1  # `Sampler.pick` inline.
        if nth & sampler.mask:
            return call
        return tell_of(outbound.waits, call, to, message, sampler.weigh())

    async def multicall(
        self, targets: list[Target], request: Invoke, timeout: float | None = None
    ) -> list[Any]:
        """See `Node.multicall`."""
        check_timeout(timeout)
        within_s = within_deadline(self._call_timeout_s if timeout is None else timeout)
        return await self._multicall()(targets, request, within_s)

    def fan_out(
        self, targets: list[Target], request: Invoke, timeout: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """As `cast`, to many actors; return the number of those to which it was sent."""
        return self._fan_out.send(targets, request, timeout)

    def stream(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> Stream[Any]:
        """See `Node.stream`."""
        return self._streams().held(self.source(to, message, timeout, idle))

    def held(self, source: Source) -> Stream[Any]:
        """Return what a program holds of a stream."""
        return self._streams().held(source)

    def source(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> Source:
        """Make the source of a stream, with the limits that `Node.stream` gives it."""
        check_timeout(timeout)
        within_s = within_deadline(math.inf if timeout is None else timeout)
        if timeout is None and idle is None:  # A deadline that was inherited switches no limit off.
            idle = self._streams().idle_s
        return self._streams().source(to, message, None if within_s == math.inf else within_s, idle)
