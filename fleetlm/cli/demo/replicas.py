"""The operating system's side of `fleetlm demo`: addresses, a port, and the replicas' processes."""

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
POLL_MS = 500
STOP_S = 5.0
"""For a replica to leave in order."""
LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 16 * 1024
_PORTS = range(20_000, 32_000)
"""Below the ephemeral ports of every system: no outgoing connection takes one between our two looks."""
_PORT_TRIES = 50
_OURS = ("FLEETLM_", "DNS_CLUSTER_", "DNS_POLL_")
_PLATFORM = ("FLY_PRIVATE_IP", "POD_IP")


class DemoFailed(Exception):
    """An expectation was not met; the text says which."""


def free_port(ips: Sequence[str]) -> int:
    """A port that is free on every one of these addresses.

    Raises:
        DemoFailed: an address is not of this machine, or no port was found.
    """
    ports = random.sample(_PORTS, _PORT_TRIES)
    for port in ports:
        if all(_is_free(ip, port) for ip in ips):
            return port
    raise DemoFailed(f"none of {len(ports)} ports is free on all of {', '.join(ips)}")


def _is_free(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
            probe.listen(1)
        except OSError as error:
            # EADDRNOTAVAIL has another number on each system; that of a port in use is the usual one.
            with socket.socket() as other:
                try:
                    other.bind((ip, 0))
                except OSError:
                    raise DemoFailed(_no_address(ip, error)) from None
            return False
    return True


def _no_address(ip: str, error: OSError) -> str:
    if sys.platform == "darwin":
        return (
            f"{ip} is not an address of this machine: macOS has 127.0.0.1 only. Add the others with\n"
            "  for n in 2 3 4 5 6; do sudo ifconfig lo0 alias 127.0.0.$n up; done"
        )
    return f"{ip} cannot be bound ({error.strerror}); the demo needs 127.0.0.1 to 127.0.0.6"


class Replica:
    """One worker: a process of the operating system that runs a node on an address of its own.

    Args:
        ip: its address.
        port: the port of every node of the demo.
        dns: ``ip:port`` of the demo's name server.
        folder: where its log goes, appended over restarts.
    """

    def __init__(self, ip: str, port: int, dns: str, folder: Path) -> None:
        self.ip = ip
        self.name = f"fleetlm@{ip}"
        self.log = folder / f"{ip}.log"
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
        """Of the process started last."""
        return 0 if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it did."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it; returns at once, long before the node is up."""
        env = {name: value for name, value in os.environ.items() if not _is_ours(name)} | self._variables
        target = f"{worker_main.__module__}:{worker_main.__name__}"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fleetlm", "start", target),
                stdin=asyncio.subprocess.PIPE,  # whose end tells it that we are gone, even by SIGKILL
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
            )

    async def kill(self) -> None:
        """SIGKILL, as the kernel does it when memory runs out."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._ended(self._process)

    async def stop(self) -> int:
        """SIGTERM, and wait. Returns the exit code. Raises: DemoFailed if it does not end."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await self._ended(process)
        except TimeoutError:
            raise DemoFailed(f"{self.name} did not end within {STOP_S:g} s after SIGTERM") from None

    def log_tail(self) -> list[str]:
        """The last lines that it logged."""
        return tail(self.log)

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        return code


async def end_all(replicas: Sequence[Replica]) -> None:
    """Kill what still runs, by pid: every one gets its signal before the first is waited for."""
    await asyncio.gather(*(replica.kill() for replica in replicas))


def tail(path: Path) -> list[str]:
    """The last lines of a log; none if there is no such file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-LOG_TAIL_LINES:]


def _is_ours(variable: str) -> bool:
    return variable.startswith(_OURS) or variable in _PLATFORM
