"""The ASGI application of the ops listener: its addresses, who may read them, the headers of responses.

It is read-only: it answers GET and HEAD. The one POST hands in the token of a form and changes nothing.
What a node cannot answer in time becomes a 503 with the reason in one line.
"""

from __future__ import annotations

import asyncio
import html
import importlib.resources
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
)
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from fleetlm.escapes import escape
from fleetlm.ops.access import Access, Verdict
from fleetlm.ops.board import dumps
from fleetlm.ops.questions import NoAnswer, Questions
from fleetlm.ops.watching import Watching

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ENDLESS: Final = "fleetlm.ops.endless"
"""The key of a request's state that tells the listener that its response has no end."""
MAX_FORM_BYTES = 8 * 1024
"""Size limit of the form with a token."""
MAX_PIECE_BYTES = 64 * 1024
"""Responses are sent in pieces of this size, so that a slow reader holds one of them and not all."""
MAX_NODES = 1_000_000
"""The largest ``min_nodes``: a number of more digits is a mistake."""
MAX_SHOWN_CHARS = 100
"""Of a path in the log: a stranger chooses it."""
MAX_REASON_CHARS = 1_000
"""Longer reasons are cut: a probe shows a line."""
STATIC: Final = {
    "index.html": "text/html; charset=utf-8",
    "login.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "matrix.js": "text/javascript; charset=utf-8",
    "trees.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
OPEN: Final = frozenset({"/health/live", "/health/ready", "/login", "/style.css", "/icon.svg"})
"""What is answered to everybody: one word about health, and how the form looks."""
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
"""Headers of every response. No page of another site may show, embed or read what stands here."""

log: logging.Logger = logging.getLogger("fleetlm.ops")


class OpsApp:
    """The application.

    Args:
        questions: asks the node.
        token: the secret of readers; None: the ``Host`` header decides.
        hosts: see `fleetlm.ops.app`.
    """

    def __init__(self, questions: Questions, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self.access: Access = Access(token, hosts)
        self.watching: Watching = Watching(questions)
        self._questions = questions
        folder = importlib.resources.files("fleetlm.ops").joinpath("static")
        self._files = {name: folder.joinpath(name).read_bytes() for name in STATIC}
        routes = [
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/cluster.json", self._cluster),
            Route("/events", self._events),
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/", self._page),
            Route("/{name}", self._file),
        ]
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implement ASGI."""
        if scope["type"] == "lifespan":
            await self._live_on(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, _with_headers(send))

    def close(self) -> None:
        """End what is being sent without an end, and cancel the questions."""
        self.watching.close()
        close = getattr(self._questions, "close", None)
        if close is not None:
            close()

    async def _live_on(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = _path(scope)
        refusal = self._refuse(request, path)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            await self._router(scope, receive, send)
        except NoAnswer as error:
            await _say(503, str(error))(scope, receive, send)

    def _refuse(self, request: Request, path: str) -> Response | None:
        """Return the response to a request that may not be answered; None if it may."""
        if request.method not in ("GET", "HEAD") and not (request.method == "POST" and path == "/login"):
            return _say(405, "only GET and HEAD", {"allow": "GET, HEAD"})
        verdict = request.scope["fleetlm.verdict"] = self.access.judge(request.headers)
        if path in OPEN or verdict is Verdict.TRUSTED:
            return None
        if verdict is Verdict.CROSS_SITE:
            return _say(403, "a page of another site may not read this")
        if verdict is Verdict.WRONG_HOST:
            return _say(
                421,
                "without a token only requests to a loopback address or localhost are answered. Ask "
                "http://127.0.0.1 with the port, or set FLEETLM_OPS_TOKEN",
            )
        if verdict is Verdict.WRONG_TOKEN:
            shown = escape(path[:MAX_SHOWN_CHARS])
            log.warning("%s asked the ops listener for %s with a wrong token", _client(request), shown)
        if path == "/" and "token" in request.query_params:
            return self._let_in(request, request.query_params["token"])
        return self._ask_for_token(request)

    def _ask_for_token(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return self._static("login.html", 401)
        why = "a token is needed: send it as `Authorization: Bearer TOKEN`"
        return _say(401, why, {"www-authenticate": "Bearer"})

    def _let_in(self, request: Request, token: str) -> Response:
        """Give a browser that has the token its cookie, and send it to the page."""
        if not self.access.is_token(token):
            log.warning("%s logged in to the ops listener with a wrong token", _client(request))
            return self._ask_for_token(request)
        place = f"{request.scope.get('root_path', '')}/"
        response: Response = RedirectResponse(place, 303)
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A browser does not send a strict cookie where a link of another site has led to a redirect.
            to = html.escape(place)
            text = (
                f'<!doctype html><meta http-equiv="refresh" content="0;url={to}"><a href="{to}">fleetlm</a>'
            )
            response = Response(text, media_type="text/html")
        name, value = self.access.cookie(request.headers.get("host", ""))
        response.set_cookie(
            name, value, path=place, httponly=True, samesite="strict",
            secure=request.scope.get("scheme") == "https",
        )  # fmt: skip
        return response

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return self._static("login.html")
        body = b""
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_FORM_BYTES:
                    return _say(413, "the form is too large")
        except ClientDisconnect:
            return Response()
        try:
            given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=4)
        except ValueError:
            return _say(400, "the form has too many fields")
        return self._let_in(request, given.get("token", [""])[0].strip())

    async def _live(self, _request: Request) -> Response:
        return _say(200, "live")

    async def _ready(self, request: Request) -> Response:
        text = request.query_params.get("min_nodes", "0")
        if not (text.isascii() and text.isdecimal()) or int(text[:8]) > MAX_NODES or len(text) > 7:
            return _say(400, f"min_nodes must be a number from 0 to {MAX_NODES:,}")
        is_trusted = request.scope["fleetlm.verdict"] is Verdict.TRUSTED
        try:
            found = await self._questions.readiness()
        except NoAnswer as error:
            return _say(503, str(error) if is_trusted else "not ready")
        is_ready, reason = found.is_ready, str(found)
        if found.connected < int(text):
            missing = f"it is connected to {found.connected} node(s), and {text} are needed"
            reason = f"{found.node} is not ready: {'; '.join((*found.reasons, missing))}"
            is_ready = False
        if not is_trusted:
            reason = "ready" if is_ready else "not ready"
        return _say(200 if is_ready else 503, reason)

    async def _metrics(self, _request: Request) -> Response:
        text = await self._questions.metrics()
        return StreamingResponse(_cut(text), headers={"content-type": _PROMETHEUS})

    async def _cluster(self, _request: Request) -> Response:
        overview = await self._questions.overview()
        return StreamingResponse(_written(overview), media_type="application/json")

    async def _events(self, request: Request) -> Response:
        if self.watching.is_full:
            return _say(503, "as many pages as may be open are open already", {"retry-after": "10"})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        request.scope.setdefault("state", {})[ENDLESS] = True
        return StreamingResponse(self._watch(), media_type="text/event-stream")

    async def _watch(self) -> AsyncGenerator[bytes, None]:
        events = self.watching.watch()
        try:
            async for piece in events:
                yield piece
        finally:
            await events.aclose()

    async def _page(self, request: Request) -> Response:
        if "token" in request.query_params:  # Logged in already; the token need not stay in the address.
            return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303)
        return self._static("index.html")

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        return self._static(name) if name in STATIC else _say(404, "there is nothing here")

    def _static(self, name: str, status: int = 200) -> Response:
        return Response(self._files[name], status, media_type=STATIC[name])


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return send_with_headers


def _path(scope: Scope) -> str:
    """Return the path of a request below the place where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _client(request: Request) -> str:
    return request.client.host if request.client else "somebody"


def _say(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of one line."""
    line = escape(text)
    line = line if len(line) <= MAX_REASON_CHARS else f"{line[:MAX_REASON_CHARS]}…"
    return PlainTextResponse(f"{line}\n", status, headers)


async def _cut(text: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(text), MAX_PIECE_BYTES):
        yield text[at : at + MAX_PIECE_BYTES]


async def _written(overview: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Write an overview as JSON, the part of one node at a time: see `fleetlm.ops.board`."""
    head = {str(key): value for key, value in overview.items() if key != "nodes"}
    yield dumps(head)[:-1] + b',"nodes":{'
    comma = b""
    for name, facts in dict(overview.get("nodes") or {}).items():
        try:
            text = dumps(facts)
        except (TypeError, ValueError, RecursionError) as error:
            text = dumps({"name": str(name), "error": f"it cannot be shown: {error}"})
        async for piece in _cut(b"%s%s:%s" % (comma, dumps(str(name)), text)):
            yield piece
        comma = b","
        await asyncio.sleep(0)
    yield b"}}\n"
