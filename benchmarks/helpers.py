"""Processes of the operating system that take part in a benchmark, as their parent sees them.

A helper runs ``python -m benchmarks.helper MODULE:FUNCTION CONFIG``, says what it has to say as
lines of JSON on stdout, and ends when its stdin does, so that none outlives a benchmark.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.registry import Metrics

ROOT = Path(__file__).resolve().parent.parent
REPLY_S = 60.0
"""For one answer; a run takes a few seconds."""
END_S = 5.0
_PORTS = range(20_000, 32_000)
"""Below the ephemeral ports: no outgoing connection takes one between our look and its use."""


class HelperFailed(Exception):
    """A helper ended, or said nothing in time. Its own message is on stderr."""


class Helper:
    """One process.

    Args:
        target: ``module:function`` below ``benchmarks``.
        config: what the function gets, as JSON.
        command: another command line than that of ``benchmarks.helper``.
    """

    def __init__(self, target: str, config: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
        self.target = target
        ours = (sys.executable, "-m", "benchmarks.helper", target, json.dumps(config))
        env = {name: text for name, text in os.environ.items() if not name.startswith("FLEETLM_")}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
        env |= config.get("env", {})
        self._process = subprocess.Popen(
            command or ours, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        self._buffer = b""

    @property
    def os_pid(self) -> int:
        """For `rss_bytes`."""
        return self._process.pid

    def ask(self, command: str = "run") -> dict[str, Any]:
        """Send a command and wait for its answer. Raises: HelperFailed."""
        self.tell(command)
        return self.hear()

    def tell(self, command: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())

    def hear(self) -> dict[str, Any]:
        """The next line. Raises: HelperFailed."""
        assert self._process.stdout is not None
        until = time.monotonic() + REPLY_S
        while b"\n" not in self._buffer:
            left_s = until - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, left_s))
            chunk = os.read(self._process.stdout.fileno(), 65_536) if readable else None
            if not chunk:
                why = f"said nothing for {REPLY_S:g} s" if chunk is None else "ended"
                raise HelperFailed(f"{self.target} {why}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        """End it: in order if it can, by SIGKILL if it does not."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(ips: Sequence[str]) -> int:
    """A port that is free on all of these addresses. Raises: HelperFailed."""
    for port in random.sample(_PORTS, 50):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for ip in ips:
                stack.enter_context(socket.create_server((ip, port)))
            return port
    raise HelperFailed(f"no port is free on {', '.join(ips)}; on macOS add the addresses to lo0")


def rss_bytes(os_pid: int) -> int:
    """Resident memory. Source: proc(5), /proc/PID/status."""
    for line in Path(f"/proc/{os_pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise HelperFailed(f"process {os_pid} has ended")


class Session:
    """A variant of long-lived processes: servers, and a driver that is asked to run.

    Each gets ``config`` and its own ``index`` (servers from 1 on, the driver 0), the ``port`` that
    is theirs, and the ``ips`` of all, its own at its index.
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
    ) -> None:
        self.label = label
        self.floor = floor
        self._server = server
        self._driver = driver
        self._config = dict(config)
        self._servers = servers
        self._helpers: list[Helper] = []

    def open(self) -> None:
        """Start all and wait until they are ready."""
        ips = [f"127.0.0.{number + 1}" for number in range(self._servers + 1)]
        shared = {**self._config, "ips": ips, "port": free_port(ips)}
        for index in [*range(1, self._servers + 1), 0]:
            target = self._server if index else self._driver
            self._helpers.append(Helper(target, {**shared, "index": index}))
            self._helpers[-1].hear()

    def run(self) -> Metrics:
        """Let the driver do it."""
        return self._helpers[-1].ask()

    def close(self) -> None:
        """The driver first, then its servers."""
        for helper in reversed(self._helpers):
            helper.close()
        self._helpers.clear()


class Launch:
    """A variant whose run is a fresh process: how long until it is ready, and its memory then.

    What the process reports itself joins the metrics ``start_s`` and ``rss_bytes``.
    """

    def __init__(
        self,
        label: str,
        *,
        floor: bool,
        target: str,
        config: Mapping[str, Any],
        command: Sequence[str] | None = None,
    ) -> None:
        self.label = label
        self.floor = floor
        self._target = target
        self._config = dict(config)
        self._command = command
        self._helper: Helper | None = None

    def open(self) -> None:
        """Nothing: a run starts what it needs. One start beforehand fills the disk's cache."""
        self.run()

    def run(self) -> Metrics:
        """Start, hear, end."""
        self._config["port"] = free_port(["127.0.0.1"])
        config = {**self._config, "env": {**self._config.get("env", {}), **self._port_variable()}}
        started = time.perf_counter()
        self._helper = Helper(self._target, config, self._command)
        try:
            facts = self._helper.hear()
            start_s = time.perf_counter() - started
            return {"start_s": start_s, "rss_bytes": rss_bytes(self._helper.os_pid), **facts}
        finally:
            self.close()

    def close(self) -> None:
        """End what still runs."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def _port_variable(self) -> dict[str, str]:
        return {"FLEETLM_NODE_PORT": str(self._config["port"])}


class Crowd:
    """A variant in which several fresh processes begin together and all must finish.

    Each gets ``config`` with ``first`` and ``count``: which of the ``ips`` are its own.
    """

    def __init__(
        self, label: str, *, floor: bool, target: str, config: Mapping[str, Any], members: int, each: int
    ) -> None:
        self.label = label
        self.floor = floor
        self._target = target
        self._config = dict(config)
        self._members = members
        self._each = each
        self._helpers: list[Helper] = []

    def open(self) -> None:
        """Nothing: each run is a new crowd."""

    def run(self) -> Metrics:
        """Start all, say go to all, wait for the last."""
        ips = [f"127.0.0.{number + 1}" for number in range(self._members)]
        shared = {**self._config, "ips": ips, "port": free_port(ips)}
        try:
            for first in range(0, self._members, self._each):
                count = min(self._each, self._members - first)
                self._helpers.append(Helper(self._target, {**shared, "first": first, "count": count}))
            for helper in self._helpers:
                helper.hear()
            started = time.perf_counter()
            for helper in self._helpers:
                helper.tell("go")
            for helper in self._helpers:
                helper.hear()
            return {"formed_s": time.perf_counter() - started}
        finally:
            self.close()

    def close(self) -> None:
        """End all."""
        for helper in self._helpers:
            helper.close()
        self._helpers.clear()
