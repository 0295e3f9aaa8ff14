"""Name servers on virtual time that answer as a script says, and lookups of one name there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns_client import DnsClient
from fleetlm.discovery.dns_exchange import Exchange, ServerFailure
from fleetlm.discovery.dns_lookup import NameLookup
from fleetlm.discovery.dns_search import Records
from fleetlm.discovery.resolv_conf import ResolverConfig, parse
from fleetlm.testing.loop import SimLoop

FAST_S = 0.01
FOUND = Records(Outcome.ADDRESSES, ("10.0.0.2",))
V6 = Records(Outcome.ADDRESSES, ("fdaa::2",))
NO_RECORD = Records(Outcome.EMPTY, (), "no record")
NXDOMAIN = Records(Outcome.EMPTY, (), "NXDOMAIN")
SERVFAIL = ServerFailure("SERVFAIL", may_pass=True)
REFUSED = ServerFailure("REFUSED")
SILENCE = None
Reply = Records | ServerFailure | None

POD = "search ns.svc svc corp\noptions ndots:5\n"


@dataclass
class World:
    """Name servers: what each one answers, after which time, and who was asked what and when."""

    zone: dict[tuple[str, str], Reply] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    drops_edns: set[str] = field(default_factory=set)
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[float, str, str, str, bool]] = field(default_factory=list)

    async def run(self, exchange: Exchange) -> Records:
        ip = exchange.server.address.ip
        name, family = str(exchange._name), exchange._record_type
        self.asked.append((round(SimLoop.current().time(), 3), ip, name, family, exchange.has_edns))
        reply = self.replies.get(ip) or self.zone.get((name, family), NXDOMAIN)
        if reply is SILENCE or ip in self.silent or (ip in self.drops_edns and exchange.has_edns):
            await asyncio.Event().wait()
        await asyncio.sleep(self.delays.get(ip, FAST_S))
        exchange.server.answered(SimLoop.current().time(), with_edns=exchange.has_edns)
        if isinstance(reply, ServerFailure):
            raise reply
        assert reply is not None
        return reply

    def set(self, name: str, a: Reply, aaaa: Reply = NO_RECORD) -> None:
        self.zone[name, "A"], self.zone[name, "AAAA"] = a, aaaa

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer every exchange from now on."""

        async def run(exchange: Exchange) -> Records:
            return await self.run(exchange)

        monkeypatch.setattr(Exchange, "run", run)

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for _, _, name, _, _ in self.asked))

    def servers(self, family: str = "A") -> list[str]:
        return [ip for _, ip, _, each, _ in self.asked if each == family]


class Rig:
    """One name, looked up again and again."""

    def __init__(self, conf: str, name: str = "w", *, lifetime_s: float = 3.0) -> None:
        self.config: ResolverConfig = parse(conf, source="resolv.conf")
        self.client = DnsClient()
        self.client.configure(self.config)
        self.lookups = NameLookup(name, self.client, lifetime_s)

    async def run(self) -> tuple[Answer, float]:
        """Look up, and return the answer and the seconds that it took."""
        started = SimLoop.current().time()
        self.client.begin_lookup()
        answer = await self.lookups.run(self.config)
        return answer, round(SimLoop.current().time() - started, 3)

    async def poll(self, times: int, every_s: float) -> list[Outcome]:
        outcomes = []
        for _ in range(times):
            answer, took_s = await self.run()
            outcomes.append(answer.outcome)
            await asyncio.sleep(max(every_s - took_s, 0.0))
        return outcomes


def servers(*ips: str) -> str:
    return "".join(f"nameserver {ip}\n" for ip in ips)


ONE = servers("1.0.0.1")
TWO = servers("1.0.0.1", "1.0.0.2")
THREE = servers("1.0.0.1", "1.0.0.2", "1.0.0.3")
