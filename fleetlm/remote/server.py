"""The node's end of `fleetlm remote` and `fleetlm doctor`: a Unix socket, and a session per client.

Whoever may connect may run code as the node does, so only the node's own user and root may: the
folder is 0700, the socket 0600, and the kernel says who is there. Never a network port.
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

from fleetlm.remote import facts, namespace, protocol
from fleetlm.remote.evaluator import CAPTURE, Evaluator, Result, as_json, format_value
from fleetlm.remote.protocol import BadMessage, Message

if TYPE_CHECKING:
    from fleetlm.node import Node

MAX_CLIENTS = 16
"""At the same time, evaluations that will not be cancelled included."""
ACCEPT_TURNS = 6
"""Turns of the loop from the acceptance of a connection to the task that serves it."""
CLOSE_WAIT_S = 0.5
"""For a client to take what was sent last."""
ROOM_WAIT_S = 0.1
"""For one of too many clients to go: whoever looks which nodes live connects for a moment."""
MAX_UNREAD_BYTES = 8 * 1024 * 1024
"""Printed and not yet read by the client: beyond it, output is dropped, and the client is told."""
PIECE_CHARS = 64 * 1024
"""Of output, in one frame."""
MAX_WIDTH = 1_000
CANCEL_WAIT_S = 1.0
"""For an evaluation to end once it was cancelled; then nobody waits for it any more."""

log = logging.getLogger("fleetlm.console")


class RemoteServer:
    """The remote shell of one node.

    Args:
        node: what sessions look at.
        env: where the folder of the socket is read from; the environment of this process.
    """

    def __init__(self, node: Node, env: dict[str, str] | None = None) -> None:
        self._node = node
        self._env = dict(os.environ) if env is None else env
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._tasks: dict[asyncio.Task[Any], _Client] = {}
        """Everybody who is connected, those that are being refused included."""
        self._clients: dict[asyncio.Task[Any], _Client] = {}
        self.path: str | None = None
        """The socket, while it is open; None where the remote shell is off or could not be opened."""

    async def start(self) -> None:
        """Listen. Never raises for want of a place: a node without its shell is still a node."""
        if not self._node.settings.remote:
            return
        try:
            await self._listen()
        except (OSError, protocol.UnsafeFolder) as error:
            log.warning(
                "the remote shell is closed: %s. Set XDG_RUNTIME_DIR to a folder of this user, or "
                "FLEETLM_REMOTE=off",
                error,
            )

    async def stop(self, reason: str = "shutdown", asked_by: asyncio.Task[Any] | None = None) -> None:
        """Tell the clients, cancel what they evaluate, and take the socket away. Idempotent.

        The client whose evaluation asked for it (``asked_by``; default: the current task) is
        answered still.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._unlink()
        if self._listener is not None:
            # asyncio loses a socket that it accepted in the same turn as a server is closed: let
            # what was accepted become clients first, which can be closed.
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
        folder = protocol.make_folder(self._env, os.getuid())
        for found in protocol.scan(folder):
            protocol.is_stale(found.path)
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
            # Under its name only when it listens: whoever finds it silent may take it for dead.
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
        """Serve one client to its end."""
        task = asyncio.current_task()
        assert task is not None
        client = _Client(self._node, reader, writer)
        self._tasks[task] = client
        try:
            await self._serve_or_refuse(task, client, writer)
        except asyncio.CancelledError:
            client.abort()  # the loop ends; asyncio would log the cancellation as an error
        finally:
            del self._tasks[task]
            self._clients.pop(task, None)

    async def _serve_or_refuse(
        self, task: asyncio.Task[Any], client: _Client, writer: asyncio.StreamWriter
    ) -> None:
        until = client.now() + ROOM_WAIT_S
        while len(self._clients) >= MAX_CLIENTS and client.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(ROOM_WAIT_S / 10)
        refusal = self._refusal(writer)
        if refusal is not None:
            client.post({"refused": refusal[0], "code": refusal[1]})
            await client.close()
            return
        self._clients[task] = client
        await client.serve()

    def _refusal(self, writer: asyncio.StreamWriter) -> tuple[str, str] | None:
        if self._server is None:
            return "the node is stopping", "stopping"
        who = protocol.peer_credentials(writer.get_extra_info("socket"))
        if who is not None and who[1] not in (os.getuid(), 0):
            log.warning("remote shell refused to user %d (process %d)", who[1], who[0])
            return f"the node runs as user {os.getuid()}, you are user {who[1]}", "not_allowed"
        if len(self._clients) >= MAX_CLIENTS:
            return f"{MAX_CLIENTS} clients are connected already", "too_many"
        return None


class _Client:
    """One connection: reads requests all the time, so that it hears of a cancel or of the end."""

    def __init__(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._node = node
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._evaluator = Evaluator(namespace.make_namespace(node), self._forward_output)
        self._evaluation: asyncio.Task[Result] | None = None
        self._current = 0
        self._dropped = 0
        self._open = True

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return self._loop.time()

    async def serve(self) -> None:
        """Take requests until the client, or the node, goes away."""
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
        """Close; what a client does not take in time is dropped."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    def evaluates_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this client's evaluation is that task: it asks the node to stop, and waits."""
        return task is not None and self._evaluation is task

    def leave(self, reason: str) -> None:
        """Say goodbye and close; the end of the stream then ends `serve`."""
        if self._evaluation is not None:
            self._evaluation.cancel()
        self.post({"bye": reason})
        self._writer.close()

    def abort(self) -> None:
        """Close without waiting for a client that does not read."""
        self._writer.transport.abort()

    def leave_when_done(self, reason: str) -> None:
        """As `leave`, once the evaluation has its answer: it asked the node to stop."""
        if self._evaluation is not None:
            self._evaluation.add_done_callback(lambda _: self.leave(reason))

    def post(self, message: Message) -> None:
        """Send one frame, without waiting."""
        if not self._writer.is_closing():
            self._writer.write(protocol.pack(message))

    async def _receive(self) -> Message | None:
        try:
            prefix = await self._reader.readexactly(protocol.LENGTH.size)
            length = protocol.body_length(prefix, protocol.MAX_REQUEST_BYTES)
            return protocol.unpack(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def _handle_request(self, message: Message) -> None:
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
                self._current = number
                self._evaluation = self._loop.create_task(self._evaluator.run(source))
                self._evaluation.add_done_callback(lambda task: self._send_result(task, number, layout))
            case {"op": "cancel"}:
                if self._evaluation is not None:
                    self._evaluation.cancel()
            case {"op": "complete", "text": str(text)}:
                self.post({"id": number, "words": self._evaluator.complete(text)})
            case {"op": "facts"}:
                self.post({"id": number, "facts": facts.node_facts(self._node)})
            case _:
                raise BadMessage(f"unknown request {message.get('op')!r}")

    def _send_result(self, evaluation: asyncio.Task[Result], number: int, width: int) -> None:
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            note = f"… {lost:,} characters of output dropped: read too slowly\n"
            self.post({"id": number, "stream": "stderr", "text": note})
        if evaluation.cancelled():
            self.post({"id": number, "done": "cancelled"})
        else:
            self.post(_result_message(number, evaluation.result(), width))

    def _forward_output(self, stream: str, text: str) -> None:
        """Anything that this session's code prints, on any thread."""
        if threading.get_ident() == self._thread:
            self._send_output(stream, text)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send_output, stream, text)

    def _send_output(self, stream: str, text: str) -> None:
        if not self._open:
            return
        for start in range(0, len(text), PIECE_CHARS):
            piece = text[start : start + PIECE_CHARS]
            if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                self._dropped += len(piece)
            else:
                self.post({"id": self._current, "stream": stream, "text": piece})

    async def _end_evaluation(self) -> None:
        """A client that went away cancels what it asked for."""
        evaluation = self._evaluation
        while evaluation is not None and not evaluation.done():
            evaluation.cancel()
            _, late = await asyncio.wait({evaluation}, timeout=CANCEL_WAIT_S)
            if late:
                log.warning("an evaluation of the remote shell goes on though it was cancelled")
                await asyncio.wait({evaluation})


def _result_message(number: int, result: Result, width: int) -> Message:
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
