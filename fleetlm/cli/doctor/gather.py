"""`fleetlm doctor`: gather the facts, let `checks` judge them, print the report.

This module does the input and output, `checks` the thinking. The steps:

1. `ask_nodes` asks each node that runs on this machine for its settings, address and connection table,
   through the socket of `fleetlm remote`. A node answers only while its event loop runs, which is a finding
   in itself. Without a node, the settings come from this shell's environment.
2. `gather` looks up the DNS name, looks who holds the ports of this machine, and contacts this node's own
   port and every peer address at the same time, `MAX_CONCURRENT` of them at once. An address that drops
   packets costs `PROBE_S` plus `TCP_S` seconds. `Questions` asks only once what concerns several nodes.
3. `report` prints the findings.

The cookie never leaves a node, so the doctor needs it in its own environment to ask peers who they are.
Without it, only TCP connections are tried. Nothing here joins the cluster or changes a node: a node
answers a probe and forgets it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from fleetlm.cli.doctor import checks
from fleetlm.cli.doctor.checks import Facts, FreePort, PeerFact
from fleetlm.cli.doctor.findings import FAIL, Finding, failed
from fleetlm.cli.doctor.report import Report, show
from fleetlm.cli.exit_codes import EX_CONFIG
from fleetlm.core.dns_answers import Answer
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.interfaces import local_addresses
from fleetlm.discovery.listening_addresses import choose_listening, list_reached
from fleetlm.discovery.own_address import observe_addresses, own_address
from fleetlm.errors import SettingsError
from fleetlm.escapes import escape_lines
from fleetlm.names import NodeName, endpoint, parse_address
from fleetlm.remote import client, finder
from fleetlm.remote.protocol import BadMessage, SocketFile
from fleetlm.settings import Settings
from fleetlm.transport.listening import take_port
from fleetlm.transport.port_holders import find_holders
from fleetlm.transport.probe import probe
from fleetlm.transport.taken_ports import TakenPort, look_at_ports
from fleetlm.wire.frames import IAm

T = TypeVar("T")

IMPORT_S = 30.0
"""Seconds for the import of dnspython, which says nothing about DNS: a tenth of one on an idle machine."""
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
MAX_NODES_ASKED = 16
"""Nodes of this machine that are asked at the same time: each question takes a thread."""
_SETTINGS_CURE = "Correct this variable: no node starts with it"


class AskedNode(NamedTuple):
    """A node of this machine, and what it says."""

    name: str
    facts: Mapping[str, Any] | None
    """What it says about itself (`remote.facts.node_facts`); None if it does not answer."""
    why: str
    """Why it does not answer; else empty."""


def main(*, node: str | None = None, as_json: bool = False) -> int:
    """Run the doctor and print its report.

    Args:
        node: the node to check, by its name, its port or its slot; None for all on this machine.
        as_json: print one JSON object instead of lines.

    Returns:
        The exit code: 0 if no check failed, 1 if one did, 78 if a setting cannot be used and no node
        runs. Where ``node`` cannot be asked: the exit code of `fleetlm remote`.
    """
    nodes, why, code = ask_nodes(node)
    if code:
        print(escape_lines(why), file=sys.stderr)
        return code
    error = ""
    try:
        settings = Settings.from_env()
    except SettingsError as problem:
        error = str(problem)
        if not any(each.facts for each in nodes):
            show([Report("", [Finding(FAIL, "settings", error, _SETTINGS_CURE)])], as_json)
            return EX_CONFIG
        settings = Settings()
    try:
        reports = asyncio.run(examine(settings, nodes, why, error))
    except SettingsError as problem:  # FLEETLM_NODE_IP names an interface that has no address.
        show([Report("", [Finding(FAIL, "settings", str(problem), _SETTINGS_CURE)])], as_json)
        return EX_CONFIG
    show(reports, as_json)
    return 1 if any(failed(report.findings) for report in reports) else 0


def ask_nodes(wanted: str | None) -> tuple[list[AskedNode], str, int]:
    """Ask the nodes of this machine about themselves.

    Args:
        wanted: only this node; see `finder.choose`.

    Returns:
        The nodes, none if none runs here; why there are none; and an exit code, which is not 0 only if the
        doctor must end with it: the wanted node is not there, or does not answer.
    """
    try:
        found = finder.discover(os.environ, os.getuid())
        if wanted is not None or not found:
            found = [finder.choose(found, wanted)]
    except finder.RemoteFailure as failure:
        if wanted is not None:
            return [], failure.text, failure.code
        return [], failure.text.partition("\n")[0], 0
    with ThreadPoolExecutor(MAX_NODES_ASKED) as threads:
        asked = list(threads.map(ask_node, found))
    nodes = [each for each, _ in asked]
    (only, code), *others = asked
    if only.facts is None and not others:
        return [], only.why, code if wanted is not None else 0
    return nodes, "", 0


def ask_node(found: SocketFile) -> tuple[AskedNode, int]:
    """Ask one node about itself. Returns what it says, and an exit code if it does not answer."""
    try:
        connection = client.connect(found)
    except finder.RemoteFailure as failure:
        return AskedNode(found.node, None, failure.text), failure.code
    try:
        facts = client.ask_facts(connection)
        return AskedNode(str(facts.get("name", connection.node)), facts, ""), 0
    except (client.NodeGone, BadMessage, TimeoutError) as error:
        return AskedNode(connection.node, None, f"{connection.node} did not answer: {error or 'no reply'}"), 0
    finally:
        connection.close()


async def examine(settings: Settings, nodes: Sequence[AskedNode], why: str, error: str) -> list[Report]:
    """Gather and judge the facts about each node, or about this environment where no node runs.

    Args:
        settings: those of this environment.
        nodes: the nodes of this machine.
        why: why there are none.
        error: why this environment cannot be used; empty if it can.
    """
    questions = Questions()

    async def report(each: AskedNode) -> Report:
        if each.facts is None:
            return Report(each.name, [checks.judge_silence(each.why)])
        facts = await gather(settings, each.facts, "", error, questions)
        return Report(each.name, checks.judge(facts))

    if not nodes:
        return [Report("", checks.judge(await gather(settings, None, why, error, questions)))]
    return list(await asyncio.gather(*map(report, nodes)))


class Questions:
    """Asks each question once, however many nodes of this machine want to know.

    Attributes:
        limit: how many peer addresses are contacted at the same time.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self.limit: asyncio.Semaphore = asyncio.Semaphore(MAX_CONCURRENT)

    def ask(self, key: Hashable, question: Callable[[], Coroutine[Any, Any, T]]) -> Awaitable[T]:
        """Return the answer to a question, which is asked unless one with this key was."""
        if key not in self._tasks:
            self._tasks[key] = asyncio.ensure_future(question())
        return self._tasks[key]


async def gather(
    settings: Settings,
    running: Mapping[str, Any] | None,
    node_why: str,
    error: str,
    questions: Questions | None = None,
) -> Facts:
    """Ask DNS, this machine and every peer address. Takes some seconds where addresses do not respond.

    Args:
        settings: those of this environment.
        running: what the node on this machine said; None without one.
        node_why: why no node was asked.
        error: why this environment cannot be used; empty if it can.
        questions: what was asked already, for other nodes.
    """
    questions = questions or Questions()
    differs = [] if running is None or error else find_differences(settings, running)
    cookie_known = running is None or bool(running["cookie"]) == (settings.cookie is not None)
    if running is not None:
        settings = adopt_settings(settings, running)
    key = (settings.dns_query, settings.dns_server)
    answer, source = await questions.ask(("dns", key), lambda: look_up(settings))
    if running is None:
        discovery = None if answer is None else _FixedDiscovery(answer, source)
        own, _ = await own_address(settings, discovery, budget_s=0.5)
        own_ip, own_why, own_warning = own.ip, own.why, own.warning
        own_port = None
        interfaces = local_addresses() or ()
        listening = choose_listening(settings.bind, own, interfaces)
        reached = list_reached(own, listening, interfaces)
    else:
        own_ip, own_why = running["own_ip"], running["own_ip_why"]
        own_warning = running["own_ip_warning"]
        own_port = NodeName.parse(running["name"]).port or settings.base_port
        listening, reached = (own_ip,), ()
    addresses = list_peer_addresses(answer, running, own_ip, settings.base_port)

    async def ask(address: str) -> PeerFact:
        ip, port = parse_address(address) or (address, None)
        ports = [port] if port is not None else _ports_of_host(settings)

        async def contact_one() -> PeerFact:
            async with questions.limit:
                return await contact_host(ip, ports, settings, ask_who=cookie_known)

        return await questions.ask((ip, *ports, cookie_known, settings.node_timeout_s), contact_one)

    ports = questions.ask(
        ("ports", own_ip, settings.node_ports, cookie_known),
        lambda: survey_ports(own_ip, settings, ask_who=cookie_known),
    )
    own_fact, *facts = await asyncio.gather(
        check_own_port(listening[0], own_port, settings, cookie_known), *map(ask, addresses)
    )
    peers = [each for each in facts if isinstance(each, PeerFact)]
    is_here = observe_addresses()
    return Facts(
        settings=settings,
        own_ip=own_ip,
        own_why=own_why,
        own_warning=own_warning,
        answer=answer,
        source=source,
        local={each.ip: is_here(each.ip) for each in peers},
        port=own_fact,
        ports=await ports,
        peers=peers,
        node=running,
        node_why=node_why,
        differs=differs,
        environment_error=error,
        cookie_known=cookie_known,
        reached=reached,
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
    await discovery.prepare(IMPORT_S)
    return await discovery.lookup(), discovery.source


def _ports_of_host(settings: Settings) -> Sequence[int]:
    """Return the ports at which a host may have a node whose port is not known, the most likely one first."""
    first, last = settings.node_ports
    return [settings.base_port, *(port for port in range(first, last + 1) if port != settings.base_port)]


def list_peer_addresses(
    answer: Answer | None, running: Mapping[str, Any] | None, own_ip: str, base_port: int
) -> list[str]:
    """Return at most `MAX_PEERS` addresses from DNS and the connection table, without this node's own.

    An address without a port stands for all nodes of a host. So it is left out where the connection table
    has a node of that host, and where it is this host.
    """
    own = {own_ip}
    rows = []
    if running is not None:
        own.add(endpoint(own_ip, NodeName.parse(running["name"]).port or base_port))
        rows = running["info"]["peers"]
    known = [NodeName.parse(row["name"]) for row in rows]
    hosts = {name.ip for name in known}
    named = [] if answer is None else [each for each in answer.addresses if each not in hosts]
    exact = [endpoint(name.ip, name.port or base_port) for name in known]
    return [each for each in dict.fromkeys([*named, *exact]) if each not in own][:MAX_PEERS]


async def survey_ports(ip: str, settings: Settings, *, ask_who: bool) -> list[TakenPort]:
    """Find out who holds the ports of the nodes on this machine."""
    first, last = settings.node_ports
    ports = range(first, last + 1)
    holders = find_holders(ports, ip)
    held = sorted({each.port for each in holders})
    if not ask_who:
        return [TakenPort(port, tuple(each for each in holders if each.port == port)) for port in held]
    return await look_at_ports(ip, held, settings)


async def contact_host(ip: str, ports: Sequence[int], settings: Settings, *, ask_who: bool) -> PeerFact:
    """Contact the first port of a host; where it is closed, the first of the others that is not."""
    fact = await contact(ip, ports[0], settings, ask_who=ask_who)
    if fact.tcp != "refused" or len(ports) == 1:
        return fact
    tried = await asyncio.gather(*(try_tcp(ip, port) for port in ports[1:]))
    opened = [port for port, why in zip(ports[1:], tried, strict=True) if why is None]
    return await contact(ip, opened[0], settings, ask_who=ask_who) if opened else fact


async def contact(ip: str, port: int, settings: Settings, *, ask_who: bool) -> PeerFact:
    """Ask the node at an address who it is; if no node answers, test whether TCP connects.

    The order matters: a node logs a bare TCP connection as one from a stranger. A node that answers is
    asked once more, with a question that does not fit into one packet.
    """
    answer = await probe(ip, port, settings, PROBE_S) if ask_who else None
    if isinstance(answer, IAm):
        large = await probe(ip, port, settings, PROBE_S, LARGE_PROBE_BYTES)
        return PeerFact(ip, port, None, answer, isinstance(large, IAm))
    tcp = await try_tcp(ip, port)
    return PeerFact(ip, port, tcp, answer if tcp is None else None)


async def try_tcp(ip: str, port: int) -> str | None:
    """Return None if TCP connects within `TCP_S`, else why it does not, as `PeerFact.tcp` says it."""
    try:
        async with asyncio.timeout(TCP_S):
            _, writer = await asyncio.open_connection(ip, port)
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except OSError as error:
        # The text of asyncio, "Connect call failed", names no reason. Errors of getaddrinfo are negative.
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    writer.close()
    return None


async def check_own_port(
    ip: str, port: int | None, settings: Settings, ask_who: bool
) -> PeerFact | FreePort | str:
    """Find out what listens at this node's address and port, or where a node could listen.

    Args:
        ip: the address at which it listens, or ``*``.
        port: its port; None if no node runs.
        settings: its settings.
        ask_who: whether nodes would answer who they are.

    Returns:
        What answered. If no node runs: the port that a new one would take, or why it would find none.
    """
    if port is not None:
        return await contact(ip, port, settings, ask_who=ask_who)
    try:
        listening = take_port(ip, settings.own_ports)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{ip} is not an address of this machine"
        return error.strerror or str(error)
    listening.close()
    return FreePort(listening.port)
