"""Finds the addresses of the hosts that SRV records name.

Most servers put them into the additional section of the same response: Kubernetes and Consul do. The other
hosts are asked for here, `dns_client.TARGETS_AT_ONCE` at a time, by their absolute names: the search domains
do not apply to a target. Source: RFC 2782. All of it shares the deadline of the lookup, and what is not known
by then makes the answer partial. A question outlives the lookup, see `dns_client`.

A server may name any target, itself or thousands, so the work of one lookup is bounded: `MAX_TARGETS_ASKED`
hosts, each of them once, and no SRV records of a target are asked for. Where there are more, each lookup
begins after those that the last one asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dns.name

from fleetlm.core.dns_answers import Answer
from fleetlm.discovery.dns_client import DnsClient
from fleetlm.discovery.dns_questions import Search
from fleetlm.discovery.dns_search import Candidate, FamilyHistory
from fleetlm.discovery.dns_services import Host, conclude_services, read_host, sum_up
from fleetlm.discovery.resolv_conf import ResolverConfig

MAX_TARGETS_ASKED = 128
"""Hosts asked for in one lookup: more than servers without an additional section name (Cloud Map: 8). Each
costs about 2 ms of the loop's time, so all of them cost a quarter of a second."""


class TargetLookups:
    """The lookups of the hosts of one service, and what one teaches the next.

    Args:
        client: asks the name servers.
    """

    def __init__(self, client: DnsClient) -> None:
        self._client = client
        self._history = FamilyHistory()
        self._next = 0

    async def run(self, candidate: Candidate, remark: str, config: ResolverConfig, deadline: float) -> Answer:
        """Find the addresses of a service.

        Args:
            candidate: the name of the service with its SRV records.
            remark: words to add to the answer's detail.
            config: the configuration of the client.
            deadline: when the answer is due, on the loop's clock.
        """
        services = [each for records in candidate.found.values() for each in records.services]
        hosts = {each.target: Host(each.target, each.addresses) for each in services if each.addresses}
        missing = sorted({each.target for each in services if each.may_be_used} - hosts.keys())
        hosts |= await self._ask(missing, config, deadline)
        return conclude_services(candidate, hosts, remark)

    async def _ask(self, targets: Sequence[str], config: ResolverConfig, deadline: float) -> dict[str, Host]:
        """Ask for as many of these hosts as one lookup may."""
        start = self._next % len(targets) if targets else 0
        asked = [*targets[start:], *targets[:start]][:MAX_TARGETS_ASKED]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_one(each, config, deadline)) for each in asked]
        found = [task.result() for task in tasks]
        self._next = start + sum(candidate is not None for candidate in found)
        self._history.note(sum_up([candidate for candidate in found if candidate is not None]))
        return {name: read_host(name, candidate) for name, candidate in zip(asked, found, strict=True)}

    async def _ask_one(self, target: str, config: ResolverConfig, deadline: float) -> Candidate | None:
        """Ask for one host; None if its turn did not come in time."""
        async with self._client.target_slots:
            rest_s = deadline - asyncio.get_running_loop().time()
            if rest_s <= 0:
                return None
            search = Search(
                self._client,
                [dns.name.from_text(target)],
                config.families,
                self._history,
                one_at_a_time=config.single_request,
            )
            _, asked = await search.run(rest_s)
            return asked[0]
