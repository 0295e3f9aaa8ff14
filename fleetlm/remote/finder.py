"""Finds the nodes on this machine that `fleetlm remote` and `fleetlm doctor` may connect to.

The node and the command agree on a few folders (`protocol.folders`), which depend on their environment. When
the environments differ, the folders of the running processes are searched as well. A folder that is not safe
is never used: see `protocol.check_folder`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping

from fleetlm.escapes import escape
from fleetlm.remote import protocol
from fleetlm.remote.protocol import SocketFile, UnsafeFolder

OK, RAISED, USAGE, NO_NODE, TIMEOUT, NOT_ALLOWED = range(6)
"""Exit codes of `fleetlm remote`."""
MAX_PROCESSES = 10_000
"""Processes whose folders are searched, so that the search ends soon on a large machine."""
MAX_ENVIRON_BYTES = 1024 * 1024
"""Bytes of a process's environment that are read."""
_MAX_PORT_DIGITS = 5


class RemoteFailure(Exception):
    """There is no result.

    Attributes:
        code: the exit code.
        kind: the reason for programs, such as "no_node".
        text: the reason for people.
    """

    def __init__(self, code: int, kind: str, text: str) -> None:
        super().__init__(code, kind, text)
        self.code = code
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return self.text


def discover(env: Mapping[str, str], uid: int) -> list[SocketFile]:
    """Return the nodes on this machine that this user may connect to. Files of dead nodes are removed.

    Where the folders of this environment hold none, the folders of all running processes are searched. For
    root this includes the nodes of all users if root runs none.

    A folder that is not safe is passed over, and stderr says so.

    Raises:
        RemoteFailure: a folder was passed over, and no node was found elsewhere.
    """
    found, unsafe = _find_live(protocol.folders(env, uid), uid)
    if not found and uid == 0:
        for folder, owner in _find_folders_of_others():
            found += _find_live([folder], owner)[0]
    if not found:
        for folder, owner in _find_folders_of_processes(uid):
            found += _find_live([folder], owner)[0]
    if unsafe and not found:
        raise RemoteFailure(NOT_ALLOWED, "not_allowed", "; ".join(unsafe))
    for reason in unsafe:
        sys.stderr.write(f"fleetlm: a folder was passed over: {escape(reason)}\n")
    unique = {(each.node, each.pid): each for each in reversed(found)}
    return sorted(unique.values(), key=lambda each: (each.node, each.pid))


def _find_live(folders: list[str], owner: int) -> tuple[list[SocketFile], list[str]]:
    """Return the socket files on which nodes listen, and why folders that are not safe were passed over."""
    living, unsafe = [], []
    for folder in folders:
        try:
            protocol.check_folder(folder, owner)
            candidates = protocol.scan(folder)
        except UnsafeFolder as error:
            unsafe.append(str(error))
            continue
        except OSError:
            continue
        living += [each for each in candidates if not protocol.remove_if_stale(each.path)]
    return living, unsafe


def _find_folders_of_others() -> Iterator[tuple[str, int]]:
    """Yield the safe socket folders of all users, each with its owner."""
    for parent, prefix, suffix in (("/tmp", "fleetlm-", ""), ("/run/user", "", "/fleetlm")):  # noqa: S108
        try:
            entries = sorted(os.listdir(parent))  # noqa: PTH208
        except OSError:
            continue
        for entry in entries:
            owner = entry.removeprefix(prefix)
            folder = f"{parent}/{entry}{suffix}"
            if entry.startswith(prefix) and owner.isdecimal():
                try:
                    protocol.check_folder(folder, int(owner))
                except (OSError, UnsafeFolder):
                    continue
                yield folder, int(owner)


def _find_folders_of_processes(uid: int, proc: str = "/proc") -> Iterator[tuple[str, int]]:
    """Yield the safe socket folders of running processes, each with its owner. Only on Linux.

    A node may have another TMPDIR or XDG_RUNTIME_DIR than this command, or a /tmp of its own (PrivateTmp of
    systemd). Its folders are those of its environment, seen through the root of its process.
    """
    seen = set()
    try:
        entries = [entry for entry in os.listdir(proc) if entry.isdecimal()]  # noqa: PTH208
    except OSError:
        return
    for entry in sorted(entries, key=int)[:MAX_PROCESSES]:
        try:
            owner = os.stat(f"{proc}/{entry}").st_uid  # noqa: PTH116
            if uid not in (0, owner):
                continue
            with open(f"{proc}/{entry}/environ", "rb") as file:  # noqa: PTH123
                pairs = file.read(MAX_ENVIRON_BYTES).split(b"\0")
        except OSError:
            continue  # It has ended, or this user may not look into it.
        env = dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs if pair)
        for folder in protocol.folders(env, owner):
            path = f"{proc}/{entry}/root{folder}"
            try:
                protocol.check_folder(path, owner)
                found = os.stat(path)  # noqa: PTH116
            except (OSError, UnsafeFolder):
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                yield path, owner


def choose(found: list[SocketFile], wanted: str | None, env: Mapping[str, str] | None = None) -> SocketFile:
    """Select the node to connect to.

    Args:
        found: what `discover` returned.
        wanted: the node's name, with ``.<pid>`` where two processes use one name; or its port, or its slot,
            as a number; None for the only node.
        env: the environment from which the first port of the range is known; that of this process by default.

    Raises:
        RemoteFailure: no node runs, or not the wanted one (exit code 3); several fit (2).
    """
    if not found:
        folders = ", ".join(protocol.folders(os.environ, os.getuid()))
        raise RemoteFailure(
            NO_NODE,
            "no_node",
            "no node of this user runs on this machine. Start one with: fleetlm start\n"
            "(Nodes of other users, in other containers, or with FLEETLM_REMOTE=off cannot be found. Sockets "
            f"were searched in {folders}, and in the same folders of every process that this user may look "
            "into. `fleetlm doctor` shows who holds the ports of this machine.)",
        )
    fitting = found if wanted is None else _select(found, wanted, os.environ if env is None else env)
    if not fitting:
        raise RemoteFailure(
            NO_NODE,
            "no_node",
            f"no node {wanted} runs on this machine. These do:\n{_list_options(found)}\n"
            "(Nodes in other containers cannot be found, even where they share this network.)",
        )
    if len(fitting) > 1:
        raise RemoteFailure(
            USAGE,
            "several_nodes",
            "several nodes run on this machine; choose one, by its name or only its port:\n"
            f"{_list_options(fitting)}",
        )
    return fitting[0]


def _select(found: list[SocketFile], wanted: str, env: Mapping[str, str]) -> list[SocketFile]:
    """Return the nodes that have a name, a port or, where none has that port, a slot."""
    if wanted.isdecimal() and len(wanted) <= _MAX_PORT_DIGITS:
        base, number = _base_port(env), int(wanted)
        at_port = [each for each in found if (_port(each.node) or base) == number]
        return at_port or [each for each in found if (_port(each.node) or base) == base + number]
    if _port(wanted) is not None and _port(wanted) == _base_port(env):  # It is not part of a name.
        wanted = wanted.rpartition(":")[0].replace("[", "").replace("]", "")
    short = protocol.stem(wanted)
    return [each for each in found if short in (each.node, f"{each.node}.{each.pid}")]


def _port(name: str) -> int | None:
    """Return the port in the name of a node; None if it is the first of its range."""
    address = name.rpartition("@")[2]
    host, colon, port = address.rpartition(":")
    has_port = bool(colon) and (host.endswith("]") or ":" not in host)
    return int(port) if has_port and port.isdecimal() else None


def _base_port(env: Mapping[str, str]) -> int:
    """Return the first port of the range that this environment gives to nodes."""
    from fleetlm.errors import SettingsError  # noqa: PLC0415  # seldom needed, and slow to import
    from fleetlm.settings import Settings  # noqa: PLC0415

    try:
        return Settings.from_env(env).base_port
    except SettingsError:
        return Settings().base_port


def _list_options(found: list[SocketFile]) -> str:
    """Return a ``--node`` option for each node, one a line, with its process and how long it has been up."""
    from fleetlm.texts import format_span  # noqa: PLC0415  # only where the choice has failed

    names = [each.node for each in found]
    options = [each.node + (f".{each.pid}" if names.count(each.node) > 1 else "") for each in found]
    width = max(map(len, options))
    lines = []
    for option, each in zip(options, found, strict=True):
        try:
            up = f", up for {format_span(max(0.0, time.time() - os.lstat(each.path).st_mtime))}"
        except OSError:
            up = ", ended"
        lines.append(f"  --node {option:<{width}}  process {each.pid}{up}")
    return "\n".join(lines)
