"""The Swarm kit on an engine that becomes a swarm of one machine: tasks, overlay, secret, an update.

Requests are made inside of a front end: the published port needs a module of the kernel (IPVS) that not every
machine has, and is Docker's own.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from tests.containers.cluster import BASE_IMAGE, BUILD_S, CommandError, docker, eventually, fleetlm, listed
from tests.containers.test_fastapi import BODY, COOKIE
from tests.support.guides import ROOT
from tests.support.kit_files import SWARM

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

UP_S = 120.0
SECRET = "fleetlm_cookie"
PREFIX = "fleetlm-swarm-test"
WORKERS, FRONTS = 3, 2


def is_active() -> bool:
    return docker("info", "--format", "{{.Swarm.LocalNodeState}}").stdout.strip() == "active"


def services() -> list[str]:
    return docker("service", "ls", "--format", "{{.Name}}").stdout.split()


@pytest.fixture(scope="module")
def swarm(engine: None) -> Iterator[None]:
    """Make the engine a swarm, and take it back. A swarm that is used for something else is left alone."""
    if is_active():
        if [name for name in services() if not name.startswith(PREFIX)]:
            pytest.skip("this engine belongs to a swarm that runs other services")
    else:
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        yield
    finally:
        docker("swarm", "leave", "--force", check=False)


@pytest.fixture(scope="module")
def image(swarm: None) -> Iterator[str]:
    tag = f"{PREFIX}:{uuid.uuid4().hex[:10]}"
    args = ("--file", str(ROOT / "docker" / "Dockerfile"), "--target", "web", "--tag", tag)
    docker("build", "--quiet", *args, "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", str(ROOT), limit_s=BUILD_S)
    yield tag
    docker("image", "rm", "--force", tag, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ASK = """
import json, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/workers", timeout=5).read().decode())
"""
LOAD = f"""
import json, pathlib, urllib.request
body, good, bad = {json.dumps(BODY)!r}.encode(), 0, []
while not pathlib.Path("/tmp/enough").exists():
    request = urllib.request.Request(
        "http://127.0.0.1:8000/title", body, {{"content-type": "application/json"}}
    )
    try:
        good += "title" in json.load(urllib.request.urlopen(request, timeout=15))
    except Exception as error:
        bad.append(repr(error))
print(json.dumps([good, bad]))
"""


class Stack:
    """One stack of the kit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def containers(self, service: str) -> list[str]:
        wanted = f"label=com.docker.swarm.service.name={self.name}_{service}"
        return docker("ps", "--quiet", "--filter", wanted).stdout.split()

    def workers(self) -> list[str]:
        """The workers that a front end reaches; what went wrong, if it did."""
        for web in self.containers("web"):
            done = docker("exec", web, "python", "-c", ASK, check=False)
            if done.returncode == 0:
                return [each["worker"] for each in json.loads(done.stdout)["workers"]]
            return [done.stderr]
        return []


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    name, port = f"{PREFIX}-{uuid.uuid4().hex[:6]}", free_port()
    with subprocess.Popen(["docker", "secret", "create", SECRET, "-"], stdin=subprocess.PIPE) as making:
        making.communicate(COOKIE.encode())
    assert making.returncode == 0
    env = {"NODE_IMAGE": image, "HTTP_PORT": str(port)}
    try:
        deployed = docker("stack", "deploy", "--detach", "--compose-file", str(SWARM), name, env=env)
        assert "Ignoring" not in deployed.stderr
        started = Stack(name)
        eventually(started.workers, lambda found: len(found) == WORKERS, within_s=UP_S)
        yield started
    finally:
        docker("stack", "rm", name, check=False)
        eventually(lambda: docker("ps", "--quiet", "--filter", f"name={name}_").stdout, lambda left: not left)
        docker("secret", "rm", SECRET, check=False)


def test_all_containers_of_both_services_are_one_cluster(stack: Stack) -> None:
    size = WORKERS + FRONTS
    for container in [*stack.containers("worker"), *stack.containers("web")]:
        eventually(partial(listed, container), lambda names: len(names) == size - 1)
    assert all(re.fullmatch(r"fleetlm@10\.213\.\d+\.\d+", name) for name in stack.workers())


def test_doctor_finds_nothing_wrong_and_the_cookie_is_a_file_for_the_node_alone(stack: Stack) -> None:
    web, *_ = stack.containers("web")
    # Swarm's DNS names a container only when its health check has passed.
    named = "tasks.worker: 3 addresses; tasks.web: 2 addresses"
    eventually(lambda: fleetlm(web, "doctor").stdout, lambda told: named in told, within_s=UP_S)
    done = fleetlm(web, "doctor")
    assert done.returncode == 0, done.stdout
    assert "is encrypted" in done.stdout
    mode = (
        "import os, stat; s = os.stat('/run/secrets/fleetlm_cookie'); print(s.st_uid, oct(s.st_mode & 0o777))"
    )
    assert docker("exec", web, "python", "-c", mode).stdout.split() == ["10001", "0o400"]
    assert docker("exec", web, "fleetlm", "remote", "Node.list()").returncode == 0  # its socket is in /tmp
    refused = docker("exec", web, "touch", "/app/x", check=False)
    assert "Read-only file system" in refused.stderr


def test_the_plain_name_of_a_service_is_one_address_that_no_container_has(stack: Stack) -> None:
    web, *_ = stack.containers("web")
    look = "import socket; print(*{each[4][0] for each in socket.getaddrinfo('worker', 1)})"
    (virtual,) = docker("exec", web, "python", "-c", look).stdout.split()
    assert f"fleetlm@{virtual}" not in stack.workers()


def test_an_update_replaces_each_worker_and_fails_no_request(stack: Stack) -> None:
    before = set(stack.containers("worker"))
    web, *_ = stack.containers("web")
    command = ["docker", "exec", web, "python", "-c", LOAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loading:
        try:
            args = ("--force", "--update-monitor", "1s", "--detach=false", "--quiet")
            docker("service", "update", *args, f"{stack.name}_worker", limit_s=UP_S)
            eventually(lambda: set(stack.containers("worker")) & before, lambda old: not old)
            eventually(stack.workers, lambda found: len(found) == WORKERS)
            docker("exec", web, "touch", "/tmp/enough")
            said, _ = loading.communicate(timeout=UP_S)
        finally:
            loading.kill()  # at the latest with its container the command in it ends, too
    good, bad = json.loads(said)
    assert bad == []
    assert good > 100


def test_the_stack_file_is_what_the_docker_command_reads(swarm: None) -> None:
    said = docker("stack", "config", "--compose-file", str(SWARM)).stdout
    assert "tasks.worker,tasks.web" in said
    with pytest.raises(CommandError):
        docker("stack", "config", "--compose-file", str(ROOT / "Makefile"))
