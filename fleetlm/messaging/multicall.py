"""One request to many processes, encoded once, with one outcome for each.

Calls that can be sent at once get no task of their own, which would cost more than all the rest; one entry in
the wheel ends them all. Those that must wait for room, and those of this node, run in tasks of their own, on
behalf of the caller: their requests stay behind what it sent before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.targets import MAX_TIMEOUT_S, expire
from fleetlm.messaging.telling import tell_of_many
from fleetlm.wire import operations
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Payload, Target
    from fleetlm.wire.blobs import Packed
    from fleetlm.wire.codec import Codec

_Asked = tuple["Session", int, asyncio.Future[Any], "Target", "Key"]
"""One call that was sent: session, ref, future of the outcome, target, the target's key."""


class Multicall:
    """Calls many processes with one request.

    Args:
        codec: packs the keys of processes.
        outbound: finds where a target is, and makes the calls that must wait.
    """

    __slots__ = ("_codec", "_loop", "_outbound")

    def __init__(self, codec: Codec, outbound: Outbound) -> None:
        self._codec = codec
        self._outbound = outbound
        self._loop = outbound.waits.loop

    async def __call__(self, targets: Sequence[Target], message: Any, timeout_s: float) -> list[Any]:
        """See `Node.multicall`."""
        ask = self._ask_carrying if CARRYING.is_active else self._ask
        asking = ask(targets, message, timeout_s)
        if self._outbound.waits.taps.calls is not None:
            return await tell_of_many(self._outbound.waits, asking, targets, message)
        return await asking

    async def _ask_carrying(self, targets: Sequence[Target], message: Any, timeout_s: float) -> list[Any]:
        """Call each process, with a carrier where there is something to carry."""
        context = self._outbound.context
        with context.asked("multicall", None, message, len(targets)) as asked:
            carrier = CARRYING.pack(asked)
            if carrier is None:
                return await self._ask(targets, message, timeout_s)
            able = [context.is_able(to) for to in targets]
            if all(able):
                return await self._ask(targets, Invoke.carrying(message, carrier), timeout_s)
            mixed = zip(targets, able, strict=True)
            return await self._ask_mixed([*mixed], message, Invoke.carrying(message, carrier), timeout_s)

    async def _ask_mixed(
        self, targets: list[tuple[Target, bool]], message: Any, carrying: Invoke, timeout_s: float
    ) -> list[Any]:
        """Call processes of which some, those with False, are on nodes that take no carriers."""
        loop = self._loop
        asking = [
            loop.create_task(self._ask([to for to, is_able in targets if is_able], carrying, timeout_s)),
            loop.create_task(self._ask([to for to, is_able in targets if not is_able], message, timeout_s)),
        ]
        try:
            with_carrier, without = await asyncio.gather(*asking)
        finally:
            for each in asking:  # `gather` lets the other one go on where one of them raises.
                each.cancel()
        results = {True: iter(with_carrier), False: iter(without)}
        return [next(results[is_able]) for _, is_able in targets]

    async def _ask(self, targets: Sequence[Target], message: Any, timeout_s: float) -> list[Any]:
        """Call each process with the same message."""
        outbound = self._outbound
        asking = _Asking(self._codec, outbound, message, min(timeout_s, MAX_TIMEOUT_S))
        asked = asking.asked
        calls = [asking.ask(to) for to in targets]
        for session in {id(session): session for session, *_ in asked}.values():
            session.flush_batch()  # Nothing follows: they need not wait for the end of the turn.
        slot = outbound.wheel.enter(asking, asking.deadline, "", timeout_s) if asked else {}
        try:
            if asked and len(asked) == len(targets):
                results = await _outcomes(asked)
            else:
                results = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            slot.pop(asking, None)
            for session, ref, _, _, key in asked:
                session.call_ended(key)
                if ref in session.calls:
                    outbound.close_request(session, ref, asking.sender)
        for result in results:
            if isinstance(result, BaseException):
                outbound.count_failure(result)
                if not isinstance(result, FleetError):
                    raise result
        return results


class _Asking:
    """What all calls of one multicall share; to the wheel, they end together.

    Args:
        codec: packs the keys of processes.
        outbound: as for `Multicall`.
        message: for each process.
        timeout_s: seconds for all of them.

    Attributes:
        asked: the calls that were sent without a task of their own.
        deadline: on the loop's clock, in seconds.
        sender: on whose behalf they are sent: the current task.
    """

    __slots__ = (
        "_began", "_codec", "_keys", "_loop", "_message", "_outbound", "_payload", "_timeout_s",
        "_to_actor", "asked", "deadline", "sender",
    )  # fmt: skip

    def __init__(self, codec: Codec, outbound: Outbound, message: Any, timeout_s: float) -> None:
        self._codec = codec
        self._outbound = outbound
        self._loop = loop = outbound.waits.loop
        self._message = message
        self._to_actor = type(message) is Invoke
        self._payload: Payload = outbound.pack_payload(message)
        self._timeout_s = timeout_s
        self._began = began = loop.time()
        self._keys: dict[Key, bytes] = {}
        """The keys that were packed: processes of the same name on many nodes are usual."""
        self.asked: list[_Asked] = []
        self.deadline: float = began + timeout_s
        self.sender: Hashable = asyncio.current_task(loop)

    def ask(self, to: Target) -> Awaitable[Any]:
        """Send one call without a task of its own if that can be done at once.

        Returns:
            What has its outcome: a future. Or the call that must wait, stays on this node, or cannot be sent.
        """
        outbound = self._outbound
        try:
            session, key = outbound.route(to)
            if session is None:
                return self._ask_later(to)
            ref, extra_bytes = outbound.take_ref(), self._payload.extra_bytes
            packed = self._pack(session, key, ref, self._timeout_s)
            if session.admit(key, packed, self.sender, extra_bytes=extra_bytes, is_call=True) is not None:
                return self._ask_later(to)
        except (FleetError, TypeError, ValueError):
            return self._ask_later(to)  # It is raised again there, where it becomes a result.
        future = session.calls[ref] = self._loop.create_future()
        self.asked.append((session, ref, future, to, key))
        return future

    async def _ask_later(self, to: Target) -> Any:
        """Make one call that could not be sent at once, on behalf of ``sender``."""
        outbound, deadline, timeout_s, sender = self._outbound, self.deadline, self._timeout_s, self.sender
        session, key = outbound.route(to)
        if session is None:
            return await outbound.call_here(to, key, self._message, timeout_s, deadline)
        if session.obstacle(key, 0, sender) is not None:
            await outbound.wait_for_room(session, to, timeout_s, deadline, key, 0, sender)
        ref, extra_bytes = outbound.take_ref(), self._payload.extra_bytes
        packed = self._pack(session, key, ref, deadline - self._loop.time())
        return await outbound.request(session, to, ref, packed, timeout_s, deadline, sender, key, extra_bytes)

    def _pack(self, session: Session, key: Key, ref: int, timeout_s: float) -> Packed:
        """Pack one call. Raises: Draining: the node refuses new work, so that this is not sent."""
        drains, payload = self._outbound.in_flight, self._payload
        in_flight = drains.admit(session, self._began) if drains.is_watched else 0
        packed_to = self._keys.get(key)
        if packed_to is None:
            packed_to = self._keys[key] = self._codec.pack_value(key)
        packed = operations.packed_call(
            packed_to, payload.packed, ref, max(1, int(timeout_s * 1000)), in_flight, to_actor=self._to_actor
        )
        return payload.beside(packed) if payload.blobs else packed

    # `Waiting`, for the wheel.

    def done(self) -> bool:
        """Whether all calls have their outcomes: it leaves the wheel then."""
        return False

    def set_result(self, value: Any, /) -> None:
        """Do nothing: no reply is for all of them."""

    def set_exception(self, error: BaseException, /) -> None:  # noqa: ARG002  # each has its own
        """Let each call that has no outcome yet end: this is the deadline."""
        for _, _, future, to, _ in self.asked:
            expire(future, to, self._timeout_s)


async def _outcomes(asked: list[_Asked]) -> list[Any]:
    """Wait for the outcome of each call, one after the other. Returns as `asyncio.gather` does.

    Most replies come in the same few frames, so this task wakes less often than there are calls, and it goes
    on in the turn after the last reply. `gather` runs a callback for each reply, and goes on one turn later.
    """
    outcomes: list[Any] = []
    try:
        for _, _, future, _, _ in asked:
            try:
                outcomes.append(await future)
            except Exception as error:  # noqa: BLE001  # an outcome, as of `gather`
                outcomes.append(error.with_traceback(None))  # Otherwise it and this frame hold each other.
    except BaseException:
        for _, _, future, _, _ in asked[len(outcomes) :]:
            if future.done() and not future.cancelled():
                future.exception()  # Nobody looks at it any more, which asyncio would report.
        raise
    return outcomes
