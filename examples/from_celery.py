"""Tasks, retries and a work queue without a broker, for programmers who know Celery.

``python from_celery.py`` runs two nodes in one program; docs/from-ray-celery.md explains each part.
"""

from __future__ import annotations

import asyncio
import logging
import os

from fleetlm import Actor, Child, Node, NotDelivered, Settings, Supervisor, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24388"))


# @app.task
class Mailer(Actor):
    """Takes one request at a time. Its mailbox is bounded, and senders wait while it is full."""

    async def init(self) -> None:
        self.node.groups.join("mailers", self.pid)

    @handler
    async def send(self, to: str, text: str) -> str:
        if not text:
            raise ValueError("nothing to say")
        return f"sent to {to}"


async def deliver(node: Node, to: str, text: str) -> str:
    """Like ``autoretry_for``: try again, on another worker, only what has certainly not run."""
    for _ in range(5):
        try:
            mailer = node.ref(Mailer, node.groups.pick("mailers", by="round_robin"))
            return await mailer.within(2.0).call(Mailer.send, to, text)
        except NotDelivered:
            await asyncio.sleep(0.1)
    raise TimeoutError(f"no worker could be asked to write to {to}")


async def members(node: Node, group: str, count: int) -> None:
    """Wait until ``node`` sees this many members: other nodes see a join one hop later."""
    changes = node.groups.watch(group)
    while len(node.groups.members(group)) < count:
        await anext(changes)
    changes.close()


async def main() -> None:
    """Run four workers on two nodes; then one node leaves."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    # In Celery: celery worker --concurrency=2.
    workers = Supervisor([Child(f"mailer {number}", Mailer) for number in range(2)])
    async with Node.start(first) as here:
        there = await Node.start(second)
        for node in (here, there):
            node.spawn(workers, name="workers")
        await here.ready(1, timeout=5)
        await members(here, "mailers", 4)

        # In Celery: send.delay(...).get().
        print(await deliver(here, "ada@example.org", "hello"))

        # Workers that are gone are no longer members, so the next request goes to another one.
        await there.stop()
        print(await deliver(here, "alan@example.org", "hello"))
        print(len(here.groups.members("mailers")), "workers are left")


if __name__ == "__main__":
    asyncio.run(main())
