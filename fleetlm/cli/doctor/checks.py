"""The checks of `fleetlm doctor`: functions from `Facts` to `Finding` objects.

The doctor has two halves. `gather` does all input and output: it asks the node on this machine, DNS,
the operating system and every peer address, and stores the results in one `Facts` object. This module
only judges that object. It has no clock, no socket and no environment, so each situation is tested by
writing down its facts.

The checks answer three questions: why does a node see no other nodes, why does a node not start, and
why do connections come and go. `judge` runs them in the order in which a person would search: first
this node (is it running, its settings, address, port, cookie), then DNS, then each peer address, then
the connection table of the running node and its keyed entities (`entity_checks`).

A finding names the subject of the check (``topic``), what was found (``text``) and, where something is
wrong, what to do (``cure``). A finding of level ``fail`` always has a cure. No text contains a secret.

Levels: ``fail`` is a problem that keeps nodes apart or a node from starting; ``warn`` is a situation
that may be intended, such as a node without a cookie; ``ok`` is a passed check. Only ``fail`` makes the
exit code 1.

A finding states what was seen. What is only likely to be the cause is worded as a guess ("perhaps").
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from fleetlm.cli.doctor.entity_checks import judge_kinds
from fleetlm.cli.doctor.findings import FAIL, OK, WARN, Finding
from fleetlm.core.dns_answers import Answer, Outcome, list_hosts
from fleetlm.core.exposure import MAKE_ONE, check_exposure, describe_exposure
from fleetlm.core.peer_addresses import PeerAddresses
from fleetlm.discovery.address_watch import PORT_CURE, describe_other_ports
from fleetlm.discovery.dns import HOSTS
from fleetlm.errors import SettingsError
from fleetlm.names import NodeName, endpoint
from fleetlm.records import Record
from fleetlm.setting_parsers import is_service_name
from fleetlm.settings import Settings
from fleetlm.texts import format_span
from fleetlm.transport.taken_ports import TakenPort, advise, describe_holder, name_ports
from fleetlm.wire.frames import IAm

FLAPPING_CONNECTIONS = 3
"""A connection that came up this often is reported. One restart, which makes it two, is normal."""
MAX_STALLED = 5
"""Processes that wait for others and are named in a report."""
SAME_COOKIE = "Give every node the same FLEETLM_COOKIE, or none, and the same FLEETLM_CLUSTER"
BUSY_LAG_MS = 1_000
"""An event loop that is at least this late, in milliseconds, is reported."""
MAX_ADDRESSES_SHOWN = 8
"""Addresses listed in one finding, so that it stays readable. The others are counted."""

DNS_NAME_HELP = (
    "In Kubernetes use the name of a headless Service (clusterIP: None) with "
    "publishNotReadyAddresses: true; in Docker Swarm tasks.<service>; in Docker Compose the service's name; "
    "on Fly.io <app>.internal; on ECS <service>.<namespace> of Cloud Map"
)
SAMPLES: Mapping[tuple[bool, int], str] = {
    (False, 8): "AWS Cloud Map gives at most eight",
    (True, 8): "AWS Cloud Map gives at most eight",
    (True, 3): "Consul gives three over plain UDP",
}
"""Whether SRV records were asked for, and how many addresses came → who answers with so many at most.
Source: Route 53, multivalue answer routing; Consul, dns_config.udp_answer_limit."""


SRV_HELP = (
    "A name that begins with _ is asked for SRV records, which the hosts file and the C library do not know. "
    "In Kubernetes it is _<port name>._tcp.<service>.<namespace>.svc.cluster.local., in Consul "
    "_<service>._tcp.service.consul."
)


class PeerFact(Record):
    """The result of contacting one address.

    Attributes:
        ip: the address.
        port: the port.
        tcp: None if a TCP connection was made; else "refused", "reset", "timeout" or the system's error text.
        answer: what the node there says about itself; a text if the program that listens did not
            answer as a node of this cluster, and why; None if it was not asked.
        takes_large: False if the node answered a small question, but not one of several packets.
    """

    ip: str
    port: int
    tcp: str | None
    answer: IAm | str | None = None
    takes_large: bool = True


class FreePort(Record):
    """The port that a node would take if it were started here."""

    port: int


class Facts(Record):
    """Everything that `gather` found out.

    Attributes:
        settings: the settings of the running node; without one, those of this environment.
        own_ip: the address of the running node, or the one that a node started here would use.
        own_why: why it is that address.
        own_warning: what may be wrong with it; None if nothing is.
        answer: the DNS answer to the lookup made for this report; None if clustering is off.
        source: the name that was looked up, and where.
        local: for each address in ``peers``, whether it belongs to this machine.
        port: what answered at the address and port of the running node. Without one: the port that a node
            would take, or a text that says why it would find none.
        ports: who holds the ports of `Settings.node_ports` at this machine's address; only those in use.
        peers: the addresses from DNS and from the connection table, without ``own_ip``.
        node: what the running node says about itself (`remote.facts.node_facts`); None without one.
        node_why: why no running node was asked.
        differs: names of the variables whose values differ between the node and this environment.
        environment_error: why no node could start with this environment, although one runs.
        cookie_known: False if the node has a cookie that this environment lacks. Peers are then not
            asked who they are, since they would not answer.
        reached: the addresses under which a node started here could be reached.
    """

    settings: Settings
    own_ip: str
    own_why: str
    own_warning: str | None
    answer: Answer | None
    source: str
    local: Mapping[str, bool] = field(default_factory=dict)
    port: PeerFact | FreePort | str | None = None
    ports: Sequence[TakenPort] = ()
    peers: Sequence[PeerFact] = ()
    node: Mapping[str, Any] | None = None
    node_why: str = ""
    differs: Sequence[str] = ()
    environment_error: str = ""
    cookie_known: bool = True
    reached: Sequence[str] = ()

    @property
    def own_port(self) -> int:
        """The port of the running node; without one, the first of the range."""
        port = None if self.node is None else NodeName.parse(self.node["name"]).port
        return port or self.settings.base_port

    @property
    def hosts(self) -> set[str]:
        """The IP addresses in the DNS answer."""
        return set() if self.answer is None else set(list_hosts(self.answer.addresses))

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The running node's connection table."""
        return [] if self.node is None else list(self.node["info"]["peers"])


def judge(facts: Facts) -> list[Finding]:
    """Run all checks. The findings are in the order of the checks."""
    return [
        *judge_node(facts),
        *judge_settings(facts),
        *judge_own_address(facts),
        *judge_networks(facts),
        *judge_port(facts),
        *judge_ports(facts),
        *judge_cookie(facts),
        *judge_lookup(facts),
        *judge_peers(facts),
        *judge_mesh(facts),
        *judge_stability(facts),
        *judge_kinds(() if facts.node is None else facts.node.get("kinds", ())),
    ]


def judge_node(facts: Facts) -> list[Finding]:
    """Check whether a node runs on this machine, and whether its event loop is late."""
    if facts.node is None:
        cure = "This report checks the environment of this shell only. To check a node, start it first"
        return [Finding(WARN, "node", facts.node_why, cure)]
    info = facts.node["info"]
    uptime = format_span(info["uptime_s"])
    findings = [Finding(OK, "node", f"{facts.node['name']} has been running for {uptime}")]
    if facts.environment_error:
        cure = "The running node has valid settings; correct this variable before you start it again"
        findings.append(Finding(WARN, "settings", facts.environment_error, cure))
    if info.get("lag_ms", 0) >= BUSY_LAG_MS:
        findings.append(
            Finding(
                WARN,
                "node",
                f"its event loop is {info['lag_ms']:,} ms late: something blocks it",
                "Move blocking work off the loop: await node.run_blocking(...) or node.run_in_process(...)",
            )
        )
    for stalled in info.get("stalled", ())[:MAX_STALLED]:
        cure = "Look at what that process does: Process.list() in `fleetlm remote` shows all of them"
        findings.append(Finding(WARN, "node", stalled, cure))
    return findings


def judge_settings(facts: Facts) -> list[Finding]:
    """Check whether clustering is on, and report suspicious settings."""
    settings = facts.settings
    findings = [Finding(WARN, "settings", text) for text in settings.warnings]
    if facts.differs:
        findings.append(
            Finding(
                WARN,
                "settings",
                f"this shell's environment differs from the node's in {', '.join(facts.differs)}",
                "This report uses the values of the node. Run doctor in the node's environment to compare",
            )
        )
    if not settings.clustering:
        findings.append(
            Finding(
                WARN,
                "settings",
                "DNS_CLUSTER_QUERY is not set, so the node runs alone, on a loopback address",
                "To form a cluster, set it to a DNS name that resolves to the addresses of all nodes",
            )
        )
    else:
        cluster = f", cluster {settings.cluster!r}" if settings.cluster else ""
        text = f"all valid: DNS_CLUSTER_QUERY={settings.dns_query}, port {settings.base_port}{cluster}"
        findings.append(Finding(OK, "settings", text))
    return findings


def judge_own_address(facts: Facts) -> list[Finding]:
    """Check whether peers can reach this node at the address in its name."""
    text = f"this node's address is {facts.own_ip} ({facts.own_why})"
    if facts.own_warning:
        return [Finding(WARN, "own address", text, _capitalize(facts.own_warning))]
    answer = facts.answer
    if answer is not None and answer.addresses:
        remote = [ip for ip in facts.hosts if not ipaddress.ip_address(ip).is_loopback]
        if remote and ipaddress.ip_address(facts.own_ip).is_loopback:
            cure = "Set FLEETLM_NODE_IP to the address at which peers reach this machine"
            return [Finding(FAIL, "own address", f"{text}; peers cannot reach a loopback address", cure)]
        ports = facts.settings.own_ports if facts.node is None else range(facts.own_port, facts.own_port + 1)
        other_ports = describe_other_ports(facts.own_ip, ports, answer.addresses)
        if other_ports is not None:
            return [Finding(WARN, "own address", other_ports, _capitalize(PORT_CURE))]
        if facts.own_ip not in facts.hosts:
            cure = (
                "This is harmless as long as the node finds one peer. If it stays alone, set "
                "FLEETLM_NODE_IP, or find out why DNS leaves this address out (for example, the node is not "
                "ready or not part of the service, or the answer is a sample)"
            )
            return [Finding(WARN, "own address", f"{text}; the DNS answer does not contain it", cure)]
    observed = [] if facts.node is None else list(facts.node["info"].get("observed_ips", ()))
    if observed:
        cure = "If this node cannot connect to them (NAT), set FLEETLM_NODE_IP on those peers"
        seen = (
            f"{text}; peers connected to it from {', '.join(observed)}, which are not the addresses in their "
            "names"
        )
        return [Finding(WARN, "own address", seen, cure)]
    return [Finding(OK, "own address", text)]


def judge_networks(facts: Facts) -> list[Finding]:
    """Compare FLEETLM_ALLOWED_NETWORKS with this node's own address and with what DNS names."""
    networks = facts.settings.allowed_networks
    if not networks:
        return []
    rules = PeerAddresses([], networks)
    text = f"FLEETLM_ALLOWED_NETWORKS is {','.join(networks)}"
    if facts.own_ip and not rules.allows(facts.own_ip):
        why = f"{text}, and {facts.own_ip} is outside: nodes with the same value refuse this one"
        cure = "Add the network of the nodes, with the same value on all of them"
        return [Finding(FAIL, "allowed networks", why, cure)]
    outside = sorted(ip for ip in facts.hosts if not rules.allows(ip))
    if outside:
        why = f"{text}, so these addresses in DNS are passed over: {', '.join(outside[:3])}"
        cure = "Add their networks if they are nodes of this cluster"
        return [Finding(WARN, "allowed networks", why, cure)]
    return [Finding(OK, "allowed networks", text)]


def judge_silence(why: str) -> Finding:
    """Judge a node of this machine that does not answer, where others do."""
    cure = "Its log says what blocks its event loop; `ps` shows whether its process is stopped"
    return Finding(FAIL, "node", why, cure)


def judge_port(facts: Facts) -> list[Finding]:
    """Check whether the running node listens on its port, or whether a new node could."""
    if facts.node is None:
        return [_judge_new_port(facts)]
    where, found = endpoint(facts.own_ip, facts.own_port), facts.port
    if isinstance(found, PeerFact) and found.tcp is None:
        if isinstance(found.answer, IAm) and found.answer.name != facts.node["name"]:
            text = f"the node that answers at {where} is {found.answer.name}, not {facts.node['name']}"
            return [Finding(FAIL, "port", text, "Two nodes use one address: check FLEETLM_NODE_IP of both")]
        return [Finding(OK, "port", f"the node answers at {where}")]
    why = found.tcp if isinstance(found, PeerFact) else (found or "no program listens")
    connected = [row for row in facts.rows if row["status"] in ("up", "busy")]
    if connected:  # Each of them has connected to this node at the address in its name.
        text = (
            f"the node does not answer at {where} from this machine ({why}), but "
            f"{_count_nodes(len(connected))} reached it there, which is normal behind NAT and with published "
            "ports"
        )
        return [Finding(OK, "port", text)]
    cure = "Check the firewall of this machine, and that FLEETLM_NODE_IP is an address of this machine"
    return [Finding(FAIL, "port", f"the node does not answer at {where} from this machine: {why}", cure)]


def _judge_new_port(facts: Facts) -> Finding:
    """Check whether a node that is started here would find a port."""
    found, settings = facts.port, facts.settings
    if isinstance(found, FreePort):
        return Finding(OK, "port", f"{endpoint(facts.own_ip, found.port)} is free, so a node can start")
    wanted = settings.own_ports
    where = endpoint(facts.own_ip, wanted[0]) + (f"-{wanted[-1]}" if len(wanted) > 1 else "")
    taken = [each for each in facts.ports if each.port in wanted]
    if len(taken) == len(wanted):
        # If nodes hold all of them, that may be meant so: they run, and could not be asked.
        level = WARN if all(each.node for each in taken) else FAIL
        text = f"{name_ports(taken, settings.node_slot)} is in use at {facts.own_ip}, so no node can start"
        return Finding(level, "port", text, advise(taken, settings.node_slot).replace("\n", " "))
    cure = (
        "FLEETLM_NODE_IP must be an address of this machine, or FLEETLM_BIND say where to listen; and "
        "FLEETLM_NODE_PORT must be ports that this user may bind (below 1024 that needs privileges)"
    )
    return Finding(FAIL, "port", f"{where} cannot be bound: {found}", cure)


def judge_ports(facts: Facts) -> list[Finding]:
    """Say who holds the ports at which nodes of this machine may listen."""
    first, last = facts.settings.node_ports
    if not facts.ports:
        return []
    which = f"the {last - first + 1} ports {first}-{last}" if first < last else f"port {first}"
    count = (
        f"{len(facts.ports)} of {which} at {facts.own_ip}" if first < last else f"{which} at {facts.own_ip}"
    )
    verb = "is" if len(facts.ports) == 1 else "are"
    findings = [Finding(OK, "ports", f"{count} {verb} in use")]
    for each in facts.ports:
        text = f"{each.port}: {describe_holder(each)}"
        if each.node is None and each.was_asked and each.port == facts.settings.base_port and first < last:
            cure = (
                "The first port should be a node's: others look for the nodes of this machine there first, "
                "and find them later where another program holds it. Choose another range of "
                "FLEETLM_NODE_PORT, on every node of the cluster"
            )
            findings.append(Finding(WARN, "ports", text, cure))
        else:
            findings.append(Finding(OK, "ports", text))
    return findings


def judge_cookie(facts: Facts) -> list[Finding]:
    """Check whether traffic is encrypted and authenticated."""
    has_cookie = facts.settings.cookie is not None if facts.node is None else facts.node["cookie"]
    if has_cookie and not facts.cookie_known:
        text = "the node has a cookie and this shell does not, so peers could not be asked who they are"
        cure = "Run doctor with the node's FLEETLM_COOKIE or FLEETLM_COOKIE_FILE"
        return [Finding(WARN, "cookie", text, cure)]
    if has_cookie:
        return [Finding(OK, "cookie", "set (not shown); traffic between nodes is encrypted")]
    if facts.node is not None:
        warning = facts.node["info"]["exposure_warning"]
    else:
        reached = facts.reached or (facts.own_ip,)
        try:
            check_exposure(facts.settings, reached)
        except SettingsError as error:
            return [Finding(FAIL, "cookie", f"no node can start: {error}", _capitalize(MAKE_ONE))]
        warning = describe_exposure(facts.settings, reached)
    if warning:
        text, _, cure = warning.partition("; ")
        return [Finding(WARN, "cookie", text, _capitalize(cure))]
    return [Finding(OK, "cookie", "not set: only programs on this machine can reach the node")]


def judge_lookup(facts: Facts) -> list[Finding]:
    """Check what the DNS name resolves to, and whether those can be the addresses of nodes."""
    answer = facts.answer
    if answer is None:
        return []
    text = f"{facts.source}: {answer.detail}"
    if answer.outcome is Outcome.FAILED:
        cure = (
            "The DNS server gives no usable answer: check /etc/resolv.conf and port 53 (UDP and TCP). "
            "Connected nodes stay connected, and every node repeats its lookups"
        )
        if _asks_for_services(facts):
            cure += f". {SRV_HELP}"
        return [Finding(FAIL, "dns", text, cure)]
    if answer.outcome is Outcome.EMPTY:
        help_text = SRV_HELP if _asks_for_services(facts) else DNS_NAME_HELP
        cure = f"The name has no addresses: check its spelling, and the network. {help_text}"
        return [Finding(FAIL, "dns", text, cure)]
    listed = f"{text} ({_list_addresses(answer.addresses)})"
    if _is_virtual(facts):
        (ip,) = facts.hosts
        cure = f"Behind the address of a load balancer only one node can be found at a time. {DNS_NAME_HELP}"
        text = f"{listed}: {ip} is a virtual address, not the address of a node"
        return [Finding(FAIL, "dns", text, cure)]
    if answer.outcome is Outcome.PARTIAL:
        cure = "Nodes use the addresses that were returned, and learn of missing ones through their peers"
        return [Finding(WARN, "dns", listed, cure)]
    if set(answer.addresses) <= {facts.own_ip, endpoint(facts.own_ip, facts.own_port)}:
        if any(row["status"] in ("up", "busy") for row in facts.rows):
            return [Finding(OK, "dns", f"{listed}: only this machine, and its nodes have found each other")]
        if answer.detail.endswith(f"from {HOSTS}"):
            cure = (
                f"{HOSTS} has only this machine under that name, so DNS is not asked: end the name in "
                "DNS_CLUSTER_QUERY with a dot, or give this machine another host name"
            )
            return [Finding(WARN, "dns", f"{listed}: only this node", cure)]
        cure = (
            "This is normal for the first node. If there should be more, they are not running, or DNS does "
            "not have them under this name"
        )
        return [Finding(WARN, "dns", f"{listed}: only this node", cure)]
    return [Finding(OK, "dns", f"{listed}{_describe_sample(facts)}")]


def _describe_sample(facts: Facts) -> str:
    """Say that the answer is a sample, or may be one, which is no fault; empty if nothing speaks for it."""
    assert facts.answer is not None
    names = [NodeName.parse(row["name"]) for row in facts.rows if row["status"] in ("up", "busy")]
    listed = set(facts.answer.addresses)
    unlisted = [
        name
        for name in names
        if name.ip not in listed and endpoint(name.ip, name.port or facts.settings.base_port) not in listed
    ]
    if unlisted:
        return f"; {_count_nodes(len(unlisted))} connected that it does not list: perhaps it is a sample"
    size = len(facts.answer.addresses)
    who = SAMPLES.get((_asks_for_services(facts), size))
    if who is None or len(names) + 1 >= size:  # Connected to all of them: nothing is missing.
        return ""
    return f"; exactly {size}, perhaps a sample ({who}): nodes learn of the others from their peers"


def _asks_for_services(facts: Facts) -> bool:
    """Whether a name of the query is asked for SRV records."""
    return any(map(is_service_name, (facts.settings.dns_query or "").split(",")))


def _is_virtual(facts: Facts) -> bool:
    """Whether the only address in DNS is a load balancer's.

    It is if it does not belong to this machine and a node answers there whose name has another address.
    """
    assert facts.answer is not None
    hosts = list_hosts(facts.answer.addresses)
    if len(hosts) != 1:
        return False
    ip = hosts[0]
    if ip == facts.own_ip or facts.local.get(ip):
        return False
    return any(
        fact.ip == ip and isinstance(fact.answer, IAm) and NodeName.parse(fact.answer.name).ip != ip
        for fact in facts.peers
    )


def judge_peers(facts: Facts) -> list[Finding]:
    """Check each address of a peer, as contacted from this machine."""
    names = [NodeName.parse(row["name"]) for row in facts.rows if row["status"] in ("up", "busy")]
    up = {(name.ip, name.port or facts.settings.base_port) for name in names}
    hosts = facts.hosts
    return [
        judge_peer(
            facts.settings,
            fact,
            (fact.ip, fact.port) in up,
            fact.ip in hosts,
            local=facts.local.get(fact.ip, False),
        )
        for fact in facts.peers
    ]


def judge_peer(settings: Settings, fact: PeerFact, up: bool, named: bool, *, local: bool = False) -> Finding:
    """Check one address.

    Args:
        settings: those of this node.
        fact: what was found at the address.
        up: whether the running node is connected to a node with this address.
        named: whether the DNS answer contains it. An address that only the connection table has may
            belong to a node that will not return, so a failure there is a warning.
        local: whether the address belongs to this machine.
    """
    where = endpoint(fact.ip, fact.port)
    level = FAIL if named else WARN
    if fact.tcp is not None:
        if fact.tcp == "refused" and local and not ipaddress.ip_address(fact.ip).is_loopback:
            text = f"{where} refuses connections: this machine has the address, and no program listens there"
            cure = (
                "Perhaps other machines have it too (a virtual address: of a Docker Swarm service, LVS, "
                "keepalived). Then use a DNS name that resolves to each node. If not, start a node there"
            )
        elif fact.tcp == "refused":
            text = f"{where} refuses connections: the machine is up, but no program listens on this port"
            cure = "Start a node there, and use the same first port of FLEETLM_NODE_PORT on every node"
        elif fact.tcp == "timeout":
            text = f"{where} does not respond: the machine is down, or packets are dropped on the way"
            cure = f"Allow TCP port {fact.port} between nodes, in both directions (network policy, firewall)"
        elif fact.tcp == "reset":
            text = f"{where} ends each connection at once (connection reset)"
            cure = (
                "Perhaps a proxy, a load balancer or a firewall answers there in place of a node that does "
                "not listen. See the log of the node there"
            )
        else:
            text = f"{where} cannot be reached: {fact.tcp}"
            cure = "Check the routes from this machine to that address"
        return Finding(level, "peer", text, cure)
    if isinstance(fact.answer, str):
        cure = (
            "If the nodes have cookies, give every node the same FLEETLM_COOKIE. If they are equal, perhaps "
            "a proxy or another program answered instead of a node"
        )
        return Finding(WARN if up else FAIL, "peer", fact.answer, cure)
    if fact.answer is None:
        return Finding(OK, "peer", f"{where} accepts connections")
    return _judge_answer(settings, fact.answer, fact, named)


def _judge_answer(settings: Settings, answer: IAm, fact: PeerFact, named: bool) -> Finding:
    """Check whether the node that answered belongs to this cluster, and has the address in its name."""
    where = endpoint(fact.ip, fact.port)
    text = f"{where} is {answer.name}, connected to {_count_nodes(answer.connected)}"
    if answer.cluster != settings.cluster:
        cure = (
            "Nodes with another FLEETLM_CLUSTER are refused. Set the same value everywhere, or give each "
            "cluster its own DNS name"
        )
        text = f"{text}; it belongs to cluster {answer.cluster!r}, this node to {settings.cluster!r}"
        return Finding(FAIL if named else WARN, "peer", text, cure)
    name = NodeName.parse(answer.name)
    if name.basename != settings.node_basename:
        cure = "Give every node the same DNS_CLUSTER_NODE_BASENAME"
        return Finding(FAIL, "peer", f"{text}; its basename differs from this node's", cure)
    if not fact.takes_large:
        text += "; it answers a small question, and not one of several packets"
        cure = (
            "Perhaps the path carries smaller packets than the interfaces of the machines say (the MTU in a "
            "VPN, VXLAN or WireGuard) and ICMP is dropped. Lower the MTU of the interfaces (ip link set dev "
            "eth0 mtu 1400), or clamp the MSS of TCP to the path MTU"
        )
        return Finding(FAIL, "peer", text, cure)
    if name.ip != fact.ip:
        cure = (
            "This is fine if that machine has both addresses. If not, set FLEETLM_NODE_IP there, and see the "
            "dns check"
        )
        return Finding(WARN, "peer", f"{text}; its name contains another address", cure)
    return Finding(OK, "peer", text)


def judge_mesh(facts: Facts) -> list[Finding]:
    """Check the connection table of the running node: which peers are missing, and why."""
    if facts.node is None:
        return []
    rows = facts.rows
    up = [row for row in rows if row["status"] in ("up", "busy")]
    findings = []
    for row in rows:
        if row["status"] in ("up", "busy"):
            continue
        error = row["last_error"] or "no attempt has finished yet"
        age = "" if row["last_error_age_s"] is None else f", {format_span(row['last_error_age_s'])} ago"
        level = FAIL if row["in_dns"] and row["attempts"] else WARN
        attempts = "1 attempt" if row["attempts"] == 1 else f"{row['attempts']} attempts"
        text = f"{row['name']} is not connected (status {row['status']}, {attempts}): {error}{age}"
        findings.append(Finding(level, "connection", text, cure_for(error)))
    for row in up:
        if row["status"] == "busy":
            cure = "Something blocks its event loop. It stays connected, and messages to it wait"
            findings.append(Finding(WARN, "connection", f"{row['name']} is connected but busy", cure))
    level = OK if up or not facts.settings.clustering else WARN
    cure = "" if level == OK else "See the checks named dns, peer and connection"
    local = sum(row.get("road") == "local" for row in up)
    how = f", {local} of them through a Unix socket of this host" if local else ""
    return [Finding(level, "mesh", f"connected to {_count_nodes(len(up))}{how}", cure), *findings]


def cure_for(error: str) -> str:
    """Return what to do about the last error of a connection."""
    cures = (
        ("wrong_cluster", "Set the same FLEETLM_CLUSTER on both nodes, or use one DNS name per cluster"),
        ("other_basename", "Give all nodes of a cluster one DNS_CLUSTER_NODE_BASENAME; see the error"),
        ("other_base_port", "Begin FLEETLM_NODE_PORT with the same port on all nodes of the cluster"),
        ("wrong_name", "Another node uses that address now. Check FLEETLM_NODE_IP of the node there"),
        ("duplicate_name", "Two nodes use one address. Give each its own FLEETLM_NODE_IP"),
        ("incompatible", "The two versions of fleetlm cannot communicate. Upgrade the older node"),
        ("draining", "That node is stopping; there is nothing to do"),
        ("not_allowed", "Give both nodes a FLEETLM_ALLOWED_NETWORKS that contains the addresses of both"),
        ("too_many", "That node has reached its maximum number of peers (Settings.max_peers)"),
        ("perhaps", "See the peer check of its address. If the nodes have cookies, compare FLEETLM_COOKIE"),
        ("cookie", SAME_COOKIE),
        ("authentic", SAME_COOKIE),
        (
            "dial back",
            "It reaches this node, but not vice versa. Check its FLEETLM_NODE_IP and one-way firewalls",
        ),
        ("left", "That node stopped in order; there is nothing to do"),
    )
    lower = error.lower()
    return next((cure for word, cure in cures if word in lower), "See the peer check of its address")


def judge_stability(facts: Facts) -> list[Finding]:
    """Check for connections that go down and come up again and again."""
    findings = []
    for row in facts.rows:
        if row["connections"] < FLAPPING_CONNECTIONS:
            continue
        error = row["last_error"]
        age = "" if row["last_error_age_s"] is None else f" ({format_span(row['last_error_age_s'])} ago)"
        last = f"; last error{age}: {error}" if error else ""
        text = f"the connection to {row['name']} came up {row['connections']} times{last}"
        cure = (
            "If that node restarts, read its log and check its memory limit. If it does not, the network "
            "loses packets, or one of the machines has too little CPU time to respond within "
            f"FLEETLM_NODE_TIMEOUT_MS ({facts.settings.node_timeout_s * 1000:g})"
        )
        findings.append(Finding(WARN, "flapping", text, cure))
    if facts.node is not None and not findings:
        return [Finding(OK, "flapping", "connections are stable")]
    return findings


def _count_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _list_addresses(addresses: Sequence[str]) -> str:
    more = len(addresses) - MAX_ADDRESSES_SHOWN
    return ", ".join(addresses[:MAX_ADDRESSES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
