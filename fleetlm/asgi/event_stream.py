"""`sse`: a stream of the cluster as a response of server-sent events.

Theory of operation. One task (`_Answer._write`) takes an item, encodes it and sends it, and takes the next
one only when the server has taken the bytes. A server takes no bytes while the socket of its client is full,
so the window of the stream (`Settings.stream_window`) fills, and the handler waits in its ``yield``. Three
things happen beside it:

* A *heartbeat* is sent when nothing else was for a while: proxies keep the connection, and a client that went
  without a word is noticed by TCP.
* ``receive()`` says when the client has gone.
* The worker leaves, and the time of its drain is over (`worker_node.Leaving`): the response is ended then, or
  the server would wait for it for ever.

The response begins with the first item, so that an error before it has a status code of its own. A client
must not wait in the dark, though: after ``first_item_s`` the response begins with a heartbeat, and an error
is an event from then on.

The races, and where each is settled: a heartbeat and an item are sent under one lock (`_send`), which also
decides whether the response has begun. The end of the work and the leaving of the client may come in the same
turn: the work wins, since it has ended (`_serve`). An error event after an interruption is written only when
the writer has ended (`_fail`). Errors of the socket are told from errors of the stream by their place
(`_Gone`): `NoConnection` and `NodeLost` are OSErrors too.

Source: Starlette's StreamingResponse; differs: it listens for the client under every version of ASGI, since a
stream may be silent for minutes and a send is then no way to notice that the client has gone; and it closes
what it reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Generic, Literal, TypeVar

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fleetlm.asgi.disconnect import settle, wait_until_gone
from fleetlm.asgi.events import HEARTBEAT, Event, to_json
from fleetlm.asgi.handlers import log_failure, problem_response
from fleetlm.asgi.leaving import Leaving
from fleetlm.asgi.outcomes import INTERNAL, Outcome, outcome_of
from fleetlm.errors import FleetError
from fleetlm.seconds import check_seconds, check_timeout

log: logging.Logger = logging.getLogger("fleetlm.asgi")

T = TypeVar("T")

OnDisconnect = Literal["cancel", "finish"]
Ids = bool | Callable[[T], str | int]

HEADERS = {
    "Cache-Control": "no-cache, no-transform",  # no-transform: a proxy that compresses would hold events back
    "X-Accel-Buffering": "no",  # the same for nginx
}
FAREWELL_S = 2.0
"""Seconds for the last event of a response that is ended because its worker leaves: a client that reads takes
it at once, and one that does not must not hold the worker."""
EARLY_S = 0.001
"""A heartbeat may come this much too early. Without it the clock might stand for some turns of the loop just
before it is due, since a sum of times is rounded."""


class _Gone(Exception):
    """The client has gone, or takes nothing any more."""


def sse(  # noqa: PLR0913  # all but the first are options with a name
    items: AsyncIterable[T],
    *,
    on_disconnect: OnDisconnect = "cancel",
    heartbeat_s: float | None = 15.0,
    first_item_s: float = 15.0,
    send_timeout_s: float = 60.0,
    encode: Callable[[T], str] = to_json,
    ids: Ids[T] = False,
    event: str = "",
    end: str = "end",
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> EventStream[T]:
    """Return a response that sends each item of a stream as a server-sent event.

    ::

        @app.get("/chat")
        async def chat(request: Request, prompt: str) -> Response:
            return asgi.sse(models.stream(Model.complete, prompt))

    Nothing is read ahead of the client: the handler that yields the items waits when the client is slow.

    An error before the response has begun has the status code of `outcome_of`, as `install` has it. After
    that it is an event ``error``, whose data says what a client may do (``kind``, ``retry``,
    ``retry_after_s``, ``detail``), and the response ends. A response that ends without ``error`` and without
    ``end`` was cut.

    Args:
        items: a `Stream`, or any other asynchronous iterator. It is closed when the response ends in any way.
        on_disconnect: what happens when the client goes. ``"cancel"``: the stream is closed, which cancels
            its handler, within a second. ``"finish"``: the rest is read and dropped, so that the handler runs
            to its end.
        heartbeat_s: seconds of silence after which a comment is sent; None: never. Proxies often cut a
            connection after 30 or 60 silent seconds.
        first_item_s: seconds after which the response begins without an item. Until then nothing has been
            sent, and an error still has a status code.
        send_timeout_s: seconds that a client may take nothing while something is sent to it. Then it counts
            as gone.
        encode: makes the text of an event from an item; default `to_json`. Items that are an `Event` are sent
            as they are.
        ids: True: the events have the ids 1, 2, 3 and so on. Or a function that makes the id of an event from
            its item. A browser sends the last id as ``Last-Event-ID`` when it connects again; the program
            decides what that means.
        event: the name of the events; default ``message``.
        end: the name of the event after the last item, whose data is ``null``; empty: none. A browser
            connects again when a response ends, so a client closes its ``EventSource`` at this event.
        headers: further headers of the response.
        background: as for every response of Starlette; not run if the client went before the end.

    Raises:
        ValueError: an unknown ``on_disconnect``, or seconds that are not positive.
    """
    if on_disconnect not in ("cancel", "finish"):
        raise ValueError(f'on_disconnect must be "cancel" or "finish", not {on_disconnect!r}')
    check_timeout(heartbeat_s, "heartbeat_s", above=0)
    check_seconds(first_item_s, "first_item_s", above=0)
    check_seconds(send_timeout_s, "send_timeout_s", above=0)
    response = EventStream(items, headers=headers, background=background)
    response.on_disconnect = on_disconnect
    response.heartbeat_s = heartbeat_s
    response.first_item_s = first_item_s
    response.send_timeout_s = send_timeout_s
    response.encode = encode
    response.ids = ids
    response.event = event
    response.end = end
    return response


class EventStream(Response, Generic[T]):
    """A response of server-sent events; made by `sse`, which explains the attributes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        items: AsyncIterable[T],
        *,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        # Not the constructor of Response, which makes a body, and a Content-Length of it.
        self.items = items
        self.status_code = 200
        self.background = background
        self.on_disconnect: OnDisconnect = "cancel"
        self.heartbeat_s: float | None = 15.0
        self.first_item_s: float = 15.0
        self.send_timeout_s: float = 60.0
        self.encode: Callable[[T], str] = to_json
        self.ids: Ids[T] = False
        self.event: str = ""
        self.end: str = "end"
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises: what the iterator raised, unless it is a `FleetError`."""
        answer = _Answer(self, scope, receive, send)
        try:
            is_whole = await answer.serve()
        finally:
            await answer.close()
        if is_whole and self.background is not None:
            await self.background()


class _Answer(Generic[T]):
    """One response on its way to its client."""

    def __init__(self, response: EventStream[T], scope: Scope, receive: Receive, send: Send) -> None:
        self._response = response
        self._scope = scope
        self._receive = receive
        self._server_send = send
        self._items: AsyncIterator[T] = aiter(response.items)
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._begun = asyncio.Event()
        self._is_muted = False
        """Whether items are dropped, because their client has gone."""
        self._sent_at = self._loop.time()
        self._writer: asyncio.Task[None] | None = None
        self._cut: FleetError | None = None
        """Why the response is ended before its stream."""

    async def serve(self) -> bool:
        """Send the response. Returns whether the client has got all of it."""
        if self._scope["method"] == "HEAD":
            await self._begin()
            await self._server_send({"type": "http.response.body", "body": b"", "more_body": False})
            return True
        leaving = Leaving.of(self._scope)
        if leaving is not None:
            leaving.enter(self)
        try:
            return await self._serve()
        except _Gone:
            return False
        finally:
            if leaving is not None:
                leaving.responses.discard(self)

    def cut(self, error: FleetError) -> None:
        """End the response with an error, soon."""
        if self._cut is None and self._writer is not None:
            self._cut = error
            self._writer.cancel()

    async def close(self) -> None:
        """Give the stream up. A generator runs its ``finally`` blocks."""
        aclose = getattr(self._items, "aclose", None)
        if aclose is not None:
            await aclose()

    async def _serve(self) -> bool:
        create = self._loop.create_task
        writer = self._writer = create(self._write(), name="fleetlm.asgi writes events")
        watch = create(wait_until_gone(self._receive), name="fleetlm.asgi waits for the client to go")
        heart = create(self._beat(), name="fleetlm.asgi sends heartbeats")
        try:
            await asyncio.wait({writer, watch, heart}, return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                await self._client_gone(writer, heart if heart.done() else watch)
            await settle([watch, heart])
            return await self._outcome(writer)
        finally:
            await settle([writer, watch, heart])

    async def _client_gone(self, writer: asyncio.Task[None], told_by: asyncio.Task[None]) -> None:
        """Cancel the stream of a client that has gone, or read the rest of it.

        Raises:
            Exception: what the server has raised, if the client has not gone.
        """
        error = told_by.exception()
        if error is not None and not isinstance(error, _Gone):
            raise error
        self._is_muted = True
        if self._response.on_disconnect == "finish":
            await asyncio.wait({writer})
        else:
            await settle([writer])

    async def _outcome(self, writer: asyncio.Task[None]) -> bool:
        """Return how the writer has ended, and tell the client of an error. Raises: as `EventStream`."""
        error = self._cut if writer.cancelled() else writer.exception()
        if self._is_muted:
            self._note_unseen(error)
            return False
        if isinstance(error, FleetError):
            await self._fail(error)
        elif isinstance(error, _Gone):
            return False
        elif error is not None:
            if self._begun.is_set():
                await self._say(INTERNAL)
            raise error
        elif writer.cancelled():  # The iterator has raised it.
            writer.result()
        return error is None

    def _note_unseen(self, error: BaseException | None) -> None:
        """Log an error that no client is told of."""
        if isinstance(error, FleetError):
            log_failure(self._scope, error, outcome_of(error))
        elif error is not None and not isinstance(error, _Gone):
            log.error("%s failed after its client had gone", self._scope.get("path", ""), exc_info=error)

    async def _fail(self, error: FleetError) -> None:
        """Answer with the status code of an error, or with an event if the response has begun."""
        outcome = outcome_of(error)
        log_failure(self._scope, error, outcome)
        if self._begun.is_set():
            await self._say(outcome)
        else:
            await problem_response(outcome)(self._scope, self._receive, self._server_send)

    async def _say(self, outcome: Outcome) -> None:
        """Send an ``error`` event, and end the response."""
        seconds = outcome.retry_after_s
        retry_ms = None if seconds is None else seconds * 1000
        last = Event(to_json(outcome.event()), event="error", retry_ms=retry_ms)
        await self._send(last.encode(), is_last=True, timeout_s=FAREWELL_S if self._cut else None)

    async def _write(self) -> None:
        """Send every item, and the end. Raises: _Gone, and what the iterator raises."""
        response = self._response
        number = 0
        async for item in self._items:
            if self._is_muted:
                continue
            number += 1
            try:
                await self._send(self._event_of(item, number).encode())
            except _Gone:
                if response.on_disconnect != "finish":
                    raise
                self._is_muted = True
        if not self._is_muted:
            last = Event("null", event=response.end).encode() if response.end else b""
            await self._send(last, is_last=True)

    def _event_of(self, item: T, number: int) -> Event:
        if isinstance(item, Event):
            return item
        response = self._response
        event_id = str(response.ids(item)) if callable(response.ids) else str(number) if response.ids else ""
        return Event(response.encode(item), event=response.event, id=event_id)

    async def _beat(self) -> None:
        """Begin the response in time, and send a heartbeat after each silence. Raises: _Gone."""
        try:
            async with asyncio.timeout(self._response.first_item_s):
                await self._begun.wait()
        except TimeoutError:
            await self._send(HEARTBEAT)
        heartbeat_s = self._response.heartbeat_s
        while heartbeat_s is not None:
            left_s = self._sent_at + heartbeat_s - self._loop.time()
            if left_s > EARLY_S:
                await asyncio.sleep(left_s)
            else:
                await self._send(HEARTBEAT)
        await self._loop.create_future()  # Its end would mean that the client has gone.

    async def _begin(self) -> None:
        response = self._response
        self._begun.set()
        await self._server_send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )

    async def _send(self, body: bytes, *, is_last: bool = False, timeout_s: float | None = None) -> None:
        """Send a part of the body, after the head. Raises: _Gone."""
        if timeout_s is None:
            timeout_s = self._response.send_timeout_s
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit, self._lock:
                if not self._begun.is_set():
                    await self._begin()
                await self._server_send(
                    {"type": "http.response.body", "body": body, "more_body": not is_last}
                )
        except OSError as error:
            if limit.expired():
                log.info("a client of %s takes nothing for %g s", self._scope.get("path", ""), timeout_s)
            raise _Gone from error
        self._sent_at = self._loop.time()
