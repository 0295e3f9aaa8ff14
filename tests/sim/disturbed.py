"""A world in which one disturbance at a time comes over a cluster."""

from __future__ import annotations

import random

from fleetlm import Node
from fleetlm.testing import SimCluster


class Disturbed:
    """What worlds have in common: of drains, of singletons and of entities."""

    cluster: SimCluster
    rng: random.Random

    def nodes(self) -> list[Node]:
        return list(self.cluster.nodes.values())

    def disturb(self, what: str, node: Node) -> None:
        self.calm_down()
        match what:
            case "partition":
                self.cluster.partition([node])
            case "one way":
                self.cluster.partition_one_way([node], [self.rng.choice(self.nodes())])
            case "freeze":
                self.cluster.freeze(node)
            case "stall":
                self.cluster.stall(node)

    def calm_down(self) -> None:
        self.cluster.heal()
        for each in self.nodes():
            self.cluster.thaw(each)
            self.cluster.unstall(each)
