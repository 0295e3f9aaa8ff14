"""Web servers whose worker processes are nodes on one address, and a node that watches them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from fleetlm import FleetError, Node, NotDelivered, OutcomeUnknown, Settings
from fleetlm.cli.demo.replicas import free_port
from tests.support.patience import stretched
from tests.system.cluster_tools import ROOT, clean_env
from tests.system.served_app import GROUP, Inbox

EXAMPLES = ROOT / "examples" / "several_nodes"
BIN = Path(sys.executable).parent
START_S = 15.0
PORTS = 16
"""Of the range that the nodes of one server share."""


def environment(ip: str, first_port: int) -> dict[str, str]:
    """Return the environment of nodes that share an address and know no other one."""
    return clean_env() | {
        "PYTHONPATH": str(ROOT),
        "FLEETLM_NODE_IP": ip,
        "DNS_CLUSTER_QUERY": ip,
        "FLEETLM_NODE_PORT": f"{first_port}-{first_port + PORTS - 1}",
        "FLEETLM_REMOTE": "off",
    }


class Server:
    """A web server in a session of its own."""

    def __init__(
        self, command: Sequence[str], port: int, env: dict[str, str], log: Path, cwd: Path = EXAMPLES
    ) -> None:
        self.port = port
        self.env = env
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command],
                cwd=cwd,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self) -> Any:
        """Ask for the page, and return the JSON in it. Raises: OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as page:
            return json.load(page)

    def eventually(self, count: int, other_than: Collection[int] = ()) -> Any:
        """Ask until a worker answers that knows of ``count`` workers, and return its answer.

        Args:
            count: how many.
            other_than: processes that must be gone.
        """
        deadline = time.monotonic() + stretched(START_S)
        answer: dict[str, Any] = {"everyone": []}
        gone = set(other_than)
        while len(answer["everyone"]) != count or not gone.isdisjoint(pid for _, pid in answer["everyone"]):
            assert time.monotonic() < deadline, (answer, self.log())
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(OSError):
                answer = self.get()
            time.sleep(0.02)
        return answer

    def log(self) -> str:
        """Return what the server has written."""
        return self._log.read_text(encoding="utf-8")

    def stop(self) -> str:
        """Stop the server by SIGTERM, and return its log."""
        self.process.terminate()
        self.process.wait(stretched(START_S))
        return self.log()

    def end(self) -> None:
        """End the server and its workers, whatever their state."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def served(command: str, ip: str, folder: Path, cwd: Path = EXAMPLES, **env: str) -> Iterator[Server]:
    """Start a server in a folder; ``{port}`` in its command is replaced by a free port for HTTP."""
    port = free_port(["127.0.0.1"])
    program, *arguments = command.format(port=port).split()
    environ = environment(ip, 14_370) | env
    server = Server([str(BIN / program), *arguments], port, environ, folder / "server.log", cwd)
    try:
        yield server
    finally:
        server.end()


class Watcher:
    """A node on the same address that sends to the inboxes of all workers without a pause.

    Each message is addressed to the process of one incarnation and says which. Whoever takes another one's is
    found in `Inbox.state`.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.answered = 0
        self.refused = 0
        self.unknown = 0

    async def send_on(self) -> None:
        """Call every inbox that was ever known, again and again, those of dead workers too."""
        ever: dict[Any, None] = {}
        while True:
            ever.update(dict.fromkeys(self.node.groups.members(GROUP)))
            recent = list(ever)[-8:]
            await asyncio.gather(*(self._call(pid) for pid in recent))
            await asyncio.sleep(0.001)

    async def _call(self, pid: Any) -> None:
        try:
            await self.node.ref(Inbox, pid).within(2).call(Inbox.take, pid.incarnation)
        except NotDelivered:
            self.refused += 1
        except OutcomeUnknown:
            self.unknown += 1
        else:
            self.answered += 1

    async def complete(self, workers: int, without: int = 0) -> dict[int, Any]:
        """Wait until the workers are there, know each other and this node, and none is process ``without``.

        Returns:
            For each process its `Inbox.state`.
        """
        inboxes = self.node.groups.refs(Inbox, GROUP).within(2)
        async with asyncio.timeout(stretched(START_S)):
            while True:
                states = [
                    each for each in await inboxes.multicall(Inbox.state) if not isinstance(each, FleetError)
                ]
                if len(states) == workers and all(len(peers) == workers for *_, peers in states):
                    found = {state[0]: state for state in states}
                    if without not in found:
                        return found
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def watching(env: dict[str, str]) -> AsyncIterator[Watcher]:
    """Start a node beside the workers, which sends to them all the time."""
    async with Node.start(Settings.from_env(env)) as node:
        watcher = Watcher(node)
        sending = asyncio.create_task(watcher.send_on())
        try:
            yield watcher
        finally:
            sending.cancel()


async def kill_workers(rounds: int, ip: str, folder: Path, workers: int = 4) -> Watcher:
    """Kill a worker of gunicorn ``rounds`` times, each time when the mesh is complete again.

    Raises:
        AssertionError: a message has reached a process that it was not meant for.
        TimeoutError: the mesh was not complete in time.
    """
    command = f"gunicorn --preload -w {workers} -k asgi -b 127.0.0.1:{{port}} tests.system.served_app:app"
    with served(command, ip, folder) as server:
        async with watching(server.env) as watcher:
            states = await watcher.complete(workers)
            for number in range(rounds):
                victim = sorted(states)[number % workers]
                os.kill(victim, signal.SIGKILL)
                states = await watcher.complete(workers, without=victim)
                assert [state for state in states.values() if state[2]] == [], "a message for another process"
            return watcher
