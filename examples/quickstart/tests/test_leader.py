"""README's test: a standby takes over when the leader's node dies, on a simulated cluster."""

from __future__ import annotations

from fleetlm import AlreadyRegistered, Process
from fleetlm.testing import Fleet


async def candidate(process: Process) -> None:
    """Stand by until the name is free, then lead."""
    registry = process.node.registry
    changes = registry.watch("leader")
    while registry.whereis("leader") != process.pid:
        try:
            await registry.register("leader", process.pid)
        except AlreadyRegistered:
            await anext(changes)
    await process.receive()


async def test_the_standby_takes_over(fleet: Fleet) -> None:
    one, two, three = await fleet.start(3)  # three nodes, connected with each other
    leader = one.spawn(candidate)
    await fleet.until(lambda: three.registry.whereis("leader") == leader)
    standby = two.spawn(candidate)

    await fleet.crash(one)  # as SIGKILL does
    await fleet.until(lambda: three.registry.whereis("leader") == standby)
