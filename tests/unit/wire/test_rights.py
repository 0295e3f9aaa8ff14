"""Which right each operation needs, and how a node says what it denies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

from fleetlm.errors import NotAllowed
from fleetlm.setting_parsers import RIGHTS, Right
from fleetlm.wire import operations, rights
from fleetlm.wire.rights import OPERATIONS, SIGNALS, TABLES, VERBS, check_right, denied_in, features_of

NODE = "fleetlm@10.0.0.7"


def first_words(function: Callable[..., object]) -> set[str]:
    """What the table in a docstring of `wire.operations` lists: the literals at the beginning of its rows."""
    text = inspect.cleandoc(function.__doc__ or "")  # Python 3.13 does it by itself.
    return set(re.findall(r"^``(\w+)`` ", text, re.MULTILINE))


def test_every_operation_has_its_place_in_the_table() -> None:
    assert set(OPERATIONS) == {None, *operations.SCHEMAS}


def test_every_request_signal_and_table_has_its_place() -> None:
    assert set(VERBS) == first_words(operations.request) | {"waits"}
    assert set(SIGNALS) == first_words(operations.signal)
    assert set(TABLES) == first_words(operations.table)


def test_every_right_is_needed_by_something_and_no_other_word_is_a_right() -> None:
    needed = {*OPERATIONS.values(), *VERBS.values(), *SIGNALS.values(), *TABLES.values()} - {None}
    assert needed == set(RIGHTS)
    assert set(re.findall(r"^``(\w+)``  ", rights.__doc__ or "", re.MULTILINE)) == set(RIGHTS)


def test_a_node_that_allows_everything_says_nothing() -> None:
    assert features_of(frozenset(RIGHTS)) == ()
    assert denied_in(()) == frozenset()


@pytest.mark.parametrize("may", [frozenset[str](), frozenset({"call"}), frozenset({"spawn", "register"})])
def test_what_is_denied_arrives_beside_features_that_this_version_does_not_know(may: frozenset[str]) -> None:
    features = ("zstd", *features_of(may), "denies breathing")  # type: ignore[arg-type]
    assert denied_in(features) == frozenset(RIGHTS) - may


@pytest.mark.parametrize("right", RIGHTS)
def test_the_error_names_the_node_the_right_and_the_setting(right: Right) -> None:
    check_right(NODE, frozenset(RIGHTS) - {right}, right)
    with pytest.raises(
        NotAllowed, match=rf"^{NODE} does not allow .*Settings\.peers_may has no '{right}'"
    ) as e:
        check_right(NODE, frozenset({right}), right)
    assert e.value.node == NODE
