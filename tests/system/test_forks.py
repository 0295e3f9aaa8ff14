"""What becomes of a forked child of a program with nodes, and of the nodes that it was forked from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetlm.cli.demo.replicas import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.deadline(60)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_forked_child_ends_as_it_wishes_and_its_parent_does_not_notice(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="the extra `uvloop` is not installed")
    program = ROOT / "tests" / "system" / "fork_program.py"
    done = subprocess.run(
        [sys.executable, str(program), str(free_port(["127.0.0.64", "127.0.0.65"])), loop],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.stdout.splitlines() == [
        *["coroutine 7", "handler 4", "thread 5"] * 3,
        *(["turn 3"] if loop == "asyncio" else ["it says why", "turn 1"]),
        "it says why",
        "future 1",
        "return in handler 1",
        "return 0",
        "process 6",
        "process again 6",
        "signal -15 []",
        "NodeStopped True",
        "main 0",
        "parent True pong",
        "terminate parent shutdown",
    ]
    assert (done.returncode, done.stderr) == (0, "")


IN_A_THREAD = """
import os, sys, warnings
import fleetlm
from fleetlm import Settings

warnings.simplefilter("ignore", DeprecationWarning)
settings = Settings(node_ip="127.0.0.64", node_ports=(int(sys.argv[1]), int(sys.argv[1])), remote=False)
node = fleetlm.node_in_thread(settings)
pid = os.fork()
if pid == 0:
    try:
        node.list()
    except fleetlm.NodeStopped as error:
        print("forked from" in str(error), flush=True)
    node.stop()
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), node.list(), flush=True)
node.stop()
"""


def test_a_child_of_a_program_with_a_node_in_a_thread_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_THREAD, str(free_port(["127.0.0.64"]))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode, done.stderr) == ("True\n3 []\n", 0, "")
