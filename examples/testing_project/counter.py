"""A counter that survives its node: one process counts, another one stands by on a second node.

What a caller was told is never lost: the standby knows of a sum before the caller does.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetlm import Call, Down, Node, NotDelivered, OutcomeUnknown, Process

COUNTER = "counter"
STANDBY = "standby"


async def counter(process: Process, value: int = 0, standby_at: str | None = None) -> None:
    """Answers ``("add", amount)`` with the new sum, and ``"value"``."""
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
    """Let the standby know. A standby that is gone stops nobody from counting."""
    try:
        await process.node.call((STANDBY, standby_at), ("copy", value), timeout=1)
    except (NotDelivered, OutcomeUnknown) as error:
        print(f"counting without a standby: {error}")


async def standby(process: Process, counter_at: str) -> None:
    """Keeps a copy of the counter on another node, and is the counter once that one is gone."""
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
        NotDelivered: none of them has it; nothing was added.
        OutcomeUnknown: it may have been added, so to try again is the caller's decision.
    """
    *others, last = at
    for name in others:
        try:
            return await ask(node, name, ("add", amount))
        except NotDelivered:
            continue  # It never ran, so another one may be asked.
    return await ask(node, last, ("add", amount))


async def ask(node: Node, at: str, request: object) -> int:
    """Ask the counter of one node."""
    reply: int = await node.call((COUNTER, at), request, timeout=2)
    return reply
