"""`fleetlm drain`, `undrain`, SIGTERM and their exit codes, with real programs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import stretched
from tests.system.test_cli_system import Place

PROGRAM = """
import asyncio
from fleetlm import Actor, handler

class Slow(Actor):
    @handler(concurrent=True)
    async def work(self, seconds):
        print("works", flush=True)
        await asyncio.sleep(seconds)
        return "done"
    async def on_drain(self, until):
        print("on_drain", flush=True)
    async def on_undrain(self):
        print("on_undrain", flush=True)

def make(seconds):
    async def main(node):
        node.on_leaving(lambda: print("before_drain", flush=True))
        node.on_leaving(lambda: print("before_stop", flush=True), phase="before_stop")
        await node.start_actor(Slow, name="slow")
        if seconds:
            node.spawn(ask, seconds)
        await node.wait_stopped()
    return main

async def ask(process, seconds):
    print(await process.node.ref(Slow, "slow").within(60).call(Slow.work, seconds), flush=True)
    await process.receive()

idle, short, long = make(0), make(1.0), make(30.0)
"""
HOOKS = "before_drain\non_drain\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    try:
        yield made
    finally:
        made.end()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=stretched(15))
    return process.returncode, out, error


def working(place: Place, program: str, *args: str) -> subprocess.Popen[str]:
    """Start a node that has begun to serve a call."""
    node = place.node(2, f"program:{program}", *args)
    assert node.stdout is not None
    assert node.stdout.readline() == "works\n"
    return node


def test_sigterm_finishes_a_call_and_the_log_ends_with_a_report(place: Place) -> None:
    node = working(place, "short")
    node.send_signal(signal.SIGTERM)
    code, out, error = ended(node)
    assert (code, out) == (0, f"{HOOKS}done\nbefore_stop\n")
    last = error.splitlines()[-1]
    assert "node fleetlm@127.0.0.2 drained in" in last
    assert last.endswith(" finished, 0 refused, 0 cut")
    assert " 0 finished" not in last


def test_what_is_cut_is_exit_code_75_and_in_the_report(place: Place) -> None:
    node = working(place, "long", "--drain", "0.3")
    node.send_signal(signal.SIGTERM)
    code, out, error = ended(node)
    assert (code, out) == (75, f"{HOOKS}before_stop\n")
    last = error.splitlines()[-1]
    assert "cut (" in last
    assert "1 call(s) of Slow" in last


def test_drain_waits_and_reports_and_undrain_takes_it_back(place: Place) -> None:
    node = working(place, "short")
    drained = place.run("drain", "--wait", "--timeout", "20", "--reason", "a test")
    assert (drained.returncode, drained.stderr) == (0, "")
    first, *_, last = drained.stdout.splitlines()
    assert first == "fleetlm@127.0.0.2 drains, for at most 20 s"
    assert last.endswith(" refused, 0 cut")
    ready = place.run("health", "--ready")
    assert (ready.returncode, "it is draining" in ready.stderr) == (1, True)
    assert place.run("health", "--live").returncode == 0
    undrained = place.run("undrain")
    assert (undrained.returncode, undrained.stdout) == (0, "fleetlm@127.0.0.2 takes work again\n")
    again = place.run("undrain")
    assert (again.returncode, again.stdout) == (0, "fleetlm@127.0.0.2 does not drain\n")
    assert place.run("health", "--ready").returncode == 0
    call = "await node.call('slow', fleetlm.wire.invocation.Invoke('work', (0,), {}))"
    assert place.remote(f"__import__('fleetlm.wire.invocation') and {call}").stdout == "'done'\n"
    node.send_signal(signal.SIGTERM)
    code, out, _ = ended(node)
    assert (code, out) == (0, f"{HOOKS}done\non_undrain\nworks\n{HOOKS}before_stop\n")


def test_a_drain_that_cuts_something_is_exit_code_75(place: Place) -> None:
    working(place, "long")
    drained = place.run("drain", "--wait", "--timeout", "0.3")
    assert drained.returncode == 75
    assert "1 call(s) of Slow" in drained.stdout.splitlines()[-1]


def test_drain_without_wait_ends_as_soon_as_the_node_drains(place: Place) -> None:
    node = working(place, "long")
    drained = place.run("drain", "--timeout", "60")
    assert (drained.returncode, drained.stderr) == (0, "")
    assert drained.stdout == (
        "fleetlm@127.0.0.2 drains, for at most 60 s; take it back with: fleetlm undrain\n"
    )
    assert place.remote("node.is_draining").stdout == "True\n"
    assert place.run("undrain").returncode == 0
    assert node.poll() is None


def test_a_command_that_is_interrupted_does_not_take_the_drain_back(place: Place) -> None:
    working(place, "long")
    command = place.popen("drain", "--wait", "--timeout", "60")
    assert command.stdout is not None
    assert command.stdout.readline().startswith("fleetlm@127.0.0.2 drains")
    command.send_signal(signal.SIGINT)
    assert ended(command)[0] == 130
    assert place.remote("node.is_draining").stdout == "True\n"


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_without_a_node_the_commands_say_so(place: Place, command: str) -> None:
    done = place.run(command)
    assert done.returncode == 3
    assert done.stderr.startswith(f"fleetlm {command}: no node")


def test_of_several_nodes_on_a_host_each_must_be_ready_and_one_can_be_named(place: Place) -> None:
    ports = f"{place.port}-{place.port + 3}"
    place.env["FLEETLM_NODE_PORT"] = ports
    place.node(2, "program:idle")
    place.popen("start", "program:idle", FLEETLM_NODE_IP="127.0.0.2")
    first, second = "fleetlm@127.0.0.2", f"fleetlm@127.0.0.2:{place.port + 1}"
    place.eventually(lambda: place.run("health", "--ready", "--node", second).returncode == 0)
    both = place.run("health", "--ready")
    assert both.returncode == 0
    assert [line.split()[0] for line in sorted(both.stdout.splitlines())] == [first, second]
    assert place.run("drain").returncode == 2
    assert place.run("drain", "--wait", "--node", second).returncode == 0
    one = place.run("health", "--ready")
    assert (one.returncode, one.stdout) == (1, "")
    assert one.stderr.startswith(f"{second} is not ready: it is draining")
    assert place.run("health", "--ready", "--node", first).returncode == 0
    assert place.run("health", "--live", "--node", second).returncode == 0
    assert place.run("health", "--ready", FLEETLM_NODE_SLOT="0").returncode == 0
    assert place.run("health", "--ready", FLEETLM_NODE_SLOT="1").returncode == 1
    assert place.run("health", "--live", FLEETLM_NODE_SLOT="2").returncode == 1
