"""Looks the names of a query up: in the hosts file, in DNS, and with the C library.

This module and those that it imports need dnspython, whose import takes longer than that of all other modules
of a node together. So `DnsDiscovery` imports it at the first lookup of a name, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace

from fleetlm.core.dns_answers import Answer, Outcome, answer_of_list
from fleetlm.discovery.dns_client import DnsClient
from fleetlm.discovery.dns_lookup import NameLookup
from fleetlm.discovery.resolv_conf import ResolverConfig, ServerAddress, parse
from fleetlm.discovery.system_files import (
    WatchedFile,
    asks_dns,
    knows_more_than_dns,
    parse_hosts,
    parse_services,
    reads_hosts_first,
)
from fleetlm.discovery.system_lookup import SystemLookup

log: logging.Logger = logging.getLogger("fleetlm")

SYSTEM_LOOKUP_TIMEOUT_S = 1.0
"""Seconds that a lookup waits for the C library. Its late answer serves the next lookup."""


class NameLookups:
    """The lookups of all names of one query. The arguments are those of `DnsDiscovery`."""

    def __init__(
        self,
        names: Sequence[str],
        server: tuple[str, int] | None,
        lifetime_s: float,
        files: tuple[str | os.PathLike[str], str | os.PathLike[str], str | os.PathLike[str]],
        system: SystemLookup | None,
    ) -> None:
        self._server = None if server is None else ServerAddress(*_split_scope(server[0]), server[1])
        self._lifetime_s = lifetime_s
        self._client = DnsClient()
        resolv_conf, hosts, nsswitch_conf = files
        self._resolv_conf = WatchedFile(resolv_conf, self._read_config)
        wanted = frozenset(name.lower() for name in names)
        self._hosts = WatchedFile(hosts, lambda text: parse_hosts(text, wanted))
        self._services = WatchedFile(nsswitch_conf, parse_services)
        self._names = [NameLookup(name, self._client, lifetime_s) for name in names]
        self._systems = {name: system or SystemLookup() for name in names}
        self._remarks: tuple[str, ...] = ()

    def describe_servers(self) -> str:
        """Return the name servers in words."""
        config = self._configure()
        servers = ", ".join(str(server) for server in config.servers)
        return servers + (
            f" ({self._resolv_conf.path} names no name server)" if config.names_no_server else ""
        )

    async def run(self) -> list[tuple[str, Answer]]:
        """Look up every name once, at the same time. Raises: what reading the configuration raises."""
        config = self._configure()
        self._client.begin_lookup()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._look_up(each, config)) for each in self._names]
        return [(each.name, task.result()) for each, task in zip(self._names, tasks, strict=True)]

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
            if not is_dns_only and not asks_dns(self._services.get()):
                why = f"{self._services.path} asks no name server for hosts"
                return await self._ask_system(each.name, Answer(Outcome.EMPTY, (), why))
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
        answer = answer_of_list(addresses)
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
        found = answer_of_list(await self._systems[name].addresses(name, timeout_s=patience_s) or ())
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


def _split_scope(host: str) -> tuple[str, str]:
    """Separate an address from the interface that may follow it."""
    ip, _, scope = host.partition("%")
    return ip, scope
