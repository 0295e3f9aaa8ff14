"""The programs of docs/tutorial.md, simulated; tests/system/test_tutorial.py runs its commands."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from examples.tutorial import (
    step1_worker,
    step2_group,
    step3_stream,
    step4_drain,
    step5_sessions,
    step6_web,
    step7_entities,
)
from fleetlm import Node, asgi
from fleetlm.testing import Fleet
from tests.support.asgi_client import events_in


async def workers(fleet: Fleet, step: Any, count: int = 2) -> list[Node]:
    nodes = await fleet.start(count)
    for node in nodes:
        step.worker(node)
    await fleet.until(lambda: all(len(node.groups.members("models")) == count for node in nodes))
    return nodes


async def test_1_a_worker_answers(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    await step1_worker.main(await fleet.node())
    assert capsys.readouterr().out == "You said: hello\n"


async def test_2_a_group_takes_turns(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = await workers(fleet, step2_group)
    assert capsys.readouterr().out.splitlines() == [f"{node.name} has a model" for node in nodes]
    await step2_group.ask(await fleet.node())
    said = [line.partition(" says: ") for line in capsys.readouterr().out.splitlines()]
    assert [text for *_, text in said] == ["one", "two", "three", "four"]
    assert said[0][0] == said[2][0] != said[1][0] == said[3][0]


async def test_3_a_stream_may_be_given_up(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    await workers(fleet, step3_stream, 1)
    capsys.readouterr()
    await step3_stream.ask(await fleet.node())
    await fleet.sleep(0.1)
    assert capsys.readouterr().out.splitlines() == [
        "You", "said:", "hello", "there", "You ... enough",
        "nobody waits for 'a long story a long ' any more",
    ]  # fmt: skip


@pytest.mark.fleet(seeds=5)
async def test_4_a_worker_that_leaves_costs_no_answer(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = await workers(fleet, step4_drain)
    asking = asyncio.create_task(step4_drain.ask(await fleet.node()))
    await fleet.sleep(fleet.rng.uniform(0.3, 1.0))
    await one.stop()
    await asking
    said = capsys.readouterr().out.splitlines()
    assert f"{one.name} has finished its answers, and leaves" in said
    assert {line.partition(" says: ")[2] for line in said if " says: " in line} == {
        f"answer {number} is complete" for number in range(20)
    }


async def test_5_a_session_stays_with_its_worker(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    await workers(fleet, step5_sessions)
    capsys.readouterr()
    await step5_sessions.ask(await fleet.node())
    said = capsys.readouterr().out.splitlines()
    for session in ("ada", "alan"):
        lines = [line for line in said if line.startswith(f"{session}: ")]
        assert len({line.partition(",")[0] for line in lines}) == 1
        assert [f"knew {turn} of {turn + 1} turns" in line for turn, line in enumerate(lines)] == [True] * 3


async def test_6_a_browser_reads_events(fleet: Fleet) -> None:
    web = await fleet.node()
    async with asgi.running(step6_web.app, web) as served:
        transport = httpx.ASGITransport(app=served)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            query = {"session": "ada", "prompt": "hello"}
            answer = await client.get("/chat", params=query)
            assert (answer.status_code, answer.json()["kind"]) == (503, "no_member")
            await workers(fleet, step6_web, 1)
            await fleet.until(lambda: web.groups.members("models"))
            answer = await client.get("/chat", params=query)
    assert [data for _, data in events_in(answer.text)][1:] == ["hello", None]


@pytest.mark.fleet(seeds=2)
async def test_7_a_conversation_survives_a_rolling_restart(fleet: Fleet) -> None:
    async def deploy(node: Node) -> None:
        working = asyncio.create_task(step7_entities.worker(node))
        await fleet.until(lambda: any(each.hosted for each in node.entities.info()))
        running.append(working)

    running: list[asyncio.Task[None]] = []
    web, *nodes = await fleet.start(3)
    for node in nodes:
        await deploy(node)
    async with asgi.running(step7_entities.app, web) as served:
        transport = httpx.ASGITransport(app=served)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def say(turn: int) -> None:
                query = {"session": "ada", "prompt": f"line {turn}"}
                answer = await client.get("/chat", params=query)
                first, *words = [data for _, data in events_in(answer.text)]
                assert first.startswith(f"turn {turn}, kept by "), answer.text
                assert words == ["line", str(turn), None]

            async def talk() -> None:
                for turn in range(1, 21):
                    await say(turn)

            talking = asyncio.create_task(talk())
            for node in nodes:
                await fleet.sleep(fleet.rng.uniform(0.2, 2.0))
                await node.stop()
                await deploy(await fleet.restart(node))
            await talking
    for working in running:
        working.cancel()
    await asyncio.wait(running)
