"""The lookups of one name in DNS, and what one lookup teaches the next.

`dns_questions` asks for the candidates that the search domains make of the name, and `dns_search` decides
what the answers mean. The name of a service has SRV records; `dns_targets` then finds the addresses of its
hosts, within the same ``lifetime_s`` seconds.
"""

from __future__ import annotations

import asyncio

import dns.exception
import dns.name

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns_client import DnsClient
from fleetlm.discovery.dns_questions import Search
from fleetlm.discovery.dns_search import Candidate, Choice, FamilyHistory, State, conclude
from fleetlm.discovery.dns_targets import TargetLookups
from fleetlm.discovery.resolv_conf import ResolverConfig
from fleetlm.setting_parsers import is_service_name

LOOKUPS_UNTIL_MOVED = 12
"""Failed lookups in a row after which the name's home does not count any more: a minute at the default
interval, which is longer than a name server takes to restart."""
SERVICE_SHARE = 0.6
"""The part of a lookup in which SRV records must come. The rest is for the addresses of their hosts, so that
with slow servers the questions for these are asked too, whose late answers serve the next lookup."""


class NameLookup:
    """The lookups of one name.

    Args:
        name: the name, as it was given. If it begins with ``_``, it is asked for SRV records.
        client: asks the name servers.
        lifetime_s: seconds for one lookup.
    """

    def __init__(self, name: str, client: DnsClient, lifetime_s: float) -> None:
        self.name = name
        self.is_service: bool = is_service_name(name)
        self._client = client
        self._targets = TargetLookups(client)
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
        deadline = asyncio.get_running_loop().time() + self._lifetime_s
        search = Search(
            self._client,
            names,
            ("SRV",) if self.is_service else config.families,
            self._history,
            home=self._home,
            one_at_a_time=config.single_request,
        )
        choice, asked = await search.run(self._lifetime_s * (SERVICE_SHARE if self.is_service else 1.0))
        if self.is_service and choice.candidate is not None and choice.candidate.state is State.EXISTS:
            answer = await self._targets.run(choice.candidate, choice.remark, config, deadline)
        else:
            answer = conclude(choice, asked)
        self._learn(choice, asked, answer)
        return answer

    def _learn(self, choice: Choice, asked: list[Candidate], answer: Answer) -> None:
        """Note where the name has its records, and which families are answered."""
        decisive = choice.candidate or (asked[-1] if asked else None)
        if decisive is not None:
            self._history.note(decisive)
        self._failures = self._failures + 1 if answer.outcome is Outcome.FAILED else 0
        if answer.addresses and decisive is not None:
            self._home = decisive.name
        elif self._failures >= LOOKUPS_UNTIL_MOVED:
            self._home = None
