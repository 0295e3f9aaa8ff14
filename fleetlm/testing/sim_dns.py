"""The name server of a simulated cluster: its records, and a script of answers for each node.

    cluster.dns.script(Reply.SERVFAIL)                            # to every node, from now on
    cluster.dns.script(Reply.SAMPLE, to=["10.0.0.1"], count=3)    # another answer for one node
    cluster.dns.script(Reply.ALL, to=["10.0.0.1"], extra=["10.9.9.9"], hidden=["10.0.0.2"])
    cluster.dns.remove("10.0.0.3")                                # a record is removed
    cluster.dns.add("10.0.0.3:4371")                              # an SRV record: it has a port
    cluster.dns.heal()                                            # complete answers to every node

The nodes ask through `SimDiscovery`, a `fleetlm.discovery.interface.Discovery` on virtual time.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Iterable

from fleetlm.core.dns_answers import Answer, Outcome, sift
from fleetlm.names import parse_address
from fleetlm.records import Record

DELAY_S = (0.0005, 0.02)
"""Shortest and longest time of a lookup, in seconds."""
TIMEOUT_S = 3.0
"""Seconds that a lookup without an answer takes. Source: the default of `Settings.dns_lifetime_s`."""


class Reply(enum.Enum):
    """How a lookup is answered."""

    ALL = "every record"
    SAMPLE = "a random sample of the records"
    EMPTY = "the name exists and has no address"
    NXDOMAIN = "the name does not exist"
    SERVFAIL = "the server fails at once"
    REFUSED = "the server refuses"
    TIMEOUT = "no name server answers"
    PARTIAL = "a random sample, and one family failed"
    NO_AAAA = "every A record, and the question for AAAA is never answered"
    RAISE = "the discovery itself is broken and raises"


class Script(Record):
    """How lookups are answered.

    Attributes:
        reply: the kind of answer.
        count: the most records in a SAMPLE or PARTIAL answer.
        delay_s: shortest and longest time of a lookup, in seconds; TIMEOUT takes `SimDns.timeout_s`.
        extra: addresses added to an answer: of former nodes, of strangers, or garbage.
        hidden: addresses that are left out of every answer; one without a port hides all of its ports.
    """

    reply: Reply = Reply.ALL
    count: int = 1
    delay_s: tuple[float, float] = DELAY_S
    extra: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


HEALTHY = Script()


class SimDns:
    """Records, and a script for each client.

    Args:
        rng: the source of samples and delays.
        timeout_s: seconds that a lookup without an answer takes.
    """

    def __init__(self, rng: random.Random, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.lookups: int = 0
        """Lookups that all nodes together have begun."""
        self._rng = rng
        self._records: dict[str, None] = {}
        self._for_all = HEALTHY
        self._for_one: dict[str, Script] = {}

    @property
    def records(self) -> list[str]:
        """The addresses of the name, some with ports, in the order in which they were added."""
        return list(self._records)

    def add(self, address: str) -> None:
        """Add an address to the name. Adding it again changes nothing.

        Args:
            address: an IP address, as an A record has it; or one with a port, as an SRV record and its host
                have them: ``10.0.0.7:4371``, ``[fd00::7]:4371``.
        """
        self._records[address] = None

    def remove(self, address: str) -> None:
        """Remove an address, if the name has it."""
        self._records.pop(address, None)

    def script(
        self,
        reply: Reply,
        *,
        to: Iterable[str] | None = None,
        count: int = 1,
        delay_s: tuple[float, float] = DELAY_S,
        extra: Iterable[str] = (),
        hidden: Iterable[str] = (),
    ) -> None:
        """Set how lookups that begin from now on are answered; see `Script`.

        Args:
            reply: the kind of answer.
            to: addresses of the nodes that get these answers; None means every node, and replaces
                the scripts of single nodes.
            count: see `Script`.
            delay_s: see `Script`.
            extra: see `Script`.
            hidden: see `Script`.
        """
        script = Script(reply, count, delay_s, tuple(extra), tuple(hidden))
        if to is None:
            self._for_all = script
            self._for_one.clear()
        else:
            self._for_one.update((ip, script) for ip in to)

    def heal(self) -> None:
        """Give complete answers to every node again."""
        self._for_all = HEALTHY
        self._for_one.clear()

    def client(self, ip: str) -> SimDiscovery:
        """Return the discovery of the node at that address."""
        return SimDiscovery(self, ip)

    async def answer(self, ip: str) -> Answer:
        """Do one lookup for the node at that address. Raises: OSError if its script is RAISE."""
        self.lookups += 1
        script = self._for_one.get(ip, self._for_all)
        if script.reply is Reply.TIMEOUT:
            await asyncio.sleep(self.timeout_s)
            return Answer(Outcome.FAILED, (), "timeout: no name server answered")
        await asyncio.sleep(self._rng.uniform(*script.delay_s))
        match script.reply:
            case Reply.RAISE:
                raise OSError("the discovery is broken")
            case Reply.EMPTY | Reply.NXDOMAIN:
                return Answer(Outcome.EMPTY, (), script.reply.name)
            case Reply.SERVFAIL | Reply.REFUSED:
                return Answer(Outcome.FAILED, (), f"{script.reply.name} from 10.255.255.53")
        return self._make_answer(script)

    def _make_answer(self, script: Script) -> Answer:
        named = [each for each in self._records if not {each, _host(each)} & {*script.hidden}]
        if script.reply is Reply.NO_AAAA:
            addresses, remark = sift(each for each in (*named, *script.extra) if ":" not in _host(each))
            outcome = Outcome.PARTIAL if addresses else Outcome.FAILED
            return Answer(outcome, addresses, f"{len(addresses)} addresses; AAAA failed", (4,))
        if script.reply is not Reply.ALL:
            named = self._rng.sample(named, min(script.count, len(named)))
        addresses, remark = sift([*named, *script.extra])
        if not addresses:
            outcome = Outcome.FAILED if script.reply is Reply.PARTIAL or remark else Outcome.EMPTY
            return Answer(outcome, (), remark or "no records")
        detail = f"{len(addresses)} addresses" + (f", {remark}" if remark else "")
        if script.reply is Reply.PARTIAL:
            return Answer(Outcome.PARTIAL, addresses, f"{detail}; AAAA failed")
        return Answer(Outcome.ADDRESSES, addresses, detail)


class SimDiscovery:
    """One node's `fleetlm.discovery.interface.Discovery`, answered by a `SimDns`.

    Args:
        dns: the name server.
        ip: the address of the node that asks.
    """

    def __init__(self, dns: SimDns, ip: str) -> None:
        self._dns = dns
        self._ip = ip

    @property
    def source(self) -> str:
        """A description of the source, for logs."""
        return "a simulated DNS name"

    async def lookup(self) -> Answer:
        """Do one lookup; it takes virtual time."""
        return await self._dns.answer(self._ip)


def _host(address: str) -> str:
    """Return an address without its port."""
    parts = parse_address(address)
    return address if parts is None else parts[0]
