"""Two processes on two nodes that link and unlink at will: every state, not a sample."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from fleetlm.core.links import Effect, Links, Tell
from fleetlm.ids import Pid

NODES = ("n@10.0.0.1", "n@10.0.0.2")


class Pair:
    """Two processes on two nodes that link and unlink, and nothing else."""

    PIDS = (Pid(NODES[0], 1, 1), Pid(NODES[1], 1, 1))

    def __init__(self, steps: tuple[tuple[str, int], ...]) -> None:
        self.tables = [Links(pid.node, 1, lambda number: number == 1, lambda _: 1) for pid in self.PIDS]
        self.last = ["unlink", "unlink"]
        self.roads: tuple[list[Effect], list[Effect]] = ([], [])
        for step, me in steps:
            self.take(step, me)

    def take(self, step: str, me: int) -> None:
        if step == "deliver":
            tell = self.roads[me].pop(0)
            assert isinstance(tell, Tell)
            assert self.tables[1 - me].told(NODES[me], 1, tell.signal, lambda _: None) == []
            return
        self.last[me] = step
        act = self.tables[me].linked if step == "link" else self.tables[me].unlinked
        self.roads[me].extend(act(1, self.PIDS[1 - me]))

    def state(self) -> str:
        """All there is, with the acts of each side counted from the first that anybody still knows."""
        seen: tuple[dict[int, int], dict[int, int]] = ({}, {})

        def acts(side: int, numbers: Any) -> list[tuple[int, int]]:
            mine = [(side if number > 0 else 1 - side, abs(number)) for number in numbers]
            return [(of, seen[of].setdefault(number, len(seen[of]))) for of, number in mine]

        links = [
            [acts(me, ends.links[other]) for ends in table._ends.values() for other in ends.links]
            for me, table in enumerate(self.tables)
        ]
        roads = [
            [(tell.signal[0], acts(me, tell.signal[3] if tell.signal[0] == "unlink" else tell.signal[3:]))
             for tell in road if isinstance(tell, Tell)]
            for me, road in enumerate(self.roads)
        ]  # fmt: skip
        return repr((links, roads, self.last))

    def settled(self) -> list[int]:
        """How many links each side has once everything has arrived."""
        for me, road in enumerate(self.roads):
            while road:
                self.take("deliver", me)
        return [table.counts()[0] for table in self.tables]


@pytest.mark.parametrize(("signals", "states"), [(2, 500), pytest.param(3, 1_000, marks=pytest.mark.long)])
def test_however_two_processes_link_and_unlink_both_ends_agree_and_what_both_said_last_holds(
    signals: int, states: int
) -> None:
    """Every state that so many signals in each direction allow."""
    seen, todo = set[str](), deque[tuple[tuple[str, int], ...]]([()])
    while todo:
        steps = todo.popleft()
        pair = Pair(steps)
        if (state := pair.state()) in seen or max(map(len, pair.roads)) > signals:
            continue
        seen.add(state)
        moves = [("deliver", me) for me in (0, 1) if pair.roads[me]]
        moves += [(act, me) for me in (0, 1) for act in ("link", "unlink")]
        todo.extend((*steps, move) for move in moves)
        links = pair.settled()
        assert links[0] == links[1], steps
        if pair.last[0] == pair.last[1]:
            assert links[0] == (pair.last[0] == "link"), steps
    assert len(seen) > states
