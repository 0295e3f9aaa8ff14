"""A client and its server, as an ASGI application sees them: it reads slowly, goes away, or breaks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class Client:
    """One request.

    Args:
        app: the application.
        path: of the request.
        body: of the request; None: the server says nothing more about the request than that it is there.
        scope: further keys of the scope.

    Attributes:
        messages: what the application has sent.
    """

    def __init__(
        self, app: ASGIApp, path: str = "/", *, method: str = "GET", body: bytes = b"", **scope: Any
    ) -> None:
        self.app = app
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "state": {},
            **scope,
        }
        self.messages: list[Message] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.breaks: BaseException | None = None
        self._body = [{"type": "http.request", "body": body, "more_body": False}]
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> Client:
        """Run the application until it has answered."""
        await self.app(self.scope, self._receive, self._send)
        return self

    def start(self) -> Client:
        """Run the application in a task."""
        self.task = asyncio.create_task(self.run_quietly())
        return self

    async def run_quietly(self) -> None:
        await self.run()

    async def done(self) -> Client:
        """Wait for the application. Raises: what it has raised."""
        assert self.task is not None
        await self.task
        return self

    def go(self) -> None:
        """Go away; the server says so when it is asked."""
        self._gone.set()

    def stop_reading(self) -> None:
        """Take nothing any more, so that the server's ``send`` waits."""
        self.reads.clear()

    async def until(self, text: str) -> None:
        """Wait until the application has sent a text."""
        while text not in self.text:
            self._changed.clear()
            await self._changed.wait()

    @property
    def status(self) -> int | None:
        """The status code; None: nothing has been sent."""
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def text(self) -> str:
        return b"".join(each.get("body", b"") for each in self.messages).decode()

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The name and the data of each event; comments are left out."""
        return events_in(self.text)

    async def _receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        if self.breaks is not None:
            raise self.breaks
        self.messages.append(message)
        self._changed.set()


def events_in(text: str) -> list[tuple[str, Any]]:
    """Parse server-sent events as a browser does: the name and the JSON of each one that has data."""
    events = []
    for block in text.split("\n\n"):
        fields = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        data = [value for name, _, value in fields if name == "data"]
        names = [value for name, _, value in fields if name == "event"]
        if data:
            events.append((names[-1] if names else "message", json.loads("\n".join(data))))
    return events
