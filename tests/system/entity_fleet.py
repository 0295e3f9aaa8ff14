"""Real nodes that host sessions, and one that appends to them; some are restarted, killed or frozen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Self

from tests.support.patience import slowness, stretched
from tests.system.cluster_tools import ROOT, Fleet, clean_env
from tests.system.entity_ledger import DONE_SUFFIX, QUIET, READY_SUFFIX, SUFFIX, Account

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLIENT = 2
WORKERS = range(3, 6)
CALLS_PER_S = 300
UP_S = 20.0
"""Seconds until a node has met all others."""
LEAVE_S = 30.0
"""Seconds until a node has left: longer than its drain."""
LOOK_S = 0.02
STORE = "sessions.db"
"""The SQLite database of a fleet that has one, in its folder."""
WRITE_LOCK = 120
"""The byte of SQLite's file ``-shm`` that the writer has locked; see its "WAL-mode File Format"."""
FLOCK = "hhqqi"
"""The lock of a part of a file, as Linux has it: type, from where, first byte, bytes, process."""
LOG_CHARS = 4_000
"""Of the log of each program in a complaint."""


class EntityFleet:
    """The nodes, as programs of `fleetlm start`; leaving the block ends them.

    Args:
        folder: for the records and the logs.
        env: variables of `entity_worker`, and settings.
        calls_per_s: of the client on a machine that does nothing else.
    """

    def __init__(self, folder: Path, env: dict[str, str], calls_per_s: float = CALLS_PER_S) -> None:
        self.folder = folder
        self.nodes = (CLIENT, *WORKERS)
        self.fleet = Fleet(static=self.nodes)
        self.calls_per_s = calls_per_s / slowness(1.0)
        self.env = env
        self.programs: dict[int, subprocess.Popen[bytes]] = {}
        self.logs: list[IO[bytes]] = []
        self.starts = 0

    def __enter__(self) -> Self:
        for number in self.nodes:
            self.start(number)
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            with contextlib.suppress(ProcessLookupError):
                program.kill()
            program.wait(LEAVE_S)
        for log in self.logs:
            log.close()

    def start(self, number: int) -> None:
        """Start a node."""
        env = {
            **clean_env(),
            **self.fleet.env,
            "FLEETLM_NODE_IP": self.fleet.ip(number),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'system'}",
            "ENTITY_FOLDER": str(self.folder),
            "ENTITY_NODES": str(len(self.nodes)),
            **self.env,
        }
        if number == CLIENT:
            env["ENTITY_CALLS"] = str(self.calls_per_s)
        log = (self.folder / f"{number}.log").open("ab")
        self.logs.append(log)
        command = [sys.executable, "-m", "fleetlm", "start", "entity_worker:main"]
        self.programs[number] = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        self.starts += 1

    def account(self) -> Account:
        """Read what all nodes have written so far."""
        return Account.of_folder(self.folder)

    def wait_until_ready(self) -> None:
        """Return when every node that was started has met all others."""
        self.wait(lambda: self._signed(READY_SUFFIX) >= self.starts, UP_S, "the node has not met all others")

    def wait_until_serving(self, number: int) -> None:
        """Return when a node that was started has met all others, and an entity lives there."""
        self.wait_until_ready()
        runs = self.folder.glob(f"{self.fleet.name(number)}-*{SUFFIX}")
        last = max(runs, key=lambda path: path.stat().st_ctime)
        self.wait(lambda: last.stat().st_size, UP_S, "the node has not got any session")

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a node."""
        self.programs[number].send_signal(what)

    def freeze(self, number: int) -> float:
        """Stop a node as it stands, until `thaw`. Returns when, on the monotonic clock.

        Not in the middle of a write to SQLite, whose lock would keep all others from writing.
        """
        program, held = self.programs[number], self.folder / f"{STORE}-shm"
        until = time.monotonic() + stretched(UP_S)
        while time.monotonic() < until:
            frozen_at = time.monotonic()
            program.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, program.pid, os.WSTOPPED)
            if not held.exists() or writer_of(held) != program.pid:
                return frozen_at
            self.thaw(number)
            time.sleep(LOOK_S)
        raise AssertionError(f"{self.fleet.name(number)} always writes")

    def thaw(self, number: int) -> float:
        """Let a node go on. Returns when, on the monotonic clock."""
        self.programs[number].send_signal(signal.SIGCONT)
        return time.monotonic()

    def restart(self, number: int) -> int:
        """Stop a node as an orchestrator does, start it again, and wait for it. Returns the exit code.

        It is waited for until it serves sessions, so that the others hand its share over to it.
        """
        self.signal(number, signal.SIGTERM)
        code = self.programs[number].wait(stretched(LEAVE_S))
        self.start(number)
        self.wait_until_serving(number)
        return code

    def kill(self, number: int) -> None:
        """Kill a node, start it again, and wait for it."""
        self.programs[number].kill()
        self.programs[number].wait(LEAVE_S)
        self.start(number)
        self.wait_until_serving(number)

    def end_calls(self, clients: int = 1) -> Account:
        """Tell the clients to begin nothing more, and wait until they have read all sessions."""
        (self.folder / QUIET).touch()
        self.wait(lambda: self._signed(DONE_SUFFIX) >= clients, LEAVE_S, "requests have not ended")
        return self.account()

    def wait(
        self, holds: Callable[[], object], limit_s: float, complaint: str, every_s: float = LOOK_S
    ) -> None:
        """Return as soon as something is true. Raises: AssertionError: it is not within ``limit_s``."""
        until = time.monotonic() + stretched(limit_s)
        while not holds():
            ended = [number for number, program in self.programs.items() if program.poll() is not None]
            if ended or time.monotonic() > until:
                raise AssertionError(f"{complaint}\n{self._findings()}")
            time.sleep(every_s)

    def _findings(self) -> str:
        """Return what a reader needs to find the cause; what the programs that ended have said comes last.

        A report of a test run may have lost all but the end of a long message.
        """
        codes = {number: program.poll() for number, program in self.programs.items()}
        last = sorted(self.nodes, key=lambda number: (codes[number] is not None, number))
        parts = self.account().complaints()
        for number in last:
            code = codes[number]
            state = "runs" if code is None else f"has ended with the exit code {code}"
            log = (self.folder / f"{number}.log").read_text(errors="replace")
            parts.append(f"--- {self.fleet.name(number)} {state}; the end of its log:\n{log[-LOG_CHARS:]}")
        return "\n".join(parts)

    def _signed(self, suffix: str) -> int:
        return len([*self.folder.glob(f"*{suffix}")])


def writer_of(shared: Path) -> int:
    """Return the process that writes to a SQLite database just now, by its file ``-shm``; 0: none."""
    with shared.open("rb") as file:
        asked = struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, WRITE_LOCK, 1, 0)
        kind, *_, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)
