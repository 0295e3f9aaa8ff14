"""The cookie of a running cluster is changed, node by node."""

from __future__ import annotations

from typing import Any

from fleetlm.settings import Settings
from fleetlm.testing import SimCluster, run

OLD, NEW = "old-cookie-0123456789", "new-cookie-0123456789"
STEPS: tuple[dict[str, Any], ...] = (
    {"cookie": OLD, "other_cookies": (NEW,)},
    {"cookie": NEW, "other_cookies": (OLD,)},
    {"cookie": NEW, "other_cookies": ()},
)


def test_a_cookie_is_changed_by_three_rolling_restarts_without_a_split() -> None:
    async def main() -> None:
        settings = Settings(dns_query="cluster.test", cookie=OLD)
        async with SimCluster(seed=4, settings=settings) as cluster:
            nodes = await cluster.start(3)
            await cluster.mesh(timeout=30)
            for step in STEPS:
                for node in nodes:
                    ip = node.name.partition("@")[2]
                    await cluster.stop(node)
                    await cluster.start_at(ip, **step)
                    await cluster.mesh(timeout=60)
                nodes = list(cluster.nodes.values())

    run(main())
