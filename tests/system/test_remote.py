"""The remote shell over a real Unix socket, in front of a fake node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fleetlm.errors import NodeStopped
from fleetlm.remote import client, credentials, evaluator, finder, protocol, server as remote_server
from fleetlm.remote.client import RemoteConnection, RemoteOutcome
from fleetlm.remote.finder import RemoteFailure
from fleetlm.remote.protocol import BadMessage, SocketFile, UnsafeFolder
from fleetlm.remote.server import RemoteServer
from tests.support.patience import allowed_s
from tests.support.remote_fakes import OTHER, FakeNode

UID = os.getuid()
NAME = "fleetlm@127.0.0.1"


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Point server and client to a runtime folder of this test, and to no other."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    known = protocol.folders
    monkeypatch.setattr(
        protocol, "folders", lambda env, uid: [f for f in known(env, uid) if str(tmp_path) in f]
    )
    monkeypatch.setattr(finder, "_find_folders_of_others", lambda: iter(()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return {"XDG_RUNTIME_DIR": str(runtime)}


@contextlib.asynccontextmanager
async def running(env: dict[str, str], node: FakeNode | None = None) -> AsyncIterator[RemoteServer]:
    server = RemoteServer(node or FakeNode(), env)  # type: ignore[arg-type]
    await server.start()
    assert server.path is not None
    try:
        yield server
    finally:
        await server.stop()


def connect(env: dict[str, str], node: str | None = None, timeout_s: float = 5.0) -> RemoteConnection:
    return client.connect(finder.choose(finder.discover(env, UID), node), timeout_s)


Shown = list[tuple[str, str]]


def ask(env: dict[str, str], source: str, timeout_s: float = 5.0) -> tuple[RemoteOutcome, Shown]:
    """Evaluate once, as the command does."""
    shown: Shown = []
    connection = connect(env)
    try:
        outcome = client.evaluate(connection, source, timeout_s, 0, lambda *each: shown.append(each))
    finally:
        connection.close()
    return outcome, shown


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def result(env: dict[str, str], source: str) -> Any:
    outcome, _ = await in_thread(ask, env, source)
    assert outcome.code == 0, outcome.error
    return outcome.done["repr"]


# ── what is evaluated ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Node.list()", f"['{OTHER}']"),
        ("Node.self()", f"'{NAME}'"),
        (f"Node.ping('{OTHER}')", "'pong'"),
        (f"await Node.ping('{OTHER}')", "'pong'"),
        (f"[await Node.connect(n) for n in ['{OTHER}', 'x@127.0.0.3']]", "[True, False]"),
        ("node.incarnation", "5"),
        ("Entities.kinds()", "(no kinds of entities)"),
        ("x = 20\ny = 22\nx + y", "42"),
        ("x = 1", "None"),
        ("import math\nmath.floor(2.5)", "2"),
        ("async def f():\n    return 7\nawait f()", "7"),
        ("async def f():\n    return 7\nf()", "7"),
        ("asyncio.create_task(asyncio.sleep(0, 'slept'))", "'slept'"),
        ("async with asyncio.timeout(1):\n    z = await asyncio.sleep(0, 3)\nz", "3"),
        ("[i async for i in (j for j in ())]", None),
        ("__import__('fleetlm').__name__", "'fleetlm'"),
        ("fleetlm.Settings().base_port", "4370"),
        ("", "None"),
        ("'é\\ud800'", "'é\\ud800'"),
    ],
)
async def test_expressions_and_statements(env: dict[str, str], source: str, expected: str | None) -> None:
    async with running(env):
        outcome, _ = await in_thread(ask, env, source)
        if expected is None:
            assert outcome.code == 1
        else:
            assert outcome.code == 0, outcome.error
            assert outcome.done["repr"] == expected


async def test_names_and_the_last_result_persist_in_a_session_and_nowhere_else(
    env: dict[str, str],
) -> None:
    async with running(env):

        def session() -> list[Any]:
            connection = connect(env)
            try:
                sources = ["x = 1", "x + 1", "None", "_ + 40", "_"]
                return [
                    client.evaluate(connection, source, 5.0, 0, lambda *_: None).done["repr"]
                    for source in sources
                ]
            finally:
                connection.close()

        assert await in_thread(session) == ["None", "2", "None", "42", "42"]
        outcome, _ = await in_thread(ask, env, "x")
        assert outcome.code == 1
        assert outcome.done["type"] == "NameError"


async def test_a_traceback_shows_the_users_frames_and_lines_and_none_of_ours(
    env: dict[str, str],
) -> None:
    async with running(env):
        source = "def inner():\n    return 1 / 0\n\ndef outer():\n    return inner()\nouter()"
        outcome, _ = await in_thread(ask, env, source)
    assert outcome.code == 1
    assert outcome.error.startswith("Traceback (most recent call last):")
    assert "    return 1 / 0" in outcome.error
    assert outcome.error.endswith("ZeroDivisionError: division by zero\n")
    assert "evaluator.py" not in outcome.error
    assert "in outer" in outcome.error


async def test_the_carets_of_a_traceback_stand_where_they_should(env: dict[str, str]) -> None:
    async with running(env):
        outcome, _ = await in_thread(ask, env, "x = 1 / 0")
    assert "    x = 1 / 0\n        ~~^~~\n" in outcome.error


async def test_a_syntax_error_shows_the_place_and_no_traceback(env: dict[str, str]) -> None:
    async with running(env):
        outcome, _ = await in_thread(ask, env, "1 +* 2")
    assert outcome.code == 1
    assert "1 +* 2" in outcome.error
    assert "SyntaxError" in outcome.error
    assert "Traceback" not in outcome.error


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
    ],
)
async def test_nothing_that_is_raised_reaches_the_node(env: dict[str, str], source: str, kind: str) -> None:
    async with running(env):
        outcome, _ = await in_thread(ask, env, source)
        assert outcome.code == 1
        assert outcome.done["type"] == kind
        assert await result(env, "1") == "1"


async def test_a_repr_that_raises_and_one_that_is_huge(env: dict[str, str]) -> None:
    async with running(env):
        broken = "class B:\n    def __repr__(self): raise ValueError\nB()"
        assert await result(env, broken) == "<B object, whose repr() raises>"
        huge = await result(env, "'x' * 3_000_000")
        assert len(huge) < 1_000_100
        assert "..." in huge


async def test_a_wide_result_is_laid_out_for_a_terminal(env: dict[str, str]) -> None:
    def wide() -> Any:
        connection = connect(env)
        try:
            outcome = client.evaluate(connection, "['x' * 30] * 4", 5.0, 80, lambda *_: None)
        finally:
            connection.close()
        return outcome.done["repr"]

    async with running(env):
        assert (await in_thread(wide)).count("\n") == 3


# ── what is printed ──────────────────────────────────────────────────────────────────────────────


async def test_output_comes_while_it_runs(env: dict[str, str]) -> None:
    """The evaluation goes on only when the client has seen its first line."""
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    node = FakeNode()
    node.seen = seen  # type: ignore[attr-defined]

    def evaluate() -> tuple[RemoteOutcome, Shown]:
        shown: Shown = []

        def show(*each: str) -> None:
            shown.append(each)  # type: ignore[arg-type]
            if "first" in each[1]:
                loop.call_soon_threadsafe(seen.set)

        connection = connect(env)
        try:
            source = "print('first')\nawait node.seen.wait()\nprint('second')\n'done'"
            return client.evaluate(connection, source, 5.0, 0, show), shown
        finally:
            connection.close()

    async with running(env, node):
        outcome, shown = await in_thread(evaluate)
    assert outcome.code == 0
    assert "".join(text for _, text in shown) == "first\nsecond\n"


async def test_only_the_evaluations_own_output_is_sent(
    env: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    node = FakeNode()
    go, done = asyncio.Event(), asyncio.Event()
    node.go, node.done = go, done  # type: ignore[attr-defined]

    async def other() -> None:
        await go.wait()
        print("the node's own")
        done.set()

    async with running(env, node):
        task = asyncio.create_task(other())
        source = "node.go.set()\nawait node.done.wait()\nprint('mine')"
        outcome, shown = await in_thread(ask, env, source)
        await task
    assert outcome.code == 0
    assert "".join(text for _, text in shown) == "mine\n"
    assert capsys.readouterr().out == "the node's own\n"


async def test_output_of_tasks_threads_and_stderr_is_the_evaluations(env: dict[str, str]) -> None:
    source = """
import sys
async def task():
    print("task")
await asyncio.create_task(task())
await asyncio.to_thread(print, "thread")
print("error", file=sys.stderr)
sys.stdout.writelines(["a", "b\\n"])
sys.stdout.flush()
"""
    async with running(env):
        outcome, shown = await in_thread(ask, env, source)
    assert outcome.code == 0
    assert "".join(text for stream, text in shown if stream == "stdout") == "task\nthread\nab\n"
    assert "".join(text for stream, text in shown if stream == "stderr") == "error\n"


async def test_the_streams_are_as_before_when_the_last_session_ends(env: dict[str, str]) -> None:
    before = sys.stdout, sys.stderr
    async with running(env):
        await result(env, "1")
        connection = await in_thread(connect, env)
        await result(env, "1")
        assert sys.stdout is not before[0]
        connection.close()
    assert (sys.stdout, sys.stderr) == before


async def test_a_client_that_does_not_read_costs_no_memory(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "MAX_UNREAD_BYTES", 100_000)

    def late_reader() -> Shown:
        connection = connect(env)
        shown: Shown = []
        connection.send({"op": "eval", "id": 1, "source": "for _ in range(2000): print('x' * 1000)"})
        time.sleep(0.5)
        while "done" not in (message := connection.receive(time.monotonic() + 5)):
            shown.append((str(message["stream"]), str(message["text"])))
        connection.close()
        return shown

    async with running(env):
        shown = await in_thread(late_reader)
    assert sum(len(text) for _, text in shown) < 1_500_000
    assert "characters of output dropped" in shown[-1][1]


# ── time-outs, and clients that leave ────────────────────────────────────────────────────────────

CANCELLED = """
try:
    await asyncio.sleep(60)
except asyncio.CancelledError:
    node.told.append("cancelled")
    raise
"""


async def eventually(right: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not right():
            await asyncio.sleep(0.01)


async def test_a_timeout_cancels_the_evaluation_in_the_node(env: dict[str, str]) -> None:
    node = FakeNode()
    async with running(env, node):
        outcome, _ = await in_thread(ask, env, CANCELLED, 0.2)
        assert outcome.code == 4
        assert "0.2 s" in outcome.error
        assert "was cancelled" in outcome.error
        assert node.told == ["cancelled"]


async def test_a_client_that_goes_away_cancels_its_evaluation(env: dict[str, str]) -> None:
    node = FakeNode()
    async with running(env, node):
        connection = await in_thread(connect, env)
        connection.send({"op": "eval", "id": 1, "source": "node.told.append('runs')\n" + CANCELLED})
        await eventually(lambda: node.told == ["runs"])
        connection.close()
        await eventually(lambda: node.told == ["runs", "cancelled"])


async def test_a_node_that_does_not_react_is_a_timeout(env: dict[str, str]) -> None:
    """The loop of the node is blocked, first by this client's expression, then by another cause."""
    async with running(env):
        started = time.monotonic()
        outcomes: list[tuple[RemoteOutcome, Shown]] = []
        source = "import time; time.sleep(2.5)"
        thread = threading.Thread(target=lambda: outcomes.append(ask(env, source, 0.2)))
        thread.start()
        await in_thread(thread.join)
        assert outcomes[0][0].code == 4
        assert "blocked" in outcomes[0][0].error
        assert time.monotonic() - started < allowed_s(5)

        thread = threading.Thread(target=lambda: refused.append(failure(env, 0.3)))
        refused: list[RemoteFailure] = []
        thread.start()
        time.sleep(0.8)  # the loop is blocked by this very test
        await in_thread(thread.join)
    assert refused[0].code == 4
    assert "blocked" in str(refused[0])


def failure(env: dict[str, str], timeout_s: float = 5.0, node: str | None = None) -> RemoteFailure:
    with pytest.raises(RemoteFailure) as caught:
        connect(env, node, timeout_s)
    return caught.value


async def test_an_evaluation_that_will_not_be_cancelled_does_not_hold_up_a_stop(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "CANCEL_WAIT_S", 0.1)
    node = FakeNode()
    node.release = asyncio.Event()  # type: ignore[attr-defined]
    source = """
node.told.append("runs")
while not node.release.is_set():
    try:
        await node.release.wait()
    except asyncio.CancelledError:
        node.told.append("no")
"""
    async with running(env, node) as server:
        connection = await in_thread(connect, env)
        connection.send({"op": "eval", "id": 1, "source": source})
        await eventually(lambda: node.told[:1] == ["runs"])
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < allowed_s(1)
        node.release.set()  # type: ignore[attr-defined]
        await eventually(lambda: not server._clients)
        connection.close()


async def test_one_evaluation_at_a_time(env: dict[str, str]) -> None:
    def two() -> Any:
        connection = connect(env)
        try:
            connection.send({"op": "eval", "id": 1, "source": "await asyncio.sleep(60)"})
            connection.send({"op": "eval", "id": 2, "source": "1"})
            return connection.receive(time.monotonic() + 5)
        finally:
            connection.close()

    async with running(env):
        assert await in_thread(two) == {"id": 2, "done": "busy"}


async def test_cancel_before_it_began(env: dict[str, str]) -> None:
    def both() -> Any:
        connection = connect(env)
        try:
            eval_frame = protocol.pack({"op": "eval", "id": 1, "source": "1"})
            connection._socket.sendall(eval_frame + protocol.pack({"op": "cancel"}))
            return connection.receive(time.monotonic() + 5)
        finally:
            connection.close()

    async with running(env):
        assert (await in_thread(both))["done"] in ("cancelled", "ok")


# ── the node's end ───────────────────────────────────────────────────────────────────────────────


async def test_the_client_is_told_when_the_node_stops(env: dict[str, str]) -> None:
    async with running(env) as server:
        connection = await in_thread(connect, env)
        await server.stop("shutdown")
        with pytest.raises(client.NodeGone, match=f"{NAME} is gone.*it stopped: shutdown"):
            await in_thread(connection.receive, time.monotonic() + 5)
        assert server.path is None
        connection.close()
    assert list(Path(env["XDG_RUNTIME_DIR"], "fleetlm").iterdir()) == []


async def test_an_expression_that_stops_the_node_gets_its_result(env: dict[str, str]) -> None:
    node = FakeNode()
    async with running(env, node) as server:
        node.stop = server.stop  # type: ignore[attr-defined]
        outcome, _ = await in_thread(ask, env, "await node.stop()\n'stopped'")
    assert (outcome.code, outcome.done["repr"]) == (0, "'stopped'")


async def test_a_node_that_dies_during_an_evaluation_is_reported(env: dict[str, str]) -> None:
    async with running(env) as server:
        asking = asyncio.create_task(in_thread(ask, env, "await asyncio.sleep(60)"))
        await eventually(lambda: any(c._evaluation for c in server._clients.values()))
        for served in server._clients.values():
            served.abort()
        with pytest.raises(client.NodeGone, match="it died, or closed the connection"):
            await asking


# ── finding nodes ────────────────────────────────────────────────────────────────────────────────


class Watched(FakeNode):
    """A node whose overview can be told to fail, or to take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.overviews: list[Any] = []
        self.holds = asyncio.Event()
        self.holds.set()
        self.cancelled = 0

    async def overview(self, timeout: float) -> Any:
        self.told.append(timeout)
        try:
            await self.holds.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self.overviews.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_overview_comes_over_the_connection_and_fails_with_a_reason(env: dict[str, str]) -> None:
    node = Watched()
    node.overviews = [{"asked": NAME, "nodes": {}}, NodeStopped(NAME, "shutdown"), ValueError("no time"), {}]
    node.overviews[3] = {"nodes": "x" * (protocol.MAX_FRAME_BYTES + 1)}

    def look() -> list[Any]:
        connection = connect(env)
        seen: list[Any] = []
        try:
            for number in range(1, 5):
                try:
                    seen.append(client.ask_overview(connection, number, 0.25))
                except RemoteFailure as failure:
                    seen.append(failure)
        finally:
            connection.close()
        return seen

    async with running(env, node):
        first, stopped, wrong, large = await in_thread(look)
    assert first == {"asked": NAME, "nodes": {}}
    assert node.told == [0.25] * 4
    assert (stopped.code, "shutdown" in stopped.text) == (finder.RAISED, True)
    assert "no time" in wrong.text
    assert "bytes; at most" in large.text


async def test_one_overview_at_a_time_and_evaluations_go_on(env: dict[str, str]) -> None:
    node = Watched()
    node.holds.clear()
    node.overviews = [{"asked": NAME}]

    def several() -> list[Any]:
        connection = connect(env)
        try:
            connection.send({"op": "overview", "id": 1, "timeout": 5})
            connection.send({"op": "overview", "id": 2, "timeout": 5})
            connection.send({"op": "eval", "id": 3, "source": "1 + 1", "width": 0})
            connection.send({"op": "eval", "id": 4, "source": "node.holds.set()", "width": 0})
            got = {}
            while len(got) < 4:
                message = connection.receive(time.monotonic() + 5)
                got[message["id"]] = message
                if message["id"] == 3:
                    connection.send({"op": "eval", "id": 4, "source": "node.holds.set()", "width": 0})
                if message.get("done") == "busy":
                    del got[4]
            return [got[1], got[2], got[3].get("value")]
        finally:
            connection.close()

    async with running(env, node):
        first, second, value = await in_thread(several)
    assert first == {"id": 1, "overview": {"asked": NAME}}
    assert second == {"id": 2, "failed": "an overview is being made for this connection"}
    assert value == 2


async def test_a_client_that_goes_away_cancels_its_overview(env: dict[str, str]) -> None:
    node = Watched()
    node.holds.clear()

    def leave() -> None:
        connection = connect(env)
        connection.send({"op": "overview", "id": 1, "timeout": 5})
        while not node.told:
            time.sleep(0.01)
        connection.close()

    async with running(env, node):
        await in_thread(leave)
        await eventually(lambda: node.cancelled == 1)


@pytest.mark.parametrize("request_", [{"op": "overview"}, {"op": "overview", "timeout": "soon"}])
async def test_an_overview_without_a_time_is_not_understood(request_: Any, env: dict[str, str]) -> None:
    def refused() -> str:
        connection = connect(env)
        try:
            connection.send({"id": 1, **request_})
            return str(connection.receive(time.monotonic() + 5)["refused"])
        finally:
            connection.close()

    async with running(env, Watched()):
        assert "unknown request 'overview'" in await in_thread(refused)


async def test_a_node_of_an_older_version_says_that_it_knows_no_overview(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.RemoteConnection, "send", as_unknown(client.RemoteConnection.send))

    def look() -> Any:
        connection = connect(env)
        try:
            return client.ask_overview(connection, 1, 0.25)
        except RemoteFailure as failure:
            return failure
        finally:
            connection.close()

    async with running(env, Watched()):
        failure = await in_thread(look)
    assert (failure.kind, failure.code) == ("too_old", finder.NO_NODE)
    assert f"{NAME} is of an older version" in failure.text


def as_unknown(send: Callable[..., None]) -> Callable[..., None]:
    """What a node that does not know a request gets."""

    def changed(self: RemoteConnection, message: dict[str, object]) -> None:
        send(self, {**message, "op": "gauges"})

    return changed


async def test_permissions_of_the_folder_and_the_socket(env: dict[str, str]) -> None:
    async with running(env) as server:
        assert server.path is not None
        path = Path(server.path)
        assert path.name == f"{NAME}.{os.getpid()}.sock"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_a_node_with_remote_off_has_no_socket(env: dict[str, str]) -> None:
    server = RemoteServer(FakeNode(remote=False), env)  # type: ignore[arg-type]
    await server.start()
    assert server.path is None
    assert not Path(env["XDG_RUNTIME_DIR"], "fleetlm").exists()
    await server.stop()
    assert failure(env).code == 3


def spoil_open(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)


def spoil_link(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


def spoil_file(folder: Path) -> None:
    folder.touch()


@pytest.mark.parametrize(
    ("spoil", "why"), [(spoil_open, "chmod 700"), (spoil_link, "links"), (spoil_file, "not a folder")]
)
async def test_an_unsafe_folder_is_refused_on_both_sides(
    env: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    why: str,
) -> None:
    spoil(Path(env["XDG_RUNTIME_DIR"], "fleetlm"))
    server = RemoteServer(FakeNode(), env)  # type: ignore[arg-type]
    await server.start()
    assert server.path is None
    assert "`fleetlm remote` cannot be used with this node" in caplog.text
    assert why in caplog.text
    refused = failure(env)
    assert refused.code == 5
    assert why in str(refused)


@pytest.mark.parametrize("spoil", [spoil_open, spoil_link, spoil_file])
async def test_an_unsafe_folder_is_passed_over_with_a_word_and_the_next_one_is_used(
    env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
) -> None:
    """Another user can make a folder of this name in /tmp before the node does."""
    spoiled, home = tmp_path / "fleetlm-spoiled", tmp_path / "home"
    spoil(spoiled)
    monkeypatch.setattr(protocol, "folders", lambda _env, _uid: [str(spoiled), str(home)])
    async with running(env) as server:
        assert server.path is not None
        assert Path(server.path).parent == home
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert str(spoiled) in caplog.text
        assert await result(env, "1 + 1") == "2"
    said = capsys.readouterr().err
    assert f"a folder was passed over: {spoiled}" in said
    assert not list(spoiled.iterdir() if spoiled.is_dir() else ())


class Terminal(io.StringIO):
    """What a command writes to."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_terminal_gets_no_control_characters_of_a_peer(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    hostile = r"\x1b]0;owned\x07\x9b2J\u202e"
    class_source = f"type('Peer', (), {{'__repr__': lambda self: '{hostile}'}})()"
    monkeypatch.setattr(client, "discover", lambda *_: finder.discover(env, UID))
    async with running(env):
        for source in (f"print('{hostile}')", f"raise ValueError('{hostile}')", class_source):
            out, err = Terminal(is_terminal), Terminal(is_terminal)
            with monkeypatch.context() as patched:
                patched.setattr(sys, "stdout", out)
                patched.setattr(sys, "stderr", err)
                call = functools.partial(client.run, source, node=None, timeout_s=5, as_json=False)
                await in_thread(call)
            shown = out.getvalue() + err.getvalue()
            assert ("\x1b" in shown) != is_terminal
            assert ("\u202e" in shown) != is_terminal
            assert (hostile in shown.replace("'" + hostile + "'", "")) == is_terminal


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    protocol.check_folder(str(folder), UID)
    with pytest.raises(UnsafeFolder, match="belongs to user"):
        protocol.check_folder(str(folder), UID + 1)


async def test_where_no_folder_can_be_made_the_node_runs_without(
    env: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(env["XDG_RUNTIME_DIR"]).rmdir()
    server = RemoteServer(FakeNode(), env)  # type: ignore[arg-type]
    await server.start()
    assert server.path is None
    assert "FLEETLM_REMOTE=off" in caplog.text
    await server.stop()


async def test_a_dead_nodes_socket_is_skipped_and_cleaned(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(env) as server:
        assert server.path is not None
        folder = Path(server.path).parent
        dead = folder / "fleetlm@127.0.0.9.4242.sock"
        monkeypatch.chdir(folder)  # A path to a socket has 108 bytes at most.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(dead.name)
        (folder / "something else").touch()
        found = await in_thread(finder.discover, env, UID)
        assert [each.node for each in found] == [NAME]
        assert not dead.exists()
        assert await result(env, "1") == "1"


async def test_several_nodes_are_listed_and_chosen_by_name(env: dict[str, str]) -> None:
    second = "fleetlm@127.0.0.2"
    async with running(env), running(env, FakeNode(second)):
        refused = await in_thread(failure, env)
        assert refused.code == 2
        assert refused.kind == "several_nodes"
        assert re.search(rf"--node {NAME}  process.*\n  --node {second}  process", str(refused))
        for name in (NAME, second):
            connection = await in_thread(connect, env, name)
            assert connection.node == name
            connection.close()
        wrong = await in_thread(failure, env, 5.0, "fleetlm@127.0.0.3")
        assert wrong.code == 3
        assert second in str(wrong)


def test_two_of_one_name_are_told_apart_by_process() -> None:
    found = [SocketFile("/f", NAME, 10), SocketFile("/f", NAME, 20)]
    with pytest.raises(RemoteFailure, match=f"--node {NAME}.20"):
        finder.choose(found, NAME)
    assert finder.choose(found, f"{NAME}.20").pid == 20


async def test_long_names_and_long_paths(tmp_path: Path, env: dict[str, str]) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    env["XDG_RUNTIME_DIR"] = str(deep)
    name = f"{'b' * 64}@fdaa:0:1:2:3:4:5:6"
    async with running(env, FakeNode(name)) as server:
        assert server.path is not None
        assert len(Path(server.path).name) < 80
        connection = await in_thread(connect, env, name)
        assert connection.node == name
        connection.close()


def test_stems_of_long_names_differ() -> None:
    names = [f"{'b' * 62}{n:02}@fdaa:0:1:2:3:4:5:{n}" for n in range(40)]
    stems = {protocol.stem(name) for name in names}
    assert len(stems) == 40
    assert all(len(stem) <= protocol.MAX_STEM_CHARS for stem in stems)
    assert protocol.stem(NAME) == NAME


def test_folders_best_first_and_without_duplicates() -> None:
    env = {"XDG_RUNTIME_DIR": "/run/user/7/", "TMPDIR": "/var/tmp"}
    assert protocol.folders(env, 7) == [
        "/run/user/7/fleetlm",
        "/var/tmp/fleetlm-7",
        "/tmp/fleetlm-7",
        "/dev/shm/fleetlm-7",
    ]
    assert protocol.folders({"XDG_RUNTIME_DIR": "relative", "TMPDIR": ""}, 7) == [
        "/tmp/fleetlm-7",
        "/run/user/7/fleetlm",
        "/dev/shm/fleetlm-7",
    ]


# ── limits, and clients that do not follow the protocol ──────────────────────────────────────────


async def test_the_number_of_clients_is_bounded(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_server, "MAX_CLIENTS", 4)
    async with running(env) as server:
        connections = []
        for count in (1, 2, 3):
            connections.append(await in_thread(connect, env))
            await eventually(lambda count=count: len(server._clients) == count)  # type: ignore[misc]
        found = finder.discover(env, UID)[0]
        await eventually(lambda: len(server._clients) == 3)  # that one only looked
        connections.append(await in_thread(client.connect, found))
        with pytest.raises(RemoteFailure, match="4 clients") as refused:
            await in_thread(client.connect, found)
        assert refused.value.code == 3
        connections[0].close()
        connections[1].close()
        await eventually(lambda: len(server._clients) == 2)
        assert await result(env, "1") == "1"
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("uid", [UID + 1, 65534])
async def test_another_user_is_not_allowed(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uid: int
) -> None:
    async with running(env):
        real_credentials = credentials.peer_credentials
        main = threading.main_thread()
        monkeypatch.setattr(
            credentials,
            "peer_credentials",
            lambda s: (1, uid) if threading.current_thread() is main else real_credentials(s),
        )
        refused = await in_thread(failure, env)
    assert refused.code == 5
    assert f"you are user {uid}" in str(refused)
    assert f"refused a connection from user {uid}" in caplog.text


async def test_root_is_allowed(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(env):
        monkeypatch.setattr(credentials, "peer_credentials", lambda _: (1, 0))
        assert await result(env, "1") == "1"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x03{\xff}",
        b"\xff\xff\xff\xff",
        protocol.pack({"op": "format disk"}),
        protocol.pack({"op": "eval", "id": "x", "source": "1"}),
        protocol.pack({"op": "eval", "source": 3}),
        b"\x00",
        b"",
    ],
)
async def test_garbage_ends_that_client_and_nothing_else(env: dict[str, str], sent: bytes) -> None:
    def speak() -> bytes:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            found = finder.discover(env, UID)[0]
            with protocol.SocketAddress(found.path) as address:
                raw.connect(address)
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            answer = b""
            while more := raw.recv(65536):
                answer += more
            return answer

    async with running(env):
        answer = await in_thread(speak)
        if len(sent) > 1:
            assert b"not understood" in answer
        assert await result(env, "1") == "1"


async def test_an_expression_that_is_too_long_is_refused_here(env: dict[str, str]) -> None:
    async with running(env):
        outcome, _ = await in_thread(ask, env, "1" + " " * 2_000_000)
    assert outcome.code == 2
    assert "too long" in outcome.error


def test_frames_are_bounded() -> None:
    with pytest.raises(BadMessage):
        protocol.pack({"x": "y" * 100}, 50)
    assert protocol.unpack(protocol.pack({"a": "é\n"})[4:]) == {"a": "é\n"}


# ── completion and facts ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Node.li", ["Node.list"]),
        ("x = Node.se", ["Node.self"]),
        ("print(Process.whe", ["Process.whereis"]),
        ("node.own_address.w", ["node.own_address.warning", "node.own_address.why"]),
        ("asyncio.TaskGr", ["asyncio.TaskGroup"]),
        ("Proc", ["Process", "ProcessLookupError"]),
        ("awa", ["await"]),
        ("Node._nod", ["Node._node"]),
        ("nobody.x", []),
        ("(1).re", []),
        ("f().x", []),
        ("", None),
    ],
)
async def test_completion(env: dict[str, str], text: str, expected: list[str] | None) -> None:
    def complete() -> Any:
        connection = connect(env)
        try:
            connection.send({"op": "complete", "id": 9, "text": text})
            return connection.receive(time.monotonic() + 5)["words"]
        finally:
            connection.close()

    async with running(env):
        words = await in_thread(complete)
    if expected is None:
        assert {"Node", "Process", "node", "print"} <= set(words)
    else:
        assert words == expected


async def test_the_doctor_is_told_the_facts(env: dict[str, str]) -> None:
    def asked() -> Any:
        connection = connect(env)
        try:
            return client.ask_facts(connection)
        finally:
            connection.close()

    async with running(env):
        told = await in_thread(asked)
    assert told["name"] == NAME
    assert told["info"]["peers"][0]["name"] == OTHER


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stdout(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[str, str]]:
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


def run(source: str, as_json: bool = False, timeout_s: float = 5.0) -> int:
    return client.run(source, node=None, timeout_s=timeout_s, as_json=as_json)


async def test_run_prints_the_output_and_the_result(
    env: dict[str, str], stdout: Callable[[], tuple[str, str]]
) -> None:
    async with running(env):
        assert await in_thread(run, "print('hello')\n[1, 2]") == 0
        assert stdout() == ("hello\n[1, 2]\n", "")
        assert await in_thread(run, "x = 1") == 0
        assert stdout() == ("", "")
        assert await in_thread(run, "1 / 0") == 1
        out, error = stdout()
        assert out == ""
        assert error.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("source", "code", "value", "text", "output", "kind"),
    [
        ("Node.list()", 0, [OTHER], f"['{OTHER}']", "", None),
        ("print('a'); {'x': (1, None)}", 0, {"x": [1, None]}, "{'x': (1, None)}", "a\n", None),
        ("Node.info().peers[0].up_for_s", 0, 12.5, "12.5", "", None),
        ("[Node.info()][0].peers", 0, ..., ..., "", None),
        ("object", 0, None, "<class 'object'>", "", None),
        ("float('nan')", 0, None, "nan", "", None),
        ("None", 0, None, "None", "", None),
        ("print('a'); 1 / 0", 1, None, None, "a\n", "ZeroDivisionError"),
        ("await asyncio.sleep(9)", 4, None, None, "", "timeout"),
    ],
)
async def test_json(
    env: dict[str, str],
    stdout: Callable[[], tuple[str, str]],
    source: str,
    code: int,
    value: Any,
    text: Any,
    output: str,
    kind: str | None,
) -> None:
    async with running(env):
        assert await in_thread(run, source, True, 0.5) == code
    told = json.loads(stdout()[0])
    assert list(told) == ["ok", "value", "repr", "output", "error"]
    assert told["ok"] is (code == 0)
    assert told["output"] == output
    if value is ...:
        assert told["value"][0]["name"] == OTHER
    else:
        assert (told["value"], told["repr"]) == (value, text)
    assert (told["error"] and told["error"]["type"]) == kind


def test_json_where_no_node_runs(env: dict[str, str], stdout: Callable[[], tuple[str, str]]) -> None:
    assert run("1", as_json=True) == 3
    told = json.loads(stdout()[0])
    assert (told["ok"], told["error"]["type"]) == (False, "no_node")
    assert run("1") == 3
    assert "fleetlm start" in stdout()[1]


def test_evaluations_leave_nothing_behind_in_linecache() -> None:
    import linecache

    before = set(linecache.cache)
    session = evaluator.Evaluator({"__builtins__": __builtins__}, lambda *_: None)
    for number in range(200):
        asyncio.run(session.run(f"{number} / 0"))
    assert len(set(linecache.cache) - before) <= evaluator.MAX_SOURCES_KEPT + 50
    session.close()
    assert not [name for name in linecache.cache if name.startswith("<remote-")]
