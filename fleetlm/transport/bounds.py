"""Decides which accepted connections a node ends: what is unread, how long, and how many.

libzmq accepts each connection, and reads whatever comes over it, without a limit. A message that has not come
whole is not seen by the node at all, and holds the memory of what has come. A node therefore ends a
connection that exceeds one of these bounds, and everything that libzmq holds of it is freed or read:

* *Unread bytes.* The kernel counts what has come over a connection, and the node counts the frames that it
  has read. The difference waits in libzmq. A peer has at most its windows and its tables in flight, which
  `Settings.unread_bytes` exceeds by far. The connections of strangers have less, each and together.
* *A message that does not end.* A node's messages have one part, or two, and no more bytes than a frame
  may have. What is unread beyond that, though libzmq had taken it from the kernel before the ROUTER had no
  whole frame left, belongs to a message that is longer. In parts of one byte each it would take twenty
  times its bytes on the wire, so it ends long before the bound for unread bytes does (`Bounds._is_endless`).
* *Time.* A connection is a stranger's until the handshake of two nodes has shown that it is a peer's half
  (`Bounds.admit`). It has `Settings.stranger_s` for that, not counting the time in which this node's own
  loop stood still.
* *Frames.* A handshake is a handful of small frames: a stranger may send `STRANGER_FRAMES` of them, and
  `STRANGER_BYTES`. Before its HELLO is read an honest node sends nothing else, whatever this node's loop
  does meanwhile, so no more than `STRANGER_BYTES` of it may be unread until then. That is less than libzmq
  needs to be kept busy: a frame of two bytes takes 64 in memory until it is read.
* *Heartbeats.* Where the frames of a peer travel on a local road, heartbeats are all that comes over its
  connection (`fleetlm.transport.heartbeats`). No frame could ever show that they were taken.
* *Counts.* `Settings.max_strangers` at a time. Where there are more, those of the address that has most of
  them go first, the oldest first: so the newcomer that is about to shake hands finds a place, however many
  an attacker opens. One address alone may have a quarter; there the latest ones are refused, so that
  hundreds of nodes behind one address that dial together do not displace each other.

*Counting what was read.* A frame is counted with the bytes that ZMTP adds to it (`Overhead`). Heartbeats are
not seen here, so the difference grows by some bytes a second though nothing is unread. `Bounds._correct`
takes it back when a frame proves that everything up to an earlier moment was read: at that moment libzmq
had taken all bytes from the kernel (1); later the ROUTER had no whole frame (2); and a frame that is read
after that (3) has become whole after (1), so what came before it is not waiting for its end any more.

This module decides only, and knows no socket; `transport.router` looks and ends.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

from fleetlm.records import Row
from fleetlm.settings import Settings
from fleetlm.transport.heartbeats import MOST_BESIDE_BYTES, Heartbeats
from fleetlm.transport.tcp import Identity
from fleetlm.wire.frames import MAX_HANDSHAKE_BYTES

STRANGER_BYTES: Final = 4 * MAX_HANDSHAKE_BYTES
"""Bytes of frames that a stranger may send: a HELLO, a READY for each attempt, a PROBE with padding."""
DECODED_AT_ONCE: Final = 64 * 1024
"""Bytes that libzmq may have taken from the kernel and not looked at yet; it takes 8 KiB at a time."""
STRANGER_FRAMES: Final = 32
"""Frames that a stranger may send: a HELLO, some PROBEs, and a READY for each dial of this node."""
WINDOWS_UNREAD: Final = 4
"""`Settings.unread_bytes` is at least so many windows: those of the peer, and its tables."""
SHARE_OF_ADDRESS: Final = 4
"""One address may have this fraction of `Settings.max_strangers`."""
MAX_EXPIRED: Final = 64
"""Connections that end at one time since their time is over: a millisecond. The others are next."""
KEPT_OF_8: Final = 7
"""So many eighths of the strangers stay when there are too many: they are sorted once for the rest."""
CROWD_S: Final = 60.0
"""Seconds between two log lines about too many connections."""
ENDLESS: Final = "it sends a message without end"
"""How the reason begins with which a connection ends whose message is too long."""
UNCERTAIN_BYTES: Final = 16 * 1024
"""Differences up to this are not corrected: heartbeats of some minutes."""


class Overhead(Row):
    """What ZMTP adds to a frame on the wire. Source: ZMTP 3.1 (RFC 37), CurveZMQ (RFC 26)."""

    small_bytes: int
    """Added to a short frame: flags and a length of one byte."""
    large_bytes: int
    """Added to a longer one: its length has eight bytes."""
    most_of_small: int
    """The longest frame that is short."""


PLAIN: Final = Overhead(2, 9, 255)
ENCRYPTED: Final = Overhead(35, 42, 222)
"""Further 33 bytes: the name of the command, a nonce, a checksum, and the flags."""


class Mark(Row):
    """How far a correction has come; see the module."""

    received: int
    drains: int
    read_bytes: int | None


class Taken(Row):
    """Bytes that libzmq had taken from the kernel, at a time when the ROUTER had been empty so many times."""

    bytes: int
    drains: int


class Accepted:
    """One accepted connection.

    Args:
        fd: libzmq's descriptor.
        identity: which connection it was when it was accepted; None if it had ended by then.
        now: the time.

    Attributes:
        source: whose frames come over it, once one has come.
        since: when it was accepted.
        read_bytes: bytes on the wire of the frames that were read.
        said_bytes: bytes of the frames that were read while it was a stranger's.
        said_frames: how many these were.
        is_introduced: whether a HELLO was among them.
        unread_bytes: what was found unread at the last look.
        is_peer: whether it is a half of a connection that is up.
        was_peer: whether it is or was.
        is_over: whether its frames are dropped, since its connection of two nodes is over.
        is_cut: whether it was ended.
        heartbeats: bounds what comes, once the frames of its peer travel on a local road.
        mark: see `Bounds._correct`.
        taken: see `Bounds._is_endless`.
    """

    __slots__ = (
        "fd", "heartbeats", "identity", "is_cut", "is_introduced", "is_over", "is_peer", "mark", "read_bytes",
        "said_bytes", "said_frames", "since", "source", "taken", "unread_bytes", "was_peer",
    )  # fmt: skip

    def __init__(self, fd: int, identity: Identity | None, now: float) -> None:
        self.fd: int = fd
        self.identity: Identity | None = identity
        self.since: float = now
        self.source: bytes | None = None
        self.read_bytes: int = 0
        self.said_bytes: int = 0
        self.said_frames: int = 0
        self.is_introduced: bool = False
        self.unread_bytes: int = 0
        self.is_peer: bool = False
        self.was_peer: bool = False
        self.is_over: bool = False
        self.is_cut: bool = False
        self.heartbeats: Heartbeats | None = None
        self.mark: Mark | None = None
        self.taken: Taken = Taken(0, 0)

    @property
    def ip(self) -> str:
        """The address of the other end; empty if it is not known."""
        return "" if self.identity is None else self.identity.ip


Offence = tuple[Accepted, str]
"""A connection that must end, and why."""


class Bounds:
    """The accepted connections of one node that are a stranger's, and the bounds of all.

    Args:
        settings: the limits.
        max_descriptors: the limit of open files: strangers have at most a quarter of it.
    """

    def __init__(self, settings: Settings, max_descriptors: int) -> None:
        self._stranger_s = settings.stranger_s
        self._unread_bytes = max(settings.unread_bytes, WINDOWS_UNREAD * settings.window_bytes)
        self._stranger_unread_bytes = self._unread_bytes // WINDOWS_UNREAD
        self._unfinished_bytes = settings.max_frame_bytes + DECODED_AT_ONCE
        self._heartbeat_interval_s = settings.heartbeat_interval_s
        self._crowded_out = 0
        self._told_at = -math.inf
        self._most = max(1, min(settings.max_strangers, max_descriptors // 4))
        self._most_of_ip = max(1, self._most // SHARE_OF_ADDRESS)
        self._strangers: dict[Accepted, None] = {}
        """The oldest first."""
        self._by_ip: dict[str, dict[Accepted, None]] = {}
        self._strangers_unread_bytes = 0

    def tell_crowd(self, now: float, ended: int, ip: str) -> str:
        """Count connections that ended since there were too many, and say so once in `CROWD_S`.

        Args:
            now: the time.
            ended: how many ended.
            ip: the address of the last one.

        Returns:
            A sentence for the log, or "".
        """
        self._crowded_out += ended
        if now < self._told_at + CROWD_S:
            return ""
        self._told_at, count, self._crowded_out = now, self._crowded_out, 0
        return (
            f"too many connections that are not a node's, {count:,} were ended since this was last said, the "
            f"latest one from {ip or 'an unknown address'}: at most {self._most:,} at a time, and "
            f"{self._most_of_ip:,} from one address (Settings.max_strangers)"
        )

    @property
    def most_of_strangers(self) -> int:
        """Unread bytes that all strangers may have together while the loop stands still.

        As much as one that has introduced itself: it may be thirty times as much in memory, and the loop has
        yet to read it.
        """
        return self._stranger_unread_bytes

    def most_unread(self, known: Accepted) -> int:
        """Return how many unread bytes a connection may have. May be called in any thread."""
        if known.was_peer:
            return self._unread_bytes
        return self._stranger_unread_bytes if known.is_introduced else STRANGER_BYTES

    @property
    def strangers(self) -> int:
        """How many connections are not of a peer."""
        return len(self._strangers)

    def accept(self, known: Accepted) -> list[Accepted]:
        """Take in a new connection. Returns those that must end since there are too many."""
        self._strangers[known] = None
        own = self._by_ip.setdefault(known.ip, {})
        own[known] = None
        if len(own) > self._most_of_ip:
            self.forget(known)
            return [known]
        if len(self._strangers) > self._most:
            return self._thin_out()
        return []

    def admit(self, known: Accepted) -> None:
        """A connection is a half of one that is up."""
        self.forget(known)
        known.is_peer = known.was_peer = True

    def forget(self, known: Accepted) -> None:
        """A connection is no stranger's any more, or is over. Idempotent."""
        if known not in self._strangers:
            return
        del self._strangers[known]
        self._strangers_unread_bytes -= known.unread_bytes
        own = self._by_ip[known.ip]
        del own[known]
        if not own:
            del self._by_ip[known.ip]

    def hear(self, known: Accepted, size_bytes: int, *, is_hello: bool) -> list[Offence]:
        """Count a frame of a stranger. Returns the stranger if it has said too much."""
        known.said_bytes += size_bytes
        known.said_frames += 1
        known.is_introduced = known.is_introduced or is_hello
        if known.said_bytes > STRANGER_BYTES:
            said = f"{STRANGER_BYTES // 1024} KiB"
        elif known.said_frames > STRANGER_FRAMES:
            said = f"{STRANGER_FRAMES} frames"
        else:
            return []
        self.forget(known)
        return [(known, f"it sent more than {said}, and is not connected as a node")]

    def expire(self, now: float) -> list[Offence]:
        """Return the strangers whose time is over, up to `MAX_EXPIRED` of them."""
        late: list[Offence] = []
        for known in self._strangers:
            if now <= known.since + self._stranger_s or len(late) == MAX_EXPIRED:
                break
            late.append((known, f"it did not become a node's connection within {self._stranger_s:g} s"))
        for known, _ in late:
            self.forget(known)
        return late

    def look(self, known: Accepted, received: int, waiting: int | None, drains: int) -> list[Offence]:
        """Take what the kernel has counted for a connection.

        Args:
            known: the connection.
            received: bytes that have come over it.
            waiting: those of them that libzmq has not taken from the kernel, counted after ``received``; None
                if that is not known.
            drains: how many times the ROUTER had no frame left.

        Returns:
            What must end: this connection, or the strangers with most unread bytes.
        """
        unread = received - known.read_bytes
        if self._is_endless(known, received, waiting, drains):
            self.forget(known)
            return [(known, f"{ENDLESS}: {_show(unread)} of it have come")]
        if known.is_peer:
            if unread > UNCERTAIN_BYTES:
                unread = self._correct(known, received, waiting, drains)
            known.unread_bytes = unread
            return [(known, _describe(unread))] if unread > self._unread_bytes else []
        if known not in self._strangers:
            return [(known, _describe(unread))] if unread > self._unread_bytes else []
        self._strangers_unread_bytes += unread - known.unread_bytes
        known.unread_bytes = unread
        offences: list[Offence] = []
        if not known.is_introduced and unread > STRANGER_BYTES:
            self.forget(known)
            return [(known, f"it sent {unread // 1024:,} KiB before it was heard, and no node begins so")]
        if unread > self._stranger_unread_bytes:
            self.forget(known)
            offences.append((known, _describe(unread)))
        while self._strangers_unread_bytes > self._unread_bytes:
            worst = max(self._strangers, key=lambda each: each.unread_bytes)
            self.forget(worst)
            offences.append((worst, _describe(worst.unread_bytes)))
        return offences

    def moved(self, known: Accepted, now: float, received: int) -> None:
        """The frames of a peer travel on a local road from now on, and all that had come before were read."""
        known.heartbeats = Heartbeats(now, received, MOST_BESIDE_BYTES, self._heartbeat_interval_s)
        known.unread_bytes = 0

    def look_beside(self, known: Accepted, now: float, received: int) -> list[Offence]:
        """Take what the kernel has counted for a connection whose frames have `moved`."""
        if known.heartbeats is None or known.heartbeats.take(now, received):
            return []
        self.forget(known)
        return [(known, "it sends more than heartbeats beside its local road, as no fleetlm node does")]

    def is_suspect(self, known: Accepted) -> bool:
        """Whether so much of a connection is unread that it may soon be too much."""
        if known in self._strangers and not known.is_introduced:
            return known.unread_bytes > STRANGER_BYTES // 8
        return known.unread_bytes > self._most_unfinished(known)

    def _most_unfinished(self, known: Accepted) -> int:
        """The bytes that a message without its end may have: a stranger sends nothing but a handshake."""
        return STRANGER_BYTES + DECODED_AT_ONCE if known in self._strangers else self._unfinished_bytes

    def _is_endless(self, known: Accepted, received: int, waiting: int | None, drains: int) -> bool:
        """Whether a message is longer than those of nodes, though it has not ended; see the module."""
        most = self._most_unfinished(known)
        if waiting is None or received - known.read_bytes <= most or drains == known.taken.drains:
            return False
        if known.taken.bytes - known.read_bytes > most:
            return True
        known.taken = Taken(received - waiting, drains)
        return False

    def _correct(self, known: Accepted, received: int, waiting: int | None, drains: int) -> int:
        """Take one step of a correction, and return what is unread; see the module."""
        mark = known.mark
        if mark is None:
            if waiting == 0:
                known.mark = Mark(received, drains, None)
        elif mark.read_bytes is None:
            if drains > mark.drains:
                known.mark = mark._replace(read_bytes=known.read_bytes)
        elif known.read_bytes > mark.read_bytes:
            known.read_bytes, known.mark = max(known.read_bytes, mark.received), None
        return received - known.read_bytes

    def _thin_out(self) -> list[Accepted]:
        """Choose the strangers to end: the oldest ones of the addresses that have most."""
        counts = [(-len(own), next(iter(own)).since, ip) for ip, own in self._by_ip.items()]
        heapq.heapify(counts)
        chosen: list[Accepted] = []
        while len(self._strangers) > self._most * KEPT_OF_8 // 8:
            _, _, ip = heapq.heappop(counts)
            oldest = next(iter(self._by_ip[ip]))
            self.forget(oldest)
            chosen.append(oldest)
            if ip in self._by_ip:
                own = self._by_ip[ip]
                heapq.heappush(counts, (-len(own), next(iter(own)).since, ip))
        return chosen


def _describe(unread: int) -> str:
    return (
        f"{_show(unread)} of it are unread: it sends faster than its window allows, or a message without end"
    )


def _show(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
