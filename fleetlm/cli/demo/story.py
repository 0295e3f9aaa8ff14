"""`fleetlm demo`: a cluster forms, talks, loses a node and a name server, and ends, on one machine.

Everything is real: the nodes are processes of the operating system on 127.0.0.N, the name server
speaks DNS, and each line that is shown was checked. Its story is told by `Story`, one method a step.
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
from fleetlm.cli.demo.worker import WORKER, serve_on
from fleetlm.cli.logs import set_up
from fleetlm.errors import FleetError, NotDelivered
from fleetlm.messages import NodeDown, NodeUp
from fleetlm.node import Node
from fleetlm.process import Process
from fleetlm.runtime.events import Event
from fleetlm.settings import Settings
from fleetlm.testing.dns_server import DnsServer, Reply

T = TypeVar("T")

OWN_IP = "127.0.0.1"
REPLICA_IPS = tuple(f"127.0.0.{number}" for number in range(2, 7))
START_S = 10.0
"""For a process to start and its node to be up: a busy machine is no failure."""
DOWN_S = 1.0
"""For a crash to be seen; usually it takes milliseconds."""
REPLY_S = 3.0
OUTAGE_S = 2.0
"""Of each kind: four polls of every node."""
WHOLE_S = 60.0
TRAFFIC_PAUSE_S = 0.02
TRAFFIC_S = 0.5
"""Of traffic before and after a node is killed."""
PACE_S = 0.6
"""Between two steps on a terminal, where somebody reads."""

WHO = "who are you?"
HISTORY = "whom did you see, and whom did you lose?"


def main() -> int:
    """Run the demo. Returns 0, 1 if an expectation was not met, 130 or 143 if it was interrupted."""
    screen = Screen(sys.stdout)
    signals: list[int] = []
    try:
        return asyncio.run(_main(screen, signals))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.failed("interrupted; every process was ended")
        return 128 + (signals[0] if signals else signal.SIGINT)


async def _main(screen: Screen, signals: list[int]) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def terminated() -> None:
        signals.append(signal.SIGTERM)
        if task is not None:
            task.cancel()

    with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
        loop.add_signal_handler(signal.SIGTERM, terminated)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="fleetlm-demo-") as name, _own_log(Path(name)) as log:
        replicas: list[Replica] = []
        try:
            async with asyncio.timeout(WHOLE_S):
                calls = await _tell(screen, Path(name), replicas)
        except (DemoFailed, FleetError, OSError, TimeoutError) as error:
            text = str(error) or f"not done within {WHOLE_S:g} s"
            screen.failed(text if isinstance(error, DemoFailed) else f"{type(error).__name__}: {text}")
            for replica in replicas:
                if lines := replica.log_tail():
                    screen.log(f"the end of the log of {replica.name}:", lines)
            screen.log("the end of the demo's own log:", tail(log))
            return 1
        finally:
            await end_all(replicas)
    screen.end(
        f"That was a cluster of {len(REPLICA_IPS) + 1} nodes in {duration(watch.s)}: "
        f"{calls:,} calls, none failed.",
        "Your own: DNS_CLUSTER_QUERY=my-service fleetlm start worker:main",
    )
    return 0


async def _tell(screen: Screen, folder: Path, replicas: list[Replica]) -> int:
    """The whole story. Returns how many calls of the steady traffic were answered."""
    port = free_port((OWN_IP, *REPLICA_IPS))
    async with DnsServer() as dns:
        settings = Settings(
            dns_query=QUERY,
            node_ip=OWN_IP,
            node_port=port,
            dns_server=(dns.host, dns.port),
            poll_interval_s=POLL_MS / 1000,
            remote=False,
        )
        dns.set(QUERY, [OWN_IP])
        replicas.extend(Replica(ip, port, dns.address, folder) for ip in REPLICA_IPS)
        async with Node.start(settings) as node:
            screen.title(
                "fleetlm demo: a cluster on this machine",
                f"{node.name} is this program; its peers are the addresses of the DNS name\n"
                f"{QUERY}, asked of a name server on {dns.address} every {POLL_MS} ms.",
            )
            serve_on(node)
            story = Story(screen, node, dns, replicas)
            try:
                await story.tell()
            finally:
                await story.close()
            return story.traffic.answered


@contextlib.contextmanager
def _own_log(folder: Path) -> Iterator[Path]:
    """The log of this program goes to a file, to be shown if something fails."""
    path = folder / "demo.log"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with path.open("w", encoding="utf-8") as stream:
        set_up("info", stream)
        try:
            yield path
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


class Watch:
    """What this node has seen come and go, and a way to wait for it."""

    def __init__(self, node: Node) -> None:
        self.seen: list[Event] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read(node))

    async def wait(self, kind: type[Event], name: str, since: int) -> Event:
        """The first such event from index ``since`` on."""
        while True:
            for event in self.seen[since:]:
                if isinstance(event, kind) and event.node == name:
                    return event
            self._news.clear()
            await self._news.wait()

    def downs(self, since: int = 0) -> list[str]:
        """Who went down."""
        return [event.node for event in self.seen[since:] if isinstance(event, NodeDown)]

    async def close(self) -> None:
        """Watch no more."""
        await _cancelled(self._task)

    async def _read(self, node: Node) -> None:
        async for event in node.events():
            self.seen.append(event)
            self._news.set()


class Traffic:
    """Steady calls to nodes that nothing should disturb."""

    def __init__(self, node: Node) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self.slowest_s = 0.0
        self._node = node
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, names: list[str]) -> None:
        """Call each of these nodes again and again."""
        self._tasks += [asyncio.create_task(self._call(name)) for name in names]

    async def close(self) -> None:
        """Stop calling."""
        for task in self._tasks:
            await _cancelled(task)

    async def _call(self, name: str) -> None:
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
    """The steps, in order; each checks what it shows and raises DemoFailed."""

    def __init__(self, screen: Screen, node: Node, dns: DnsServer, replicas: list[Replica]) -> None:
        self.screen = screen
        self.node = node
        self.dns = dns
        self.replicas = replicas
        self.watch = Watch(node)
        self.traffic = Traffic(node)

    async def tell(self) -> None:
        """All of it."""
        await self.grow()
        await self.pause()
        await self.letters()
        await self.pause()
        await self.fan_out()
        await self.pause()
        victim = self.replicas[2]
        self.traffic.start([replica.name for replica in self.replicas if replica is not victim])
        old = await self.kill(victim)
        await self.pause()
        await self.restart(victim, old)
        await self.pause()
        await self.outage(victim)
        await self.pause()
        await self.leave()

    async def pause(self) -> None:
        """Let a reader read, if there is one."""
        await asyncio.sleep(PACE_S if self.screen.colour else 0)

    async def close(self) -> None:
        """End what runs beside the story."""
        await self.traffic.close()
        await self.watch.close()

    async def grow(self) -> None:
        """Replicas start one by one; then everybody is connected with everybody."""
        self.screen.step(f"Replicas start, each named by DNS as {QUERY}")
        for count, replica in enumerate(self.replicas, 1):
            watch = Stopwatch()
            await replica.start()
            self.dns.add(QUERY, replica.ip)
            await self._up(replica, 0)
            self.screen.fact(f"{replica.name} started (OS pid {replica.os_pid}), node up", watch.s)
            if len(self.node.list()) != count:
                raise DemoFailed(f"{count} replicas are up, but Node.list() is {self.node.list()}")
            self.screen.detail(f"Node.list() → {_short(self.node.list())}")
        watch = Stopwatch()
        everybody = {self.node.name, *(replica.name for replica in self.replicas)}
        await self._expect_on_all("a full mesh", lambda name, seen, _lost: {name, *seen} == everybody)
        self.screen.fact("each of them lists the other five: a full mesh", watch.s)

    async def letters(self) -> None:
        """A message to a named process on each other node; each sends one back."""
        self.screen.step(f'A message to the process "{WORKER}" on each node, and its answer')
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
            name, os_pid = await self._within(REPLY_S, f"an answer of {replica.name}", answers.get())
            if (name, os_pid) != (replica.name, replica.os_pid):
                raise DemoFailed(f"the answer of {replica.name} came from {name} (OS pid {os_pid})")
            self.screen.fact(f'"hello" → {name} → "hello back" from OS pid {os_pid}', watch.s)
        self.node.exit(me)

    async def fan_out(self) -> None:
        """One request to all, one message to all."""
        names = [self.node.name, *self.node.list()]
        self.screen.step("Fan-out: one message to all nodes, encoded once")
        watch = Stopwatch()
        replies = await self.node.multicall([(WORKER, name) for name in names], WHO, timeout=REPLY_S)
        took_s = watch.s
        bad = [reply for reply in replies if not isinstance(reply, dict)]
        if bad or [reply["node"] for reply in replies] != names:
            raise DemoFailed(f"multicall to {len(names)} nodes brought {replies!r}")
        self.screen.fact(f"multicall: {len(replies)} replies, in the order of the targets", took_s)
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def counter(process: Process) -> None:
            async for message in process.mailbox:
                answers.put_nowait(message[1])

        me = self.node.spawn(counter)
        watch = Stopwatch()
        sent = await self.node.broadcast(WORKER, ("hello", me))
        heard = {await self._within(REPLY_S, "an answer to a broadcast", answers.get()) for _ in names}
        took_s = watch.s
        if sent != len(names) or heard != set(names):
            raise DemoFailed(f"broadcast to {sent} nodes, and {len(heard)} of {len(names)} answered")
        self.screen.fact(f"broadcast: sent to {sent} nodes, {len(heard)} answered", took_s)
        self.node.exit(me)

    async def kill(self, victim: Replica) -> int:
        """SIGKILL. Returns the incarnation that died."""
        self.screen.step(f"{victim.name} is killed with SIGKILL; calls to the others go on")
        await asyncio.sleep(TRAFFIC_S)
        since = len(self.watch.seen)
        watch = Stopwatch()
        await victim.kill()
        down = await self._within(
            DOWN_S, f"nodedown of {victim.name}", self.watch.wait(NodeDown, victim.name, since)
        )
        self.screen.fact(f"nodedown {victim.name}", watch.s)
        self.screen.detail(f"reason: {getattr(down, 'reason', '')}")
        self.screen.detail(f"Node.list() → {_short(self.node.list())}")
        try:
            await self.node.call((WORKER, victim.name), WHO, timeout=REPLY_S)
        except NotDelivered as error:
            self.screen.fact(f"a call to it now raises {type(error).__name__}: it never ran")
        else:
            raise DemoFailed(f"{victim.name} was killed, and answers")
        await asyncio.sleep(TRAFFIC_S)
        await self._undisturbed([victim.name], since)
        return down.incarnation

    async def restart(self, victim: Replica, old: int) -> None:
        """The same address, another incarnation."""
        self.screen.step(f"It is started again on the same address, {victim.ip}")
        since = len(self.watch.seen)
        watch = Stopwatch()
        await victim.start()
        up = await self._up(victim, since)
        if up.incarnation == old:
            raise DemoFailed(f"{victim.name} came back with its old incarnation {old:x}")
        self.screen.fact(f"nodeup: a new incarnation, {up.incarnation:x} (was {old:x})", watch.s)
        reply = await self.node.call((WORKER, victim.name), WHO, timeout=REPLY_S)
        if reply["os pid"] != victim.os_pid:
            raise DemoFailed(f"OS pid {reply['os pid']} answers at {victim.name}, not {victim.os_pid}")
        self.screen.fact(f"it answers, as OS pid {victim.os_pid}")

    async def outage(self, victim: Replica) -> None:
        """The name server fails in two ways, and nobody is lost."""
        self.screen.step("The name server fails; connected nodes stay connected")
        since, before = len(self.watch.seen), self.node.list()
        for reply, text in ((Reply.SERVFAIL, "SERVFAIL"), (Reply.DROP, "silence")):
            asked = self._queries()
            self.dns.behave(reply)
            await asyncio.sleep(OUTAGE_S)
            asked = self._queries() - asked
            if asked == 0:
                raise DemoFailed("nobody asked the name server during its outage")
            self.screen.fact(f"{text} to {asked} queries", OUTAGE_S)
        self.dns.heal()
        if self.node.list() != before:
            raise DemoFailed(f"Node.list() was {before}, and is {self.node.list()}")
        await self._undisturbed([victim.name], since, here=[])
        self.screen.detail(f"Node.list() → {_short(self.node.list())}")

    async def leave(self) -> None:
        """One replica is scaled away, then all end."""
        self.screen.step("The end, in order: SIGTERM")
        await self.traffic.close()
        if self.traffic.failures:
            raise DemoFailed(f"steady traffic failed: {self.traffic.failures[0]}")
        last = self.replicas[-1]
        since = len(self.watch.seen)
        watch = Stopwatch()
        self.dns.remove(QUERY, last.ip)
        code = await last.stop()
        down = await self._within(
            DOWN_S, f"nodedown of {last.name}", self.watch.wait(NodeDown, last.name, since)
        )
        reason = getattr(down, "reason", "")
        if code != 0 or not reason.startswith("left"):
            raise DemoFailed(f"{last.name} left with exit code {code}, nodedown {reason!r}")
        self.screen.fact(f"{last.name} says goodbye: nodedown, {reason}", watch.s)
        watch = Stopwatch()
        codes = await asyncio.gather(*(replica.stop() for replica in self.replicas[:-1]))
        if any(codes):
            raise DemoFailed(f"exit codes of the replicas: {codes}")
        self.screen.fact(f"the other {len(codes)} replicas ended with exit code 0", watch.s)

    # How.

    async def _up(self, replica: Replica, since: int) -> Event:
        """The nodeup of a replica, unless its process ends before. Raises: DemoFailed."""
        up = asyncio.create_task(self.watch.wait(NodeUp, replica.name, since))
        watch = Stopwatch()
        while not up.done() and replica.exit_code is None and watch.s < START_S:
            await asyncio.wait({up}, timeout=0.05)
        if up.done():
            return up.result()
        await _cancelled(up)
        if replica.exit_code is not None:
            raise DemoFailed(f"{replica.name} ended with exit code {replica.exit_code} as it started")
        raise DemoFailed(f"{replica.name} was not up {START_S:g} s after its start")

    async def _undisturbed(self, lost: list[str], since: int, here: list[str] | None = None) -> None:
        """Nobody has lost anybody but ``lost``, and no call of the steady traffic failed."""
        if self.watch.downs(since) != (lost if here is None else here):
            raise DemoFailed(f"nodedown on {self.node.name}: {self.watch.downs(since)}")
        await self._expect_on_all(
            "the others are undisturbed", lambda name, _seen, gone: name in lost or gone == lost
        )
        if self.traffic.failures:
            raise DemoFailed(f"steady traffic failed: {self.traffic.failures[0]}")
        self.screen.fact(
            f"the others are undisturbed: {self.traffic.answered} calls, none failed, "
            f"slowest {duration(self.traffic.slowest_s)}"
        )

    async def _expect_on_all(self, what: str, holds: Callable[[str, list[str], list[str]], bool]) -> None:
        """Ask every connected node for its view, until ``holds(name, seen, lost)`` on all."""
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
            raise DemoFailed(f"{what}: not within {REPLY_S:g} s; last seen: {views}") from None

    async def _within(self, limit_s: float, what: str, awaitable: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await awaitable
        except TimeoutError:
            raise DemoFailed(f"{what}: not within {limit_s:g} s") from None

    def _queries(self) -> int:
        return sum(self.dns.queries.values())


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; its own failure is raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _short(names: list[str]) -> str:
    """``5 nodes: …@127.0.0.2 .3 .4``: the names of a demo differ in their last number."""
    if not names:
        return "0 nodes"
    first, *others = names
    rest = "".join(f" .{name.rpartition('.')[2]}" for name in others)
    return f"{len(names)} node{'s' if others else ''}: {first}{rest}"
