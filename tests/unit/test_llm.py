"""Picks by prefix and load: what is learnt. `tests.sim.test_fleet_of_routers` has a whole fleet."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm import MemberInfo, Pid
from fleetlm.llm import BLOCK_TOKENS, MAX_WORKERS, PrefixIndex

WORKERS = [Pid(f"fleetlm@10.0.0.{number}", 1, 1) for number in range(1, 9)]
A, B = WORKERS[:2]


def info(pid: Pid, load: float = 0.0, mean: float = 0.0) -> MemberInfo:
    return MemberInfo(pid, None, {}, None, int(load), load, mean, False)


def tokens(count: int, start: int = 0) -> list[int]:
    return list(range(start, start + count))


def test_a_prompt_goes_where_its_prefix_was() -> None:
    index = PrefixIndex()
    index.route(tokens(64)).picked(A)
    longer = index.route(tokens(128))
    assert (longer(info(A)), longer(info(B))) == (0.5, 0.0)
    assert index.route(tokens(64, start=1))(info(A)) == 0.0
    assert index.route([])(info(A)) == 0.0
    assert len(index) == 64 / BLOCK_TOKENS


def test_a_block_counts_only_behind_the_same_blocks() -> None:
    index = PrefixIndex()
    index.route(tokens(32)).picked(A)
    other_start = [99] * 16 + tokens(16, start=16)
    assert index.route(other_start)(info(A)) == 0.0


def test_text_counts_four_characters_as_a_token() -> None:
    index = PrefixIndex()
    text = "You are a helpful assistant. " * 10
    index.route(text).picked(A)
    assert index.route(text + "Hello")(info(A)) == 1.0
    assert index.route("You are an other one. " * 20)(info(A)) == 0.0


def test_load_outweighs_a_prefix_at_twice_the_mean() -> None:
    index = PrefixIndex()
    index.route(tokens(64)).picked(A)
    route = index.route(tokens(64))
    assert route(info(A, load=3, mean=2)) > route(info(B, load=2, mean=2))
    assert route(info(A, load=5, mean=2)) < route(info(B, load=2, mean=2))
    gentle = PrefixIndex(beta=0.1)
    gentle.route(tokens(64)).picked(A)
    assert gentle.route(tokens(64))(info(A, load=5, mean=2)) > gentle.route(tokens(64))(info(B, 2, 2))


def test_the_memory_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    index = PrefixIndex(max_blocks=4)
    first, second = tokens(48), tokens(48, start=1_000)
    index.route(first).picked(A)
    index.route(second).picked(B)
    assert len(index) == 4
    assert index.route(second)(info(B)) == 1.0
    assert index.route(first)(info(A)) == pytest.approx(1 / 3), "its beginning is still known"
    index.route(second + tokens(16, start=2_000)).picked(B)
    assert index.route(first)(info(A)) == 0.0


def test_a_block_knows_its_latest_workers() -> None:
    index = PrefixIndex()
    for pid in WORKERS:
        index.route(tokens(16)).picked(pid)
    known = [pid for pid in WORKERS if index.route(tokens(16))(info(pid)) == 1.0]
    assert known == WORKERS[-MAX_WORKERS:]


def test_the_beginning_of_a_prompt_is_forgotten_last() -> None:
    index = PrefixIndex(max_blocks=6)
    index.route(tokens(64)).picked(A)
    index.route(tokens(64, start=1_000)).picked(B)
    assert index.route(tokens(64))(info(A)) == 0.5, "two of four blocks, the first ones"
    assert index.route(tokens(64, start=1_000))(info(B)) == 1.0


def test_a_prompt_of_more_blocks_than_are_remembered_is_known_by_its_beginning() -> None:
    index = PrefixIndex(max_blocks=2)
    index.route(tokens(64)).picked(A)
    assert index.route(tokens(64))(info(A)) == 0.5


def test_a_conversation_is_found_behind_a_beginning_that_all_workers_share() -> None:
    index = PrefixIndex()
    shared = tokens(32)
    for pid in WORKERS:
        index.route(shared + tokens(32, start=1_000 * (1 + WORKERS.index(pid)))).picked(pid)
    for pid in WORKERS:
        route = index.route(shared + tokens(32, start=1_000 * (1 + WORKERS.index(pid))))
        assert route(info(pid)) == 1.0
    assert sum(index.route(shared)(info(pid)) == 1.0 for pid in WORKERS) == MAX_WORKERS


def test_a_worker_that_dropped_its_states_is_forgotten() -> None:
    index = PrefixIndex()
    index.route(tokens(32)).picked(A)
    index.route(tokens(16)).picked(B)
    index.forget(A)
    assert (index.route(tokens(32))(info(A)), index.route(tokens(32))(info(B))) == (0.0, 0.5)
    assert len(index) == 1


@pytest.mark.parametrize("wrong", [{"block_tokens": 0}, {"max_blocks": 0}, {"beta": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        PrefixIndex(**wrong)
