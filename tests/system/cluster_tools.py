"""Clusters of real nodes, in the test's own process and in other processes.

    async with Fleet(dns=server) as fleet:
        here = await fleet.node(2)                     # a `Node` in this process
        there = await fleet.worker(3)                  # a process with one node
        await here.ready(1, 5.0)
        there.kill()
        down = await fleet.down(here, fleet.name(3))   # an `Event`, with its time

Each fleet has its own addresses in 127.0.0.0/8, so that nodes of different test processes do not connect.
Leaving the block ends every node and process of the fleet, stopped ones too, each by its own pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from fleetlm import Node, NodeUp, Process, Settings
from fleetlm.messages import NodeDown
from fleetlm.testing.dns_server import DnsServer
from tests.system import cluster_worker
from tests.system.cluster_worker import Flood, Sink

ROOT = Path(__file__).resolve().parents[2]
QUERY = "fleet.test."
PORT = 14_370
ANSWER_S = 60.0
EXIT_S = 10.0
LINE_BYTES = 16 << 20

_fleets = itertools.count(os.getpid() * 61)  # far from the numbers of other test processes


def clean_env() -> dict[str, str]:
    """Return the environment without the variables that configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}


@dataclass(frozen=True)
class Event:
    """A nodeup (``up``) or nodedown of ``node`` that node ``on`` reported at ``at`` (`time.monotonic`)."""

    up: bool
    on: str
    node: str
    incarnation: int
    reason: str
    at: float


class Worker:
    """A process that runs `cluster_worker`."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: list[Event], heard: asyncio.Condition
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.waiting = asyncio.Event()
        self.holding = asyncio.Event()
        self.incarnations: dict[str, int] = {}
        self.listening_at = 0.0
        self._log = log
        self._heard = heard
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            facts = json.loads(line)
            match facts.pop("kind"):
                case "waiting":
                    self.waiting.set()
                case "holding":
                    self.holding.set()
                case "answer":
                    self._answered(facts)
                case kind:
                    self._log.append(Event(up=kind == "up", **facts))
                    async with self._heard:
                        self._heard.notify_all()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(RuntimeError(f"worker {self.pid} has ended"))
                future.exception()  # mark it as retrieved: perhaps nothing awaits it

    def _answered(self, facts: dict[str, Any]) -> None:
        future = self._answers.pop(facts["to"])
        if future.done():
            return
        if "error" in facts:
            future.set_exception(RuntimeError(f"worker {self.pid}: {facts['error']}"))
        else:
            future.set_result(facts["value"])

    def submit(self, do: str, **arguments: Any) -> asyncio.Future[Any]:
        """Send a command to the worker; the future gets the answer."""
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"number": number, "do": do, "with": arguments}).encode() + b"\n")
        return future

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Run a command of `cluster_worker.Host` in the worker and return its answer."""
        return await asyncio.wait_for(self.submit(do, **arguments), ANSWER_S)

    async def start(self, *ips: str) -> None:
        """Start the worker's nodes."""
        await asyncio.wait_for(self.waiting.wait(), ANSWER_S)
        started = await self.ask("start", ips=ips)
        self.incarnations, self.listening_at = started["nodes"], started["at"]

    def kill(self) -> None:
        """Crash the worker with SIGKILL."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to this process only."""
        os.kill(self.pid, number)

    async def exit_code(self, timeout_s: float = EXIT_S) -> int:
        """Wait until the process has ended, and return its exit code."""
        return await asyncio.wait_for(self.process.wait(), timeout_s)

    async def end(self) -> None:
        """End the process in any state, also a stopped one."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
        await self.process.wait()
        await self._reader
        if self.process.stdin is not None:
            self.process.stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self.process.stdin.wait_closed()


class Fleet:
    """Nodes that can find each other and no other nodes.

    Args:
        dns: the server that resolves `QUERY`; None gives nodes the ``static`` addresses.
        static: numbers of the addresses that every node gets.
        prefix: put before every command, such as a command that enters a network namespace.
        subnet: the beginning of the addresses; the default is a subnet of 127.0.0.0/8 for this fleet.
        env: variables to add or replace.
    """

    def __init__(
        self,
        *,
        dns: DnsServer | None = None,
        static: Sequence[int] = (),
        prefix: Sequence[str] = (),
        subnet: str = "",
        **env: str,
    ) -> None:
        number = next(_fleets)
        self.subnet = subnet or f"127.{16 + number // 251 % 200}.{number % 251}."
        self._prefix = prefix
        self.env = {
            "DNS_CLUSTER_QUERY": QUERY if dns else ",".join(self.ip(each) for each in static),
            "DNS_POLL_INTERVAL_MS": "300",
            "FLEETLM_NODE_PORT": str(PORT),
            "FLEETLM_NODE_TIMEOUT_MS": "1500",
            "FLEETLM_REMOTE": "off",
            **({"FLEETLM_DNS_SERVER": dns.address} if dns else {}),
            **env,
        }
        self.log: list[Event] = []
        """Every nodeup and nodedown of every node, in the order in which they arrived here."""
        self.sinks: dict[str, Sink] = {}
        self._heard = asyncio.Condition()
        self._workers: list[Worker] = []
        self._nodes: list[Node] = []
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(worker.end() for worker in self._workers))
        await asyncio.gather(*(node.stop(drain_s=0) for node in self._nodes))
        await asyncio.gather(*self._watchers)

    def ip(self, number: int) -> str:
        """Return the address with that number."""
        return f"{self.subnet}{number}"

    def ips(self, *numbers: int) -> list[str]:
        """Return several addresses."""
        return [self.ip(number) for number in numbers]

    def name(self, number: int) -> str:
        """Return the name of the node at that address."""
        return f"fleetlm@{self.ip(number)}"

    async def waiting(self, loop: str = "asyncio", **env: str) -> Worker:
        """Start a process that imports everything and waits for `Worker.start`."""
        command = [*self._prefix, sys.executable, "-m", "tests.system.cluster_worker", "--loop", loop]
        worker = Worker(await self._spawned(command, env), self.log, self._heard)
        self._workers.append(worker)
        return worker

    async def worker(self, *numbers: int, loop: str = "asyncio", **env: str) -> Worker:
        """Start a process with one node for each number."""
        worker = await self.waiting(loop, **env)
        await worker.start(*self.ips(*numbers))
        return worker

    async def program(self, number: int, *arguments: str, **env: str | None) -> Worker:
        """Run ``fleetlm ARGUMENTS`` at an address; it must print nothing. A variable of None is unset."""
        command = [*self._prefix, sys.executable, "-m", "fleetlm", *arguments]
        process = await self._spawned(command, {"FLEETLM_NODE_IP": self.ip(number), **env})
        worker = Worker(process, self.log, self._heard)
        self._workers.append(worker)
        return worker

    async def _spawned(
        self, command: Sequence[str], changes: Mapping[str, str | None]
    ) -> asyncio.subprocess.Process:
        env = {**clean_env(), **self.env, "PYTHONPATH": str(ROOT), **changes}
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={name: value for name, value in env.items() if value is not None},
            limit=LINE_BYTES,
        )

    def settings(self, number: int, **env: str) -> Settings:
        """Return the settings of a node of this fleet."""
        return Settings.from_env({**self.env, "FLEETLM_NODE_IP": self.ip(number), **env})

    async def node(self, number: int, settings: Settings | None = None) -> Node:
        """Start a node in this process, with the same processes as in workers."""
        node = await Node.start(settings or self.settings(number))
        self._nodes.append(node)
        sink = self.sinks[node.name] = Sink(node.incarnation)
        node.spawn(cluster_worker.echo, name="echo")
        node.spawn(cluster_worker.slow, name="slow")
        node.spawn(sink.run, name="sink")
        self._watchers.append(asyncio.create_task(self._watch(node)))
        return node

    async def _watch(self, node: Node) -> None:
        async for event in node.events():
            if not isinstance(event, NodeUp | NodeDown):
                continue
            up = isinstance(event, NodeUp)
            reason = "" if isinstance(event, NodeUp) else event.reason
            self.log.append(Event(up, node.name, event.node, event.incarnation, reason, time.monotonic()))
            async with self._heard:
                self._heard.notify_all()

    @property
    def downs(self) -> list[Event]:
        """Every nodedown until now."""
        return [event for event in self.log if not event.up]

    async def event(self, fits: Callable[[Event], bool], timeout_s: float, since: float = 0.0) -> Event:
        """Wait for the first matching event since ``since`` (`time.monotonic`). Raises: TimeoutError."""
        seen = 0
        async with asyncio.timeout(timeout_s), self._heard:
            while True:
                while seen < len(self.log):
                    event = self.log[seen]
                    seen += 1
                    if event.at >= since and fits(event):
                        return event
                await self._heard.wait()

    async def down(self, on: Node | str, node: str, timeout_s: float = 10.0, since: float = 0.0) -> Event:
        """Wait for the nodedown of ``node`` on ``on``."""
        name = on if isinstance(on, str) else on.name
        return await self.event(
            lambda each: not each.up and (each.on, each.node) == (name, node), timeout_s, since
        )

    async def up(self, on: Node | str, node: str, timeout_s: float = 10.0, since: float = 0.0) -> Event:
        """Wait for the nodeup of ``node`` on ``on``."""
        name = on if isinstance(on, str) else on.name
        return await self.event(
            lambda each: each.up and (each.on, each.node) == (name, node), timeout_s, since
        )


async def until(holds: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds. Raises: TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def all_sunk(worker: Worker, sent: dict[str, int], timeout_s: float = 20.0) -> None:
    """Wait until these counts of each stream, and no other stream, arrived in order and without a gap."""
    async with asyncio.timeout(timeout_s):
        while (sunk := await worker.ask("sunk"))["next"] != sent:
            assert sunk["oddities"] == []
            assert sunk["next"].keys() <= sent.keys()
            await asyncio.sleep(0.05)
    assert sunk["oddities"] == []


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def never(process: Process) -> NoReturn:
    """A process that receives nothing."""
    await asyncio.Event().wait()
    raise AssertionError(process)


__all__ = [
    "QUERY",
    "Event",
    "Fleet",
    "Flood",
    "Worker",
    "all_sunk",
    "clean_env",
    "never",
    "quantile",
    "until",
]
