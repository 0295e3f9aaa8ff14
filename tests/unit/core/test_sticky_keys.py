"""The memory of where keys went."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from fleetlm.core.sticky_keys import StickyKeys
from fleetlm.ids import Pid

ONE, TWO = Pid("fleetlm@10.0.0.1", 1, 1), Pid("fleetlm@10.0.0.2", 1, 1)


def test_a_key_of_one_group_is_not_that_of_another() -> None:
    keys = StickyKeys(10, 60.0)
    keys.keep("g", b"k", ONE, 0.0)
    keys.keep("h", b"k", TWO, 0.0)
    assert keys.find("g", b"k", 1.0) == ONE
    assert keys.find("h", b"k", 1.0) == TWO
    assert keys.find("g", b"other", 1.0) is None


def test_the_key_that_was_used_longest_ago_makes_room() -> None:
    keys = StickyKeys(2, 60.0)
    keys.keep("g", b"a", ONE, 0.0)
    keys.keep("g", b"b", ONE, 1.0)
    keys.keep("g", b"a", TWO, 2.0)
    keys.keep("g", b"c", ONE, 3.0)
    assert keys.find("g", b"b", 3.0) is None
    assert keys.find("g", b"a", 3.0) == TWO
    assert len(keys) == 2


def test_an_unused_key_is_forgotten_after_a_while_and_its_room_is_given_back() -> None:
    keys = StickyKeys(1_000, 60.0)
    for number in range(100):
        keys.keep("g", b"%d" % number, ONE, 0.0)
    assert keys.find("g", b"7", 60.0) == ONE
    assert keys.find("g", b"7", 60.1) is None
    for _ in range(50):
        keys.keep("g", b"new", TWO, 61.0)
    assert len(keys) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([ONE, TWO]), st.floats(0, 20)), max_size=60))
def test_it_answers_as_a_simple_list_of_all_uses_would(uses: list[tuple[int, Pid, float]]) -> None:
    keys, now, history = StickyKeys(4, 30.0), 0.0, list[tuple[int, Pid, float]]()
    for key, pid, pause in uses:
        now += pause
        keys.keep("g", b"%d" % key, pid, now)
        history = [use for use in history if use[0] != key] + [(key, pid, now)]
        kept = {use[0]: use[1] for use in history[-4:] if now - use[2] <= 30.0}
        assert len(keys) <= 4
        for each in range(9):
            assert keys.find("g", b"%d" % each, now) == kept.get(each)
