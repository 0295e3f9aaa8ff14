"""Runs the lookups of one name in DNS: asks for one candidate after the other, until `dns_search` can decide.

A lookup has ``lifetime_s`` seconds. The next candidate is asked for when the last one is known not to exist
or has failed, or when it has had its share of the time without an answer; then both are awaited.
Once there are addresses, what is still awaited gets `GRACE_S` more.
"""

from __future__ import annotations

import asyncio

import dns.exception
import dns.name

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns_client import DnsClient, Question
from fleetlm.discovery.dns_search import (
    Candidate,
    Choice,
    Family,
    FamilyHistory,
    Records,
    State,
    choose,
    conclude,
)
from fleetlm.discovery.resolv_conf import ResolverConfig

GRACE_S = 1.0
"""Seconds to wait for the second family, and for earlier candidates, once there are addresses. Many resolvers
drop AAAA queries, and lookups there must not take their whole lifetime."""

LOOKUPS_UNTIL_MOVED = 12
"""Failed lookups in a row after which the name's home does not count any more: a minute at the default
interval, which is longer than a name server takes to restart."""


class NameLookup:
    """The lookups of one name, and what one teaches the next.

    Args:
        name: the name, as it was given.
        client: asks the name servers.
        lifetime_s: seconds for one lookup.
    """

    def __init__(self, name: str, client: DnsClient, lifetime_s: float) -> None:
        self.name = name
        self._client = client
        self._lifetime_s = lifetime_s
        self._home: str | None = None
        self._failures = 0
        self._history = FamilyHistory()

    async def run(self, config: ResolverConfig) -> Answer:
        """Ask DNS once. The client must ask the servers of the same configuration."""
        try:
            names = config.candidates(dns.name.from_text(self.name, origin=None))
        except (dns.exception.DNSException, ValueError) as error:
            return Answer(Outcome.FAILED, (), f'cannot ask for "{self.name}": {error}')
        search = _Search(self._client, names, config, self._home, self._history)
        choice, asked = await search.run(self._lifetime_s)
        answer = conclude(choice, asked)
        decisive = choice.candidate or (asked[-1] if asked else None)
        if decisive is not None:
            self._history.note(decisive)
        self._failures = self._failures + 1 if answer.outcome is Outcome.FAILED else 0
        if answer.addresses and decisive is not None:
            self._home = decisive.name
        elif self._failures >= LOOKUPS_UNTIL_MOVED:
            self._home = None
        return answer


class _Search:
    """One lookup of one name."""

    def __init__(
        self,
        client: DnsClient,
        names: list[dns.name.Name],
        config: ResolverConfig,
        home: str | None,
        history: FamilyHistory,
    ) -> None:
        self._client = client
        self._names = names
        self._families: tuple[Family, ...] = ("A",) if config.no_aaaa else ("A", "AAAA")
        self._one_at_a_time = config.single_request
        self._home = home
        self._history = history
        self._asked: list[dict[Family, Question]] = []
        self._lifetime_s = 0.0

    async def run(self, lifetime_s: float) -> tuple[Choice, list[Candidate]]:
        """Return the choice after at most that many seconds, and the candidates, of which none is awaited."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + lifetime_s
        share_s = lifetime_s / (len(self._names) + 1)
        next_at = loop.time()
        has_addresses = False
        while (now := loop.time()) < deadline:
            candidates = self._describe(is_over=False)
            choice = self._choose(candidates)
            if choice.is_final and (choice.candidate is None or not choice.candidate.awaited):
                break
            if choice.candidate is not None and not has_addresses:
                has_addresses = True
                deadline = min(deadline, now + GRACE_S)
            is_last = has_addresses or len(candidates) == len(self._names)
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

    def _read(self, asked: dict[Family, Question], family: Family, is_over: bool) -> Records | None:
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
