"""Local roads: Unix sockets over which the frames of two nodes of one host travel instead of TCP.

A frame that passes through libzmq wakes a thread of it on each side, and these wake-ups are most of the time
of a single call. So two nodes of one host move the frames of a connection to Unix sockets, one for each half,
as soon as the connection is up. Everything else stays with ZeroMQ: the handshake, and the heartbeats that
tell whether the peer is alive, which libzmq's thread answers also while a program holds the GIL.

Who decides what: `core.connection` when a half changes its road, and which frame is the last one on the old
road; this module has the sockets. For the half of A, which sends to B:

1. B listens at an abstract Unix address, whose number is in its HELLO (`LocalRoads.number`).
2. A connects there, looks whether its own user listens, and sends a *ticket* (`open`): the epochs of both
   halves, which both nodes have drawn for this connection, and which only these two have seen.
3. B looks whether its own user connects, and compares the ticket with those that it awaits (`expect`), of
   connections that are up. It answers with one byte (`Listener.road_opened` at A).
4. A says, as the last frame on the old road, that it changes over (MOVED), and sends on the new one
   (`take`). B reads the new one only when MOVED has come (`follow`), whether or not its turn to be taken has.

With the ticket A gives B a descriptor of its *board* (`fleetlm.transport.tick_board`), and the answer says
whether B took it. B then finds the ticks of A there, from the change on, and A does not send them
(`shows_ticks`). A node that knows no boards passes the descriptor over.

So no frame can overtake another, and the numbers in the frames go on: a frame that was lost or came twice
would end the connection. Where any step fails, nothing is said and the half stays where it is: the peer runs
on another host or in a container with a network of its own (the address leads nowhere there), it has another
user, descriptors are short, or it has no local road.

A local road that ends while ZeroMQ's connection lives ends the connection too. To fall back, both nodes would
have to know which frames had arrived, and keep all others until then. It happens only if something goes wrong
in this host, and the nodes connect anew at once. A connection that ended soon is followed by one without a
local road.

A node opens a few roads at once and the others one after another (`OPENED_AT_ONCE`): where dozens of nodes
start together on one host, roads would take nearly as much of the processor as the connections themselves,
just when everybody waits for these. Meanwhile a connection sends on ZeroMQ.

Whoever connects without the right ticket is disconnected, at the latest after `Settings.stranger_s`, and at
most `MAX_WAITING` may wait. An abstract address needs no file and disappears with the process.

Source: unix(7), abstract addresses and SO_PEERCRED, which only Linux has. Elsewhere there are no local roads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from fleetlm.settings import Settings
from fleetlm.transport import tick_board
from fleetlm.transport.descriptors import Descriptors
from fleetlm.transport.interface import Listener
from fleetlm.transport.local_frames import FrameReader, FrameWriter, ReadingTime
from fleetlm.transport.tick_board import Board, OwnBoard, Tick
from fleetlm.wire.frames import TICKET

log: logging.Logger = logging.getLogger("fleetlm.zmq")

HAS_LOCAL_ROADS: Final = sys.platform.startswith("linux")
"""Whether this system has what local roads need."""
MAX_WAITING: Final = 64
"""Connections that have not shown a ticket that is awaited. Each node of this host opens one at a time."""
MAX_ACCEPTED: Final = 16
"""Connections accepted in one turn of the loop."""
BACKLOG: Final = 128
"""Connections that may wait to be accepted; a node that finds no place stays with ZeroMQ."""
OPENED_AT_ONCE: Final = 16
"""Roads that a node opens without a pause: to all neighbours on most hosts."""
OPENED_A_SECOND: Final = 8
"""Roads beyond that: some 5 % of a processor while dozens of nodes start, see `benchmarks/NOTES.md`."""
END_S: Final = 0.5
"""Seconds between the end of a local road and that of its connection. Mostly the peer has ended both, and
ZeroMQ says so meanwhile, and why."""
_LET_IN: Final = b"\x01"
_LET_IN_AND_READS: Final = b"\x02"
"""The same, and the board that came with the ticket is read."""
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SO_PEERCRED: Final[int] = getattr(socket, "SO_PEERCRED", 17)
_CREDENTIALS: Final = struct.Struct("iII")
"""Linux's ``struct ucred``: process, user, group."""
_FD: Final = struct.Struct("i")
_FD_SPACE: Final = socket.CMSG_LEN(_FD.size)
"""Room for one descriptor; the kernel closes further ones that come."""
_AGAIN: Final = (BlockingIOError, InterruptedError)


class _Arrival:
    """A connection that has come, until its ticket is known to be right or wrong."""

    __slots__ = ("board", "sock", "ticket", "until")

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock: socket.socket = sock
        self.ticket: bytes = b""
        self.board: Board | None = None
        self.until: float = until


class _Request:
    """A connection of this node to a peer's listener, until the peer has let it in."""

    __slots__ = ("sock", "until")

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock: socket.socket = sock
        self.until: float = until


class LocalRoads:
    """The local roads of one transport.

    Args:
        settings: whether there are any, and the limits.
        descriptors: knows whether the process has descriptors left.

    Attributes:
        number: of this node's listener; 0: it has none.
    """

    def __init__(self, settings: Settings, descriptors: Descriptors) -> None:
        self._settings = settings
        self._descriptors = descriptors
        self.number: int = 0
        self._listening: socket.socket | None = None
        self._own_board: OwnBoard | None = None
        self._is_accepting = False
        self._loop: asyncio.AbstractEventLoop
        self._listener: Listener
        self._cut: Callable[[bytes, float], None]
        self._lost: Callable[[int], None]
        self._arrivals: dict[_Arrival, None] = {}
        self._expected: dict[bytes, bytes] = {}
        """Ticket of a half that may come → its source."""
        self._tickets: dict[bytes, bytes] = {}
        """The same the other way round."""
        self._let_in: dict[bytes, socket.socket] = {}
        """Source → its local road, which is not read yet."""
        self._boards: dict[bytes, Board] = {}
        """Source → the board of its node."""
        self._reading_time: ReadingTime
        self._readers: dict[bytes, FrameReader] = {}
        self._waiting: dict[int, tuple[int, bytes]] = {}
        """Channel whose road is not opened yet → the number of the peer's listener, and the ticket."""
        self._turn_at = -math.inf
        """When the next road would be due if they were opened at equal distances; see `_open_next`."""
        self._next_turn: asyncio.TimerHandle | None = None
        self._requests: dict[int, _Request] = {}
        """By channel."""
        self._writers: dict[int, FrameWriter] = {}
        """Channel → the road on which the peer has let it in."""
        self._taken: set[int] = set()
        """Channels whose frames travel there."""
        self._seen: set[int] = set()
        """Channels whose peer reads this node's board."""

    # The listener.

    def bind(self) -> None:
        """Take an address: a random number of 63 bits. Without one there are no local roads."""
        if not (HAS_LOCAL_ROADS and self._settings.local_road):
            return
        number = int.from_bytes(os.urandom(8)) >> 1 | 1
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(_address(number))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            log.debug("no local roads: cannot listen at a Unix address: %s", error.strerror)
            sock.close()
            return
        self._listening, self.number = sock, number
        try:
            self._own_board = OwnBoard()
        except (OSError, AttributeError) as error:  # AttributeError: an old C library
            log.debug("ticks to nodes of this host are frames: %s", error)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        cut: Callable[[bytes, float], None],
        lost: Callable[[int], None],
    ) -> None:
        """Accept connections. Where a road has ended, ``cut`` ends its source, and ``lost`` its channel.

        Args:
            loop: the event loop.
            listener: is told what happens.
            cut: called with a source, and the seconds in which its peer may hang up by itself.
            lost: called with a channel.
        """
        self._loop, self._listener, self._cut, self._lost = loop, listener, cut, lost
        self._reading_time = ReadingTime(loop)
        self._resume()

    def recheck(self, now: float) -> None:
        """Give up what takes too long, and accept again after a pause. Called about every second."""
        for arrival in [each for each in self._arrivals if each.until <= now]:
            self._refuse(arrival)
        for channel in [channel for channel, each in self._requests.items() if each.until <= now]:
            self.hang_up(channel)
        self._resume()

    def close(self) -> None:
        """Close everything. Idempotent."""
        self._pause()
        self._waiting.clear()
        if self._next_turn is not None:
            self._next_turn.cancel()
        for arrival in list(self._arrivals):
            self._refuse(arrival)
        for channel in [*self._requests, *self._writers]:
            self.hang_up(channel)
        for source in [*self._expected.values(), *self._let_in, *self._readers]:
            self.forget(source)
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._own_board is not None:
            self._own_board.close()

    def close_copies(self) -> None:
        """Close the copies that a forked child has. Its parent's event loop is not touched."""
        socks = list(self._let_in.values())
        socks += [arrival.sock for arrival in self._arrivals]
        socks += [request.sock for request in self._requests.values()]
        socks += [reader.sock for reader in self._readers.values()]
        socks += [writer.sock for writer in self._writers.values()]
        socks += [] if self._listening is None else [self._listening]
        for sock in socks:
            sock.close()
        boards = [*self._boards.values(), *(each.board for each in self._arrivals), self._own_board]
        for board in boards:
            if board is not None:
                board.close()

    def _resume(self) -> None:
        if self._listening is not None and not self._is_accepting:
            self._is_accepting = True
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _pause(self) -> None:
        if self._listening is not None and self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        """Accept what has come of this user; pause if descriptors are short."""
        for _ in range(MAX_ACCEPTED):
            if self._listening is None:
                return
            try:
                sock, _ = self._listening.accept()
            except _AGAIN:
                return
            except OSError:
                self._pause()
                return
            try:
                is_welcome = _is_own_user(sock) and len(self._arrivals) < MAX_WAITING
                if is_welcome:
                    sock.setblocking(False)
                    self._descriptors.take(1)
            except OSError:
                is_welcome = False
            if not is_welcome:
                sock.close()
                continue
            arrival = _Arrival(sock, self._loop.time() + self._settings.stranger_s)
            self._arrivals[arrival] = None
            self._loop.add_reader(sock.fileno(), self._read_ticket, arrival)

    # The peer's half.

    def expect(self, source: bytes, ticket: bytes) -> None:
        """Let the half of a source in if it comes with this ticket."""
        self._expected[ticket], self._tickets[source] = source, ticket
        for arrival in list(self._arrivals):
            if arrival.ticket == ticket:
                self._admit(arrival)

    def follow(self, source: bytes) -> bool:
        """Read the local road of a source from now on. Returns False if it has none. Idempotent."""
        sock = self._let_in.pop(source, None)
        if sock is None:
            return source in self._readers
        reader = self._readers[source] = FrameReader(
            self._loop,
            sock,
            self._settings.max_frame_bytes,
            self._reading_time,
            partial(self._listener.frame_arrived, source),
            partial(self._listener.room, source),
            partial(self._ended, source),
        )
        reader.start()
        return True

    def mute(self, source: bytes) -> None:
        """Drop what comes from a source: its node is about to hang up."""
        if source in self._readers:
            self._readers[source].mute()

    def note_tick(self, at: float, lag_ms: int) -> None:
        """Show all neighbours that the loop runs."""
        if self._own_board is not None:
            self._own_board.note(at, lag_ms)

    def read_tick(self, source: bytes) -> Tick | None:
        """Return the tick that the node of a source has noted since the last call; None if it has not."""
        board = self._boards.get(source)
        return None if board is None or source not in self._readers else board.read()

    def drain(self, source: bytes) -> None:
        """Report what a source has sent before it ended, and forget it.

        Nothing of a road that is not followed: its MOVED was never sent, or was lost on the other road.
        """
        reader = self._readers.get(source)
        if reader is not None:
            reader.drain()
        self.forget(source)

    def forget(self, source: bytes) -> None:
        """Close the local road of a source, if it has one. Idempotent."""
        self._expected.pop(self._tickets.pop(source, b""), None)
        sock = self._let_in.pop(source, None)
        reader = self._readers.pop(source, None)
        for each in (sock, reader, self._boards.pop(source, None)):
            if each is not None:
                each.close()

    def _read_ticket(self, arrival: _Arrival) -> None:
        """Take a ticket. It comes in one piece, unless somebody else sends it.

        The socket is watched until the ticket is awaited, so that one whose connection has ended meanwhile
        goes with its peer's end and not after `Settings.stranger_s`.
        """
        try:
            came, beside, _, _ = arrival.sock.recvmsg(TICKET.size + 1, _FD_SPACE, _CLOSE_ON_EXEC)
        except _AGAIN:
            return
        except OSError:
            came, beside = b"", []
        for level, kind, data in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) == _FD.size:
                self._take_board(arrival, *_FD.unpack(data))
        if arrival.ticket or len(came) != TICKET.size:
            self._refuse(arrival)
            return
        arrival.ticket = came
        if arrival.ticket in self._expected:
            self._admit(arrival)  # Otherwise it waits: the connection may be up at the peer first.

    def _take_board(self, arrival: _Arrival, fd: int) -> None:
        """Keep the board that has come with a ticket, unless descriptors are short."""
        board = tick_board.take(fd)
        try:
            if arrival.board is None and board is not None:
                self._descriptors.take(1)
                arrival.board, board = board, None
        except OSError:
            pass
        if board is not None:
            board.close()

    def _admit(self, arrival: _Arrival) -> None:
        del self._arrivals[arrival]
        self._loop.remove_reader(arrival.sock.fileno())
        source = self._expected.pop(arrival.ticket)
        self._tickets.pop(source)
        answer = _LET_IN
        if arrival.board is not None:
            self._boards[source], answer = arrival.board, _LET_IN_AND_READS
        with contextlib.suppress(OSError):
            arrival.sock.send(answer, getattr(socket, "MSG_NOSIGNAL", 0))
        self._let_in[source] = arrival.sock

    def _refuse(self, arrival: _Arrival) -> None:
        self._arrivals.pop(arrival, None)
        self._loop.remove_reader(arrival.sock.fileno())
        arrival.sock.close()
        if arrival.board is not None:
            arrival.board.close()

    def _ended(self, source: bytes, why: str) -> None:
        """A road has ended: everything that came over it was reported, and its connection ends too.

        A peer that did something wrong gets the time to read what that was.
        """
        if why:
            self._listener.source_broke(source, why)
        self._cut(source, self._settings.goodbye_flush_s if why else 0.0)

    # This node's half.

    def open(self, channel: int, number: int, ticket: bytes) -> None:
        """Ask the listener with this number to let a channel in; `Listener.road_opened` follows then."""
        if self.number:
            self._waiting[channel] = number, ticket
            if self._next_turn is None:
                self._open_next()

    def _open_next(self) -> None:
        """Open the roads that wait, as many as may be opened now: a token bucket, kept as one time."""
        self._next_turn = None
        while self._waiting:
            now = self._loop.time()
            self._turn_at = max(self._turn_at, now)
            due = self._turn_at - (OPENED_AT_ONCE - 1) / OPENED_A_SECOND
            if due > now:
                self._next_turn = self._loop.call_at(due, self._open_next)
                return
            self._turn_at += 1 / OPENED_A_SECOND
            channel = next(iter(self._waiting))
            self._open(channel, *self._waiting.pop(channel))

    def _open(self, channel: int, number: int, ticket: bytes) -> None:
        try:
            self._descriptors.take(1)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return
        try:
            sock.setblocking(False)
            sock.connect(_address(number))
            if not _is_own_user(sock):
                raise PermissionError
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            beside = [] if self._own_board is None else [(*rights, _FD.pack(self._own_board.fd))]
            sock.sendmsg([ticket], beside, getattr(socket, "MSG_NOSIGNAL", 0))
        except OSError:
            sock.close()
            return
        self._requests[channel] = _Request(sock, self._loop.time() + self._settings.stranger_s)
        self._loop.add_reader(sock.fileno(), self._read_answer, channel)

    def take(self, channel: int) -> FrameWriter | None:
        """Return what sends on the local road of a channel from now on; None if it has ended."""
        writer = self._writers.get(channel)
        if writer is not None:
            self._taken.add(channel)
        return writer

    def shows_ticks(self, channel: int) -> bool:
        """Whether the peer of a channel finds this node's ticks on its board."""
        return channel in self._seen and channel in self._taken

    def is_behind(self, channel: int) -> bool:
        """Whether frames of a channel wait here, since the peer does not read."""
        return channel in self._writers and self._writers[channel].is_behind

    def hang_up(self, channel: int) -> None:
        """Close the road of a channel, if it has one. What the kernel has of it still arrives. Idempotent."""
        self._waiting.pop(channel, None)
        request = self._requests.pop(channel, None)
        if request is not None:
            self._loop.remove_reader(request.sock.fileno())
            request.sock.close()
        writer = self._writers.pop(channel, None)
        if writer is not None:
            writer.close()
        self._taken.discard(channel)
        self._seen.discard(channel)

    def _read_answer(self, channel: int) -> None:
        """Take the answer of the peer's listener."""
        request = self._requests[channel]
        try:
            answer = request.sock.recv(2)
        except _AGAIN:
            return
        except OSError:
            answer = b""
        if answer not in (_LET_IN, _LET_IN_AND_READS):
            self.hang_up(channel)
            return
        if answer == _LET_IN_AND_READS:
            self._seen.add(channel)
        del self._requests[channel]
        self._loop.remove_reader(request.sock.fileno())
        self._writers[channel] = FrameWriter(self._loop, request.sock, partial(self._end, channel))
        self._listener.road_opened(channel)

    def _end(self, channel: int) -> None:
        """The peer has closed its end. Mostly it has ended the whole connection, and ZeroMQ tells why."""
        if channel in self._taken:
            self._loop.call_later(END_S, self._report_end, channel)
        else:
            self.hang_up(channel)

    def _report_end(self, channel: int) -> None:
        if channel in self._taken:
            self._lost(channel)


def _address(number: int) -> str:
    """The abstract address of a listener. Nobody can make a node connect to another program's."""
    return f"\0fleetlm-{number:016x}"


def _is_own_user(sock: socket.socket) -> bool:
    """Whether the other end is a process of this user. Raises: OSError."""
    ucred = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(ucred)
    return bool(user == os.geteuid())
