"""The protocol between a node and `fleetlm remote`, and the folder in which they meet.

Transport: a Unix stream socket, ``<folder>/<node>.<pid>.sock``, never a network port. A client that may
connect can run code as the node, so access is limited three times: the folder has mode 0700, the socket
0600, and each side asks the kernel for the user of the other (`remote.credentials`). A folder that is a
symbolic link, belongs to another user or is open to others is passed over by both sides, which say so: every
user can make a folder in /tmp, and must not take the remote shell away with it. The next folder has to pass
the same checks. The node binds the socket under a
hidden name and renames it once it listens, so a socket file that refuses connections belongs to a dead
process, and any client may remove it (`remove_if_stale`).

Framing: four bytes of length (big-endian), then one JSON object in ASCII. Requests are at most
`MAX_REQUEST_BYTES` long, frames of the node `MAX_FRAME_BYTES`. A frame that breaks these rules ends the
connection with ``refused``; other clients are not affected.

Conversation: the node speaks first. ``id`` is chosen by the client and repeated in replies::

    node    {"node": "fleetlm@10.0.0.7", "version": 1}        or {"refused": why, "code": kind}
    client  {"op": "eval", "id": 1, "source": "Node.list()", "width": 0}
    node    {"id": 1, "stream": "stdout", "text": "..."}       any number of times
    node    {"id": 1, "done": "ok", "repr": "[]", "value": []}
    client  {"op": "cancel"} · {"op": "complete", "id": 2, "text": "Node.l"} · {"op": "facts", "id": 3}
    client  {"op": "overview", "id": 4, "timeout": 1.0}
    node    {"id": 4, "overview": {...}}                       or {"id": 4, "failed": why}
    node    {"bye": "shutdown"}                                the node stops

One evaluation at a time runs for each connection; a second ``eval`` gets ``"done": "busy"``. The node reads
requests while it evaluates, so ``cancel`` takes effect at once, and closing the connection cancels too.
``done`` is "ok", "error", "cancelled" or "busy". An ``overview`` (`Node.overview`) takes up to ``timeout``
seconds, one at a time for each connection; evaluations go on meanwhile.

This module imports little, so that the command starts fast.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping

from fleetlm.records import Record

VERSION = 1
"""Version of this protocol, told in the greeting."""
MAX_REQUEST_BYTES = 1024 * 1024
"""Length of a client's frame. It is enough for an expression or a pasted program."""
MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Length of a node's frame. It holds a value and its repr at their limits, even if JSON escapes them."""
MAX_REPR_CHARS = 1_000_000
"""Longer reprs and tracebacks are cut. A person reads less, and a program uses the value."""
MAX_VALUE_BYTES = 8 * 1024 * 1024
"""A result whose JSON is longer is sent as its repr only."""
MAX_SUN_PATH_BYTES = 103
"""A socket path of this length works everywhere: with the final zero byte, macOS allows 104, Linux 108."""
MAX_STEM_CHARS = 56
"""Longer node names are shortened in file names, to leave room for the folder."""
LENGTH = struct.Struct(">I")
"""The length that precedes each frame's body."""
SUFFIX = ".sock"

Message = dict[str, object]


class BadMessage(ValueError):
    """The bytes received are not a frame of this protocol. The connection cannot be used any more."""


class UnsafeFolder(Exception):
    """The folder for the sockets belongs to another user, or other users may enter it."""


def pack(message: Mapping[str, object], limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Encode one frame. Raises: BadMessage if it is longer than the limit."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > limit_bytes:
        raise BadMessage(f"{len(body):,} bytes; at most {limit_bytes:,} are allowed")
    return LENGTH.pack(len(body)) + body


def body_length(prefix: bytes, limit_bytes: int) -> int:
    """Decode the length in bytes from a frame's first four bytes. Raises: BadMessage if it is too long."""
    (length,) = LENGTH.unpack(prefix)
    if length > limit_bytes:
        raise BadMessage(f"a frame of {length:,} bytes; at most {limit_bytes:,} are allowed")
    return int(length)


def unpack(body: bytes) -> Message:
    """Decode the JSON object of a frame. Raises: BadMessage if it is not one."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadMessage("not a JSON object")
    return message


# The folder and the socket files.


def folders(env: Mapping[str, str], uid: int) -> list[str]:
    """Return the folders in which a node of this user may have its socket, best first.

    A client looks into all of them, since it may run without the environment variables of the node.
    """
    found = []
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and runtime.startswith("/"):
        found.append(f"{runtime.rstrip('/')}/fleetlm")
    temporary = env.get("TMPDIR")
    if temporary and temporary.startswith("/"):
        found.append(f"{temporary.rstrip('/')}/fleetlm-{uid}")
    # Also where a container has a read-only root: its /dev/shm can be written to. `check_folder` checks all.
    found += [f"/tmp/fleetlm-{uid}", f"/run/user/{uid}/fleetlm", f"/dev/shm/fleetlm-{uid}"]  # noqa: S108
    home = env.get("HOME")
    if home and home.startswith("/"):  # No other user can make a folder there.
        found.append(f"{home.rstrip('/')}/.fleetlm")
    return list(dict.fromkeys(found))


def check_folder(path: str, owner: int) -> None:
    """Check that ``path`` is a folder of the user ``owner`` that no other user may enter.

    Raises:
        FileNotFoundError: it does not exist.
        UnsafeFolder: it is a symbolic link or not a folder, belongs to another user, or is open to others.
    """
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{path} is not a folder (symbolic links are not followed); remove it")
    if found.st_uid != owner:
        raise UnsafeFolder(f"{path} belongs to user {found.st_uid}, not to user {owner}; remove it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise UnsafeFolder(
            f"{path} is open to other users (mode {mode:03o}); close it with: chmod 700 {path}"
        )


def make_folder(env: Mapping[str, str], uid: int, skip: Callable[[str], None]) -> str:
    """Return the folder for a node's socket, and create it if necessary.

    Args:
        env: the environment, on which the folders depend.
        uid: the user of the node.
        skip: called with the reason why a folder is not safe, and passed over.

    Raises:
        UnsafeFolder, OSError: there is no folder for the socket; it is the last error.
    """
    reason: OSError | UnsafeFolder | None = None
    for path in folders(env, uid):
        if path.startswith("/run/user/") and env.get("XDG_RUNTIME_DIR") is None:
            continue  # the system removes this folder when the user logs out, even if the node goes on
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102  importing pathlib would take half of the start-up time
        except FileExistsError:
            pass
        except OSError as error:
            reason = error
            continue
        try:
            check_folder(path, uid)
        except UnsafeFolder as error:
            reason = error
            skip(str(error))
            continue
        if os.access(path, os.W_OK | os.X_OK):
            return path
        reason = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    raise reason or FileNotFoundError(errno.ENOENT, "no folder for the socket")


def stem(node: str) -> str:
    """Return a node's name for use in a file name. A long name is cut and gets a hash, to stay unique."""
    if len(node) <= MAX_STEM_CHARS:
        return node
    import hashlib  # noqa: PLC0415  # most names are short

    basename, _, ip = node.partition("@")
    digest = hashlib.blake2b(basename.encode(), digest_size=4).hexdigest()
    return f"{basename[: max(1, MAX_STEM_CHARS - 10 - len(ip))]}~{digest}@{ip}"


def socket_name(node: str, pid: int) -> str:
    """Return the file name of a node's socket."""
    return f"{stem(node)}.{pid}{SUFFIX}"


class SocketFile(Record):
    """A socket file.

    Attributes:
        folder: where it is.
        node: the `stem` of the node's name, which is the whole name unless that is long.
        pid: process id of the node.
    """

    folder: str
    node: str
    pid: int

    @property
    def path(self) -> str:
        """The path of the file."""
        return f"{self.folder}/{self.node}.{self.pid}{SUFFIX}"


def scan(folder: str) -> list[SocketFile]:
    """Return the socket files of a folder, sorted, those of dead nodes included."""
    found = []
    for entry in os.listdir(folder):  # noqa: PTH208
        node, dot, pid = entry.removesuffix(SUFFIX).rpartition(".")
        if entry.endswith(SUFFIX) and dot and "@" in node and pid.isdecimal():
            found.append(SocketFile(folder, node, int(pid)))
    return sorted(found, key=lambda each: (each.node, each.pid))


class SocketAddress:
    """Context manager: a path that fits into a Unix socket address while the block runs.

    An address has room for about 100 bytes (`MAX_SUN_PATH_BYTES`). On Linux, a longer path is replaced by
    one through an open descriptor of its folder, ``/proc/self/fd/N/name``.
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


def remove_if_stale(path: str) -> bool:
    """Remove a socket file on which no process listens any more. Returns whether it was stale.

    This is safe beside a node that starts, since a socket gets its final name only when it listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            with SocketAddress(path) as address:
                trial.connect(address)
        except ConnectionRefusedError:
            try:
                os.unlink(path)  # noqa: PTH108
            except OSError:
                return True
            return True
        except FileNotFoundError:
            return True
        except OSError:
            return False  # a process listens, but is slow to accept
    return False
