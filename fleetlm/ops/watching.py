"""Shares one overview a second among all who watch the page.

The node is asked only while somebody watches, and for a moment longer, so that a page that is loaded anew
finds its charts.

Where a program's own server serves the page, the server waits for its responses before the program stops the
node. So the watchers end when the node begins to drain; a page connects again while the server lets it, and
is then told of the state once. In the ops listener they go on until the node stops.

Each watcher is an asynchronous generator that the server sends from: while a client takes
nothing, its generator is not asked to go on, and it later continues with the latest state. Nothing is
queued.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from fleetlm.ops.board import Board
from fleetlm.ops.questions import NoAnswer, NodeGone, Questions

MAX_WATCHERS = 16
"""Pages that are open at the same time. Each holds a connection, and 100 KiB that were not sent."""
PERIOD_S = 1.0
"""Seconds between two overviews: a death is shown within this time and that of an overview."""
HEARTBEAT_S = 5.0
"""Seconds after which a watcher is sent a sign of life, so that proxies keep the connection and both sides
notice its end."""
PIECE_BYTES = 32 * 1024
"""Smaller pieces of an event are sent together."""
LINGER_S = 15.0
"""Seconds for which the node is asked after the last watcher has gone: a page that is loaded anew."""

log: logging.Logger = logging.getLogger("fleetlm.ops")


class Watching:
    """The watchers of one application.

    Args:
        questions: asks the node.
    """

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self.board: Board = Board()
        """What watchers are shown; a new one after each time when nobody watched."""
        self._count = 0
        self._changed = asyncio.Event()
        """Set, and replaced by another one, at each change of the board."""
        self._asking: asyncio.Task[None] | None = None
        self._is_closed = False
        self._round = 0
        """Grows when all who watch at the moment are to end."""
        self.ends_with_node: bool = True
        """Whether watchers end when the node begins to leave."""

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another watcher."""
        return self._is_closed or self._count >= MAX_WATCHERS

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events, in pieces, until the application is closed. Ask `is_full` before."""
        self._count += 1
        try:
            self._begin()
            yield b"retry: 2000\n\n"
            for piece in join(self.board.history()):
                yield piece
            seen, its_round = 0, self._round
            while not self._is_closed:
                changed = self._changed
                if self.board.number > seen:
                    pieces = join(self.board.changes(seen))
                    seen = self.board.number
                    for piece in pieces:
                        yield piece
                if its_round != self._round:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield b"event: alive\ndata: {}\n\n"
        finally:
            self._count -= 1

    def close(self) -> None:
        """End all watchers."""
        self._is_closed = True
        if self._asking is not None:
            self._asking.cancel()
        self._changed.set()

    def _begin(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_S
        while self._count or loop.time() < until:
            began = loop.time()
            is_leaving = is_gone = False
            try:
                overview = await self._questions.overview()
                self.board.update(overview)
                is_leaving = says_that_it_leaves(overview)
            except NoAnswer as error:
                self.board.stall(str(error), int(time.time() * 1000))
                is_leaving = is_gone = isinstance(error, NodeGone)
            except Exception as error:
                log.exception("the page could not be given an overview")
                self.board.stall(f"{type(error).__name__}: {error}", int(time.time() * 1000))
            if is_leaving and self.ends_with_node:
                self._round += 1
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            if is_gone and self.ends_with_node:
                return
            if self._count:
                until = loop.time() + LINGER_S
            await asyncio.sleep(max(0.1, PERIOD_S - (loop.time() - began)))
        self.board = Board()  # It has some megabytes in a large cluster, and soon nothing of it is true.


def says_that_it_leaves(overview: Mapping[str, Any]) -> bool:
    """Whether the node that was asked for an overview drains, or leaves already."""
    own = overview["nodes"].get(overview["asked"])
    return own is not None and own.get("state") in ("draining", "leaving")


def join(pieces: list[bytes]) -> Iterator[bytes]:
    """Return a text in pieces of a size that is good to send, from smaller ones."""
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        joined.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    if joined:
        yield b"".join(joined)
