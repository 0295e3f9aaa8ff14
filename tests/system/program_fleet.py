"""Real nodes as programs of ``fleetlm start``: started, restarted, killed, frozen, and waited for."""

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

from tests.support.patience import stretched
from tests.system.cluster_tools import ROOT, Fleet, clean_env
from tests.system.entity_ledger import READY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UP_S = 20.0
"""Seconds until a node has met all others."""
LEAVE_S = 30.0
"""Seconds until a node has left: longer than its drain."""
LOOK_S = 0.02
LOG_CHARS = 4_000
"""Of the log of each program in a complaint."""
STORE = "store.db"
"""The SQLite database that the nodes share, if they have one, in the folder of the fleet."""
WRITE_LOCK = 120
"""The byte of SQLite's file ``-shm`` that the writer has locked; see its "WAL-mode File Format"."""
FLOCK = "hhqqi"
"""The lock of a part of a file, as Linux has it: type, from where, first byte, bytes, process."""


class ProgramFleet:
    """The nodes; leaving the block ends them.

    Args:
        folder: for the records and the logs.
        program: what the nodes run, as ``fleetlm start`` takes it; a module of tests/system.
        nodes: their numbers.
        env: variables of the program, and settings.
    """

    def __init__(self, folder: Path, program: str, nodes: Sequence[int], env: dict[str, str]) -> None:
        self.folder = folder
        self.program = program
        self.nodes = tuple(nodes)
        self.env = env
        self.fleet = Fleet(static=self.nodes)
        self.programs: dict[int, subprocess.Popen[bytes]] = {}
        self.logs: list[IO[bytes]] = []
        self.starts = 0

    def __enter__(self) -> Self:
        try:
            for number in self.nodes:
                self.start(number)
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            with contextlib.suppress(ProcessLookupError):
                program.kill()
            program.wait(LEAVE_S)
        for log in self.logs:
            log.close()

    def env_of(self, number: int) -> dict[str, str]:
        """Return variables of this node alone."""
        _ = number
        return {}

    def complaints(self) -> list[str]:
        """Return what is wrong with what the nodes have written."""
        return []

    # What happens to nodes.

    def start(self, number: int) -> None:
        """Start a node."""
        env = {
            **clean_env(),
            **self.fleet.env,
            "FLEETLM_NODE_IP": self.fleet.ip(number),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'system'}",
            **self.env,
            **self.env_of(number),
        }
        log = (self.folder / f"{number}.log").open("ab")
        self.logs.append(log)
        command = [sys.executable, "-m", "fleetlm", "start", self.program]
        self.programs[number] = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        self.starts += 1

    def restart(self, number: int) -> int:
        """Stop a node as an orchestrator does, start it again, and wait for it. Returns the exit code."""
        self.programs[number].send_signal(signal.SIGTERM)
        code = self.programs[number].wait(stretched(LEAVE_S))
        self.start(number)
        self.wait_until_back(number)
        return code

    def kill(self, number: int) -> None:
        """Kill a node, start it again, and wait for it."""
        self.end(number)
        self.start(number)
        self.wait_until_back(number)

    def end(self, number: int) -> float:
        """Kill a node. Returns when, on the monotonic clock."""
        ended_at = time.monotonic()
        self.programs[number].kill()
        self.programs[number].wait(LEAVE_S)
        return ended_at

    def freeze(self, number: int) -> float:
        """Stop a node as it stands, until `thaw`. Returns when, on the monotonic clock.

        Not in the middle of a write to SQLite, whose lock would keep all others from writing.
        """
        program, shared = self.programs[number], self.folder / f"{STORE}-shm"
        until = time.monotonic() + stretched(UP_S)
        while time.monotonic() < until:
            frozen_at = time.monotonic()
            program.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, program.pid, os.WSTOPPED)
            if not shared.exists() or writer_of(shared) != program.pid:
                return frozen_at
            self.thaw(number)
            time.sleep(LOOK_S)
        raise AssertionError(f"{self.fleet.name(number)} always writes")

    def thaw(self, number: int) -> float:
        """Let a node go on. Returns when, on the monotonic clock."""
        thawed_at = time.monotonic()
        self.programs[number].send_signal(signal.SIGCONT)
        return thawed_at

    # Waiting.

    def wait_until_ready(self) -> None:
        """Return when every node that was started has met all others."""
        self.wait(lambda: self.signed(READY_SUFFIX) >= self.starts, UP_S, "the node has not met all others")

    def wait_until_back(self, number: int) -> None:
        """Return when a node that was started again does its part."""
        _ = number
        self.wait_until_ready()

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

    def signed(self, suffix: str) -> int:
        """Return how many runs of nodes have made a file with this ending."""
        return len([*self.folder.glob(f"*{suffix}")])

    def _findings(self) -> str:
        """Return what a reader needs to find the cause; what the programs that ended have said comes last.

        A report of a test run may have lost all but the end of a long message.
        """
        codes = {number: program.poll() for number, program in self.programs.items()}
        last = sorted(codes, key=lambda number: (codes[number] is not None, number))
        parts = self.complaints()
        for number in last:
            code = codes[number]
            state = "runs" if code is None else f"has ended with the exit code {code}"
            log = (self.folder / f"{number}.log").read_text(errors="replace")
            parts.append(f"--- {self.fleet.name(number)} {state}; the end of its log:\n{log[-LOG_CHARS:]}")
        return "\n".join(parts)


def writer_of(shared: Path) -> int:
    """Return the process that writes to a SQLite database just now, by its file ``-shm``; 0: none.

    This process must not have the database open, since it would lose its own locks.
    """
    with shared.open("rb") as file:
        asked = struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, WRITE_LOCK, 1, 0)
        kind, *_, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)
