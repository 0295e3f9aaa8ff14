"""Decides what the answers to the questions of one lookup mean. Pure.

A lookup asks for the A and the AAAA records of each candidate name, which the search domains make of the
query; or for its SRV records, if the query is the name of a service. The rules:

* The first candidate with a record of any type that is asked for ends the search, for all of them: a
  wildcard of an outer domain must not add its IPv6 address.
* A candidate without any record is passed over, and so is one that failed: an outer domain that never
  answers, as in a network without access to the internet, must not hide the name. The failure is a remark.
* Only the candidate that had records in the last lookup with any, the *home*, is not passed over when it
  fails. Otherwise a moment's failure would send a node to the same name in another domain.
* One family that fails makes the answer PARTIAL. Many networks never answer for AAAA, though, or always
  refuse it. `FamilyHistory` notes when a family has never had an address and has failed in
  `LOOKUPS_UNTIL_UNSERVED` lookups in a row, while the other one was answered. Such a family is *not served*
  here: what the other one says makes the answer ADDRESSES, or EMPTY if it says that there is no such name
  (NXDOMAIN holds for every type), and `Answer.whole_families` names that one.

Source: getaddrinfo and res_search of glibc 2.36, which ask for both families of each candidate and stop at
the first with either; differs: a candidate that timed out or was refused does not end the search.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fleetlm.core.dns_answers import Answer, Outcome, count_addresses, sift
from fleetlm.records import Record

RecordType = Literal["A", "AAAA", "SRV"]
NXDOMAIN = "NXDOMAIN"
"""The detail of `Records` of a name that does not exist."""
VERSIONS: dict[RecordType, int] = {"A": 4, "AAAA": 6}
"""The IP version of the addresses in records of a type: what is called a family here."""

LOOKUPS_UNTIL_UNSERVED = 3
"""Lookups in a row in which a family failed until it counts as not served, if it never had an address: more
than some lost packets, and so few that a cluster without IPv6 soon has whole answers."""


class Service(Record):
    """An SRV record. Priority and weight are left out: every node is dialled.

    Attributes:
        target: the absolute name of the host, in lower case; ``.`` says that there is no such service.
        port: the port on that host.
        addresses: the host's addresses in the additional section, as text, neither checked nor sorted.
    """

    target: str
    port: int
    addresses: tuple[str, ...] = ()

    @property
    def may_be_used(self) -> bool:
        """Whether a node may listen there."""
        return self.target != "." and self.port > 0


class Records(Record):
    """The answer to one question: the records of one type of one name.

    Attributes:
        outcome: how it ended. PARTIAL is a truncated answer.
        addresses: addresses as text, neither checked nor sorted.
        detail: what happened, in words.
        is_unserved: FAILED, as this question always is here: the servers say that they do not implement it
            (NOTIMP), or `FamilyHistory` says that it is never answered.
        services: the SRV records.
    """

    outcome: Outcome
    addresses: tuple[str, ...] = ()
    detail: str = ""
    is_unserved: bool = False
    services: tuple[Service, ...] = ()

    @property
    def is_some(self) -> bool:
        """Whether there is any record."""
        return bool(self.addresses or self.services)

    @property
    def is_whole(self) -> bool:
        """Whether this is all that DNS has of this type."""
        return self.outcome in (Outcome.ADDRESSES, Outcome.EMPTY)


class State(enum.Enum):
    """What is known of one candidate."""

    AWAITED = "no record yet, and an answer is still to come"
    EXISTS = "it has a record"
    ABSENT = "it has no record of any type that is served"
    FAILED = "it has no record, and a question failed"


class Candidate(Record):
    """One name that was asked for.

    Attributes:
        name: its text.
        records: the answer for each record type that is asked for; None while it is awaited.
    """

    name: str
    records: Mapping[RecordType, Records | None]

    @property
    def found(self) -> dict[RecordType, Records]:
        """The answers that have come."""
        return {family: records for family, records in self.records.items() if records is not None}

    @property
    def awaited(self) -> tuple[RecordType, ...]:
        """The record types whose answers are still to come."""
        return tuple(family for family, records in self.records.items() if records is None)

    @property
    def state(self) -> State:
        """What is known of it."""
        found = self.found.values()
        if any(records.is_some for records in found):
            return State.EXISTS
        if self.awaited:
            return State.AWAITED
        if all(records.is_whole or records.is_unserved for records in found):
            return State.ABSENT if any(records.is_whole for records in found) else State.FAILED
        return State.FAILED

    @property
    def is_unknown(self) -> bool:
        """Whether DNS says that there is no such name, for each family that is served here."""
        found = [records for records in self.found.values() if not records.is_unserved]
        return bool(found) and all(records.detail == NXDOMAIN for records in found)

    @property
    def trouble(self) -> dict[RecordType, Records]:
        """The answers that are not whole."""
        return {family: records for family, records in self.found.items() if not records.is_whole}


class Choice(Record):
    """The candidate that decides the lookup.

    Attributes:
        candidate: the first that exists, or the home if it failed; None if there is neither.
        is_final: whether no answer that is still to come can change the choice.
        failed: the candidates that failed before it.
    """

    candidate: Candidate | None
    is_final: bool
    failed: tuple[Candidate, ...] = ()

    @property
    def remark(self) -> str:
        """Words on the first candidate that failed, or ""."""
        if not self.failed:
            return ""
        return f"after {self.failed[0].name} failed ({join_details(self.failed[0].trouble)})"


def choose(asked: Sequence[Candidate], *, home: str | None, all_asked: bool) -> Choice:
    """Return the candidate that decides, in the order of the search.

    Args:
        asked: the candidates that were asked for so far, in the order of the search.
        home: the candidate that had addresses in the last lookup with any.
        all_asked: whether there are no further candidates.
    """
    failed: list[Candidate] = []
    is_final = True
    for candidate in asked:
        state = candidate.state
        if state is State.EXISTS or (state is State.FAILED and candidate.name == home):
            return Choice(candidate, is_final, tuple(failed))
        if state is State.AWAITED:
            is_final = False
        elif state is State.FAILED:
            failed.append(candidate)
    return Choice(None, is_final and all_asked, tuple(failed))


class FamilyHistory:
    """Notes over many lookups which families are answered for one name."""

    def __init__(self) -> None:
        self._had_address: set[RecordType] = set()
        self._failures: dict[RecordType, int] = dict.fromkeys(VERSIONS, 0)
        self._last_failure: dict[RecordType, str] = {}

    def note(self, candidate: Candidate) -> None:
        """Note the answers for the candidate that decided a lookup, or for the last one if none did."""
        some_answered = any(records.is_whole for records in candidate.found.values())
        for family, records in candidate.found.items():
            if family not in VERSIONS:
                continue
            if records.addresses:
                self._had_address.add(family)
            if records.outcome is not Outcome.FAILED:
                self._failures[family] = 0
            elif some_answered:
                self._failures[family] += 1
            if records.outcome is Outcome.FAILED:
                self._last_failure[family] = records.detail

    def mark(self, family: RecordType, records: Records) -> Records:
        """Return the answer, marked if it is a failure of a family that is not served here."""
        if records.outcome is Outcome.FAILED and self.is_unserved(family):
            return replace(records, is_unserved=True)
        return records

    def expect(self, family: RecordType) -> Records:
        """Return what a family that is not served here answers, for a lookup that does not wait for it."""
        return Records(Outcome.FAILED, (), self._last_failure.get(family, "no answer"), is_unserved=True)

    def is_unserved(self, family: RecordType) -> bool:
        """Whether this network never answers for that family."""
        return family not in self._had_address and self._failures.get(family, 0) >= LOOKUPS_UNTIL_UNSERVED


def conclude(choice: Choice, asked: Sequence[Candidate]) -> Answer:
    """Make the answer of a lookup.

    Args:
        choice: the candidate that decides.
        asked: all candidates that were asked for; no answer is awaited any more.
    """
    if choice.candidate is not None and choice.candidate.state is State.EXISTS:
        return combine(choice.candidate, choice.remark)
    failed = [choice.candidate, *choice.failed, *(each for each in asked if each.trouble)]
    first_failed = next((each for each in failed if each is not None), None)
    if first_failed is None:
        return Answer(Outcome.EMPTY, (), _describe_absence(asked))
    prefix = f"{first_failed.name}: " if len(asked) > 1 else ""
    whole = find_whole_families(asked)
    if all(each.is_unknown for each in asked):
        return Answer(Outcome.EMPTY, (), f"{prefix}{join_details(first_failed.found)}", whole)
    return Answer(Outcome.FAILED, (), f"{prefix}{join_details(first_failed.trouble)}", whole)


def combine(candidate: Candidate, remark: str = "") -> Answer:
    """Make one answer of the records of one name.

    NXDOMAIN for one family is normal if the other has addresses.

    Args:
        candidate: the name with its records.
        remark: words to add to the detail.
    """
    raw = [address for each in candidate.found.values() for address in each.addresses]
    addresses, passed_over = sift(raw)
    trouble = candidate.trouble
    whole = find_whole_families([candidate])
    if not addresses:
        if trouble:
            return Answer(Outcome.FAILED, (), join_details(trouble), whole)
        if raw:
            # Unusable records (0.0.0.0 from an ad blocker) say nothing about the nodes.
            return Answer(Outcome.FAILED, (), f"no usable address: {passed_over}")
        return Answer(Outcome.EMPTY, (), join_details(candidate.found) or "no addresses")
    detail = ", ".join(filter(None, [count_addresses(len(addresses)), passed_over, remark]))
    if not trouble:
        return Answer(Outcome.ADDRESSES, addresses, detail)
    detail = f"{detail}, but {join_details(trouble)}"
    if all(each.is_unserved for each in trouble.values()):
        return Answer(Outcome.ADDRESSES, addresses, f"{detail}; that seems not to be served here", whole)
    return Answer(Outcome.PARTIAL, addresses, detail, whole)


def find_whole_families(asked: Iterable[Candidate]) -> tuple[int, ...]:
    """Return the IP versions for which every candidate has a whole answer.

    None without the whole list of the hosts, which SRV records are.
    """
    broken = {family for candidate in asked for family in (*candidate.trouble, *candidate.awaited)}
    if "SRV" in broken:
        return ()
    return tuple(version for family, version in VERSIONS.items() if family not in broken)


def join_details(found: Mapping[RecordType, Records]) -> str:
    """Describe the answers for several record types; once, if they are alike."""
    details = {records.detail for records in found.values()}
    if len(found) > 1 and len(details) == 1:
        return details.pop()
    return "; ".join(f"{family}: {records.detail}" for family, records in found.items() if records.detail)


def _describe_absence(asked: Sequence[Candidate]) -> str:
    """Say why no candidate has an address: a name without records says more than one that is unknown."""
    known = [
        candidate
        for candidate in asked
        if any(records.detail != NXDOMAIN for records in candidate.found.values())
    ]
    return join_details((known or asked)[-1].found) if asked else "no addresses"
