"""Discovery through DNS, and through a fixed list of addresses.

A lookup has four outcomes that must never be confused, see `fleetlm.core.dns_answers`:

* ADDRESSES: the whole answer arrived and holds usable addresses;
* EMPTY: the name server says that there are none (NXDOMAIN, or no record of either family);
* PARTIAL: there are addresses, but one family failed, or the answer was truncated and TCP failed;
* FAILED: nothing is known (SERVFAIL, REFUSED, time-out, garbage, no network, only unusable addresses).

The caller needs the difference: only a whole answer may count towards forgetting a peer, and a failure
must never look like "no nodes".

The measure of a lookup is what getaddrinfo of the C library finds. One lookup of one name runs so:

1. The hosts file is asked, if nsswitch.conf puts it before DNS. A name in it is not looked up further.
2. DNS is asked for A and AAAA of each candidate that the search domains make of the name
   (`dns_search` decides, `dns_client` asks). The next candidate is asked for when the one before it is known
   not to exist, or stays without an answer for its share of the time.
3. If DNS has failed, the C library is asked, in a thread of its own (`system_lookup`); also if DNS has no
   address and nsswitch.conf names further services, such as mDNS.

Once there are addresses, what is still awaited gets `GRACE_S` more. A name server given by the program
replaces the hosts file and the C library.

A name that begins with ``_``, such as ``_fleetlm._tcp.workers``, has SRV records, which name hosts and ports.
Only DNS is asked for them (step 2), since neither the hosts file nor the C library knows such records;
`dns_targets` then finds the addresses of the hosts.

Several names are looked up at the same time, and `fleetlm.core.dns_answers.merge` makes one answer of theirs.

TTLs are not obeyed (Docker announces 600 s and changes in 0.1 s), and there is no cache: an older answer is
used only if the servers do not answer the new question in time. /etc/resolv.conf, /etc/hosts and
/etc/nsswitch.conf are read again when they have changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fleetlm.core.dns_answers import Answer, Outcome, count_addresses, merge
from fleetlm.discovery.dns_client import DnsClient
from fleetlm.discovery.dns_lookup import NameLookup
from fleetlm.discovery.dns_search import Candidate, Records, combine
from fleetlm.discovery.resolv_conf import ResolverConfig, ServerAddress, parse
from fleetlm.discovery.system_files import (
    WatchedFile,
    knows_more_than_dns,
    parse_hosts,
    parse_services,
    reads_hosts_first,
)
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.names import canonical_ip

log: logging.Logger = logging.getLogger("fleetlm")

SYSTEM_LOOKUP_TIMEOUT_S = 1.0
"""Seconds that a lookup waits for the C library. Its late answer serves the next lookup."""
RESOLV_CONF = "/etc/resolv.conf"
HOSTS = "/etc/hosts"
NSSWITCH_CONF = "/etc/nsswitch.conf"


class StaticDiscovery:
    """A fixed list of addresses, for networks without DNS.

    Args:
        addresses: IPv4 and IPv6 addresses as text. Unusable ones are passed over, and each answer's
            detail names them.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        texts = tuple(addresses)
        self._answer = _answer_of_list(texts)
        self._count = len(texts)

    @property
    def source(self) -> str:
        """The source in words, such as ``a list of 3 addresses``."""
        return f"a list of {count_addresses(self._count)}"

    async def lookup(self) -> Answer:
        """Return the given addresses, without a wait."""
        return self._answer


class DnsDiscovery:
    """Looks up the A and AAAA records, or the SRV records, of one or several names, anew each time.

    Finds what the C library finds: resolv.conf with its search domains, the hosts file and nsswitch.conf
    hold, and a name with a final dot is asked as it is. If ``server`` is given, only that server is asked,
    with the system's search domains. Lookups of one `DnsDiscovery` must not overlap. Its questions to name
    servers may outlive a lookup; `close` ends them.

    Args:
        query: the name, or several with commas between them, whose addresses together are the cluster.
            Addresses may stand among the names; a list of addresses only behaves like a `StaticDiscovery`.
            A name that begins with ``_`` is asked for SRV records.
        server: address and port of a name server to ask instead of the system's.
        lifetime_s: seconds for one lookup with all its retries. Where DNS fails, the C library has as
            long again, but at most a second.
        resolv_conf: path of the system's resolver configuration.
        hosts: path of the system's hosts file.
        nsswitch_conf: path of the configuration that says whether the hosts file is asked before DNS.
        system: the lookup of the C library.
    """

    def __init__(
        self,
        query: str,
        *,
        server: tuple[str, int] | None = None,
        lifetime_s: float = 3.0,
        resolv_conf: str | os.PathLike[str] = RESOLV_CONF,
        hosts: str | os.PathLike[str] = HOSTS,
        nsswitch_conf: str | os.PathLike[str] = NSSWITCH_CONF,
        system: SystemLookup | None = None,
    ) -> None:
        parts = [part.strip() for part in query.split(",") if part.strip()]
        addresses = [part for part in parts if canonical_ip(part) is not None]
        names = list(dict.fromkeys(part for part in parts if canonical_ip(part) is None))
        if not parts:
            names = [query.strip()]
        self._server = None if server is None else ServerAddress(*_split_scope(server[0]), server[1])
        self._lifetime_s = lifetime_s
        self._addresses = tuple(addresses)
        self._client = DnsClient()
        self._resolv_conf = WatchedFile(resolv_conf, self._read_config)
        wanted = frozenset(name.lower() for name in names)
        self._hosts = WatchedFile(hosts, lambda text: parse_hosts(text, wanted))
        self._services = WatchedFile(nsswitch_conf, parse_services)
        self._names = [NameLookup(name, self._client, lifetime_s) for name in names]
        self._systems = {name: system or SystemLookup() for name in names}
        self._remarks: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The source in words, such as ``DNS name "fleet.internal" at 127.0.0.11``."""
        if not self._names:
            return f"a list of {count_addresses(len(self._addresses))}"
        config = self._configure()
        servers = ", ".join(str(server) for server in config.servers)
        if config.names_no_server:
            servers += f" ({self._resolv_conf.path} names no name server)"
        names = ", ".join(f'"{each.name}"' for each in self._names)
        beside = f" and {count_addresses(len(self._addresses))}" if self._addresses else ""
        return f"DNS name{'s' if len(self._names) > 1 else ''} {names} at {servers}{beside}"

    async def lookup(self) -> Answer:
        """Look up every name once, at the same time. Raises nothing but CancelledError."""
        answers: list[tuple[str, Answer]] = []
        if self._addresses or not self._names:
            answers.append(("the list", _answer_of_list(self._addresses)))
        if self._names:
            try:
                config = self._configure()
                self._client.begin_lookup()
            except Exception as error:  # noqa: BLE001  # a bug must not end discovery
                return Answer(Outcome.FAILED, (), f"{type(error).__name__}: {error}")
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._look_up(each, config)) for each in self._names]
            answers += [(each.name, task.result()) for each, task in zip(self._names, tasks, strict=True)]
        return merge(answers)

    async def close(self) -> None:
        """End the questions that wait for late answers. Further lookups are possible."""
        await self._client.close()

    async def _look_up(self, each: NameLookup, config: ResolverConfig) -> Answer:
        """Look up one name: in the hosts file, in DNS, with the C library."""
        try:
            is_dns_only = each.is_service or self._server is not None
            listed = None if is_dns_only else self._find_in_hosts(each.name)
            if listed is not None:
                return listed
            answer = await each.run(config)
            if answer.outcome is Outcome.FAILED and config.names_no_server and self._server is None:
                detail = f"{answer.detail} ({self._resolv_conf.path} names no name server)"
                answer = Answer(answer.outcome, (), detail, answer.whole_families)
            return answer if is_dns_only else await self._ask_system(each.name, answer)
        except Exception as error:  # noqa: BLE001  # a bug of a library is a failed lookup
            return Answer(Outcome.FAILED, (), f"{type(error).__name__}: {error}")

    def _find_in_hosts(self, name: str) -> Answer | None:
        """Return the addresses that the hosts file has for the name, if it is asked before DNS."""
        if not reads_hosts_first(self._services.get()):
            return None
        addresses = self._hosts.get().get(name.lower())
        if not addresses:
            return None
        answer = _answer_of_list(addresses)
        return Answer(answer.outcome, answer.addresses, f"{answer.detail}, from {self._hosts.path}")

    async def _ask_system(self, name: str, answer: Answer) -> Answer:
        """Ask the C library where DNS failed, or where it asks services that this module does not know.

        It does not tell whether a family failed, so what it finds after a failure is a PARTIAL answer.
        """
        has_failed = answer.outcome is Outcome.FAILED
        is_empty = answer.outcome is Outcome.EMPTY and knows_more_than_dns(self._services.get())
        if not (has_failed or is_empty):
            return answer
        patience_s = min(SYSTEM_LOOKUP_TIMEOUT_S, self._lifetime_s)
        found = _answer_of_list(await self._systems[name].addresses(name, timeout_s=patience_s) or ())
        if not found.addresses:
            return answer
        detail = f"{found.detail}, from the C library (DNS: {answer.detail})"
        return Answer(Outcome.PARTIAL if has_failed else found.outcome, found.addresses, detail)

    def _configure(self) -> ResolverConfig:
        """Read resolv.conf if it has changed, and name in the log what was passed over in it."""
        config = self._resolv_conf.get()
        self._client.configure(config)
        if self._server is None and config.remarks != self._remarks:
            for remark in config.remarks:
                if remark not in self._remarks:
                    log.warning("%s", remark)
            self._remarks = config.remarks
        return config

    def _read_config(self, text: str) -> ResolverConfig:
        config = parse(
            text, source=self._resolv_conf.path, environ=os.environ, host_name=socket.gethostname()
        )
        if self._server is None:
            return config
        return replace(config, servers=(self._server,), names_no_server=False)


def _answer_of_list(texts: Sequence[str]) -> Answer:
    """Make an answer of addresses that do not come from DNS."""
    outcome = Outcome.ADDRESSES if texts else Outcome.EMPTY
    return combine(Candidate("", {"A": Records(outcome, tuple(texts))}))


def _split_scope(host: str) -> tuple[str, str]:
    """Separate an address from the interface that may follow it."""
    ip, _, scope = host.partition("%")
    return ip, scope
