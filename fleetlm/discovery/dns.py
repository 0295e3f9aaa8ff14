"""Discovery through DNS, and through a fixed list of addresses.

A lookup has four outcomes that must never be confused, see `fleetlm.core.dns_answers`:

* ADDRESSES: the whole answer arrived and holds usable addresses;
* EMPTY: the name server says that there are none (NXDOMAIN, or no record of either family);
* PARTIAL: there are addresses, but one family failed, a search domain failed before another one
  answered, or the answer was truncated and TCP failed;
* FAILED: nothing is known (SERVFAIL, REFUSED, time-out, garbage, no network, only unusable addresses).

The caller needs the difference: only a whole answer may count towards forgetting a peer, and a failure
must never look like "no nodes".

How one lookup runs: A and AAAA are asked at the same time, and each makes one `_SubAnswer`. For each
family the names of the search list are tried in order. Once one family has addresses, the other gets
`SECOND_FAMILY_GRACE_S` more. If DNS has no address at all and no name server was given, the operating
system is asked (/etc/hosts). `_combine` then makes one answer of the parts.

Nothing is remembered from one lookup to the next: there is no cache and TTLs are not obeyed (Docker
announces 600 s and changes in 0.1 s). Only the resolver configuration is kept; it is read again after
`FAILURES_BEFORE_RELOAD` failures in a row, since it changes when a network or a VPN is attached.

Source: res_nsearch(3) goes on to the next search domain after SERVFAIL, and so does this module;
differs: dnspython's own search stops there, so the search list is walked here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver

from fleetlm.core.dns_answers import Answer, Outcome, sift
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.names import canonical_ip, endpoint

TIMEOUT_PER_SERVER_S = 1.0
"""Seconds that a name server has to answer one packet; then the next server is asked."""
SECOND_FAMILY_GRACE_S = 1.0
"""Seconds to wait for the second family once the first has addresses. Many resolvers drop AAAA queries,
and lookups there must not take their whole lifetime."""
CUT_OFF_SLACK_S = 0.5
"""Seconds beyond the lifetime after which a lookup is cancelled: dnspython may overrun it a little."""
SERVFAIL_RETRY_PAUSE_S = 0.1
"""Seconds before the one retry after SERVFAIL, which is often over at once."""
SYSTEM_LOOKUP_TIMEOUT_S = 1.0
"""Seconds for the lookup in /etc/hosts; NSS may ask other services that are slow."""
FAILURES_BEFORE_RELOAD = 3
"""Failed lookups in a row after which the resolver configuration is read again."""
EDNS_PAYLOAD_BYTES = 1232
"""The largest UDP answer that is asked for. Without EDNS, Consul returns only 3 nodes and does not set
the truncation bit. Source: DNS flag day 2020, whose size avoids IP fragmentation."""
RESOLV_CONF = "/etc/resolv.conf"

_Family = Literal["A", "AAAA"]


class StaticDiscovery:
    """A fixed list of addresses, for networks without DNS.

    Args:
        addresses: IPv4 and IPv6 addresses as text. Unusable ones are passed over, and each answer's
            detail names them.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        texts = tuple(addresses)
        self._answer = _combine([_SubAnswer("list", Outcome.ADDRESSES if texts else Outcome.EMPTY, texts)])
        self._count = len(texts)

    @property
    def source(self) -> str:
        """The source in words, such as ``a list of 3 addresses``."""
        return f"a list of {_format_count(self._count)}"

    async def lookup(self) -> Answer:
        """Return the given addresses, without a wait."""
        return self._answer


class DnsDiscovery:
    """Looks up the A and AAAA records of one name, anew each time.

    Search domains and ``ndots`` are those of the system, even if ``server`` is given; a name with a
    final dot is asked as it is. If DNS has no address for the name, it is looked up as the system does
    (/etc/hosts), unless ``server`` is given. A query that is a comma-separated list of IP addresses
    behaves like a `StaticDiscovery`. Lookups of one `DnsDiscovery` must not overlap.

    Args:
        query: the name.
        server: address and port of a name server to ask instead of the system's.
        lifetime_s: seconds for one lookup with all its retries; it may take half a second longer.
        resolv_conf: path of the system's resolver configuration.
        system: the lookup that reads /etc/hosts.
    """

    def __init__(
        self,
        query: str,
        *,
        server: tuple[str, int] | None = None,
        lifetime_s: float = 3.0,
        resolv_conf: str | os.PathLike[str] = RESOLV_CONF,
        system: SystemLookup | None = None,
    ) -> None:
        self._query = query.strip()
        self._server = server
        self._lifetime_s = lifetime_s
        self._resolv_conf = resolv_conf
        self._system = system or SystemLookup()
        self._static = _read_literals(self._query)
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._failures = 0

    @property
    def source(self) -> str:
        """The source in words, such as ``DNS name "fleet.internal" at 127.0.0.11``."""
        if self._static is not None:
            return self._static.source
        return f'DNS name "{self._query}" at {self._describe_servers()}'

    async def lookup(self) -> Answer:
        """Ask for A and AAAA records at the same time, once. Raises nothing but CancelledError."""
        if self._static is not None:
            return await self._static.lookup()
        try:
            answer = await self._ask()
        except Exception as exc:  # noqa: BLE001  # a bug of a library is a failed lookup
            answer = Answer(Outcome.FAILED, (), _describe_error(exc))
        self._count_failures(answer)
        return answer

    async def _ask(self) -> Answer:
        try:
            name = dns.name.from_text(self._query, origin=None)
            resolver = self._get_resolver()
        except (dns.exception.DNSException, ValueError, OSError) as exc:
            return Answer(Outcome.FAILED, (), _explain_unasked(self._query, exc))
        answer = _combine(await self._ask_both(resolver, name))
        if answer.outcome is Outcome.EMPTY and self._server is None:
            return await self._ask_system(answer)
        return answer

    def _get_resolver(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            self._resolver = _make_resolver(self._server, self._resolv_conf)
        return self._resolver

    def _count_failures(self, answer: Answer) -> None:
        self._failures = self._failures + 1 if answer.outcome is Outcome.FAILED else 0
        if self._failures >= FAILURES_BEFORE_RELOAD:
            self._resolver = None
            self._failures = 0

    async def _ask_both(self, resolver: dns.asyncresolver.Resolver, name: dns.name.Name) -> list[_SubAnswer]:
        """Ask for both families at once. Both tasks have ended when this returns or raises."""
        families: tuple[_Family, ...] = ("A", "AAAA")
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._lifetime_s + CUT_OFF_SLACK_S
        tasks = [
            loop.create_task(_ask_family(resolver, name, family, self._lifetime_s)) for family in families
        ]
        try:
            done, late = await asyncio.wait(
                tasks, timeout=limit - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            if late:
                patience_s = max(limit - loop.time(), 0.0)
                if any(task.result().addresses for task in done):
                    patience_s = min(patience_s, SECOND_FAMILY_GRACE_S)
                await asyncio.wait(late, timeout=patience_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [
            _SubAnswer(family, Outcome.FAILED, (), "no answer in time") if task.cancelled() else task.result()
            for family, task in zip(families, tasks, strict=True)
        ]

    async def _ask_system(self, dns_answer: Answer) -> Answer:
        """Ask the system for a name that DNS lacks. Returns ``dns_answer`` if the system lacks it too."""
        found = await self._system.addresses(
            self._query, timeout_s=min(SYSTEM_LOOKUP_TIMEOUT_S, self._lifetime_s)
        )
        if not found:
            return dns_answer
        answer = _combine([_SubAnswer("hosts", Outcome.ADDRESSES, found)])
        detail = f"{answer.detail}, from the system's hosts file (DNS: {dns_answer.detail})"
        return Answer(answer.outcome, answer.addresses, detail)

    def _describe_servers(self) -> str:
        if self._server is not None:
            return _format_server(*self._server)
        try:
            resolver = self._get_resolver()
        except (dns.exception.DNSException, ValueError, OSError):
            return f"no name server ({self._resolv_conf} names none)"
        return ", ".join(str(server) for server in resolver.nameservers)


@dataclass(frozen=True, slots=True)
class _SubAnswer:
    """The result of one question of a lookup, with the addresses as the server wrote them.

    Attributes:
        label: which question: "A", "AAAA", "hosts" or "list".
        outcome: how it ended.
        addresses: addresses as text, neither checked nor sorted.
        detail: what happened, in words.
    """

    label: str
    outcome: Outcome
    addresses: tuple[str, ...] = ()
    detail: str = ""


def _combine(parts: Sequence[_SubAnswer]) -> Answer:
    """Make one answer of several parts. NXDOMAIN for one family is normal if the other has addresses."""
    raw = [address for part in parts for address in part.addresses]
    addresses, remark = sift(raw)
    trouble = [part for part in parts if part.outcome in (Outcome.PARTIAL, Outcome.FAILED)]
    if addresses:
        detail = ", ".join(filter(None, [_format_count(len(addresses)), remark]))
        if trouble:
            return Answer(Outcome.PARTIAL, addresses, f"{detail}, but {_join_details(trouble)}")
        return Answer(Outcome.ADDRESSES, addresses, detail)
    if trouble:
        return Answer(Outcome.FAILED, (), _join_details(trouble))
    if raw:
        # Unusable records (0.0.0.0 from an ad blocker) say nothing about the nodes.
        return Answer(Outcome.FAILED, (), f"no usable address: {remark}")
    return Answer(Outcome.EMPTY, (), _join_details(parts) or "no addresses")


def _join_details(parts: Sequence[_SubAnswer]) -> str:
    details = {part.detail for part in parts}
    if len(parts) > 1 and len(details) == 1:
        return details.pop()
    return "; ".join(f"{part.label}: {part.detail}" for part in parts if part.detail)


async def _ask_family(
    resolver: dns.asyncresolver.Resolver, name: dns.name.Name, family: _Family, lifetime_s: float
) -> _SubAnswer:
    """Ask for one record type under every name that the search list makes of ``name``.

    Every candidate gets an equal share of the time that is left, so a search domain whose servers fail
    does not hide the domains behind it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + lifetime_s
    failed: _SubAnswer | None = None
    empty = _SubAnswer(family, Outcome.EMPTY, (), "NXDOMAIN")
    candidates = _list_candidates(resolver, name)
    for index, candidate in enumerate(candidates):
        share_s = (deadline - loop.time()) / (len(candidates) - index)
        part = await _ask_name(resolver, candidate, family, share_s)
        if part.addresses:
            return (
                part if failed is None else _SubAnswer(family, Outcome.PARTIAL, part.addresses, failed.detail)
            )
        if part.outcome is Outcome.FAILED:
            failed = failed or part
        elif part.detail != "NXDOMAIN":
            empty = part
    return failed or empty


async def _ask_name(
    resolver: dns.asyncresolver.Resolver, name: dns.name.Name, family: _Family, lifetime_s: float
) -> _SubAnswer:
    """Ask for one record type of one absolute name, with one retry if a retry may help."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + lifetime_s
    for may_retry in (True, False):
        try:
            answer = await resolver.resolve(
                name, family, search=False, lifetime=max(deadline - loop.time(), 0.0)
            )
        except dns.resolver.NXDOMAIN:
            return _SubAnswer(family, Outcome.EMPTY, (), "NXDOMAIN")
        except dns.resolver.NoAnswer:
            return _SubAnswer(family, Outcome.EMPTY, (), "no record")
        except dns.resolver.LifetimeTimeout as exc:
            return _make_failure(family, exc, f"timeout after {lifetime_s:.1f} s")
        except dns.resolver.NoNameservers as exc:
            rcodes = {error[3] for error in exc.kwargs["errors"] if isinstance(error[3], str)}
            if may_retry and "SERVFAIL" in rcodes:
                await asyncio.sleep(SERVFAIL_RETRY_PAUSE_S)
            elif may_retry and rcodes & {"FORMERR", "NOTIMP"}:
                # The server is older than EDNS: ask without it. Source: RFC 6891 §7.
                resolver.use_edns(-1)
            else:
                return _make_failure(family, exc, "no answer")
        except (dns.exception.DNSException, OSError) as exc:
            return _SubAnswer(family, Outcome.FAILED, (), _describe_error(exc))
        else:
            return _SubAnswer(family, Outcome.ADDRESSES, tuple(record.address for record in answer))
    raise AssertionError("the second try returns")


def _make_failure(family: _Family, exc: dns.exception.DNSException, otherwise: str) -> _SubAnswer:
    """Describe a failed resolution; PARTIAL with the addresses of a truncated answer, if there was one.

    After a truncated answer the resolver tries TCP, which some networks block.
    """
    wanted = dns.rdatatype.from_text(family)
    addresses: list[str] = []
    reports: dict[str, None] = {}
    for server, _, port, error, _ in exc.kwargs["errors"]:
        if isinstance(error, dns.message.Truncated):
            message = error.kwargs["message"]
            addresses += [
                record.address for rrset in message.answer if rrset.rdtype == wanted for record in rrset
            ]
        host = str(server).removeprefix("Do53:").rpartition("@")[0]
        reports[f"{_describe_error(error)} from {_format_server(host, port)}"] = None
    timed_out = isinstance(exc, dns.resolver.LifetimeTimeout)
    detail = otherwise if timed_out or not reports else ", ".join(reports)
    if addresses:
        detail = f"truncated, and TCP failed ({detail})"
        return _SubAnswer(family, Outcome.PARTIAL, tuple(addresses), detail)
    return _SubAnswer(family, Outcome.FAILED, (), detail)


def _describe_error(error: object) -> str:
    """Describe an error of a name server in a few words."""
    if isinstance(error, str):
        return error
    if isinstance(error, dns.message.Truncated):
        return "a truncated answer"
    if isinstance(error, dns.exception.Timeout | TimeoutError):
        return "timeout"
    if isinstance(error, EOFError):
        return "a closed connection"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _explain_unasked(query: str, exc: Exception) -> str:
    if isinstance(exc, dns.resolver.NoResolverConfiguration):
        return f"no name server is configured ({exc})"
    return f'cannot ask for "{query}": {exc}'


def _make_resolver(
    server: tuple[str, int] | None, resolv_conf: str | os.PathLike[str]
) -> dns.asyncresolver.Resolver:
    """Make a resolver for polling: no cache, one second for each server, EDNS.

    Raises:
        dns.resolver.NoResolverConfiguration: no name server is configured, and ``server`` is None.
        ValueError: a configured name server is not an address.
    """
    resolver = dns.asyncresolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(os.fspath(resolv_conf))
    except (dns.resolver.NoResolverConfiguration, ValueError, OSError):
        if server is None:
            raise
        resolver.domain = dns.name.root  # instead of dnspython's guess from the host's name
    if server is not None:
        resolver.nameservers = [server[0]]
        resolver.port = server[1]
    resolver.cache = None
    resolver.timeout = TIMEOUT_PER_SERVER_S
    # `_ask_name` retries once; dnspython would retry until the end of the lifetime.
    resolver.retry_servfail = False
    resolver.use_edns(0, 0, EDNS_PAYLOAD_BYTES)
    return resolver


def _list_candidates(resolver: dns.asyncresolver.Resolver, name: dns.name.Name) -> list[dns.name.Name]:
    """Return the absolute names to try, in the order of ``search`` and ``ndots`` in resolv.conf(5)."""
    if name.is_absolute():
        return [name]
    suffixes = resolver.search or [resolver.domain]
    searched = []
    for suffix in suffixes:
        if suffix != dns.name.root:
            try:
                searched.append(name.concatenate(suffix))
            except dns.name.NameTooLong:
                continue
    as_it_is = name.concatenate(dns.name.root)
    ndots = 1 if resolver.ndots is None else resolver.ndots
    dots = len(name) - 1
    return [as_it_is, *searched] if dots >= ndots else [*searched, as_it_is]


def _read_literals(query: str) -> StaticDiscovery | None:
    """Return a discovery for a query that is a list of addresses; None for a name."""
    texts = [text.strip() for text in query.split(",") if text.strip()]
    if texts and all(canonical_ip(text) is not None for text in texts):
        return StaticDiscovery(texts)
    return None


def _format_count(number: int) -> str:
    return "1 address" if number == 1 else f"{number} addresses"


def _format_server(host: str, port: int) -> str:
    return host if port == 53 else endpoint(host, port)
