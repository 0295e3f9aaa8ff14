"""The client's side of `fleetlm remote`: connect to a node on this machine and evaluate Python in it.

It uses blocking sockets and imports little, so that the command answers as fast as the node does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from fleetlm.escapes import escape_on_terminal
from fleetlm.records import Record
from fleetlm.remote import credentials, protocol
from fleetlm.remote.finder import (
    NO_NODE,
    NOT_ALLOWED,
    OK,
    RAISED,
    TIMEOUT,
    USAGE,
    RemoteFailure,
    choose,
    discover,
)
from fleetlm.remote.protocol import BadMessage, Message, SocketAddress, SocketFile

GREETING_S = 5.0
"""Seconds for the greeting of the node. If its event loop is blocked for longer, the user should know."""
CANCEL_S = 1.0
"""Seconds for the node to confirm that it has cancelled an evaluation."""


class NodeGone(Exception):
    """The connection to the node has ended: the node stopped, died, or closed it."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.node} is gone ({self.why})"


class RemoteConnection:
    """A connection to the remote shell of a node: sends and receives frames. Only one thread may receive."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = bytearray()
        self.node = "the node"

    def fileno(self) -> int:
        """The descriptor, for `select`."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, object]) -> None:
        """Send one request. Raises: NodeGone; BadMessage if the request is too long."""
        frame = protocol.pack(message, protocol.MAX_REQUEST_BYTES)
        try:
            self._socket.sendall(frame)
        except OSError as error:
            raise NodeGone(self.node, error.strerror or "it closed the connection") from None

    def receive(self, deadline: float | None = None) -> Message:
        """Wait for the next frame.

        Args:
            deadline: a time of `time.monotonic`; None to wait without limit.

        Raises:
            TimeoutError: not in time. A part that has arrived is kept for the next call.
            NodeGone: the node stopped or died.
            BadMessage: the program at the other end does not follow the protocol.
        """
        head = protocol.LENGTH.size
        self._fill(head, deadline)
        length = protocol.body_length(bytes(self._buffer[:head]), protocol.MAX_FRAME_BYTES)
        self._fill(head + length, deadline)
        body = bytes(self._buffer[head : head + length])
        del self._buffer[: head + length]
        message = protocol.unpack(body)
        if "bye" in message:
            raise NodeGone(self.node, f"it stopped: {message['bye']}")
        return message

    def _fill(self, size: int, deadline: float | None) -> None:
        """Read until the buffer holds ``size`` bytes."""
        while len(self._buffer) < size:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                raise TimeoutError
            try:
                more = self._socket.recv(256 * 1024)
            except ConnectionError:
                more = b""
            if not more:
                raise NodeGone(self.node, "it died, or closed the connection")
            self._buffer += more

    def close(self) -> None:
        """Disconnect. The node cancels this client's evaluation; a `receive` in another thread ends.

        May be called more than once.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def connect(found: SocketFile, timeout_s: float = GREETING_S) -> RemoteConnection:
    """Connect to a node and wait for its greeting.

    Raises:
        RemoteFailure: permission denied (exit code 5); the node has gone or has too many clients (3);
            no greeting for ``timeout_s`` seconds (4).
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(timeout_s)
    connection = RemoteConnection(connected)
    connection.node = found.node
    try:
        with SocketAddress(found.path) as address:
            connected.connect(address)
        connected.settimeout(None)
        _check_owner(found, connected)
        greeting = connection.receive(time.monotonic() + timeout_s)
    except PermissionError as error:
        connected.close()
        text = f"not allowed to connect to {found.node}: {error.strerror} ({found.path})"
        raise RemoteFailure(NOT_ALLOWED, "not_allowed", text) from None
    except TimeoutError:
        connected.close()
        raise RemoteFailure(TIMEOUT, "timeout", describe_silence(found.node, timeout_s)) from None
    except (OSError, NodeGone, BadMessage) as error:
        connected.close()
        raise RemoteFailure(NO_NODE, "no_node", f"{found.node} does not answer: {error}") from None
    except BaseException:
        connected.close()
        raise
    if "refused" in greeting:
        connected.close()
        code = NOT_ALLOWED if greeting.get("code") == "not_allowed" else NO_NODE
        kind = str(greeting.get("code"))
        raise RemoteFailure(code, kind, f"refused by {found.node}: {greeting['refused']}")
    connection.node = str(greeting.get("node", found.node))
    return connection


def describe_silence(node: str, seconds: float) -> str:
    """Return a text that explains why a node is silent."""
    return (
        f"{node} did not respond within {seconds:g} s: its event loop is blocked (by a computation or a "
        "blocking call), or its process is stopped"
    )


def _check_owner(found: SocketFile, connected: socket.socket) -> None:
    """Raise RemoteFailure if the process that serves a socket is neither its owner's nor root's."""
    peer = credentials.peer_credentials(connected)
    owner = os.lstat(found.folder).st_uid
    if peer is not None and peer[1] not in (owner, 0):
        text = f"{found.path} is served by user {peer[1]}, not by its owner, user {owner}"
        raise RemoteFailure(NOT_ALLOWED, "not_allowed", text)


# Evaluating once.


class RemoteOutcome(Record):
    """How one evaluation ended.

    Attributes:
        code: the exit code.
        done: the node's last message about it; empty if there is none.
        error: the text for stderr; empty on success.
    """

    code: int
    done: Message
    error: str = ""


def evaluate(
    connection: RemoteConnection, source: str, timeout_s: float, width: int, show: Callable[[str, str], None]
) -> RemoteOutcome:
    """Evaluate Python in a node.

    After ``timeout_s`` seconds, or on Ctrl-C, the node is told to cancel the evaluation.

    Args:
        connection: greeted, and without an evaluation in progress.
        source: an expression or statements.
        timeout_s: seconds to wait for the result.
        width: characters of a line for the layout of the repr; 0 for a plain repr.
        show: called with "stdout" or "stderr" and each text that the evaluation prints, as it arrives.

    Raises:
        NodeGone: the node stopped or died before the result.
    """
    try:
        connection.send({"op": "eval", "id": 1, "source": source, "width": width})
    except BadMessage as error:
        return RemoteOutcome(USAGE, {}, f"the expression is too long: {error}")
    try:
        done = _await_result(connection, time.monotonic() + timeout_s, show)
    except (TimeoutError, KeyboardInterrupt) as stopped:
        interrupted = isinstance(stopped, KeyboardInterrupt)
        what = "interrupted" if interrupted else f"no result within {timeout_s:g} s (--timeout)"
        code = 130 if interrupted else TIMEOUT
        connection.send({"op": "cancel"})
        try:
            _await_result(connection, time.monotonic() + CANCEL_S, show)
        except TimeoutError:
            return RemoteOutcome(code, {}, f"{what}; {describe_silence(connection.node, CANCEL_S)}")
        return RemoteOutcome(code, {}, f"{what}; the evaluation was cancelled in {connection.node}")
    if done["done"] == "ok":
        return RemoteOutcome(OK, done)
    if done["done"] == "error":
        return RemoteOutcome(RAISED, done, str(done.get("traceback", "")))
    return RemoteOutcome(RAISED, done, f"the evaluation was {done['done']} in {connection.node}")


def _await_result(connection: RemoteConnection, deadline: float, show: Callable[[str, str], None]) -> Message:
    """Show the output of an evaluation until its last message arrives, and return that."""
    while True:
        message = connection.receive(deadline)
        if "stream" in message:
            show(str(message["stream"]), str(message.get("text", "")))
        elif "done" in message:
            return message


def run(source: str, *, node: str | None, timeout_s: float, as_json: bool) -> int:
    """Run `fleetlm remote EXPR`: print the output and the result. Returns the exit code."""
    printed: list[str] = []

    def show(stream: str, text: str) -> None:
        if as_json:
            printed.append(text)
        else:
            put(text, sys.stderr if stream == "stderr" else sys.stdout)

    kind = ""
    try:
        connection = connect(choose(discover(os.environ, os.getuid()), node), min(timeout_s, GREETING_S))
        try:
            outcome = evaluate(connection, source, timeout_s, terminal_width(), show)
        finally:
            connection.close()
    except RemoteFailure as failure:
        kind, outcome = failure.kind, RemoteOutcome(failure.code, {}, failure.text)
    except (NodeGone, BadMessage) as gone:
        kind, outcome = "no_node", RemoteOutcome(NO_NODE, {}, f"{gone} before there was a result")
    if as_json:
        print(json.dumps(build_report(outcome, "".join(printed), kind)))
    elif outcome.code == OK:
        if outcome.done["repr"] != "None":
            put(f"{outcome.done['repr']}\n", sys.stdout)
    else:
        put(f"{outcome.error.rstrip()}\n", sys.stderr)
    return outcome.code


def put(text: str, stream: TextIO) -> None:
    """Write what comes from a node. A terminal gets it escaped: the texts in it may come from anywhere."""
    stream.write(escape_on_terminal(text, stream.isatty()))
    stream.flush()


def build_report(outcome: RemoteOutcome, printed: str, kind: str) -> Message:
    """Return the object that ``--json`` prints."""
    done = outcome.done
    error: Message | None = None
    if outcome.code != OK:
        otherwise = kind or {TIMEOUT: "timeout", USAGE: "usage"}.get(outcome.code, "interrupted")
        error = {
            "type": done.get("type", otherwise),
            "text": done.get("text", outcome.error),
            "traceback": done.get("traceback"),
        }
    return {
        "ok": outcome.code == OK,
        "value": done.get("value"),
        "repr": done.get("repr"),
        "output": printed,
        "error": error,
    }


def terminal_width() -> int:
    """Return the characters of a line of the terminal; 0 if stdout is not a terminal."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (OSError, ValueError):
        return 0


def ask_facts(connection: RemoteConnection, timeout_s: float = GREETING_S) -> Message:
    """Return what a node says about itself (`remote.facts`). Raises: TimeoutError, NodeGone."""
    connection.send({"op": "facts", "id": 1})
    message = connection.receive(time.monotonic() + timeout_s)
    facts = message.get("facts")
    return facts if isinstance(facts, dict) else {}


def ask_overview(connection: RemoteConnection, number: int, timeout_s: float) -> Message:
    """Return what a node knows of the whole cluster (`Node.overview`).

    Args:
        connection: greeted, and without an evaluation in progress.
        number: of this request; the answers to former ones are passed over.
        timeout_s: seconds that the other nodes have.

    Raises:
        RemoteFailure: the node cannot tell: it is of an older version (exit code 3), or it stops (1).
        TimeoutError: it does not respond.
        NodeGone: it stopped or died.
        BadMessage: it does not follow the protocol.
    """
    connection.send({"op": "overview", "id": number, "timeout": timeout_s})
    deadline = time.monotonic() + timeout_s + GREETING_S
    while True:
        message = connection.receive(deadline)
        if "refused" in message:
            text = f"{connection.node} is of an older version of fleetlm, which knows no overview"
            raise RemoteFailure(NO_NODE, "too_old", text)
        overview = message.get("overview")
        if message.get("id") == number and isinstance(overview, dict):
            return overview
        if message.get("id") == number:
            raise RemoteFailure(RAISED, "failed", f"{connection.node}: {message.get('failed')}")
