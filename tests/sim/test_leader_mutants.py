"""With a rule of singletons or cron jobs broken, the test that holds it must fail."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fleetlm.core.cron_slots import SlotMemory
from fleetlm.entities.handoff import Handoff
from fleetlm.entities.hosting import Hosting
from fleetlm.leaders import leader as leader_module
from fleetlm.leaders.family import Family
from fleetlm.leaders.leader import Leader
from fleetlm.leaders.offering import Offering, SingletonHandoff
from fleetlm.leaders.run_restarts import RunRestarts
from fleetlm.leaders.slots import SlotTeller
from fleetlm.testing import Fleet
from fleetlm.testing.fleet import NotReached
from tests.sim import test_cron, test_singletons

pytestmark = pytest.mark.long

Story = Callable[[Fleet], Coroutine[Any, Any, None]]


async def _do_not_wait(_family: Family, _timeout_s: float) -> bool:
    return True


def _kill_nothing(_family: Family, _reason: str) -> None: ...


async def _load_beside(leader: Leader, _state: Any) -> None:
    """Begin beside what is left of a former run."""
    leader._offering.family = Family(leader._offering.family._local)
    await leader._begin()


async def _load_without_a_pause(leader: Leader, _state: Any) -> None:
    leader.send_after(0.0, leader_module._Begin())


def _count_everything(restarts: RunRestarts, now: float, _reason: Any) -> bool:
    restarts.next_at = now
    return not restarts._intensity.allows(now, "crashed")


async def _keep_epoch(_offering: Offering) -> bool:
    return True


def _read_epoch(offering: Offering) -> int:
    """Read the epoch, whether the lease is over or not."""
    return offering.table.seen(offering.kind, 0)


def _kill_the_run_alone(family: Family, reason: str) -> None:
    root = None if family.root is None else family._local.process(family.root)
    if root is not None:
        family._local.stop_process(root.pid.number, reason, at_once=True)


async def _tell_nobody(teller: SlotTeller, epoch: int, slot_ms: int, *, is_reset: bool = False) -> bool:
    teller._memory.told(epoch, slot_ms, is_reset=is_reset)
    return True


async def _ask_nobody(_teller: SlotTeller, _epoch: int) -> bool:
    return True


def _forget(_memory: SlotMemory) -> None:
    return None


MUTANTS: dict[str, tuple[type, str, Any, Story]] = {
    "a fenced run goes on": (
        Offering, "_kill", Hosting._kill,
        test_singletons.test_with_a_quorum_a_node_that_is_cut_off_stops_before_another_one_begins,
    ),
    "children of a fenced run go on": (
        Family, "kill", _kill_the_run_alone,
        test_singletons.test_a_lease_that_ends_kills_a_whole_tree_at_once,
    ),
    "the epoch is read after the lease": (
        Offering, "epoch", _read_epoch,
        test_singletons.test_when_the_lease_is_over_the_epoch_cannot_be_read_even_before_the_run_is_killed,
    ),
    "the loser goes on": (
        Family, "kill", _kill_nothing,
        test_singletons.test_available_runs_on_both_sides_and_in_the_end_on_one,
    ),
    "a handover does not wait": (
        Family, "ended", _do_not_wait,
        lambda fleet: test_singletons.test_a_drain_hands_it_over_without_overlap(fleet, {}),
    ),
    "a restart keeps its epoch": (
        Offering, "raise_epoch", _keep_epoch,
        lambda fleet: test_singletons.test_it_begins_anew_with_pauses_and_higher_epochs(fleet, {}),
    ),
    "what is free is claimed at once": (
        SingletonHandoff, "claim_free", Handoff.claim_free,
        test_singletons.test_it_does_not_begin_before_it_was_free_and_quiet_for_the_settle_time,
    ),
    "a former run is left alone": (
        Leader, "load", _load_beside,
        test_singletons.test_a_killed_entity_leaves_no_second_run,
    ),
    "the pause ends with the entity": (
        Leader, "load", _load_without_a_pause,
        test_singletons.test_the_end_of_the_entity_of_a_run_makes_its_pause_no_shorter,
    ),
    "what returns counts as a failure": (
        RunRestarts, "ended", _count_everything,
        test_singletons.test_what_returns_is_never_given_up,
    ),
    "slots are not told": (
        SlotTeller, "tell", _tell_nobody,
        test_cron.test_the_others_know_of_a_slot_before_it_begins,
    ),
    "slots are not asked": (
        SlotTeller, "ask", _ask_nobody,
        test_cron.test_a_newcomer_knows_which_slots_were_missed,
    ),
    "what others say of a slot is ignored": (
        SlotTeller, "tell", _tell_nobody,
        test_cron.test_a_newcomer_whose_clock_is_behind_repeats_no_slot,
    ),
    "slots do not move along": (
        SlotMemory, "save", _forget,
        test_cron.test_a_handover_carries_the_slots_along,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_broken_rule_is_noticed(name: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, attribute, mutant, story = MUTANTS[name]
    monkeypatch.setattr(broken, attribute, mutant)
    with pytest.raises((AssertionError, NotReached, pytest.fail.Exception)):
        await story(fleet)
