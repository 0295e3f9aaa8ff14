"""Several nodes on one host, as the recipes of examples/several_nodes start them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.servers import EXAMPLES, environment, kill_workers, served

_hosts = itertools.count(1)


@pytest.fixture
def ip() -> str:
    """An address of this test, so that its nodes find no others."""
    return f"127.{200 + os.getpid() // 251 % 50}.{os.getpid() % 251}.{next(_hosts)}"


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    "command",
    [
        "uvicorn --workers 2 --port {port} web:app",
        "gunicorn --workers 2 --worker-class asgi --bind 127.0.0.1:{port} web:app",
        "gunicorn --config gunicorn_sync.py --workers 2 --bind 127.0.0.1:{port} wsgi:app",
    ],
    ids=["uvicorn", "gunicorn_asgi", "gunicorn_sync"],
)
def test_the_workers_of_a_web_server_are_one_cluster(command: str, ip: str, tmp_path: Path) -> None:
    with served(command, ip, tmp_path) as server:
        answer = server.eventually(2)
        assert [name for name, _ in answer["everyone"]] == [f"fleetlm@{ip}", f"fleetlm@{ip}:14371"]
        assert len({pid for _, pid in answer["everyone"]}) == 2
        log = server.stop()
    assert server.process.returncode == 0, log
    assert "Traceback" not in log
    assert log.count("stopped: shutdown") in (0, 2)  # It is logged where the server shows such a level.


def run(example: str, ip: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, example],
        cwd=EXAMPLES,
        env=environment(ip, 14_370),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.deadline(60)
def test_ranks_have_the_names_of_their_slots(ip: str) -> None:
    others = ", ".join(f"fleetlm@{ip}:{14_370 + rank}" for rank in (1, 2))
    assert run("ranks.py", ip) == [f"fleetlm@{ip} and {others}: ['0', '1', '4']"]


@pytest.mark.deadline(60)
def test_forked_and_spawned_workers_are_nodes(ip: str) -> None:
    *lines, last = run("workers.py", ip)
    assert [line.split(" beside ")[0] for line in (*lines, last)] == [
        "2 more nodes", "they are the workers: True", "2 more nodes", "they are the workers: True",
    ]  # fmt: skip


@pytest.mark.deadline(60)
async def test_a_killed_worker_is_replaced_and_no_message_reaches_its_successor(
    ip: str, tmp_path: Path
) -> None:
    watcher = await kill_workers(3, ip, tmp_path)
    assert watcher.answered
    assert watcher.refused
