"""`fleetlm demo`: six nodes form a cluster, exchange messages, lose a node and a DNS server, and stop.

Everything is real: the nodes are operating system processes on 127.0.0.N, and the DNS server speaks DNS over
UDP and TCP. `Story` has one method for each step. It prints a line only after it has checked what the line
says. If a check fails, the demo prints what it expected and the ends of all logs, and exits with code 1.

No process outlives the demo: replicas are killed when it ends for whatever reason, and if the demo itself
is killed, each replica notices the end of its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fleetlm.cli.demo.replicas import POLL_MS, QUERY, DemoFailed, Replica, end_all, free_port, tail
from fleetlm.cli.demo.screen import Screen, Stopwatch, duration
from fleetlm.cli.demo.worker import HISTORY, WHO, WORKER, serve_on
from fleetlm.cli.logs import set_up
from fleetlm.errors import FleetError, NotDelivered
from fleetlm.messages import NodeDown, NodeUp
from fleetlm.node import Node
from fleetlm.process import Process
from fleetlm.settings import Settings
from fleetlm.testing.dns_server import DnsServer, Reply

T = TypeVar("T")

OWN_IP = "127.0.0.1"
REPLICA_IPS = tuple(f"127.0.0.{number}" for number in range(2, 7))
START_S = 10.0
"""Seconds for a process to start and its node to connect. A busy machine needs more than the usual 0.5."""
DOWN_S = 1.0
"""Seconds for a crash to be detected. It usually takes milliseconds."""
REPLY_S = 3.0
"""Seconds for a reply to a call or message."""
OUTAGE_S = 2.0
"""Seconds of each kind of DNS failure. Every node polls four times in it."""
WHOLE_S = 60.0
"""Seconds for the whole demo."""
TRAFFIC_PAUSE_S = 0.02
"""Seconds between two steady calls to one node."""
TRAFFIC_S = 0.5
"""Seconds of steady calls before and after a node is killed."""
PACE_S = 0.6
"""Seconds between two steps on a terminal, for people to read."""


def main() -> int:
    """Run the demo. Returns 0; 1 if a check failed; 130 or 143 if it was interrupted."""
    screen = Screen(sys.stdout)
    signals: list[int] = []
    try:
        return asyncio.run(_main(screen, signals))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.failed("interrupted; all processes were stopped")
        return 128 + (signals[0] if signals else signal.SIGINT)


async def _main(screen: Screen, signals: list[int]) -> int:
    """Run the story within `WHOLE_S`, and kill the replicas at the end. SIGTERM goes to ``signals``."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def terminated() -> None:
        signals.append(signal.SIGTERM)
        if task is not None:
            task.cancel()

    with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
        loop.add_signal_handler(signal.SIGTERM, terminated)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="fleetlm-demo-") as name, _redirect_log(Path(name)) as log:
        replicas: list[Replica] = []
        try:
            async with asyncio.timeout(WHOLE_S):
                calls = await _run_story(screen, Path(name), replicas)
        except (DemoFailed, FleetError, OSError, TimeoutError) as error:
            text = str(error) or f"the demo did not end within {WHOLE_S:g} s"
            screen.failed(text if isinstance(error, DemoFailed) else f"{type(error).__name__}: {text}")
            for replica in replicas:
                if lines := replica.log_tail():
                    screen.log(f"end of the log of {replica.name}:", lines)
            screen.log("end of the demo's own log:", tail(log))
            return 1
        finally:
            await end_all(replicas)
    screen.end(
        f"Done: {len(REPLICA_IPS) + 1} nodes, {duration(watch.s)}, {calls:,} steady calls, none failed.",
        "To start a node with your own program: DNS_CLUSTER_QUERY=my-service fleetlm start worker:main",
    )
    return 0


async def _run_story(screen: Screen, folder: Path, replicas: list[Replica]) -> int:
    """Start the DNS server and this program's node, and run all steps.

    Args:
        screen: where the steps are shown.
        folder: where replicas write their logs.
        replicas: filled with the replicas, for the caller to kill.

    Returns:
        The number of steady calls that were answered.
    """
    port = free_port((OWN_IP, *REPLICA_IPS))
    async with DnsServer() as dns:
        settings = Settings(
            dns_query=QUERY,
            node_ip=OWN_IP,
            node_ports=(port, port),
            dns_server=(dns.host, dns.port),
            poll_interval_s=POLL_MS / 1000,
            remote=False,
        )
        dns.set(QUERY, [OWN_IP])
        replicas.extend(Replica(ip, port, dns.address, folder) for ip in REPLICA_IPS)
        async with Node.start(settings) as node:
            screen.title(
                f"fleetlm demo: {len(REPLICA_IPS) + 1} nodes form a cluster on this machine",
                f"This program runs the node {node.name} and starts {len(REPLICA_IPS)} more, each in a\n"
                f"process of its own. They find each other through the DNS name {QUERY}:\n"
                f"each node asks the demo's DNS server at {dns.address} every {POLL_MS} ms.",
            )
            serve_on(node)
            story = Story(screen, node, dns, replicas)
            try:
                await story.run()
            finally:
                await story.close()
            return story.traffic.answered


@contextlib.contextmanager
def _redirect_log(folder: Path) -> Iterator[Path]:
    """Write the log of this program to a file, so that it can be shown if a check fails."""
    path = folder / "demo.log"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with path.open("w", encoding="utf-8") as stream:
        log = set_up("info", stream)
        try:
            yield path
        finally:
            log.close()
            root.handlers[:] = handlers
            root.setLevel(level)


class EventLog:
    """The nodeup and nodedown events of this program's node, and a way to wait for one."""

    def __init__(self, node: Node) -> None:
        self.seen: list[NodeUp | NodeDown] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read(node))

    async def wait(self, kind: type[NodeUp | NodeDown], name: str, since: int) -> NodeUp | NodeDown:
        """Wait for an event of this kind about a node, and return the first from index ``since`` on."""
        while True:
            for event in self.seen[since:]:
                if isinstance(event, kind) and event.node == name:
                    return event
            self._news.clear()
            await self._news.wait()

    def downs(self, since: int = 0) -> list[str]:
        """Return the names in the nodedown events from index ``since`` on."""
        return [event.node for event in self.seen[since:] if isinstance(event, NodeDown)]

    async def close(self) -> None:
        """Stop reading events."""
        await _cancel(self._task)

    async def _read(self, node: Node) -> None:
        async for event in node.events():
            if isinstance(event, NodeUp | NodeDown):
                self.seen.append(event)
                self._news.set()


class Traffic:
    """Steady calls to nodes that must not be affected by what happens to others."""

    def __init__(self, node: Node) -> None:
        self.answered: int = 0
        self.failures: list[str] = []
        self.slowest_s: float = 0.0
        self._node = node
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, names: list[str]) -> None:
        """Call each of these nodes repeatedly until `close`."""
        self._tasks += [asyncio.create_task(self._call_repeatedly(name)) for name in names]

    async def close(self) -> None:
        """Stop all calls."""
        for task in self._tasks:
            await _cancel(task)

    async def _call_repeatedly(self, name: str) -> None:
        """Send a new number each time, and note failures and wrong replies."""
        number = 0
        while True:
            number += 1
            watch = Stopwatch()
            try:
                reply = await self._node.call((WORKER, name), number, timeout=REPLY_S)
            except FleetError as error:
                self.failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                self.answered += 1
                if reply != number:
                    self.failures.append(f"{name} replied {reply!r} to {number!r}")
            self.slowest_s = max(self.slowest_s, watch.s)
            await asyncio.sleep(TRAFFIC_PAUSE_S)


class Story:
    """The steps of the demo. Each checks what it shows, and raises DemoFailed if a check fails."""

    def __init__(self, screen: Screen, node: Node, dns: DnsServer, replicas: list[Replica]) -> None:
        self.screen = screen
        self.node = node
        self.dns = dns
        self.replicas = replicas
        self.events: EventLog = EventLog(node)
        self.traffic: Traffic = Traffic(node)

    async def run(self) -> None:
        """Run all steps in order."""
        await self.start_replicas()
        await self.pause()
        await self.exchange_messages()
        await self.pause()
        await self.message_all()
        await self.pause()
        victim = self.replicas[2]
        self.traffic.start([replica.name for replica in self.replicas if replica is not victim])
        old = await self.kill(victim)
        await self.pause()
        await self.restart(victim, old)
        await self.pause()
        await self.fail_dns(victim)
        await self.pause()
        await self.stop_all()

    async def pause(self) -> None:
        """Wait `PACE_S` on a terminal, for people to read."""
        await asyncio.sleep(PACE_S if self.screen.colour else 0)

    async def close(self) -> None:
        """Stop the steady calls and the reading of events."""
        await self.traffic.close()
        await self.events.close()

    async def start_replicas(self) -> None:
        """Start the replicas one by one, until every node is connected to every other."""
        self.screen.step(
            f"Nodes 2 to {len(self.replicas) + 1} start and join the cluster, one after the other"
        )
        self.screen.detail("(Node.list() returns the nodes that this program is connected to)")
        for count, replica in enumerate(self.replicas, 1):
            watch = Stopwatch()
            await replica.start()
            self.dns.add(QUERY, replica.ip)
            await self._await_up(replica, 0)
            self.screen.fact(f"{replica.name} is connected (OS process {replica.os_pid})", watch.s)
            if len(self.node.list()) != count:
                raise DemoFailed(
                    f"{count} replicas are connected, but Node.list() returns {self.node.list()}"
                )
            self.screen.detail(f"Node.list() → {_shorten(self.node.list())}")
        watch = Stopwatch()
        all_names = {self.node.name, *(replica.name for replica in self.replicas)}
        await self._check_on_all("a full mesh", lambda name, seen, _lost: {name, *seen} == all_names)
        self.screen.fact("every node is connected to every other: a full mesh", watch.s)

    async def exchange_messages(self) -> None:
        """Send a message to a named process on each replica, which sends one back."""
        self.screen.step(f'Each node has a process named "{WORKER}": send it a message, and it answers')
        answers: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

        async def postbox(process: Process) -> None:
            async for message in process.mailbox:
                match message:
                    case ("hello back", str(name), int(os_pid)):
                        answers.put_nowait((name, os_pid))

        me = self.node.spawn(postbox, name="postbox")
        for replica in self.replicas:
            watch = Stopwatch()
            await self.node.send((WORKER, replica.name), ("hello", me))
            name, os_pid = await self._await_within(REPLY_S, f"an answer from {replica.name}", answers.get())
            if (name, os_pid) != (replica.name, replica.os_pid):
                raise DemoFailed(f"the answer of {replica.name} came from {name} (OS process {os_pid})")
            self.screen.fact(f'"hello" to {name}, "hello back" from OS process {os_pid}', watch.s)
        self.node.exit(me)

    async def message_all(self) -> None:
        """Send one request to all nodes, then one message to all."""
        names = [self.node.name, *self.node.list()]
        self.screen.step(f"One message goes to all {len(names)} nodes; it is encoded only once")
        watch = Stopwatch()
        replies = await self.node.multicall([(WORKER, name) for name in names], WHO, timeout=REPLY_S)
        took_s = watch.s
        bad = [reply for reply in replies if not isinstance(reply, dict)]
        if bad or [reply["node"] for reply in replies] != names:
            raise DemoFailed(f"multicall to {len(names)} nodes returned {replies!r}")
        self.screen.fact(f"multicall: called {len(names)} nodes and received {len(replies)} replies", took_s)
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def counter(process: Process) -> None:
            async for message in process.mailbox:
                answers.put_nowait(message[1])

        me = self.node.spawn(counter)
        watch = Stopwatch()
        sent = await self.node.broadcast(WORKER, ("hello", me))
        answered = {
            await self._await_within(REPLY_S, "an answer to a broadcast", answers.get()) for _ in names
        }
        took_s = watch.s
        if sent != len(names) or answered != set(names):
            raise DemoFailed(f"broadcast to {sent} nodes: {len(answered)} of {len(names)} answered")
        self.screen.fact(f"broadcast: sent to {sent} nodes and received {len(answered)} answers", took_s)
        self.node.exit(me)

    async def kill(self, victim: Replica) -> int:
        """Kill a replica with SIGKILL. Returns the incarnation that died."""
        self.screen.step(f"{victim.name} is killed (SIGKILL), while calls to the others continue")
        await asyncio.sleep(TRAFFIC_S)
        since = len(self.events.seen)
        watch = Stopwatch()
        await victim.kill()
        down = await self._await_within(
            DOWN_S, f"nodedown of {victim.name}", self.events.wait(NodeDown, victim.name, since)
        )
        self.screen.fact(f"this program was told that {victim.name} is down (nodedown)", watch.s)
        self.screen.detail(f"reason: {getattr(down, 'reason', '')}")
        self.screen.detail(f"Node.list() → {_shorten(self.node.list())}")
        try:
            await self.node.call((WORKER, victim.name), WHO, timeout=REPLY_S)
        except NotDelivered as error:
            self.screen.fact(f"a call to it fails with {type(error).__name__}: it was never executed")
        else:
            raise DemoFailed(f"{victim.name} was killed, but answers")
        await asyncio.sleep(TRAFFIC_S)
        await self._check_undisturbed([victim.name], since)
        return down.incarnation

    async def restart(self, victim: Replica, old: int) -> None:
        """Start a killed replica again: its address is the same, its incarnation is new."""
        self.screen.step(f"{victim.name} is started again at the same address")
        since = len(self.events.seen)
        watch = Stopwatch()
        await victim.start()
        up = await self._await_up(victim, since)
        if up.incarnation == old:
            raise DemoFailed(f"{victim.name} came back with its old incarnation {old:x}")
        self.screen.fact("it is connected again (nodeup)", watch.s)
        numbers = f"{up.incarnation:x} (was {old:x})"
        self.screen.detail(f"incarnation {numbers}, so peers can tell them apart")
        reply = await self.node.call((WORKER, victim.name), WHO, timeout=REPLY_S)
        if reply["os pid"] != victim.os_pid:
            raise DemoFailed(f"{victim.name} is OS process {reply['os pid']}, not {victim.os_pid}")
        self.screen.fact(f"it answers calls (OS process {victim.os_pid})")

    async def fail_dns(self, victim: Replica) -> None:
        """Let the DNS server fail in two ways, and check that no connection is lost."""
        self.screen.step("The DNS server fails, and connected nodes stay connected")
        since, before = len(self.events.seen), self.node.list()
        for reply, text in (
            (Reply.SERVFAIL, "answered with an error (SERVFAIL)"),
            (Reply.DROP, "not answered"),
        ):
            asked = self._count_queries()
            self.dns.behave(reply)
            await asyncio.sleep(OUTAGE_S)
            asked = self._count_queries() - asked
            if asked == 0:
                raise DemoFailed("no node asked the DNS server while it failed")
            self.screen.fact(f"{asked} queries were {text}", OUTAGE_S)
        self.dns.heal()
        if self.node.list() != before:
            raise DemoFailed(f"Node.list() returned {before} before, and now {self.node.list()}")
        await self._check_undisturbed([victim.name], since, here=[])
        self.screen.detail(f"Node.list() → {_shorten(self.node.list())}")

    async def stop_all(self) -> None:
        """Stop one replica, as when a service is scaled down, then the others."""
        self.screen.step("All nodes are stopped in order (SIGTERM)")
        await self.traffic.close()
        if self.traffic.failures:
            raise DemoFailed(f"a steady call failed: {self.traffic.failures[0]}")
        last = self.replicas[-1]
        since = len(self.events.seen)
        watch = Stopwatch()
        self.dns.remove(QUERY, last.ip)
        code = await last.stop()
        down = await self._await_within(
            DOWN_S, f"nodedown of {last.name}", self.events.wait(NodeDown, last.name, since)
        )
        reason = getattr(down, "reason", "")
        if code != 0 or not reason.startswith("left"):
            raise DemoFailed(
                f"{last.name} stopped with exit code {code}, and its nodedown has the reason {reason!r}"
            )
        self.screen.fact(f"{last.name} told the others that it stops ({reason})", watch.s)
        watch = Stopwatch()
        codes = await asyncio.gather(*(replica.stop() for replica in self.replicas[:-1]))
        if any(codes):
            raise DemoFailed(f"exit codes of the replicas: {codes}")
        self.screen.fact(f"the other {len(codes)} nodes stopped with exit code 0", watch.s)

    async def _await_up(self, replica: Replica, since: int) -> NodeUp | NodeDown:
        """Wait for the nodeup of a replica. Raises: DemoFailed if its process ends, or after `START_S`."""
        up = asyncio.create_task(self.events.wait(NodeUp, replica.name, since))
        watch = Stopwatch()
        while not up.done() and replica.exit_code is None and watch.s < START_S:
            await asyncio.wait({up}, timeout=0.05)
        if up.done():
            return up.result()
        await _cancel(up)
        if replica.exit_code is not None:
            raise DemoFailed(f"{replica.name} ended during its start with exit code {replica.exit_code}")
        raise DemoFailed(f"{replica.name} was not connected {START_S:g} s after its start")

    async def _check_undisturbed(self, lost: list[str], since: int, here: list[str] | None = None) -> None:
        """Check that no node has lost a peer except those in ``lost``, and that no steady call failed.

        Args:
            lost: peers that replicas may have lost since they started.
            since: index of the first event of this program's node to look at.
            here: peers that this program's node may have lost since then; ``lost`` by default.
        """
        if self.events.downs(since) != (lost if here is None else here):
            raise DemoFailed(f"{self.node.name} has lost {self.events.downs(since)}")
        await self._check_on_all(
            "no other node is lost", lambda name, _seen, gone: name in lost or gone == lost
        )
        if self.traffic.failures:
            raise DemoFailed(f"a steady call failed: {self.traffic.failures[0]}")
        self.screen.fact(
            f"the others stay connected: {self.traffic.answered:,} calls so far, none failed, "
            f"slowest {duration(self.traffic.slowest_s)}"
        )

    async def _check_on_all(self, what: str, holds: Callable[[str, list[str], list[str]], bool]) -> None:
        """Ask every connected node which nodes it sees and has lost, until ``holds`` is true for all."""
        views: dict[str, Any] = {}

        async def ask() -> None:
            while True:
                names = self.node.list()
                replies = await self.node.multicall(
                    [(WORKER, name) for name in names], HISTORY, timeout=REPLY_S
                )
                views.update(zip(names, replies, strict=True))
                if all(type(view) is tuple and holds(name, *view) for name, view in views.items()):
                    return
                views.clear()
                await asyncio.sleep(0.02)

        try:
            async with asyncio.timeout(REPLY_S):
                await ask()
        except TimeoutError:
            raise DemoFailed(f"{what}: not true within {REPLY_S:g} s; the nodes said: {views}") from None

    async def _await_within(self, limit_s: float, what: str, awaitable: Awaitable[T]) -> T:
        """Await something. Raises: DemoFailed after ``limit_s`` seconds, saying what did not happen."""
        try:
            async with asyncio.timeout(limit_s):
                return await awaitable
        except TimeoutError:
            raise DemoFailed(f"{what}: not within {limit_s:g} s") from None

    def _count_queries(self) -> int:
        return sum(self.dns.queries.values())


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. Raises what the task raised, except CancelledError."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _shorten(names: list[str]) -> str:
    """Format names as ``3 nodes: fleetlm@127.0.0.2 .3 .4``, since they differ in the last number only."""
    if not names:
        return "0 nodes"
    first, *others = names
    rest = "".join(f" .{name.rpartition('.')[2]}" for name in others)
    return f"{len(names)} node{'s' if others else ''}: {first}{rest}"
