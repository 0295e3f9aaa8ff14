"""Links, monitors and exit signals: performs what `core.relations` decides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fleetlm.core.links import Deliver, Effect, Links, Stop, Target, Tell
from fleetlm.errors import FleetError
from fleetlm.ids import Pid, Ref
from fleetlm.names import Address, canonical_node
from fleetlm.wire import operations

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.process import Process
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.wire.codec import Codec

log = logging.getLogger("fleetlm")

MAX_REASON_BYTES = 64 * 1024
"""A reason travels in one batch; a larger one, or one that cannot travel, travels as its text."""


class Signals:
    """The relations of one node's processes, with their effects."""

    def __init__(
        self, name: str, incarnation: int, codec: Codec, local: LocalProcesses, sessions: dict[str, Session]
    ) -> None:
        self.relations = Links(name, incarnation, local.alive, self._connected)
        self._name = name
        self._incarnation = incarnation
        self._codec = codec
        self._local = local
        self._sessions = sessions
        self._next_ref = 0

    # What processes do.

    def adopt(self, process: Process, pid: Pid) -> None:
        """See `Process.spawn_link`."""
        child = self._local.process(pid)
        if child is not None:
            child.parent = process.pid
        self.link(process, pid)

    def link(self, process: Process, other: Pid) -> None:
        """See `Process.link`."""
        self._perform(self.relations.linked(process.pid.number, other))

    def unlink(self, process: Process, other: Pid) -> None:
        """See `Process.unlink`."""
        self._perform(self.relations.unlinked(process.pid.number, other))

    def monitor(self, process: Process, target: Pid | str | tuple[str, str]) -> Ref:
        """See `Process.monitor`."""
        ref = self.new_ref()
        exact = self._target(target)
        owner = None
        if isinstance(exact, Address) and exact.node == self._name:
            owner = self._local.table.names.get(exact.name)
        self._perform(self.relations.monitored(process.pid.number, ref, exact, owner))
        return ref

    def new_ref(self) -> Ref:
        """One that no monitor has had."""
        self._next_ref += 1
        return Ref(self._name, self._incarnation, self._next_ref)

    def demonitor(self, process: Process, ref: Ref) -> None:
        """See `Process.demonitor`."""
        self._perform(self.relations.demonitored(process.pid.number, ref))

    def exit(self, sender: Pid, other: Pid, reason: Any) -> None:
        """See `Process.exit`."""
        self._perform(self.relations.asked_to_exit(sender, other, reason))

    # Facts.

    def exited(self, process: Process, reason: Any) -> None:
        """A process of this node is no more."""
        number = process.pid.number
        self._perform(self.relations.exited(number, reason), process)
        for session in self._sessions.values():
            if session.lanes:
                session.lanes.ended(process.task, number)

    def ended_before(self, process: Process, other: Pid) -> None:
        """``other`` was spawned linked for a process of this node that had ended by then."""
        self._perform(self.relations.ended_before(process.pid.number, other, process.exit_reason))

    def told(self, session: Session, signal: Any) -> None:
        """A connected node sent a signal. Raises: ValueError, TypeError; the link must go down."""
        if not isinstance(signal, list):
            raise TypeError("a signal that is none")
        owner = self._local.table.names.get
        self._perform(self.relations.told(session.name, session.incarnation, signal, owner))

    def node_down(self, name: str) -> None:
        """A connection is over: whatever crossed it hears so."""
        self._perform(self.relations.node_down(name))

    # How.

    def _perform(self, effects: list[Effect], ended: Process | None = None) -> None:
        for order in effects:
            match order:
                case Deliver(number, message):
                    box = self._local.boxes.get(number)
                    if box is not None:
                        box.put(message)
                case Stop(number, reason, at_once):
                    self._local.stop_process(number, reason, at_once=at_once)
                case Tell(node, signal, after):
                    session = self._sessions.get(node)
                    if session is not None:
                        sender = ended if ended is not None else self._local.by_number(after)
                        task = session.lanes.of_ended(after) if sender is None else sender.task
                        session.signal(self._packed(signal), task)

    def _packed(self, signal: list[Any]) -> bytes:
        try:
            packed = self._codec.pack(operations.signal(signal), signal)
        except FleetError as error:
            log.debug("an exit reason travels as text: %s", error)
            packed = b""
        if not 0 < len(packed) <= MAX_REASON_BYTES:
            text = repr(signal[-1])[: MAX_REASON_BYTES // 8]
            signal = [*signal[:-1], text.encode("utf-8", "backslashreplace").decode()]
            packed = self._codec.pack(operations.signal(signal), signal)
        return packed

    def _connected(self, node: str) -> int | None:
        session = self._sessions.get(node)
        return None if session is None else session.incarnation

    def _target(self, target: Pid | str | tuple[str, str]) -> Target:
        if isinstance(target, Pid):
            return target
        if isinstance(target, str):
            return Address(target, self._name)
        name, node = target
        return Address(name, canonical_node(node))
