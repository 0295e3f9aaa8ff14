"""One question to one name server: the packets, and what is known of the server.

An exchange sends one query over UDP from a socket of its own, whose port is random, and waits for the
response without a limit; its caller has one. Packets that do not answer the query are ignored, since
anybody may send them. A truncated response is asked for again over TCP.

Every query has EDNS, without which Consul names 3 nodes only. Some servers answer it with an error and some
gateways drop it. `NameServer.wants_edns` decides whether a server is asked with it, and remembers what was
seen for `EDNS_MEMORY_S`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fleetlm.core.dns_answers import Outcome
from fleetlm.discovery.dns_search import NXDOMAIN, Records, RecordType, Service
from fleetlm.discovery.own_thread import OwnThread
from fleetlm.discovery.resolv_conf import ServerAddress

EDNS_PAYLOAD_BYTES = 1232
"""The largest UDP answer that is asked for. Without EDNS, Consul returns only 3 nodes and does not set
the truncation bit. Source: DNS flag day 2020, whose size avoids IP fragmentation."""
EDNS_MEMORY_S = 600.0
"""Seconds for which it is remembered whether a server can be asked with EDNS. Source: unbound remembers for
900 s; shorter here, since an answer without EDNS may be a sample."""
SILENCES_UNTIL_PLAIN = 2
"""Questions in a row that were answered without EDNS only, until the server is asked without it at once. One
may be a lost packet."""
MEMORY_OF_SILENCE_S = 30.0
"""Seconds for which a server that was silent is asked after the others. Then it is tried first again."""
MAX_PACKET_BYTES = 65_535
MAX_ALIASES = 16
"""Aliases that are followed to an address in the additional section, as dnspython follows in an answer."""


class ServerFailure(Exception):
    """A server gave no usable answer; the text says what it did.

    Attributes:
        may_pass: whether the same server may answer the same question a moment later.
        is_unsupported: whether it says that it does not implement the question.
    """

    def __init__(self, text: str, *, may_pass: bool = False, is_unsupported: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass
        self.is_unsupported = is_unsupported


class NameServer:
    """A name server, and what its behaviour has shown. Times are those of the loop's clock.

    Args:
        address: where it listens.
    """

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self._heard_at = float("-inf")
        self._silent_until = float("-inf")
        self._edns: bool | None = None
        self._edns_until = float("-inf")
        self._edns_silences = 0

    def is_silent(self, now: float) -> bool:
        """Whether it has not answered lately, so that others are asked first."""
        return now < self._silent_until

    def was_silent(self, now: float, since: float) -> None:
        """Note that it was asked at ``since`` and has not answered, unless it has answered others since."""
        if self._heard_at < since:
            self._silent_until = now + MEMORY_OF_SILENCE_S

    def wants_edns(self, now: float, attempt: int) -> bool:
        """Whether to ask with EDNS: the first time, and further ones if it has answered that before."""
        if now < self._edns_until and self._edns is not None:
            return self._edns
        return attempt == 0

    def answered(self, now: float, *, with_edns: bool) -> None:
        """Note an answer, and whether the question had EDNS."""
        self._heard_at = now
        self._silent_until = float("-inf")
        if with_edns:
            self._edns_silences = 0
            self._remember_edns(now, works=True)

    def was_silent_with_edns(self, now: float) -> None:
        """Note that it answered a question without EDNS, and had not answered the same one with it."""
        self._edns_silences += 1
        if self._edns_silences >= SILENCES_UNTIL_PLAIN:
            self._remember_edns(now, works=False)

    def refused_edns(self, now: float) -> None:
        """Note that it answered a question with EDNS by an error, and the same one without by an answer."""
        self._remember_edns(now, works=False)

    def _remember_edns(self, now: float, *, works: bool) -> None:
        self._edns = works
        self._edns_until = now + EDNS_MEMORY_S


class Exchange:
    """One question to one server.

    Args:
        server: the server; what it does is noted there.
        name: the absolute name.
        record_type: the record type.
        attempt: how often this server was asked before for the same lookup.
        use_tcp: whether to ask over TCP from the start.

    Attributes:
        truncated: what a truncated response held, while it is asked for again over TCP.
        has_edns: whether the first query has EDNS.
        asked_at: when the exchange began.
    """

    def __init__(
        self,
        server: NameServer,
        name: dns.name.Name,
        record_type: RecordType,
        *,
        attempt: int,
        use_tcp: bool,
    ) -> None:
        self.server = server
        self.truncated: Records | None = None
        self.asked_at: float = asyncio.get_running_loop().time()
        self.has_edns: bool = server.wants_edns(self.asked_at, attempt)
        self._name = name
        self._record_type = record_type
        self._use_tcp = use_tcp

    async def run(self) -> Records:
        """Return the server's answer.

        Raises:
            ServerFailure: there was none that can be used.
        """
        try:
            response = await self._ask(self.has_edns)
            if self.has_edns and response.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS):
                response = await self._ask_without_edns(response)
            return self._read(response)
        except OSError as error:
            raise ServerFailure(f"{self.server.address}: {_describe_os_error(error)}") from None
        except EOFError:
            raise ServerFailure(f"a closed connection from {self.server.address}") from None
        except dns.exception.DNSException as error:
            raise ServerFailure(f"{type(error).__name__} from {self.server.address}") from None

    async def _ask_without_edns(self, refusal: dns.message.Message) -> dns.message.Message:
        """Ask a server again that may be older than EDNS. Source: RFC 6891 §7."""
        plain = await self._ask(with_edns=False)
        if plain.rcode() != refusal.rcode():
            self.server.refused_edns(asyncio.get_running_loop().time())
        return plain

    async def _ask(self, with_edns: bool) -> dns.message.Message:
        """Send one query and return its response, over TCP if it does not fit into a packet."""
        query = dns.message.make_query(
            self._name, self._record_type, use_edns=0 if with_edns else False, payload=EDNS_PAYLOAD_BYTES
        )
        if self._use_tcp:
            response = await _exchange_tcp(self.server.address, query)
        else:
            response = await _exchange_udp(self.server.address, query)
        self.server.answered(asyncio.get_running_loop().time(), with_edns=with_edns)
        if not response.flags & dns.flags.TC or self._use_tcp:
            return response
        return await self._ask_over_tcp(query, response)

    async def _ask_over_tcp(
        self, query: dns.message.Message, truncated: dns.message.Message
    ) -> dns.message.Message:
        found = self._read_records(truncated)
        if found.is_some:
            text = "truncated, and TCP failed (no answer in time)"
            self.truncated = replace(found, outcome=Outcome.PARTIAL, detail=text)
        try:
            response = await _exchange_tcp(self.server.address, query)
        except (OSError, EOFError) as error:
            reason = "a closed connection" if isinstance(error, EOFError) else _describe_os_error(error)
        else:
            if response.rcode() == dns.rcode.NOERROR:
                return response
            reason = dns.rcode.to_text(response.rcode())
        detail = (
            f"a truncated answer from {self.server.address}, {reason} from {self.server.address} over TCP"
        )
        if self.truncated is not None:
            self.truncated = replace(self.truncated, detail=f"truncated, and TCP failed ({detail})")
        raise ServerFailure(detail)

    def _read(self, response: dns.message.Message) -> Records:
        """Return what a response says. Raises: ServerFailure for an error of the server."""
        rcode = response.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise ServerFailure(
                f"{dns.rcode.to_text(rcode)} from {self.server.address}",
                may_pass=rcode == dns.rcode.SERVFAIL,
                is_unsupported=rcode == dns.rcode.NOTIMP,
            )
        found = self._read_records(response)
        if found.is_some:
            return found
        if rcode == dns.rcode.NXDOMAIN:
            return Records(Outcome.EMPTY, (), NXDOMAIN)
        if _is_referral(response):
            raise ServerFailure(f"a referral to other servers from {self.server.address}")
        return Records(Outcome.EMPTY, (), "no record")

    def _read_records(self, response: dns.message.Message) -> Records:
        """Return the records that were asked for, at the end of the response's chain of aliases."""
        if not isinstance(response, dns.message.QueryMessage):
            return Records(Outcome.EMPTY)
        answer = response.resolve_chaining().answer
        if answer is None:
            return Records(Outcome.EMPTY)
        if self._record_type == "SRV":
            return Records(Outcome.ADDRESSES, services=_read_services(response, answer))
        return Records(Outcome.ADDRESSES, tuple(record.address for record in answer))


def _is_referral(response: dns.message.Message) -> bool:
    """Whether a server that answers only for zones of its own names other servers.

    Source: glibc's res_send.c passes over such an answer too.
    """
    return (
        not response.flags & (dns.flags.AA | dns.flags.RA)
        and not response.answer
        and any(rrset.rdtype == dns.rdatatype.NS for rrset in response.authority)
    )


def _read_services(response: dns.message.Message, answer: dns.rrset.RRset) -> tuple[Service, ...]:
    """Return the SRV records, each with its target's addresses as far as the same response has them."""
    beside = {
        (rrset.name, rrset.rdtype): rrset
        for rrset in (*response.answer, *response.additional)
        if rrset.rdclass == dns.rdataclass.IN  # Records of other classes have no `address` or `target`.
    }

    def find_addresses(name: dns.name.Name) -> tuple[str, ...]:
        for _ in range(MAX_ALIASES):
            alias = beside.get((name, dns.rdatatype.CNAME))
            if alias is None:
                break
            name = alias[0].target
        rrsets = (beside.get((name, rdtype), ()) for rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA))
        return tuple(record.address for rrset in rrsets for record in rrset)

    found = {target: find_addresses(target) for target in {record.target for record in answer}}
    return tuple(
        Service(record.target.to_text().lower(), record.port, found[record.target]) for record in answer
    )


def _describe_os_error(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _parse(wire: bytes, query: dns.message.Message) -> dns.message.Message | None:
    """Return the response in a packet; None if it is no response to the query."""
    try:
        response = dns.message.from_wire(wire, ignore_trailing=True)
    except Exception:  # noqa: BLE001  # not every error of dnspython is a DNSException
        return None
    return response if query.is_response(response) else None


async def _parse_off_loop(wire: bytes, query: dns.message.Message) -> dns.message.Message | None:
    """Do as `_parse`, and in a thread if the response would not have fitted into a packet.

    Such a response may have hundreds of records, at 40 µs each. Where no thread can be started, it is parsed
    on the loop all the same.
    """
    if len(wire) <= EDNS_PAYLOAD_BYTES:
        return _parse(wire, query)
    thread = OwnThread(lambda: _parse(wire, query), name="fleetlm-dns-answer")
    try:
        thread.start()
    except RuntimeError:
        return _parse(wire, query)
    await thread.wait()
    return thread.result()


async def _exchange_udp(server: ServerAddress, query: dns.message.Message) -> dns.message.Message:
    """Send a query in a packet, and wait for the response."""
    loop = asyncio.get_running_loop()
    with socket.socket(server.family, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect(server.sockaddr())
        await loop.sock_sendall(udp, query.to_wire())
        while True:
            response = _parse(await loop.sock_recv(udp, MAX_PACKET_BYTES), query)
            if response is not None:
                return response


async def _exchange_tcp(server: ServerAddress, query: dns.message.Message) -> dns.message.Message:
    """Send a query over a connection of its own. Raises: OSError, EOFError if the server closes it."""
    loop = asyncio.get_running_loop()
    with socket.socket(server.family, socket.SOCK_STREAM) as tcp:
        tcp.setblocking(False)
        await loop.sock_connect(tcp, server.sockaddr())
        wire = query.to_wire()
        await loop.sock_sendall(tcp, struct.pack("!H", len(wire)) + wire)
        (size,) = struct.unpack("!H", await _read_exactly(tcp, 2))
        response = await _parse_off_loop(await _read_exactly(tcp, size), query)
        if response is None:
            raise EOFError("not a response")
        return response


async def _read_exactly(tcp: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    read = b""
    while len(read) < size:
        more = await loop.sock_recv(tcp, size - len(read))
        if not more:
            raise EOFError("closed")
        read += more
    return read
