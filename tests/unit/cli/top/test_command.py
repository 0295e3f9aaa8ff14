"""`fleetlm top` without a terminal: exit codes, what is printed, what is imported, and lost nodes."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from typing import Any

import pytest

from fleetlm.cli import arguments, main
from fleetlm.cli.top import command, source as module
from fleetlm.cli.top.source import Source, look_twice
from fleetlm.remote import client
from fleetlm.remote.client import NodeGone
from fleetlm.remote.finder import NO_NODE, OK, RAISED, TIMEOUT, USAGE, RemoteFailure
from fleetlm.remote.protocol import BadMessage, SocketFile
from tests.unit.cli.top.overviews import A, B, gone, overview, part


class FakeConnection:
    def __init__(self, node: str) -> None:
        self.node = node
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Machine:
    """The nodes of this machine, and what they answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = [SocketFile("/run", A, 7)]
        self.answers: list[Any] = []
        self.connections: list[FakeConnection] = []
        monkeypatch.setattr(module, "discover", lambda env, uid: self.found)
        monkeypatch.setattr(client, "connect", self.connect)
        monkeypatch.setattr(client, "ask_overview", self.ask)

    def connect(self, found: SocketFile) -> FakeConnection:
        self.connections.append(FakeConnection(found.node))
        return self.connections[-1]

    def ask(self, connection: FakeConnection, number: int, timeout_s: float) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Arguments.


def test_the_options_have_their_defaults() -> None:
    options = arguments.parser().parse_args(["top"])
    assert (options.node, options.interval, options.once, options.json) == (None, 1.0, False, False)
    options = arguments.parser().parse_args(["top", "--node", "4371", "--interval", "2.5", "--once"])
    assert (options.node, options.interval, options.once) == ("4371", 2.5, True)
    with pytest.raises(SystemExit):
        arguments.parser().parse_args(["top", "--interval", "0"])


# Once, and JSON.


def test_json_is_what_the_node_tells(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.answers = [overview(part(A), gone(B))]
    assert main.main(["top", "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == overview(part(A), gone(B))
    assert all(each.is_closed for each in machine.connections)


def test_tables_are_made_of_two_looks(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.answers = [
        overview(part(A, 10_000, counters={"messages_received": 0})),
        overview(part(A, 12_000, counters={"messages_received": 500})),
    ]
    assert main.main(["top", "--once", "--interval", "0.001"]) == OK
    out = capsys.readouterr().out
    assert f"{A}: 1 node, 1 up · 0 processes · 250 messages/s" in out
    assert "NODES" in out


@pytest.mark.parametrize("option", ["--once", "--json"])
def test_a_node_that_goes_meanwhile_is_an_error(
    option: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.answers = [NodeGone(A, "it died")]
    assert main.main(["top", option, "--interval", "0.001"]) == NO_NODE
    assert capsys.readouterr() == ("", f"fleetlm top: {A} is gone (it died)\n")


def test_where_no_node_runs_the_reason_says_what_may_be_off(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.found = []
    assert main.main(["top", "--json"]) == NO_NODE
    error = capsys.readouterr().err
    assert error.startswith("fleetlm top: no node of this user runs on this machine")
    assert "FLEETLM_REMOTE=off" in error


def test_of_several_nodes_one_must_be_chosen(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.found = [SocketFile("/run", A, 7), SocketFile("/run", B, 8)]
    assert main.main(["top", "--json"]) == USAGE
    assert f"--node {B}" in capsys.readouterr().err


# The live view.


def test_without_a_terminal_it_says_what_needs_none(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["top"]) == USAGE
    assert capsys.readouterr().err == f"fleetlm top: {command.NO_TERMINAL}\n"
    assert machine.connections == []


def test_without_textual_it_says_what_to_install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.main(["top"]) == USAGE
    assert "pip install 'fleetlm[top]'" in screen.getvalue()
    assert "fleetlm top --once" in screen.getvalue()
    assert machine.connections == []


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys; from fleetlm.cli.top import command; from fleetlm.cli.top import tables; "
        "print([m for m in ('textual', 'rich', 'asyncio', 'zmq', 'msgpack', 'logging') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The source.


def test_a_lost_node_is_looked_for_by_its_name(machine: Machine) -> None:
    source = Source("4370")
    machine.answers = [overview(part(A)), NodeGone(A, "it died"), overview(part(A))]
    assert source.look().overview is not None
    assert source.node == A
    lost = source.look()
    assert (lost.overview, lost.failure, lost.code) == (None, f"{A} is gone (it died)", NO_NODE)
    assert machine.connections[0].is_closed
    machine.found = []
    assert "no node of this user runs" in source.look().failure
    machine.found = [SocketFile("/run", B, 9)]
    assert source.look().failure == f"no node {A} runs on this machine."
    machine.found = [SocketFile("/run", B, 9), SocketFile("/run", A, 10)]
    assert source.look().overview is not None
    assert [each.node for each in machine.connections] == [A, A], "not the other one"
    source.close()
    assert machine.connections[1].is_closed


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (TimeoutError(), TIMEOUT, "its event loop is blocked"),
        (BadMessage("not JSON"), NO_NODE, "not JSON"),
        (RemoteFailure(RAISED, "failed", "it \x1b[2Jstops\nmore"), RAISED, r"it \x1b[2Jstops"),
        (OSError(9, "Bad file descriptor"), NO_NODE, "Bad file descriptor"),
    ],
)
def test_each_failure_has_a_text_and_a_code(
    answer: Exception, code: int, text: str, machine: Machine
) -> None:
    machine.answers = [answer]
    look = Source(None).look()
    assert look.overview is None
    assert look.code == code
    assert text in look.failure
    assert look.failure.isprintable()
    assert machine.connections[0].is_closed


def test_two_looks_end_with_the_first_failure(machine: Machine) -> None:
    machine.answers = [NodeGone(A, "it died")]
    first, second = look_twice(Source(None), 60)
    assert first is second
    assert first.code == NO_NODE


def test_a_source_that_is_closed_keeps_no_connection(machine: Machine) -> None:
    source = Source(None)
    source.close()
    machine.answers = [NodeGone(A, "closed")]
    source.look()
    assert machine.connections[0].is_closed
