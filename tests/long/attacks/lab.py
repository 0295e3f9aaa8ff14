"""Measures what an honest peer notices of an attack: ``Lab`` runs one, and tells what came of it.

A lab has three processes: a victim, an honest peer that calls it all the time, one call at a time, and the
attacker. They first run for a while without the attack (``quiet``), and then with it.

On its own machine the attacker would not take the processor away from the others. So it runs with the lowest
priority, and `apart` gives the two threads of the victim that work different cores, and real-time priority to
those that hardly work: that of ZeroMQ, and the peer. Without it the scheduler left both threads of the victim
on one core for tens of milliseconds, in turns of one tick (4 ms at 250 Hz), and let others wait for the tick
of the attacker; the slow calls of the honest peer showed this and little else (``perf sched``).

Everything is on loopback addresses of its own, and ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
VICTIM, HONEST, HOSTILE = "127.0.7.10", "127.0.7.11", "127.0.7.66"
PORTS: Final = range(21_000, 30_000)
COOKIE: Final = "a cookie for the laboratory 8c1f"
DESCRIPTORS: Final = 4_096
"""Open files that the victim may have."""
SETTLE_S: Final = 0.7
ANSWER_S: Final = 20.0
LOOK_S: Final = 0.05
MEMORY_LIMIT_MB: Final = 4_000
"""A victim that takes more is ended, to save the machine."""


@dataclass(frozen=True)
class Phase:
    """What the honest peer and the victim showed in a while.

    Attributes:
        p50_ms, p99_ms, max_ms: of the honest peer's calls.
        calls: how many were answered.
        failed: how many were not, or failed.
        downs: how often the honest peer lost the victim.
        cpu: processor time of the victim in a second.
        rss_mb: its memory at most.
        descriptors: its open files at most.
        lag_ms: the worst delay of its loop.
        turn_ms: the processor time of the longest turn of its loop: unlike the delay, this does not grow with
            what else runs on the machine.
        collection_ms: that of the longest pass of its garbage collector.
        lines: of its log.
    """

    p50_ms: float
    p99_ms: float
    max_ms: float
    calls: int
    failed: int
    downs: int
    cpu: float
    rss_mb: float
    descriptors: int
    lag_ms: float
    turn_ms: float
    collection_ms: float
    lines: int


@dataclass(frozen=True)
class Outcome:
    """One attack: before it, during it, and what the attacker did."""

    name: str
    quiet: Phase
    attacked: Phase
    is_alive: bool
    note: str

    @property
    def ratio(self) -> float:
        """How many times longer the calls of the honest peer took: of the 99th percentiles."""
        return self.attacked.p99_ms / self.quiet.p99_ms


class Member:
    """A process of the lab; see `tests.long.attacks.members`."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], log: IO[bytes]) -> None:
        self.name = arguments[0]
        command = [sys.executable, "-m", "tests.long.attacks", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, cwd=ROOT, bufsize=0
        )
        self._came = b""

    def ask(self) -> dict[str, Any]:
        """Send a line, and return the answer. Raises: RuntimeError if there is none."""
        self.order()
        return self.answer()

    def order(self) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the next line. Raises: RuntimeError if there is none."""
        assert self.process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._came:
            left_s = max(0.0, until - time.monotonic())
            readable, _, _ = select.select([self.process.stdout], [], [], left_s)
            more = os.read(self.process.stdout.fileno(), 65_536) if readable else b""
            if not more:
                raise RuntimeError(f"{self.name} says nothing")
            self._came += more
        line, _, self._came = self._came.partition(b"\n")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(3.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Samples:
    """Looks at the memory and the open files of a process all the time, in a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_over = threading.Event()
        self._rss_mb = 0.0
        self._descriptors = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self) -> tuple[float, int]:
        """Return the most that was seen since the last time."""
        self._look()
        taken = self._rss_mb, self._descriptors
        self._rss_mb, self._descriptors = 0.0, 0
        return taken

    def close(self) -> None:
        """Stop looking."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(LOOK_S):
            self._look()
            if self._rss_mb > MEMORY_LIMIT_MB:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, 9)

    def _look(self) -> None:
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{self._pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            self._rss_mb = max(self._rss_mb, int(line.split()[1]) / 1_024)
            folder = Path(f"/proc/{self._pid}/fd")
            # Its size is the number, since Linux 6.2; to list thousands takes a core from what is measured.
            open_files = folder.stat().st_size or sum(1 for _ in folder.iterdir())
            self._descriptors = max(self._descriptors, open_files)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process. Source: proc(5)."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def apart(victim: int, honest: int, attacker: int) -> None:
    """Let these processes share this machine as if each had its own; see above.

    Does nothing where there is one core, or where threads cannot be bound to cores. Without the right to set
    real-time priorities, only the cores are set.
    """
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    if len(cores) < 2:
        return
    for pid in (victim, honest, attacker):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # The thread has ended, or the right is missing.
                is_zeromq = pid == victim and (task / "comm").read_text().startswith("ZMQbg/IO")
                if pid == attacker or is_zeromq:
                    os.sched_setaffinity(int(task.name), cores[1:2])
                if pid == honest or is_zeromq:
                    os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))


def environment(ip: str, port: int, cookie: str | None) -> dict[str, str]:
    """Return the environment of a node of the lab."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM", "DNS_"))}
    made = {
        "DNS_CLUSTER_QUERY": f"{VICTIM},{HONEST}", "DNS_POLL_INTERVAL_MS": "1000", "FLEETLM_NODE_IP": ip,
        "FLEETLM_NODE_PORT": str(port), "FLEETLM_REMOTE": "off", "FLEETLM_LOCAL_ROAD": "off",
        "ATTACKED": f"fleetlm@{VICTIM}", "HONEST": f"fleetlm@{HONEST}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return kept | made | ({} if cookie is None else {"FLEETLM_COOKIE": cookie})


def free_port() -> int:
    """Return a port that is free on the addresses of the lab."""
    start = os.getpid() * 7 % len(PORTS)
    for number in range(len(PORTS)):
        port = PORTS[(start + number) % len(PORTS)]
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for ip in (VICTIM, HONEST, HOSTILE):
                stack.enter_context(socket.create_server((ip, port)))
            return port
    raise RuntimeError("no port is free")


class Lab:
    """A victim and an honest peer, for one attack."""

    def __init__(self, cookie: str | None) -> None:
        self._cookie = cookie
        self._port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="attacks-")
        self._victim = self._start(["victim"], VICTIM)
        self._honest = self._start(["honest"], HONEST)
        self._samples = Samples(self._victim.process.pid)

    @property
    def log(self) -> str:
        """What the victim has logged."""
        return self._log_of("victim").read_text(errors="replace")

    def attack(self, name: str, quiet_s: float, attacked_s: float) -> Outcome:
        """Run one attack, after a quiet while."""
        self._victim.answer()
        attacker = self._start(["attack", name, str(attacked_s)], HOSTILE)
        try:
            self._honest.answer()
            attacker.answer()
            apart(*(member.process.pid for member in (self._victim, self._honest, attacker)))
            time.sleep(SETTLE_S)
            quiet = self._phase(lambda: time.sleep(quiet_s))
            facts: dict[str, Any] = {}

            def run() -> None:
                attacker.order()
                facts.update(attacker.answer(attacked_s + ANSWER_S))

            attacked = self._phase(run)
        finally:
            attacker.end()
        return Outcome(name, quiet, attacked, self._victim.process.poll() is None, facts["note"])

    def logs(self) -> list[str]:
        """Return the last lines of each log."""
        return [
            f"{path.name}: {path.read_text(errors='replace')[-1_000:]}"
            for path in Path(self._folder.name).glob("*.log")
        ]

    def close(self) -> None:
        """End everything."""
        self._samples.close()
        for member in (self._honest, self._victim):
            member.end()
        self._folder.cleanup()

    def _log_of(self, member: str) -> Path:
        return Path(self._folder.name) / f"{member}.log"

    def _start(self, arguments: list[str], ip: str) -> Member:
        with self._log_of(arguments[0]).open("wb") as log:
            return Member(arguments, environment(ip, self._port, self._cookie), log)

    def _phase(self, run: Callable[[], object]) -> Phase:
        """Take what is shown while something runs."""
        pid = self._victim.process.pid
        self._samples.take()
        self._honest.ask()
        self._ask_victim()
        began, cpu, lines = time.monotonic(), cpu_s(pid), self.log.count("\n")
        run()
        took_s, cpu = time.monotonic() - began, cpu_s(pid) - cpu
        rss_mb, descriptors = self._samples.take()
        honest, victim = self._honest.ask(), self._ask_victim()
        times = sorted([*honest["times"], *([honest["waiting_s"]] if honest["waiting_s"] > 0.1 else [])])
        return Phase(
            p50_ms=quantile(times, 0.5) * 1_000,
            p99_ms=quantile(times, 0.99) * 1_000,
            max_ms=quantile(times, 1.0) * 1_000,
            calls=len(honest["times"]),
            failed=len(honest["failed"]),
            downs=len(honest["downs"]),
            cpu=cpu / took_s,
            rss_mb=rss_mb,
            descriptors=descriptors,
            lag_ms=victim["lag_s"] * 1_000,
            turn_ms=victim["turn_s"] * 1_000,
            collection_ms=victim["collection_s"] * 1_000,
            lines=self.log.count("\n") - lines,
        )

    def _ask_victim(self) -> dict[str, float]:
        try:
            return self._victim.ask()
        except RuntimeError:
            return dict.fromkeys(("lag_s", "turn_s", "collection_s"), float("inf"))  # Its loop stands still.


def quantile(ordered: list[float], share: float) -> float:
    """Return a quantile; infinity if there are no values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("inf")


@contextlib.contextmanager
def lab(cookie: str | None) -> Iterator[Lab]:
    """Run a lab for one attack."""
    made = Lab(cookie)
    try:
        yield made
    finally:
        made.close()
