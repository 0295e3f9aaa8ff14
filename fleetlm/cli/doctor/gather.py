"""`fleetlm doctor`: gathers the facts, prints the findings. What they mean: `doctor_checks`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fleetlm.cli.doctor import checks
from fleetlm.cli.doctor.checks import Facts, Finding, PeerFact
from fleetlm.core.dns_answers import Answer
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.own_address import can_bind, own_address
from fleetlm.errors import SettingsError
from fleetlm.names import NodeName, endpoint
from fleetlm.remote import client
from fleetlm.remote.protocol import BadMessage
from fleetlm.settings import Settings
from fleetlm.transport.probe import probe
from fleetlm.wire.frames import IAm

EX_CONFIG = 78
KNOCK_S = 2.0
PROBE_S = 2.5
AT_ONCE = 32
"""Peers that are asked at the same time."""
MAX_PEERS = 200
"""Peers that are asked at all: a report is for reading."""


def main(*, node: str | None = None, as_json: bool = False) -> int:
    """Gather, judge, print. Returns the exit code: 0, 1 where something fails, 2 or 78."""
    running, node_why, code = ask_node(node)
    if code:
        print(node_why, file=sys.stderr)
        return code
    error = ""
    try:
        settings = Settings.from_env()
    except SettingsError as problem:
        error = str(problem)
        if running is None:
            finding = Finding(checks.FAIL, "settings", error, "A node does not start with this")
            show([finding], as_json)
            return EX_CONFIG
        settings = Settings()
    facts = asyncio.run(gather(settings, running, node_why, error))
    findings = checks.judge(facts)
    show(findings, as_json)
    return 1 if checks.failed(findings) else 0


def ask_node(wanted: str | None) -> tuple[dict[str, Any] | None, str, int]:
    """What the node here says of itself; or None, why there is none, and an exit code if that ends it."""
    try:
        found = client.discover(os.environ, os.getuid())
        connection = client.connect(client.choose(found, wanted))
    except client.RemoteFailure as failure:
        # That none runs, or does not answer, is a finding; which one is meant must be said.
        ends = failure.code == client.USAGE or wanted is not None
        return (
            None,
            failure.text.partition("\n")[0] if not ends else failure.text,
            (failure.code if ends else 0),
        )
    try:
        return client.ask_facts(connection), "", 0
    except (client.NodeGone, BadMessage, TimeoutError) as error:
        return None, f"{connection.node} did not answer: {error or 'no reply'}", 0
    finally:
        connection.close()


async def gather(settings: Settings, running: dict[str, Any] | None, node_why: str, error: str) -> Facts:
    """Ask DNS, this machine and every address. Takes seconds, where addresses are dead."""
    differs = [] if running is None or error else differing(settings, running)
    cookie_known = running is None or bool(running["cookie"]) == (settings.cookie is not None)
    if running is not None:
        settings = adopt(settings, running)
    answer, source = await look_up(settings)
    if running is None:
        own, _ = await own_address(
            settings, None if answer is None else _Answered(answer, source), budget_s=0.5
        )
        own_ip, own_why, own_warning = own.ip, own.why, own.warning
    else:
        own_ip, own_why = running["own_ip"], running["own_ip_why"]
        own_warning = running["own_ip_warning"]
    addresses = addresses_to_ask(answer, running, own_ip)
    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(ip: str) -> PeerFact:
        async with limit:
            return await knock(ip, settings, ask_who=cookie_known)

    port, *peers = await asyncio.gather(
        own_port(own_ip, settings, running is not None, cookie_known), *map(ask, addresses)
    )
    return Facts(
        settings=settings,
        own_ip=own_ip,
        own_why=own_why,
        own_warning=own_warning,
        answer=answer,
        source=source,
        local={ip: can_bind(ip) for ip in addresses},
        port=port,
        peers=[peer for peer in peers if isinstance(peer, PeerFact)],
        node=running,
        node_why=node_why,
        differs=differs,
        environment_error=error,
        cookie_known=cookie_known,
    )


def differing(settings: Settings, running: dict[str, Any]) -> list[str]:
    """Variables that are set here, and hold something else than in the node."""
    mine, its = settings.effective(), running["settings"]
    return [name for name in mine if name in os.environ and mine[name] != its.get(name)]


def adopt(settings: Settings, running: dict[str, Any]) -> Settings:
    """The node's settings, with this shell's cookie: that one is not told to anybody."""
    server = running["dns_server"]
    return settings.replace(
        dns_query=running["query"],
        node_basename=running["basename"],
        node_port=running["port"],
        cluster=running["cluster"],
        dns_server=(server[0], server[1]) if server else None,
        node_timeout_s=running["node_timeout_s"],
        poll_interval_s=running["poll_interval_s"],
        warnings=tuple(running["warnings"]),
    )


class _Answered:
    """A discovery that repeats one answer, so that DNS is asked once for a report."""

    def __init__(self, answer: Answer, source: str) -> None:
        self._answer = answer
        self.source = source

    async def lookup(self) -> Answer:
        return self._answer


async def look_up(settings: Settings) -> tuple[Answer | None, str]:
    """One lookup of the query, and where it was made; None where clustering is off."""
    if settings.dns_query is None:
        return None, ""
    discovery = DnsDiscovery(
        settings.dns_query, server=settings.dns_server, lifetime_s=settings.dns_lifetime_s
    )
    return await discovery.lookup(), discovery.source


def addresses_to_ask(answer: Answer | None, running: dict[str, Any] | None, own_ip: str) -> list[str]:
    """Who is in the answer or in the node's table, without ourselves."""
    named = [] if answer is None else list(answer.addresses)
    rows = [] if running is None else running["info"]["peers"]
    known = [NodeName.parse(row["name"]).ip for row in rows]
    unique = [ip for ip in dict.fromkeys(named + known) if ip != own_ip]
    return unique[:MAX_PEERS]


async def knock(ip: str, settings: Settings, *, ask_who: bool) -> PeerFact:
    """Ask who is there; where nobody says, see whether TCP connects at all.

    In this order, since a node takes a bare connection for a stranger's, and logs it.
    """
    port = settings.node_port
    answer = await probe(ip, port, settings, PROBE_S) if ask_who else None
    tcp = None if isinstance(answer, IAm) else await connects(ip, port)
    return PeerFact(ip, port, tcp, answer if tcp is None else None)


async def connects(ip: str, port: int) -> str | None:
    """None where TCP connects within `KNOCK_S`; else refused, timeout, or what the system says."""
    try:
        async with asyncio.timeout(KNOCK_S):
            _, writer = await asyncio.open_connection(ip, port)
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)
    writer.close()
    return None


async def own_port(ip: str, settings: Settings, running: bool, ask_who: bool) -> PeerFact | str | None:
    """Who listens on the own endpoint; None: nobody, and it can be bound; text: it cannot be."""
    fact = await knock(ip, settings, ask_who=ask_who)
    if running or fact.tcp is None:
        return fact
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((ip, settings.node_port))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{ip} is no address of this machine"
        return f"{error.strerror} ({endpoint(ip, settings.node_port)})"
    return None


def show(findings: Iterable[Finding], as_json: bool) -> None:
    """Print the report."""
    findings = list(findings)
    if as_json:
        print(
            json.dumps(
                {
                    "ok": not checks.failed(findings),
                    "findings": [asdict(finding) for finding in findings],
                }
            )
        )
        return
    for finding in findings:
        print(lines_of(finding, sys.stdout.isatty()))
    count = {
        level: sum(finding.level == level for finding in findings)
        for level in (checks.FAIL, checks.WARN, checks.OK)
    }
    print(f"\n{count['fail']} fail, {count['warn']} warn, {count['ok']} ok")


def lines_of(finding: Finding, colours: bool) -> str:
    """A finding as people read it: level, topic, what is, and below it what to do."""
    colour = {"ok": "32", "warn": "33", "fail": "31"}[finding.level]
    level = f"{finding.level:<4}"
    level = f"\x1b[{colour}m{level}\x1b[0m" if colours else level
    line = f"{level}  {finding.topic:<12} {finding.text}"
    if not finding.cure:
        return line
    cure = textwrap.fill(
        finding.cure,
        width=100,
        initial_indent=" " * 19 + "→ ",
        subsequent_indent=" " * 21,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{line}\n{cure}"
