"""Frames on a Unix stream socket: the sending end and the receiving end of a local road.

On the socket each frame is its length, four bytes, and its bytes. Both ends work on the event loop and never
block:

* `FrameWriter` sends at once. What the kernel's buffer does not take waits here, in order. The session bounds
  how much that is (`messaging.byte_windows`), as it bounds what libzmq keeps.
* `FrameReader` reads what has come, a bounded amount in each turn, and passes on each whole frame. It holds
  at most one frame that has not come whole. What it does not read waits in the kernel's buffer, which is
  small, and then at the sender: so a peer cannot make this node hold more than that.

Errors of the socket and its end are reported once, from the loop.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from fleetlm.wire.blobs import Buffer, new_buffer

HEAD: Final = struct.Struct(">I")
"""The length of a frame."""
HEAD_BYTES: Final = HEAD.size
_size_of: Final = HEAD.unpack_from
READ_BYTES: Final = 96 * 1024
"""Bytes read in one turn of the loop, unless a longer frame is on its way: more than a batch. The memory of
reads of 128 KiB and more would come from the kernel each time."""
LONG_BYTES: Final = 64 * 1024
"""From this size on a frame that a read has cut is long."""
READ_BYTES_BEHIND_LONG: Final = 1_024
"""Bytes read behind a long frame. Often the next frame is as long, and the part of it that is read together
with its head has to be copied once more."""
MAX_READ_S: Final = 0.004
"""Seconds in which frames are passed on in one turn, as on the other road (`transport.router`): by one
reader, and by all readers of a node together."""
MAX_DRAINED_BYTES: Final = 4 * 1024 * 1024
"""Bytes that `FrameReader.drain` reads at most: more than the kernel keeps of a peer that has gone."""
COPIED_BYTES: Final = 16 * 1024
"""A smaller frame is joined with its length, which costs less than a list of two buffers."""
_IOV: Final = 64
"""Buffers that wait and are sent with one call."""
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
"""An error instead of SIGPIPE, which ends a program that has restored that signal."""
_AGAIN: Final = (BlockingIOError, InterruptedError)


class FrameWriter:
    """Sends frames on a connected socket.

    Args:
        loop: the event loop.
        sock: non-blocking, and this object's from now on.
        lost: called from the loop, once, when the socket can send no more, unless it was closed.

    Attributes:
        sock: the socket.
        is_closed: whether it is closed.
    """

    __slots__ = ("_fd", "_loop", "_lost", "_queue", "is_closed", "sock")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, lost: Callable[[], None]
    ) -> None:
        self._loop = loop
        self.sock: socket.socket = sock
        self._fd = sock.fileno()
        self._lost = lost
        self._queue: deque[memoryview] = deque()
        """What the kernel has not taken; while it is not empty the loop watches the socket."""
        self.is_closed: bool = False
        loop.add_reader(self._fd, self._look)

    @property
    def is_behind(self) -> bool:
        """Whether frames wait here, since the peer does not read."""
        return bool(self._queue)

    def send(self, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send one frame, whole and behind all others. Returns False if the socket has ended.

        Args:
            frame: the frame, or its first part.
            tail: the rest of it, which is lent to this object, and arrives as one part with the other.
        """
        if self.is_closed:
            return False
        if tail is not None or self._queue:
            return self._send_parts(frame, tail)
        size = len(frame)
        head = HEAD.pack(size)
        if size >= COPIED_BYTES:
            return self._send_parts(frame, None)
        data = head + frame
        try:
            sent = self.sock.send(data, _NO_SIGNAL)
        except _AGAIN:
            sent = 0
        except OSError:
            self._fail()
            return False
        if sent < size + HEAD_BYTES:
            self._queue.append(memoryview(data)[sent:])
            self._loop.add_writer(self._fd, self._flush)
        return True

    def close(self) -> None:
        """Close the socket. What waits here is dropped; what the kernel has still arrives. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._queue.clear()
            self.sock.close()

    def _look(self) -> None:
        """Find out that the other end has closed the socket: it sends nothing."""
        try:
            self.sock.recv(1)
        except _AGAIN:
            return
        except OSError:
            pass
        self._fail()

    def _send_parts(self, frame: bytes, tail: memoryview | None) -> bool:
        """Send a frame without a copy of it, behind what waits."""
        queue = self._queue
        is_waiting = bool(queue)
        size = len(frame) if tail is None else len(frame) + len(tail)
        queue.append(memoryview(HEAD.pack(size)))
        queue.append(memoryview(frame))
        if tail is not None:
            queue.append(tail)
        if is_waiting:
            return True
        self._flush()
        if queue:
            self._loop.add_writer(self._fd, self._flush)
        return not self.is_closed

    def _flush(self) -> None:
        """Send what waits, as much as one call takes: other sockets have their turn."""
        queue = self._queue
        try:
            sent = self.sock.sendmsg([queue[at] for at in range(min(len(queue), _IOV))], (), _NO_SIGNAL)
        except _AGAIN:
            return
        except OSError:
            self._fail()
            return
        while queue and sent >= len(queue[0]):
            sent -= len(queue.popleft())
        if queue:
            queue[0] = queue[0][sent:]
        else:
            self._loop.remove_writer(self._fd)

    def _fail(self) -> None:
        self.close()
        self._loop.call_soon(self._lost)


class ReadingTime:
    """The time that all readers of a node share: so many neighbours do not keep the loop for long.

    It does not begin anew with each turn of the loop, which would cost every frame something: it is used up
    after `MAX_READ_S` of reading, in one turn or in many. Then readers wait for the next turn.

    Attributes:
        left_s: seconds of it that are left; readers take theirs away, and call `end` when none are.
        is_over: whether readers have to wait. What has come for them stays in the kernel.
    """

    __slots__ = ("_is_scheduled", "_loop", "_unfinished", "is_over", "left_s")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.left_s: float = MAX_READ_S
        self._unfinished: deque[FrameReader] = deque()
        self._is_scheduled = False
        self.is_over: bool = False

    def end(self) -> None:
        """Note that it is used up: let readers wait for the next turn."""
        self.is_over = True
        self._renew_soon()

    def go_on_later(self, reader: FrameReader) -> None:
        """Let a reader pass on the rest of what it has read in a later turn."""
        self._unfinished.append(reader)
        self._renew_soon()

    def _renew_soon(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._renew)

    def _renew(self) -> None:
        self._is_scheduled = False
        self.left_s = MAX_READ_S
        self.is_over = False
        for _ in range(len(self._unfinished)):
            if self.is_over:
                break
            self._unfinished.popleft().go_on()
        if self._unfinished:
            self._renew_soon()


class FrameReader:
    """Receives frames on a connected socket, from `start` on.

    Args:
        loop: the event loop.
        sock: non-blocking, and this object's from now on.
        max_frame_bytes: a longer frame ends the road.
        time: shared with the other readers of the node.
        arrived: called with each frame, in one part or two.
        room: called with what has come of a long frame, and its size. Returns the memory for its end, or
            None.
        ended: called once, when nothing more will come, with what the peer did wrong; "" if nothing.

    Attributes:
        sock: the socket.
        is_closed: whether it is closed.
    """

    __slots__ = (
        "_arrived", "_at", "_data", "_ended", "_fd", "_got", "_has_more", "_head", "_large", "_loop",
        "_max_bytes", "_read_bytes", "_room", "_time", "_view", "is_closed", "sock",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        max_frame_bytes: int,
        time: ReadingTime,
        arrived: Callable[[bytes, memoryview | None], None],
        room: Callable[[bytes, int], memoryview | None],
        ended: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self.sock: socket.socket = sock
        self._fd = sock.fileno()
        self._max_bytes = max_frame_bytes
        self._time = time
        self._arrived = arrived
        self._room = room
        self._ended = ended
        self._data = b""
        """What was read and not passed on, from `_at` on."""
        self._at = 0
        self._large: Buffer | None = None
        """The memory of a frame that has not come whole, if its end has no place of its own."""
        self._head = b""
        """The beginning of a frame whose end has one."""
        self._view = memoryview(b"")
        """What is being received; empty between two frames. `_got` bytes of it have come."""
        self._got = 0
        self._read_bytes = READ_BYTES
        self._has_more = False
        """Whether frames wait here for which a turn had no time."""
        self.is_closed: bool = False

    def start(self) -> None:
        """Begin to read."""
        if not self.is_closed:
            self._loop.add_reader(self._fd, self._on_readable)

    def go_on(self) -> None:
        """Pass on more of what was read. `ReadingTime` calls it."""
        if self._has_more:
            began = monotonic()
            self._pass_on(began + MAX_READ_S)
            self._time.left_s -= monotonic() - began
            if self._time.left_s <= 0:
                self._time.end()

    def mute(self) -> None:
        """Read nothing more, and leave the socket open."""
        if not self.is_closed:
            self._loop.remove_reader(self._fd)
        self._has_more = False
        self._arrived = _drop

    def drain(self) -> None:
        """Pass on, now, what has come whole: the peer has gone. Then close the socket.

        A muted reader only closes it: whoever reads on could meet, once more, what the peer did wrong.
        """
        left = 0 if self._arrived is _drop else MAX_DRAINED_BYTES
        if self._has_more:
            self._pass_on(float("inf"))
        while left > 0 and not self.is_closed:
            got = self._receive()
            if got <= 0:
                break
            left -= got
            self._pass_on(float("inf"))
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._has_more = False
            self._loop.remove_reader(self._fd)
            self.sock.close()

    def _on_readable(self) -> None:
        time = self._time
        if self._has_more or time.is_over:
            return  # Frames wait that came before, or it is the turn of others.
        began = monotonic()
        wanted = self._read_bytes
        got, data = self._receive(), self._data
        if HEAD_BYTES < got == len(data) and got - HEAD_BYTES == _size_of(data)[0] <= self._max_bytes:
            self._data = b""  # As `_pass_on`, for what is usual: one whole frame has come.
            self._arrived(data[HEAD_BYTES:], None)
        elif got > 0:
            self._pass_on(began + MAX_READ_S)
            if got == wanted and self._view and self._arrived is not _drop:
                got = self._receive()  # The frame goes on behind what was read.
                if got > 0:
                    self._pass_on(began + MAX_READ_S)
        if got == 0:
            self._end("")
        time.left_s -= monotonic() - began
        if time.left_s <= 0:
            time.end()

    def _receive(self) -> int:
        """Read once. Returns the number of bytes, 0 at the end of the stream, -1 if nothing has come."""
        try:
            if self._view:
                got = self.sock.recv_into(self._view[self._got :])
                self._got += got
                return got
            data = self.sock.recv(self._read_bytes)
            self._read_bytes = READ_BYTES
        except _AGAIN:
            return -1
        except OSError:
            return 0
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        return len(data)

    def _pass_on(self, until: float) -> None:
        """Pass on the frames that are whole; what the time does not suffice for follows in the next turn."""
        self._has_more = False
        if self._view:
            if self._got < len(self._view):
                return
            self._end_large()
        data, at = self._data, self._at
        end = len(data)
        while end - at >= HEAD_BYTES and not self.is_closed:
            size = HEAD.unpack_from(data, at)[0]
            if size > self._max_bytes:
                self._end(f"it announced a frame of {size:,} bytes, and {self._max_bytes:,} are the most")
                return
            start = at + HEAD_BYTES
            at = start + size
            if at > end:
                self._begin_large(size, data[start:])
                at = end
                break
            self._arrived(data[start:at], None)
            if at < end and monotonic() > until:
                self._has_more = True
                self._time.go_on_later(self)
                break
        self._data, self._at = (data, at) if at < end else (b"", 0)

    def _begin_large(self, size: int, came: bytes) -> None:
        """Find the memory for a frame that has not come whole; the rest is received straight into it."""
        room = self._room(came, size) if came else None
        if room is None:
            self._large = new_buffer(size)
            self._view = self._large.getbuffer()
        else:
            self._head, came = came[: size - len(room)], came[size - len(room) :]
            self._view = room
        self._got = len(came)
        self._view[: len(came)] = came

    def _end_large(self) -> None:
        """Pass on the frame that has come whole now."""
        view, self._view = self._view, memoryview(b"")
        if len(view) >= LONG_BYTES:
            self._read_bytes = READ_BYTES_BEHIND_LONG
        if self._large is None:
            self._arrived(self._head, view)
        else:
            view.release()
            frame, self._large = self._large.getvalue(), None
            self._arrived(frame, None)

    def _end(self, why: str) -> None:
        self.mute()
        self._ended(why)


def _drop(_frame: bytes, _tail: memoryview | None) -> None:
    """Take the place of the receiver of frames after `FrameReader.mute`."""
