"""Nodes with the environment of the Nomad kit find each other by the SRV records of a real Consul.

No Nomad can be installed here: the test registers the services with Consul, as Nomad would, each with a port
of its own. Debian's Consul is 1.8, whose DNS interface has not changed since.
"""

from __future__ import annotations

import json
import operator
import re
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from tests.containers.cluster import (
    BASE_IMAGE,
    BUILD_S,
    HERE,
    MESH_S,
    CommandError,
    docker,
    eventually,
    fleetlm,
    ip_of,
    listed,
)
from tests.support.kits import DEPLOY
from tests.support.patience import stretched

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

HCL = (DEPLOY / "nomad" / "fleetlm.nomad.hcl").read_text(encoding="utf-8")
COOKIE = "k7Qm2vX9pLr4Tz8wNc3B"
PORTS = (23_456, 28_121, 20_007, 31_999, 25_000)
"""As Nomad gives them: five allocations, more than Consul names in one answer over plain UDP."""
LOOK = """
import sys, dns.message, dns.query
query = dns.message.make_query(sys.argv[1], "SRV", use_edns=sys.argv[3] == "edns", payload=1232)
found = dns.query.udp(query, sys.argv[2], port=8600, timeout=5)
print([(each.port, str(each.target)) for records in found.answer for each in records])
"""


def setting(name: str) -> str:
    """The value of a variable in the environment of the kit's tasks, which all have the same."""
    (found,) = set(re.findall(rf"^ *{name} *= *\"([^\"]*)\"", HCL, re.MULTILINE))
    return found


class Datacenter:
    """Consul, and nodes that are registered with it."""

    def __init__(self, network: str, agent: str, image: str) -> None:
        self.network, self.agent, self.image = network, agent, image
        self.nodes: dict[int, str] = {}
        """The container of each port."""

    def start(self, port: int) -> None:
        """Start an allocation, and register it as soon as it runs."""
        run_time = {
            "DNS_CLUSTER_QUERY": setting("DNS_CLUSTER_QUERY"),
            "FLEETLM_BIND": setting("FLEETLM_BIND"),
            "FLEETLM_NODE_PORT": setting("FLEETLM_NODE_PORT").replace("${NOMAD_PORT_fleetlm}", str(port)),
            "FLEETLM_DNS_SERVER": f"{ip_of(self.agent)}:8600",
            "FLEETLM_COOKIE": COOKIE,
            "DNS_POLL_INTERVAL_MS": "1000",
        }
        options = [option for name, value in run_time.items() for option in ("--env", f"{name}={value}")]
        place = ("--network", self.network, "--init", "--entrypoint", "sh")
        command = ("-c", "FLEETLM_NODE_IP=$(hostname -i) exec fleetlm start echo:main")
        container = docker("run", "--detach", *place, *options, self.image, *command).stdout.strip()
        self.nodes[port] = container
        where = ("-id", str(port), "-name", "fleetlm", "-address", ip_of(container), "-port", str(port))
        docker("exec", self.agent, "consul", "services", "register", *where)

    def stop(self, port: int) -> None:
        """Stop an allocation as Nomad does: it is taken off the list first."""
        docker("exec", self.agent, "consul", "services", "deregister", "-id", str(port))
        docker("rm", "--force", self.nodes.pop(port))

    def answer(self, edns: str) -> list[tuple[int, str]]:
        """The SRV records of one answer of Consul."""
        container = next(iter(self.nodes.values()))
        command = ("exec", container, "python", "-c", LOOK)
        said = docker(*command, setting("DNS_CLUSTER_QUERY"), ip_of(self.agent), edns).stdout
        return [
            tuple(each) for each in json.loads(said.replace("(", "[").replace(")", "]").replace("'", '"'))
        ]

    def assert_complete(self) -> None:
        names = {port: f"fleetlm@{ip_of(container)}:{port}" for port, container in self.nodes.items()}
        for port, container in self.nodes.items():
            others = sorted(name for other, name in names.items() if other != port)
            eventually(partial(listed, container), partial(operator.eq, others), within_s=stretched(MESH_S))


@pytest.fixture(scope="module")
def agent_image(engine: None) -> Iterator[str]:
    tag = f"fleetlm-consul:{uuid.uuid4().hex[:10]}"
    build = ("build", "--quiet", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--tag", tag)
    try:
        docker(*build, str(HERE / "consul"), limit_s=BUILD_S)
    except CommandError as error:
        if "Unable to locate package" in str(error) or "does not have a Release file" in str(error):
            pytest.skip("Debian's archive has no Consul any more")
        raise
    yield tag
    docker("image", "rm", "--force", tag, check=False)


@pytest.fixture(scope="module")
def datacenter(agent_image: str, image: str) -> Iterator[Datacenter]:
    network = f"fleetlm-consul-{uuid.uuid4().hex[:10]}"
    docker("network", "create", network)
    started = None
    agent = ""
    try:
        agent = docker("run", "--detach", "--init", "--network", network, agent_image).stdout.strip()
        started = Datacenter(network, agent, image)
        members = ("exec", agent, "consul", "members")
        eventually(lambda: docker(*members, check=False).stdout, lambda said: "alive" in said)
        for port in PORTS:
            started.start(port)
        yield started
    finally:
        for container in [agent, *(started.nodes.values() if started else ())]:
            docker("rm", "--force", "--volumes", container, check=False)
        docker("network", "rm", network, check=False)


def test_nodes_on_ports_of_their_own_find_each_other(datacenter: Datacenter) -> None:
    datacenter.assert_complete()


def test_an_answer_is_what_the_page_says(datacenter: Datacenter) -> None:
    plain = datacenter.answer("plain")
    assert len(plain) == 3
    assert {port for port, _ in plain} < set(PORTS)
    assert all(re.fullmatch(r"[0-9a-f]{8}\.addr\.dc1\.consul\.", target) for _, target in plain)
    assert {port for port, _ in datacenter.answer("edns")} == set(PORTS)


def test_doctor_finds_nothing_wrong(datacenter: Datacenter) -> None:
    ask = partial(fleetlm, datacenter.nodes[PORTS[0]], "doctor")
    # On a busy machine the lookup of its own takes longer than it waits.
    done = eventually(ask, lambda done: done.returncode == 0, within_s=stretched(MESH_S))
    assert "_fleetlm._tcp.service.consul" in done.stdout
    assert "is encrypted" in done.stdout


def test_an_allocation_that_is_replaced_is_found_under_its_new_port(datacenter: Datacenter) -> None:
    datacenter.assert_complete()
    datacenter.stop(PORTS[1])
    datacenter.assert_complete()
    datacenter.start(21_212)
    datacenter.assert_complete()
