"""The command line as real programs: nodes on 127.0.0.N, signals, exit codes, a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.patience import allowed_s

ROOT = Path(__file__).parent.parent.parent
START_S = 10.0
WORKER = """
import asyncio, os, sys, time

async def main(node):
    await asyncio.Event().wait()

def setup(node):
    async def printer(process):
        await asyncio.Event().wait()
    node.spawn(printer, name="printer")

async def brief(node):
    print("ran on", node.name, type(asyncio.get_running_loop()).__module__)

async def broken(node):
    raise RuntimeError("no way")

async def leaves(node):
    sys.exit(7)

async def stubborn(node):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


class Place:
    """A folder with programs, an environment of its own, a port of its own, and its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir()
        (folder / "worker.py").write_text(WORKER)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DNS_", "FLEETLM_", "XDG_", "FLY_", "POD_"))
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.env = inherited | {
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_STATE_HOME": str(folder / "state"),
            "TMPDIR": str(folder),
            "FLEETLM_NODE_PORT": str(port),
        }
        self.port = port
        self.started: list[subprocess.Popen[str]] = []

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleetlm", *args],
            cwd=self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*args, **env)
        out, error = process.communicate(timeout=20)
        return subprocess.CompletedProcess(args, process.returncode, out, error)

    def node(self, number: int, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start ``fleetlm@127.0.0.<number>`` and wait until its remote shell answers."""
        ip = f"127.0.0.{number}"
        process = self.popen("start", *args, FLEETLM_NODE_IP=ip, **env)
        if env.get("FLEETLM_REMOTE") != "off":
            self.eventually(lambda: bool(list((self.folder / "run").glob(f"fleetlm/*@{ip}.*"))))
        return process

    def eventually(self, right: Callable[[], bool]) -> None:
        deadline = time.monotonic() + allowed_s(START_S)
        while not right():
            ended = [process for process in self.started if process.poll() not in (None, 0)]
            assert time.monotonic() < deadline, [process.communicate() for process in ended]
            time.sleep(0.02)

    def remote(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("remote", *args)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.end()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=10)
    return process.returncode, out, error


# ── start ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "program"),
    [
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGINT, ["worker:main"]),
        (signal.SIGTERM, ["worker:setup"]),
    ],
)
def test_a_signal_stops_the_node_in_order(place: Place, number: signal.Signals, program: list[str]) -> None:
    node = place.node(2, *program)
    node.send_signal(number)
    code, _, error = ended(node)
    assert code == 0, error
    assert "Traceback" not in error
    assert f"received {number.name}; shutting down" in error
    assert "stopped: shutdown" in error
    assert list((place.folder / "run" / "fleetlm").iterdir()) == []


def test_the_settings_are_logged_once_without_secrets(place: Place) -> None:
    secret = "a-secret-of-enough-characters"
    node = place.node(2, FLEETLM_COOKIE=secret)
    node.terminate()
    _, _, error = ended(node)
    assert error.count("DNS_CLUSTER_NODE_BASENAME=fleetlm") == 1
    assert "FLEETLM_COOKIE=(set)" in error
    assert "this node's address: set by FLEETLM_NODE_IP" in error
    assert secret not in error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once_whatever_runs(place: Place, number: signal.Signals, code: int) -> None:
    node = place.popen("start", "worker:stubborn", FLEETLM_NODE_IP="127.0.0.2")
    assert node.stdout is not None
    assert node.stdout.readline() == "ready\n"
    node.send_signal(number)
    time.sleep(0.2)
    assert node.poll() is None
    node.send_signal(number)
    assert ended(node)[0] == code


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("worker:brief", 0, "stopped: shutdown"),
        ("worker:broken", 1, "RuntimeError: no way"),
        ("worker:leaves", 7, "stopped"),
        ("worker:mian", 2, "did you mean main?"),
        ("nothing:main", 2, "no module 'nothing'"),
        ("worker", 2, "worker:main"),
    ],
)
def test_how_a_program_ends(place: Place, program: str, code: int, said: str) -> None:
    done = place.run("start", program, FLEETLM_NODE_IP="127.0.0.2")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    if code == 0:
        assert done.stdout.startswith("ran on fleetlm@127.0.0.2 ")
    if code == 1:
        assert "start.py" not in done.stderr
        assert "foreground.py" not in done.stderr


def test_a_setting_that_cannot_be_used_is_78(place: Place) -> None:
    done = place.run("start", DNS_POLL_INTERVAL_MS="5s")
    assert done.returncode == 78
    assert done.stderr.startswith("fleetlm start: DNS_POLL_INTERVAL_MS is '5s'; allowed: ")


def test_an_interface_that_is_not_there_is_78_and_the_interfaces_are_listed(place: Place) -> None:
    for command in ("start", "doctor"):
        done = place.run(command, FLEETLM_NODE_IP="nowhere9")
        said = done.stdout + done.stderr
        assert done.returncode == 78, said
        assert "nowhere9" in said
        assert "127.0.0.1" in said


def test_a_node_takes_its_address_from_an_interface(place: Place) -> None:
    node = place.popen("start", "worker:stubborn", FLEETLM_NODE_IP="lo")
    assert node.stdout is not None
    assert node.stdout.readline() == "ready\n"
    node.kill()
    assert "this node's address: FLEETLM_NODE_IP=lo: lo has 127.0.0.1" in ended(node)[2]


def test_a_port_that_is_taken_is_1(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", place.port))
        other.listen()
        done = place.run("start", FLEETLM_NODE_IP="127.0.0.2")
        assert done.returncode == 1
        assert f"127.0.0.2:{place.port}" in done.stderr
        assert "Traceback" not in done.stderr
        doctor = place.run("doctor", FLEETLM_NODE_IP="127.0.0.2", DNS_CLUSTER_QUERY="127.0.0.2")
    assert doctor.returncode == 1
    assert "is in use at 127.0.0.2, so no node can start" in doctor.stdout
    assert f"{place.port}: process {os.getpid()} " in doctor.stdout


# ── remote ───────────────────────────────────────────────────────────────────────────────────────


def test_exit_codes_and_streams(place: Place) -> None:
    place.node(2, "worker:setup")
    cases: Sequence[tuple[list[str], int, str, str]] = [
        (["Node.list()"], 0, "[]\n", ""),
        (["print('seen'); x = 1"], 0, "seen\n", ""),
        (["Process.whereis('printer').number"], 0, "1\n", ""),
        (["1 / 0"], 1, "", "ZeroDivisionError"),
        (["--timeout", "soon", "1"], 2, "", "usage"),
        ([], 2, "", "no expression"),
        (["--node", "fleetlm@127.0.0.9", "1"], 3, "", "fleetlm@127.0.0.2"),
        (["--timeout", "0.3", "await asyncio.sleep(60)"], 4, "", "cancelled"),
        (["import time; time.sleep(0.1); 'blocked for a moment'"], 0, "'blocked for a moment'\n", ""),
    ]
    for args, code, out, error in cases:
        done = place.remote(*args)
        assert (done.returncode, done.stdout) == (code, out), (args, done)
        assert error in done.stderr, args
    (place.folder / "run" / "fleetlm").chmod(0o755)
    done = place.remote("1")
    assert done.returncode == 5
    assert "chmod 700" in done.stderr


def test_json(place: Place) -> None:
    place.node(2)
    done = place.remote("--json", "Node.info()")
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["value"]["name"] == "fleetlm@127.0.0.2"
    failed = place.remote("--json", "nothing")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"]["type"] == "NameError"
    assert failed.stderr == ""


def test_no_node_is_3_and_says_what_to_do(place: Place) -> None:
    done = place.remote("1")
    assert done.returncode == 3
    assert "fleetlm start" in done.stderr


def test_several_nodes_and_one_that_was_killed(place: Place) -> None:
    query = "127.0.0.2,127.0.0.3"
    one = place.node(2, DNS_CLUSTER_QUERY=query)
    place.node(3, DNS_CLUSTER_QUERY=query)
    done = place.remote("Node.list()")
    assert done.returncode == 2
    assert re.search(r"--node fleetlm@127.0.0.2  process.*\n  --node fleetlm@127.0.0.3  process", done.stderr)
    two = ["--node", "fleetlm@127.0.0.3"]
    place.eventually(lambda: place.remote(*two, "Node.list()").stdout == "['fleetlm@127.0.0.2']\n")
    assert place.remote(*two, "Node.ping('fleetlm@127.0.0.2')").stdout == "'pong'\n"
    one.kill()
    one.communicate()
    place.started.remove(one)
    assert place.remote("Node.self()").stdout == "'fleetlm@127.0.0.3'\n"
    assert [path.name.split(".")[3] for path in (place.folder / "run" / "fleetlm").iterdir()] == ["3"]


def test_stopping_a_node_through_the_shell_answers(place: Place) -> None:
    node = place.node(2, "worker:main")
    done = place.remote("await node.stop()\n'stopped'")
    assert (done.returncode, done.stdout) == (0, "'stopped'\n"), done
    code, _, error = ended(node)
    assert code == 0, error
    assert "Traceback" not in error


def test_a_stopped_process_is_a_timeout(place: Place) -> None:
    node = place.node(2)
    node.send_signal(signal.SIGSTOP)
    done = place.remote("--timeout", "0.5", "1")
    assert done.returncode == 4
    assert "did not respond" in done.stderr
    node.send_signal(signal.SIGCONT)
    assert place.remote("1").stdout == "1\n"


def test_ctrl_c_in_the_client_cancels_in_the_node(place: Place) -> None:
    place.node(2)
    source = (
        "node.seen = []\nprint('runs')\ntry:\n    await asyncio.sleep(60)\nfinally:\n    node.seen.append(1)"
    )
    client = place.popen("remote", "--timeout", "60", source)
    assert client.stdout is not None
    assert client.stdout.readline() == "runs\n"
    client.send_signal(signal.SIGINT)
    code, _, error = ended(client)
    assert code == 130
    assert "cancelled" in error
    assert place.remote("node.seen").stdout == "[1]\n"


def test_a_node_with_remote_off_cannot_be_found(place: Place) -> None:
    node = place.node(2, FLEETLM_REMOTE="off")
    assert node.stderr is not None
    while "listens on" not in node.stderr.readline():
        pass
    assert place.remote("1").returncode == 3
    assert not (place.folder / "run" / "fleetlm").exists()


def test_health_needs_no_remote_shell_and_no_folder(place: Place) -> None:
    alone = place.run("health")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert f"no process listens on port {place.port} of this machine" in alone.stderr
    assert place.run("health", "--ready").returncode == 1
    node = place.node(2, FLEETLM_REMOTE="off", FLEETLM_COOKIE="a-cookie-of-this-test-only")
    assert node.stderr is not None
    while "listens on" not in node.stderr.readline():
        pass
    alive = place.run("health", "--live")
    assert (alive.returncode, alive.stdout) == (
        0,
        f"alive: a process listens on port {place.port} of 127.0.0.2\n",
    )
    ready = place.run("health", "--ready")
    assert (ready.returncode, ready.stdout) == (0, "fleetlm@127.0.0.2 is ready, connected to 0\n")
    few = place.run("health", "--ready", "--min-nodes", "1")
    assert (few.returncode, few.stdout) == (1, "")
    assert "it is connected to 0 node(s), and 1 are needed" in few.stderr
    os.kill(node.pid, signal.SIGSTOP)  # Its event loop does not answer; nor does one whose GIL is held.
    try:
        assert place.run("health", "--live").returncode == 0
        stopped = place.run("health", "--ready", "--timeout", "0.5", "--node", "fleetlm@127.0.0.2")
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert stopped.returncode == 1
    assert "did not answer in time" in stopped.stderr


def test_the_client_is_quick(place: Place) -> None:
    """In processor time, which other work on the machine changes little."""
    place.node(2)
    took: list[float] = []
    while len(took) < 5 and not (took and took[-1] < 0.15):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert place.remote("1").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < allowed_s(0.15)


# ── the shell ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def terminal(place: Place, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[..., str]]]:
    """A program on a terminal; the function types a line and reads until a text appears."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetlm", *args],
        cwd=place.folder, env=place.env | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    unread = ""

    def talk(line: str, until: str) -> str:
        nonlocal unread
        os.write(ours, line.encode())
        if not until:
            return ""
        deadline = time.monotonic() + 10
        while until not in unread:
            assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], unread
            try:
                unread += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        seen, found, unread = unread.partition(until)
        return seen + found

    try:
        yield process, talk
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture(params=["prompt_toolkit", "readline"])
def editor(place: Place, request: pytest.FixtureRequest) -> str:
    if request.param == "readline":
        hidden = place.folder / "hide" / "prompt_toolkit"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError('hidden')")
        place.env["PYTHONPATH"] = f"{hidden.parent}:{place.env['PYTHONPATH']}"
    else:
        pytest.importorskip("prompt_toolkit")
    return str(request.param)


def test_the_shell_evaluates_and_leaves_at_the_end_of_input(place: Place, editor: str) -> None:
    place.node(2)
    with terminal(place, "remote") as (process, talk):
        talk("", "@127.0.0.2>")
        assert "4242" in talk("x = 20; str(x * 2 + 2) * 2\r", "4242")
        talk("1 / 0\r", "ZeroDivisionError: division by zero")
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            talk("\x04", "")  # what is typed before there is a prompt may be lost
            time.sleep(0.1)
        assert process.poll() == 0


def test_the_shell_says_that_its_node_died(place: Place, editor: str) -> None:
    node = place.node(2)
    with terminal(place, "remote") as (process, talk):
        talk("", "@127.0.0.2>")
        talk("'so' + 'on'\r", "soon")
        node.kill()
        assert "is gone" in talk("", "is gone")
        talk("", "nothing more")
        assert process.wait(timeout=10) == 3


# ── doctor ───────────────────────────────────────────────────────────────────────────────────────


def test_the_doctor_passes_a_healthy_pair(place: Place) -> None:
    query = "127.0.0.2,127.0.0.3"
    place.node(2, DNS_CLUSTER_QUERY=query)
    place.node(3, DNS_CLUSTER_QUERY=query)
    ask = ["--node", "fleetlm@127.0.0.2"]
    place.eventually(lambda: "127.0.0.3" in place.remote(*ask, "Node.list()").stdout)
    done = place.run("doctor", *ask)
    assert done.returncode == 0, done.stdout
    assert f"127.0.0.3:{place.port} is fleetlm@127.0.0.3, connected to 1 node" in done.stdout
    assert "mesh         connected to 1 node" in done.stdout
    both = place.run("doctor")
    assert both.returncode == 0, both.stdout
    assert both.stdout.startswith("2 nodes run on this machine.")


def test_the_doctor_reports_a_missing_node(place: Place) -> None:
    place.node(2, DNS_CLUSTER_QUERY="127.0.0.2,127.0.0.3")
    done = place.run("doctor", "--json")
    assert done.returncode == 1
    failing = [each for each in json.loads(done.stdout)["findings"] if each["level"] == "fail"]
    assert any(f"127.0.0.3:{place.port} refuses" in each["text"] for each in failing)
    assert all(each["cure"] for each in failing)


def test_the_doctor_without_a_node_checks_the_environment(place: Place) -> None:
    alone = place.run("doctor")
    assert alone.returncode == 0
    assert "DNS_CLUSTER_QUERY is not set" in alone.stdout
    assert "is free" in alone.stdout
    wrong = place.run("doctor", FLEETLM_NODE_PORT="0")
    assert wrong.returncode == 78
    assert "FLEETLM_NODE_PORT is '0'" in wrong.stdout


def test_the_doctor_reports_a_different_cookie(place: Place) -> None:
    query = "127.0.0.2,127.0.0.3"
    place.node(2, DNS_CLUSTER_QUERY=query, FLEETLM_COOKIE="x good cookie 7f3a91c")
    place.node(3, DNS_CLUSTER_QUERY=query, FLEETLM_COOKIE="y good cookie 7f3a91c")
    done = place.run("doctor", "--node", "fleetlm@127.0.0.2", FLEETLM_COOKIE="x good cookie 7f3a91c")
    assert done.returncode == 1
    assert "cookie" in done.stdout.lower()
    assert "x" * 32 not in done.stdout
