"""The node's side of `fleetlm remote` and `fleetlm doctor`: a server on a Unix socket.

`protocol` describes the socket, its permissions and the frames. This module owns:

- `RemoteServer`: the listening socket, from `start` to `stop`, and one asyncio task for each connection. A
  connection is first in ``_tasks``; after it was admitted it is in ``_clients`` as well, which has at most
  `MAX_CLIENTS` entries.
- `_Client`: one admitted connection with its `Evaluator`. Its task reads requests all the time, also
  during an evaluation, so that it notices a cancel or the end of the connection at once. The evaluation is
  a task of its own, at most one for each client.

Ends and races:

- The client disconnects: `_Client.serve` cancels the evaluation and waits for it. Code that suppresses
  CancelledError keeps its place among the `MAX_CLIENTS` until it ends.
- The node stops: every client gets ``bye`` and its evaluation is cancelled; after `CANCEL_WAIT_S` the
  connection is aborted. The one exception is a client whose evaluation called ``node.stop()``: it gets its
  result first.
- asyncio loses a connection that it accepted in the same turn of the loop in which the server is closed.
  `stop` therefore stops accepting, lets accepted connections become tasks (`ACCEPT_TURNS`), and only then
  closes the server.
- `discover` of a client connects for a moment to see whether the node lives. Such a connection must not
  cost another client its place, so one beyond the limit waits `ROOM_WAIT_S` before it is refused.
- Output that a client does not read would fill the node's memory. Beyond `MAX_UNREAD_BYTES` it is dropped,
  and the client is told how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetlm.errors import FleetError
from fleetlm.remote import credentials, facts, namespace, protocol
from fleetlm.remote.evaluator import CAPTURE, Evaluator, Result, as_json, format_value
from fleetlm.remote.protocol import BadMessage, Message
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.node import Node

MAX_CLIENTS = 16
"""Clients at the same time, including those whose evaluation ignores its cancellation."""
ACCEPT_TURNS = 6
"""Turns of asyncio's loop from the acceptance of a connection to the start of the task that serves it."""
CLOSE_WAIT_S = 0.5
"""Seconds that a client has to read the last frames before its connection is aborted."""
ROOM_WAIT_S = 0.1
"""Seconds that a client beyond `MAX_CLIENTS` waits for a place, since some connect for a moment only."""
MAX_UNREAD_BYTES = 8 * 1024 * 1024
"""Output that is sent but not read. Beyond it, output is dropped, and the client is told."""
PIECE_CHARS = 64 * 1024
"""Longer output is split into frames of this many characters."""
MAX_WIDTH = 1_000
"""Characters of a line, for the layout of results. A client that asks for more gets this."""
CANCEL_WAIT_S = 1.0
"""Seconds that a cancelled evaluation has to end. A stop of the node waits no longer for it."""

log: logging.Logger = logging.getLogger("fleetlm.console")


def _say_skipped(reason: str) -> None:
    log.warning("%s. Until then the socket of `fleetlm remote` is in another folder", reason)


class RemoteServer:
    """The remote shell of one node.

    Args:
        node: the node in which clients evaluate.
        env: environment from which the folder of the socket is derived; that of this process by default.
    """

    def __init__(self, node: Node, env: dict[str, str] | None = None) -> None:
        self._node = node
        self._env = dict(os.environ) if env is None else env
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._tasks: dict[asyncio.Task[Any], _Client] = {}
        """All connections, including those that are being refused."""
        self._clients: dict[asyncio.Task[Any], _Client] = {}
        """The connections that were admitted."""
        self.path: str | None = None
        """Path of the socket while it is open; None if the remote shell is off or could not be opened."""

    async def start(self) -> None:
        """Open the socket. If that fails, a warning is logged and the node runs without a remote shell."""
        if not self._node.settings.remote:
            return
        try:
            await self._listen()
        except (OSError, protocol.UnsafeFolder) as error:
            log.warning(
                "`fleetlm remote` cannot be used with this node: %s. Set XDG_RUNTIME_DIR to a folder of this "
                "user, or FLEETLM_REMOTE=off",
                error,
            )

    async def stop(self, reason: str = "shutdown", asked_by: asyncio.Task[Any] | None = None) -> None:
        """Cancel all evaluations, tell the clients, and remove the socket. May be called more than once.

        Args:
            reason: told to the clients.
            asked_by: the task that stops the node; the current one by default. If it is the evaluation of
                a client, that client gets its result before the connection is closed.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._unlink()
        if self._listener is not None:
            # Stop accepting, and let accepted connections become tasks: see the module's text.
            asyncio.get_running_loop().remove_reader(self._listener)
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        server.close()
        here = asked_by or asyncio.current_task()
        ending = {task: client for task, client in self._tasks.items() if not client.evaluates_in(here)}
        for client in ending.values():
            client.leave(reason)
        if ending:
            _, late = await asyncio.wait(ending, timeout=CANCEL_WAIT_S)
            for task in late & self._tasks.keys():
                self._tasks[task].abort()
        for task, client in self._clients.items():
            if task not in ending:
                client.leave_when_done(reason)

    async def _listen(self) -> None:
        listener = self._listener = self._bind()
        try:
            self._server = await asyncio.start_unix_server(
                self._handle_connection, sock=listener, limit=protocol.MAX_REQUEST_BYTES
            )
        except BaseException:
            listener.close()
            self._unlink()
            raise

    def _bind(self) -> socket.socket:
        """Bind the socket under a hidden name, listen, then rename it. Removes the files of dead nodes."""
        folder = protocol.make_folder(self._env, os.getuid(), _say_skipped)
        for found in protocol.scan(folder):
            protocol.remove_if_stale(found.path)
        name = protocol.socket_name(self._node.name, os.getpid())
        unready = Path(folder, "." + name.removesuffix(protocol.SUFFIX))
        unready.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            with protocol.SocketAddress(str(unready)) as address:
                listener.bind(address)
            unready.chmod(0o600)
            listener.listen(MAX_CLIENTS)
            # Renamed only when it listens, since clients remove sockets that refuse connections.
            self.path = str(unready.rename(Path(folder, name)))
        except BaseException:
            listener.close()
            raise
        return listener

    def _unlink(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
            self.path = None

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends. Called by asyncio, in a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        client = _Client(self._node, reader, writer)
        self._tasks[task] = client
        try:
            await self._serve_or_refuse(task, client, writer)
        except asyncio.CancelledError:
            client.abort()  # the loop is closing; asyncio would log the cancellation as an error
        finally:
            del self._tasks[task]
            self._clients.pop(task, None)

    async def _serve_or_refuse(
        self, task: asyncio.Task[Any], client: _Client, writer: asyncio.StreamWriter
    ) -> None:
        """Wait for a place, then serve the client, or tell it why it is refused."""
        until = client.now() + ROOM_WAIT_S
        while len(self._clients) >= MAX_CLIENTS and client.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(ROOM_WAIT_S / 10)
        refusal = self._find_refusal(writer)
        if refusal is not None:
            client.post({"refused": refusal[0], "code": refusal[1]})
            await client.close()
            return
        self._clients[task] = client
        await client.serve()

    def _find_refusal(self, writer: asyncio.StreamWriter) -> tuple[str, str] | None:
        """Return why a client must be refused, as a text and a kind for programs; None if it may enter."""
        if self._server is None:
            return "the node is stopping", "stopping"
        peer = credentials.peer_credentials(writer.get_extra_info("socket"))
        if peer is not None and peer[1] not in (os.getuid(), 0):
            log.warning("remote shell: refused a connection from user %d (process %d)", peer[1], peer[0])
            return f"the node runs as user {os.getuid()}, you are user {peer[1]}", "not_allowed"
        if len(self._clients) >= MAX_CLIENTS:
            return f"{MAX_CLIENTS} clients are connected already", "too_many"
        return None


class _Client:
    """One admitted connection, with its evaluator and at most one evaluation."""

    def __init__(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._node = node
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._evaluator = Evaluator(namespace.make_namespace(node), self._forward_output)
        self._evaluation: asyncio.Task[Result] | None = None
        self._evaluation_id = 0
        self._look: asyncio.Task[None] | None = None
        """The overview that is being made for this client."""
        self._dropped_chars = 0
        self._open = True

    def now(self) -> float:
        """Return the time of the event loop in seconds."""
        return self._loop.time()

    async def serve(self) -> None:
        """Handle requests until the client disconnects or the node stops."""
        CAPTURE.hold()
        try:
            self.post({"node": self._node.name, "version": protocol.VERSION})
            while (message := await self._receive()) is not None:
                self._handle_request(message)
        except BadMessage as error:
            self.post({"refused": f"not understood: {error}", "code": "protocol"})
        finally:
            self._open = False
            await self._end_evaluation()
            self._evaluator.close()
            CAPTURE.release()
            await self.close()

    async def close(self) -> None:
        """Close the connection. Frames that the client does not read within `CLOSE_WAIT_S` are dropped."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    def evaluates_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether ``task`` is this client's evaluation."""
        return task is not None and self._evaluation is task

    def leave(self, reason: str) -> None:
        """Cancel the evaluation, send ``bye`` and close. The end of the stream then ends `serve`."""
        if self._evaluation is not None:
            self._evaluation.cancel()
        self.post({"bye": reason})
        self._writer.close()

    def abort(self) -> None:
        """Close the connection at once and drop frames that were not read."""
        self._writer.transport.abort()

    def leave_when_done(self, reason: str) -> None:
        """Do the same as `leave`, but after the evaluation has ended and its result was sent."""
        if self._evaluation is not None:
            self._evaluation.add_done_callback(lambda _: self.leave(reason))

    def post(self, message: Message) -> None:
        """Send one frame without waiting."""
        if not self._writer.is_closing():
            self._writer.write(protocol.pack(message))

    async def _receive(self) -> Message | None:
        """Read one request; None at the end of the connection. Raises: BadMessage."""
        try:
            prefix = await self._reader.readexactly(protocol.LENGTH.size)
            length = protocol.body_length(prefix, protocol.MAX_REQUEST_BYTES)
            return protocol.unpack(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def _handle_request(self, message: Message) -> None:
        """Start, cancel or answer what a client asks for. Raises: BadMessage for an unknown request."""
        number = message.get("id", 0)
        if not isinstance(number, int):
            raise BadMessage("id is not a number")
        match message:
            case {"op": "eval", "source": str(source)}:
                if self._evaluation is not None and not self._evaluation.done():
                    self.post({"id": number, "done": "busy"})
                    return
                width = message.get("width")
                layout = min(width, MAX_WIDTH) if isinstance(width, int) and width > 0 else 0
                self._evaluation_id = number
                self._evaluation = self._loop.create_task(self._evaluator.run(source))
                self._evaluation.add_done_callback(lambda task: self._send_result(task, number, layout))
            case {"op": "cancel"}:
                if self._evaluation is not None:
                    self._evaluation.cancel()
            case {"op": "complete", "text": str(text)}:
                self.post({"id": number, "words": self._evaluator.complete(text)})
            case {"op": "facts"}:
                self.post({"id": number, "facts": facts.node_facts(self._node)})
            case {"op": "overview", "timeout": int() | float() as timeout_s}:
                self._start_look(number, timeout_s)
            case _:
                raise BadMessage(f"unknown request {message.get('op')!r}")

    def _start_look(self, number: int, timeout_s: float) -> None:
        """Make an overview in a task, since other nodes are waited for."""
        if self._look is not None and not self._look.done():
            self.post({"id": number, "failed": "an overview is being made for this connection"})
        elif self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.post({"id": number, "failed": "this connection is not read"})
        else:
            self._look = self._loop.create_task(self._send_overview(number, timeout_s))

    async def _send_overview(self, number: int, timeout_s: float) -> None:
        """Send an overview, or why there is none."""
        try:
            self.post({"id": number, "overview": await self._node.overview(timeout_s)})
        except (FleetError, ValueError) as error:  # Too long for a frame is a ValueError, too.
            self.post({"id": number, "failed": text_of(error)})

    def _send_result(self, evaluation: asyncio.Task[Result], number: int, width: int) -> None:
        """Send the end of an evaluation, and before it how much output was dropped."""
        if self._dropped_chars:
            lost, self._dropped_chars = self._dropped_chars, 0
            note = f"… {lost:,} characters of output dropped, because the client read too slowly\n"
            self.post({"id": number, "stream": "stderr", "text": note})
        if evaluation.cancelled():
            self.post({"id": number, "done": "cancelled"})
        else:
            self.post(_build_done(number, evaluation.result(), width))

    def _forward_output(self, stream: str, text: str) -> None:
        """Send what this client's code prints. Called on any thread."""
        if threading.get_ident() == self._thread:
            self._send_output(stream, text)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send_output, stream, text)

    def _send_output(self, stream: str, text: str) -> None:
        """Send output in pieces, or drop it if the client has too much unread. On the loop's thread."""
        if not self._open:
            return
        for start in range(0, len(text), PIECE_CHARS):
            piece = text[start : start + PIECE_CHARS]
            if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                self._dropped_chars += len(piece)
            else:
                self.post({"id": self._evaluation_id, "stream": stream, "text": piece})

    async def _end_evaluation(self) -> None:
        """Cancel what is done for a client that has disconnected, until it ends."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
        evaluation = self._evaluation
        while evaluation is not None and not evaluation.done():
            evaluation.cancel()
            _, late = await asyncio.wait({evaluation}, timeout=CANCEL_WAIT_S)
            if late:
                log.warning("remote shell: an evaluation was cancelled but still runs")
                await asyncio.wait({evaluation})


def _build_done(number: int, result: Result, width: int) -> Message:
    """Return the ``done`` message for a result."""
    if result.error is None:
        return {
            "id": number,
            "done": "ok",
            "repr": format_value(result.value, width),
            "value": as_json(result.value),
        }
    return {
        "id": number,
        "done": "error",
        "type": type(result.error).__name__,
        "text": result.text,
        "traceback": result.traceback,
    }
