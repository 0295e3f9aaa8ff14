"""What README shows of requests that are repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fleetlm
from fleetlm import Actor, Node, handler
from fleetlm.testing import Fleet


class Model(Actor):
    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def answer(self, prompt: str) -> str:
        return prompt.upper()

    @handler
    async def count(self, prompt: str) -> int:
        return len(prompt)

    @handler
    async def tokens(self, prompt: str) -> AsyncIterator[str]:
        for token in prompt:
            yield token


async def ask(node: Node) -> tuple[str, int]:
    models = node.groups.ref(Model, "models", by="least_loaded").within(5)
    answer = await models.call(Model.answer, "hello")  # at one member; at another one if it never ran
    async for token in models.stream(Model.tokens, "hello"):  # repeated only before the first token
        answer += token
    total = await models.retrying(idempotent=True).call(Model.count, "hello")  # may run twice

    leader = node.registry.ref(Model, "leader")
    answer = await fleetlm.retry(lambda: leader.call(Model.answer, "hello"), attempts=6, timeout=10)
    return answer, total


async def test_the_requests_of_the_guide_work(fleet: Fleet) -> None:
    front, *workers = await fleet.start(3)
    for worker in workers:
        pid = worker.spawn(Model)
    await fleet.until(lambda: len(front.groups.members("models")) == 2)
    await workers[1].registry.register("leader", pid)
    await front.registry.wait_for("leader", timeout=5)
    assert await ask(front) == ("HELLO", 5)


async def test_the_request_to_a_leader_finds_the_next_one(fleet: Fleet) -> None:
    front, other = await fleet.start(2)
    pid = other.spawn(Model)
    await fleet.until(lambda: len(front.groups.members("models")) == 1)
    assert front.registry.whereis("leader") is None

    async def comes_late() -> None:
        await fleet.sleep(0.05)
        await other.registry.register("leader", pid)

    process = front.spawn(lambda _: comes_late())
    assert await ask(front) == ("HELLO", 5)
    assert await front.join(process, timeout=5)
