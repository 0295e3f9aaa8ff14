"""Operating system processes of a benchmark, as their parent uses them.

A helper runs ``python -m benchmarks.helper MODULE:FUNCTION CONFIG``, reports facts as lines of JSON on
stdout, and ends when its stdin is closed, so that no helper outlives a benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.registry import Metrics

ROOT = Path(__file__).resolve().parent.parent
REPLY_TIMEOUT_S = 240.0
"""Seconds to wait for one line of a helper; a run takes a few seconds, or a minute with a slow peer."""
END_TIMEOUT_S = 5.0
"""Seconds for a helper to end by itself before it is killed."""
AT_ONCE = 4
"""Processes of a larger cluster that start together."""
_PORTS = range(20_000, 32_000)
"""Below the ephemeral ports, so that no outgoing connection takes a port after `free_port` found it."""


def helper_environment() -> dict[str, str]:
    """Return the environment of a helper, without settings of fleetlm."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("FLEETLM_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env


class HelperFailed(Exception):
    """A helper ended, or sent nothing in time, or no facts. Its own error message is on stderr."""


class Helper:
    """One helper process.

    Args:
        target: ``module:function`` in ``benchmarks``.
        config: the argument of the function; sent as JSON.
        command: a command line to run instead of ``benchmarks.helper``.
    """

    def __init__(self, target: str, config: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
        self.target = target
        default = (sys.executable, "-m", "benchmarks.helper", target, json.dumps(config))
        env = helper_environment() | config.get("env", {})
        self._process = subprocess.Popen(
            command or default, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        self._buffer = b""

    @property
    def os_pid(self) -> int:
        """The process id, for `rss_bytes`."""
        return self._process.pid

    def request(self, command: str = "run", timeout_s: float = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """Send a command and wait for the reply. Raises: HelperFailed."""
        self.send(command)
        return self.receive(timeout_s)

    def send(self, command: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """Wait for the next line of facts. Raises: HelperFailed."""
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = until - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, left_s))
            chunk = os.read(self._process.stdout.fileno(), 65_536) if readable else None
            if not chunk:
                why = f"sent nothing for {timeout_s:g} s" if chunk is None else "ended"
                raise HelperFailed(f"{self.target} {why}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            facts: dict[str, Any] = json.loads(line)
        except ValueError:
            raise HelperFailed(f"{self.target} sent {line[:200]!r}") from None
        return facts

    def wait_for_end(self) -> None:
        """Wait until the process has closed its stdout, which it does when it ends. Raises: HelperFailed."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], REPLY_TIMEOUT_S)
        if not readable or os.read(self._process.stdout.fileno(), 65_536):
            raise HelperFailed(f"{self.target} has not ended")

    def close(self) -> None:
        """Let the process end by closing its stdin; kill it if it does not end in time."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(ips: Sequence[str]) -> int:
    """Return a port that is free on all of these addresses. Raises: HelperFailed."""
    for port in random.sample(_PORTS, 50):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for ip in ips:
                stack.enter_context(socket.create_server((ip, port)))
            return port
    raise HelperFailed(f"no port is free on {', '.join(ips)}; on macOS add the addresses to lo0")


def rss_bytes(os_pid: int) -> int:
    """Return the resident memory of a process in bytes. Source: proc(5), /proc/PID/status."""
    for line in Path(f"/proc/{os_pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise HelperFailed(f"process {os_pid} has ended")


Command = Callable[[str, Mapping[str, Any]], Sequence[str]]
"""Returns the command line of a program of another library, from its target and config."""


class Helpers:
    """The helper processes of a variant.

    Args:
        label: of the variant.
        floor: whether fleetlm is compared with it.
        config: for all processes.
        command: makes the command lines if these are programs of another library; None: they are ours.
    """

    def __init__(
        self, label: str, *, floor: bool, config: Mapping[str, Any], command: Command | None = None
    ) -> None:
        self.label = label
        self.floor = floor
        self.is_peer = command is not None
        self._config = dict(config)
        self._command = command
        self._helpers: list[Helper] = []

    def open(self) -> None:
        """Do nothing: each run starts new processes, unless a subclass says otherwise."""

    def start(self, target: str, config: Mapping[str, Any]) -> Helper:
        """Start one more process, which `close` ends."""
        if self._command is None:
            helper = Helper(target, config)
        else:
            helper = Helper(f"{self.label}, {target},", config, self._command(target, config))
        self._helpers.append(helper)
        return helper

    def start_members(self, target: str, count: int) -> list[Helper]:
        """Start so many nodes, one in each process, and wait until all are ready.

        Each gets the config with its ``index``, the common ``port``, and the ``ips`` of all. It reports when
        it has started, and when it is ready. `AT_ONCE` start together: dozens of interpreters on a few cores
        take so long that connections end before they are complete.
        """
        shared = self.addresses(count)
        for first in range(0, count, AT_ONCE):
            indices = range(first, min(first + AT_ONCE, count))
            for helper in [self.start(target, {**shared, "index": index}) for index in indices]:
                helper.receive()
        for helper in self._helpers:
            helper.receive()
        return self._helpers[:]

    def addresses(self, count: int) -> dict[str, Any]:
        """Return the config with so many ``ips``, and a ``port`` that is free on all of them."""
        ips = [f"127.0.0.{number + 1}" for number in range(count)]
        return {**self._config, "ips": ips, "port": free_port(ips)}

    def close(self) -> None:
        """End all processes, the last one first."""
        for helper in reversed(self._helpers):
            helper.close()
        self._helpers.clear()


class ServersAndDriver(Helpers):
    """A variant of long-lived processes: servers, and a driver that does each run.

    Each process gets ``config``, its ``index`` (the driver 0, servers from 1), the common ``port``, and the
    ``ips`` of all, with its own at its index.
    """

    def __init__(
        self,
        label: str,
        *,
        floor: bool,
        server: str,
        driver: str,
        config: Mapping[str, Any],
        servers: int = 1,
        command: Command | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        super().__init__(label, floor=floor, config=config, command=command)
        self._server = server
        self._driver = driver
        self._servers = servers
        self._timeout_s = timeout_s

    def open(self) -> None:
        """Start all processes and wait until they are ready."""
        shared = self.addresses(self._servers + 1)
        for index in [*range(1, self._servers + 1), 0]:
            target = self._server if index else self._driver
            self.start(target, {**shared, "index": index}).receive()

    def run(self, command: str = "run") -> Metrics:
        """Let the driver do one run."""
        return self._helpers[-1].request(command, self._timeout_s)


class Session(ServersAndDriver):
    """Processes that several variants (`Mode`) share: only what differs between these is compared."""

    def open(self) -> None:
        """Start all processes, unless they run already."""
        if not self._helpers:
            super().open()


class Mode:
    """A variant that is one command to the driver of a session."""

    is_peer = False

    def __init__(self, label: str, session: Session, command: str, *, floor: bool = False) -> None:
        self.label = label
        self.floor = floor
        self._session = session
        self._command = command

    def open(self) -> None:
        """Start the session with the first of its variants."""
        self._session.open()

    def run(self) -> Metrics:
        """Let the driver do the work that the command names."""
        return self._session.run(self._command)

    def close(self) -> None:
        """End the session with the first of its variants."""
        self._session.close()


class Launch:
    """A variant whose run is a new process: measures the time until it is ready, and its memory then.

    Metrics that the process reports itself are added to ``start_s`` and ``rss_bytes``. ``is_peer`` says that
    it is another library.
    """

    def __init__(
        self,
        label: str,
        *,
        floor: bool,
        target: str,
        config: Mapping[str, Any],
        command: Sequence[str] | None = None,
        is_peer: bool = False,
    ) -> None:
        self.label = label
        self.floor = floor
        self.is_peer = is_peer
        self._target = target
        self._config = dict(config)
        self._command = command
        self._helper: Helper | None = None

    def open(self) -> None:
        """Do one run that is not counted: it fills the disk's cache."""
        self.run()

    def run(self) -> Metrics:
        """Start the process, wait for its facts, and end it."""
        self._config["port"] = free_port(["127.0.0.1"])
        config = {**self._config, "env": {**self._config.get("env", {}), **self._port_variable()}}
        started = time.perf_counter()
        self._helper = Helper(self._target, config, self._command)
        try:
            facts = self._helper.receive()
            start_s = time.perf_counter() - started
            return {"start_s": start_s, "rss_bytes": rss_bytes(self._helper.os_pid), **facts}
        finally:
            self.close()

    def close(self) -> None:
        """End the process if it still runs."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def _port_variable(self) -> dict[str, str]:
        return {"FLEETLM_NODE_PORT": str(self._config["port"])}


class ProcessGroup(Helpers):
    """A variant in which several new processes begin together; a run ends when all have finished.

    A run does so for each number of ``members``. Each process gets ``config`` with ``first`` and ``count``:
    the part of ``ips`` that is its own.
    """

    def __init__(
        self,
        label: str,
        *,
        floor: bool,
        target: str,
        config: Mapping[str, Any],
        members: Sequence[int],
        each: int,
        command: Command | None = None,
    ) -> None:
        super().__init__(label, floor=floor, config=config, command=command)
        self._target = target
        self._members = members
        self._each = each

    def run(self) -> Metrics:
        """Return the seconds for each number of members."""
        return {formed_key(members): self._form(members) for members in self._members}

    def _form(self, members: int) -> float:
        """Start all processes, send "go" to all, and wait for the last one."""
        shared = self.addresses(members)
        try:
            for first in range(0, members, self._each):
                count = min(self._each, members - first)
                self.start(self._target, {**shared, "first": first, "index": first, "count": count})
            for helper in self._helpers:
                helper.receive()
            started = time.perf_counter()
            for helper in self._helpers:
                helper.send("go")
            for helper in self._helpers:
                helper.receive()
            return time.perf_counter() - started
        finally:
            self.close()


def formed_key(members: int) -> str:
    """Return the key of the metric of `ProcessGroup` for so many members."""
    return f"formed_{members}_s"
