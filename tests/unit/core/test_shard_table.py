"""Who owns a shard: facts in, effects out; and many tables that hear each other late converge."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from fleetlm.core.shard_table import (
    EPOCH_END,
    MAX_KINDS,
    MAX_PIECE_CLAIMS,
    Changed,
    Claim,
    Lost,
    Owner,
    ShardTable,
    Tell,
    shard_of,
)
from fleetlm.errors import InvalidName
from fleetlm.ids import Pid
from tests.sim.seeded import most_are_long

ME, PEER, THIRD = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2", "fleetlm@10.0.0.3"


def hosting(shards: int = 4) -> ShardTable:
    table = ShardTable(ME, 1)
    table.host("s", 7, shards)
    return table


def peer(table: ShardTable, node: str, *rows: list[int], shards: int = 4) -> list[Any]:
    return table.told(node, 2, ["hosts", [["s", 9, shards, list(rows)]]])


def test_a_key_has_the_same_shard_everywhere() -> None:
    assert [shard_of(key, 256) for key in ("s-42", "", "ä", "\ud800")] == [180, 180, 57, 104]
    assert {shard_of(f"s{number}", 8) for number in range(200)} == set(range(8))


def test_a_claim_is_told_and_owned_until_the_node_hosts_no_more() -> None:
    table = hosting()
    assert table.claim("s", {2: Claim(5, 5)}) == [Tell(["claim", "s", [[2, 5, 5]]]), Changed("s", (2,))]
    assert table.owner("s", 2) == Owner(Pid(ME, 1, 7), 5)
    assert table.unowned("s") == [0, 1, 3]
    assert list(table.own_facts(table.own_keys())) == [["hosts", [["s", 7, 4, [[2, 5, 5]]]]]]
    assert table.unhost("s") == [Tell(["unhost", "s"]), Changed("s", (2,))]
    assert table.unhost("s") == []
    assert (table.owner("s", 2), table.seen("s", 2), table.kinds(), table.shards("s")) == (None, 5, [], 0)


def test_a_host_is_heard_of_with_its_claims_and_goes_with_its_node() -> None:
    table = ShardTable(ME, 1)
    assert peer(table, PEER, [1, 5, 5]) == [Changed("s", (1,))]
    assert list(table.hosts("s")) == [PEER]
    assert (table.shards("s"), table.kinds(), table.owner("s", 1)) == (4, ["s"], Owner(Pid(PEER, 2, 9), 5))
    assert table.told(PEER, 2, ["claim", "s", [[0, 6, 6], [1, 7, 5]]]) == [Changed("s", (0, 1))]
    assert table.node_down(PEER) == [Changed("s", (1, 0))]
    assert table.node_down(PEER) == []
    assert (table.shards("s"), table.seen("s", 1)) == (0, 7)


@pytest.mark.parametrize(
    ("mine", "theirs", "is_mine"),
    [
        (Claim(5, 5), Claim(6, 6), True),  # The older term has kept the state all the time.
        (Claim(9, 5), Claim(6, 4), False),
        (Claim(5, 5), Claim(6, 5), False),  # The later step of a handoff.
        (Claim(6, 5), Claim(5, 5), True),
    ],
)
def test_of_two_claims_the_older_term_wins_then_the_higher_epoch(
    mine: Claim, theirs: Claim, is_mine: bool
) -> None:
    table = hosting()
    table.claim("s", {1: mine})
    effects = peer(table, PEER, [1, *theirs])
    owner = table.owner("s", 1)
    assert owner is not None
    assert (owner.pid.node == ME) is is_mine
    if is_mine:
        assert effects == [Changed("s", ())]
    else:
        assert effects == [
            Tell(["passed", "s", [[1, theirs.epoch, PEER]]]),
            Lost("s", 1, mine, Owner(Pid(PEER, 2, 9), theirs.epoch)),
            Changed("s", (1,)),
        ]
        assert table.own("s").claims == {}  # type: ignore[union-attr]
    assert table.seen("s", 1) == max(mine.epoch, theirs.epoch)


def test_of_equal_claims_both_nodes_pick_the_same() -> None:
    for shard in range(4):
        one, two = hosting(), ShardTable(PEER, 2)
        two.host("s", 9, 4)
        one.claim("s", {shard: Claim(5, 5)})
        two.claim("s", {shard: Claim(5, 5)})
        peer(one, PEER, [shard, 5, 5])
        two.told(ME, 1, ["hosts", [["s", 7, 4, [[shard, 5, 5]]]]])
        assert one.owner("s", shard) == two.owner("s", shard)


def test_a_shard_that_was_passed_on_is_not_free_while_its_new_owner_is_connected() -> None:
    table = hosting()
    peer(table, PEER, [1, 5, 5])
    peer(table, THIRD)
    table.told(PEER, 2, ["passed", "s", [[1, 6, THIRD]]])
    assert (table.owner("s", 1), table.unowned("s"), table.seen("s", 1)) == (None, [0, 2, 3], 6)
    table.told(THIRD, 2, ["claim", "s", [[1, 6, 5]]])
    assert table.owner("s", 1) == Owner(Pid(THIRD, 2, 9), 6)
    table.told(THIRD, 2, ["passed", "s", [[1, 7, PEER]]])
    assert table.unowned("s") == [0, 2, 3]
    table.node_down(PEER)
    assert table.unowned("s") == [0, 1, 2, 3]


def test_a_late_word_of_a_claim_that_has_come_and_gone_is_passed_over() -> None:
    table = hosting()
    peer(table, PEER, [1, 5, 5])
    peer(table, THIRD, [1, 7, 5])
    table.node_down(THIRD)
    peer(table, THIRD)
    table.told(PEER, 2, ["passed", "s", [[1, 7, THIRD]]])
    assert 1 in table.unowned("s")


def test_a_shard_passed_to_a_node_that_is_not_connected_is_free() -> None:
    table = hosting()
    peer(table, PEER, [1, 5, 5])
    table.told(PEER, 2, ["passed", "s", [[1, 6, THIRD]]])
    assert 1 in table.unowned("s")
    assert table.seen("s", 1) == 6
    table.heard_of("s", 1, 9)
    table.heard_of("s", 1, 8)
    assert table.seen("s", 1) == 9


def test_hosts_that_cut_a_kind_otherwise_own_nothing_here() -> None:
    table = hosting()
    peer(table, PEER, [1, 5, 5], shards=8)
    assert (table.shards("s"), table.owner("s", 1)) == (4, None)
    other = ShardTable(THIRD, 3)
    peer(other, PEER, shards=8)
    with pytest.raises(ValueError, match="other nodes have cut 's' into 8 shards"):
        other.host("s", 1, 4)


def test_what_cannot_be_hosted_changes_nothing() -> None:
    table = hosting()
    for kind, shards, error in (("s", 4, ValueError), ("t", 0, ValueError), ("t", 5_000, ValueError)):
        with pytest.raises(error):
            table.host(kind, 1, shards)
    with pytest.raises(InvalidName):
        table.host("", 1, 4)
    for number in range(MAX_KINDS - 1):
        table.host(f"k{number}", 1, 1)
    with pytest.raises(ValueError, match="at most"):
        table.host("one more", 1, 1)


def test_a_snapshot_is_cut_between_kinds() -> None:
    table = ShardTable(ME, 1)
    for number in range(4):
        table.host(f"k{number}", 1, 2_000)
        table.claim(f"k{number}", {shard: Claim(1, 1) for shard in range(2_000)})
    facts = list(table.own_facts(["k0", "k1", "k2", "k3", "gone"]))
    assert [[row[0] for row in rows] for _, rows in facts] == [["k0", "k1", "k2"], ["k3"]]
    assert MAX_PIECE_CLAIMS == 6_000
    other = ShardTable(PEER, 2)
    for fact in facts:
        other.told(ME, 1, fact)
    assert other.owner("k3", 1_999) == Owner(Pid(ME, 1, 1), 1)


def test_each_change_of_the_own_rows_is_announced_before_it_is_made() -> None:
    before: list[Any] = []
    table = ShardTable(ME, 1, lambda kind: before.append(list(table.own_facts([kind]))))
    table.host("s", 7, 4)
    table.claim("s", {1: Claim(5, 5)})
    peer(table, PEER, [1, 6, 5])
    table.unhost("s")
    claimed = [["hosts", [["s", 7, 4, [[1, 5, 5]]]]]]
    empty = [["hosts", [["s", 7, 4, []]]]]
    assert before == [[], empty, claimed, empty]


NONSENSE = [
    None, [], ["hosts"], ["hosts", [["s", 9, 4, []]]], ["hosts", [["t", 0, 4, []]]],
    ["hosts", [["t", 9, 0, []]]], ["hosts", [["t", 9, 5_000, []]]], ["hosts", [["t", 9, 4, [[4, 1, 1]]]]],
    ["hosts", [["t", 9, 4, [[0, 1, 2]]]]], ["hosts", [["t", 9, 4, [[0, 1, 1], [0, 2, 2]]]]],
    ["hosts", [["t", 9, 4, [[0, 1 << 63, 1]]]]], ["hosts", [["t", 9, 4, []], ["t", 9, 4, []]]],
    ["hosts", [["", 9, 4, []]]], ["hosts", [[1, 9, 4, []]]], ["claim", "s", []], ["claim", "t", [[0, 1, 1]]],
    ["claim", "s", [[0, 0, 0]]], ["claim", "s", [[0, 1]]], ["claim", "s", [["0", 1, 1]]], ["passed", "s", []],
    ["passed", "s", [[0, 1, "x"]]], ["passed", "s", [[1, 0, "x"]]], ["passed", "s", [[1, 9, "x" * 200]]],
    ["passed", "s", [[1, 9, "x"], [1, 9, "x"]]], ["unhost", "t"], ["unhost"], ["drop", "s", [1]],
]  # fmt: skip


@pytest.mark.parametrize("fact", NONSENSE, ids=repr)
def test_nonsense_changes_nothing(fact: Any) -> None:
    table = hosting()
    peer(table, PEER, [1, 5, 5])
    with pytest.raises(ValueError, match=r".+"):
        table.told(PEER, 2, fact)
    with pytest.raises(ValueError, match="itself"):
        table.told(ME, 1, ["unhost", "s"])
    assert table.owner("s", 1) == Owner(Pid(PEER, 2, 9), 5)
    assert table.kinds() == ["s"]


def test_a_node_hosts_so_many_kinds_at_most() -> None:
    table = ShardTable(ME, 1)
    for number in range(MAX_KINDS):
        table.told(PEER, 2, ["hosts", [[f"k{number}", 9, 4, []]]])
    with pytest.raises(ValueError, match="more than"):
        table.told(PEER, 2, ["hosts", [["one more", 9, 4, []]]])


class Mesh:
    """Tables that tell each other over links with delays, which break and come up again."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"shards {seed}")
        self.tables = {f"n{number}@10.0.0.{number}": ShardTable("", 0) for number in range(1, 5)}
        for number, name in enumerate(self.tables, 1):
            self.tables[name] = ShardTable(name, number)
            self.tables[name].host("s", 1, 3)
        self.links: dict[tuple[str, str], deque[Any]] = {}
        """From, to → facts on the way; a link that is down has no entry."""
        for one in self.tables:
            for two in self.tables:
                self.up(one, two)

    def up(self, one: str, two: str) -> None:
        if one != two and (one, two) not in self.links:
            for sender, to in ((one, two), (two, one)):
                table = self.tables[sender]
                self.links[sender, to] = deque(list(table.own_facts(table.own_keys())))

    def down(self, one: str, two: str) -> None:
        for sender, to in ((one, two), (two, one)):
            if self.links.pop((sender, to), None) is not None:
                self.perform(to, self.tables[to].node_down(sender))

    def perform(self, name: str, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                for (sender, _), facts in self.links.items():
                    if sender == name:
                        facts.append(effect.fact)

    def claim(self, name: str, shard: int) -> None:
        """Do as a host does: take what is free, or a higher epoch for what others have heard of."""
        table = self.tables[name]
        own = table.own("s")
        assert own is not None
        seen, mine = table.seen("s", shard), own.claims.get(shard)
        if mine is not None and seen > mine.epoch:
            self.perform(name, table.claim("s", {shard: Claim(seen + 1, mine.term)}))
        elif shard in table.unowned("s"):
            self.perform(name, table.claim("s", {shard: Claim(seen + 1, seen + 1)}))

    def hand_over(self, name: str, shard: int) -> None:
        table = self.tables[name]
        own = table.own("s")
        assert own is not None
        mine, seen = own.claims.get(shard), table.seen("s", shard)
        to = self.rng.choice(list(self.tables))
        other = self.tables[to]
        if mine is None or (name, to) not in self.links or other.seen("s", shard) > seen:
            return
        self.perform(to, other.claim("s", {shard: Claim(seen + 1, mine.term)}))

    def deliver(self) -> bool:
        waiting = [link for link, facts in self.links.items() if facts]
        if not waiting:
            return False
        sender, to = self.rng.choice(waiting)
        fact = self.links[sender, to].popleft()
        self.perform(to, self.tables[to].told(sender, list(self.tables).index(sender) + 1, fact))
        return True

    def step(self) -> None:
        rng, names = self.rng, list(self.tables)
        one, two = rng.sample(names, 2)
        match rng.randrange(8):
            case 0:
                self.down(one, two)
            case 1:
                self.up(one, two)
            case 2:
                self.hand_over(one, rng.randrange(3))
            case 3 | 4:
                self.claim(one, rng.randrange(3))
            case _:
                for _ in range(rng.randrange(6)):
                    self.deliver()

    def settle(self) -> None:
        for one in self.tables:
            for two in self.tables:
                self.up(one, two)
        for _ in range(4):
            while self.deliver():
                pass
            for shard in range(3):
                for name in self.tables:
                    self.claim(name, shard)
                    while self.deliver():
                        pass

    def check(self) -> None:
        """One owner for each shard, the same for all, which alone claims it."""
        tables = list(self.tables.values())
        for shard in range(3):
            owners = {table.owner("s", shard) for table in tables}
            assert len(owners) == 1, owners
            (owner,) = owners
            assert owner is not None
            claims = {table.node: table.own("s").claims.get(shard) for table in tables}  # type: ignore[union-attr]
            assert [node for node, claim in claims.items() if claim] == [owner.pid.node]
            assert all(not table.kind("s").expected for table in tables)


@pytest.mark.parametrize("first", most_are_long(range(0, 4_000, 100), 3))
def test_all_tables_agree_in_the_end(first: int) -> None:
    for seed in range(first, first + 100):
        mesh = Mesh(seed)
        for _ in range(80):
            mesh.step()
        mesh.settle()
        try:
            mesh.check()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def test_one_fact_cannot_tell_of_more_kinds_than_a_node_may_host() -> None:
    table = ShardTable(ME, 1)
    rows = [[f"k{number}", 9, 4, []] for number in range(MAX_KINDS + 1)]
    with pytest.raises(ValueError, match="more than 64"):
        table.told(PEER, 2, ["hosts", rows])
    table.told(PEER, 2, ["hosts", rows[2:]])
    with pytest.raises(ValueError, match="more than 64"):
        table.told(PEER, 2, ["hosts", rows[:2]])
    table.told(PEER, 2, ["hosts", rows[:1]])
    assert len(table.kinds()) == MAX_KINDS


def test_kinds_that_nobody_hosts_are_forgotten_one_day_unless_they_are_used_here() -> None:
    table = ShardTable(ME, 1)
    used = table.kind("used")
    for kind in ("used", *(f"k{number}" for number in range(MAX_KINDS + 1)), "k0"):
        table.told(PEER, 2, ["hosts", [[kind, 9, 4, [[1, 5, 5]]]]])
        table.told(PEER, 2, ["unhost", kind])
    assert [table.seen(kind, 1) for kind in ("used", "k0", "k1", "k2", "k64")] == [5, 5, 0, 5, 5]
    assert table.kind("used") is used
    peer(table, PEER, [1, 5, 5])
    table.node_down(PEER)
    assert [table.seen(kind, 1) for kind in ("s", "k2", "k3")] == [5, 0, 5]


def test_claims_count_once_the_node_that_cut_the_kind_otherwise_is_gone() -> None:
    table = ShardTable(ME, 1)
    peer(table, PEER, [1, 5, 5], shards=2)
    peer(table, THIRD, [1, 9, 9], [3, 9, 9], shards=4)
    assert (table.shards("s"), table.owner("s", 3)) == (2, None)
    table.node_down(PEER)
    assert table.shards("s") == 4
    assert table.owner("s", 1) == table.owner("s", 3) == Owner(Pid(THIRD, 2, 9), 9)


def test_no_epoch_is_beyond_what_a_peer_accepts() -> None:
    table = hosting()
    table.claim("s", {1: Claim(5, 5)})
    peer(table, PEER, [2, EPOCH_END - 1, 1])
    assert [table.next_epoch("s", shard) for shard in range(3)] == [1, 6, EPOCH_END - 1]


def test_a_claim_that_is_dropped_is_free_again_for_every_node() -> None:
    table = hosting()
    table.claim("s", {1: Claim(5, 5), 2: Claim(6, 6)})
    assert table.count_unowned("s") == 2
    assert table.drop("s", [1, 3]) == [Tell(["dropped", "s", [1]]), Changed("s", (1,))]
    assert table.drop("s", [1, 3]) == []
    assert (table.owner("s", 1), table.seen("s", 1), table.count_unowned("s")) == (None, 5, 3)
    peer(table, PEER, [0, 7, 7], [3, 8, 8])
    assert table.count_unowned("s") == 1
    assert table.told(PEER, 2, ["dropped", "s", [0, 3]]) == [Changed("s", (0, 3))]
    assert (table.owner("s", 0), table.count_unowned("s")) == (None, 3)
    for gone in ([0], [4], ["3"], [True]):
        with pytest.raises(ValueError, match="is dropped, not held"):
            table.told(PEER, 2, ["dropped", "s", gone])


def test_of_a_kind_that_is_not_known_no_shard_is_unowned() -> None:
    assert ShardTable(ME, 1).count_unowned("s") == 0


def test_one_fact_of_a_peer_has_few_claims() -> None:
    table = ShardTable(ME, 1)
    claims = [[shard, 5, 5] for shard in range(MAX_PIECE_CLAIMS // 2)]
    hosts = [[f"k{number}", 9, 4_000, claims] for number in range(3)]
    with pytest.raises(ValueError, match="claims to shards in one fact"):
        table.told(PEER, 2, ["hosts", hosts])
    assert table.kinds() == []
    table.told(PEER, 2, ["hosts", hosts[:2]])
