"""Real nodes that host sessions, and one that appends to them; some are restarted, killed or frozen."""

from __future__ import annotations

import contextlib
import signal
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
                logs = "\n".join(
                    (self.folder / f"{number}.log").read_text()[-2_000:] for number in self.nodes
                )
                wrong = "\n".join(self.account().complaints())
                raise AssertionError(f"{complaint}; programs that have ended: {ended}\n{wrong}\n{logs}")
            time.sleep(every_s)

    def _signed(self, suffix: str) -> int:
        return len([*self.folder.glob(f"*{suffix}")])
