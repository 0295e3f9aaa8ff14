"""What it costs a cluster that its members report gauges, and that all nodes pick by load.

The nodes are simulated: the figures are CPU of the whole program, with both ends of each connection, divided
by the nodes and by the ticks of `Settings.gauge_s`. Each report goes to all other nodes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.helper import Parent
from benchmarks.helpers import Mode, Session
from benchmarks.registry import Benchmark, Metric, Options, Variant

NODES = 64
GROUP = "models"
REPORT, PICK, IDLE = "report", "pick", "idle"


def variants(options: Options) -> list[Variant]:
    """A member on each node that reports at each tick; the same, and a pick on each node; neither."""
    session = Session(
        "simulated nodes",
        floor=False,
        server="start_programs:bare",
        driver="gauges:simulate",
        config={"loop": options.loop, "members": NODES, "ticks": options.size(50, 20)},
        servers=0,
    )
    return [
        Mode("fleetlm, each node reports", session, REPORT),
        Mode("fleetlm, each node reports and picks by load", session, PICK),
        Mode("fleetlm, idle", session, IDLE, floor=True),
    ]


BENCHMARK = Benchmark(
    "gauges",
    f"{NODES} simulated nodes, with a member on each that reports gauges ten times a second",
    [Metric("tick_s", "one tick of one node", "µs CPU", more_is_better=False, scale=1e6)],
    variants,
    share=1,
)


def simulate(parent: Parent, config: dict[str, Any]) -> None:
    """Start the nodes on virtual time, and let ticks pass; a command says what happens in them."""
    from fleetlm import Process, Settings  # noqa: PLC0415
    from fleetlm.testing.cluster import SimCluster  # noqa: PLC0415
    from fleetlm.testing.loop import run  # noqa: PLC0415

    async def idle(process: Process) -> None:
        await process.receive()

    async def form() -> None:
        count, ticks = config["members"], config["ticks"]
        settings = Settings(dns_query="workers", max_peers=2 * count)
        async with SimCluster(1, settings=settings) as cluster:
            nodes = await cluster.start(count)
            await cluster.mesh(600)
            members = [node.groups.join(GROUP, node.spawn(idle)) for node in nodes]
            await asyncio.sleep(settings.newcomer_s)  # Virtual seconds: the members are new no more.
            parent.report(ready=True)
            for what in parent.read_commands():  # It blocks the loop, which has no time of its own.
                clock = time.process_time()
                for tick in range(ticks):
                    for number, node in enumerate(nodes):
                        if what != IDLE:
                            member = members[number]
                            assert member is not None
                            member.report(load=float(tick + number), queue=float(number))
                        if what == PICK:
                            node.groups.pick(GROUP, "least_loaded")
                    await asyncio.sleep(settings.gauge_s)
                parent.report(tick_s=(time.process_time() - clock) / (ticks * count))

    run(form())
