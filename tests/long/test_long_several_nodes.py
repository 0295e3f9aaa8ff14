"""The workers of a web server are killed a hundred times, and reloaded."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.system.servers import kill_workers, served

pytestmark = pytest.mark.long
KILLS = 100


@pytest.mark.deadline(170)
async def test_a_hundred_killed_workers_are_replaced_and_no_message_reaches_a_successor(
    tmp_path: Path,
) -> None:
    watcher = await kill_workers(KILLS, f"127.199.{os.getpid() % 251}.1", tmp_path)
    print(watcher.answered, "answered,", watcher.refused, "refused,", watcher.unknown, "unknown")
    assert watcher.answered > KILLS
    assert watcher.refused > KILLS


@pytest.mark.deadline(120)
@pytest.mark.parametrize(
    "command",
    [
        "gunicorn -w 2 -k asgi -b 127.0.0.1:{port} web:app",
        "gunicorn -c gunicorn_sync.py -w 2 -b 127.0.0.1:{port} wsgi:app",
        "gunicorn -c gunicorn_sync.py --preload -w 2 -b 127.0.0.1:{port} wsgi:app",
    ],
    ids=["asgi", "sync", "preload"],
)
def test_a_reload_replaces_the_workers_while_the_old_ones_leave(command: str, tmp_path: Path) -> None:
    ip = f"127.198.{os.getpid() % 251}.{1 + len(command) % 250}"
    with served(command, ip, tmp_path) as server:
        before = {pid for _, pid in server.eventually(2)["everyone"]}
        server.process.send_signal(signal.SIGHUP)
        server.eventually(2, other_than=before)
        log = server.stop()
    assert server.process.returncode == 0, log
    assert "StartFailed" not in log
    assert "Traceback" not in log
