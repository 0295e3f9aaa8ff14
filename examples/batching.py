"""An actor that collects calls into batches, as a GPU wants them; each caller makes a plain call.

``python batching.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os
import time

from fleetlm import Actor, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24378"))
WAIT_S = 0.02
"""The first request of a batch waits for so long for others: little beside the time of a batch."""
MAX_BATCH = 8


def forward(prompts: list[str]) -> list[str]:
    """Stand for the model: a batch takes as long as one prompt."""
    time.sleep(0.05)
    return [prompt.upper() for prompt in prompts]


class Model(Actor):
    """Runs what was asked within `WAIT_S` of each other as one batch."""

    async def init(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[str]]] = []
        self.batches: list[int] = []
        self.node.groups.join("models", self.pid)

    @handler(concurrent=True)
    async def answer(self, prompt: str) -> str:
        """Wait for the batch that this prompt joins, and return its part of the result."""
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append((prompt, reply))
        if len(self.waiting) == MAX_BATCH:
            self.run_batch()
        elif len(self.waiting) == 1:
            self.send_after(WAIT_S, "run")
        return await reply

    async def handle_info(self, message: object) -> None:
        """Run what has come meanwhile; a batch that was full has run already."""
        if message == "run" and self.waiting:
            self.run_batch()

    def run_batch(self) -> None:
        """Start one batch beside the actor. Callers that have given up are left out."""
        batch = [(prompt, reply) for prompt, reply in self.waiting if not reply.done()]
        self.waiting = []
        self.batches.append(len(batch))
        _ = self.create_task(self.infer(batch))  # It ends with the actor.

    async def infer(self, batch: list[tuple[str, asyncio.Future[str]]]) -> None:
        """Run the model in a thread, and give each caller its part."""
        answers = await self.run_blocking(forward, [prompt for prompt, _ in batch])
        for (_, reply), answer in zip(batch, answers, strict=True):
            if not reply.done():
                reply.set_result(answer)

    @handler
    async def sizes(self) -> list[int]:
        """Return the sizes of the batches that were run."""
        return self.batches


async def start(ip: str) -> Node:
    """Start one node."""
    return await Node.start(
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
    )


async def main() -> None:
    """Ask sixteen times at once, from another node."""
    front, worker = await start(ADDRESSES[0]), await start(ADDRESSES[1])
    worker.spawn(Model, name="model")
    await front.ready(1, timeout=5)

    joined = await anext(front.groups.watch("models"))
    print("joined:", joined.pid.node)
    model = front.ref(Model, joined.pid)
    prompts = [f"prompt {number}" for number in range(16)]
    answers = await asyncio.gather(*(model.call(Model.answer, prompt) for prompt in prompts))
    print(f"{len(answers)} answers, the last one {answers[-1]!r}")
    print("sizes of the batches:", await model.call(Model.sizes))
    await front.stop()
    await worker.stop()


if __name__ == "__main__":
    asyncio.run(main())
