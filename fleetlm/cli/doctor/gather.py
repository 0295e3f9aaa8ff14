"""`fleetlm doctor`: gather the facts, let `checks` judge them, print the report.

This module does the input and output, `checks` the thinking. The steps:

1. `ask_node` asks the node that runs on this machine for its settings, address and connection table,
   through the socket of `fleetlm remote`. It answers only while its event loop runs, which is a finding
   in itself. Without a node, the settings come from this shell's environment.
2. `gather` looks up the DNS name once, then contacts this node's own port and every peer address at the
   same time, `MAX_CONCURRENT` of them at once. An address that drops packets costs `PROBE_S` plus
   `TCP_S` seconds.
3. `show` prints the findings.

The cookie never leaves a node, so the doctor needs it in its own environment to ask peers who they are.
Without it, only TCP connections are tried. Nothing here joins the cluster or changes a node: a node
answers a probe and forgets it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fleetlm.cli.doctor import checks
from fleetlm.cli.doctor.checks import Facts, Finding, PeerFact
from fleetlm.cli.exit_codes import EX_CONFIG
from fleetlm.core.dns_answers import Answer
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.own_address import observe_addresses, own_address
from fleetlm.errors import SettingsError
from fleetlm.names import NodeName, endpoint
from fleetlm.remote import client, finder
from fleetlm.remote.protocol import BadMessage
from fleetlm.settings import Settings
from fleetlm.transport.probe import probe
from fleetlm.wire.frames import IAm

TCP_S = 2.0
"""Seconds for a bare TCP connection to an address."""
PROBE_S = 2.5
"""Seconds for a node to say who it is, its CURVE handshake included."""
LARGE_PROBE_BYTES = 8 * 1024
"""Size of the question that tries large packets: more than five Ethernet frames of 1,500 bytes."""
MAX_CONCURRENT = 32
"""Peer addresses that are contacted at the same time."""
MAX_PEERS = 200
"""Peer addresses that are contacted at all, so that the report stays readable."""
_SETTINGS_CURE = "Correct this variable: no node starts with it"
_REPORT_WIDTH = 100
_TEXT_COLUMN = 19


def main(*, node: str | None = None, as_json: bool = False) -> int:
    """Run the doctor and print its report.

    Args:
        node: the node to check; None for the only one on this machine.
        as_json: print one JSON object instead of lines.

    Returns:
        The exit code: 0 if no check failed, 1 if one did, 78 if a setting cannot be used and no node
        runs. Where ``node`` is needed or cannot be asked: the exit code of `fleetlm remote`.
    """
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
            show([Finding(checks.FAIL, "settings", error, _SETTINGS_CURE)], as_json)
            return EX_CONFIG
        settings = Settings()
    try:
        facts = asyncio.run(gather(settings, running, node_why, error))
    except SettingsError as problem:  # FLEETLM_NODE_IP names an interface that has no address.
        show([Finding(checks.FAIL, "settings", str(problem), _SETTINGS_CURE)], as_json)
        return EX_CONFIG
    findings = checks.judge(facts)
    show(findings, as_json)
    return 1 if checks.failed(findings) else 0


def ask_node(wanted: str | None) -> tuple[Mapping[str, Any] | None, str, int]:
    """Ask the node on this machine about itself.

    Returns:
        What it says, or None; why there is no answer; and an exit code, which is not 0 only if the
        doctor must end with it: the named node is not there, or several run and none was named.
    """
    try:
        found = finder.discover(os.environ, os.getuid())
        connection = client.connect(finder.choose(found, wanted))
    except finder.RemoteFailure as failure:
        if failure.code == finder.USAGE or wanted is not None:
            return None, failure.text, failure.code
        return None, failure.text.partition("\n")[0], 0
    try:
        return client.ask_facts(connection), "", 0
    except (client.NodeGone, BadMessage, TimeoutError) as error:
        return None, f"{connection.node} did not answer: {error or 'no reply'}", 0
    finally:
        connection.close()


async def gather(settings: Settings, running: Mapping[str, Any] | None, node_why: str, error: str) -> Facts:
    """Ask DNS, this machine and every peer address. Takes some seconds where addresses do not respond.

    Args:
        settings: those of this environment.
        running: what the node on this machine said; None without one.
        node_why: why no node was asked.
        error: why this environment cannot be used; empty if it can.
    """
    differs = [] if running is None or error else find_differences(settings, running)
    cookie_known = running is None or bool(running["cookie"]) == (settings.cookie is not None)
    if running is not None:
        settings = adopt_settings(settings, running)
    answer, source = await look_up(settings)
    if running is None:
        discovery = None if answer is None else _FixedDiscovery(answer, source)
        own, _ = await own_address(settings, discovery, budget_s=0.5)
        own_ip, own_why, own_warning = own.ip, own.why, own.warning
    else:
        own_ip, own_why = running["own_ip"], running["own_ip_why"]
        own_warning = running["own_ip_warning"]
    addresses = list_peer_addresses(answer, running, own_ip)
    limit = asyncio.Semaphore(MAX_CONCURRENT)

    async def ask(ip: str) -> PeerFact:
        async with limit:
            return await contact(ip, settings, ask_who=cookie_known)

    port, *peers = await asyncio.gather(
        check_own_port(own_ip, settings, running is not None, cookie_known), *map(ask, addresses)
    )
    return Facts(
        settings=settings,
        own_ip=own_ip,
        own_why=own_why,
        own_warning=own_warning,
        answer=answer,
        source=source,
        local=dict(zip(addresses, map(observe_addresses(), addresses), strict=True)),
        port=port,
        peers=[peer for peer in peers if isinstance(peer, PeerFact)],
        node=running,
        node_why=node_why,
        differs=differs,
        environment_error=error,
        cookie_known=cookie_known,
    )


def find_differences(settings: Settings, running: Mapping[str, Any]) -> list[str]:
    """Return the variables that are set in this environment to another value than in the node."""
    here, there = settings.effective(), running["settings"]
    return [name for name in here if name in os.environ and here[name] != there.get(name)]


def adopt_settings(settings: Settings, running: Mapping[str, Any]) -> Settings:
    """Return the node's settings with this environment's cookie, since a node does not tell its own."""
    server = running["dns_server"]
    return settings.replace(
        dns_query=running["query"],
        node_basename=running["basename"],
        node_ports=tuple(running["ports"]),
        cluster=running["cluster"],
        dns_server=(server[0], server[1]) if server else None,
        node_timeout_s=running["node_timeout_s"],
        poll_interval_s=running["poll_interval_s"],
        warnings=tuple(running["warnings"]),
    )


class _FixedDiscovery:
    """A discovery that repeats one answer, so that the doctor asks DNS only once."""

    def __init__(self, answer: Answer, source: str) -> None:
        self._answer = answer
        self.source = source

    async def lookup(self) -> Answer:
        return self._answer


async def look_up(settings: Settings) -> tuple[Answer | None, str]:
    """Look up the DNS name once.

    Returns:
        The answer, and the name with the server that was asked. None if clustering is off.
    """
    if settings.dns_query is None:
        return None, ""
    discovery = DnsDiscovery(
        settings.dns_query, server=settings.dns_server, lifetime_s=settings.dns_lifetime_s
    )
    return await discovery.lookup(), discovery.source


def list_peer_addresses(answer: Answer | None, running: Mapping[str, Any] | None, own_ip: str) -> list[str]:
    """Return at most `MAX_PEERS` addresses from DNS and the connection table, without ``own_ip``."""
    named = [] if answer is None else list(answer.addresses)
    rows = [] if running is None else running["info"]["peers"]
    known = [NodeName.parse(row["name"]).ip for row in rows]
    unique = [ip for ip in dict.fromkeys(named + known) if ip != own_ip]
    return unique[:MAX_PEERS]


async def contact(ip: str, settings: Settings, *, ask_who: bool) -> PeerFact:
    """Ask the node at an address who it is; if no node answers, test whether TCP connects.

    The order matters: a node logs a bare TCP connection as one from a stranger. A node that answers is
    asked once more, with a question that does not fit into one packet.
    """
    port = settings.base_port
    answer = await probe(ip, port, settings, PROBE_S) if ask_who else None
    if isinstance(answer, IAm):
        large = await probe(ip, port, settings, PROBE_S, LARGE_PROBE_BYTES)
        return PeerFact(ip, port, None, answer, isinstance(large, IAm))
    tcp = await try_tcp(ip, port)
    return PeerFact(ip, port, tcp, answer if tcp is None else None)


async def try_tcp(ip: str, port: int) -> str | None:
    """Return None if TCP connects within `TCP_S`; else "refused", "timeout" or the system's error text."""
    try:
        async with asyncio.timeout(TCP_S):
            _, writer = await asyncio.open_connection(ip, port)
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)
    writer.close()
    return None


async def check_own_port(ip: str, settings: Settings, running: bool, ask_who: bool) -> PeerFact | str | None:
    """Find out what listens at this node's address and port.

    Returns:
        What answered. If nothing did and no node runs: None if a node could bind there, else a text
        that says why it could not.
    """
    fact = await contact(ip, settings, ask_who=ask_who)
    if running or fact.tcp is None:
        return fact
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((ip, settings.base_port))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{ip} is not an address of this machine"
        return f"{error.strerror} ({endpoint(ip, settings.base_port)})"
    return None


def show(findings: Iterable[Finding], as_json: bool) -> None:
    """Print the report: one entry for each finding, then a summary with counts."""
    findings = list(findings)
    if as_json:
        ok = not checks.failed(findings)
        print(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}))
        return
    for finding in findings:
        print(format_finding(finding, sys.stdout.isatty()))
    print(f"\n{summarize(findings)}")


def summarize(findings: Iterable[Finding]) -> str:
    """Return the last line of the report: whether all checks passed, and how many did not."""
    levels = [finding.level for finding in findings]
    failures, warnings, passed = (levels.count(level) for level in (checks.FAIL, checks.WARN, checks.OK))
    if not failures and not warnings:
        return f"All checks passed ({passed})."
    failed = f"{failures} check{'' if failures == 1 else 's'} failed" if failures else "No check failed"
    return f"{failed}; {warnings} warning{'' if warnings == 1 else 's'}, {passed} passed."


def format_finding(finding: Finding, colours: bool) -> str:
    """Return the lines of one finding: level, topic and text, and below them what to do."""
    colour = {"ok": "32", "warn": "33", "fail": "31"}[finding.level]
    level = f"{finding.level:<4}"
    level = f"\x1b[{colour}m{level}\x1b[0m" if colours else level
    line = f"{level}  {finding.topic:<12} {finding.text}"
    if not finding.cure:
        return line
    cure = textwrap.fill(
        finding.cure,
        width=_REPORT_WIDTH,
        initial_indent=" " * _TEXT_COLUMN + "→ ",
        subsequent_indent=" " * (_TEXT_COLUMN + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{line}\n{cure}"
