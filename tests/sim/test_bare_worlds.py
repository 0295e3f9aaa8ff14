"""Thousands of stories of entities and singletons on bare nodes, and each rule of theirs broken once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fleetlm import FleetError
from fleetlm.core import shard_plan, shard_table
from fleetlm.core.quorum import Lease
from fleetlm.core.shard_table import ShardTable
from fleetlm.entities import handoff, seat
from fleetlm.entities.entity_calls import EntityCalls
from fleetlm.entities.handoff import Handoff
from fleetlm.entities.hosting import Hosting
from fleetlm.entities.majority import Majority
from fleetlm.entities.settling import Settling
from fleetlm.errors import NodeLost
from fleetlm.leaders.family import Family
from fleetlm.leaders.offering import Offering
from tests.sim import bare_world
from tests.sim.bare_stores import BareStoreWorld
from tests.sim.seeded import most_are_long, no_logs
from tests.sim.vote_mutants import VOTE_MUTANTS

Patch = pytest.MonkeyPatch
MUTANT_SEEDS = 200
"""Most mutants are noticed in the first ten."""


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    with no_logs():
        yield


@pytest.mark.parametrize("first", most_are_long([0, *range(30, 3_500, 120)], 1))
def test_without_faults_nothing_is_lost_and_nothing_moves_that_need_not(first: int) -> None:
    worlds = [bare_world.play(seed, "available", faults=False) for seed in seeds(first, 120)]
    assert sum(world.moved for world in worlds) >= len(worlds) // 4


@pytest.mark.parametrize("first", most_are_long([0, *range(30, 3_000, 120)], 1))
def test_whatever_fails_each_append_has_one_right_outcome_and_in_the_end_all_agree(first: int) -> None:
    for seed in seeds(first, 120):
        bare_world.play(seed, "available", faults=True)


@pytest.mark.parametrize("first", most_are_long([0, *range(15, 1_700, 60)], 1))
def test_with_a_quorum_no_shard_is_served_twice_at_any_instant_whatever_fails(first: int) -> None:
    for seed in seeds(first, 60, 15):
        bare_world.play(seed, "quorum", faults=True)


@pytest.mark.long
@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("first", range(0, 800, 100))
def test_with_a_store_nothing_acknowledged_is_lost_and_nothing_is_written_over(
    first: int, faults: bool
) -> None:
    for seed in range(first, first + 100):
        bare_world.play(seed, "available", faults=faults, kind=BareStoreWorld)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 300, 50))
def test_with_a_quorum_nothing_is_lost_without_faults(first: int) -> None:
    for seed in range(first, first + 50):
        bare_world.play(seed, "quorum", faults=False)


def seeds(first: int, count: int, few: int = 30) -> range:
    """The seeds of one test: the few of `make test`, or a block of the others."""
    return range(few) if first == 0 else range(first, first + count)


def test_a_seed_runs_the_same_course_each_time() -> None:
    one, two = (bare_world.play(3, "quorum", faults=True) for _ in range(2))
    assert one.times.events == two.times.events
    assert {name: each.ran for name, each in one.ledger.appends.items()} == {
        name: each.ran for name, each in two.ledger.appends.items()
    }


# Rules, each broken once.


def _never(*_args: Any, **_options: Any) -> None:
    """Nothing is done."""


def _true(*_args: Any, **_options: Any) -> bool:
    return True


async def _at_once(*_args: Any, **_options: Any) -> bool:
    return True


async def _nothing_is_left(*_args: Any) -> list[str]:
    return []


async def _no_entity_ends(_handoff: Handoff, _shard: int) -> str:
    return ""


def _serve_what_is_not_owned(
    host: Hosting, call: Any, _request: Any, key: str, _epoch: int, _mode: int
) -> Any:
    return host.seats.get(key) or host._activate(call, key, shard_table.shard_of(key, host.options.shards))


def _keep_all_free(_kind: str, _shards: int, free: Any, counts: dict[str, int]) -> dict[int, str]:
    """Each host sees itself first among the hosts."""
    return dict.fromkeys(free, next(iter(counts)))


def _hand_over_one_more(
    kind: str, shards: int, owned: Any, own: str, counts: dict[str, int], limit: int | None = None
) -> dict[int, str]:
    return EXCESS(kind, shards, owned, own, {**counts, own: counts[own] + 1}, limit)


def _own_share_rounded_up(
    kind: str, shards: int, owned: Any, own: str, counts: dict[str, int], limit: int | None = None
) -> dict[int, str]:
    """A host hands over nothing until it has more than the share rounded up."""
    most = shard_plan.share(shards, len(counts))
    return EXCESS(kind, shards, owned, own, counts, limit) if counts[own] > most else {}


def _forget_epochs(_table: ShardTable, _kind: str, _claims: Any) -> None: ...


def _discard_casts(seat: Any, reason: str = "passivated") -> Any:
    seat.box.discard(lambda message: type(message).__name__ == "Invoke")
    return CLOSE(seat, reason)


def _never_lapse(_lease: Lease, _now: float) -> bool:
    return False


async def _take_what_is_granted(guard: Majority, wants: Any) -> dict[int, int]:
    """A node claims before a majority has acknowledged a beat that names the shard."""
    granted = await guard._ask_for(wants)
    for shard in granted:
        guard._lease._since[shard] = 0
    return granted


async def _ask_nobody(guard: Majority, wants: Any) -> dict[int, int]:
    """A node that takes a shard over does not ask the others."""
    for want in wants:
        guard._lease._since[want.shard] = 0
    return {want.shard: want.epoch for want in wants}


def _begin_all(_guard: Majority, handlers: Any) -> Any:
    return handlers


def _kill_seats_alone(offering: Offering, seats: Any) -> None:
    Hosting._kill(offering, seats)


async def _repeat_all(calls: EntityCalls, request: Any, timeout_s: float | None, mode: int = 0) -> Any:
    try:
        return await CALL(calls, request, timeout_s, mode)
    except NodeLost:
        return await CALL(calls, request, timeout_s, mode)


CALL = EntityCalls.call
EXCESS, CLOSE = shard_plan.excess, seat.Seat.close
CALM, STORM, QUORUM = ("available", False), ("available", True), ("quorum", True)
STORED = {
    "a winner keeps what it has loaded before the loser stored",
    "what could not be stored stays without its shard",
}
"""Those of stories with a store."""

FIRST_SEEDS = {
    "all that is free is claimed": 50,
    "a shard that was passed on looks free": 120,
    "a member votes at its start": 45,
    "an owner does not look at its clock": 35,
    "what is granted is claimed at once": 30,
    "what waited in a frozen node runs": 35,
    "a fenced run of the singleton goes on": 145,
    "what could not be stored stays without its shard": 180,
}
"""Where to begin with those that few seeds notice: shortly before the first one that does."""
MUTANTS: dict[str, tuple[Any, str, Any, tuple[Any, bool]]] = {
    "what looks free is claimed at once": (Settling, "is_over", _true, CALM),
    "all that is free is claimed": (handoff, "assign", _keep_all_free, CALM),
    "more than is beyond the share is handed over": (handoff, "excess", _hand_over_one_more, CALM),
    "a newcomer gets nothing while all have their share": (handoff, "excess", _own_share_rounded_up, CALM),
    "a shard is handed over while its entities live": (Handoff, "_end_entities", _no_entity_ends, CALM),
    "states do not move along": (handoff, "_parts", lambda _: [], CALM),
    "a drain waits for nothing": (Handoff, "drained", _nothing_is_left, CALM),
    "casts that wait are dropped": (seat.Seat, "close", _discard_casts, CALM),
    "a shard that stays keeps its epoch": (Hosting, "renew", _never, CALM),
    "a shard that was passed on looks free": (ShardTable, "_expect", _never, CALM),
    "who is not the owner serves": (Hosting, "_find", _serve_what_is_not_owned, STORM),
    "epochs are not remembered": (ShardTable, "_note", _forget_epochs, STORM),
    "the loser goes on": (Hosting, "lost", _never, STORM),
    "a winner keeps what it has loaded before the loser stored": (Hosting, "load_anew", _never, STORM),
    "what could not be stored stays without its shard": (Hosting, "stays", _never, STORM),
    "an append with an unknown outcome is repeated": (EntityCalls, "call", _repeat_all, STORM),
    **{rule: (*broken, QUORUM) for rule, broken in VOTE_MUTANTS.items()},
    "a lease that was over goes on": (Lease, "lapsed", _never_lapse, QUORUM),
    "what is granted is claimed at once": (Majority, "acquire", _take_what_is_granted, QUORUM),
    "no majority is asked": (Majority, "acquire", _ask_nobody, QUORUM),
    "what is fenced lives on": (Hosting, "_kill", _never, QUORUM),
    "what waited in a frozen node runs": (Majority, "fenced", _begin_all, QUORUM),
    "a fenced run of the singleton goes on": (Offering, "_kill", _kill_seats_alone, QUORUM),
    "a handover of the singleton does not wait": (Family, "ended", _at_once, CALM),
    "a restarted run keeps its epoch": (Offering, "raise_epoch", _at_once, CALM),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: Patch) -> None:
    broken, attribute, mutant, (safety, faults) = MUTANTS[name]
    monkeypatch.setattr(broken, attribute, mutant)
    first = FIRST_SEEDS.get(name, 0)
    for seed in range(first, first + MUTANT_SEEDS):
        try:
            bare_world.play(seed, safety, faults=faults, kind=BareStoreWorld if name in STORED else None)
        except (AssertionError, FleetError, ValueError):
            return
    pytest.fail(f"nothing was noticed in {MUTANT_SEEDS} seeds")
