"""`fleetlm` without what only Linux has: ``python -m tests.support.without_linux COMMAND...``.

It calls itself macOS, lacks what macOS lacks in Python's modules, and finds nothing below ``/proc`` and
``/sys``, no netlink and no abstract Unix sockets. So a test can see on Linux that fleetlm does without all of
it. What macOS does in another way is not seen here.

Modules of others are imported first: they choose for themselves by the name of the system.
"""

from __future__ import annotations

import _socket
import concurrent.futures.process  # noqa: F401
import errno
import importlib
import multiprocessing.connection  # noqa: F401
import os
import resource
import select
import selectors
import shutil  # noqa: F401
import signal
import socket
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import time
import uuid  # noqa: F401
from typing import Any

THEIRS = (
    "asyncio",
    "ctypes",
    "dns.asyncresolver",
    "dns.flags",
    "dns.rdatatype",
    "msgpack",
    "platform",
    "zmq",
)
SOCKETS = (
    *(
        "AF_NETLINK",
        "AF_PACKET",
        "AF_VSOCK",
        "MSG_NOSIGNAL",
        "SOCK_CLOEXEC",
        "SOCK_NONBLOCK",
        "SO_BINDTODEVICE",
    ),
    *(
        "SO_DOMAIN",
        "SO_INCOMING_CPU",
        "SO_MARK",
        "SO_PEERCRED",
        "SO_PROTOCOL",
        "TCP_CORK",
        "TCP_DEFER_ACCEPT",
    ),
    *("TCP_INFO", "TCP_KEEPIDLE", "TCP_LINGER2", "TCP_QUICKACK", "TCP_SYNCNT", "TCP_USER_TIMEOUT"),
)
LACKING = {
    select: ("epoll", "EPOLLERR", "EPOLLET", "EPOLLHUP", "EPOLLIN", "EPOLLOUT"),
    socket: SOCKETS,
    _socket: SOCKETS,
    os: (
        *("O_PATH", "O_TMPFILE", "copy_file_range", "eventfd", "getrandom", "memfd_create", "pidfd_open"),
        *("pipe2", "sched_getaffinity", "setns", "splice", "unshare"),
    ),
    resource: ("prlimit",),
    signal: ("SIGPWR", "SIGRTMAX", "SIGRTMIN", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo"),
    time: ("CLOCK_BOOTTIME",),
}
AF_NETLINK = 16
READS = ("open", "os.listdir", "os.scandir")
"""Audit events whose first argument is a path."""
MEETS = ("socket.bind", "socket.connect", "socket.sendto")
"""Audit events whose second argument is an address."""


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail what another system would not do, whoever asks for it."""
    if event in READS:
        path = arguments[0]
        if isinstance(path, str | bytes) and os.fsdecode(path).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if path in ("/proc", "/sys"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    elif event in MEETS:
        address = arguments[1]
        if isinstance(address, str | bytes) and address[:1] in ("\0", b"\0"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    elif event == "socket.__new__" and arguments[1] == AF_NETLINK:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def take_away() -> None:
    """Make this process one without Linux. It cannot be undone."""
    for name in THEIRS:
        importlib.import_module(name)
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its loop waits by itself
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[assignment,misc]  # asyncio asks for it by name
    for module, names in LACKING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.addaudithook(refuse)
    sys.platform = "darwin"


if __name__ == "__main__":
    take_away()
    from fleetlm.__main__ import main

    sys.argv[0] = "fleetlm"
    sys.exit(main())
