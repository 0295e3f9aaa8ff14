"""A PostgreSQL server of the tests: in a folder of its own, without rights, on a Unix socket only."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt/postgresql@17/bin")
USERS = ("postgres", "nobody")
START_S = 60.0
MISSING = "no PostgreSQL server is installed (Debian: apt-get install postgresql)"


@functools.cache
def find_programs() -> Path | None:
    """Return the folder with ``initdb`` and ``postgres``, or None."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    for folder in map(Path, FOLDERS):
        found += [each.parent for each in sorted(folder.glob("*/bin/initdb"), reverse=True)]
        found += [folder] if (folder / "initdb").exists() else []
    return next((each for each in found if (each / "postgres").exists()), None)


def is_allowed() -> bool:
    """Whether a server can be started: it refuses to run as root, so root needs another user."""
    return os.getuid() != 0 or _user() is not None


class PostgresServer:
    """One server, made by `postgres_server`.

    Attributes:
        folder: with its data, its socket and its log.
        conninfo: for clients.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder: Path = folder
        self.conninfo: str = f"host={folder} user=tests dbname=postgres"
        self._programs = programs
        self._pid = 0

    def make(self) -> None:
        """Make the data, without waiting for the disk."""
        self._run("initdb", "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {
            "listen_addresses": "", "unix_socket_directories": self.folder, "fsync": "off",
            "shared_buffers": "8MB", "max_connections": "60",
        }  # fmt: skip
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._run(
            "pg_ctl", "-w", "-t", f"{START_S:.0f}", "-l", str(self.folder / "log"), "-o", options, "start"
        )
        self._pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self, how: str = "fast") -> None:
        """Stop it: "fast" ends its connections and shuts down in order, "immediate" is a crash."""
        if self._pid:
            self._pid = 0
            self._run("pg_ctl", "-w", "-m", how, "stop")

    def pause(self) -> None:
        """Let it answer nothing, its connections included, until `go_on`."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """See `pause`."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        for pid in (self._pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _run(self, program: str, *options: str) -> None:
        """Run one of its programs on its data."""
        subprocess.run(
            [str(self._programs / program), "-D", str(self.folder / "data"), *options],
            check=True, stdout=subprocess.DEVNULL, timeout=2 * START_S, user=_user(), cwd=self.folder,
        )  # fmt: skip


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server of its own. Raises: LookupError: there is none on this machine."""
    programs = find_programs()
    if programs is None or not is_allowed():
        raise LookupError(MISSING)
    with tempfile.TemporaryDirectory(prefix="fleetlm-pg-", dir="/tmp") as made:  # sockets' paths are short
        folder = Path(made)
        user = _user()
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        server = PostgresServer(folder, programs)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def server_for_tests() -> Iterator[PostgresServer]:
    """Yield a server; skip the test where the driver or the server is missing."""
    pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'fleetlm[postgres]'")
    if find_programs() is None or not is_allowed():
        pytest.skip(MISSING)
    with postgres_server() as running:
        yield running


def _user() -> str | None:
    """Return who is to run the server: nobody else, or a user without rights where this is root."""
    if os.getuid() != 0:
        return None
    known = {each.pw_name for each in pwd.getpwall()}
    return next((user for user in USERS if user in known), None)
