"""The inference workers of the chat: each node has one model, and some of the conversations.

    fleetlm start model:main

A worker may be started and stopped at any time. A new one gets requests as soon as its model is loaded, and
its share of the conversations. One that is told to leave (SIGTERM) gets no new ones, finishes what it has
begun, and hands its conversations over to the others.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from fleetlm import Actor, Child, Entity, Node, Supervisor, handler

MODELS = "models"
"""The group of all models."""
SESSIONS = "sessions"
"""The kind of the conversations."""
TOKEN_S = float(os.environ.get("CHAT_TOKEN_S", "0.05"))
"""Seconds that the model takes for a token."""
MAX_TURNS = 200
"""Turns of a conversation that are kept; a model could not read more."""
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


class Session(Entity):
    """A conversation. It lives on one worker at a time and moves with its turns when that one leaves."""

    async def load(self, state: Any) -> None:
        """Begin from what was saved, or empty."""
        self.turns: list[Turn] = list(state or ())

    async def save(self) -> Any:
        """Return what another worker needs to go on."""
        return self.turns

    @handler
    async def say(self, content: str) -> AsyncIterator[dict[str, object]]:
        """Yield the answer to the next turn, token by token. Further turns wait until it is done.

        A turn is kept when its answer is complete. So one whose client has gone may simply be said again.
        """
        turns = [*self.turns, {"role": "user", "content": content}]
        models = self.node.groups.ref(Model, MODELS, by="sticky", key=self.key)
        models = models.within(120, idle=30).retrying(4, idempotent=True)
        tokens: list[str] = []
        async with models.stream(Model.complete, self.key, turns) as items:
            async for item in items:
                if "token" in item:
                    tokens.append(str(item["token"]))
                yield item
        answer = {"role": "assistant", "content": " ".join(tokens)}
        self.turns = [*turns, answer][-MAX_TURNS:]

    @handler
    async def read(self) -> list[Turn]:
        """Return the conversation."""
        return self.turns


async def start(node: Node) -> None:
    """Start a worker: its model is started again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]), name="models")
    await node.entities.host(Session, SESSIONS)


async def main(node: Node) -> None:
    """Run a worker until it is told to leave."""
    await start(node)
    await node.wait_stopped()
