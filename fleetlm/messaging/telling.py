"""Says how calls begin and end, where somebody wants to know it; see `fleetlm.taps`."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.taps import outcome_of
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.targets import Target
    from fleetlm.messaging.waits import Waits


async def tell_of(waits: Waits, call: Coroutine[Any, Any, Any], to: Target, message: Any, weight: int) -> Any:
    """Await a call, and say that it begins and how it ends. Returns and raises what the call does.

    Args:
        waits: has the taps.
        call: that was chosen to be measured; `Node.call` and `ActorSender.call` ask the sampler.
        to: whom it asks.
        message: what it asks.
        weight: how many calls it stands for.
    """
    handler, taps, now = _handler_in(message), waits.taps, waits.loop.time
    if taps.call_started is not None:
        taps.call_started(to, handler)
    began, outcome = now(), "ok"
    try:
        return await call
    except BaseException as error:
        outcome = outcome_of(error)
        raise
    finally:
        if taps.call_ended is not None:
            taps.call_ended(to, handler, outcome, now() - began, weight)


async def tell_of_many(
    waits: Waits, calls: Coroutine[Any, Any, list[Any]], targets: Sequence[Target], message: Any
) -> list[Any]:
    """Do as `tell_of` for a multicall, whose calls have the time of the whole."""
    handler, taps, now = _handler_in(message), waits.taps, waits.loop.time
    if taps.call_started is not None:
        for to in targets:
            taps.call_started(to, handler)
    began, outcomes = now(), [""] * len(targets)
    try:
        results = await calls
        outcomes = [outcome_of(each) if isinstance(each, BaseException) else "ok" for each in results]
        return results
    except BaseException as error:
        outcomes = [outcome_of(error)] * len(targets)
        raise
    finally:
        if taps.call_ended is not None:
            seconds = now() - began
            for to, outcome in zip(targets, outcomes, strict=True):
                taps.call_ended(to, handler, outcome, seconds, 1)


def _handler_in(message: Any) -> str:
    """Return the name of the handler that a message asks for; empty for other messages."""
    return message.name if type(message) is Invoke else ""
