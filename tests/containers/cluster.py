"""The Compose project of a test: its containers, `fleetlm remote` in them, and its removal."""

from __future__ import annotations

import ast
import contextlib
import operator
import os
import random
import subprocess
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent.parent / "docker" / "compose.yaml"
OVERRIDE = HERE / "override.yaml"
OURS = ("DNS_", "FLEETLM_", "COMPOSE_")  # variables that must not come from the caller's environment

BASE_IMAGE = "python:3.11-slim"
COMMAND_S = 60.0
BUILD_S = 300.0
MESH_S = 45.0
PAUSE_S = 0.2
SUBNET_TRIES = 8

T = TypeVar("T")


class CommandError(AssertionError):
    """A docker command failed that had to succeed."""


class Event(NamedTuple):
    """An event that the recorder wrote; ``at`` is in seconds since the epoch."""

    at: float
    kind: str
    node: str
    incarnation: int
    reason: str


def docker(
    *args: str, env: dict[str, str] | None = None, check: bool = True, limit_s: float = COMMAND_S
) -> subprocess.CompletedProcess[str]:
    """Run a docker command; with ``check``, a failure raises with its complete output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        ["docker", *args],
        env=inherited | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if check and done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        raise CommandError(f"docker {' '.join(args)}: exit code {done.returncode}\n{said}")
    return done


def eventually(ask: Callable[[], T], right: Callable[[T], bool], within_s: float = MESH_S) -> T:
    """Ask until the answer is right; the error shows the last answer."""
    deadline = time.monotonic() + within_s
    while True:
        answer = ask()
        if right(answer):
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"no right answer within {within_s:g} s; the last one was {answer!r}")
        time.sleep(PAUSE_S)


class Cluster:
    """A Compose project with its own name and subnet; leaving the block removes all of it.

    ``image`` None is the project as it is shipped; else that image runs the recorder, or what
    ``overlay`` says: one more Compose file, in which ``variables`` are replaced.
    """

    def __init__(
        self,
        image: str | None = None,
        cookie: str | None = None,
        overlay: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.project = f"fleetlm-test-{uuid.uuid4().hex[:10]}"
        self.image = image
        # The tag, since a digest can only be had from the registry; a local image has none.
        self.env = {"DNS_POLL_INTERVAL_MS": "1000", "BASE_IMAGE": BASE_IMAGE}
        if cookie is not None:
            self.env["FLEETLM_COOKIE"] = cookie
        if image is not None:
            self.env |= {"FLEETLM_TEST_IMAGE": image, "FLEETLM_TEST_FOLDER": str(HERE)}
        self.overlay = overlay
        self.env |= variables or {}
        self.extras: list[str] = []  # containers that were not started by Compose
        self._new_subnet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for container in self.extras:
            docker("rm", "--force", container, check=False)
        self.compose("down", "--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "3")

    def _new_subnet(self) -> None:
        self.env["FLEETLM_TEST_SUBNET"] = f"10.213.{random.randrange(256)}.0/24"

    # Compose.

    def compose(self, *args: str, check: bool = True, limit_s: float = COMMAND_S) -> str:
        files = ["--file", str(SHIPPED)]
        if self.image is not None:
            files += ["--file", str(OVERRIDE)]
        if self.overlay is not None:
            files += ["--file", str(self.overlay)]
        command = ["compose", "--project-name", self.project, *files, *args]
        return docker(*command, env=self.env, check=check, limit_s=limit_s).stdout

    def build(self) -> None:
        self.compose("build", "--quiet", limit_s=BUILD_S)

    def scale(self, replicas: int) -> None:
        """Scale to this number of workers."""
        for _ in range(SUBNET_TRIES):
            try:
                args = ("--detach", "--no-build", "--no-recreate", "--scale", f"worker={replicas}")
                self.compose("up", *args)
            except CommandError as error:  # perhaps another network has this subnet
                if "overlap" not in str(error).lower():
                    raise
                self._new_subnet()
            else:
                return
        raise AssertionError(f"no free subnet in {SUBNET_TRIES} tries")

    # Containers.

    def containers(self) -> list[str]:
        """Return the ids of the running containers of this project, extra ones included."""
        label = f"label=com.docker.compose.project={self.project}"
        listed = docker("ps", "--quiet", "--no-trunc", "--filter", label).stdout.split()
        return listed + [extra for extra in self.extras if inspect(extra, ".State.Running") == "true"]

    def run(self, cookie: str | None = None, ip: str | None = None) -> str:
        """Start one more worker in the project's network and under its DNS name; return its id."""
        assert self.image is not None, "the recorder's image is needed"
        env = {"DNS_CLUSTER_QUERY": "worker", "DNS_POLL_INTERVAL_MS": "1000"}
        if cookie is not None:
            env["FLEETLM_COOKIE"] = cookie
        options = [option for name, value in env.items() for option in ("--env", f"{name}={value}")]
        if ip is not None:
            options += ["--ip", ip]
        container = docker(
            "run",
            "--detach",
            "--init",
            f"--network={self.project}_default",
            "--network-alias=worker",
            f"--volume={HERE / 'recorder.py'}:/app/recorder.py:ro",
            *options,
            self.image,
            "start",
            "recorder:main",
        ).stdout.strip()
        self.extras.append(container)
        return container

    def assert_mesh(self, size: int) -> None:
        """Wait until `Node.list()` in every container has exactly the names of all others."""
        containers = self.containers()
        assert len(containers) == size, f"{len(containers)} containers run"
        nodes = {container: name_of(container) for container in containers}
        for container, name in nodes.items():
            others = sorted(set(nodes.values()) - {name})
            assert len(others) == size - 1, f"two nodes of one name: {nodes}"
            eventually(partial(listed, container), partial(operator.eq, others))


# One container.


def inspect(container: str, field: str) -> str:
    return docker("inspect", "--format", f"{{{{{field}}}}}", container).stdout.strip()


def ip_of(container: str) -> str:
    addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", "--format", addresses, container).stdout.strip()


def name_of(container: str) -> str:
    return f"fleetlm@{ip_of(container)}"


def logs(container: str) -> str:
    done = docker("logs", "--tail", "60", container, check=False)
    return done.stdout + done.stderr


def fleetlm(container: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of fleetlm in the container."""
    return docker("exec", container, "fleetlm", *args, check=False)


def remote(container: str, expression: str) -> Any:
    """Return what `fleetlm remote` prints, as a Python literal. Raises: CommandError."""
    done = fleetlm(container, "remote", expression)
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}\nlog:\n{logs(container)}"
        raise CommandError(f"fleetlm remote {expression!r}: exit code {done.returncode}\n{said}")
    return ast.literal_eval(done.stdout)


def listed(container: str) -> list[str] | str:
    """Return `Node.list()`, or the error while the node does not listen yet."""
    try:
        answer = remote(container, "Node.list()")
    except CommandError as error:
        return str(error)
    assert isinstance(answer, list)
    return answer


def events(container: str, node: str) -> list[Event]:
    """Return the events of another node that this container's node reported, in order."""
    told = (Event(*event) for event in remote(container, "__import__('recorder').events"))
    return [event for event in told if event.node == node]


@contextlib.contextmanager
def stopwatch(limit_s: float) -> Iterator[None]:
    """Fail if the block takes longer than ``limit_s``."""
    started = time.monotonic()
    yield
    took_s = time.monotonic() - started
    assert took_s < limit_s, f"took {took_s:.1f} s"
