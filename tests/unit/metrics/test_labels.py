"""Labels: so many values, and one for all others."""

from __future__ import annotations

from hypothesis import given, strategies as st

from fleetlm.metrics.labels import OTHER, LabelSet


def test_the_first_values_have_labels_and_the_others_share_one() -> None:
    labels = LabelSet(2)
    assert [labels.label(each) for each in "abcab"] == ["a", "b", OTHER, "a", "b"]
    assert labels.is_full
    assert (len(labels), labels.values(), "a" in labels, "c" in labels) == (2, ["a", "b"], True, False)


def test_a_value_that_has_gone_leaves_its_place_to_a_newcomer() -> None:
    labels = LabelSet(2)
    for each in "abc":
        labels.label(each)
    assert labels.release_all_but({"b", "c"}) == ["a"]
    assert not labels.is_full
    assert [labels.label(each) for each in "dc"] == ["d", OTHER]


@given(st.lists(st.text("abcdef", min_size=1, max_size=1)), st.sets(st.sampled_from("abcdef")))
def test_there_are_never_more_labels_than_the_limit(values: list[str], present: set[str]) -> None:
    labels = LabelSet(3)
    given_labels = {labels.label(value) for value in values}
    assert len(given_labels - {OTHER}) <= 3
    labels.release_all_but(present)
    assert set(labels.values()) == given_labels & present
