"""A counter that survives its node: one process counts, another one stands by on a second node.

A sum that a caller has received is never lost, because the standby gets it before the caller does.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetlm import Call, Down, Node, NotDelivered, OutcomeUnknown, Process

COUNTER = "counter"
STANDBY = "standby"


async def counter(process: Process, value: int = 0, standby_at: str | None = None) -> None:
    """Reply to ``("add", amount)`` with the new sum, and to ``"value"`` with the sum."""
    async for message in process.mailbox:
        match message:
            case Call(message=("add", int(amount))):
                value += amount
                if standby_at is not None:
                    await copy(process, value, standby_at)
                message.reply(value)
            case Call(message="value"):
                message.reply(value)


async def copy(process: Process, value: int, standby_at: str) -> None:
    """Send the sum to the standby. The counter goes on counting if the standby is gone."""
    try:
        await process.node.call((STANDBY, standby_at), ("copy", value), timeout=1)
    except (NotDelivered, OutcomeUnknown) as error:
        print(f"counting without a standby: {error}")


async def standby(process: Process, counter_at: str) -> None:
    """Keep a copy of the counter, and become the counter when the counter's node or process ends."""
    value = 0
    process.monitor((COUNTER, counter_at))
    async for message in process.mailbox:
        match message:
            case Call(message=("copy", int(sum_there))):
                value = sum_there
                message.reply()
            case Down():
                process.node.spawn(counter, value, name=COUNTER)
                return


async def add(node: Node, at: Sequence[str], amount: int = 1) -> int:
    """Add at the first of these nodes that has the counter, and return the sum.

    Raises:
        NotDelivered: no node of ``at`` has the counter; nothing was added.
        OutcomeUnknown: the amount may have been added; whether to try again is the caller's decision.
    """
    *others, last = at
    for name in others:
        try:
            return await ask(node, name, ("add", amount))
        except NotDelivered:
            continue  # The request never ran, so it is safe to ask the next node.
    return await ask(node, last, ("add", amount))


async def ask(node: Node, at: str, request: object) -> int:
    """Ask the counter of one node."""
    reply: int = await node.call((COUNTER, at), request, timeout=2)
    return reply
