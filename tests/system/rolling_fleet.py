"""Five real nodes that are restarted one after the other while three of them call the others."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Self

from tests.support.patience import stretched
from tests.system.cluster_tools import ROOT, Fleet, clean_env
from tests.system.rolling_ledger import QUIET, Account

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NODES = range(2, 7)
CALLERS = range(2, 5)
CALLS_PER_S = 300
STREAMS = 20
UP_S = 20.0
"""Seconds until a node has met all others."""
LEAVE_S = 30.0
"""Seconds until a node has left: longer than its longest request and its drain."""
LOOK_S = 0.02


class RollingFleet:
    """The nodes, as programs of `fleetlm start`; leaving the block ends them.

    Args:
        folder: for the records and the logs.
        calls_per_s: of all callers together.
    """

    def __init__(self, folder: Path, calls_per_s: float = CALLS_PER_S) -> None:
        self.folder = folder
        self.fleet = Fleet(static=tuple(NODES))
        self.calls_per_s = calls_per_s
        self.programs: dict[int, subprocess.Popen[bytes]] = {}
        self.logs: list[IO[bytes]] = []
        self.starts = 0

    def __enter__(self) -> Self:
        for number in NODES:
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
            "ROLLING_FOLDER": str(self.folder),
            "ROLLING_NODES": str(len(NODES)),
            "ROLLING_FIXED": " ".join(self.fleet.name(each) for each in NODES),
        }
        if number in CALLERS:
            share = STREAMS // len(CALLERS) + (number - CALLERS[0] < STREAMS % len(CALLERS))
            env |= {"ROLLING_CALLS": str(self.calls_per_s / len(CALLERS)), "ROLLING_STREAMS": str(share)}
        log = (self.folder / f"{number}.log").open("ab")
        self.logs.append(log)
        command = [sys.executable, "-m", "fleetlm", "start", "rolling_worker:main"]
        self.programs[number] = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        self.starts += 1

    def account(self) -> Account:
        """Read what all nodes have written so far."""
        return Account.of_folder(self.folder)

    def wait_until_ready(self) -> None:
        """Return when every node that was started has met all others."""
        self._wait(lambda: self.account().ready >= self.starts, UP_S, "the node has not met all others")

    def restart(self, number: int) -> int:
        """Stop a node as an orchestrator does, start it again, and wait for it. Returns the exit code."""
        program = self.programs[number]
        program.send_signal(signal.SIGTERM)
        code = program.wait(stretched(LEAVE_S))
        self.start(number)
        self.wait_until_ready()
        return code

    def kill(self, number: int) -> None:
        """Kill a node, start it again, and wait for it."""
        self.programs[number].kill()
        self.programs[number].wait(LEAVE_S)
        self.start(number)
        self.wait_until_ready()

    def end_calls(self) -> None:
        """Tell the callers to begin nothing more, and wait until what they began has ended."""
        before = self.account().quiet
        (self.folder / QUIET).touch()
        self._wait(lambda: self.account().quiet >= before + len(CALLERS), LEAVE_S, "requests have not ended")

    def _wait(self, done: Callable[[], bool], limit_s: float, complaint: str) -> None:
        until = time.monotonic() + stretched(limit_s)
        while not done():
            ended = [number for number, program in self.programs.items() if program.poll() is not None]
            if ended or time.monotonic() > until:
                logs = "\n".join((self.folder / f"{number}.log").read_text()[-2_000:] for number in NODES)
                wrong = "\n".join(self.account().complaints())
                raise AssertionError(f"{complaint}; programs that have ended: {ended}\n{wrong}\n{logs}")
            time.sleep(LOOK_S)
