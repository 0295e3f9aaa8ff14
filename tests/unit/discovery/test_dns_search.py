from __future__ import annotations

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns_search import (
    LOOKUPS_UNTIL_UNSERVED,
    Candidate,
    FamilyHistory,
    Records,
    State,
    choose,
    combine,
    conclude,
)

NXDOMAIN = Records(Outcome.EMPTY, (), "NXDOMAIN")
NO_RECORD = Records(Outcome.EMPTY, (), "no record")
SERVFAIL = Records(Outcome.FAILED, (), "SERVFAIL from s")
NOTIMP = Records(Outcome.FAILED, (), "NOTIMP from s", is_unserved=True)
V4 = Records(Outcome.ADDRESSES, ("10.0.0.2",))
V6 = Records(Outcome.ADDRESSES, ("fdaa::2",))
CUT = Records(Outcome.PARTIAL, ("10.0.0.2",), "truncated, and TCP failed")


def name(name: str, a: Records | None, aaaa: Records | None) -> Candidate:
    return Candidate(name, {"A": a, "AAAA": aaaa})


def decide(*asked: Candidate, home: str | None = None) -> Answer:
    return conclude(choose(asked, home=home, all_asked=True), asked)


@pytest.mark.parametrize(
    ("a", "aaaa", "state"),
    [
        (V4, NO_RECORD, State.EXISTS),
        (V4, None, State.EXISTS),
        (NXDOMAIN, V6, State.EXISTS),
        (CUT, SERVFAIL, State.EXISTS),
        (None, None, State.AWAITED),
        (NXDOMAIN, None, State.AWAITED),
        (SERVFAIL, None, State.AWAITED),
        (NXDOMAIN, NXDOMAIN, State.ABSENT),
        (NO_RECORD, NXDOMAIN, State.ABSENT),
        (NXDOMAIN, NOTIMP, State.ABSENT),
        (NXDOMAIN, SERVFAIL, State.FAILED),
        (SERVFAIL, SERVFAIL, State.FAILED),
        (NOTIMP, NOTIMP, State.FAILED),
    ],
)
def test_the_state_of_a_candidate(a: Records | None, aaaa: Records | None, state: State) -> None:
    assert name("w.", a, aaaa).state is state


def test_the_first_candidate_that_exists_ends_the_search_for_both_families() -> None:
    inner, outer = name("w.in.", V4, NO_RECORD), name("w.out.", NO_RECORD, V6)
    assert decide(inner, outer) == Answer(Outcome.ADDRESSES, ("10.0.0.2",), "1 address")
    assert decide(outer, inner).addresses == ("fdaa::2",)


def test_candidates_without_records_are_passed_over() -> None:
    asked = [name("w.a.", NXDOMAIN, NXDOMAIN), name("w.b.", NO_RECORD, NXDOMAIN), name("w.", V4, V6)]
    assert decide(*asked) == Answer(Outcome.ADDRESSES, ("10.0.0.2", "fdaa::2"), "2 addresses")


def test_a_failure_of_an_earlier_candidate_is_a_remark() -> None:
    asked = [name("w.out.", SERVFAIL, SERVFAIL), name("w.", V4, NO_RECORD)]
    assert decide(*asked) == Answer(
        Outcome.ADDRESSES, ("10.0.0.2",), "1 address, after w.out. failed (SERVFAIL from s)"
    )


def test_the_home_of_the_cluster_is_not_passed_over_when_it_fails() -> None:
    asked = [name("w.prod.", SERVFAIL, SERVFAIL), name("w.staging.", V4, NO_RECORD)]
    answer = decide(*asked, home="w.prod.")
    assert (answer.outcome, answer.detail) == (Outcome.FAILED, "w.prod.: SERVFAIL from s")
    gone = [name("w.prod.", NXDOMAIN, NXDOMAIN), asked[1]]
    assert decide(*gone, home="w.prod.").addresses == ("10.0.0.2",)


def test_nothing_found_is_empty_only_if_every_candidate_is_known_to_be_absent() -> None:
    absent = name("w.a.", NXDOMAIN, NXDOMAIN)
    assert decide(absent, name("w.", NXDOMAIN, NXDOMAIN)) == Answer(Outcome.EMPTY, (), "NXDOMAIN")
    assert decide(name("w.a.", NO_RECORD, NO_RECORD), absent).detail == "no record"
    answer = decide(name("w.out.", SERVFAIL, SERVFAIL), absent)
    assert answer == Answer(Outcome.FAILED, (), "w.out.: SERVFAIL from s")


def test_a_choice_is_final_when_no_answer_to_come_can_change_it() -> None:
    waiting, found = name("w.a.", None, None), name("w.b.", V4, None)
    assert not choose([waiting, found], home=None, all_asked=False).is_final
    assert choose([found, waiting], home=None, all_asked=False).is_final
    assert not choose([name("w.a.", NXDOMAIN, NXDOMAIN)], home=None, all_asked=False).is_final
    assert choose([name("w.a.", NXDOMAIN, NXDOMAIN)], home=None, all_asked=True).is_final
    assert choose([found], home=None, all_asked=True).candidate == found
    assert found.awaited == ("AAAA",)


@pytest.mark.parametrize(
    ("a", "aaaa", "outcome", "whole"),
    [
        (V4, V6, Outcome.ADDRESSES, (4, 6)),
        (V4, NXDOMAIN, Outcome.ADDRESSES, (4, 6)),
        (V4, SERVFAIL, Outcome.PARTIAL, (4,)),
        (SERVFAIL, V6, Outcome.PARTIAL, (6,)),
        (CUT, NO_RECORD, Outcome.PARTIAL, (6,)),
        (CUT, SERVFAIL, Outcome.PARTIAL, ()),
        (V4, NOTIMP, Outcome.ADDRESSES, (4,)),
        (NO_RECORD, SERVFAIL, Outcome.FAILED, (4,)),
        (NO_RECORD, NOTIMP, Outcome.FAILED, (4,)),
        (SERVFAIL, SERVFAIL, Outcome.FAILED, ()),
        (NXDOMAIN, NOTIMP, Outcome.EMPTY, (4,)),
        (NO_RECORD, NO_RECORD, Outcome.EMPTY, (4, 6)),
        (Records(Outcome.ADDRESSES, ("0.0.0.0",)), NO_RECORD, Outcome.FAILED, ()),
        (Records(Outcome.ADDRESSES, ("0.0.0.0",)), V6, Outcome.ADDRESSES, (4, 6)),
    ],
)
def test_two_families_make_one_answer_that_says_which_one_is_whole(
    a: Records, aaaa: Records, outcome: Outcome, whole: tuple[int, ...]
) -> None:
    answer = decide(name("w.", a, aaaa))
    assert (answer.outcome, answer.whole_families) == (outcome, whole)
    assert [answer.is_whole(4), answer.is_whole(6)] == [4 in whole, 6 in whole]
    assert bool(answer.addresses) == (outcome in (Outcome.ADDRESSES, Outcome.PARTIAL))


def test_details_name_the_family_only_where_they_differ() -> None:
    assert combine(name("w.", V4, SERVFAIL)).detail == "1 address, but AAAA: SERVFAIL from s"
    assert combine(name("w.", SERVFAIL, SERVFAIL)).detail == "SERVFAIL from s"
    assert combine(name("w.", NO_RECORD, NXDOMAIN)).detail == "A: no record; AAAA: NXDOMAIN"


def test_a_family_that_never_answers_counts_as_not_served_after_some_lookups() -> None:
    history = FamilyHistory()
    for _ in range(LOOKUPS_UNTIL_UNSERVED):
        assert history.mark("AAAA", SERVFAIL) == SERVFAIL
        history.note(name("w.", V4, SERVFAIL))
    marked = history.mark("AAAA", SERVFAIL)
    assert marked.is_unserved
    assert history.expect("AAAA") == marked  # what a lookup says that does not wait for it
    answer = decide(name("w.", V4, marked))
    assert (answer.outcome, answer.whole_families) == (Outcome.ADDRESSES, (4,))
    assert answer.detail.endswith("AAAA: SERVFAIL from s; that seems not to be served here")
    assert not history.is_unserved("A")
    history.note(name("w.", V4, NO_RECORD))  # it answers again
    assert not history.is_unserved("AAAA")


def test_a_family_that_had_an_address_once_is_always_waited_for() -> None:
    history = FamilyHistory()
    history.note(name("w.", V4, V6))
    for _ in range(3 * LOOKUPS_UNTIL_UNSERVED):
        history.note(name("w.", V4, SERVFAIL))
    assert not history.is_unserved("AAAA")


def test_a_resolver_that_is_down_teaches_nothing_about_families() -> None:
    history = FamilyHistory()
    for _ in range(3 * LOOKUPS_UNTIL_UNSERVED):
        history.note(name("w.", SERVFAIL, SERVFAIL))
    assert not history.is_unserved("A")
    assert not history.is_unserved("AAAA")


def test_without_aaaa_one_family_is_the_whole_answer() -> None:
    only = Candidate("w.", {"A": V4})
    assert decide(only) == Answer(Outcome.ADDRESSES, ("10.0.0.2",), "1 address")
