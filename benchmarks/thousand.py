"""A thousand nodes in the simulator: what the protocol itself needs, without a network and its machines."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.helper import Parent
from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Benchmark, Metric, Options, Variant

MEMBERS, MEMBERS_QUICK = 1_000, 150
"""A thousand nodes are half a million pairs: they need many minutes of CPU, and some 15 GB of memory."""
TIMEOUT_S = 3_600.0


def variants(options: Options) -> list[Variant]:
    """So many nodes, and a tenth of them."""
    members = options.size(MEMBERS, MEMBERS_QUICK)
    return [
        ServersAndDriver(
            f"fleetlm, {count:,} simulated nodes",
            floor=floor,
            server="start_programs:bare",
            driver="thousand:simulate",
            config={"loop": options.loop, "members": count},
            servers=0,
            timeout_s=TIMEOUT_S,
        )
        for count, floor in ((members, False), (members // 10, True))
    ]


BENCHMARK = Benchmark(
    "thousand",
    f"simulated nodes form a full mesh; {MEMBERS:,} of them only without --quick, since that takes long",
    [
        Metric("formed_s", "virtual time until all are connected", "s", more_is_better=False),
        Metric("pair_s", "CPU for each pair of nodes", "µs", more_is_better=False, scale=1e6),
    ],
    variants,
    most_rounds=1,
    share=3,
)


def simulate(parent: Parent, config: dict[str, Any]) -> None:
    """Start the nodes on virtual time."""
    from fleetlm import Settings  # noqa: PLC0415
    from fleetlm.testing.cluster import SimCluster  # noqa: PLC0415
    from fleetlm.testing.loop import run  # noqa: PLC0415

    members = config["members"]

    async def form() -> None:
        settings = Settings(dns_query="workers", max_peers=2 * members)
        async with SimCluster(1, settings=settings) as cluster:
            clock = time.process_time()
            await cluster.start(members)
            formed_s = await cluster.mesh(600)
            pairs = members * (members - 1) / 2
            parent.report(formed_s=formed_s, pair_s=(time.process_time() - clock) / pairs)

    parent.report(ready=True)
    for _ in parent.read_commands():
        run(form())
