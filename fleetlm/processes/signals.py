"""Carries out what `core.links` decides about links, monitors and exit signals between processes.

Facts come from three sources. Each fact goes to `core.links`, which answers with effects:

* processes of this node that link, monitor or send an exit signal (`link` to `exit`),
* processes of this node that are gone (`exited`), told by `LocalProcesses`,
* connected nodes that send a signal (`told`), and sessions that end (`node_down`).

`_perform` carries the effects out: `Deliver` puts a `Down` or an `Exit` into a mailbox, past its limit,
since signals never wait; `Stop` ends a process; `Tell` sends a signal to another node.

Two orderings are promised, and kept here:

* A signal to another node leaves behind everything that its process sent there before. Most messages
  leave in the order of the calls anyway. A large one leaves in pieces, in a lane of its sending task, and
  so the signal is queued in that lane (`Session.signal`). The lane is found by the task of the process.
  A process that is gone has no task here any more; its lane is found by its number, which `exited` gives
  to every session that still has something of it to send.
* When a session ends, everything that crossed it is told ``"noconnection"`` (`node_down`) before
  anything arrives over a newer session. The driver calls in this order, and takes the steps in slices: it
  dials the node again only after the last of them.

A process that is gone may have 100,000 others to tell. It tells `STEPS_PER_TURN` of them at once and as many
in each of the next turns of the loop; those of another process may then be told in between. Nothing is
promised about the order of signals from different processes, nor from one process to different ones.

Performing a `Stop` with ``at_once`` removes a process immediately and so leads back into `exited`. That is
safe: `core.links` has changed its tables before it returned the effects, and `Deliver` and `Stop` do
nothing for a process that is gone.

Source: OTP erl_proc_sig_queue.c; differs: see `core.links`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fleetlm.core.links import Deliver, Effect, Links, Stop, Target, Tell
from fleetlm.errors import FleetError
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down, Exit
from fleetlm.messaging.windows import EXIT_BYTES
from fleetlm.names import Address, canonical_node
from fleetlm.texts import SHORT
from fleetlm.wire import operations
from fleetlm.wire.rights import check_right

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import RunningProcess
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

STEPS_PER_TURN = 256
"""Others that a process which is gone tells in one turn of the loop: about a millisecond."""
MAX_REASON_BYTES = 64 * 1024
"""A signal travels in one batch. An exit reason that is larger, or that cannot travel, is sent as text."""


class Signals:
    """The links and monitors of one node's processes."""

    def __init__(self, context: NodeContext, codec: Codec, local: LocalProcesses) -> None:
        name, incarnation = context.name, context.incarnation
        self.links: Links = Links(
            name, incarnation, local.is_alive, self._get_incarnation, context.settings.max_links_and_monitors
        )
        self._name = name
        self._base_port = context.settings.base_port
        self._incarnation = incarnation
        self._codec = codec
        self._local = local
        self._sessions = context.sessions
        self._next_ref = 0
        self._loop = context.loop
        self._endings: deque[tuple[RunningProcess, Iterator[list[Effect]]]] = deque()
        """Processes that are gone and of which not all others know yet, with the steps that are left."""
        self._check_loop = context.check_loop

    # From processes of this node.

    def adopt(self, process: RunningProcess, pid: Pid) -> None:
        """Link a process with one that it has just spawned on this node, and make it the parent."""
        child = self._local.process(pid)
        if child is not None:
            child.parent = process.pid
        self.link(process, pid)

    def link(self, process: RunningProcess, other: Pid) -> None:
        """See `Process.link`."""
        self._check_loop("link")
        self._check_right_to_end(other)
        self._perform(self.links.linked(process.pid.number, other))

    def unlink(self, process: RunningProcess, other: Pid) -> None:
        """See `Process.unlink`."""
        self._check_loop("unlink")
        self._perform(self.links.unlinked(process.pid.number, other))

    def monitor(self, process: RunningProcess, target: Pid | str | tuple[str, str]) -> Ref:
        """See `Process.monitor`."""
        self._check_loop("monitor")
        ref = self.new_ref()
        exact = self._resolve(target)
        owner = None
        if isinstance(exact, Address) and exact.node == self._name:
            owner = self._local.table.names.get(exact.name)
        self._perform(self.links.monitored(process.pid.number, ref, exact, owner))
        return ref

    def new_ref(self) -> Ref:
        """Return a ref that no monitor has had."""
        self._next_ref += 1
        return Ref(self._name, self._incarnation, self._next_ref)

    def demonitor(self, process: RunningProcess, ref: Ref, *, flush: bool = True) -> None:
        """See `Process.demonitor`."""
        may_have_fired = not self.links.holds_monitor(ref)
        self._check_loop("demonitor")
        self._perform(self.links.demonitored(process.pid.number, ref))
        if flush and may_have_fired:  # Else no `Down` waits, and the mailbox need not be searched.
            process.mailbox.discard(lambda message: isinstance(message, Down) and message.ref == ref)

    def ask_to_exit(self, sender: Pid, other: Pid, reason: Any) -> None:
        """See `Process.exit`. Raises: NotAllowed."""
        self._check_right_to_end(other)
        self.exit(sender, other, reason)

    def exit(self, sender: Pid, other: Pid, reason: Any) -> None:
        """Send an exit signal, for the runtime: a node that does not allow it drops it."""
        self._check_loop("exit")
        self._perform(self.links.asked_to_exit(sender, other, reason))

    # From the runtime.

    def exited(self, process: RunningProcess, reason: Any) -> None:
        """Tell every linked and monitoring process that a process of this node is gone, many in slices."""
        steps = self.links.exited(process.pid.number, reason)
        if self._take_steps(process, steps, STEPS_PER_TURN):
            return
        if not self._endings:
            self._loop.call_soon(self._next_slice)
        self._endings.append((process, steps))

    def finish(self) -> None:
        """Take at once the steps that are left of processes which are gone: the node leaves."""
        while self._endings:
            process, steps = self._endings.popleft()
            self._take_steps(process, steps, math.inf)

    def ended_before(self, process: RunningProcess, other: Pid) -> None:
        """Send the exit signal of a process that was gone before its linked spawn ``other`` was known."""
        self._perform(self.links.ended_before(process.pid.number, other, process._exit_reason))

    def told(self, session: Session, signal: Any, reaches: Callable[[int], bool] | None = None) -> None:
        """Take a signal that a connected node sent.

        Args:
            session: the session that it came over.
            signal: what came.
            reaches: whether the peer may reach the process with that number; see `Links.told`.

        Raises:
            ValueError, TypeError: it is not a signal; the session must end.
        """
        if not isinstance(signal, list):
            raise TypeError("a signal must be a list")
        owner = self._local.table.names.get
        effects = self.links.told(session.name, session.incarnation, signal, owner, reaches)
        weight = self._weigh(signal[-1]) if effects else 0
        self._perform(effects)
        for effect in effects:
            if type(effect) is Deliver and type(effect.message) is Exit:
                box = self._local.boxes.get(effect.number)
                if box is not None:
                    session.arrivals.exits.received(effect.number, box, weight)

    def node_down(self, name: str) -> Iterator[None]:
        """End every link and monitor that crossed a session which has ended, with ``"noconnection"``.

        There is one step for each, so that the caller can let the event loop run in between.
        """
        for effects in self.links.node_down(name):
            self._perform(effects)
            yield

    # Internals.

    def _weigh(self, reason: Any) -> int:
        """Return what a reason weighs that a peer sent, 0 for a short text. Raises: ValueError: too much."""
        if type(reason) is str and len(reason) <= EXIT_BYTES // 4:
            return 0
        try:
            size_bytes = len(self._codec.pack_value(reason))
        except FleetError:
            size_bytes = MAX_REASON_BYTES
        if size_bytes > MAX_REASON_BYTES:
            raise ValueError(f"a signal with a reason of {size_bytes:,} bytes")
        return size_bytes + self._codec.extra_bytes

    def _check_right_to_end(self, other: Pid) -> None:
        session = self._sessions.get(other.node)
        if session is not None:
            check_right(other.node, session.denied, "exit")

    def _next_slice(self) -> None:
        """Take further steps of the process that was gone first."""
        if self._endings:
            if self._take_steps(*self._endings[0], STEPS_PER_TURN):
                self._endings.popleft()
            self._loop.call_soon(self._next_slice)

    def _take_steps(self, process: RunningProcess, steps: Iterator[list[Effect]], most: float) -> bool:
        """Tell up to ``most`` others that a process is gone. Returns whether all have been told."""
        for taken, effects in enumerate(steps, 1):
            self._perform(effects, process)
            if taken >= most:
                return False
        for session in self._sessions.values():
            if session.lanes:
                session.lanes.ended(process._task, process.pid.number)
        return True

    def _perform(self, effects: list[Effect], ended: RunningProcess | None = None) -> None:
        """Carry out effects; ``ended`` is the process whose end caused them, if one did."""
        for effect in effects:
            match effect:
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
                        task = session.lanes.of_ended(after) if sender is None else sender._task
                        session.signal(self._pack(signal), task)

    def _pack(self, signal: list[Any]) -> bytes:
        """Encode a signal; a reason that cannot travel as it is becomes its text."""
        try:
            packed = self._codec.pack_whole(operations.signal(signal), signal)
        except FleetError as error:
            log.debug("an exit reason is sent as text: %s", error)
            packed = b""
        if not 0 < len(packed) <= MAX_REASON_BYTES:
            text = SHORT.repr(signal[-1])
            signal = [*signal[:-1], text.encode("utf-8", "backslashreplace").decode()]
            packed = self._codec.pack_whole(operations.signal(signal), signal)
        return packed

    def _get_incarnation(self, node: str) -> int | None:
        """Return the incarnation of a connected node, or None."""
        session = self._sessions.get(node)
        return None if session is None else session.incarnation

    def _resolve(self, target: Pid | str | tuple[str, str]) -> Target:
        if isinstance(target, Pid):
            return target
        if isinstance(target, str):
            return Address(target, self._name)
        name, node = target
        return Address(name, canonical_node(node, self._base_port))
