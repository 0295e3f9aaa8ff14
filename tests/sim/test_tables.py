"""Tables of programs on whole nodes: the API, and seeded stories in which copies converge."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import pytest

import fleetlm
from fleetlm import MessageTooLarge, Node, NotSerializable, Process, RowDropped, RowPut, TooManyRows
from fleetlm.directory.subscriptions import Subscription
from fleetlm.testing import Fleet, SimCluster
from tests.sim.seeded import ONE_PORT, most_are_long, run_stories


@fleetlm.message("tests.capacity")
@dataclasses.dataclass
class Capacity:
    gpus: int


async def idle(process: Process) -> None:
    await asyncio.get_running_loop().create_future()


async def test_rows_are_seen_everywhere_and_go_with_their_node(fleet: Fleet) -> None:
    one, two, three = await fleet.start(3)
    flags = two.table("flags")
    flags.put("beta", Capacity(8))
    one.table("flags").put("beta", None)
    await fleet.until(lambda: len(three.table("flags").get("beta")) == 2)
    assert three.table("flags").get("beta") == {two.name: Capacity(8), one.name: None}
    assert flags.own("beta") == Capacity(8)
    assert three.table("flags").of(two.name, "beta") == Capacity(8)
    assert three.table("flags").own("beta", "none") == "none"
    assert three.table("other").keys() == []

    late = await fleet.node()
    await fleet.until(lambda: late.table("flags").of(two.name, "beta") == Capacity(8))
    await fleet.crash(two)
    await fleet.until(lambda: late.table("flags").get("beta") == {one.name: None})
    assert one.table("flags").drop("beta")
    assert not one.table("flags").drop("beta")
    await fleet.until(lambda: late.table("flags").keys() == [])


async def test_rows_are_gone_before_anything_is_told_of_the_loss_of_their_node(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    holder = two.spawn(idle)
    two.table("flags").put("beta", 1)
    watch = one.groups.watch("g")
    two.groups.join("g", *[holder] * 600)  # Their leaving is told in steps, some hundred in one turn.
    for _ in range(600):
        await anext(watch)
    assert one.table("flags").get("beta") == {two.name: 1}
    leaving = asyncio.ensure_future(anext(watch))
    await fleet.crash(two)
    await leaving
    assert one.table("flags").get("beta") == {}
    assert one.groups.members("g") == []
    watch.close()


@pytest.mark.parametrize(
    ("topic", "fact"),
    [
        ("rows", ["put", "flags", [["a", b"\x01"], ["b", b"\xc1"]]]),
        ("members", ["metas", [["g", 1, b"\xc1"]]]),
    ],
)
async def test_a_value_of_a_peer_that_is_none_costs_its_connection_only(
    fleet: Fleet, topic: str, fact: object
) -> None:
    one, two = await fleet.start(2)
    events = two.events()
    one.groups._replicated._replication.tell(topic, fact)
    await fleet.until(lambda: two.info().peers[0].connections == 2)
    seen = [type(await anext(events)).__name__ for _ in range(3)]
    assert seen == ["NodeUp", "NodeDown", "NodeUp"]
    assert two.table("flags").keys() == []
    one.table("flags").put("a", 2)
    await fleet.until(lambda: two.table("flags").get("a") == {one.name: 2})
    events.close()


async def test_a_subscription_begins_with_the_present_and_sees_each_change(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    table = one.table("flags")
    table.put("a", 1)
    table.put("a", 2)
    await fleet.until(lambda: two.table("flags").of(one.name, "a") == 2)
    watch, of_b = two.table("flags").watch(), two.table("flags").watch("b")
    assert await anext(watch) == RowPut("flags", one.name, "a", 2)
    table.put("a", 3)
    table.put("b", "x")
    table.drop("a")
    one.table("other").put("b", 1)
    seen = [await anext(watch) for _ in range(3)]
    assert seen == [
        RowPut("flags", one.name, "a", 3),
        RowPut("flags", one.name, "b", "x"),
        RowDropped("flags", one.name, "a", "dropped"),
    ]
    assert await anext(of_b) == seen[1]
    await fleet.crash(one)
    assert await anext(of_b) == RowDropped("flags", one.name, "b", "noconnection")
    watch.close()
    of_b.close()


async def test_what_cannot_be_a_row_changes_nothing(fleet: Fleet) -> None:
    node = await fleet.node(max_rows=1)
    table = node.table("flags")
    table.put("a", 1)
    with pytest.raises(NotSerializable):
        table.put("a", object())
    with pytest.raises(MessageTooLarge, match=r"Settings\.max_row_bytes"):
        table.put("a", b"x" * 5_000)
    with pytest.raises(TooManyRows):
        table.put("b", 1)
    with pytest.raises(fleetlm.InvalidName):
        node.table("")
    assert table.get("a") == {node.name: 1}
    assert repr(table) == f"<SharedTable 'flags' of {node.name}>"


async def test_a_reader_cannot_change_the_row_of_the_writer(fleet: Fleet) -> None:
    node = await fleet.node()
    value = [1]
    node.table("flags").put("a", value)
    value.append(2)
    assert node.table("flags").own("a") == [1]


async def test_many_rows_reach_a_node_that_comes_later(fleet: Fleet) -> None:
    one = await fleet.node()
    table = one.table("many")
    for number in range(3_000):
        table.put(f"key {number}", "x" * 50)
    two = await fleet.node()
    table.put("key 2999", "changed meanwhile")
    await fleet.until(lambda: len(two.table("many").keys()) == 3_000)
    await fleet.until(lambda: two.table("many").of(one.name, "key 2999") == "changed meanwhile")


class View:
    """A reader that knows a table by its subscription alone."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.rows: dict[tuple[str, str], Any] = {}
        self.watch: Subscription[RowPut | RowDropped] = node.table("t").watch()
        self.task = asyncio.get_running_loop().create_task(self.read())

    async def read(self) -> None:
        async for event in self.watch:
            if isinstance(event, RowPut):
                self.rows[event.node, event.key] = event.value
            else:
                del self.rows[event.node, event.key]

    def truth(self) -> dict[tuple[str, str], Any]:
        table = self.node.table("t")
        return {(node, key): value for key in table.keys() for node, value in table.get(key).items()}  # noqa: SIM118


async def play(seed: int) -> None:
    async with SimCluster(seed=seed, settings=ONE_PORT) as cluster:
        await write_and_break(cluster, random.Random(f"tables {seed}"))


async def write_and_break(cluster: SimCluster, rng: random.Random) -> None:
    """Nodes write, drop, crash and are cut off; in the end all copies, and all readers, agree."""
    await cluster.start(3)
    await cluster.mesh(timeout=20)
    views = {node.name: View(node) for node in cluster.nodes.values()}
    for _ in range(25):
        node = rng.choice(list(cluster.nodes.values()))
        table, key = node.table("t"), f"k{rng.randrange(5)}"
        match rng.randrange(12):
            case 0:
                cluster.partition([node])
            case 1:
                cluster.heal()
            case 2 if len(cluster.nodes) > 2:
                await cluster.crash(node)
                views.pop(node.name).task.cancel()
            case 3:
                (fresh,) = await cluster.start()
                views[fresh.name] = View(fresh)
            case 4 | 5:
                table.drop(key)
            case _:
                table.put(key, rng.randrange(1_000))
        await asyncio.sleep(rng.choice((0, 0, 0, 0.01, 0.5, 9)))
    cluster.heal()
    await cluster.mesh(timeout=60)
    await asyncio.sleep(1)
    nodes = list(cluster.nodes.values())
    own = {
        (node.name, key): node.table("t").own(key)
        for node in nodes
        for key in node.table("t").keys()  # noqa: SIM118
        if node.name in node.table("t").get(key)
    }
    for node in nodes:
        assert views[node.name].truth() == own, node.name
        assert views[node.name].rows == own, node.name
    for view in views.values():
        view.watch.close()
        await asyncio.gather(view.task, return_exceptions=True)


@pytest.mark.parametrize("first", most_are_long(range(0, 300, 10), 2))
def test_all_copies_and_all_readers_converge(first: int) -> None:
    run_stories(play, range(first, first + 10))
