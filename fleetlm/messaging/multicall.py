"""One request to many processes, encoded once, with one outcome for each.

Calls that can be sent at once get no task of their own, which would cost more than all the rest; one timer
ends them all. Those that must wait for room, and those of this node, run in tasks of their own, on behalf of
the caller: their requests stay behind what it sent before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
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
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        payload = self._outbound.pack_payload(message)
        deadline = self._loop.time() + timeout_s
        sender = asyncio.current_task(self._loop)
        asked: list[_Asked] = []
        calls = [
            self._ask_at_once(to, message, payload, timeout_s, sender, asked)
            or self._ask_later(to, message, payload, timeout_s, deadline, sender)
            for to in targets
        ]
        for session in {id(session): session for session, *_ in asked}.values():
            session.flush_batch()  # Nothing follows: they need not wait for the end of the turn.
        timer = self._loop.call_at(deadline, _expire_all, asked, timeout_s)
        try:
            if asked and len(asked) == len(targets):
                results = await _outcomes(asked)
            else:
                results = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            timer.cancel()
            for session, ref, _, _, key in asked:
                session.call_ended(key)
                self._outbound.close_request(session, ref, sender)
        for result in results:
            if isinstance(result, BaseException):
                self._outbound.count_failure(result)
                if not isinstance(result, FleetError):
                    raise result
        return results

    def _ask_at_once(
        self, to: Target, message: Any, payload: Payload, timeout_s: float, sender: Hashable,
        asked: list[_Asked],
    ) -> asyncio.Future[Any] | None:  # fmt: skip
        """Send one call without a task of its own.

        Returns:
            The future of its outcome; None if it must wait, stays on this node, or cannot be sent.
        """
        try:
            session, key = self._outbound.route(to)
            if session is None:
                return None
            ref = self._outbound.take_ref()
            packed = self._pack(session, key, message, payload, ref, timeout_s, self._loop.time())
            extra_bytes = payload.extra_bytes
            if session.admit(key, packed, sender, extra_bytes=extra_bytes, is_call=True) is not None:
                return None
        except (FleetError, TypeError, ValueError):
            return None  # `_ask_later` raises it again, where it becomes a result.
        future = session.calls[ref] = self._loop.create_future()
        asked.append((session, ref, future, to, key))
        return future

    async def _ask_later(
        self, to: Target, message: Any, payload: Payload, timeout_s: float, deadline: float, sender: Hashable
    ) -> Any:
        """Make one call that `_ask_at_once` could not, on behalf of ``sender``."""
        outbound = self._outbound
        session, key = outbound.route(to)
        if session is None:
            return await outbound.call_here(to, key, message, timeout_s, deadline)
        if session.obstacle(key, 0, sender) is not None:
            await outbound.wait_for_room(session, to, timeout_s, deadline, key, 0, sender)
        ref = outbound.take_ref()
        left_s = deadline - self._loop.time()
        packed = self._pack(session, key, message, payload, ref, left_s, deadline - timeout_s)
        extra_bytes = payload.extra_bytes
        return await outbound.request(session, to, ref, packed, timeout_s, deadline, sender, key, extra_bytes)

    def _pack(
        self, session: Session, key: Key, message: Any, payload: Payload, ref: int, timeout_s: float,
        began: float,
    ) -> Packed:  # fmt: skip
        """Pack one call. Raises: Draining: the node refuses new work, so that this is not sent."""
        in_flight = self._outbound.in_flight.admit(session, began)
        packed_to, timeout_ms = self._codec.pack_value(key), max(1, int(timeout_s * 1000))
        to_actor = type(message) is Invoke
        return payload.beside(
            operations.packed_call(packed_to, payload.packed, ref, timeout_ms, in_flight, to_actor=to_actor)
        )


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


def _expire_all(asked: list[_Asked], timeout_s: float) -> None:
    for _, _, future, to, _ in asked:
        expire(future, to, timeout_s)
