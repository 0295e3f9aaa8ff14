"""`fleetlm top` as a real program beside three real nodes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import allowed_s
from tests.system.test_cli_system import Place

PROGRAM = """
import asyncio
from fleetlm import Actor, Child, Supervisor, handler

class Model(Actor):
    async def init(self):
        self.node.groups.join("models", self.pid)

    @handler
    async def generate(self):
        await asyncio.sleep(3600)

async def main(node):
    node.spawn(Supervisor([Child("model", Model, register="model")]), name="app")
    await asyncio.sleep(0.1)
    ref = node.ref(Model, "model")
    for _ in range(3):
        await ref.cast(Model.generate)
    await asyncio.Event().wait()
"""
CONTROL = re.compile(r"\x1b\[[0-9;?>]*[A-Za-z]")
"""What moves the cursor and sets colours; one that is cut in two stays."""
NAMES = [f"fleetlm@127.0.0.{number}" for number in (2, 3, 4)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    (tmp_path / "models.py").write_text(PROGRAM)
    made.env["DNS_CLUSTER_QUERY"] = "127.0.0.2,127.0.0.3,127.0.0.4"
    try:
        yield made
    finally:
        made.end()


def look(place: Place) -> dict[str, Any]:
    done = place.run("top", "--json", "--node", NAMES[0])
    return json.loads(done.stdout) if done.returncode == 0 else {"nodes": {}}


def is_whole(place: Place) -> bool:
    """Whether each node has told of its model, and knows the group of all three."""
    nodes = look(place)["nodes"].values()
    return len(nodes) == 3 and all(
        "error" not in each and each["trees"] and each["groups"].get("models", {}).get("count") == 3
        for each in nodes
    )


Live = tuple[subprocess.Popen[bytes], int, Callable[[str, str], None]]
"""The program, the other end of its terminal, and a function that types keys and reads until a text comes."""


@contextlib.contextmanager
def on_terminal(place: Place, *args: str) -> Iterator[Live]:
    """Run the live view on a terminal of 160 by 40."""
    # xdist sets these for its workers, and Textual believes them before the terminal itself.
    env = {name: text for name, text in place.env.items() if name not in ("COLUMNS", "LINES")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetlm", "top", *args],
        cwd=place.folder, env=env | {"TERM": "xterm-256color", "COLORTERM": ""},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)

    def press(keys: str, until: str) -> None:
        os.write(ours, keys.encode())
        seen, deadline = "", time.monotonic() + allowed_s(15.0)
        while until not in seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, repr(seen)
            if select.select([ours], [], [], left_s)[0]:
                more = CONTROL.sub("", os.read(ours, 65_536).decode(errors="replace"))
                seen = seen[-10_000:] + more

    try:
        yield process, ours, press
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(ours)


@pytest.mark.deadline(60)
def test_three_real_nodes_are_seen_in_tables_as_json_and_live(place: Place) -> None:
    nodes = [place.node(number, "models:main") for number in (2, 3, 4)]
    place.eventually(lambda: is_whole(place))

    seen = look(place)
    assert seen["asked"] == NAMES[0]
    model = next(row for row in seen["nodes"][NAMES[1]]["processes"]["shown"] if row["name"] == "model")
    assert (model["mailbox"], model["serving"]) == (2, "generate")

    tables = place.run("top", "--once", "--interval", "0.2", "--node", NAMES[0])
    assert tables.returncode == 0, tables.stderr
    assert f"{NAMES[0]}: 3 nodes, 3 up · 6 processes" in tables.stdout
    for line in ("NODES", "PROCESSES", "TREES", "GROUPS", "SESSIONS", "EVENTS"):
        assert f"\n{line}\n" in tables.stdout
    assert len(re.findall(r"^fleetlm@127\.0\.0\.\d +└─ model +Model", tables.stdout, re.MULTILINE)) == 3

    with on_terminal(place, "--node", NAMES[0], "--interval", "0.2") as (top, ours, press):
        press("", "3 nodes, 3 up")
        press("2", "generate")
        nodes[2].kill()
        press("", "2 up, 1 down")
        press("1", "it is not connected")
        nodes[0].send_signal(signal.SIGKILL)
        press("", "trying again")
        again = place.node(2, "models:main")
        press("", "3 nodes, 2 up, 1 ")
        assert again.poll() is None
        os.write(ours, b"q")
        assert top.wait(allowed_s(10.0)) == 0


def test_the_live_view_ends_with_its_terminal(place: Place) -> None:
    node = place.node(2)
    with on_terminal(place, "--interval", "0.2", "--node", str(place.port)) as (top, ours, press):
        press("", "1 up")
        os.close(ours)
        assert top.wait(allowed_s(10.0)) is not None
    assert node.poll() is None


def test_a_node_with_remote_off_is_not_found_and_the_reason_says_so(place: Place) -> None:
    node = place.node(2, FLEETLM_REMOTE="off")
    done = place.run("top", "--once", "--node", str(place.port))
    assert node.poll() is None
    assert done.returncode == 3
    assert "FLEETLM_REMOTE=off" in done.stderr
