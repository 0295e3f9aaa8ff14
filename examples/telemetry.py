"""Telemetry: a program measures what its nodes do, with functions of its own.

``python telemetry.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).

The first node calls a model on the second one, too impatiently, too often, and under a name that nobody has.
One observer counts the outcomes of its calls; another one tells what happens on the second node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter

from fleetlm import (
    Actor,
    CallEnded,
    Child,
    ChildRestarted,
    FleetError,
    HandlerEnded,
    MessageDropped,
    Node,
    Settings,
    Supervisor,
    handler,
)

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24383"))


class Model(Actor):
    """Serves one request at a time, and runs out of memory when it is told to."""

    @handler
    async def infer(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "a result"

    @handler
    async def load(self) -> None:
        raise MemoryError("out of memory")


def count_calls(node: Node) -> Counter[str]:
    """Count the outcomes of the calls of a node from now on."""
    outcomes: Counter[str] = Counter()
    node.telemetry.attach(lambda event: outcomes.update([event.outcome]), kinds={CallEnded})
    return outcomes


def tell(event: HandlerEnded | ChildRestarted | MessageDropped) -> None:
    """An observer: a plain function of one event. It runs on the node's event loop, so it must not block."""
    match event:
        case HandlerEnded(actor=actor, handler=name, outcome=outcome, queued_s=queued_s):
            waited = queued_s is not None and queued_s > 0.1
            print(f"{actor}.{name} ended: {outcome}{', after a wait' if waited else ''}")
        case ChildRestarted(supervisor=supervisor, child=child, reason=reason):
            print(f"{supervisor} restarts {child}: {reason}")
        case MessageDropped(why=why, count=count):
            print(f"dropped {count} message(s): {why}")


async def main() -> None:
    """Start the nodes, observe them, and let things happen."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)  # What fails below is intended.
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with Node.start(first) as here, Node.start(second) as there:
        await here.ready(1, timeout=5)
        there.spawn(Supervisor([Child("model", Model, register="model")]), name="tree")
        model = here.ref(Model, "model", at=there.name).within(5)

        outcomes = count_calls(here)
        watching = there.telemetry.attach(tell, kinds={HandlerEnded, ChildRestarted, MessageDropped})

        await asyncio.gather(model.call(Model.infer, 0.3), model.call(Model.infer, 0.0))
        for call in (
            model.within(0.1).call(Model.infer, 5.0),
            model.call(Model.load),
            here.call(("nobody", there.name), "a question"),
        ):
            with contextlib.suppress(FleetError):  # The observer counts it.
                await call
        await here.send(("nobody", there.name), "a message")
        await model.cast(Model.load)  # It has no caller to be told, so it ends the actor.
        restarted = asyncio.Event()
        there.telemetry.attach(lambda _: restarted.set(), kinds={ChildRestarted})
        await restarted.wait()
        watching.detach()
        print(dict(sorted(outcomes.items())))


if __name__ == "__main__":
    asyncio.run(main())
