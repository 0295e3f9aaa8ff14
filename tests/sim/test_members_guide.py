"""What docs/members.md shows."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fleetlm import Actor, Node, NoMember, handler
from fleetlm.llm import PrefixIndex
from fleetlm.testing import Fleet


class Model(Actor):
    """An inference worker that tells what it serves, and how full it is."""

    async def init(self) -> None:
        meta = {"model": "llama-70b", "zone": "a"}
        self.member = self.node.groups.join("models", self.pid, meta=meta)
        self.send_every(1.0, "report")

    async def handle_info(self, message: object) -> None:
        if message == "report":
            self.member.report(load=self.queued(), kv_free=0.4)

    def queued(self) -> int:
        """Requests inside the engine that fleetlm does not see."""
        return 0

    @handler(concurrent=True)
    async def complete(self, prompt: str) -> str:
        return prompt.upper()


async def ask(node: Node, prompt: str) -> str:
    """Ask the member with the most room among those that serve a model."""
    models = node.groups.ref(Model, "models", by="least_loaded", where={"model": "llama-70b"})
    return await models.within(2).call(Model.complete, prompt)


index = PrefixIndex(beta=1.0)


async def complete(node: Node, tokens: list[int]) -> str:
    """Ask where the beginning of this prompt was computed before, unless that worker has too much to do."""
    models = node.groups.ref(Model, "models").scored(index.route(tokens))
    return await models.call(Model.complete, " ".join(map(str, tokens)))


async def announce(node: Node) -> None:
    """Tell every node which version this one runs, and see what the others run."""
    versions = node.table("versions")
    versions.put("app", "2.4.1")
    print(versions.get("app"))
    with contextlib.closing(versions.watch("app")) as changes:
        async for change in changes:
            print(change)


async def test_the_guide(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    front, one, two = await fleet.start(3)
    with pytest.raises(NoMember):
        await ask(front, "too early")
    workers = {one.spawn(Model), two.spawn(Model)}
    await fleet.until(lambda: set(front.groups.members("models")) == workers)
    assert await ask(front, "hello") == "HELLO"
    await fleet.until(
        lambda: [info.gauges.get("kv_free") for info in front.groups.describe("models")] == [0.4] * 2
    )
    prompt = list(range(64))
    assert await complete(front, prompt) == " ".join(map(str, prompt))
    assert max(index.route(prompt)(info) for info in front.groups.describe("models")) == 1.0

    announcing = [asyncio.ensure_future(announce(node)) for node in (one, two)]
    await fleet.sleep(1)
    for each in announcing:
        each.cancel()
    await asyncio.gather(*announcing, return_exceptions=True)
    said = capsys.readouterr().out
    assert said.count("RowPut") == 4
    assert "2.4.1" in said
