"""`fleetlm remote`: finds the nodes of this machine, and evaluates in one of them.

Blocking sockets and few imports: the command answers as fast as the node does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fleetlm.remote import protocol
from fleetlm.remote.protocol import BadMessage, Message, SocketAddress, SocketFile, UnsafeFolder

OK, RAISED, USAGE, NO_NODE, TIMEOUT, NOT_ALLOWED = range(6)
"""Exit codes."""
GREETING_S = 5.0
"""For the node to say who it is; a loop that is blocked for longer is worth knowing about."""
CANCEL_S = 1.0
"""For the node to confirm that it cancelled an evaluation."""


class RemoteFailure(Exception):
    """Why there is no result: an exit code, a word for programs, and a sentence for people."""

    def __init__(self, code: int, kind: str, text: str) -> None:
        super().__init__(code, kind, text)
        self.code = code
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return self.text


class NodeGone(Exception):
    """The node closed the connection: it stopped or died."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.node} is gone ({self.why})"


class RemoteConnection:
    """A connection to a node's console. Sends and receives frames; one thread reads."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = bytearray()
        self.node = "the node"

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, object]) -> None:
        """Raises: NodeGone; BadMessage when it is too long."""
        frame = protocol.pack(message, protocol.MAX_REQUEST_BYTES)
        try:
            self._socket.sendall(frame)
        except OSError as error:
            raise NodeGone(self.node, error.strerror or "it closed the connection") from None

    def receive(self, deadline: float | None = None) -> Message:
        """The next frame, by that time of `time.monotonic`.

        Raises:
            TimeoutError: not in time; what came of it already is kept.
            NodeGone: the node stopped or died.
            BadMessage: something else listens there.
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
        """Idempotent. The node cancels what this client had it evaluate; a `receive` elsewhere ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


# Finding a node.


def discover(env: Mapping[str, str], uid: int) -> list[SocketFile]:
    """The nodes of this machine that this user may talk to. Files of dead nodes are removed.

    Root sees the nodes of all users, where it has none itself.

    Raises:
        RemoteFailure: a folder of sockets is not safe to use.
    """
    found = _find_live(protocol.folders(env, uid), uid)
    if not found and uid == 0:
        for folder, owner in _find_folders_of_others():
            found += _find_live([folder], owner)
    unique = {(each.node, each.pid): each for each in reversed(found)}
    return sorted(unique.values(), key=lambda each: (each.node, each.pid))


def _find_live(folders: list[str], owner: int) -> list[SocketFile]:
    living = []
    for folder in folders:
        try:
            protocol.check_folder(folder, owner)
            candidates = protocol.scan(folder)
        except UnsafeFolder as error:
            raise RemoteFailure(NOT_ALLOWED, "not_allowed", str(error)) from None
        except OSError:
            continue
        living += [each for each in candidates if not protocol.is_stale(each.path)]
    return living


def _find_folders_of_others() -> Iterator[tuple[str, int]]:
    """Folders whose names say whose they are, and are."""
    for parent, prefix, suffix in (("/tmp", "fleetlm-", ""), ("/run/user", "", "/fleetlm")):  # noqa: S108
        try:
            entries = sorted(os.listdir(parent))  # noqa: PTH208
        except OSError:
            continue
        for entry in entries:
            owner = entry.removeprefix(prefix)
            folder = f"{parent}/{entry}{suffix}"
            if entry.startswith(prefix) and owner.isdecimal():
                try:
                    protocol.check_folder(folder, int(owner))
                except (OSError, UnsafeFolder):
                    continue  # not to be trusted, and not asked for
                yield folder, int(owner)


def choose(found: list[SocketFile], wanted: str | None) -> SocketFile:
    """The node that is meant.

    Raises:
        RemoteFailure: none runs, or not the wanted one (3); several, and none is named (2).
    """
    if not found:
        raise RemoteFailure(
            NO_NODE,
            "no_node",
            "no node runs on this machine as this user. Start one with: fleetlm start\n"
            "(A node with FLEETLM_REMOTE=off, of another user, or in another container is not seen.)",
        )
    if wanted is not None:
        short = protocol.stem(wanted)
        fitting = [each for each in found if short in (each.node, f"{each.node}.{each.pid}")]
        if not fitting:
            raise RemoteFailure(
                NO_NODE, "no_node", f"no node {wanted} on this machine. There are:\n{_list_options(found)}"
            )
    else:
        fitting = found
    if len(fitting) > 1:
        raise RemoteFailure(
            USAGE, "several_nodes", f"several nodes run here; name one by --node:\n{_list_options(fitting)}"
        )
    return fitting[0]


def _list_options(found: list[SocketFile]) -> str:
    names = [each.node for each in found]
    return "\n".join(
        f"  --node {each.node}" + (f".{each.pid}" if names.count(each.node) > 1 else "") for each in found
    )


def connect(found: SocketFile, timeout_s: float = GREETING_S) -> RemoteConnection:
    """Connect and hear the greeting.

    Raises:
        RemoteFailure: not allowed (5), gone or full (3), silent for ``timeout_s`` seconds (4).
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
        text = f"not allowed to talk to {found.node}: {error.strerror} ({found.path})"
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
    """What silence means."""
    return (
        f"{node} did not react within {seconds:g} s: its event loop is blocked (a computation, or a "
        "blocking call), or the process is stopped"
    )


def _check_owner(found: SocketFile, connected: socket.socket) -> None:
    who = protocol.peer_credentials(connected)
    owner = os.lstat(found.folder).st_uid
    if who is not None and who[1] not in (owner, 0):
        text = f"{found.path} is served by user {who[1]}, not by its owner, user {owner}"
        raise RemoteFailure(NOT_ALLOWED, "not_allowed", text)


# Evaluating once.


@dataclass(frozen=True, slots=True)
class RemoteOutcome:
    """What `fleetlm remote EXPR` ends with."""

    code: int
    done: Message
    error: str = ""


def evaluate(
    connection: RemoteConnection, source: str, timeout_s: float, width: int, show: Callable[[str, str], None]
) -> RemoteOutcome:
    """Evaluate, handing on what is printed as it comes: ``show(stream, text)``.

    After ``timeout_s`` seconds, or at Ctrl-C, the node is told to cancel the evaluation.

    Raises:
        NodeGone: it stopped or died before the result.
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
    while True:
        message = connection.receive(deadline)
        if "stream" in message:
            show(str(message["stream"]), str(message.get("text", "")))
        elif "done" in message:
            return message


def run(source: str, *, node: str | None, timeout_s: float, as_json: bool) -> int:
    """`fleetlm remote EXPR`: print what it printed and the result; return the exit code."""
    printed: list[str] = []

    def show(stream: str, text: str) -> None:
        if as_json:
            printed.append(text)
        else:
            target = sys.stderr if stream == "stderr" else sys.stdout
            target.write(text)
            target.flush()

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
            print(outcome.done["repr"])
    else:
        print(outcome.error.rstrip("\n"), file=sys.stderr)
    return outcome.code


def build_report(outcome: RemoteOutcome, printed: str, kind: str) -> Message:
    """The one object of ``--json``."""
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
    """Characters of a line, for laying results out; 0 where nobody looks: plain ``repr``."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (OSError, ValueError):
        return 0


def ask_facts(connection: RemoteConnection, timeout_s: float = GREETING_S) -> Message:
    """What a node says of itself, for `fleetlm doctor`. Raises: TimeoutError, NodeGone."""
    connection.send({"op": "facts", "id": 1})
    message = connection.receive(time.monotonic() + timeout_s)
    facts = message.get("facts")
    return facts if isinstance(facts, dict) else {}
