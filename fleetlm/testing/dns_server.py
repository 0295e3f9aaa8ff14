"""A real DNS server, over UDP and TCP, whose answers a test scripts.

    async with DnsServer() as dns:
        dns.set("fleet.test", ["127.0.0.2", "127.0.0.3"])
        settings = {"DNS_CLUSTER_QUERY": "fleet.test.", "FLEETLM_DNS_SERVER": dns.address}
        ...
        dns.behave(Reply.SERVFAIL)                             # every query, from now on
        dns.behave(Fault(delay_s=0.2), "fleet.test", "AAAA")   # one name, one record type
        dns.behave(Fault(sample=3))                            # 3 random addresses of all
        dns.heal()

`DnsServer.in_thread()` runs it beside code that has no event loop, or for nodes in other
processes. Every method may be called from any thread, and holds from the next query on.
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
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Literal, Self

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fleetlm.names import endpoint
from fleetlm.testing.dns_server_sockets import DnsSockets, Peer

RecordType = Literal["A", "AAAA"]

PAYLOAD_BYTES = 1232
"""The largest UDP answer to a query with EDNS. Source: DNS flag day 2020."""
PAYLOAD_WITHOUT_EDNS_BYTES = 512
MAX_DELAYED_ANSWERS = 10_000


class Reply(enum.Enum):
    """What a query gets back."""

    ANSWER = "what the zone holds; NXDOMAIN for a name that it does not hold"
    EMPTY = "NOERROR without a record, as a name that has none of this type"
    NXDOMAIN = "NXDOMAIN, whether the zone holds the name or not"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    DROP = "nothing: the asker times out"
    HANG_UP = "nothing, and over TCP the end of the connection"
    GARBAGE = "random bytes"
    WRONG_ID = "the right answer under the id of another query, as a forger would send it"


_RCODES = {
    Reply.NXDOMAIN: dns.rcode.NXDOMAIN,
    Reply.SERVFAIL: dns.rcode.SERVFAIL,
    Reply.REFUSED: dns.rcode.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """How the server misbehaves. The fields combine: late *and* a sample *and* truncated.

    Attributes:
        reply: what a query gets back.
        tcp_reply: the same for queries over TCP; None means as over UDP.
        delay_s: seconds that the answer is held back.
        sample: that many addresses, drawn at random for each query; None means all.
        truncate: answers over UDP hold only that many addresses and say so (TC); over TCP they
            are whole. None means where the size demands it.
        edns: False answers FORMERR to a query with EDNS, as servers older than RFC 6891 do.
    """

    reply: Reply = Reply.ANSWER
    tcp_reply: Reply | None = None
    delay_s: float = 0.0
    sample: int | None = None
    truncate: int | None = None
    edns: bool = True


_Scope = tuple[str | None, RecordType | None]


@dataclass(frozen=True, slots=True)
class _Script:
    """What decides an answer, replaced as a whole: no query sees half a change."""

    zone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    faults: Mapping[_Scope, tuple[Fault, int | None]] = field(default_factory=dict)

    def fault(self, name: str, rdtype: str) -> tuple[_Scope | None, Fault]:
        """The narrowest fault that covers the query, and the scope it was set for."""
        for scope in self.faults:
            if scope[0] in (name, None) and scope[1] in (rdtype, None):
                return scope, self.faults[scope][0]
        return None, Fault()


class DnsServer:
    """A name server on loopback, on one port for UDP and TCP.

    Names are those of the zone, in any case and with or without the final dot; every other name
    is NXDOMAIN. Answers come in random order, as those of Docker and Kubernetes do.

    Args:
        host: the address to bind.
        port: the port to bind; 0 takes a free one, which `address` then tells.
        ttl_s: seconds, the TTL of every record. The default is what Docker says.
        seed: of the order of answers, of samples and of garbage.
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

    # The script: any thread.

    @property
    def port(self) -> int:
        """The bound port. Raises: RuntimeError before the server was started."""
        if self._sockets is None:
            raise RuntimeError("this DnsServer was not started: enter it with `async with` first")
        return self._sockets.port

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``, the value for ``FLEETLM_DNS_SERVER``."""
        return endpoint(self.host, self.port)

    @property
    def queries(self) -> Counter[tuple[str, str]]:
        """How often each name and type was asked: ``{("fleet.test", "A"): 3}``. A copy."""
        with self._lock:
            return self._queries.copy()

    @property
    def bad_packets(self) -> int:
        """How many packets were no DNS query, and were passed over."""
        with self._lock:
            return self._bad_packets

    def set(self, name: str, addresses: Iterable[str]) -> None:
        """Let ``name`` have these IPv4 and IPv6 addresses and no other; with none it answers empty.

        Raises:
            ValueError: an address is none. The zone is as it was.
        """
        wanted = tuple(dict.fromkeys(str(ipaddress.ip_address(each)) for each in addresses))
        self._edit(name, lambda _: wanted)

    def add(self, name: str, address: str) -> None:
        """Give ``name`` one more address. Raises: ValueError if it is none."""
        new = str(ipaddress.ip_address(address))
        self._edit(name, lambda old: (*(each for each in old if each != new), new))

    def remove(self, name: str, address: str) -> None:
        """Take one address from ``name``, which is NXDOMAIN once it has none left."""
        gone = str(ipaddress.ip_address(address))
        self._edit(name, lambda old: tuple(each for each in old if each != gone) or None)

    def delete(self, name: str) -> None:
        """Take ``name`` out of the zone: it is NXDOMAIN."""
        self._edit(name, lambda _: None)

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
            times: only that many queries, after which the fault is gone; None means for ever.

        A fault for a name and a type goes before one for the name, that before one for the type,
        that before one for everything.
        """
        if isinstance(fault, Reply):
            fault = Fault(fault)
        scope: _Scope = (None if name is None else _key(name), rdtype)
        with self._lock:
            faults = {**self._script.faults, scope: (fault, times)}
            narrowest_first = sorted(faults.items(), key=lambda item: _width(item[0]))
            self._script = replace(self._script, faults=dict(narrowest_first))

    def heal(self) -> None:
        """End every fault. The zone stays."""
        with self._lock:
            self._script = replace(self._script, faults={})

    def _edit(self, name: str, change: Callable[[tuple[str, ...]], tuple[str, ...] | None]) -> None:
        key = _key(name)
        with self._lock:
            zone = dict(self._script.zone)
            addresses = change(zone.pop(key, ()))
            if addresses is not None:
                zone[key] = addresses
            self._script = replace(self._script, zone=zone)

    # The life of the server: the thread of its loop.

    async def __aenter__(self) -> Self:
        """Bind and answer. Raises: OSError, where the address cannot be bound."""
        self._sockets = await DnsSockets.open(self.host, self._wanted_port, self._received)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unbind; answers held back are not sent."""
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
        """Run a server in a thread of its own, for callers without an event loop.

        Raises:
            OSError: the address cannot be bound. No thread is left.
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
        try:
            query = dns.message.from_wire(wire)
        except Exception:  # noqa: BLE001  not all of dnspython's complaints are DNSException
            query = None
        if query is None or not _is_query(query):
            with self._lock:
                self._bad_packets += 1
            return
        question = query.question[0]
        name, rdtype = _text(question.name), dns.rdatatype.to_text(question.rdtype)
        fault, addresses = self._look_up(name, rdtype)
        reply = fault.reply if fault.tcp_reply is None or not peer.over_tcp else fault.tcp_reply
        answer = self._answer(query, reply, fault, addresses, over_tcp=peer.over_tcp)
        if answer is not None:
            self._after(fault.delay_s, partial(peer.send, answer))
        elif reply is Reply.HANG_UP:
            self._after(fault.delay_s, peer.abort)

    def _look_up(self, name: str, rdtype: str) -> tuple[Fault, tuple[str, ...] | None]:
        """The fault and the addresses for a query, which is counted; None where the name is not."""
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
            held = self._script.zone.get(name)
        if held is None:
            return fault, None
        family = {"A": 4, "AAAA": 6}.get(rdtype)
        addresses = [each for each in held if ipaddress.ip_address(each).version == family]
        self._random.shuffle(addresses)
        return fault, tuple(addresses[: fault.sample])

    def _answer(
        self,
        query: dns.message.Message,
        reply: Reply,
        fault: Fault,
        addresses: tuple[str, ...] | None,
        *,
        over_tcp: bool,
    ) -> bytes | None:
        if reply in (Reply.DROP, Reply.HANG_UP):
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
        if reply in _RCODES or (reply is not Reply.EMPTY and addresses is None):
            response.set_rcode(_RCODES.get(reply, dns.rcode.NXDOMAIN))
            return response.to_wire()
        if reply is Reply.EMPTY or not addresses:
            return response.to_wire()
        if over_tcp:
            return self._fit(response, addresses, 65_535)
        if fault.truncate is not None:
            response.flags |= dns.flags.TC
            addresses = addresses[: fault.truncate]
        limit = PAYLOAD_WITHOUT_EDNS_BYTES
        if query.edns >= 0:
            limit = min(max(limit, query.payload), PAYLOAD_BYTES)
        return self._fit(response, addresses, limit)

    def _fit(self, response: dns.message.Message, addresses: tuple[str, ...], limit_bytes: int) -> bytes:
        """The answer with as many addresses as fit; fewer than all sets TC."""
        question = response.question[0]
        bare_bytes = len(response.to_wire())
        record_bytes = 12 + (4 if question.rdtype == dns.rdatatype.A else 16)  # RFC 1035 §4.1.3
        room = (limit_bytes - bare_bytes) // record_bytes
        if len(addresses) > room:
            response.flags |= dns.flags.TC
            addresses = addresses[:room]
        if addresses:
            response.answer.append(
                dns.rrset.from_text_list(
                    question.name, self._ttl_s, question.rdclass, question.rdtype, addresses
                )
            )
        return response.to_wire(max_size=65_535)

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
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


def _key(name: str) -> str:
    return _text(dns.name.from_text(name))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _width(scope: _Scope) -> int:
    return 2 * (scope[0] is None) + (scope[1] is None)
