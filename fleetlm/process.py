"""A process: a coroutine with a mailbox and a pid."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.actors.handlers import ActorObject
from fleetlm.ids import Pid, Ref
from fleetlm.processes.running import ProcessFunction, RunningProcess

if TYPE_CHECKING:
    from fleetlm.actors.ref import ActorRef
    from fleetlm.node import Node
    from fleetlm.processes.remote_spawn import RemoteSpawn
    from fleetlm.processes.signals import Signals

A = TypeVar("A", bound=ActorObject)


@dataclass(frozen=True, slots=True)
class ProcessServices:
    """The parts of a node that its processes use: one object, so that each process holds one reference."""

    signals: Signals
    remote_spawn: RemoteSpawn
    mailbox_limit: int


class Process(RunningProcess):
    """What a process function gets as its first argument."""

    __slots__ = ("_services", "node")

    def __init__(self, node: Node, services: ProcessServices, pid: Pid, runs: str) -> None:
        super().__init__(pid, runs, services.mailbox_limit)
        self.node = node
        self._services = services

    @property
    def name(self) -> str | None:
        """The name it is registered under, or None."""
        return self.node.name_of(self.pid)

    def receive(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """The next message; see `Mailbox.get`."""
        return self.mailbox.get(timeout)  # not async itself: a layer less for each that waits

    # Links, monitors, exits.

    @property
    def trap_exit(self) -> bool:
        """Whether exit signals arrive as `Exit` messages instead of ending this process."""
        return self._services.signals.links.traps(self.pid.number)

    @trap_exit.setter
    def trap_exit(self, on: bool) -> None:
        self._services.signals.links.trapped(self.pid.number, on)

    def link(self, pid: Pid) -> None:
        """Share the fate of another process, on any node, until one of both unlinks.

        When one ends, the other gets an exit signal: it ends with the same reason, unless that is
        ``"normal"``; if it traps exits it gets `Exit` instead. A process that is not there is an
        exit signal with ``"noproc"``, a node that is not connected one with ``"noconnection"``.
        Source: Erlang's link/1.
        """
        self._services.signals.link(self, pid)

    def unlink(self, pid: Pid) -> None:
        """End a link; from here on no exit of that process reaches this one through it."""
        self._services.signals.unlink(self, pid)

    def monitor(self, target: Pid | str | tuple[str, str]) -> Ref:
        """Watch a process: a pid, a name on this node, or ``(name, node)``.

        Exactly one `Down` with the returned ref arrives: when it ends, at once with ``"noproc"`` if
        there is none, or with ``"noconnection"`` when its node is not, or no more, connected.
        Source: Erlang's monitor/2.
        """
        return self._services.signals.monitor(self, target)

    def demonitor(self, ref: Ref, *, flush: bool = True) -> None:
        """Watch no more. With ``flush`` a `Down` that has arrived already is taken out of the mailbox."""
        self._services.signals.demonitor(self, ref, flush=flush)

    def exit(self, pid: Pid, reason: Any = "shutdown") -> None:
        """Send an exit signal. ``"kill"`` ends it whatever it traps; others hear ``"killed"``.

        Source: Erlang's exit/2.
        """
        self._services.signals.exit(self.pid, pid, reason)

    def spawn_link(self, function: ProcessFunction, *args: Any, name: str | None = None) -> Pid:
        """Spawn a process on this node that is linked before it runs. Raises: as `Node.spawn`."""
        pid = self.node.spawn(function, *args, name=name)
        self._services.signals.adopt(self, pid)
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
        pid, _ = await self._services.remote_spawn.spawn(at, factory, args, name, timeout, self, linked=True)
        return pid

    async def spawn_monitor_at(
        self, at: str, factory: str, *args: Any, name: str | None = None, timeout: float = 5.0
    ) -> tuple[Pid, Ref]:
        """As `Node.spawn_at`, monitored before it runs: its `Down` tells why, however short its life.

        Raises: as `Node.spawn_at`; no `Down` comes then. After `NodeLost` a process may live there.
        """
        pid, ref = await self._services.remote_spawn.spawn(
            at, factory, args, name, timeout, self, monitored=True
        )
        assert ref is not None
        return pid, ref
