"""A real DNS server over UDP and TCP whose answers a test scripts.

    async with DnsServer() as dns:
        dns.set("fleet.test", ["127.0.0.2", "127.0.0.3"])
        settings = {"DNS_CLUSTER_QUERY": "fleet.test.", "FLEETLM_DNS_SERVER": dns.address}
        ...
        dns.behave(Reply.SERVFAIL)                             # for every query from now on
        dns.behave(Fault(delay_s=0.2), "fleet.test", "AAAA")   # for one name and one record type
        dns.behave(Fault(sample=3))                            # 3 random addresses of all
        dns.set_srv("_fleetlm._tcp.fleet.test", [("a.test", 4370), ("b.test", 4371)])
        dns.heal()

`DnsServer.in_thread()` runs the server for code without an event loop, or for nodes in other processes.

Theory of operation. The zone and the faults are one immutable `_Script`. Methods of the server may be called
from any thread: they replace the script as a whole under a lock, so a query sees either none or all
of a change, and a change holds from the next query on. Queries are answered on the thread of the
server's loop. Each query takes its fault and its addresses in one step under the same lock (`_look_up`),
which also counts the query and uses up one of the fault's ``times``. Delayed answers are timers of the loop;
closing the server cancels them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ipaddress
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, replace
from functools import lru_cache, partial
from types import TracebackType
from typing import Literal, Self

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fleetlm.names import endpoint
from fleetlm.records import Record
from fleetlm.testing.dns_server_sockets import DnsSockets, Peer

RecordType = Literal["A", "AAAA", "SRV"]

PAYLOAD_BYTES = 1232
"""The largest UDP answer to a query with EDNS. Source: DNS flag day 2020."""
PAYLOAD_WITHOUT_EDNS_BYTES = 512
"""The largest UDP answer to a query without EDNS. Source: RFC 1035 §4.2.1."""
MAX_DELAYED_ANSWERS = 10_000
"""Answers held back at a time; further delayed answers are dropped."""

Target = tuple[str, int]
"""The host and the port of an SRV record."""


class Reply(enum.Enum):
    """How a query is answered."""

    ANSWER = "what the zone holds; NXDOMAIN for a name that it does not hold"
    EMPTY = "NOERROR without a record, as for a name without records of this type"
    NXDOMAIN = "NXDOMAIN, whether the zone holds the name or not"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    NOTIMP = "NOTIMP"
    DROP = "nothing: the client times out"
    HANG_UP = "nothing, and over TCP the end of the connection"
    GARBAGE = "random bytes"
    WRONG_ID = "the right answer with a wrong query id, as a forger would send it"


_RCODES = {
    Reply.NXDOMAIN: dns.rcode.NXDOMAIN,
    Reply.SERVFAIL: dns.rcode.SERVFAIL,
    Reply.REFUSED: dns.rcode.REFUSED,
    Reply.NOTIMP: dns.rcode.NOTIMP,
}


class Fault(Record):
    """How the server misbehaves. The fields combine: an answer can be late, a sample and truncated.

    Attributes:
        reply: how a query is answered.
        tcp_reply: how a query over TCP is answered; None means as over UDP.
        delay_s: seconds that the answer is held back.
        sample: the number of records in an answer, drawn at random for each query; None means all.
        truncate: the number of records in an answer over UDP, which then has the flag TC; answers
            over TCP are complete. None truncates only if the size requires it.
        additional: the number of targets of an SRV answer whose addresses are in its additional section;
            None means as many as the packet holds.
        edns: False answers a query with EDNS with FORMERR, as servers older than RFC 6891 do.
        drops_edns: True ignores a query with EDNS, as some gateways do.
    """

    reply: Reply = Reply.ANSWER
    tcp_reply: Reply | None = None
    delay_s: float = 0.0
    sample: int | None = None
    truncate: int | None = None
    additional: int | None = None
    edns: bool = True
    drops_edns: bool = False


_Scope = tuple[str | None, RecordType | None]


class _Script(Record):
    """The zone and the faults, replaced as a whole, so that no query sees half a change."""

    zone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    services: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    faults: Mapping[_Scope, tuple[Fault, int | None]] = field(default_factory=dict)

    def fault(self, name: str, rdtype: str) -> tuple[_Scope | None, Fault]:
        """Return the narrowest fault that covers the query, and the scope for which it was set."""
        for scope in self.faults:
            if scope[0] in (name, None) and scope[1] in (rdtype, None):
                return scope, self.faults[scope][0]
        return None, Fault()


class DnsServer:
    """A name server on loopback, on one port for UDP and TCP.

    Names of the zone match in upper and lower case and with or without the final dot; every other name
    is NXDOMAIN. Addresses come in random order, as those of Docker and Kubernetes do.

    Args:
        host: the address to bind.
        port: the port to bind; 0 takes a free port, see `address`.
        ttl_s: the TTL of every record, in seconds. The default is that of Docker.
        seed: the seed of the order of addresses, of samples and of garbage.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, ttl_s: int = 600, seed: int = 0) -> None:
        self.host = host
        self._wanted_port = port
        self._sockets: DnsSockets | None = None
        self._ttl_s = ttl_s
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._script = _Script()
        self._queries: Counter[tuple[str, str]] = Counter()
        self._bad_packets = 0
        self._delayed: set[asyncio.TimerHandle] = set()

    # The script; callable from any thread.

    @property
    def port(self) -> int:
        """The bound port. Raises: RuntimeError if the server was not started."""
        if self._sockets is None:
            raise RuntimeError("this DnsServer was not started; enter it with `async with` first")
        return self._sockets.port

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``, the value for ``FLEETLM_DNS_SERVER``."""
        return endpoint(self.host, self.port)

    @property
    def queries(self) -> Counter[tuple[str, str]]:
        """How often each name and type was queried: ``{("fleet.test", "A"): 3}``. A copy."""
        with self._lock:
            return self._queries.copy()

    @property
    def bad_packets(self) -> int:
        """How many packets were not DNS queries and were ignored."""
        with self._lock:
            return self._bad_packets

    def set(self, name: str, addresses: Iterable[str]) -> None:
        """Set the IPv4 and IPv6 addresses of ``name``; a name without addresses gives empty answers.

        Raises:
            ValueError: an address is invalid. The zone is unchanged.
        """
        wanted = tuple(dict.fromkeys(str(ipaddress.ip_address(each)) for each in addresses))
        self._edit(name, lambda _: wanted)

    def add(self, name: str, address: str) -> None:
        """Add an address to ``name``. Raises: ValueError if the address is invalid."""
        new = str(ipaddress.ip_address(address))
        self._edit(name, lambda old: (*(each for each in old if each != new), new))

    def remove(self, name: str, address: str) -> None:
        """Remove an address from ``name``; a name without addresses left becomes NXDOMAIN."""
        gone = str(ipaddress.ip_address(address))
        self._edit(name, lambda old: tuple(each for each in old if each != gone) or None)

    def delete(self, name: str) -> None:
        """Remove ``name`` and its SRV records from the zone; it becomes NXDOMAIN."""
        self._edit(name, lambda _: None)
        self._edit_services(name, lambda _: None)

    def set_srv(self, name: str, targets: Iterable[Target]) -> None:
        """Set the SRV records of ``name``: the host and the port of each node.

        The additional section of an answer has the addresses of those hosts that the zone holds. A host
        ``.`` says that there is no such service.

        Raises:
            ValueError: a port is not between 0 and 65535. The zone is unchanged.
        """
        wanted = tuple(dict.fromkeys(_check_target(*target) for target in targets))
        self._edit_services(name, lambda _: wanted)

    def add_srv(self, name: str, host: str, port: int) -> None:
        """Add an SRV record to ``name``. Raises: ValueError if the port is invalid."""
        new = _check_target(host, port)
        self._edit_services(name, lambda old: (*(each for each in old if each != new), new))

    def remove_srv(self, name: str, host: str, port: int) -> None:
        """Remove an SRV record from ``name``; a name without records left becomes NXDOMAIN."""
        gone = _check_target(host, port)
        self._edit_services(name, lambda old: tuple(each for each in old if each != gone) or None)

    def behave(
        self,
        fault: Fault | Reply,
        name: str | None = None,
        rdtype: RecordType | None = None,
        *,
        times: int | None = None,
    ) -> None:
        """Answer with this fault from now on.

        Args:
            fault: the fault; a bare `Reply` stands for ``Fault(reply)``.
            name: only queries for this name; None means every name.
            rdtype: only queries for this type; None means every type.
            times: the number of queries after which the fault ends; None means no limit.

        The narrowest fault wins: name and type, then name, then type, then every query.
        """
        if isinstance(fault, Reply):
            fault = Fault(fault)
        scope: _Scope = (None if name is None else _zone_key(name), rdtype)
        with self._lock:
            faults = {**self._script.faults, scope: (fault, times)}
            narrowest_first = sorted(faults.items(), key=lambda item: _scope_width(item[0]))
            self._script = replace(self._script, faults=dict(narrowest_first))

    def heal(self) -> None:
        """End every fault. The zone is unchanged."""
        with self._lock:
            self._script = replace(self._script, faults={})

    def _edit(self, name: str, change: Callable[[tuple[str, ...]], tuple[str, ...] | None]) -> None:
        key = _zone_key(name)
        with self._lock:
            zone = dict(self._script.zone)
            addresses = change(zone.pop(key, ()))
            if addresses is not None:
                zone[key] = addresses
            self._script = replace(self._script, zone=zone)

    def _edit_services(
        self, name: str, change: Callable[[tuple[Target, ...]], tuple[Target, ...] | None]
    ) -> None:
        key = _zone_key(name)
        with self._lock:
            services = dict(self._script.services)
            targets = change(services.pop(key, ()))
            if targets is not None:
                services[key] = targets
            self._script = replace(self._script, services=services)

    # Start and stop; on the thread of the server's loop.

    async def __aenter__(self) -> Self:
        """Bind the sockets and answer queries. Raises: OSError if the address cannot be bound."""
        self._sockets = await DnsSockets.open(self.host, self._wanted_port, self._received)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sockets; answers that are held back are not sent."""
        for timer in self._delayed:
            timer.cancel()
        self._delayed.clear()
        if self._sockets is not None:
            await self._sockets.close()

    @classmethod
    @contextlib.contextmanager
    def in_thread(
        cls, host: str = "127.0.0.1", port: int = 0, *, ttl_s: int = 600, seed: int = 0
    ) -> Iterator[Self]:
        """Run a server in its own thread, for callers without an event loop.

        Raises:
            OSError: the address cannot be bound. No thread was started.
        """
        server = cls(host, port, ttl_s=ttl_s, seed=seed)
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(server.__aenter__())
            thread = threading.Thread(target=loop.run_forever, name="fleetlm-dns", daemon=True)
            thread.start()
            try:
                yield server
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.run_until_complete(server.__aexit__(None, None, None))
        finally:
            loop.close()

    # Answering.

    def _received(self, wire: bytes, peer: Peer) -> None:
        """Answer a packet as the script says; count one that is not a query, and ignore it."""
        try:
            query = dns.message.from_wire(wire)
        except Exception:  # noqa: BLE001  not every error of dnspython is a DNSException
            query = None
        if query is None or not _is_query(query):
            with self._lock:
                self._bad_packets += 1
            return
        question = query.question[0]
        name, rdtype = _name_text(question.name), dns.rdatatype.to_text(question.rdtype)
        fault, records = self._look_up(name, rdtype)
        reply = fault.reply if fault.tcp_reply is None or not peer.over_tcp else fault.tcp_reply
        answer = self._answer(query, reply, fault, records, over_tcp=peer.over_tcp)
        if answer is not None:
            self._run_after(fault.delay_s, partial(peer.send, answer))
        elif reply is Reply.HANG_UP:
            self._run_after(fault.delay_s, peer.abort)

    def _look_up(self, name: str, rdtype: str) -> tuple[Fault, tuple[str, ...] | None]:
        """Count a query and return its fault and records; the records are None for an unknown name."""
        with self._lock:
            self._queries[name, rdtype] += 1
            scope, fault = self._script.fault(name, rdtype)
            if scope is not None:
                times = self._script.faults[scope][1]
                if times is not None:
                    rest = {**self._script.faults, scope: (fault, times - 1)}
                    if times <= 1:
                        del rest[scope]
                    self._script = replace(self._script, faults=rest)
            script = self._script
        if name not in script.zone and name not in script.services:
            return fault, None
        if rdtype == "SRV":
            records = [f"1 10 {port} {host}" for host, port in script.services.get(name, ())]
        else:
            records = _select_family(script.zone.get(name, ()), rdtype)
        self._random.shuffle(records)
        return fault, tuple(records[: fault.sample])

    def _answer(
        self,
        query: dns.message.Message,
        reply: Reply,
        fault: Fault,
        records: tuple[str, ...] | None,
        *,
        over_tcp: bool,
    ) -> bytes | None:
        """Build the packet of an answer; None sends nothing."""
        if reply in (Reply.DROP, Reply.HANG_UP) or (fault.drops_edns and query.edns >= 0):
            return None
        if reply is Reply.GARBAGE:
            return self._random.randbytes(48)
        response = dns.message.make_response(query, our_payload=PAYLOAD_BYTES)
        response.flags |= dns.flags.RA
        if query.edns >= 0 and not fault.edns:
            response.use_edns(False)
            response.set_rcode(dns.rcode.FORMERR)
            return response.to_wire()
        if reply is Reply.WRONG_ID:
            response.id = query.id ^ 1
        if reply in _RCODES or (reply is not Reply.EMPTY and records is None):
            response.set_rcode(_RCODES.get(reply, dns.rcode.NXDOMAIN))
            return response.to_wire()
        if reply is Reply.EMPTY or not records:
            return response.to_wire()
        if over_tcp:
            return self._pack(response, records, 65_535, fault.additional)
        if fault.truncate is not None:
            response.flags |= dns.flags.TC
            records = records[: fault.truncate]
        limit = PAYLOAD_WITHOUT_EDNS_BYTES
        if query.edns >= 0:
            limit = min(max(limit, query.payload), PAYLOAD_BYTES)
        return self._pack(response, records, limit, fault.additional)

    def _pack(
        self,
        response: dns.message.Message,
        records: tuple[str, ...],
        limit_bytes: int,
        additional: int | None,
    ) -> bytes:
        """Return the answer with as many records as fit; the flag TC says that some did not."""
        question = response.question[0]
        room_bytes = limit_bytes - len(response.to_wire())
        fitting = []
        for record in records:
            room_bytes -= _measure(record, question.rdtype)
            if room_bytes < 0:
                response.flags |= dns.flags.TC
                break
            fitting.append(record)
        if fitting:
            rrset = self._make_set(question.name, question.rdtype, fitting)
            response.answer.append(rrset)
            if question.rdtype == dns.rdatatype.SRV:
                self._add_targets(response, rrset, room_bytes, additional)
        return response.to_wire(max_size=65_535)

    def _add_targets(
        self, response: dns.message.Message, services: dns.rrset.RRset, room_bytes: int, limit: int | None
    ) -> None:
        """Add the addresses of the targets, as far as they fit. No flag tells of those that do not."""
        targets = list(dict.fromkeys(record.target for record in services))[:limit]
        with self._lock:
            zone = self._script.zone
        for target in targets:
            for rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                held = _select_family(zone.get(_name_text(target), ()), rdtype.name)
                room_bytes -= sum(len(target.to_digestable()) + _measure(each, rdtype) for each in held)
                if held and room_bytes >= 0:
                    response.additional.append(self._make_set(target, rdtype, held))

    def _make_set(
        self, owner: dns.name.Name, rdtype: dns.rdatatype.RdataType, texts: list[str]
    ) -> dns.rrset.RRset:
        """Return the records of one name and type."""
        return dns.rrset.from_rdata_list(owner, self._ttl_s, [_parse_record(rdtype, text) for text in texts])

    def _run_after(self, delay_s: float, action: Callable[[], None]) -> None:
        if delay_s <= 0:
            action()
            return
        if len(self._delayed) >= MAX_DELAYED_ANSWERS:
            return

        def act() -> None:
            self._delayed.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(delay_s, act)
        self._delayed.add(timer)


def _is_query(message: dns.message.Message) -> bool:
    return (
        message.opcode() == dns.opcode.QUERY
        and not message.flags & dns.flags.QR
        and [question.rdclass for question in message.question] == [dns.rdataclass.IN]
    )


def _check_target(host: str, port: int) -> Target:
    """Return the target with the absolute name of its host. Raises: ValueError."""
    if not 0 <= port <= 65_535:
        raise ValueError(f"{port} is not a port: 0 to 65535")
    return dns.name.from_text(host).to_text().lower(), port


def _select_family(addresses: Iterable[str], rdtype: str) -> list[str]:
    """Return the addresses of that family, which are canonical texts."""
    if rdtype not in ("A", "AAAA"):
        return []
    return [each for each in addresses if (":" in each) == (rdtype == "AAAA")]


@lru_cache(maxsize=4_096)  # Every node of a cluster asks for the same records.
def _parse_record(rdtype: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text(dns.rdataclass.IN, rdtype, text)


def _measure(record: str, rdtype: dns.rdatatype.RdataType) -> int:
    """Return the bytes of a record whose owner is named before. Source: RFC 1035 §4.1.3, RFC 2782."""
    if rdtype == dns.rdatatype.SRV:
        return 12 + 6 + len(dns.name.from_text(record.rsplit(maxsplit=1)[-1]).to_digestable())
    return 12 + (4 if rdtype == dns.rdatatype.A else 16)


def _zone_key(name: str) -> str:
    return _name_text(dns.name.from_text(name))


def _name_text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _scope_width(scope: _Scope) -> int:
    return 2 * (scope[0] is None) + (scope[1] is None)
