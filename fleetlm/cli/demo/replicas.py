"""The processes of `fleetlm demo`: replicas, their addresses and logs, and a free port for all of them."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from fleetlm.cli.demo.worker import main as worker_main

QUERY = "fleet.demo"
"""The DNS name of the demo's cluster."""
POLL_MS = 500
"""Milliseconds between two DNS lookups of a node."""
STOP_S = 5.0
"""Seconds for a replica to stop in order."""
LOG_TAIL_LINES = 12
"""Lines of a log that are shown after a failure."""
_LOG_TAIL_BYTES = 16 * 1024
_PORTS = range(20_000, 32_000)
"""Below the ephemeral ports of every system, so that no outgoing connection takes the port meanwhile."""
_PORT_TRIES = 50
_SETTING_PREFIXES = ("FLEETLM_", "DNS_CLUSTER_", "DNS_POLL_")
_PLATFORM_SETTINGS = ("FLY_PRIVATE_IP", "POD_IP")


class DemoFailed(Exception):
    """A check of the demo failed; the text says which."""


def free_port(ips: Sequence[str]) -> int:
    """Return a port that is free on each of these addresses.

    Raises:
        DemoFailed: this machine does not have an address, or no free port was found.
    """
    ports = random.sample(_PORTS, _PORT_TRIES)
    for port in ports:
        if all(_is_free(ip, port) for ip in ips):
            return port
    raise DemoFailed(f"none of {len(ports)} ports is free on all of {', '.join(ips)}")


def _is_free(ip: str, port: int) -> bool:
    """Whether a port can be bound. Raises: DemoFailed if this machine does not have the address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
            probe.listen(1)
        except OSError as error:
            # The errno does not say on every system whether the port or the address is the reason.
            with socket.socket() as other:
                try:
                    other.bind((ip, 0))
                except OSError:
                    raise DemoFailed(_explain_missing_address(ip, error)) from None
            return False
    return True


def _explain_missing_address(ip: str, error: OSError) -> str:
    """Return a text that says how to get the address."""
    if sys.platform == "darwin":
        return (
            f"{ip} is not an address of this machine: macOS has 127.0.0.1 only. Add the others with:\n"
            "  for n in 2 3 4 5 6; do sudo ifconfig lo0 alias 127.0.0.$n up; done"
        )
    return f"{ip} cannot be bound ({error.strerror}); the demo needs 127.0.0.1 to 127.0.0.6"


class Replica:
    """One operating system process that runs a node at an address of its own.

    Args:
        ip: the node's address.
        port: the port of all nodes of the demo.
        dns: ``ip:port`` of the demo's DNS server.
        folder: where its log is written. A restart appends to it.
    """

    def __init__(self, ip: str, port: int, dns: str, folder: Path) -> None:
        self.ip = ip
        self.name: str = f"fleetlm@{ip}"
        self.log: Path = folder / f"{ip}.log"
        self._variables = {
            "DNS_CLUSTER_QUERY": QUERY,
            "DNS_POLL_INTERVAL_MS": str(POLL_MS),
            "FLEETLM_NODE_IP": ip,
            "FLEETLM_NODE_PORT": str(port),
            "FLEETLM_DNS_SERVER": dns,
            "FLEETLM_REMOTE": "off",
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def os_pid(self) -> int:
        """Process id of the process started last; 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process started last; None while it runs and before the first start."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process. This returns at once, before the node is connected."""
        env = {name: value for name, value in os.environ.items() if not _is_setting(name)} | self._variables
        target = f"{worker_main.__module__}:{worker_main.__name__}"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fleetlm", "start", target),
                stdin=asyncio.subprocess.PIPE,  # its end tells the replica that the demo is gone
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,  # the terminal sends Ctrl-C to the demo only
            )

    async def kill(self) -> None:
        """Kill the process with SIGKILL, as the kernel does when memory runs out, unless it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._wait(self._process)

    async def stop(self) -> int:
        """Send SIGTERM and wait. Returns the exit code. Raises: DemoFailed if it takes over `STOP_S`."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await self._wait(process)
        except TimeoutError:
            raise DemoFailed(f"{self.name} did not stop within {STOP_S:g} s of SIGTERM") from None

    def log_tail(self) -> list[str]:
        """Return the last lines of its log."""
        return tail(self.log)

    async def _wait(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the end of a process, and close its stdin. Returns the exit code."""
        code = await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        return code


async def end_all(replicas: Sequence[Replica]) -> None:
    """Kill the replicas that still run. All get their signal before the first is waited for."""
    await asyncio.gather(*(replica.kill() for replica in replicas))


def tail(path: Path) -> list[str]:
    """Return the last `LOG_TAIL_LINES` lines of a log; none if the file does not exist."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-LOG_TAIL_LINES:]


def _is_setting(variable: str) -> bool:
    """Whether an environment variable would change the settings of a replica."""
    return variable.startswith(_SETTING_PREFIXES) or variable in _PLATFORM_SETTINGS
