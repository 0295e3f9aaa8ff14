"""What the name servers of each platform answer, over real DNS, and which peers a node makes of it.

docs/deploy/ describes the platforms. Each test asks with the query of that platform's kit, from one of its
nodes, and looks at the addresses that the node dials.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fleetlm import Settings
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.effects import Dial
from fleetlm.core.kernel import Kernel
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.interfaces import InterfaceAddress
from fleetlm.discovery.own_address import OwnAddress, Rule, choose
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, Reply
from tests.support.kernel_fakes import Dice, T, identity
from tests.support.kit_files import compose_programs, ecs_programs, fly_programs
from tests.support.kits import COMPOSE, DEPLOY

NO_FILE = "/nonexistent/resolv.conf"


def discovery(server: DnsServer, query: str, resolv_conf: Path | str = NO_FILE) -> DnsDiscovery:
    return DnsDiscovery(query, server=(server.host, server.port), lifetime_s=3.0, resolv_conf=resolv_conf)


def kernel(own: OwnAddress, settings: Settings, port: int = 4370) -> Kernel:
    """A node with this address."""
    name = f"fleetlm@[{own.ip}]" if ":" in own.ip else f"fleetlm@{own.ip}"
    name += f":{port}" if port != settings.base_port else ""
    who = identity(1, name=name, port=port, aliases=own.aliases)
    return Kernel(who, settings, Dice())


def dialled(node: Kernel, answer: Answer, now: float = T) -> set[tuple[str, int]]:
    """The addresses that a node dials after a lookup, in as many turns of its loop as it takes."""
    effects = node.looked_up(now, answer)
    for turn in range(1, 100):
        effects += node.tick(now + turn / 1000)
    return {(each.ip, each.port) for each in effects if isinstance(each, Dial)}


def own_address(
    answer: Answer,
    here: Sequence[InterfaceAddress],
    env: Sequence[tuple[str, str]] = (),
    explicit: str | None = None,
) -> OwnAddress:
    """The address that a node on a machine with these interfaces takes."""
    mine = {each.ip for each in here}
    return choose(
        explicit=explicit,
        env=env,
        answer_addresses=answer.addresses,
        has_address=mine.__contains__,
        route_to=lambda _: None,
        host_addresses=(),
        clustering=True,
        interfaces=here,
    )


def on(interface: str, *ips: str) -> list[InterfaceAddress]:
    return [InterfaceAddress(ip, interface) for ip in ips]


# ── Kubernetes ───────────────────────────────────────────────────────────────────────────────────

PODS = ["10.244.1.7", "10.244.2.9", "10.244.3.4"]
SVC = "fleetlm-nodes.shop.svc.cluster.local"
POD_CONF = (
    "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
)


@pytest.fixture
def pod_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(POD_CONF, encoding="utf-8")
    return path


async def test_kubernetes_lists_pods_that_are_not_ready_or_end_and_each_is_dialled_once(
    pod_conf: Path,
) -> None:
    """With publishNotReadyAddresses a pod stays listed from its start until it is gone."""
    async with DnsServer(ttl_s=5) as server:
        asking = discovery(server, "fleetlm-nodes", pod_conf)
        assert (await asking.lookup()).outcome is Outcome.EMPTY  # no pod has an address yet
        server.set(SVC, PODS)
        answer = await asking.lookup()
        own = own_address(answer, on("eth0", PODS[0]), [("POD_IP", PODS[0])])
        assert (own.ip, own.rule) == (PODS[0], Rule.PLATFORM)
        node = kernel(own, Settings(node_ports=(4370, 4370)))
        assert dialled(node, answer) == {(ip, 4370) for ip in PODS[1:]}
        server.add(SVC, "10.244.3.5")  # the new pod of a rolling update, beside the old one that ends
        assert dialled(node, await asking.lookup(), T + 5) >= {("10.244.3.5", 4370)}
        server.remove(SVC, PODS[2])  # the old one is gone
        assert "fleetlm@10.244.3.5" in node.topology.peers


async def test_kubernetes_with_two_families_finds_each_pod_under_both(pod_conf: Path) -> None:
    async with DnsServer(ttl_s=5) as server:
        server.set(SVC, ["10.244.1.7", "fd00:10:244:1::7", "10.244.2.9", "fd00:10:244:2::9"])
        answer = await discovery(server, "fleetlm-nodes", pod_conf).lookup()
        own = own_address(answer, on("eth0", "10.244.1.7", "fd00:10:244:1::7"), [("POD_IP", "10.244.1.7")])
        assert own.aliases == ("fd00:10:244:1::7",)
        node = kernel(own, Settings(node_ports=(4370, 4370)))
        assert dialled(node, answer) == {("10.244.2.9", 4370), ("fd00:10:244:2::9", 4370)}


async def test_kubernetes_ranks_of_a_pod_are_found_from_its_one_address(pod_conf: Path) -> None:
    """The own pod is searched without DNS, and of another one the first port: rank 0 tells of the others."""
    async with DnsServer(ttl_s=5) as server:
        server.set(SVC, PODS[:2])
        answer = await discovery(server, "fleetlm-nodes", pod_conf).lookup()
        own = own_address(answer, on("eth0", PODS[0]), [("POD_IP", PODS[0])])
        node = kernel(own, Settings(node_ports=(4370, 4373), node_slot=2), port=4372)
        at_the_start = {(each.ip, each.port) for each in node.started(T) if isinstance(each, Dial)}
        assert at_the_start == {(PODS[0], port) for port in (4370, 4371, 4373)}
        assert dialled(node, answer) - at_the_start == {(PODS[1], 4370)}


# ── Fly.io ───────────────────────────────────────────────────────────────────────────────────────


async def test_fly_answers_for_aaaa_alone_and_the_platform_names_the_own_address() -> None:
    web, *_ = fly_programs()
    query = web.env["DNS_CLUSTER_QUERY"]
    machines = ["fdaa:0:1::3", "fdaa:0:1::4", "fdaa:0:1::5"]
    async with DnsServer(ttl_s=5) as server:
        server.set(query, machines)
        answer = await discovery(server, query).lookup()
        assert answer == Answer(Outcome.ADDRESSES, tuple(machines), "3 addresses")
        private = web.settings.fly_private_ip
        assert private is not None
        here = [*on("eth0", "172.19.0.2"), *on("eth1", private)]
        own = own_address(answer, here, [("FLY_PRIVATE_IP", private)])
        assert (own.ip, own.rule, own.warning) == (private, Rule.PLATFORM, None)
        assert dialled(kernel(own, web.settings), answer) == {(ip, 4370) for ip in machines[1:]}


async def test_fly_name_servers_that_refuse_a_cost_nothing() -> None:
    async with DnsServer(ttl_s=5) as server:
        server.set("fleetlm.internal", ["fdaa:0:1::4"])
        server.behave(Reply.NXDOMAIN, rdtype="A")
        answer = await discovery(server, "fleetlm.internal.").lookup()
        assert (answer.outcome, answer.addresses) == (Outcome.ADDRESSES, ("fdaa:0:1::4",))


# ── AWS Cloud Map ────────────────────────────────────────────────────────────────────────────────


async def test_cloud_map_gives_eight_of_many_and_samples_add_up() -> None:
    (worker,) = ecs_programs()
    query = worker.env["DNS_CLUSTER_QUERY"]
    tasks = [f"10.0.{number % 4}.{number}" for number in range(10, 40)]
    async with DnsServer(ttl_s=10, seed=4) as server:
        server.set(query, tasks)
        server.behave(Fault(sample=8))
        asking = discovery(server, query)
        answer = await asking.lookup()
        assert (answer.outcome, len(answer.addresses)) == (Outcome.ADDRESSES, 8)
        own = own_address(
            answer, [*on("eth0", "169.254.172.2"), *on("eth1", tasks[0])], explicit=worker.settings.node_ip
        )
        assert (own.ip, own.rule) == (tasks[0], Rule.EXPLICIT)  # whether the sample names it or not
        node = kernel(own, worker.settings)
        found = dialled(node, answer)
        assert found == {(ip, 4370) for ip in answer.addresses if ip != own.ip}
        for poll in range(1, 40):
            found |= dialled(node, await asking.lookup(), T + 5 * poll)
        assert found == {(ip, 4370) for ip in tasks[1:]}


# ── Consul ───────────────────────────────────────────────────────────────────────────────────────

CONSUL = "_fleetlm._tcp.service.consul"


def allocations(server: DnsServer, count: int) -> set[tuple[str, int]]:
    """Allocations of Nomad: a few hosts, and a port of the host for each."""
    places = {(f"10.0.0.{1 + number % 4}", 20_000 + 17 * number) for number in range(count)}
    hosts = {ip: "".join(f"{int(part):02x}" for part in ip.split(".")) for ip, _ in places}
    for ip, text in hosts.items():
        server.set(f"{text}.addr.dc1.consul", [ip])
    server.set_srv(CONSUL, [(f"{hosts[ip]}.addr.dc1.consul", port) for ip, port in sorted(places)])
    return places


def nomad_settings(port: int) -> Settings:
    return Settings.from_env(
        {
            "DNS_CLUSTER_QUERY": f"{CONSUL}.",
            "FLEETLM_NODE_IP": "10.0.0.1",
            "FLEETLM_NODE_PORT": str(port),
            "FLEETLM_BIND": "*",
        }
    )


async def test_consul_names_hosts_and_ports_and_several_nodes_of_a_host_are_told_apart() -> None:
    async with DnsServer(ttl_s=0) as server:
        places = allocations(server, 6)
        answer = await discovery(server, f"{CONSUL}.").lookup()
        assert answer.detail == "6 addresses of 4 hosts (SRV)"
        settings = nomad_settings(20_000)
        own = own_address(answer, on("eth0", "172.17.0.2"), explicit="10.0.0.1")
        node = kernel(own, settings, port=20_000)
        assert dialled(node, answer) == places - {("10.0.0.1", 20_000)}


async def test_consul_answers_with_three_records_over_udp_and_the_rest_comes_over_tcp() -> None:
    async with DnsServer(ttl_s=0) as server:
        places = allocations(server, 9)
        server.behave(Fault(truncate=3), CONSUL, "SRV")
        answer = await discovery(server, f"{CONSUL}.").lookup()
        assert answer.outcome is Outcome.ADDRESSES
        assert len(answer.addresses) == len(places)
        assert server.queries[CONSUL, "SRV"] == 2


async def test_consul_without_the_flag_tc_gives_three_of_many_and_samples_add_up() -> None:
    """``enable_truncate`` is off by default: nothing in an answer says that there are more."""
    async with DnsServer(ttl_s=0, seed=1) as server:
        places = allocations(server, 9)
        server.behave(Fault(sample=3), CONSUL, "SRV")
        asking = discovery(server, f"{CONSUL}.")
        node = kernel(OwnAddress("10.0.0.1", "", Rule.EXPLICIT), nomad_settings(20_000), port=20_000)
        found = set()
        for poll in range(40):
            answer = await asking.lookup()
            assert len(answer.addresses) == 3
            found |= dialled(node, answer, T + 5 * poll)
        assert found == places - {("10.0.0.1", 20_000)}


# ── Swarm and Compose ────────────────────────────────────────────────────────────────────────────

INGRESS, GATEWAY, OVERLAY = "10.0.0.9", "172.18.0.3", "10.213.0.7"
SWARM_NODE = [*on("eth0", INGRESS), *on("eth1", OVERLAY), *on("eth2", GATEWAY)]


async def test_swarm_tasks_of_all_services_are_peers_and_the_own_address_is_of_the_overlay() -> None:
    program, *_ = compose_programs(DEPLOY / "swarm" / "stack.yaml")
    async with DnsServer(ttl_s=600) as server:
        server.set("tasks.worker", [OVERLAY, "10.213.0.8", "10.213.0.9"])
        server.set("tasks.web", ["10.213.0.12"])
        server.set("worker", ["10.213.0.2"])  # the virtual address, which nobody asks for
        answer = await discovery(server, program.env["DNS_CLUSTER_QUERY"]).lookup()
        assert answer.outcome is Outcome.ADDRESSES
        assert "10.213.0.2" not in answer.addresses
        own = own_address(answer, SWARM_NODE, explicit=program.settings.node_ip)
        assert own.ip == OVERLAY
        assert own_address(answer, SWARM_NODE).ip == OVERLAY, "DNS alone decides it too"
        node = kernel(own, program.settings)
        assert dialled(node, answer) == {("10.213.0.8", 4370), ("10.213.0.9", 4370), ("10.213.0.12", 4370)}


async def test_swarm_by_the_plain_name_is_one_address_and_the_own_one_stays_open() -> None:
    """The trap: a virtual address leads to one node at a time, and no interface of a container has it."""
    async with DnsServer(ttl_s=600) as server:
        server.set("worker", ["10.213.0.2"])
        answer = await discovery(server, "worker").lookup()
        assert answer.addresses == ("10.213.0.2",)
        own = own_address(answer, SWARM_NODE)
        assert own.rule is not Rule.DNS


async def test_swarm_with_dnsrr_lists_the_tasks_under_the_plain_name() -> None:
    async with DnsServer(ttl_s=600) as server:
        server.set("worker", [OVERLAY, "10.213.0.8"])
        answer = await discovery(server, "worker").lookup()
        own = own_address(answer, SWARM_NODE)
        assert (own.ip, own.rule) == (OVERLAY, Rule.DNS)
        assert dialled(kernel(own, Settings(node_ports=(4370, 4370))), answer) == {("10.213.0.8", 4370)}


async def test_compose_asks_for_both_services_and_one_that_is_scaled_to_none_forgets_nobody() -> None:
    """Docker's name server passes a name without containers on to the outside, where it does not exist."""
    web = next(each for each in compose_programs(COMPOSE) if each.is_web)
    async with DnsServer(ttl_s=600) as server:
        server.set("worker", ["172.20.0.3", "172.20.0.4"])
        server.set("web", ["172.20.0.2"])
        asking = discovery(server, web.env["DNS_CLUSTER_QUERY"])
        answer = await asking.lookup()
        own = own_address(answer, on("eth0", "172.20.0.2"))
        assert (own.ip, own.rule) == ("172.20.0.2", Rule.DNS)
        node = kernel(own, web.settings)
        assert dialled(node, answer) == {("172.20.0.3", 4370), ("172.20.0.4", 4370)}
        server.delete("worker")
        assert (await asking.lookup()).addresses == ("172.20.0.2",)
        server.behave(Reply.SERVFAIL, "worker")  # on an internal network
        assert (await asking.lookup()).outcome is Outcome.PARTIAL
