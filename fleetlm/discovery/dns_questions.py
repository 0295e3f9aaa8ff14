"""Runs one search in DNS: asks for one candidate after the other, until `dns_search` can decide.

The next candidate is asked for when the last one is known not to exist or has failed, or when it has had its
share of the time without an answer; then both are awaited. Once there are records, what is still awaited gets
`GRACE_S` more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dns.name

from fleetlm.core.dns_answers import Outcome
from fleetlm.discovery.dns_client import DnsClient, Question
from fleetlm.discovery.dns_search import (
    Candidate,
    Choice,
    FamilyHistory,
    Records,
    RecordType,
    State,
    choose,
)

GRACE_S = 1.0
"""Seconds to wait for the second family, and for earlier candidates, once there are addresses. Many resolvers
drop AAAA queries, and lookups there must not take their whole lifetime."""


class Search:
    """One search for the records of one name.

    Args:
        client: asks the name servers.
        names: the candidates in the order of the search.
        record_types: what each candidate is asked for.
        history: which families were answered in earlier searches.
        home: the candidate that had records in the last search with any.
        one_at_a_time: whether a candidate is asked for the second type when the first was answered.
    """

    def __init__(
        self,
        client: DnsClient,
        names: Sequence[dns.name.Name],
        record_types: tuple[RecordType, ...],
        history: FamilyHistory,
        *,
        home: str | None = None,
        one_at_a_time: bool = False,
    ) -> None:
        self._client = client
        self._names = names
        self._families = record_types
        self._one_at_a_time = one_at_a_time
        self._home = home
        self._history = history
        self._asked: list[dict[RecordType, Question]] = []

    async def run(self, lifetime_s: float) -> tuple[Choice, list[Candidate]]:
        """Return the choice after at most that many seconds, and the candidates, of which none is awaited."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + lifetime_s
        share_s = lifetime_s / (len(self._names) + 1)
        next_at = loop.time()
        has_records = False
        while (now := loop.time()) < deadline:
            candidates = self._describe(is_over=False)
            choice = self._choose(candidates)
            if choice.is_final and (choice.candidate is None or not choice.candidate.awaited):
                break
            if choice.candidate is not None and not has_records:
                has_records = True
                deadline = min(deadline, now + GRACE_S)
            is_last = has_records or len(candidates) == len(self._names)
            if not is_last and self._may_go_on(candidates, is_time=now >= next_at):
                self._ask_next(lifetime_s)
                next_at = now + share_s
                continue
            await self._wait((deadline if is_last or now >= next_at else min(next_at, deadline)) - now)
            self._ask_second_families(lifetime_s)
        candidates = self._describe(is_over=True)
        self._client.settle([question for asked in self._asked for question in asked.values()])
        return self._choose(candidates), candidates

    def _may_go_on(self, candidates: list[Candidate], *, is_time: bool) -> bool:
        """Whether to ask for the next candidate: the last one is known, or has had its time.

        The home is waited for to the end, since what comes after it does not count if it fails.
        """
        if not candidates or candidates[-1].state is not State.AWAITED:
            return True
        return is_time and candidates[-1].name != self._home

    def _ask_next(self, lifetime_s: float) -> None:
        name = self._names[len(self._asked)]
        families = self._families[:1] if self._one_at_a_time else self._families
        self._asked.append(
            {family: self._client.ask(name, family, within_s=lifetime_s) for family in families}
        )

    def _ask_second_families(self, lifetime_s: float) -> None:
        """Ask for AAAA where A was answered, if the configuration says ``single-request``."""
        for name, asked in zip(self._names, self._asked, strict=False):
            for family in self._families[len(asked) :]:
                if all(question.task.done() for question in asked.values()):
                    asked[family] = self._client.ask(name, family, within_s=lifetime_s)

    async def _wait(self, seconds: float) -> None:
        """Wait for any answer."""
        tasks = {
            question.task for asked in self._asked for question in asked.values() if not question.task.done()
        }
        if tasks:
            await asyncio.wait(tasks, timeout=max(seconds, 0.0), return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(max(seconds, 0.0))

    def _choose(self, candidates: list[Candidate]) -> Choice:
        return choose(candidates, home=self._home, all_asked=len(candidates) == len(self._names))

    def _describe(self, *, is_over: bool) -> list[Candidate]:
        """Return what is known of the candidates; when it is over, what is still awaited has failed."""
        return [
            Candidate(str(name), {family: self._read(asked, family, is_over) for family in self._families})
            for name, asked in zip(self._names, self._asked, strict=False)
        ]

    def _read(self, asked: dict[RecordType, Question], family: RecordType, is_over: bool) -> Records | None:
        """Return the answer for one family, or None while it is awaited.

        A family that is not served here is not waited for once another one was answered.
        """
        question = asked.get(family)
        answer = None if question is None else question.answer
        if answer is None:
            others = [each for each in asked.values() if each is not question]
            is_given_up = self._history.is_unserved(family) and any(each.answer for each in others)
            if not is_over and not is_given_up:
                return None
            if question is None:  # ``single-request``, and the other family was not answered in time
                return Records(Outcome.FAILED, (), "not asked")
            answer = self._client.best_answer(question)
            if is_given_up and answer.outcome is Outcome.FAILED and not question.task.done():
                return self._history.expect(family)
        return self._history.mark(family, answer)
