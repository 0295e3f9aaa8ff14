"""What `fleetlm doctor` concludes: facts in, findings out. Pure: gathers nothing, asks nobody.

Three questions bring people here: a node that sees no others, one that does not start, and nodes
that come and go. Each check says what it saw, and where it is wrong, what to do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.names import NodeName, endpoint
from fleetlm.settings import Settings
from fleetlm.wire.frames import IAm

OK, WARN, FAIL = "ok", "warn", "fail"
FLAPPING_CONNECTIONS = 3
"""Times up from which on a connection is worth a word: once, and one restart, is normal."""
BUSY_LAG_MS = 1_000
SHOWN = 8
"""Addresses in one line."""

HEADLESS = (
    "In Kubernetes the name must be of a headless Service (clusterIP: None) with "
    "publishNotReadyAddresses: true; in Swarm tasks.<service>; in Compose the service's name"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``cure`` is empty where nothing is to be done."""

    level: str
    topic: str
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class PeerFact:
    """What came of knocking at an address.

    Attributes:
        ip: the address.
        port: the port.
        tcp: None where a connection was made, else why not: refused, timeout, or the system's word.
        answer: who is there; text says why the one that listens is not to be talked to; None where
            nothing was asked.
    """

    ip: str
    port: int
    tcp: str | None
    answer: IAm | str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was gathered.

    Attributes:
        settings: those that hold: the node's own, else the environment's.
        own_ip: this node's address, or what it would be; with ``own_why`` and ``own_warning``.
        answer: of the lookup made for this report; None where clustering is off.
        source: where it was asked.
        local: whether an address is this machine's.
        port: None where nobody listens on the own endpoint and it can be bound; else a `PeerFact`,
            or the reason why binding failed.
        peers: the addresses of the answer and of the node's table, without the own.
        node: what the running node says (`facade.facts`), None where none was asked.
        node_why: why none was asked.
        differs: settings that differ between the node and this shell's environment.
        environment_error: why this shell's environment cannot be used, where a node runs anyway.
    """

    settings: Settings
    own_ip: str
    own_why: str
    own_warning: str | None
    answer: Answer | None
    source: str
    local: Mapping[str, bool] = field(default_factory=dict)
    port: PeerFact | str | None = None
    peers: Sequence[PeerFact] = ()
    node: Mapping[str, Any] | None = None
    node_why: str = ""
    differs: Sequence[str] = ()
    environment_error: str = ""
    cookie_known: bool = True
    """False where the node has a cookie that this shell does not know: then nobody can be asked."""

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The running node's connection table."""
        return [] if self.node is None else list(self.node["info"]["peers"])


def judge(facts: Facts) -> list[Finding]:
    """All findings, in the order in which one would look."""
    return [
        *judge_node(facts),
        *judge_settings(facts),
        *judge_own_address(facts),
        *judge_port(facts),
        *judge_cookie(facts),
        *judge_lookup(facts),
        *judge_peers(facts),
        *judge_mesh(facts),
        *judge_stability(facts),
    ]


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything fails."""
    return any(finding.level == FAIL for finding in findings)


def judge_node(facts: Facts) -> list[Finding]:
    """Whether a node runs here."""
    if facts.node is None:
        return [Finding(WARN, "node", facts.node_why, "Checked from the environment alone")]
    info = facts.node["info"]
    uptime = _span(info["uptime_s"])
    findings = [Finding(OK, "node", f"{facts.node['name']} runs, since {uptime}")]
    if facts.environment_error:
        cure = "The node's own settings hold; correct the variable before the next start"
        findings.append(Finding(WARN, "settings", facts.environment_error, cure))
    if info.get("lag_ms", 0) >= BUSY_LAG_MS:
        findings.append(
            Finding(
                WARN,
                "node",
                f"its event loop is {info['lag_ms']:,} ms late: peers see it as busy",
                "Move blocking work off the loop: await node.run_blocking(...), or node.run_in_process(...)",
            )
        )
    return findings


def judge_settings(facts: Facts) -> list[Finding]:
    """Whether clustering is on at all, and what looked odd."""
    settings = facts.settings
    findings = [Finding(WARN, "settings", text) for text in settings.warnings]
    if facts.differs:
        findings.append(
            Finding(
                WARN,
                "settings",
                f"this shell's environment differs from the node's: {', '.join(facts.differs)}",
                "The node's values hold; run doctor with the node's environment to check that one",
            )
        )
    if not settings.clustering:
        findings.append(
            Finding(
                WARN,
                "settings",
                "DNS_CLUSTER_QUERY is not set: the node runs alone, on loopback",
                "Where it shall have peers, set it to a name that resolves to their addresses",
            )
        )
    else:
        cluster = f", cluster {settings.cluster!r}" if settings.cluster else ""
        text = f"valid; DNS_CLUSTER_QUERY={settings.dns_query}, port {settings.node_port}{cluster}"
        findings.append(Finding(OK, "settings", text))
    return findings


def judge_own_address(facts: Facts) -> list[Finding]:
    """Whether peers can find this node under the address in its name."""
    text = f"{facts.own_ip}: {facts.own_why}"
    if facts.own_warning:
        return [Finding(WARN, "own address", text, _sentence(facts.own_warning))]
    answer = facts.answer
    if answer is not None and answer.addresses:
        remote = [ip for ip in answer.addresses if not ipaddress.ip_address(ip).is_loopback]
        if remote and ipaddress.ip_address(facts.own_ip).is_loopback:
            cure = "Set FLEETLM_NODE_IP to the address under which peers reach this machine"
            return [Finding(FAIL, "own address", f"{text}; no peer can reach that", cure)]
        if facts.own_ip not in answer.addresses:
            cure = (
                "Harmless while one peer is found; if this node stays alone, set FLEETLM_NODE_IP, or "
                "find out why the name leaves it out (not ready, not in the service)"
            )
            return [Finding(WARN, "own address", f"{text}; DNS does not name it", cure)]
    observed = [] if facts.node is None else list(facts.node["info"].get("observed_ips", ()))
    if observed:
        cure = "If they cannot connect back (NAT), set FLEETLM_NODE_IP there"
        seen = f"{text}; peers dialled it from {', '.join(observed)}, not from the addresses in their names"
        return [Finding(WARN, "own address", seen, cure)]
    return [Finding(OK, "own address", text)]


def judge_port(facts: Facts) -> list[Finding]:
    """Whether the node listens, or could: what keeps one from starting."""
    where = endpoint(facts.own_ip, facts.settings.node_port)
    found = facts.port
    if facts.node is None:
        if found is None:
            return [Finding(OK, "port", f"{where} is free: a node can start")]
        if isinstance(found, str):
            cure = "FLEETLM_NODE_IP must be an address of this machine, FLEETLM_NODE_PORT one it may bind"
            return [Finding(FAIL, "port", f"{where} cannot be bound: {found}", cure)]
        if isinstance(found.answer, IAm):
            text = f"{where} is taken by the node {found.answer.name}: a second one cannot start"
            cure = "Stop that one first, or give this one another FLEETLM_NODE_IP"
            return [Finding(WARN, "port", text, cure)]
        cure = f"Find it with: ss -ltnp 'sport = {facts.settings.node_port}'; every node has the same port"
        text = f"{where} is taken by something else{_told(found.answer)}: a node cannot start"
        return [Finding(FAIL, "port", text, cure)]
    if isinstance(found, PeerFact) and found.tcp is None:
        if isinstance(found.answer, IAm) and found.answer.name != facts.node["name"]:
            text = f"{where} is answered by {found.answer.name}"
            return [Finding(FAIL, "port", text, "Two nodes share an address: check FLEETLM_NODE_IP")]
        return [Finding(OK, "port", f"{where} answers")]
    why = found.tcp if isinstance(found, PeerFact) else (found or "nobody listens")
    cure = "A firewall on this machine, or the own address is not this machine's"
    return [Finding(FAIL, "port", f"{where} does not answer from here: {why}", cure)]


def judge_cookie(facts: Facts) -> list[Finding]:
    """Whether traffic is protected."""
    has_cookie = facts.settings.cookie is not None if facts.node is None else facts.node["cookie"]
    if has_cookie and not facts.cookie_known:
        text = "the node has one that this shell's environment does not: peers are not asked who they are"
        cure = "Run doctor with the node's FLEETLM_COOKIE or FLEETLM_COOKIE_FILE"
        return [Finding(WARN, "cookie", text, cure)]
    if has_cookie:
        return [Finding(OK, "cookie", "set (masked): traffic is encrypted")]
    if facts.settings.clustering and not ipaddress.ip_address(facts.own_ip).is_loopback:
        text = "not set: whoever reaches the port can join and read the traffic"
        cure = "Set FLEETLM_COOKIE to the same secret on every node: openssl rand -hex 32"
        return [Finding(WARN, "cookie", text, cure)]
    return [Finding(OK, "cookie", "not set, and nothing outside this machine is listened to")]


def judge_lookup(facts: Facts) -> list[Finding]:
    """What the name resolves to, and whether that can be meant."""
    answer = facts.answer
    if answer is None:
        return []
    text = f"{facts.source}: {answer.detail}"
    if answer.outcome is Outcome.FAILED:
        cure = (
            "The name server does not answer: check /etc/resolv.conf and port 53 (UDP and TCP); nodes that "
            "are connected stay so, and go on asking"
        )
        return [Finding(FAIL, "dns", text, cure)]
    if answer.outcome is Outcome.EMPTY:
        cure = f"Nobody has that name: check its spelling and the network. {HEADLESS}"
        return [Finding(FAIL, "dns", text, cure)]
    listed = f"{text} ({_listed(answer.addresses)})"
    if _is_virtual(facts):
        ip = answer.addresses[0]
        cure = f"A load balancer's address finds one node at a time. {HEADLESS}"
        return [Finding(FAIL, "dns", f"{listed}: {ip} is a virtual address, no node's own", cure)]
    if answer.outcome is Outcome.PARTIAL:
        cure = "What came is used; what is missing is found through the nodes that are connected"
        return [Finding(WARN, "dns", listed, cure)]
    if set(answer.addresses) <= {facts.own_ip}:
        cure = "Normal for the first node. Otherwise: the others are not running, or not under this name"
        return [Finding(WARN, "dns", f"{listed}: only this node", cure)]
    return [Finding(OK, "dns", listed)]


def _is_virtual(facts: Facts) -> bool:
    """One address, not this machine's, at which a node answers whose name has another: a VIP."""
    assert facts.answer is not None
    if len(facts.answer.addresses) != 1:
        return False
    ip = facts.answer.addresses[0]
    if ip == facts.own_ip or facts.local.get(ip):
        return False
    return any(
        fact.ip == ip and isinstance(fact.answer, IAm) and NodeName.parse(fact.answer.name).ip != ip
        for fact in facts.peers
    )


def judge_peers(facts: Facts) -> list[Finding]:
    """Each address, knocked at from here."""
    up = {NodeName.parse(row["name"]).ip for row in facts.rows if row["status"] in ("up", "busy")}
    named = set(facts.answer.addresses) if facts.answer else set()
    return [judge_peer(facts.settings, fact, fact.ip in up, fact.ip in named) for fact in facts.peers]


def judge_peer(settings: Settings, fact: PeerFact, up: bool, named: bool) -> Finding:
    """One address. ``named``: the DNS answer has it; one that is only remembered may well be gone."""
    where = endpoint(fact.ip, fact.port)
    level = FAIL if named else WARN
    if fact.tcp is not None:
        if fact.tcp == "refused":
            text = f"{where} refuses: the machine is there, nothing listens on that port"
            cure = "Start the node there; FLEETLM_NODE_PORT must be the same everywhere"
        elif fact.tcp == "timeout":
            text = f"{where} does not answer: the machine is gone, or packets are dropped"
            cure = f"Let TCP {fact.port} pass between nodes, both ways (network policy, security group)"
        else:
            text, cure = f"{where}: {fact.tcp}", "There is no way there from this machine: check routes"
        return Finding(level, "peer", text, cure)
    if isinstance(fact.answer, str):
        cure = (
            "Give every node the same FLEETLM_COOKIE, or none; if the cookie is right, something other than "
            "a node listens there"
        )
        return Finding(WARN if up else FAIL, "peer", fact.answer, cure)
    if fact.answer is None:
        return Finding(OK, "peer", f"{where} accepts connections")
    return _judge_answer(settings, fact.answer, fact, named)


def _judge_answer(settings: Settings, answer: IAm, fact: PeerFact, named: bool) -> Finding:
    where = endpoint(fact.ip, fact.port)
    text = f"{where} is {answer.name}, connected to {_nodes(answer.connected)}"
    if answer.cluster != settings.cluster:
        cure = "Nodes of another FLEETLM_CLUSTER are refused: the same id everywhere, or another DNS name"
        return Finding(FAIL if named else WARN, "peer", f"{text}, of cluster {answer.cluster!r}", cure)
    name = NodeName.parse(answer.name)
    if name.basename != settings.node_basename:
        cure = "Give every node the same DNS_CLUSTER_NODE_BASENAME"
        return Finding(FAIL, "peer", f"{text}: another basename", cure)
    if name.ip != fact.ip:
        cure = "Fine where it has both addresses; else set FLEETLM_NODE_IP there, or see dns above"
        return Finding(WARN, "peer", f"{text}: it goes by another address", cure)
    return Finding(OK, "peer", text)


def judge_mesh(facts: Facts) -> list[Finding]:
    """The connection table of the node that runs here: who is missing, and why."""
    if facts.node is None:
        return []
    rows = facts.rows
    up = [row for row in rows if row["status"] in ("up", "busy")]
    findings = []
    for row in rows:
        if row["status"] in ("up", "busy"):
            continue
        error = row["last_error"] or "no attempt has ended yet"
        age = "" if row["last_error_age_s"] is None else f", {_span(row['last_error_age_s'])} ago"
        level = FAIL if row["in_dns"] and row["attempts"] else WARN
        text = f"{row['name']} is {row['status']}, {row['attempts']} attempts: {error}{age}"
        findings.append(Finding(level, "connection", text, cure_for(error)))
    for row in up:
        if row["status"] == "busy":
            cure = "It blocks its event loop; it is not cut off, and messages wait"
            findings.append(Finding(WARN, "connection", f"{row['name']} is busy", cure))
    level = OK if up or not facts.settings.clustering else WARN
    cure = "" if level == OK else "See dns, peer and connection"
    return [Finding(level, "mesh", f"connected to {_nodes(len(up))}", cure), *findings]


def cure_for(error: str) -> str:
    """What to do about a connection's last error."""
    cures = (
        ("wrong_cluster", "The same FLEETLM_CLUSTER on both, or another DNS name for each cluster"),
        ("wrong_name", "Another node has that address now, or goes by another one: FLEETLM_NODE_IP there"),
        ("duplicate_name", "Two nodes claim one address: FLEETLM_NODE_IP must differ"),
        ("incompatible", "Their versions cannot talk: upgrade the older one"),
        ("draining", "It is leaving; nothing to be done"),
        ("too_many", "The other side has its table full (Settings.max_peers)"),
        ("cookie", "Give every node the same FLEETLM_COOKIE, or none"),
        ("authentic", "Give every node the same FLEETLM_COOKIE, or none"),
        ("back", "It reaches us, we do not reach it: its FLEETLM_NODE_IP, or a one-way firewall"),
        ("left", "It left in order"),
    )
    lower = error.lower()
    return next((cure for word, cure in cures if word in lower), "See peer for what its address says")


def judge_stability(facts: Facts) -> list[Finding]:
    """Connections that come and go."""
    findings = []
    for row in facts.rows:
        if row["connections"] < FLAPPING_CONNECTIONS:
            continue
        error = row["last_error"]
        last = f"; last error: {error}" if error else ""
        text = f"{row['name']} was up {row['connections']} times{last}"
        cure = (
            "If it restarts, see its log and its memory limit. If it does not: packet loss, or a machine "
            "without CPU time to answer within FLEETLM_NODE_TIMEOUT_MS "
            f"({facts.settings.node_timeout_s * 1000:g})"
        )
        findings.append(Finding(WARN, "flapping", text, cure))
    if facts.node is not None and not findings:
        return [Finding(OK, "flapping", "no connection comes and goes")]
    return findings


def _told(answer: object) -> str:
    return f" ({answer})" if isinstance(answer, str) else ""


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _listed(addresses: Sequence[str]) -> str:
    more = len(addresses) - SHOWN
    return ", ".join(addresses[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h"
