"""Plays a scenario on fleetlm: two simulated nodes, puppets as process functions, virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleetlm import (
    Address,
    Call,
    CallTimeout,
    Child,
    Crash,
    Down,
    Exit,
    NoConnection,
    Node,
    NodeLost,
    NoProcess,
    Pid,
    Process,
    ProcessDown,
    ProcessExit,
    Ref,
    RemoteError,
    Supervisor,
    WouldBlock,
)
from fleetlm.core.restarts import Strategy
from fleetlm.testing import SimCluster, run
from fleetlm.testing.cluster import SETTINGS
from tests.conformance.script import Step, commands

SETTLE_S = 0.3
"""Less than any pause in a scenario; more than a message or a second restart takes."""
LOST_S = 30.0
AWAY = "fleetlm@10.0.0.99"
SLOW_S = 5.5
LOSSES = ("partition", "disconnect")
"""Two ways to lose a connection; the outcome is the same."""


class ScriptError(AssertionError):
    """The scenario asks for what cannot be done."""


class Order:
    """What a puppet is told to do."""

    def __init__(self, parts: list[Step]) -> None:
        self.parts = parts
        self.done = asyncio.Event()


Verb = Callable[["Puppet", Step], Awaitable[None]]
Members = Callable[["Stage", str, str], None]


@dataclass(frozen=True)
class Extra:
    """What a part of the library that has a module of its own adds to the language."""

    verbs: Mapping[str, Verb]
    members: Members


class Stage:
    """One scenario: its nodes, its puppets, and what they saw."""

    def __init__(self, cluster: SimCluster, loss: str, extra: Extra | None = None) -> None:
        self.cluster = cluster
        self.loss = loss
        self.verbs = {**VERBS, **(extra.verbs if extra else {})}
        self._members = extra.members if extra else None
        self.nodes: dict[str, Node] = {}
        self.pids: dict[str, Pid] = {}
        self.labels: dict[Pid, str] = {}
        self.trees: dict[str, Supervisor] = {}
        self.events: dict[str, list[str]] = {}
        self._watchers: dict[str, Process] = {}
        self.lost: set[Pid] = set()
        """Of a node that crashed: nobody can see what becomes of them."""
        self.unordered = False

    async def play(self, steps: list[Step]) -> list[str]:
        """The outcome."""
        here, there = await self.cluster.start(2)
        self.nodes = {"here": here, "there": there}
        here.spawn(self._watch)
        there.spawn(self._watch)
        await self.cluster.mesh(timeout=10)
        for step in [*steps, ["settle"]]:
            await self._step(step)
        return self._outcome()

    def note(self, label: str, text: str) -> None:
        """Something was seen."""
        self.events.setdefault(label, []).append(text)

    def born(self, label: str, pid: Pid) -> None:
        """A label has a process, and the director watches how it ends."""
        self.pids[label] = pid
        self.labels[pid] = label
        self.events.setdefault(label, [])
        self._watchers[pid.node].monitor(pid)

    def place(self, word: str) -> str:
        """The node of that name."""
        return AWAY if word == "away" else self.nodes[word].name

    def who(self, word: str, me: Process | None = None) -> Pid:
        """The process under a label."""
        return me.pid if word == "me" and me is not None else self.pids[word]

    def target(self, word: str, me: Process) -> Pid | tuple[str, str]:
        """A process, or a name on a node."""
        if not word.startswith("name:"):
            return self.who(word, me)
        name, _, place = word.removeprefix("name:").partition("@")
        return name, self.place(place)

    def shown(self, target: Pid | Address) -> str:
        """A target as the scenario writes it."""
        if isinstance(target, Pid):
            return self.labels[target]
        places = {self.place(word): word for word in ("here", "there", "away")}
        return f"name:{target.name}@{places[target.node]}"

    async def _watch(self, process: Process) -> None:
        self._watchers[process.node.name] = process
        async for message in process.mailbox:
            if (
                isinstance(message, Down)
                and isinstance(message.target, Pid)
                and message.target not in self.lost
            ):
                self.note(self.labels[message.target], f"ended {said(message.reason)}")

    async def _step(self, step: Step) -> None:
        match step:
            case ["settle"]:
                await asyncio.sleep(SETTLE_S)
            case ["wait", seconds]:
                await asyncio.sleep(float(seconds))
            case ["unordered"]:
                self.unordered = True
            case ["lose"]:
                await self._lose()
            case ["rejoin"]:
                await self._rejoin()
            case ["crash"]:
                await self._crash()
            case ["restart"]:
                there = await self._crash()
                self.nodes["there"] = again = await self.cluster.restart(there)
                again.spawn(self._watch)
                await self.cluster.mesh(timeout=60)
            case ["spawn", label, home, *options]:
                self._spawn(label, self.nodes[home], options)
                await asyncio.sleep(0)
            case ["tree", label, strategy, most, period, *children]:
                self.trees[label] = self._tree(strategy, int(most), float(period), children)  # type: ignore[arg-type]
            case ["members", group, home]:
                if self._members is None:
                    raise ScriptError("nothing knows of members")
                self._members(self, group, home)
            case [label, *words]:
                await self._tell(label, commands(words))

    async def _tell(self, label: str, parts: list[Step]) -> None:
        waits = not label.startswith("~")
        pid = self.pids[label.removeprefix("~")]
        home = next(node for node in self.nodes.values() if node.name == pid.node)
        if home.process_info(pid) is None:
            raise ScriptError(f"{label} has ended and cannot {parts}")
        order = Order(parts)
        home.send_nowait(pid, order)
        while waits and not order.done.is_set() and home.process_info(pid) is not None:
            await asyncio.sleep(0.001)

    def _spawn(self, label: str, home: Node, options: Step) -> None:
        name = options[options.index("named") + 1] if "named" in options else None
        puppet = Puppet(self, label)
        self.born(label, home.spawn(puppet.live, "trap" in options, name=name))

    def _tree(self, strategy: Strategy, most: int, period_s: float, children: list[str]) -> Supervisor:
        specs = [self.child(text) for text in children]
        return Supervisor(specs, strategy=strategy, max_restarts=most, period_s=period_s)

    def child(self, text: str) -> Child:
        """A child from ``label:restart:shutdown:manner``."""
        label, restart, shutdown, manner = text.split(":")
        options: dict[str, Any] = {"restart": restart}
        if shutdown != "default":
            options["shutdown_s"] = 0 if shutdown == "kill" else float(shutdown)
        if manner.startswith("named="):
            options["register"] = manner.removeprefix("named=")
        if manner == "sup":
            return Child(label, Nested(self, label, self.trees[label]), **options)
        return Child(label, Puppet(self, label, manner).supervised, **options)

    async def _lose(self) -> None:
        here, there = self.nodes.values()
        if self.loss == "partition":
            self.cluster.partition([here])
            await asyncio.sleep(LOST_S)
        else:
            here.disconnect(there.name)
            await asyncio.sleep(SETTLE_S)
        if here.list() or there.list():
            raise ScriptError("the connection is not lost")

    async def _rejoin(self) -> None:
        here, there = self.nodes.values()
        self.cluster.heal()
        await here.connect(there.name)
        await self.cluster.mesh(timeout=60)

    async def _crash(self) -> Node:
        there = self.nodes["there"]
        self.lost |= {pid for pid in self.labels if pid.node == there.name}
        await self.cluster.crash(there)
        await asyncio.sleep(SETTLE_S)
        return there

    def _outcome(self) -> list[str]:
        lines = []
        for label in sorted(self.events):
            texts = sorted(self.events[label]) if self.unordered else self.events[label]
            pid = self.pids.get(label)
            if pid is not None and pid not in self.lost:
                home = next(node for node in self.nodes.values() if node.name == pid.node)
                texts = [*texts, "lives"] if home.process_info(pid) is not None else texts
            lines += [f"{label} {text}" for text in texts]
        return lines


class Nested:
    """A supervisor as a child of another, under a label."""

    def __new__(cls, stage: Stage, label: str, plan: Supervisor) -> Supervisor:  # type: ignore[misc]
        """A `Supervisor`, so that it is counted as one, which tells the stage of its lives."""

        class Told(Supervisor):
            async def __call__(self, process: Process) -> None:
                stage.born(label, process.pid)
                await super().__call__(process)

        return Told(
            plan.specs, strategy=plan.strategy, max_restarts=plan.max_restarts, period_s=plan.period_s
        )


class Puppet:
    """A process that does as it is told, and notes what comes."""

    def __init__(self, stage: Stage, label: str, manner: str = "plain") -> None:
        self.stage = stage
        self.label = label
        self.manner = manner
        self.process: Process
        self.ref: Ref | None = None
        self.kept: Call | None = None

    async def live(self, process: Process, trap: bool = False) -> None:
        """The process function."""
        self.process = process
        process.trap_exit = trap
        await self._serve()

    async def supervised(self, process: Process) -> None:
        """The process function of a supervisor's child; each life is a puppet of its own."""
        again = Puppet(self.stage, self.label, self.manner)
        self.stage.born(self.label, process.pid)
        self.stage.note("log", f"+{self.label}")
        await again.live(process, self.manner in ("tidy", "slow", "stubborn"))

    async def told(self, process: Process, words: Step) -> None:
        """The process function of who does one thing first."""
        self.process = process
        await self._do(words)
        await self._serve()

    async def _serve(self) -> None:
        async for message in self.process.mailbox:
            match message:
                case Order():
                    for words in message.parts:
                        await self._do(words)
                    message.done.set()
                case Call(message=request):
                    self.note(f"asked {request}")
                    self._answer(message, request)
                case Down(target=target, reason=reason):
                    self.note(f"down {self.stage.shown(target)} {said(reason)}")
                case Exit(pid=pid, reason=reason):
                    await self._told_to_exit(pid, reason)
                case str():
                    self.note(f"got {message}")

    def note(self, text: str) -> None:
        """What this puppet saw."""
        self.stage.note(self.label, text)

    async def _told_to_exit(self, pid: Pid, reason: Any) -> None:
        if self.manner not in ("tidy", "slow"):
            self.note(f"exit {self.stage.labels[pid]} {said(reason)}")
            return
        if self.manner == "slow":
            await asyncio.sleep(SLOW_S)
        self.stage.note("log", f"-{self.label} {said(reason)}")
        raise ProcessExit(reason)

    def _answer(self, call: Call, request: str) -> None:
        match request.partition(":"):
            case ["echo", _, _]:
                call.reply("echo")
            case ["keep", _, _]:
                self.kept = call
            case ["last", _, _]:
                call.reply("last")
                raise ProcessExit
            case ["raise", _, reason]:
                raise ProcessExit(read(reason))
            case ["crash", _, _]:
                raise ValueError("boom")

    async def _do(self, words: Step) -> None:
        stage, process = self.stage, self.process
        match words:
            case []:
                pass
            case ["link", who]:
                process.link(stage.who(who, process))
            case ["unlink", who]:
                process.unlink(stage.who(who))
            case ["unlink_flush", who]:
                pid = stage.who(who)
                process.unlink(pid)
                process.mailbox.discard(lambda message: isinstance(message, Exit) and message.pid == pid)
            case ["monitor", who]:
                self.ref = process.monitor(stage.target(who, process))
            case ["demonitor"] if self.ref is not None:
                process.demonitor(self.ref, flush=False)
            case ["demonitor_flush"] if self.ref is not None:
                process.demonitor(self.ref)
            case ["exit", who, reason]:
                process.exit(stage.who(who, process), read(reason))
            case ["trap", on]:
                process.trap_exit = on == "on"
            case ["return"]:
                raise ProcessExit
            case ["raise", reason]:
                raise ProcessExit(read(reason))
            case ["crash"]:
                raise ValueError("boom")
            case ["pause", seconds]:
                await asyncio.sleep(float(seconds))
            case [verb, *rest]:
                await stage.verbs.get(verb, _unknown)(self, rest)


async def _unknown(puppet: Puppet, words: Step) -> None:
    raise ScriptError(f"{puppet.label} does not know how to do that, with {words}")


async def _send(puppet: Puppet, words: Step) -> None:
    who, text = words
    await puppet.process.node.send(puppet.stage.target(who, puppet.process), text)


async def _post(puppet: Puppet, words: Step) -> None:
    try:
        await _send(puppet, words)
    except NoProcess:
        puppet.note("post noproc")
    except NoConnection:
        puppet.note("post noconnection")
    else:
        puppet.note("post ok")


async def _register(puppet: Puppet, words: Step) -> None:
    await puppet.process.node.register(words[0], puppet.process.pid)


async def _unregister(puppet: Puppet, words: Step) -> None:
    await puppet.process.node.unregister(words[0])


async def _spawn_link(puppet: Puppet, words: Step) -> None:
    label, *rest = words
    puppet.stage.born(label, puppet.process.spawn_link(Puppet(puppet.stage, label).told, rest))


async def _spawn_monitor(puppet: Puppet, words: Step) -> None:
    label, *rest = words
    pid, puppet.ref = puppet.process.spawn_monitor(Puppet(puppet.stage, label).told, rest)
    puppet.stage.born(label, pid)


async def _call(puppet: Puppet, words: Step) -> None:
    who, request, *seconds = words
    timeout_s = float(seconds[0]) if seconds else None
    try:
        target = puppet.stage.target(who, puppet.process)
        outcome = f"reply {await puppet.process.node.call(target, request, timeout_s)}"
    except NoProcess:
        outcome = "noproc"
    except (NoConnection, NodeLost):
        outcome = "nodedown"
    except CallTimeout:
        outcome = "timeout"
    except WouldBlock:
        outcome = "calling_self"
    except ProcessDown as down:
        outcome = f"down {str(down.reason).replace('ValueError: ', 'crash ')}"
    puppet.note(f"call {outcome}")


async def _reply(puppet: Puppet, words: Step) -> None:
    if puppet.kept is not None:
        puppet.kept.reply(words[0])


async def _start(puppet: Puppet, words: Step) -> None:
    stage, label = puppet.stage, words[0]
    stage.born(label, puppet.process.spawn_link(stage.trees[label]))
    await asyncio.sleep(0.01)


async def _ask(puppet: Puppet, words: Step) -> None:
    tree, question, *rest = words
    request: Any = {"which": "which_children", "count": "count_children", "add": "start_child"}.get(
        question, f"{question}_child"
    )
    if rest:
        request = request, puppet.stage.child(rest[0]) if question == "add" else rest[0]
    try:
        answer = await puppet.process.node.call(puppet.stage.pids[tree], request)
    except RemoteError as error:
        answer = error
    match answer:
        case RemoteError(text=text):
            shown = next((word for part, word in REFUSALS.items() if part in text), text)
        case {"specs": specs, "active": active, "supervisors": supervisors, "workers": workers}:
            shown = f"{specs} {active} {supervisors} {workers}"
        case dict():
            shown = " ".join(
                f"{name}:{'none' if pid is None else 'runs'}" for name, pid in sorted(answer.items())
            )
        case _:
            shown = "ok"
    puppet.note(f"{question} {shown}")


REFUSALS = {
    "there is no such child": "not_found",
    "it runs already": "already_started",
    "it runs": "running",
    "a child of that name exists": "already_present",
}
"""Part of the sentence → OTP's word."""

VERBS: dict[str, Verb] = {
    "send": _send, "post": _post, "register": _register, "unregister": _unregister, "spawn_link": _spawn_link,
    "spawn_monitor": _spawn_monitor, "call": _call, "reply": _reply, "start": _start, "ask": _ask,
}  # fmt: skip


def read(word: str) -> Any:
    """A reason from the scenario's word for it."""
    return tuple(word.split(":")) if ":" in word else word


def said(reason: Any) -> str:
    """The scenario's word for a reason."""
    match reason:
        case str():
            return reason
        case tuple():
            return ":".join(reason)
        case Crash(type_name="ValueError", text=text):
            return f"crash {text}"
    return f"{reason!r}"


def outcome(
    steps: list[Step], *, loss: str = LOSSES[0], seed: int = 0, extra: Extra | None = None
) -> list[str]:
    """Play a scenario; what its processes saw."""

    async def main() -> list[str]:
        orders_stay_here = SETTINGS.replace(debug=False)  # They hold what cannot travel.
        async with SimCluster(random.Random(seed).getrandbits(32), settings=orders_stay_here) as cluster:
            return await Stage(cluster, loss, extra).play(steps)

    return run(main(), seed=seed)
