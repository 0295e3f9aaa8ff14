"""Soak runs (see soak.py) of the first seeds, and what such a block of runs must contain.

Replay a seed that failed with ``python -m tests.sim.soak SEED --trace``, and add it to FAILED_ONCE.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.seeded import most_are_long, named
from tests.sim.soak import blocks, play, play_all, play_all_short

FAILED_ONCE = [
    1011,  # the Down of a process overtook the large messages that it had sent
    1360,  # the same
    50,  # the Down of a process overtook the answer to the spawn that names it
    1587,  # a process in a circle of waits sent beyond the limit of a mailbox, as it may
    2315,  # a child that restarted after the last phase had begun made a link
]
HAPPENS = (
    "call: reply", "call: CallTimeout", "call: CancelledError", "call: NoConnection", "call: NoProcess",
    "call: NodeLost", "call: ProcessDown", "call: RemoteError", "call: WouldBlock", "stream: reply",
    "nested: reply", "nested: CallTimeout", "spawn: reply", "spawn: CallTimeout",
    "down: noconnection", "down: noproc", "down: normal", "down: killed", "down: another",
    "exits", "links", "messages", "names registered", "names given up", "supervisors that gave up",
)  # fmt: skip
"""Outcomes that every block of seeds must contain; without them it would prove little."""


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once(seed: int) -> None:
    play_all([seed])
    play_all_short([seed])


@pytest.mark.deadline(60)
@pytest.mark.parametrize("seeds", most_are_long(blocks(range(126), 7), 3), ids=named)
def test_soak(seeds: range) -> None:
    play_all_short(seeds)


@pytest.mark.deadline(60)
def test_every_outcome_occurs() -> None:
    counts: Counter[str] = Counter()
    for seed in range(20):
        [report] = play_all([seed])
        counts += report.counts
        if seed > 3 and all(counts[what] for what in HAPPENS):
            break
    assert [what for what in HAPPENS if not counts[what]] == []


def test_a_seed_runs_the_same_course_again() -> None:
    for seed in (3, 8):
        first, again = play(seed, trace=True, quiet=True), play(seed, trace=True, quiet=True)
        assert first == again
    assert first != play(9, trace=True, quiet=True)
