"""`fleetlm remote`, `doctor` and the errors of a start, where several nodes run on one machine."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import stretched
from tests.system.servers import environment

PORT = 14_370
_hosts = itertools.count(1)


class Host:
    """One address with a range of ports, and the programs that run there."""

    def __init__(self, folder: Path, ports: int) -> None:
        self.ip = f"127.{150 + os.getpid() // 251 % 40}.{os.getpid() % 251}.{next(_hosts)}"
        self.name = f"fleetlm@{self.ip}"
        self.ports = f"{PORT}-{PORT + ports - 1}"
        self.env = environment(self.ip, PORT) | {
            "FLEETLM_NODE_PORT": self.ports,
            "FLEETLM_REMOTE": "on",
            "XDG_RUNTIME_DIR": str(folder),
            "TMPDIR": str(folder),
            "HOME": str(folder),
        }
        self._started: list[subprocess.Popen[str]] = []

    def popen(self, *args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "fleetlm", *args],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*args, prefix=prefix, **env)
        out, error = process.communicate(timeout=stretched(15))
        return subprocess.CompletedProcess(args, process.returncode, out, error)

    def node(self, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        """Start a node and wait until it listens."""
        process = self.popen("start", prefix=prefix, **env)
        assert process.stderr is not None
        lines = list(itertools.takewhile(lambda line: "listens on" not in line, process.stderr))
        assert process.poll() is None, lines
        return process

    def eventually(self, expected: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Repeat a command until it exits with 0 and prints a text."""
        until = time.monotonic() + stretched(15)
        while True:
            done = self.run(*args)
            if done.returncode == 0 and expected in done.stdout:
                return done
            assert time.monotonic() < until, done

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, ports=2)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.deadline(60)
def test_one_of_several_nodes_is_chosen_and_all_are_checked(host: Host) -> None:
    first, second = host.node(), host.node()
    other = f"{host.name}:{PORT + 1}"
    host.eventually(f"['{other}']", "remote", "--node", str(PORT), "Node.list('host')")
    assert host.run("remote", "--node", "1", "Node.self()").stdout == f"'{other}'\n"
    assert host.run("remote", "--node", f"{host.name}:{PORT}", "Node.self()").stdout == f"'{host.name}'\n"

    unchosen = host.run("remote", "Node.self()")
    assert unchosen.returncode == 2
    listed = [
        re.sub(r" +", " ", line.partition(", up for ")[0].strip())
        for line in unchosen.stderr.splitlines()[1:]
    ]
    assert listed == [f"--node {host.name} process {first.pid}", f"--node {other} process {second.pid}"]
    assert host.run("remote", "--node", str(PORT + 5), "1").returncode == 3

    report = host.run("doctor", "--json")
    said = json.loads(report.stdout)
    assert (report.returncode, said["ok"], said["nodes"]) == (0, True, [host.name, other])
    ports = [each["text"] for each in said["findings"] if each["topic"] == "ports"]
    assert ports[0] == f"2 of the 2 ports {host.ports} at {host.ip} are in use"
    assert [text.partition(" (")[0] for text in ports[1:]] == [
        f"{PORT}: {host.name}, process {first.pid}", f"{PORT + 1}: {other}, process {second.pid}",
    ]  # fmt: skip
    answering = {each["node"]: each["text"] for each in said["findings"] if each["topic"] == "port"}
    assert answering == {
        host.name: f"the node answers at {host.ip}:{PORT}",
        other: f"the node answers at {host.ip}:{PORT + 1}",
    }
    one = json.loads(host.run("doctor", "--json", "--node", "1").stdout)
    assert one["nodes"] == [other]


@pytest.mark.deadline(60)
def test_a_start_without_a_free_port_names_who_holds_them(host: Host) -> None:
    first, second = host.node(), host.node()
    failed = host.run("start")
    assert failed.returncode == 1
    error = re.sub(r" \(.*?fleetlm start\)", "", failed.stderr)
    assert (
        f"cannot listen on {host.ip}:{host.ports}: each of the 2 ports {host.ports} (FLEETLM_NODE_PORT)"
        in error
    )
    assert f"  {PORT}: {host.name}, process {first.pid}\n" in error
    assert f"  {PORT + 1}: {host.name}:{PORT + 1}, process {second.pid}\n" in error
    slot = host.run("start", FLEETLM_NODE_SLOT="1")
    assert slot.returncode == 1
    assert f"port {PORT + 1} (FLEETLM_NODE_SLOT=1) is in use" in slot.stderr
    assert "give this process another FLEETLM_NODE_SLOT" in slot.stderr


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""A container that shares only the network with this one, as the containers of a pod do."""


def may_make_containers() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.deadline(60)
@pytest.mark.skipif(not may_make_containers(), reason="needs the right to make PID namespaces")
def test_a_node_of_another_container_of_the_pod_is_named_without_its_process(
    host: Host, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (
        {"XDG_RUNTIME_DIR": str(tmp_path / name), "TMPDIR": str(tmp_path / name)} for name in ("one", "two")
    )
    host.node(prefix=CONTAINER, **one)
    second = host.node(prefix=CONTAINER, **two)
    failed = host.run("start", prefix=CONTAINER, **two)
    assert failed.returncode == 1
    unseen = "a process that cannot be seen from here, perhaps in another container that shares this network"
    assert f"  {PORT}: {host.name}, {unseen}\n" in failed.stderr
    assert f"  {PORT + 1}: {host.name}:{PORT + 1}, {unseen}\n" in failed.stderr
    assert "root sees the processes of all containers: ss -tanp" in failed.stderr

    inside = ("nsenter", "--pid", "--mount", "--target", str(children(second.pid)[0]))
    gone = host.run("remote", "--node", str(PORT), "1", prefix=inside, **two)
    assert gone.returncode == 3
    assert f"no node {PORT} runs on this machine. These do:\n  --node {host.name}:{PORT + 1}" in gone.stderr
    assert "even where they share this network" in gone.stderr
    report = host.run("doctor", prefix=inside, **two)
    assert report.returncode == 0, report.stdout
    assert f"{PORT}: {host.name}, {unseen}" in report.stdout
    assert f"{PORT + 1}: {host.name}:{PORT + 1}, process " in report.stdout


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]
