"""Who waits for whom: the processes of a node that wait in a call, or for room for a message.

`Outbound` enters a process here before it waits and takes it out afterwards. A process is entered for what
its main task waits for, since only then it takes no message meanwhile. `Process.list()` shows the table, and
`processes.circles` looks in it for circles.

A process that sends while the mailbox of its target is full waits for room. Nobody waits for longer than
`Settings.send_timeout_s`; after `Settings.stalled_after_s` a line in the log names both ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.windows import NODE, NodeKey
from fleetlm.taps import Taps

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.ids import Pid
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Target
    from fleetlm.messaging.turns import Turns

MAX_SHOWN = 20
"""Waits that are shown of one node, to keep the answer short."""
LOOK_S = 0.25
"""Seconds between two looks at what waits. A circle is found within twice this time; most calls and waits
for room are over before the first look."""


class WaitsFor(Enum):
    """What a process waits for."""

    REPLY = "reply"
    ROOM = "room"


class Waiter(Protocol):
    """A process, as far as its waiting matters here."""

    pid: Pid
    mailbox: Mailbox
    _waits_for: Wait | None

    @property
    def name(self) -> str | None:
        """The name under which it is registered on its node, or None."""


class Wait:
    """One process, or another task, that waits.

    Args:
        process: None: a task that is no process.
        what: that it waits for.
        to: the target, as its sender named it.
        where: the session that leads to the target, or the mailbox of a target on this node.
        since: when it began, on the loop's clock in seconds.
    """

    __slots__ = (
        "call", "is_logged", "key", "looks", "process", "ref", "since", "task", "to", "what", "where",
    )  # fmt: skip

    def __init__(
        self, process: Waiter | None, what: WaitsFor, to: Target, where: Session | Mailbox, since: float
    ) -> None:
        self.process: Waiter | None = process
        self.what: WaitsFor = what
        self.to: Target = to
        self.where: Session | Mailbox = where
        self.since: float = since
        self.key: Key | NodeKey = NODE
        """The target's key, where a session leads to it."""
        self.ref: int = 0
        """The number of a call to another node."""
        self.call: Call | None = None
        """A call on this node."""
        self.task: str = ""
        """The name of the task, if it is no process."""
        self.looks: int = 0
        """How often `processes.circles` has followed it."""
        self.is_logged: bool = False

    def describe(self, now: float) -> str:
        """Return what is waited for and since when: ``room at 'b' on fleetlm@10.0.0.7 for 3.2 s``."""
        preposition = "from" if self.what is WaitsFor.REPLY else "at"
        return f"{self.what.value} {preposition} {show(self.to)} for {now - self.since:.1f} s"

    @property
    def node(self) -> str:
        """The node of the target; empty: this one."""
        return getattr(self.where, "name", "")

    @property
    def waiter(self) -> str:
        """The process, or the task, that waits."""
        return f"the task {self.task!r}" if self.process is None else show_process(self.process)


class Waits:
    """All that waits on one node.

    Args:
        process_of: the process to which a task belongs, if it is its main task.
        loop: of the node.
        turns: of this loop.
        look: called with the waits that are at least `LOOK_S` old, every `LOOK_S` while there are any.
        taps: told of windows that are full; default: nobody.
    """

    def __init__(
        self,
        process_of: Callable[[asyncio.Task[Any] | None], Waiter | None],
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        look: Callable[[list[Wait]], None],
        taps: Taps | None = None,
    ) -> None:
        self.process_of = process_of
        self.loop: asyncio.AbstractEventLoop = loop
        self.turns: Turns = turns
        self._look = look
        self._waits: dict[Wait, None] = {}
        self._is_looking = False
        self.taps: Taps = Taps() if taps is None else taps

    def begin(self, process: Waiter | None, what: WaitsFor, to: Target, where: Session | Mailbox) -> Wait:
        """Note that a process waits from now on."""
        wait = Wait(process, what, to, where, self.loop.time())
        if process is not None:
            process._waits_for = wait  # noqa: SLF001  # private: programs hold the process
        self._waits[wait] = None
        if what is WaitsFor.ROOM and self.taps.window_full is not None:
            self.taps.window_full(to, wait.node)
        if not self._is_looking:
            self._is_looking = True
            self.loop.call_later(LOOK_S, self._on_look)
        return wait

    def end(self, wait: Wait) -> None:
        """Note that it does not wait any more."""
        del self._waits[wait]
        process = wait.process
        if process is not None and process._waits_for is wait:  # noqa: SLF001
            process._waits_for = None  # noqa: SLF001
        if wait.what is WaitsFor.ROOM and self.taps.window_opened is not None:
            self.taps.window_opened(wait.to, wait.node, self.loop.time() - wait.since)

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._waits)

    def mailboxes_waited_for(self, most: int) -> list[Mailbox]:
        """Return mailboxes of this node for which senders wait, of the ``most`` oldest waits."""
        oldest = islice(self._waits, most)
        return [
            wait.where for wait in oldest if wait.what is WaitsFor.ROOM and isinstance(wait.where, Mailbox)
        ]

    def is_open(self, wait: Wait) -> bool:
        """Whether it still waits."""
        return wait in self._waits

    def stalled(self, for_s: float) -> list[str]:
        """Return who has waited for so many seconds or longer, and for whom; the longest first."""
        now = self.loop.time()
        old = takewhile(lambda wait: now - wait.since >= for_s, self._waits)
        return [f"{wait.waiter} waits for {wait.describe(now)}" for wait in islice(old, MAX_SHOWN)]

    def _on_look(self) -> None:
        self._is_looking = bool(self._waits)
        if not self._is_looking:
            return
        self.loop.call_later(LOOK_S, self._on_look)
        before = self.loop.time() - LOOK_S
        old = list(takewhile(lambda wait: wait.since <= before, self._waits))  # They are in order.
        if old:
            self._look(old)


def show(to: Target) -> str:
    """Return a target as people read it."""
    return f"{to[0]!r} on {to[1]}" if isinstance(to, tuple) else repr(to) if isinstance(to, str) else str(to)


def show_process(process: Waiter) -> str:
    """Return a process as people read it: its name with its node, or its pid."""
    return str(process.pid) if process.name is None else f"{process.name!r} on {process.pid.node}"
