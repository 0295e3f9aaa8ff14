"""The inference workers of the chat: each node has one model, and all models are one group.

    fleetlm start model:main

A worker may be started and stopped at any time. A new one gets requests as soon as its model is loaded. One
that is told to leave (SIGTERM) gets no new ones and finishes what it has begun.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator

from fleetlm import Actor, Child, Node, Supervisor, handler

MODELS = "models"
"""The group of all models."""
TOKEN_S = float(os.environ.get("CHAT_TOKEN_S", "0.05"))
"""Seconds that the model takes for a token."""
CACHED_SESSIONS = 1_000
"""Conversations whose state a worker keeps: a stand-in for the memory of a GPU."""

Turn = dict[str, str]
"""One turn of a conversation: ``{"role": "user", "content": "hello"}``."""


class Model(Actor):
    """A model in memory. It answers many conversations at a time, and remembers those that it has seen."""

    async def init(self) -> None:
        self.weights = await self.run_blocking(load)  # in a thread: the node goes on meanwhile
        self.cached: OrderedDict[str, int] = OrderedDict()
        self.running = 0
        self.cancelled = 0
        self.node.groups.join(MODELS, self.pid)

    @handler(concurrent=True)
    async def complete(self, session: str, turns: list[Turn]) -> AsyncIterator[dict[str, object]]:
        """Yield the answer to a conversation, token by token."""
        yield {"worker": self.node.name, "cached_turns": self.cached.get(session, 0)}
        self.running += 1
        try:
            for token in self.tokens(turns):
                await asyncio.sleep(TOKEN_S)
                yield {"token": token}
        except (asyncio.CancelledError, GeneratorExit):  # the client has gone: the GPU is free for others
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        self.remember(session, len(turns) + 1)

    @handler(concurrent=True)
    async def title(self, turns: list[Turn]) -> str:
        """Return a title for a conversation."""
        await asyncio.sleep(TOKEN_S)
        return " ".join(self.tokens(turns)[1:4])

    @handler(concurrent=True)
    async def state(self) -> dict[str, object]:
        """Return what this worker does now."""
        return {
            "worker": self.node.name,
            "running": self.running,
            "cancelled": self.cancelled,
            "sessions": len(self.cached),
        }

    def tokens(self, turns: list[Turn]) -> list[str]:
        """Return the tokens of an answer."""
        return [*self.weights, *turns[-1]["content"].split()]

    def remember(self, session: str, turns: int) -> None:
        """Keep the state of a conversation, and forget the one that was used longest ago."""
        self.cached[session] = turns
        self.cached.move_to_end(session)
        if len(self.cached) > CACHED_SESSIONS:
            self.cached.popitem(last=False)


def load() -> list[str]:
    """Load the weights: a stand-in for what takes a minute and a GPU."""
    return ["You", "said:"]


def main(node: Node) -> None:
    """Run a worker: its model is started again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]), name="models")
