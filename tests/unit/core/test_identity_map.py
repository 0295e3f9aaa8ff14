"""A map from pids or refs behaves as a dict does, and holds nothing for the garbage collector."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm import Pid, Ref
from fleetlm.core.identity_map import ActsMap, IdentityMap, keys_one_by_one

PIDS = st.builds(Pid, st.sampled_from(["a@10.0.0.1", "b@10.0.0.2"]), st.integers(1, 2), st.integers(1, 4))
ACTS = st.lists(st.integers(-3, 3), max_size=3).map(tuple)
CHANGES = st.lists(st.tuples(st.sampled_from(["set", "pop", "get"]), PIDS, ACTS), max_size=40)


@given(CHANGES)
def test_it_does_what_a_dict_does(changes: list[tuple[str, Pid, tuple[int, ...]]]) -> None:
    acts, model = ActsMap(), dict[Pid, tuple[int, ...]]()
    for what, pid, value in changes:
        if what == "set":
            acts[pid] = model[pid] = value
        elif what == "pop":
            assert acts.pop(pid, None) == model.pop(pid, None)
        assert (pid in acts, acts.get(pid), len(acts)) == (pid in model, model.get(pid), len(model))
        assert acts == model
        assert sorted(acts, key=str) == sorted(model, key=str) == sorted(keys_one_by_one(acts), key=str)
    assert copy.deepcopy(acts) == model


def test_a_key_that_it_does_not_have_is_a_key_error_that_names_it() -> None:
    acts, pid = ActsMap(), Pid("a@10.0.0.1", 1, 1)
    for look in (acts.__getitem__, acts.__delitem__):
        with pytest.raises(KeyError, match="number=1"):
            look(pid)
    assert 1 not in acts
    assert Ref("a@10.0.0.1", 1, 1) not in acts
    acts[pid] = (5,)
    assert repr(acts) == f"ActsMap({{{pid!r}: (5,)}})"


def test_keys_that_go_and_come_between_two_steps_do_not_disturb_the_others() -> None:
    refs: IdentityMap[Ref, int] = IdentityMap(Ref)
    every = [Ref("a@10.0.0.1", 1, number) for number in range(10)]
    refs.update(dict.fromkeys(every, 0))
    seen = []
    for ref in refs.one_by_one():
        seen.append(ref)
        del refs[ref]
        refs[Ref("b@10.0.0.2", 1, ref.number)] = 1
    assert sorted(ref.number for ref in seen) == list(range(10))
    assert {ref.node for ref in refs} == {"b@10.0.0.2"}


@pytest.mark.parametrize("value", [None, 5])
def test_the_collector_does_not_visit_its_entries(value: Any) -> None:
    refs: IdentityMap[Ref, Any] = IdentityMap(Ref)
    for number in range(100):
        refs[Ref("a@10.0.0.1", 1, number)] = value
    acts = ActsMap()
    for number in range(100):
        acts[Pid("a@10.0.0.1", 1, number)] = (number,)
    for held in (refs, acts):
        assert not any(gc.is_tracked(numbers) for numbers in held._numbers.values())
