"""Asks the system's name servers questions, several at once.

How a question runs: the servers are asked one after the other, `pause_s` apart and at once where one
fails, and all of them are listened to until one answers. So a dead first server costs one pause, and a slow
one is not given up on. A server that stayed silent is asked last for `MEMORY_OF_SILENCE_S`.

A question outlives the lookup that asked it, by up to `LATE_ANSWER_S`. Each lookup asks anew, and takes the
answer to an older question only where the new one stays without an answer. So a server that takes longer than
a lookup may take serves the next lookup, and each one after that.

Who owns what: the client owns the tasks of all questions, at most `MAX_QUESTIONS`, and `close` ends them. A
lookup only holds `Question` objects, so that it can be cancelled at any time.

Source: res_send.c of glibc 2.36, which asks the servers in turn, ``attempts`` times each; differs: glibc
gives up on one server before it asks the next, and begins each lookup with the first server of the file.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Self

import dns.name

from fleetlm.core.dns_answers import Outcome
from fleetlm.discovery.dns_exchange import Exchange, NameServer, ServerFailure
from fleetlm.discovery.dns_search import Records, RecordType
from fleetlm.discovery.resolv_conf import ResolverConfig, ServerAddress

MAX_PAUSE_S = 1.0
"""The longest pause before the next server is asked too, or the same one again: most answers take
milliseconds, and a lost packet should not cost the lookup."""
MIN_ATTEMPTS, MAX_ATTEMPTS = 2, 3
"""How often one server is asked in a lookup, within ``attempts`` of resolv.conf. Twice at least, since the
second query has no EDNS for a server that has not answered one yet."""
SERVFAIL_RETRY_PAUSE_S = 0.1
"""Seconds before the one retry after SERVFAIL, which is often over at once."""
LATE_ANSWER_S = 10.0
"""Seconds after a question in which its answer may serve a later lookup. Twice the default interval."""
MAX_QUESTIONS = 32
"""Questions that may wait for an answer at a time; each has a socket for each query. Six search domains with
two families make 12. More are needed only where slow servers are polled often; then the oldest is ended."""

TARGETS_AT_ONCE = 8
"""Hosts of SRV records that are asked for at the same time, by all names of a query together. They make 16
questions, half of `MAX_QUESTIONS`: more would end questions of their own lookup."""

Key = tuple[dns.name.Name, RecordType]


class Question:
    """One question to the name servers.

    Attributes:
        key: the name and the record type.
        asked_at: when it was asked, by the loop's clock.
        task: the task that asks; it returns the answer and does not raise.
        truncated: the best answer so far: what a truncated response holds.
        explain: returns why there is no answer so far.
    """

    def __init__(self, key: Key, asked_at: float) -> None:
        self.key = key
        self.asked_at = asked_at
        self.task: asyncio.Task[Records]
        self.truncated: Records | None = None
        self.explain: Callable[[], Records] = lambda: Records(Outcome.FAILED, (), "no answer in time")

    @property
    def answer(self) -> Records | None:
        """The answer; None while it is awaited, or if the question was ended."""
        return self.task.result() if self.task.done() and not self.task.cancelled() else None


class DnsClient:
    """The name servers of the current configuration, and the questions that wait for their answers.

    Attributes:
        target_slots: held while a host of an SRV record is asked for, so that few are at the same time.
    """

    def __init__(self) -> None:
        self.target_slots: asyncio.Semaphore = asyncio.Semaphore(TARGETS_AT_ONCE)
        self._servers: dict[ServerAddress, NameServer] = {}
        self._config = ResolverConfig()
        self._questions: list[Question] = []
        self._rotation = itertools.count()
        self._offset = 0

    def configure(self, config: ResolverConfig) -> None:
        """Ask the servers of this configuration from now on. What is known of those that stay is kept."""
        if config != self._config or not self._servers:
            self._config = config
            known = self._servers
            self._servers = {each: known.get(each) or NameServer(each) for each in config.servers}

    def begin_lookup(self) -> None:
        """Take the next server as the first one, where the configuration says ``rotate``."""
        self.target_slots = asyncio.Semaphore(TARGETS_AT_ONCE)  # a new one, since the loop may be another
        self._offset = next(self._rotation) if self._config.rotate else 0

    def ask(self, name: dns.name.Name, record_type: RecordType, *, within_s: float) -> Question:
        """Ask the servers for the records of a name.

        Args:
            name: the absolute name.
            record_type: the record type.
            within_s: seconds in which every server should get its turn.
        """
        now = asyncio.get_running_loop().time()
        self._questions = [each for each in self._questions if now - each.asked_at <= LATE_ANSWER_S]
        waiting = [each for each in self._questions if not each.task.done()]
        for oldest in waiting[: max(0, len(waiting) - MAX_QUESTIONS + 1)]:
            self._drop(oldest)
        question = Question((name, record_type), now)
        question.task = asyncio.get_running_loop().create_task(
            self._run(question, self._order_servers(now), within_s), name=f"fleetlm {record_type} {name}"
        )
        self._questions.append(question)
        return question

    def best_answer(self, question: Question) -> Records:
        """Return the answer to a question; without one, the newest answer to an older one like it.

        Without any, it is a failure that says which servers were asked.
        """
        if question.answer is not None:
            return question.answer
        if question.truncated is not None:
            return question.truncated
        for each in reversed(self._questions):
            late = each.answer if each.key == question.key else None
            if late is not None and late.outcome is not Outcome.FAILED:
                return late
        return question.explain()

    def settle(self, questions: Sequence[Question]) -> None:
        """Forget questions that were answered, and the older ones like them, whose answers are not needed."""
        answered = {each.key: each.asked_at for each in questions if each.answer is not None}
        for each in self._questions.copy():
            if each.asked_at <= answered.get(each.key, float("-inf")):
                self._drop(each)

    async def close(self) -> None:
        """End every question. The client can be used again afterwards."""
        tasks = [each.task for each in self._questions]
        self._questions.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, question: Question) -> None:
        question.task.cancel()
        self._questions.remove(question)

    def _order_servers(self, now: float) -> list[NameServer]:
        """Return the servers in the order in which they are asked: those that were silent come last."""
        servers = list(self._servers.values())
        start = self._offset % len(servers)
        return sorted(servers[start:] + servers[:start], key=lambda server: server.is_silent(now))

    async def _run(self, question: Question, servers: Sequence[NameServer], within_s: float) -> Records:
        attempts = min(max(self._config.attempts, MIN_ATTEMPTS), MAX_ATTEMPTS)
        pause_s = min(MAX_PAUSE_S, self._config.timeout_s, within_s / (len(servers) * attempts + 1))
        async with _Asking(question, use_tcp=self._config.use_tcp) as asking:
            question.explain = asking.explain_failure
            try:
                async with asyncio.timeout(LATE_ANSWER_S):
                    return await asking.run(servers, attempts, pause_s)
            except TimeoutError:
                return asking.explain_failure()


class _Asking:
    """The exchanges of one question."""

    def __init__(self, question: Question, *, use_tcp: bool) -> None:
        self._question = question
        self._use_tcp = use_tcp
        self._waiting: dict[asyncio.Task[Records], Exchange] = {}
        self._started: list[Exchange] = []
        self._failures: dict[NameServer, ServerFailure] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)

    async def run(self, servers: Sequence[NameServer], attempts: int, pause_s: float) -> Records:
        """Ask one server after the other, and listen to all of them."""
        for attempt in range(attempts):
            if attempt and not self._waiting:
                await asyncio.sleep(SERVFAIL_RETRY_PAUSE_S)
            for server in servers:
                failure = self._failures.get(server)
                if failure is not None and (not failure.may_pass or attempt > 1):
                    continue
                self._start(server, attempt)
                answer = await self._listen(pause_s)
                if answer is not None:
                    return answer
            if not self._waiting and not any(each.may_pass for each in self._failures.values()):
                break
        while self._waiting:
            answer = await self._listen(None)
            if answer is not None:
                return answer
        return self.explain_failure()

    def explain_failure(self) -> Records:
        """Return what is known when nobody has answered."""
        if self._question.truncated is not None:
            return self._question.truncated
        details = dict.fromkeys(str(failure) for failure in self._failures.values())
        silent = dict.fromkeys(str(each.server.address) for each in self._waiting.values())
        texts = [*details, *(f"no answer from {address}" for address in silent)]
        refusals = [failure.is_unsupported for failure in self._failures.values()]
        is_unserved = bool(refusals) and all(refusals) and not silent
        return Records(Outcome.FAILED, (), ", ".join(texts) or "no answer in time", is_unserved)

    def _start(self, server: NameServer, attempt: int) -> None:
        name, record_type = self._question.key
        exchange = Exchange(server, name, record_type, attempt=attempt, use_tcp=self._use_tcp)
        self._started.append(exchange)
        self._waiting[asyncio.get_running_loop().create_task(exchange.run())] = exchange

    async def _listen(self, pause_s: float | None) -> Records | None:
        """Wait for an answer; None after a failure, or after the pause."""
        done, _ = await asyncio.wait(self._waiting, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        answer = None
        for task in done:
            exchange = self._waiting.pop(task)
            try:
                answer = task.result()
            except ServerFailure as failure:
                self._failures[exchange.server] = failure
            else:
                self._note_silence(exchange)
            self._question.truncated = exchange.truncated or self._question.truncated
        for exchange in self._waiting.values():
            self._question.truncated = exchange.truncated or self._question.truncated
        return answer

    def _note_silence(self, answered: Exchange) -> None:
        """Note which servers had not answered when one did, and whether that one ignores EDNS."""
        now = asyncio.get_running_loop().time()
        for each in self._waiting.values():
            if each.server is not answered.server:
                each.server.was_silent(now, each.asked_at)
            elif each.has_edns and not answered.has_edns:
                each.server.was_silent_with_edns(now)
