"""A process as its function sees it: a coroutine with a mailbox and a pid.

`Process` adds the methods that a program calls to `RunningProcess`, the runtime's half. The package
`processes` has how processes run, end, and are linked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from fleetlm.actors.failure_log import FailureLog
from fleetlm.actors.handlers import ActorObject
from fleetlm.ids import Pid, Ref
from fleetlm.messaging.own_loop import check_loop
from fleetlm.processes.drain_listeners import DrainListeners
from fleetlm.processes.owned import Owned, Timer
from fleetlm.processes.running import AnyFunction, ProcessObject, RunningProcess
from fleetlm.processes.slowness import SlowCalls
from fleetlm.records import Record
from fleetlm.taps import Taps

if TYPE_CHECKING:
    from fleetlm.actors.ref import ActorRef
    from fleetlm.blocking.pools import Blocking
    from fleetlm.call import Call
    from fleetlm.messaging.turns import Turns
    from fleetlm.node import Node
    from fleetlm.processes.remote_spawn import RemoteSpawn
    from fleetlm.processes.signals import Signals

A = TypeVar("A", bound=ActorObject)
Ts = TypeVarTuple("Ts")
T = TypeVar("T")


class ProcessServices(Record):
    """The parts of a node that its processes use: one object, so that each process holds one reference."""

    signals: Signals
    remote_spawn: RemoteSpawn
    mailbox_limit: int
    blocking: Callable[[], Blocking]
    """Returns the pools for functions that block, which are made at the first use."""
    turns: Turns
    taps: Taps = field(default_factory=Taps)
    failures: FailureLog = field(default_factory=FailureLog)
    drain_listeners: DrainListeners = field(default_factory=DrainListeners)
    slow_calls: SlowCalls = field(default_factory=SlowCalls)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Process(RunningProcess):
    """The first argument of a process function: its mailbox, and its links with other processes.

    Attributes:
        pid: its address, valid on every node while the process runs.
        mailbox: the messages that wait for it.
        node: the node that it runs on.
        parent: the process that spawned it with `spawn_link` or `spawn_link_at`, or None.
        runs: the qualified name of the function that it runs.
    """

    __slots__ = ("_services", "node")

    def __init__(self, node: Node, services: ProcessServices, pid: Pid, runs: str) -> None:
        super().__init__(pid, runs, services.mailbox_limit, services.turns)
        self.node: Node = node
        self._services = services

    @property
    def name(self) -> str | None:
        """The name under which this process is registered on its node, or None."""
        return self.node.name_of(self.pid)

    @property
    def epoch(self) -> int:
        """The epoch of the singleton that this process is, or was spawned by with a link: a fencing token.

        Each run of a singleton, anywhere in the cluster, has a higher one than the run before. It may grow
        while the run goes on, so read it for each write that it is to guard. docs/leaders.md says for which
        failures that holds.

        Raises:
            RuntimeError: this process does not belong to a singleton that this node offers.
            NotOwner: the singleton belongs to another node, or to nobody: this process must not act any more,
                and is about to be killed.
        """
        return self.node.singletons._epoch_of(self)  # noqa: SLF001  # hidden from programs

    def _note_wait(self, call: Call, now: float) -> None:
        """See `RunningProcess`."""
        services = self._services
        if now >= call.deadline and services.taps.message_dropped is not None:
            services.taps.message_dropped("expired", 1, self.pid, "")
        services.slow_calls.note(self, call, now)

    def _note_left(self, messages: int) -> None:
        """See `RunningProcess`."""
        if self._services.taps.message_dropped is not None:
            self._services.taps.message_dropped("process_ended", messages, self.pid, "")

    def receive(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """Take the next message; wait up to ``timeout`` seconds for one (None: without limit).

        Only this process itself may receive, in one task at a time. See `Mailbox.get`.

        Raises:
            TimeoutError: no message came; none was taken.
            RuntimeError: another task is waiting for a message of this process.
        """
        return self.mailbox.get(timeout)  # not async itself: that would be one more layer for each wait

    # Timers and tasks.

    def send_after(self, delay_s: float, message: Any) -> Timer:
        """Put a message into this process's own mailbox after ``delay_s`` seconds.

        It comes after the messages that wait then, as any other message does. The timer ends with the
        process. The message does not travel, so it may be any object.

        Args:
            delay_s: seconds, 0 or more.
            message: what `receive` returns, or what an actor's ``handle_info`` takes.

        Returns:
            The timer, for `Timer.cancel`.

        Raises:
            ValueError: ``delay_s`` is negative or not finite.
            RuntimeError: the process has `Settings.max_timers` timers or has ended. No timer was set.

        Source: erlang:send_after/3; differs: only to oneself, and the timer ends with the process.
        """
        return self._get_owned("Process.send_after").send_after(delay_s, message)

    def send_every(self, interval_s: float, message: Any) -> Timer:
        """Put a message into this process's own mailbox every ``interval_s`` seconds.

        The first one comes after one interval. The times are counted from now, so a late message does not
        shift those that follow. At most one message of a timer waits: while the process has not taken the
        former one, no further one comes. The timer ends with the process.

        Args, Returns, Raises: as `send_after`; ``interval_s`` must be more than 0.

        Source: timer:send_interval/2; differs: messages do not pile up, as those of Go's time.Ticker.
        """
        return self._get_owned("Process.send_every").send_every(interval_s, message)

    def create_task(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine beside this process, as a part of it.

        The task ends with the process: it is cancelled, and has `Settings.terminate_s` seconds to clean up.
        If it raises, the process ends with that exception as its reason, whether the task is awaited or not;
        `ProcessExit` ends the process with its reason. A task of ``asyncio.create_task`` knows nothing of the
        process: it goes on when the process has ended, even when the node has been stopped.

        Args:
            coroutine: a coroutine object.
            name: of the task, for logs.

        Returns:
            The task. Cancelling it ends only the task.

        Raises:
            RuntimeError: this process is ending. The coroutine was closed and has not run.

        Source: asyncio.TaskGroup.create_task; differs: the group is the process.
        """
        return self._get_owned("Process.create_task").create_task(coroutine, name)

    def _get_owned(self, what: str) -> Owned:
        """Return the timers and tasks of this process. Raises: RuntimeError on another loop or thread."""
        check_loop(self._services.loop, what)
        owned = self._owned
        if not isinstance(owned, Owned):
            owned = self._owned = Owned(self, self._services.loop, self.node.settings.max_timers)
        return owned

    # Links, monitors, exit signals.

    @property
    def trap_exit(self) -> bool:
        """Whether exit signals arrive as `Exit` messages instead of ending this process."""
        return self._services.signals.links.traps(self.pid.number)

    @trap_exit.setter
    def trap_exit(self, on: bool) -> None:
        check_loop(self._services.loop, "Process.trap_exit")
        self._services.signals.links.trapped(self.pid.number, on)

    @property
    def trap_drain(self) -> bool:
        """Whether this process gets a `NodeDraining` message when its node drains, and a `NodeUndrained`.

        For plain processes; an actor has `Actor.on_drain`. The drain waits only while the process takes
        messages, since nothing says when it has dealt with this one.
        """
        return self._services.drain_listeners.traps(self)

    @trap_drain.setter
    def trap_drain(self, on: bool) -> None:
        check_loop(self._services.loop, "Process.trap_drain")
        if not self._is_gone:
            self._services.drain_listeners.set_trap(self, on)

    def link(self, pid: Pid) -> None:
        """Link this process and another one, on any node, until one of them unlinks.

        When one of the two ends, the other gets an exit signal: it ends with the same reason, unless
        that is ``"normal"``; if it traps exits, it gets an `Exit` message instead and goes on. If there is
        no such process, this one gets an exit signal with ``"noproc"``; if its node is not connected, or
        is lost later, with ``"noconnection"``. Raises: NotAllowed: its node lets no other node end its
        processes, nor link with them; nothing was sent. Source: Erlang's link/1.
        """
        self._services.signals.link(self, pid)

    def unlink(self, pid: Pid) -> None:
        """End a link. From here on, no exit signal of that process arrives through it.

        Does nothing if there is no link. Source: Erlang's unlink/1.
        """
        self._services.signals.unlink(self, pid)

    def monitor(self, target: Pid | str | tuple[str, str]) -> Ref:
        """Monitor a process: get a message when it ends.

        Exactly one `Down` with the returned ref arrives: when the process ends, with its exit reason; at
        once, with ``"noproc"``, if there is no such process; with ``"noconnection"`` if its node is not
        connected or is lost later. Several monitors of one process are independent of each other.
        Source: Erlang's monitor/2.

        Args:
            target: a pid, a name on this node, or ``(name, node)``.

        Returns:
            The ref of the monitor, for `demonitor` and for comparing with `Down.ref`.

        Raises:
            InvalidName: the node in ``target`` is not a node name.
        """
        return self._services.signals.monitor(self, target)

    def demonitor(self, ref: Ref, *, flush: bool = True) -> None:
        """End a monitor: no `Down` with this ref arrives from here on.

        Args:
            ref: what `monitor` returned.
            flush: also take out a `Down` that waits in the mailbox already.
        """
        self._services.signals.demonitor(self, ref, flush=flush)

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """Send an exit signal to a process on any node.

        The process ends with ``reason``, or gets an `Exit` message if it traps exits. The reason
        ``"normal"`` does not end another process. ``"kill"`` cannot be trapped: the process is gone at
        once, and linked and monitoring processes are told ``"killed"``. Nothing happens if there is no such
        process or its node is not connected. Raises: NotAllowed: its node lets no other node end its
        processes; nothing was sent. Source: Erlang's exit/2.
        """
        self._services.signals.ask_to_exit(self.pid, pid, reason)

    @overload
    def spawn_link(
        self,
        function: Callable[[*Ts], ProcessObject],
        *args: *Ts,
        name: str | None = None,
        local: bool = False,
    ) -> Pid: ...
    @overload
    def spawn_link(
        self,
        function: Callable[[Process, *Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        local: bool = False,
    ) -> Pid: ...
    @overload
    def spawn_link(
        self, function: AnyFunction, *args: Any, name: str | None = None, local: bool = False
    ) -> Pid: ...
    def spawn_link(  # type: ignore[misc]
        self, function: Any, *args: Any, name: str | None = None, local: bool = False
    ) -> Pid:
        """Spawn a process on this node, linked with this one before its first line runs.

        This process becomes the new one's `parent`. Raises: as `Node.spawn`; nothing was spawned.
        """
        pid = self.node.spawn(function, *args, name=name, local=local)
        self._services.signals.adopt(self, pid)
        return pid

    @overload
    def spawn_monitor(
        self,
        function: Callable[[*Ts], ProcessObject],
        *args: *Ts,
        name: str | None = None,
        local: bool = False,
    ) -> tuple[Pid, Ref]: ...
    @overload
    def spawn_monitor(
        self,
        function: Callable[[Process, *Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        local: bool = False,
    ) -> tuple[Pid, Ref]: ...
    @overload
    def spawn_monitor(
        self, function: AnyFunction, *args: Any, name: str | None = None, local: bool = False
    ) -> tuple[Pid, Ref]: ...
    def spawn_monitor(  # type: ignore[misc]
        self, function: Any, *args: Any, name: str | None = None, local: bool = False
    ) -> tuple[Pid, Ref]:
        """Spawn a process on this node, monitored by this one before its first line runs.

        Raises what `Node.spawn` raises; nothing was spawned.

        Returns:
            Its pid, and the ref of the monitor.
        """
        pid = self.node.spawn(function, *args, name=name, local=local)
        return pid, self.monitor(pid)

    @overload
    async def start_actor_link(
        self,
        actor: Callable[[*Ts], A],
        *args: *Ts,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> ActorRef[A]: ...
    @overload
    async def start_actor_link(
        self, actor: A, *, name: str | None = None, timeout: float | None = None, local: bool = False
    ) -> ActorRef[A]: ...
    async def start_actor_link(  # type: ignore[misc]
        self,
        actor: Any,
        *args: Any,
        name: str | None = None,
        timeout: float | None = None,
        local: bool = False,
    ) -> ActorRef[A]:
        """Start an actor as `Node.start_actor` does, and link it with this process once it is ready.

        Raises what `Node.start_actor` raises; no exit signal comes then. Source: OTP
        gen_server:start_link/3; differs: an ``init`` that fails raises here and sends no exit signal.
        """
        options: dict[str, Any] = {"name": name, "timeout": timeout, "local": local}
        ref: ActorRef[A] = await self.node.start_actor(actor, *args, **options)
        self.link(ref.pid)
        return ref

    async def spawn_link_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> Pid:
        """Spawn a process as `Node.spawn_at` does, linked with this one before its first line runs.

        However early either of them ends, the other gets the exit signal. If this process ends while it
        waits here, the spawned one gets its exit signal.

        Raises what `Node.spawn_at` raises. After `NodeLost` a process may have been spawned; it gets an exit
        signal with ``"noconnection"``, as every process linked across the lost connection does.
        """
        pid, _ = await self._services.remote_spawn.spawn(at, factory, args, name, timeout, self, linked=True)
        return pid

    async def spawn_monitor_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> tuple[Pid, Ref]:
        """Spawn a process as `Node.spawn_at` does, monitored by this one before its first line runs.

        However early it ends, its `Down` has the exit reason.

        Returns:
            Its pid, and the ref of the monitor.

        Raises what `Node.spawn_at` raises; no `Down` comes then. After `NodeLost` a process may live there.
        """
        pid, ref = await self._services.remote_spawn.spawn(
            at, factory, args, name, timeout, self, monitored=True
        )
        assert ref is not None
        return pid, ref
