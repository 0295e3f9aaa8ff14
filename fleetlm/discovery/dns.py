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

What needs dnspython is in `dns_names` and below it. It is imported at the first lookup of a name, in a
thread of its own (`own_thread`), since the import takes about a tenth of a second. A lookup waits for it as
long as for name servers, and the next lookup waits for the same import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fleetlm.core.dns_answers import Answer, Outcome, answer_of_list, count_addresses, merge
from fleetlm.discovery.own_thread import OwnThread
from fleetlm.names import canonical_ip

if TYPE_CHECKING:
    from fleetlm.discovery.dns_names import NameLookups
    from fleetlm.discovery.system_lookup import SystemLookup

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
        self._answer = answer_of_list(texts)
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
        files = (resolv_conf, hosts, nsswitch_conf)
        self._server = server
        self._addresses = tuple(addresses)
        self._names = tuple(names)
        self._lifetime_s = lifetime_s
        self._make = partial(_make_lookups, self._names, server, lifetime_s, files, system)
        self._import: OwnThread[NameLookups] | None = None
        self._lookups: NameLookups | None = None

    @property
    def source(self) -> str:
        """The source in words, such as ``DNS name "fleet.internal" at 127.0.0.11``."""
        if not self._names:
            return f"a list of {count_addresses(len(self._addresses))}"
        names = ", ".join(f'"{name}"' for name in self._names)
        servers = f" at {self._lookups.describe_servers()}" if self._lookups is not None else ""
        beside = f" and {count_addresses(len(self._addresses))}" if self._addresses else ""
        return f"DNS name{'s' if len(self._names) > 1 else ''} {names}{servers}{beside}"

    async def lookup(self) -> Answer:
        """Look up every name once, at the same time. Raises nothing but CancelledError."""
        answers: list[tuple[str, Answer]] = []
        if self._addresses or not self._names:
            answers.append(("the list", answer_of_list(self._addresses)))
        if self._names:
            try:
                if self._lookups is None:
                    self._lookups = await self._make_in_thread(self._lifetime_s)
                answers += await self._lookups.run()
            except _NotImported as reason:
                return Answer(Outcome.FAILED, (), str(reason))
            except Exception as error:  # noqa: BLE001  # a bug must not end discovery
                return Answer(Outcome.FAILED, (), f"{type(error).__name__}: {error}")
        return merge(answers)

    async def prepare(self, within_s: float) -> None:
        """Wait for the import that the first lookup of a name needs, for tools that look only once.

        A busy machine may take longer for it than a lookup may take. A node just looks again. A failed import
        raises nothing: the lookup tells why there is no answer.

        Args:
            within_s: seconds to wait at most.
        """
        if self._names and self._lookups is None:
            with contextlib.suppress(_NotImported, ImportError, OSError):
                self._lookups = await self._make_in_thread(within_s)

    async def close(self) -> None:
        """End the questions that wait for late answers. Further lookups are possible."""
        if self._lookups is not None:
            await self._lookups.close()

    async def _make_in_thread(self, within_s: float) -> NameLookups:
        """Import what looks names up, and make it. Raises: what the import raises, and _NotImported."""
        thread = self._import
        if thread is None:
            thread = OwnThread(self._make, name="fleetlm-dnspython")
            try:
                thread.start()
            except RuntimeError as error:
                raise _NotImported(
                    f"dnspython has not been imported, since no thread could be started for it ({error}; "
                    "perhaps this process or its container has reached its limit of threads)"
                ) from None
            self._import = thread
        if not await thread.wait(within_s):
            raise _NotImported(f"the import of dnspython has taken longer than {within_s:g} s so far")
        self._import = None
        return thread.result()


class _NotImported(Exception):
    """dnspython has not been imported yet; the text says why."""


def _make_lookups(*arguments: Any) -> NameLookups:
    """Import what looks names up, and make it. This takes a tenth of a second, so a thread does it."""
    from fleetlm.discovery.dns_names import NameLookups  # noqa: PLC0415  # a node without names needs none

    return NameLookups(*arguments)
