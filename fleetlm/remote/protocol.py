"""What a node and `fleetlm remote` say to each other, and where they meet.

They meet at a Unix socket in a folder that only its owner may enter.

A frame is four bytes of length and one JSON object. The node greets first::

    node    {"node": "fleetlm@10.0.0.7", "version": 1}        or {"refused": why}
    client  {"op": "eval", "id": 1, "source": "Node.list()", "session": false, "width": 0}
    node    {"id": 1, "stream": "stdout", "text": "..."}       any number of times
    node    {"id": 1, "done": "ok", "repr": "[]", "value": []}
    client  {"op": "cancel"} · {"op": "complete", "id": 2, "text": "Node.l"} · {"op": "facts", "id": 3}
    node    {"bye": "shutdown"}

Imports little, so that the command line starts fast.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass

VERSION = 1
MAX_REQUEST_BYTES = 1024 * 1024
"""Of what a client sends: an expression, or a pasted program."""
MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Of what a node sends: room for a value and its repr at their limits, in the widest escapes."""
MAX_REPR_CHARS = 1_000_000
MAX_VALUE_BYTES = 8 * 1024 * 1024
MAX_SUN_PATH_BYTES = 103
"""What every system takes: 104 with the final zero on macOS, 108 on Linux."""
MAX_STEM_CHARS = 56
LENGTH = struct.Struct(">I")
SUFFIX = ".sock"

Message = dict[str, object]


class BadMessage(ValueError):
    """Not a frame of this protocol: the connection is of no use any more."""


class UnsafeFolder(Exception):
    """The folder of the sockets may be entered by others, or belongs to somebody else."""


def pack(message: Mapping[str, object], limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """One frame. Raises: BadMessage beyond the limit."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > limit_bytes:
        raise BadMessage(f"{len(body):,} bytes; at most {limit_bytes:,} are allowed")
    return LENGTH.pack(len(body)) + body


def body_length(prefix: bytes, limit_bytes: int) -> int:
    """The length in bytes that a frame's first four bytes announce. Raises: BadMessage."""
    (length,) = LENGTH.unpack(prefix)
    if length > limit_bytes:
        raise BadMessage(f"a frame of {length:,} bytes; at most {limit_bytes:,} are allowed")
    return int(length)


def unpack(body: bytes) -> Message:
    """The object of a frame. Raises: BadMessage."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadMessage("not a JSON object")
    return message


# Where sockets are.


def folders(env: Mapping[str, str], uid: int) -> list[str]:
    """Where a node of this user may have its socket, best first.

    The client looks into all of them: it may run without the variables that the node had.
    """
    found = []
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and runtime.startswith("/"):
        found.append(f"{runtime.rstrip('/')}/fleetlm")
    temporary = env.get("TMPDIR")
    if temporary and temporary.startswith("/"):
        found.append(f"{temporary.rstrip('/')}/fleetlm-{uid}")
    found += [f"/tmp/fleetlm-{uid}", f"/run/user/{uid}/fleetlm"]  # noqa: S108  checked by `check_folder`
    return list(dict.fromkeys(found))


def check_folder(path: str, owner: int) -> None:
    """Whether ``path`` is a folder of ``owner`` that nobody else may enter.

    Raises:
        FileNotFoundError: there is none.
        UnsafeFolder: a link, not a folder, another's, or open to others.
    """
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{path} is not a folder (links are not followed); remove it")
    if found.st_uid != owner:
        raise UnsafeFolder(f"{path} belongs to user {found.st_uid}, not to user {owner}; remove it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise UnsafeFolder(f"{path} is open to other users (mode {mode:03o}); run: chmod 700 {path}")


def make_folder(env: Mapping[str, str], uid: int) -> str:
    """The folder for a node's socket, made where there is none.

    An unsafe folder is never passed over for the next one: somebody may be waiting for that.

    Raises:
        UnsafeFolder: see `check_folder`.
        OSError: no folder could be made; the last reason.
    """
    reason: OSError | None = None
    for path in folders(env, uid):
        if path.startswith("/run/user/") and env.get("XDG_RUNTIME_DIR") is None:
            continue  # the system removes it at logout, under a node that goes on
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102  pathlib would be half of the client's start
        except FileExistsError:
            pass
        except OSError as error:
            reason = error
            continue
        check_folder(path, uid)
        if os.access(path, os.W_OK | os.X_OK):
            return path
        reason = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    raise reason or FileNotFoundError(errno.ENOENT, "no folder for the socket")


def stem(node: str) -> str:
    """A node's name as it stands in a file name: itself, or shorten and made unique where long."""
    if len(node) <= MAX_STEM_CHARS:
        return node
    basename, _, ip = node.partition("@")
    digest = hashlib.blake2b(basename.encode(), digest_size=4).hexdigest()
    return f"{basename[: MAX_STEM_CHARS - 10 - len(ip)]}~{digest}@{ip}"


def socket_name(node: str, pid: int) -> str:
    """The file name of a node's socket."""
    return f"{stem(node)}.{pid}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A socket file. ``node`` is the name's `stem`, which is the name itself for all usual ones."""

    folder: str
    node: str
    pid: int

    @property
    def path(self) -> str:
        """The whole path."""
        return f"{self.folder}/{self.node}.{self.pid}{SUFFIX}"


def scan(folder: str) -> list[SocketFile]:
    """The socket files of a folder, sorted; whether anybody listens there is another question."""
    found = []
    for entry in os.listdir(folder):  # noqa: PTH208
        node, dot, pid = entry.removesuffix(SUFFIX).rpartition(".")
        if entry.endswith(SUFFIX) and dot and "@" in node and pid.isdecimal():
            found.append(SocketFile(folder, node, int(pid)))
    return sorted(found, key=lambda each: (each.node, each.pid))


class SocketAddress:
    """A path that fits into a socket address, for as long as the block lasts.

    ``sockaddr_un`` has room for some 100 bytes; on Linux a longer path goes by way of its folder's
    open descriptor.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_SUN_PATH_BYTES:
            return self._path
        folder, _, name = self._path.rpartition("/")
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{name}"

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            os.close(self._folder)


def is_stale(path: str) -> bool:
    """Whether nobody listens at a socket file any more; such a file is removed.

    Safe beside a node that starts: its socket gets this name only once it listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with SocketAddress(path) as address:
                probe.connect(address)
        except ConnectionRefusedError:
            try:
                os.unlink(path)  # noqa: PTH108
            except OSError:
                return True
            return True
        except FileNotFoundError:
            return True
        except OSError:
            return False  # it listens, and is slow to accept
    return False


def peer_credentials(connected: socket.socket) -> tuple[int, int] | None:
    """(pid, uid) of the process at the other end, as the kernel says; None where it cannot say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, 12))
    return int(pid), int(uid)
