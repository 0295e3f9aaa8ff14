"""What a row that a peer makes a node keep costs Python's garbage collector, which stops the loop."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm import Node, Pid, Process, Ref
from fleetlm.core.group_table import GroupTable
from fleetlm.directory import members
from fleetlm.node import parts_of
from fleetlm.testing import SimCluster, run

PEER: Any = SimpleNamespace(name="fleetlm@10.9.9.9", incarnation=7)
ROWS = 1_000
Make = Callable[[Node, Pid], Callable[[int], object]]


def groups(node: Node, _pid: Pid) -> Callable[[int], object]:
    told = parts_of(node).replication.told
    return lambda number: told(PEER, "groups", ["join", {f"g{number}": [number]}])


def names(node: Node, _pid: Pid) -> Callable[[int], object]:
    told = parts_of(node).replication.told
    return lambda number: told(PEER, "names", ["has", [[f"n{number}", number, b"\xc0", 0]]])


def monitors(node: Node, pid: Pid) -> Callable[[int], object]:
    told = parts_of(node).signals.links.told
    return lambda number: told(
        PEER.name, 7, ["monitor", Ref(PEER.name, 7, number), pid.number], lambda _: None
    )


def links(node: Node, pid: Pid) -> Callable[[int], object]:
    told = parts_of(node).signals.links.told
    return lambda number: told(
        PEER.name, 7, ["link", Pid(PEER.name, 7, number), pid.number, 1], lambda _: None
    )


async def idle(process: Process) -> None:
    await process.receive()


@pytest.mark.parametrize(("make", "most"), [(groups, 0.1), (names, 4.1), (monitors, 0.1), (links, 0.1)])
def test_a_row_of_a_peer_is_few_objects_for_the_collector(
    make: Make, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_NEWCOMERS", 4)

    async def main() -> None:
        async with SimCluster(seed=3) as cluster:
            (node,) = await cluster.start(1)
            row = make(node, node.spawn(idle))
            before = visited()
            for number in range(1, 1 + ROWS):
                row(number)
            assert visited() - before <= most * ROWS

    run(main())


def visited() -> int:
    """Return how many objects a full pass of the collector visits."""
    gc.collect()  # It also finds out which tuples hold no objects, and leaves them out from then on.
    gc.collect()
    return len(gc.get_objects())


def test_a_group_of_which_somebody_asks_or_with_a_second_member_is_kept_as_members() -> None:
    table = GroupTable("fleetlm@10.0.0.1", 1, 100, lambda _: True)
    table.told(PEER.name, 7, ["join", {"asked": [1], "shared": [1, 2], "left": [3]}])
    first = table.members("asked")
    assert [*first] == [Pid(PEER.name, 7, 1)]
    assert table.members("asked") is first, "what was made for picks with a key is kept"
    assert table.members("shared").processes == 2
    table.told(PEER.name, 7, ["leave", {"left": [3]}])
    assert table.groups() == ["asked", "shared"]
