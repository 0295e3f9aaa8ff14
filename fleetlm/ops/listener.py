"""Runs an ASGI application on a thread of its own, within bounds that hold for hostile clients.

The thread has an event loop of its own: the node's loop does nothing for a client, and ``/health/live`` is
answered while the node's loop is blocked. HTTP is parsed by h11 in uvicorn's protocol class; this module
adds what a listener needs that everybody may reach:

* *Connections*: `MAX_CONNECTIONS`, half of them from one address. A further one takes the place of the
  connection that has waited longest without a request; where each has one, the newcomer is closed.
* *Times*: a connection has `HEAD_S` for its first request, `RESPONSE_S` for each response and `IDLE_S`
  between requests; bytes that trickle in prolong none of them. A response that the client does not take
  ends the connection after `STUCK_S`, also one without an end.
* *Sizes*: `MAX_HEAD_BYTES` of a request's head. Bodies are read by the application alone, which
  reads one form.
* *Rates*: the listener shares the interpreter's lock with the node, so connections, and the requests of each
  address, have a pace. Who is faster waits, or is refused.

One task for each listening socket accepts connections. `_Connections` owns all protocols; a protocol is in
it from `connection_made` to `connection_lost`. The application is closed first when the listener stops, so
that responses without an end come to one; what is left after `GRACE_S` is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, cast

from starlette.responses import PlainTextResponse
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from fleetlm.ops.application import ENDLESS
from fleetlm.ops.pace import Pace, Paces
from fleetlm.transport.listening import listen_at

MAX_CONNECTIONS = 128
"""Accepted connections: some probes, scrapers and pages."""
MAX_HEAD_BYTES = 32 * 1024
"""Size limit of a request's line and headers. Browsers send a host the cookies of all its ports."""
HEAD_S = 5.0
"""Seconds from the acceptance of a connection to the end of its first request's head."""
RESPONSE_S = 15.0
"""Seconds for a response; three times what the application waits for the node."""
IDLE_S = 15.0
"""Seconds between a response and the end of the next request's head: a scraper's interval."""
STUCK_S = 15.0
"""Seconds in which a client that takes its response slowly has to take 64 KiB of it."""
WRITE_BUFFER_BYTES = 64 * 1024
"""Bytes of a response that may wait to be sent before the application waits."""
SEND_BUFFER_BYTES = 128 * 1024
"""Bytes that the kernel keeps for a client, or twice as many; by itself it would keep some megabytes."""
BACKLOG = 128
"""Connections that may wait to be accepted."""
CONNECTIONS_PER_S = 200
"""Connections a second that are accepted, of all clients: some 40 ms of the interpreter."""
REQUESTS_PER_S = 50
"""Requests a second from one address, after a burst of as many."""
GRACE_S = 0.5
"""Seconds for responses to end when the listener stops."""

MAX_WAIT_S = 2.0
"""Seconds that a request waits for its turn; whoever asks so much more often than allowed is refused."""

_TOO_MANY = PlainTextResponse("too many requests\n", 429, {"connection": "close", "retry-after": "1"})

App = Callable[[Any, Any, Any], Awaitable[None]]

log: logging.Logger = logging.getLogger("fleetlm.ops")


class Closable(Protocol):
    """An ASGI application whose responses without an end can be ended."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Implement ASGI."""

    def close(self) -> None:
        """End them."""


class _OpsProtocol(H11Protocol):
    """One connection. Its deadline is moved by the steps of a request, never by bytes."""

    def __init__(self, connections: _Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(connections.config, connections.state, {}, loop)
        self.logger = log
        self.access_log = False  # One line for each probe is of no use.
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self.address = ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, if there is room."""
        stream = cast("asyncio.Transport", transport)
        super().connection_made(stream)
        stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.address = self.client[0] if self.client else ""
        self._expect(HEAD_S)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()
        self._deadline = self._stuck = None
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. A whole head begins the time of the response."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and not self.is_idle:
            self._expect(RESPONSE_S)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, which may be there already."""
        done = self.cycle
        self._expect(IDLE_S)
        self._connections.note_end_of_response(self)
        super().on_response_complete()
        if self.cycle is not done and not self.is_idle:
            self._expect(RESPONSE_S)

    def pause_writing(self) -> None:
        """Begin to wait for a client that takes nothing."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(STUCK_S, self.abort)

    def resume_writing(self) -> None:
        """Go on: the client has taken what waited."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def abort(self) -> None:
        """End the connection at once; the kernel, too, drops whatever was not sent."""
        kept = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _expect(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        endless = not self.is_idle and self.cycle.scope.get("state", {}).get(ENDLESS)
        if not endless:
            self.abort()


class _Connections:
    """The connections of one listener.

    Args:
        app: the application.
    """

    def __init__(self, app: App) -> None:
        # No `log_config` and no `access_log=False`: both would change loggers that the program may use.
        self.config = Config(
            app, interface="asgi3", http=_OpsProtocol, ws="none", lifespan="off", log_config=None,
            proxy_headers=False, server_header=False, date_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES, timeout_keep_alive=int(IDLE_S) + 1,
        )  # fmt: skip
        self.config.load()
        self.state = ServerState()
        self._open: dict[_OpsProtocol, None] = {}
        """The idle ones among them in the order in which they began to wait for a request."""
        self.changed = asyncio.Event()
        """Set when a connection has ended."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: _OpsProtocol) -> None:
        """Take a connection, and end another one, or this one, where there are too many."""
        self._open[connection] = None
        neighbours = [each for each in self._open if each.address == connection.address]
        if len(neighbours) > MAX_CONNECTIONS // 2:
            self._make_room(neighbours)
        elif len(self._open) > MAX_CONNECTIONS:
            self._make_room(list(self._open))

    def note_end_of_response(self, connection: _OpsProtocol) -> None:
        """Note that a connection begins to wait for its next request."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: _OpsProtocol) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)
        self.changed.set()

    def end_idle(self) -> None:
        """Close what answers no request, and let the others close behind their responses."""
        for connection in list(self._open):
            if connection.is_idle:
                connection.transport.close()
            else:
                connection.cycle.keep_alive = False

    def abort(self) -> None:
        """End all connections."""
        for connection in list(self._open):
            connection.abort()

    @staticmethod
    def _make_room(connections: list[_OpsProtocol]) -> None:
        """End the connection that has waited longest without a request; else the last one."""
        chosen = next((each for each in connections if each.is_idle), connections[-1])
        chosen.abort()


class Listener:
    """Serves an application on sockets, in a thread of its own.

    Args:
        app: the application. It is called on the thread's event loop only, and closed there.
        sockets: bound and listening, see `listen`; the listener closes them.
        name: of the thread.
    """

    def __init__(self, app: Closable, sockets: Sequence[socket.socket], name: str) -> None:
        self._app = app
        self._sockets = list(sockets)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._requests = Paces(REQUESTS_PER_S, REQUESTS_PER_S, MAX_WAIT_S)
        self.ended: Future[None] = Future()
        """Done when the thread has closed everything."""
        self.thread: threading.Thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()

    def start(self) -> None:
        """Start the thread and wait until it serves. Raises: RuntimeError: no thread is left."""
        try:
            self.thread.start()
        except RuntimeError:
            self.close_sockets()
            raise
        self._started.wait()

    def stop(self) -> None:
        """Ask the thread to end; `ended` says when it has. May be called more than once, from any thread."""
        if self._loop is None or self._stop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:
            log.debug("the ops listener has ended before it was stopped")

    def close_sockets(self) -> None:
        """Close the listening sockets; in a forked child, its copies."""
        for each in self._sockets:
            each.close()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except Exception:
            log.exception("the ops listener has failed; the node goes on without it")
        finally:
            self.close_sockets()
            self._started.set()
            self.ended.set_result(None)

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        self._stop = asyncio.Event()
        connections = _Connections(self._paced)
        accepts = Pace(CONNECTIONS_PER_S, CONNECTIONS_PER_S)
        tasks = [loop.create_task(_accept(each, connections, accepts)) for each in self._sockets]
        self._started.set()
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.close_sockets()
        self._app.close()
        connections.end_idle()
        try:
            async with asyncio.timeout(GRACE_S):
                while len(connections):
                    connections.changed.clear()
                    await connections.changed.wait()
        except TimeoutError:
            connections.abort()
        await asyncio.sleep(0)

    async def _paced(
        self, scope: MutableMapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        client = scope.get("client")
        try:
            if await self._requests.take(client[0] if client else ""):
                await self._app(scope, receive, send)
            else:
                await _TOO_MANY(scope, receive, send)
        except asyncio.CancelledError:
            if self._stop is None or not self._stop.is_set():
                raise  # Else the loop ends, and uvicorn would log an error for each request.


async def _accept(listening: socket.socket, connections: _Connections, pace: Pace) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await pace.take()
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:  # Such as no descriptor left, or a client that has gone.
            if error.errno not in (errno.ECONNABORTED, errno.EINTR):
                log.warning("the ops listener could not accept a connection: %s", error)
                await asyncio.sleep(1.0)
            continue
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            await loop.connect_accepted_socket(lambda: _OpsProtocol(connections, loop), accepted)
        except OSError:
            accepted.close()


def _report(_loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
    """Log what asyncio found in this loop, as the node's log has it."""
    log.debug("the ops listener: %s", facts.get("message"), exc_info=facts.get("exception"))


def listen(ip: str, ports: range) -> list[socket.socket]:
    """Listen on the first free port of a range.

    Args:
        ip: an address; ``*``: all addresses of both families.
        ports: the ports to try; 0: one that the system chooses.

    Raises:
        OSError: the address cannot be used, or no port is free; that of the last attempt.
    """
    failure: OSError | None = None
    for port in ports:
        try:
            return [listen_at(ip, port, BACKLOG)]
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    assert failure is not None
    raise failure
