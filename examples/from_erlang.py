"""A gen_server, a supervisor tree, pg and a global name, for programmers who know Erlang.

``python from_erlang.py`` runs two nodes in one program; docs/from-erlang.md explains each part.
"""

from __future__ import annotations

import asyncio
import logging
import os

import fleetlm
from fleetlm import Actor, Child, Down, Node, Process, Settings, Supervisor, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24384"))


# gen_server
class Counter(Actor):
    """``handle_call`` and ``handle_cast`` are methods; ``handle_info`` gets all other messages."""

    def __init__(self, start: int) -> None:
        self.value = start

    async def init(self) -> None:
        self.node.groups.join("counters", self.pid)

    @handler
    async def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    async def handle_info(self, message: object) -> None:
        print(f"handle_info: {message}")


# supervisor
TREE = Supervisor(
    [
        Child("counter", Counter, args=(10,), register="counter"),
        Child("audit", Supervisor([Child("log", Counter, args=(0,), restart="transient")])),
    ],
    strategy="rest_for_one",
    max_restarts=3,
    period_s=5.0,
)


# spawn, link, monitor
async def killer(process: Process, pid: fleetlm.Pid) -> None:
    """Like ``erlang:monitor/2`` and ``exit(Pid, kill)``: the monitor fires exactly once."""
    ref = process.monitor(pid)
    process.exit(pid, "kill")
    match await process.receive():
        case Down(ref=got, reason=reason) if got == ref:
            print(f"down: {reason}")


async def main() -> None:
    """Run the tree on node ``there`` and use it from node ``here``."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with Node.start(first) as here, Node.start(second) as there:
        there.spawn(TREE, name="tree")
        await here.ready(1, timeout=5)

        # In Erlang: gen_server:call(Ref, {add, 5}, 2000).
        counter = here.ref(Counter, "counter", at=there.name)
        print(await counter.within(2.0).call(Counter.add, 5))

        # In Erlang: gen_server:cast(Ref, {add, 1}), and Pid ! Message.
        await counter.cast(Counter.add, 1)
        await counter.send("raw")

        # In Erlang: pg:monitor(counters), pg:get_members(counters). The second member is started meanwhile.
        changes = here.groups.watch("counters")
        while len(here.groups.members("counters")) < 2:
            await anext(changes)
        changes.close()
        print(len(here.groups.members("counters")), "members")

        # In Erlang: global:register_name(leader, Pid), global:whereis_name(leader).
        pid = await here.whereis("counter", at=there.name)
        assert pid is not None
        await here.registry.register("leader", pid)
        print(await here.registry.wait_for("leader", timeout=5) == pid)

        # Kill the counter; the supervisor starts another one.
        await here.join(here.spawn(killer, pid), timeout=5)
        await asyncio.sleep(0.2)
        print(await counter.call(Counter.add, 0))


if __name__ == "__main__":
    asyncio.run(main())
