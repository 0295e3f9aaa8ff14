"""Finds the sockets that hold TCP ports of this machine, and the processes that they belong to.

Linux lists the sockets of a network namespace in ``/proc/net/tcp`` and ``tcp6``, whoever owns them, each with
its inode. Which process has that inode open is seen in ``/proc/<pid>/fd``, which a user may read for
processes of his own, root for all, and nobody for processes of another PID namespace: two containers of one
pod share their ports and do not see each other's processes. So a socket may be known without its process.

Other systems have no such tables: nothing is found there. The module imports little, so that a command which
only looks at ports starts fast.

Source: proc_net_tcp.rst and proc_pid_fd(5) of Linux, and `ss -tnp`, which does the same.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from fleetlm.records import Record

TABLES: Final = ("net/tcp", "net/tcp6")
"""The kernel's tables of TCP sockets in this network namespace, below ``/proc``."""
MAX_PROCESSES: Final = 10_000
"""Processes that are looked into, so that the search ends soon on a large machine."""
MAX_DESCRIPTORS: Final = 200_000
"""Descriptors that are looked at, of all processes together: some 0.4 s."""
MAX_COMMAND_CHARS: Final = 60
"""Longer command lines are cut: enough to recognise a program, and less of what its arguments may reveal."""
ANY_IPS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared, not bound
"""A socket that is bound to one of these holds its port on every address."""
_LISTENING: Final = 0x0A
_FIELDS: Final = 10
"""Columns of the tables up to the inode."""


class PortHolder(Record):
    """A socket that holds a port.

    Attributes:
        port: the local port.
        ip: the local address; one of `ANY_IPS` for all.
        is_listening: False: it is one end of a connection.
        uid: the user who owns it.
        inode: identifies the socket on this machine.
        pid: a process that has it open, the one with the lowest number; None if none can be seen.
        command: the command line of that process; empty without one.
    """

    port: int
    ip: str
    is_listening: bool
    uid: int
    inode: int
    pid: int | None = None
    command: str = ""


def find_holders(ports: Collection[int], ip: str | None = None, proc: str = "/proc") -> list[PortHolder]:
    """Return the sockets that keep a program from listening on ports, sorted by port.

    Args:
        ports: the ports.
        ip: the address on which it would listen; None: any.
        proc: where the proc file system is.
    """
    found = [
        each for each in list_sockets(ports, proc) if ip is None or ip in ANY_IPS or each.ip in (ip, *ANY_IPS)
    ]
    listening = {each.port for each in found if each.is_listening}
    # The connections that a listener has accepted have its port as well, and say nothing more.
    found = [each for each in found if each.is_listening or each.port not in listening]
    return sorted(add_processes(found, proc), key=lambda each: (each.port, each.ip, each.inode))


def list_sockets(ports: Collection[int], proc: str = "/proc") -> list[PortHolder]:
    """Return the sockets with these local ports, without their processes, in the order of the tables."""
    wanted, found = frozenset(ports), []
    for table in TABLES:
        try:
            with open(f"{proc}/{table}", encoding="ascii") as file:  # noqa: PTH123
                next(file, "")  # The head.
                found += [each for line in file if (each := parse_line(line)) and each.port in wanted]
        except (OSError, ValueError):
            continue
    return found


def parse_line(line: str) -> PortHolder | None:
    """Parse one line of a table; None for one that cannot be read, or of a socket that no process has.

    The second column is the local address, in words of 32 bits in the byte order of the machine, and the
    port; the fourth is the state, the eighth the user, the tenth the inode.
    """
    fields = line.split(maxsplit=_FIELDS)
    try:
        address, _, port = fields[1].partition(":")
        words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
        family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
        ip = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
        is_listening = int(fields[3], 16) == _LISTENING
        uid, inode = int(fields[7]), int(fields[9])
        number = int(port, 16)
    except (IndexError, ValueError, struct.error):
        return None
    if not inode:  # It waits for the last packets of a connection that is closed.
        return None
    return PortHolder(number, ip.removeprefix("::ffff:") if "." in ip else ip, is_listening, uid, inode)


def add_processes(sockets: Collection[PortHolder], proc: str = "/proc") -> list[PortHolder]:
    """Return the sockets with their processes, as far as this user may see them."""
    missing, pids = {each.inode for each in sockets}, dict[int, int]()
    for pid, inode in _list_open_sockets(proc) if missing else ():
        if inode in missing:
            missing.discard(inode)
            pids[inode] = pid
            if not missing:
                break
    return [_with_process(each, pids[each.inode], proc) if each.inode in pids else each for each in sockets]


def _with_process(each: PortHolder, pid: int, proc: str) -> PortHolder:
    return replace(each, pid=pid, command=read_command(pid, proc))


def _list_open_sockets(proc: str) -> Iterator[tuple[int, int]]:
    """Yield each socket that a process has open: the process, and the inode."""
    try:
        pids = sorted(int(entry) for entry in os.listdir(proc) if entry.isdecimal())  # noqa: PTH208
    except OSError:
        return
    looked_at = 0
    for pid in pids[:MAX_PROCESSES]:
        try:
            descriptors = os.listdir(f"{proc}/{pid}/fd")  # noqa: PTH208
        except OSError:
            continue  # It has ended, or this user may not look into it.
        for descriptor in descriptors:
            looked_at += 1
            if looked_at > MAX_DESCRIPTORS:
                return
            try:
                target = os.readlink(f"{proc}/{pid}/fd/{descriptor}")  # noqa: PTH115
            except OSError:
                continue
            if target.startswith("socket:["):
                yield pid, int(target[8:-1])


def read_command(pid: int, proc: str = "/proc") -> str:
    """Return the command line of a process, in one line and cut; its name where it has none; else nothing."""
    for file, separator in (("cmdline", "\0"), ("comm", "\n")):
        try:
            with open(f"{proc}/{pid}/{file}", "rb") as opened:  # noqa: PTH123
                text = os.fsdecode(opened.read(4 * MAX_COMMAND_CHARS)).strip(separator)
        except OSError:
            continue
        if text:
            program, _, rest = text.partition("\0")
            text = f"{program.rpartition('/')[2]} {rest}".strip()  # Its folder says little.
            line = "".join(letter if letter.isprintable() else " " for letter in text)
            return line if len(line) <= MAX_COMMAND_CHARS else line[: MAX_COMMAND_CHARS - 1] + "…"
    return ""
