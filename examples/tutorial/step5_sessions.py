"""Step 5 of the tutorial: a session stays with its worker.

fleetlm start step5_sessions:worker
fleetlm start step5_sessions:ask
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fleetlm import Actor, Child, Node, Supervisor, handler


class Model(Actor):
    """A stand-in for a language model that keeps what it knows of each session."""

    async def init(self) -> None:
        self.seen: dict[str, int] = {}
        self.node.groups.join("models", self.pid)
        print(f"{self.node.name} has a model", flush=True)

    @handler(concurrent=True)
    async def complete(self, session: str, turns: list[str]) -> AsyncIterator[str]:
        known = self.seen.get(session, 0)
        self.seen[session] = len(turns)
        yield f"{self.node.name}, which knew {known} of {len(turns)} turns, says:"
        for token in turns[-1].split():
            await asyncio.sleep(0.1)
            yield token


def worker(node: Node) -> None:
    """Run a model until the node is told to leave; a supervisor starts it again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]))


async def ask(node: Node) -> None:
    """Hold two conversations of three turns each."""
    await node.ready(min_nodes=1, timeout=10)
    models = node.groups.ref(Model, "models", by="sticky", key="")
    turns: dict[str, list[str]] = {"ada": [], "alan": []}
    for prompt in ("hello", "how are you", "good bye"):
        for session, said in turns.items():
            said.append(prompt)
            stream = models.keyed(session).stream(Model.complete, session, said)
            print(f"{session}:", *[token async for token in stream], flush=True)
