"""`fleetlm demo` as a user runs it: to its end, on a terminal, interrupted, and with a failing check."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetlm.cli.demo.replicas import DemoFailed, Replica, end_all, free_port, tail
from fleetlm.cli.demo.screen import WIDTH, Screen, duration

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "fleetlm", "demo"]
LIMIT_S = 40.0
"""A demo takes 6 to 12 s; the rest is for machines that run other tests as well."""
STEPS = (
    "1. Nodes 2 to 6 start and join the cluster",
    '2. Each node has a process named "worker"',
    "3. One message goes to all 6 nodes",
    "4. fleetlm@127.0.0.4 is killed",
    "5. fleetlm@127.0.0.4 is started again",
    "6. The DNS server fails",
    "7. All nodes are stopped",
)


def environment(**more: str) -> dict[str, str]:
    ours = ("FLEETLM_", "DNS_CLUSTER_", "NO_COLOR", "TERM")
    env = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    return {**env, "PYTHONPATH": str(ROOT), **more}


def start_demo(**more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def read_until(demo: subprocess.Popen[str], text: str) -> str:
    assert demo.stdout is not None
    seen = ""
    while text not in seen:
        line = demo.stdout.readline()
        assert line, f"it ended before it said {text!r}:\n{seen}"
        seen += line
    return seen


def os_pids(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"is connected \(OS process (\d+)\)", text)]


def is_alive(os_pid: int) -> bool:
    try:
        state = Path(f"/proc/{os_pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def await_end(pids: list[int]) -> None:
    until = time.monotonic() + 10.0
    while any(map(is_alive, pids)):
        assert time.monotonic() < until, f"still running: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.02)


@pytest.mark.deadline(60)
def test_it_shows_all_steps_in_plain_text_and_leaves_no_process() -> None:
    # What the user's shell sets for a cluster of theirs is not the demo's.
    done = subprocess.run(
        DEMO,
        cwd=ROOT,
        env=environment(DNS_CLUSTER_QUERY="elsewhere.test", FLEETLM_NODE_PORT="4370", POD_IP="10.1.2.3"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert done.stderr == ""
    assert said.isascii()
    assert "\x1b" not in said
    assert [step for step in STEPS if f"\n{step}" not in said] == []
    assert [said.index(step) for step in STEPS] == sorted(said.index(step) for step in STEPS)
    for count in range(1, 6):
        assert f"Node.list() -> {count} node" in said
    assert said.count('"hello back" from OS process') == 5
    assert "multicall: called 6 nodes and received 6 replies" in said
    assert "broadcast: sent to 6 nodes and received 6 answers" in said
    assert "a call to it fails with NoConnection" in said
    assert "none failed" in said
    first, second = re.findall(r"incarnation (\w+) \(was (\w+)\)", said)[0]
    assert first != second
    assert max(map(len, said.splitlines())) <= 100
    pids = os_pids(said)
    assert len(set(pids)) == 5
    await_end(pids)


@pytest.mark.deadline(60)
def test_on_a_terminal_it_has_colours_and_ticks() -> None:
    leader, follower = pty.openpty()
    demo = subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env=environment(TERM="xterm", PYTHONIOENCODING="utf-8"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    try:
        while b"full mesh" not in seen:
            seen += os.read(leader, 4096)
        demo.send_signal(signal.SIGINT)
        while demo.poll() is None:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # EIO: the other end is closed
                break
        assert demo.wait(10) == 130
    finally:
        demo.kill()
        demo.wait()
        os.close(leader)
    text = seen.decode()
    assert "\x1b[32m✓\x1b[0m fleetlm@127.0.0.2 is connected" in text
    assert "interrupted; all processes were stopped" in text
    await_end(os_pids(text))


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_interrupted_it_ends_its_processes(number: int, code: int) -> None:
    demo = start_demo()
    seen = read_until(demo, "fleetlm@127.0.0.4 is connected")
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=15)
    assert demo.returncode == code, seen + rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    await_end(os_pids(seen))


@pytest.mark.deadline(60)
def test_killed_it_leaves_no_process_either() -> None:
    demo = start_demo()
    seen = read_until(demo, "fleetlm@127.0.0.3 is connected")
    demo.kill()
    rest, _ = demo.communicate(timeout=15)
    await_end(os_pids(seen + rest))


@pytest.mark.deadline(60)
def test_a_failing_check_is_shown_with_the_logs_and_exit_code_1() -> None:
    demo = start_demo()
    seen = read_until(demo, "fleetlm@127.0.0.3 is connected")
    # Somebody else kills a replica: the demo's list is not what it must be, whatever comes next.
    os.kill(os_pids(seen)[0], signal.SIGKILL)
    rest, _ = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 1, rest
    assert "FAILED" in rest
    assert "end of the log of fleetlm@127.0.0.3" in rest
    assert "nodeup fleetlm@127.0.0.1" in rest
    assert "end of the demo's own log" in rest
    await_end(os_pids(seen + rest))


# ── the screen ───────────────────────────────────────────────────────────────────────────────────


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        self.seek(0)
        return self.read()


def shown(stream: io.StringIO | Terminal, **env: str) -> str:
    screen = Screen(stream, env)
    screen.title("title …", "more")
    screen.step("step")
    screen.fact("a → b", 0.0123)
    screen.fact("no time")
    screen.detail("detail – ×")
    screen.failed("what failed")
    screen.log("log", ["ünï"])
    screen.log("empty log", [])
    screen.end("end", "more")
    return stream.getvalue() if isinstance(stream, io.StringIO) else stream.text


def test_plain_text_is_ascii_without_escapes_and_its_timings_end_in_one_column() -> None:
    text = shown(io.StringIO())
    assert text.isascii()
    assert "\x1b" not in text
    assert "title ..." in text
    assert "\n1. step\n" in text
    fact = next(line for line in text.splitlines() if "a -> b" in line)
    assert fact.startswith("   ok a -> b ")
    assert fact.endswith(" 12 ms")
    assert len(fact) == WIDTH
    assert "FAILED what failed" in text
    assert "(empty)" in text


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_escapes_gets_none(env: dict[str, str]) -> None:
    assert shown(Terminal(), **env) == shown(io.StringIO())


def test_no_color_must_not_be_empty_to_count() -> None:
    assert "\x1b[" in shown(Terminal(), NO_COLOR="")


def test_a_terminal_gets_colour_and_glyphs_and_the_same_columns() -> None:
    text = shown(Terminal())
    assert "✓" in text
    assert "✗ what failed" in text
    bare = re.sub(r"\x1b\[\d+m", "", text)
    fact = next(line for line in bare.splitlines() if "a → b" in line)
    assert len(fact) == WIDTH


def test_a_terminal_without_unicode_gets_colour_but_no_glyphs() -> None:
    text = shown(Terminal("ascii"))
    assert "\x1b[" in text
    assert text.isascii()
    assert "ok" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0008, "0.8 ms"), (0.0123, "12 ms"), (0.4121, "412 ms"), (2.14, "2.1 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ── the fleet ────────────────────────────────────────────────────────────────────────────────────


def test_a_free_port_is_free_on_every_address() -> None:
    ips = ["127.0.0.1", "127.0.0.77"]
    port = free_port(ips)
    for ip in ips:
        with socket.create_server((ip, port)):
            pass


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(DemoFailed, match=r"192\.0\.2\.1 cannot be bound"):
        free_port(["192.0.2.1"])


def test_on_macos_the_error_says_how_to_add_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DemoFailed, match=r"sudo ifconfig lo0 alias 127\.0\.0\.\$n up"):
        free_port(["192.0.2.1"])


def test_a_tail_is_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert tail(log) == []
    log.write_text("\n".join(f"line {number}" for number in range(10_000)), encoding="utf-8")
    assert tail(log)[-1] == "line 9999"
    assert len(tail(log)) == 12


async def test_a_replica_that_cannot_start_ends_and_its_log_says_why(tmp_path: Path) -> None:
    replica = Replica("192.0.2.1", 1, "not-an-address", tmp_path)
    assert (replica.os_pid, replica.exit_code) == (0, None)
    await replica.kill()
    assert await replica.stop() == 0
    await replica.start()
    assert await asyncio.wait_for(_exit_code(replica), 20) == 78
    assert any("FLEETLM_DNS_SERVER" in line for line in replica.log_tail())
    await end_all([replica])


async def _exit_code(replica: Replica) -> int:
    while replica.exit_code is None:
        await asyncio.sleep(0.02)
    return replica.exit_code
