"""The two windows of a connection: bytes in flight, and what each process has not taken yet.

A sender waits, or gets `WouldBlock`, while a window is full. So memory is bounded on both sides, and a slow
process holds up only the processes that send to it. Exit signals, `Down` messages and credit wait for neither
window; a reply that finds the window of the connection full waits in a queue (`messaging.session`).

**Bytes of a connection**: see `messaging.byte_windows`.

**Messages of a process.** `SendWindows` at the sender and `ReceiveWindows` at the receiver count units for
each process, as the sender names it (`Key`). A message counts 1, and 1 more for each `UNIT_BYTES` of its
weight (`wire.weights`), so that this window bounds memory as well, whatever the messages consist of: 4,096
units weigh 64 MiB. The sender counts where it appends a message (`Session.admit`, and the copies of it in
`Outbound.send` and `Outbound.call`). The receiver counts when it decodes the message, and tells a TAKEN
when the process has taken it out of its mailbox. A message may be sent while the window is not full, so one
large message may exceed it.

Why both sides count the same:

- The limit is the lower one of both nodes' `Settings.mailbox_limit`; both know it from the handshake.
- The sender writes into a message how many units it counts, or into the heads of its chunks.
- What was sent arrives without a gap, or the connection ends, and its windows with it.
- A message that no mailbox gets (no such process, unreadable, too many open calls) is taken at once.
- A name that moves to another process keeps its window, because both sides count by name.

So a peer that exceeds the limit is broken, and its connection is ended. So is one whose messages count less
than their weights demand (`check_units`). Messages in chunks are all weighed. Unpacking a batch does not tell
what each of its messages weighs, and finding that out takes time. So `Inbound` weighs a batch with a
probability that grows with its weight: a peer that cheats is found out after 16 MiB of messages on average,
counting 32 bytes for each value, however it cuts them; one in fifty gets as far as 64 MiB.

Races. CREDIT and TAKEN are late by the time they travel: the sender then counts too much, never too little,
and waits longer than it must. Units below a step are told with the next tick (`ReceiveWindows.sweep`), so
the last messages of a burst do not stay counted. Senders that wait for a process are served in their order:
a unit is kept for each that was woken, or one that sends without pause would take them all. A sender that
was woken may fail before it sends, if its message cannot be packed; then the next one is woken.

Source: HTTP/2, RFC 9113 section 5.2; differs: the units of a process are given back when it takes a message,
not when the message arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from fleetlm.errors import InvalidName
from fleetlm.messaging.byte_windows import TOLD_SHARE, wake
from fleetlm.names import MAX_PROCESS_NAME_LENGTH
from fleetlm.texts import SHORT
from fleetlm.wire import operations
from fleetlm.wire.blobs import Packed, Parcel
from fleetlm.wire.weights import CONTAINER_BYTES, EXTENSION_BYTES, VALUE_BYTES

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Key, Mailbox

UNIT_BYTES = 16 * 1024
"""Weight of a message that counts as much as one small message."""
EXIT_BYTES = 256
"""Weight of a reason that counts as much as one more exit signal."""
LIGHT_BYTES = 256
"""A shorter request of a few small scalars counts 1 without being weighed."""
LEAST_WEIGHED_BYTES = UNIT_BYTES // (CONTAINER_BYTES + VALUE_BYTES)
"""A shorter message counts 1, whatever it holds: for its bytes a list of empty lists weighs most."""
LEAST_WEIGHED_VALUES = UNIT_BYTES // (EXTENSION_BYTES + CONTAINER_BYTES + VALUE_BYTES)
"""A batch of fewer values and of less than `UNIT_BYTES` has no message that counts more than 1: beside its
bytes, a value weighs at most as much as an empty tuple in a list."""
UNITS_FIELD_BYTES = 16
"""A sender counts the units of a message before it writes them into it, which takes fewer bytes than this."""
MAX_WEIGHED_VALUES = 64
"""Values of a container that `rough_size` looks at: an item of more is not judged by its blobs."""
_PLAIN = frozenset((type(None), bool, int, float))
MAX_NAMES_OF_ONE = 4
"""Keys of one process under which messages of one connection may wait, each with its window. A process has a
number and one name, which may change; a peer that may register could change it without end."""
MAX_UNTOLD_PROCESSES = 4_096
"""Processes of which some units were taken and not told yet; bounds the tables of both sides."""
MAX_SWEPT_MAILBOXES = 16_384
"""Mailboxes that one tick looks at; they take some 20 ms."""


class Obstacle(Enum):
    """Why a message cannot be sent now, in the order in which `Session.obstacle` looks."""

    PROCESS = "the window of its process is full"
    CONNECTION = "the window of the connection is full"
    LANES = "large messages wait before it"


class NodeKey(Enum):
    """The key of a request to the node itself, which no process's window holds up."""

    NODE = "the node itself"


NODE: Final = NodeKey.NODE


def units(weight_bytes: int, limit: int) -> int:
    """The units that a message of this weight (`wire.weights`) counts, at most a whole window."""
    return min(limit, 1 + weight_bytes // UNIT_BYTES)


def rough_size(value: Any) -> int:
    """Return about how many bytes a value holds that is not packed, because it stays on this node.

    It looks at texts, bytes and buffers (whatever has ``nbytes``, as arrays do), and at those in a list,
    tuple, set or dict; deeper values count nothing. A stream of large blobs is what must not fill memory.
    """
    if type(value) in _PLAIN:
        return 0
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_flat_size, islice(value.values(), MAX_WEIGHED_VALUES)))
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_flat_size, islice(value, MAX_WEIGHED_VALUES)))
    return _flat_size(value)


def local_units(value: Any) -> int:
    """Return the units that a value counts which is not packed."""
    kind = type(value)
    if kind in _PLAIN:
        return 1
    if kind is str or kind is bytes:  # The usual items: tokens of a model.
        return 1 + len(value) // UNIT_BYTES
    return 1 + rough_size(value) // UNIT_BYTES


def _flat_size(value: Any) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    size = getattr(value, "nbytes", 0)
    return size if type(size) is int else 0


def weighed(packed: Packed, extra_bytes: int, limit: int, small_bytes: int) -> tuple[Packed, int]:
    """Write into a packed message how many units it counts, unless that is one.

    Args:
        packed: ``[to, payload]``, a CALL, HANDLE or ITEM, or a CAST, STREAM or YIELD, which ends with a 1.
        extra_bytes: `Codec.extra_bytes` of the message.
        limit: units of a whole window.
        small_bytes: what is longer travels in chunks, whose heads say the units.

    Returns:
        What to send, and its units.
    """
    size = len(packed)
    count = units(size + extra_bytes, limit)
    if count == 1 or size > small_bytes or isinstance(packed, Parcel):
        return packed, count
    return operations.set_units(packed, count), count


def check_new_key(key: object) -> int:
    """Check the key of a process for which nothing is held. Returns 0, the units. Raises: InvalidName."""
    if type(key) is not str and type(key) is not int:
        raise InvalidName(SHORT.repr(key), "a process is addressed by its name, a text, or by its Pid")
    if type(key) is str and len(key) > MAX_PROCESS_NAME_LENGTH:
        raise InvalidName(SHORT.repr(key), f"a process name has 1 to {MAX_PROCESS_NAME_LENGTH} characters")
    return 0


def check_units(messages: list[Any], weights: Iterable[int], limit: int) -> None:
    """Check that messages count as many units as their weights demand.

    Args:
        messages: the unpacked messages.
        weights: of each of them; 0 for one that is shorter than `LEAST_WEIGHED_BYTES`.
        limit: units of a whole window.

    Raises:
        ValueError: a message counts less, so that its window would not bound memory.
    """
    for message, weight in zip(messages, weights, strict=True):
        if weight >= UNIT_BYTES:
            declared = operations.declared_units(message)
            if declared is not None and declared < units(weight - UNITS_FIELD_BYTES, limit):
                raise ValueError(f"a message that weighs {weight:,} bytes and counts as {declared}")


class SendWindows:
    """The sender's side of the windows of the peer's processes, and the senders that wait for each.

    Args:
        limit: units of each window.
    """

    __slots__ = ("_favoured", "_kept", "_pool", "_waiters", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.held: dict[Key, int] = {}
        """Units sent and not known to be taken, and those that are kept for senders that were woken;
        `Session.admit` and its copy in `Outbound.send` add to it."""
        self._kept: dict[Key, int] = {}
        """Units kept for senders that were woken and have not run yet."""
        self._favoured: dict[Key, dict[asyncio.Task[Any], None]] = {}
        """The senders that come before all others: see `favour`."""
        self._pool: dict[Key, int] = {}
        """Units kept for senders that are favoured."""
        self._waiters: dict[Key, dict[asyncio.Future[None], asyncio.Task[Any] | None]] = {}

    def taken(self, key: Key, count: int) -> None:
        """Note units that the receiver says were taken. Raises: ValueError for more than was sent."""
        if not 1 <= count <= self.held.get(key, 0) - self._kept.get(key, 0) - self._pool.get(key, 0):
            raise ValueError(f"{count} messages taken that were not sent")
        self._give_back(self.held, key, count)
        self._wake(key)

    async def wait(self, key: Key) -> None:
        """Return when there is room for one message, unless the connection has ended.

        Senders wake in the order in which they began to wait. The unit of one that was woken is kept for it
        until it runs, so that a sender that never waits cannot take it: the caller must send, or give up,
        before it waits for anything else.
        """
        waiters = self._waiters.setdefault(key, {})
        waiter = asyncio.get_running_loop().create_future()
        waiters[waiter] = asyncio.current_task()
        if key in self._favoured:
            self._sort(key)
        try:
            await waiter
        finally:
            del waiters[waiter]
            if not waiters and self._waiters.get(key) is waiters:
                del self._waiters[key]
            if waiter.done() and not waiter.cancelled() and key in self._kept:
                self._give_back(self._kept, key, 1)
                self._give_back(self.held, key, 1)
                if waiters:  # If this one gives up, perhaps no TAKEN comes to wake the next one.
                    asyncio.get_running_loop().call_soon(self._wake, key)

    def close(self) -> None:
        """End with the connection: nothing is held, and every waiting sender wakes."""
        self.held.clear()
        self._kept.clear()
        self._pool.clear()
        self._favoured.clear()
        for waiters in self._waiters.values():
            wake(waiters)

    def _wake(self, key: Key) -> None:
        """Wake as many waiting senders as there is room for, and keep a unit for each."""
        held, kept = self.held, self._kept
        favoured = self._favoured.get(key)
        for waiter, task in self._waiters.get(key, {}).items():
            now = held.get(key, 0)
            if now >= self.limit or (favoured is not None and task not in favoured):
                break
            if not waiter.done():
                waiter.set_result(None)
                held[key] = now + 1
                kept[key] = kept.get(key, 0) + 1
        if favoured is not None and (free := self.limit - held.get(key, 0)) > 0:
            held[key] = self.limit
            self._pool[key] = self._pool.get(key, 0) + free

    # Processes that wait in a circle.

    def favour(self, key: Key, task: asyncio.Task[Any]) -> None:
        """Let this task send before all others, which get no room until `unfavour`.

        A process in a circle must be able to send before it takes what would make room, and others that
        send without pause would leave nothing to it.
        """
        self._favoured.setdefault(key, {})[task] = None
        self._sort(key)
        self._wake(key)

    def unfavour(self, key: Key, task: asyncio.Task[Any]) -> None:
        """Treat this task as any other again."""
        favoured = self._favoured.get(key)
        if favoured is None or task not in favoured:
            return
        del favoured[task]
        if not favoured:
            del self._favoured[key]
            if pool := self._pool.pop(key, 0):
                self._give_back(self.held, key, pool)
            self._wake(key)

    def draw(self, key: Key) -> bool:
        """Take a unit that is kept for senders that are favoured; the caller must send at once."""
        if key not in self._pool or asyncio.current_task() not in self._favoured.get(key, ()):
            return False
        self._give_back(self._pool, key, 1)
        self._give_back(self.held, key, 1)
        return True

    def _sort(self, key: Key) -> None:
        """Put the waiting senders that are favoured before the others."""
        waiters, favoured = self._waiters.get(key, {}), self._favoured[key]
        entries = sorted(waiters.items(), key=lambda entry: entry[1] not in favoured)
        waiters.clear()
        waiters.update(entries)

    @staticmethod
    def _give_back(units: dict[Key, int], key: Key, count: int) -> None:
        left = units[key] - count
        if left:
            units[key] = left
        else:
            del units[key]


class UntakenExits:
    """Counts the `Exit` messages of a peer that processes of this node have not taken; a `mailbox.Window`.

    They wait for no window, and a peer can send them without end: with links that it makes anew, or without.

    One counts 1, and 1 more for each `EXIT_BYTES` that its reason weighs.

    Args:
        limit: of those that one process has not taken.
    """

    __slots__ = ("_held", "_limit", "step")

    def __init__(self, limit: int) -> None:
        self.step: int = max(1, limit // TOLD_SHARE)
        self._limit = limit
        self._held: dict[Key, int] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._held)

    def received(self, number: int, box: Mailbox, weight_bytes: int = 0) -> None:
        """Count one that was appended to a mailbox. Raises: ValueError: the peer sends too many."""
        held, count = self._held.get(number, 0), 1 + weight_bytes // EXIT_BYTES
        if held >= self._limit:
            raise ValueError(
                f"more than {self._limit:,} exit signals to one process, which has not taken them"
            )
        self._held[number] = held + count
        box.arrived(self, number, 1, count)

    def took(self, key: Key, count: int) -> None:
        """Count what has left a mailbox."""
        left = self._held[key] - count
        if left:
            self._held[key] = left
        else:
            del self._held[key]


class ReceiveWindows:
    """The receiver's side of the windows of this node's processes; one for each connection.

    Each is a `mailbox.Window` of the mailboxes that hold messages of this connection.

    Args:
        limit: units of each window, as the sender has it.
        tell: sends ``(key, units)`` to the peer.
        max_exits: exit signals that one process may not have taken.
    """

    __slots__ = ("_boxes", "_much", "_tell", "_untold", "exits", "full", "held", "limit", "step")

    def __init__(self, limit: int, tell: Callable[[Key, int], None], max_exits: int = 262_144) -> None:
        self.limit: int = limit
        self.exits: UntakenExits = UntakenExits(max_exits)
        self.step: int = max(1, limit // TOLD_SHARE)
        self.held: dict[Key, int] = {}
        """Units received and not told to be taken."""
        self._tell = tell
        self._untold: dict[Key, int] = {}
        """Units taken and not told yet."""
        self._boxes: dict[Mailbox, None] = {}
        """Mailboxes that hold, or held at the last sweep, messages of this connection."""
        self.full: list[Mailbox] = []
        """Those that were full at the last sweep, or held as much of this connection as it may send."""
        self._much = limit - self.step

    def received(self, key: Key, count: int, box: Mailbox | None, weight: int = 1) -> None:
        """Count messages that have come and were appended to a mailbox.

        Args:
            key: the process as the sender named it.
            count: messages.
            box: where they were appended; None if no process has that name, so that they are taken already.
            weight: units of each.

        Raises:
            ValueError: the peer ignores its window.
        """
        before = self.held.get(key, 0)
        if not before and box is not None and type(key) is str:
            self._check_names(box)
        if before + count > self.limit:
            raise ValueError(f"more than {self.limit:,} messages that were not taken, without credit")
        self.held[key] = before + count * weight
        if box is None:
            self.took(key, count * weight)
            return
        self._boxes[box] = None
        box.arrived(self, key, count, weight)

    def _check_names(self, box: Mailbox) -> None:
        """Raise ValueError if messages wait in a mailbox under too many names."""
        if box.count_keys(self) > MAX_NAMES_OF_ONE:
            raise ValueError(f"messages for one process under more than {MAX_NAMES_OF_ONE} names")

    @property
    def is_empty(self) -> bool:
        """Whether everything has been taken."""
        held, untold = self.held, self._untold
        return len(held) == len(untold) and held == untold

    def boxes(self) -> list[Mailbox]:
        """Return the mailboxes that hold messages of this connection, and some that did."""
        return list(self._boxes)

    def took(self, key: Key, count: int) -> None:
        """Count units that have left a mailbox, and tell the peer after every `step` of them."""
        self._untold[key] = now = self._untold.get(key, 0) + count
        if now >= self.step:
            self._tell_one(key)
        elif len(self._untold) > MAX_UNTOLD_PROCESSES:
            self.tell_all()

    def sweep(self) -> None:
        """Tell the peer what was taken since the last step, however little; called once in every tick.

        It looks at no more than `MAX_SWEPT_MAILBOXES` of them, in turns: a tick must not hold up the loop.
        """
        self.full.clear()
        for box in list(islice(self._boxes, MAX_SWEPT_MAILBOXES)):
            box.settle()
            del self._boxes[box]
            key = box.key_of(self)
            if key is not None:
                self._boxes[box] = None
                if self.held.get(key, 0) - self._untold.get(key, 0) > self._much or box.full:
                    self.full.append(box)
        self.tell_all()

    def tell_all(self) -> None:
        """Tell the peer what was taken of all processes."""
        for key in list(self._untold):
            self._tell_one(key)

    def _tell_one(self, key: Key) -> None:
        """Take the units of one process out of both tables and tell the peer."""
        count = self._untold.pop(key)
        left = self.held[key] - count
        if left:
            self.held[key] = left
        else:
            del self.held[key]
        self._tell(key, count)
