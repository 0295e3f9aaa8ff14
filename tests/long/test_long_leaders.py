"""A singleton on three real nodes that are killed and frozen; a database checks the epochs of its writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.patience import allowed_s, slowness
from tests.system.leader_ledger import FencedDatabase, Write, complaints
from tests.system.program_fleet import STORE, ProgramFleet

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.alone]
NODES = range(2, 5)
SETTLE_S = 1.0
LEASE_S = 1.5
LEASE_MAX_S = 6.0
QUIET_S = 5.0
"""Seconds until another node runs it, beyond lease and settle time, on a machine that does nothing else."""
WAIT_S = 20.0


class LeaderFleet(ProgramFleet):
    """The nodes, which run `leader_worker`.

    Args:
        folder: for the database and the logs.
        lease_s: of the connections; and of the quorum, if there is one.
        has_quorum: whether the singleton has one.
    """

    def __init__(self, folder: Path, lease_s: float, *, has_quorum: bool) -> None:
        self.path = str(folder / STORE)
        env = {
            "LEADER_FOLDER": str(folder),
            "LEADER_DATABASE": self.path,
            "LEADER_NODES": str(len(NODES)),
            "LEADER_LEASE_S": str(lease_s if has_quorum else 0),
            "LEADER_SETTLE_S": str(SETTLE_S),
            "FLEETLM_NODE_TIMEOUT_MS": str(int(lease_s * 1_000)),
        }
        with FencedDatabase.opened(self.path) as database:
            database.make()
        self.has_quorum = has_quorum
        super().__init__(folder, "leader_worker:main", NODES, env)

    def complaints(self) -> list[str]:
        """See `ProgramFleet`."""
        with FencedDatabase.opened(self.path) as database:
            return complaints(database.writes(), has_quorum=self.has_quorum)

    def last(self) -> Write | None:
        """Return the last write."""
        with FencedDatabase.opened(self.path) as database:
            return database.last()

    def wait_for_writer(self, other_than: str = "") -> Write:
        """Return the last write, once another run than this one writes."""
        self.wait(lambda: (last := self.last()) and last.run != other_than, WAIT_S, "nobody runs it", 0.1)
        last = self.last()
        assert last is not None
        return last

    def number_of(self, write: Write) -> int:
        """Return the number of the node that wrote."""
        return next(number for number in self.nodes if self.fleet.name(number) == write.node)

    def took_s(self, after: Write, since: float) -> float:
        """Return the seconds from then until another run than that one wrote first."""
        with FencedDatabase.opened(self.path) as database:
            return min(each.at for each in database.writes() if each.token > after.token) - since


@pytest.mark.deadline(120)
@pytest.mark.parametrize("has_quorum", [False, True], ids=["available", "quorum"])
def test_one_run_at_a_time_writes_where_its_node_is_killed_or_frozen(
    tmp_path: Path, has_quorum: bool
) -> None:
    lease_s = min(LEASE_MAX_S, LEASE_S * slowness(1.0))
    took: dict[str, float] = {}
    with LeaderFleet(tmp_path, lease_s, has_quorum=has_quorum) as fleet:
        first = fleet.wait_for_writer()
        killed = fleet.number_of(first)
        killed_at = fleet.end(killed)
        del fleet.programs[killed]
        second = fleet.wait_for_writer(first.run)
        took["kill -9"] = fleet.took_s(first, killed_at)
        fleet.start(killed)
        fleet.wait_until_ready()

        frozen = fleet.number_of(second)
        frozen_at = fleet.freeze(frozen)
        try:
            third = fleet.wait_for_writer(second.run)
            took["SIGSTOP"] = fleet.took_s(second, frozen_at)
        finally:
            thawed_at = fleet.thaw(frozen)

        def ended() -> set[str]:
            with FencedDatabase.opened(fleet.path) as database:
                return {each.run for each in database.met() if each.what == "ended"} & {second.run, third.run}

        fleet.wait(ended, WAIT_S, "two runs go on")
        (loser,) = ended()
        fleet.wait_for_writer(loser)
        assert third.node != second.node
        wrong = fleet.complaints()
        with FencedDatabase.opened(fleet.path) as database:
            writes, met = database.writes(), database.met()
    print(f"seconds until another node wrote: { ({what: round(s, 2) for what, s in took.items()}) }")
    assert wrong == []
    late = [each.run for each in met if each.what == "refused"]
    print(f"{len(writes)} writes were accepted, and {len(late)} of former runs refused")
    if has_quorum:
        assert loser == second.run
        assert [each for each in writes if each.run == second.run and each.at > thawed_at] == []
        assert late in ([], [second.run]), "it had read its epoch right before it was frozen"
    else:
        assert loser == third.run, "what has gone on without a break stays, under an epoch above both"
    assert took["kill -9"] < allowed_s(QUIET_S) + lease_s * 1.25 + SETTLE_S
    assert took["SIGSTOP"] < allowed_s(QUIET_S) + lease_s * 2.25 + SETTLE_S
