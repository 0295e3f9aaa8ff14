"""What docs/entities.md shows."""

from __future__ import annotations

from typing import Any

from fleetlm import Entity, Node, Quorum, handler
from fleetlm.testing import Fleet


class Session(Entity):
    async def load(self, state: Any) -> None:
        self.lines: list[str] = list(state or ())

    async def save(self) -> Any:
        return self.lines

    @handler
    async def append(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)


async def main(node: Node) -> int:
    await node.entities.host(Session, "sessions")  # on the nodes that host
    sessions = node.entities.ref(Session, "sessions")  # on any node
    return await sessions["s-42"].within(5).call(Session.append, "hi")


class Cart(Entity):
    async def load(self, state: Any) -> None:
        self.items: set[str] = set(state or ())

    async def save(self) -> Any:
        return self.items

    async def merge(self, other: Any) -> None:
        self.items |= other

    @handler
    async def add(self, item: str) -> int:
        self.items.add(item)
        return len(self.items)


async def host_with_a_quorum(node: Node) -> None:
    await node.entities.host(Cart, "carts", safety=Quorum(expected=3))


async def test_carts_with_a_quorum(fleet: Fleet) -> None:
    nodes = await fleet.start(3)
    for node in nodes:
        await host_with_a_quorum(node)
    cart = nodes[0].entities.ref(Cart, "carts")["c"]
    assert await cart.within(60).call(Cart.add, "apple") == 1


async def test_the_guide(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    assert await main(one) == 1
    assert await main(two) == 2


async def test_both_sides_of_a_partition_fill_one_cart(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    for node in (one, two):
        await node.entities.host(Cart, "carts", shards=8)
    ours, theirs = (node.entities.ref(Cart, "carts")["c"] for node in (one, two))
    await ours.call(Cart.add, "apple")
    fleet.partition([one])
    await fleet.until(lambda: two.name not in one.list() and one.name not in two.list())
    assert {await ours.call(Cart.add, "pear"), await theirs.call(Cart.add, "plum")} == {1, 2}
    fleet.heal()
    places = [node.entities.ref(Cart, "carts") for node in (one, two)]
    await fleet.until(lambda: bool(one.list()) and len({carts.where("c") for carts in places}) == 1)
    await fleet.sleep(5)
    assert await theirs.call(Cart.add, "apple") == await ours.call(Cart.add, "apple") == 3
