"""A cluster in containers: Docker's DNS, real addresses, containers that start, stop and are replaced."""

from __future__ import annotations

import operator
import re
import time
from functools import partial

import pytest

from tests.containers.cluster import (
    BUILD_S,
    Cluster,
    docker,
    events,
    eventually,
    fleetlm,
    inspect,
    ip_of,
    listed,
    name_of,
    remote,
    stopwatch,
)

pytestmark = pytest.mark.containers

LEAVE_S = 2.0
STOP_S = 8.0  # includes the engine's own work on three containers
OUT_S = 3.0


@pytest.mark.usefixtures("engine")
def test_every_node_lists_all_others_as_the_replicas_grow_and_shrink() -> None:
    with Cluster() as cluster:
        cluster.compose("build", "--quiet", limit_s=BUILD_S)
        for replicas in (1, 5, 3):
            cluster.scale(replicas)
            cluster.assert_mesh(replicas)


@pytest.mark.usefixtures("engine")
def test_the_command_of_the_guide_works_on_the_shipped_project() -> None:
    with Cluster() as cluster:
        cluster.compose("up", "--detach", "--build", "--wait", "--scale", "worker=2", limit_s=BUILD_S)
        cluster.assert_mesh(2)
        said = cluster.compose("exec", "-T", "worker", "fleetlm", "remote", "Node.list()")
        assert re.fullmatch(r"\['fleetlm@[0-9.]+'\]\n", said)
        for container in cluster.containers():
            assert inspect(container, ".State.Health.Status") == "healthy"
            user = docker("exec", container, "python", "-c", "import os; print(os.getuid())")
            assert user.stdout.strip() != "0"


def test_a_new_node_at_a_dead_nodes_address_is_another_incarnation(image: str) -> None:
    with Cluster(image) as cluster:
        cluster.scale(3)
        cluster.assert_mesh(3)
        victim, *survivors = cluster.containers()
        name, ip = name_of(victim), ip_of(victim)
        before = remote(victim, "int(node.incarnation)")

        docker("kill", victim)
        docker("rm", victim)
        newcomer = cluster.run(ip=ip)
        cluster.assert_mesh(3)

        assert remote(newcomer, "str(Node.self())") == name
        after = remote(newcomer, "int(node.incarnation)")
        assert after != before
        for survivor in survivors:
            told = [(event.kind, event.incarnation) for event in events(survivor, name)]
            assert told == [("NodeUp", before), ("NodeDown", before), ("NodeUp", after)]


@pytest.mark.parametrize("other", ["another-secret-of-enough-characters", None])
def test_a_node_with_another_cookie_is_refused_and_both_sides_say_why(image: str, other: str | None) -> None:
    with Cluster(image, cookie="a-secret-of-enough-characters") as cluster:
        cluster.scale(2)
        cluster.assert_mesh(2)
        members = cluster.containers()
        stranger = cluster.run(cookie=other)
        eventually(partial(listed, stranger), partial(operator.eq, []))

        def info(container: str) -> str:
            return fleetlm(container, "remote", "Node.info()").stdout

        def says_why(said: str) -> bool:
            return re.search(r"cookie|auth", said, re.IGNORECASE) is not None

        eventually(partial(info, stranger), says_why)
        for member in members:
            eventually(partial(info, member), says_why)
        time.sleep(OUT_S)  # more than two polls; the node is refused at each

        names = {member: name_of(member) for member in members}
        assert listed(stranger) == []
        for member in members:
            assert listed(member) == sorted(set(names.values()) - {names[member]})
            assert events(member, name_of(stranger)) == []
        assert says_why(fleetlm(stranger, "doctor").stdout)


def test_after_sigterm_a_node_leaves_and_exits_0(image: str) -> None:
    with Cluster(image) as cluster:
        cluster.scale(3)
        cluster.assert_mesh(3)
        leaver, *others = cluster.containers()
        name = name_of(leaver)

        started = time.time()
        with stopwatch(STOP_S):
            docker("stop", "--time", "10", leaver)
        assert inspect(leaver, ".State.ExitCode") == "0"
        for other in others:
            told = eventually(
                partial(events, other, name),
                lambda told: told[-1].kind == "NodeDown",
                within_s=LEAVE_S,
            )
            assert re.search(r"goodbye|left|shutdown", told[-1].reason)
            assert told[-1].at - started < LEAVE_S

        with stopwatch(STOP_S):
            cluster.compose("stop")
        for other in others:
            assert inspect(other, ".State.ExitCode") == "0"
