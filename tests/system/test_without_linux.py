"""Nodes and commands without TCP_INFO, abstract and netlink sockets, SO_PEERCRED, /proc and epoll.

`tests.support.without_linux` takes all of that away from real processes. Takes half a minute.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import stretched
from tests.system.cluster_tools import ROOT, clean_env

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux takes it away from itself"),
]

COMMAND = [sys.executable, "-m", "tests.support.without_linux"]
ANSWER_S = 20.0
PORT = 14_370
BIG = 5_000_000


class Machine:
    """Nodes of the example `echo` on addresses of this test, each a process without Linux."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ips = f"127.{140 + os.getpid() // 251 % 40}.{os.getpid() % 251}."
        self._started: dict[int, subprocess.Popen[str]] = {}
        self.env = clean_env() | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
            "DNS_CLUSTER_QUERY": ",".join(self.ip(number) for number in (1, 2)),
            "DNS_POLL_INTERVAL_MS": "200",
            "FLEETLM_NODE_PORT": str(PORT),
            "XDG_RUNTIME_DIR": str(folder),
        }

    def ip(self, number: int) -> str:
        return f"{self._ips}{number}"

    def name(self, number: int) -> str:
        return f"fleetlm@{self.ip(number)}"

    def start(self, number: int) -> None:
        log = (self.folder / f"{number}.log").open("w", encoding="utf-8")
        with log:
            self._started[number] = subprocess.Popen(
                [*COMMAND, "start", "echo:main"],
                env=self.env | {"FLEETLM_NODE_IP": self.ip(number)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def log(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text(encoding="utf-8")

    def run(self, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of fleetlm for one of the nodes, to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.env | {"FLEETLM_NODE_IP": self.ip(number)},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=stretched(ANSWER_S),
            check=False,
        )

    def remote(self, number: int, expression: str) -> object:
        done = self.run(number, "remote", "--node", self.name(number), expression)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.log(number)}"
        return ast.literal_eval(done.stdout)

    def until_ready(self, number: int, *arguments: str) -> str:
        """Ask for the health of a node until it is as wanted. Returns what the command said."""
        deadline = time.monotonic() + stretched(ANSWER_S)
        while True:
            done = self.run(number, "health", "--node", self.name(number), *arguments)
            if done.returncode == 0:
                return done.stdout
            assert time.monotonic() < deadline, f"{done.stdout}{done.stderr}{self.log(number)}"

    def signal(self, number: int, what: signal.Signals) -> int:
        """Send a signal to a node, and wait for its end. Returns its exit code."""
        self._started[number].send_signal(what)
        return self._started[number].wait(stretched(ANSWER_S))

    def end(self) -> None:
        for each in self._started.values():
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="fleetlm-without-") as folder:  # A socket's path must be short.
        started = Machine(Path(folder))
        try:
            started.start(1)
            started.start(2)
            for number in (1, 2):
                started.until_ready(number, "--ready", "--min-nodes", "1")
            yield started
        finally:
            started.end()


def test_the_nodes_have_nothing_of_linux(machine: Machine) -> None:
    seen = machine.remote(
        1,
        "(__import__('sys').platform, hasattr(__import__('select'), 'epoll'), "
        "__import__('os.path').path.exists('/proc/self/nothing'), "
        "type(__import__('asyncio').get_running_loop()).__module__.split('.')[0])",
    )
    assert seen == ("darwin", False, False, "asyncio")
    assert "Traceback" not in machine.log(1)
    assert "ERROR" not in machine.log(1)


def test_they_see_each_other_and_calls_of_any_size_are_answered(machine: Machine) -> None:
    there = ("echo", machine.name(2))
    assert machine.remote(1, "Node.list()") == [machine.name(2)]
    assert machine.remote(1, f"await node.call({there}, 'hello')") == "hello"
    assert machine.remote(1, f"len(await node.call({there}, 'x' * {BIG}, timeout=20))") == BIG
    assert machine.remote(2, f"await node.call(('echo', {machine.name(1)!r}), [1, 2])") == [1, 2]


def test_health_finds_a_node_by_its_port(machine: Machine) -> None:
    assert "a process listens on port" in machine.until_ready(1, "--live")
    nobody = machine.run(1, "health", "--live", "--node", f"fleetlm@{machine.ip(3)}")
    assert nobody.returncode == 1
    assert "no process listens" in nobody.stderr


def test_a_node_that_is_not_ready_is_not_healthy(machine: Machine) -> None:
    done = machine.run(1, "health", "--ready", "--node", machine.name(1), "--min-nodes", "2")
    assert done.returncode == 1
    assert "is not ready" in done.stderr


def test_doctor_and_top_show_the_cluster(machine: Machine) -> None:
    doctor = machine.run(1, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert machine.ip(2) in doctor.stdout
    top = machine.run(1, "top", "--once", "--node", machine.name(1))
    assert top.returncode == 0, top.stdout + top.stderr
    assert machine.name(2) in top.stdout


def test_a_port_that_is_taken_is_explained(machine: Machine) -> None:
    done = machine.run(1, "start", "echo:main")
    assert done.returncode != 0
    assert f"lsof -nP -iTCP:{PORT}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["FLEETLM_NODE_IP", "FLEETLM_BIND"])
def test_an_interface_cannot_be_named_and_the_error_says_so(machine: Machine, variable: str) -> None:
    env = dict(machine.env)
    try:
        machine.env = env | {variable: "en0"}
        done = subprocess.run(
            [*COMMAND, "start", "echo:main"],
            env={"FLEETLM_NODE_IP": machine.ip(3)} | machine.env,
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=stretched(ANSWER_S), check=False,
        )  # fmt: skip
    finally:
        machine.env = env
    assert done.returncode == 78, done.stderr
    assert f"{variable}='en0'" in done.stderr or f"{variable}=en0" in done.stderr
    assert "does not list its interfaces" in done.stderr


def test_a_crash_is_seen_and_a_node_that_is_told_to_leave_leaves(machine: Machine) -> None:
    """The last one: it ends both nodes."""
    machine.signal(2, signal.SIGKILL)
    deadline = time.monotonic() + stretched(ANSWER_S)
    while machine.remote(1, "Node.list()"):
        assert time.monotonic() < deadline, machine.log(1)
    assert machine.signal(1, signal.SIGTERM) == 0
    assert "Traceback" not in machine.log(1)
