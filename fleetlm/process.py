"""A process: a coroutine with a mailbox and a pid."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from fleetlm.call import Call
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.actors.ref import ActorRef
    from fleetlm.node import Node
    from fleetlm.processes.signals import Signals

A = TypeVar("A", bound="Actor")


class ProcessObject(Protocol):
    """An object that is a process function, such as an `Actor`."""

    def __call__(self, process: Process, /) -> Awaitable[object]:
        """Run."""


ProcessFunction = Callable[..., Awaitable[object]] | type[ProcessObject]
"""What `Node.spawn` runs: a coroutine function whose first argument is its `Process`; or a class of such,
of which the new process makes its own."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What `Node.processes()` tells of one process."""

    pid: Pid
    name: str | None
    runs: str
    """Qualified name of the function."""
    mailbox: int
    """Messages waiting."""
    taken: int
    """Messages taken so far."""
    open_calls: int
    """Calls taken and not answered yet."""
    state: Literal["waiting", "running", "ending"]
    """Whether it waits for a message, does anything else, or was told to end and has not yet."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What `Node.supervisors()` tells of one child."""

    id: str
    """Its name among the children of its supervisor."""
    pid: Pid | None
    """None while it is not running."""
    runs: str
    """Qualified name of the function."""
    restart: str
    """``permanent``, ``transient`` or ``temporary``."""
    state: Literal["waiting", "running", "ending", "restarting", "not running"]
    """As `ProcessInfo.state`; ``restarting``: it ended, and its pause lasts."""


class Process:
    """What a process function gets as its first argument."""

    __slots__ = (
        "_calls", "_signals", "children", "closing", "ending", "exit_reason", "gone", "mailbox", "node",
        "on_answered", "parent", "pid", "runs", "task",
    )  # fmt: skip

    def __init__(self, node: Node, signals: Signals, pid: Pid, runs: str, mailbox_limit: int) -> None:
        self.node = node
        self._signals = signals
        self.ending = False
        """Whether an exit signal has reached it."""
        self.exit_reason: Any = None
        self.closing = False
        """Whether its reason is decided and it cleans up, so that only ``"kill"`` cuts it short."""
        self.gone = False
        """Whether it has been buried, though its coroutine may still run."""
        self.on_answered: Callable[[Call], None] | None = None
        """Of an actor: told of each call it took that needs no answer any more."""
        self.children: Callable[[], list[ChildInfo]] | None = None
        """Where it is a supervisor: how to see its children without asking it, since it may be busy."""
        self.pid = pid
        self.parent: Pid | None = None
        """Who spawned it with `spawn_link`."""
        self.runs = runs
        self.mailbox = Mailbox(mailbox_limit, self)
        self._calls: dict[Call, None] | None = None
        self.task: asyncio.Task[Any] | None = None
        """What runs it."""

    @property
    def name(self) -> str | None:
        """The name it is registered under, or None."""
        return self.node.name_of(self.pid)

    def receive(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """The next message; see `Mailbox.get`."""
        return self.mailbox.get(timeout)  # not async itself: a layer less for each that waits

    def info(self) -> ProcessInfo:
        """A snapshot for people."""
        mailbox = self.mailbox
        return ProcessInfo(
            self.pid, self.name, self.runs, len(mailbox), mailbox.taken, len(self._calls or ()),
            "ending" if self.ending else "waiting" if mailbox.waited_for else "running",
        )  # fmt: skip

    # Links, monitors, exits.

    @property
    def trap_exit(self) -> bool:
        """Whether exit signals arrive as `Exit` messages instead of ending this process."""
        return self._signals.relations.traps(self.pid.number)

    @trap_exit.setter
    def trap_exit(self, on: bool) -> None:
        self._signals.relations.trapped(self.pid.number, on)

    def link(self, pid: Pid) -> None:
        """Share the fate of another process, on any node, until one of both unlinks.

        When one ends, the other gets an exit signal: it ends with the same reason, unless that is
        ``"normal"``; if it traps exits it gets `Exit` instead. A process that is not there is an
        exit signal with ``"noproc"``, a node that is not connected one with ``"noconnection"``.
        Source: Erlang's link/1.
        """
        self._signals.link(self, pid)

    def unlink(self, pid: Pid) -> None:
        """End a link; from here on no exit of that process reaches this one through it."""
        self._signals.unlink(self, pid)

    def monitor(self, target: Pid | str | tuple[str, str]) -> Ref:
        """Watch a process: a pid, a name on this node, or ``(name, node)``.

        Exactly one `Down` with the returned ref arrives: when it ends, at once with ``"noproc"`` if
        there is none, or with ``"noconnection"`` when its node is not, or no more, connected.
        Source: Erlang's monitor/2.
        """
        return self._signals.monitor(self, target)

    def demonitor(self, ref: Ref, *, flush: bool = True) -> None:
        """Watch no more. With ``flush`` a `Down` that has arrived already is taken out of the mailbox."""
        self._signals.demonitor(self, ref)
        if flush:
            self.mailbox.discard(lambda message: isinstance(message, Down) and message.ref == ref)

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """Send an exit signal. ``"kill"`` ends it whatever it traps; others hear ``"killed"``.

        Source: Erlang's exit/2.
        """
        self._signals.exit(self.pid, pid, reason)

    def spawn_link(self, function: ProcessFunction, *args: Any, name: str | None = None) -> Pid:
        """Spawn a process on this node that is linked before it runs. Raises: as `Node.spawn`."""
        pid = self.node.spawn(function, *args, name=name)
        self._signals.adopt(self, pid)
        return pid

    def spawn_monitor(
        self, function: ProcessFunction, *args: Any, name: str | None = None
    ) -> tuple[Pid, Ref]:
        """Spawn a process on this node that is monitored before it runs. Raises: as `Node.spawn`."""
        pid = self.node.spawn(function, *args, name=name)
        return pid, self.monitor(pid)

    async def start_actor_link(
        self, actor: type[A] | A, *args: Any, name: str | None = None, timeout: float | None = None
    ) -> ActorRef[A]:
        """As `Node.start_actor`, and linked once it is ready. Raises: as there; then no signal comes.

        Source: OTP gen_server:start_link/3; differs: an ``init`` that fails is an exception alone.
        """
        ref = await self.node.start_actor(actor, *args, name=name, timeout=timeout)
        self.link(ref.pid)
        return ref

    async def spawn_link_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> Pid:
        """As `Node.spawn_at`, linked before it runs: an exit finds the link on either side.

        If this process ends while it waits, what was spawned gets its exit signal.

        Raises: as `Node.spawn_at`; after `NodeLost` a process that was spawned ends with
            ``"noconnection"``, as every linked one does.
        """
        pid, _ = await self.node.factories.spawn(at, factory, args, name, timeout, self, linked=True)
        return pid

    async def spawn_monitor_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> tuple[Pid, Ref]:
        """As `Node.spawn_at`, monitored before it runs: its `Down` tells why, however short its life.

        Raises: as `Node.spawn_at`; no `Down` comes then. After `NodeLost` a process may live there.
        """
        pid, ref = await self.node.factories.spawn(at, factory, args, name, timeout, self, monitored=True)
        assert ref is not None
        return pid, ref

    # The runtime's business.

    def end_with(self, reason: Any, *, again: bool = False) -> None:
        """Let it end; the first reason counts, and later ones do not cut its clean-up short.

        ``again`` cancels even what is ending already.
        """
        if (self.ending or self.closing) and not again:
            return
        if not self.ending:
            self.ending = True
            self.exit_reason = reason
        if self.task is not None:
            self.task.cancel()

    @property
    def open_calls(self) -> int:
        """Calls that it took and did not answer yet."""
        return len(self._calls or ())

    def ended(self, reason: str) -> None:
        """Answer every call that it leaves behind."""
        self.gone = True
        shown = str(self.pid)
        for message in self.mailbox.close():
            if type(message) is Call:
                message.no_process(shown)
        taken, self._calls = self._calls, None
        for call in taken or ():
            call.process_down(shown, reason)

    def took(self, call: Call) -> bool:
        """`mailbox.Owner`: answers for it from here on, unless it has been refused."""
        if self.on_answered is None and type(call.message) is Invoke:
            call.no_handler(str(self.name or self.pid), f"{self.runs} is not an actor")
            return True
        if self._calls is None:
            self._calls = {}
        self._calls[call] = None
        call.watch(self._answered)
        return False

    def _answered(self, call: Call) -> None:
        if self._calls is not None:
            self._calls.pop(call, None)
        if self.on_answered is not None:
            self.on_answered(call)
