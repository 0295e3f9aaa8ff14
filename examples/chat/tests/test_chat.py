"""The chat on a simulated cluster: real nodes and the real application, without a server or a wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from model import MODELS, SESSIONS, Session, start
from web import app

from fleetlm import Node, asgi
from fleetlm.testing import Fleet


@pytest.fixture
async def web(fleet: Fleet) -> Node:
    """The node of the front end."""
    return await fleet.node()


@pytest.fixture
async def front(web: Node) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the front end."""
    async with asgi.running(app, web) as served:
        transport = httpx.ASGITransport(app=served)
        async with httpx.AsyncClient(transport=transport, base_url="http://chat") as client:
            yield client


async def start_workers(fleet: Fleet, web: Node, count: int) -> list[Node]:
    """Start workers, and wait until the front end knows their models, and where its sessions live."""
    known = len(web.groups.members(MODELS))
    workers = await fleet.start(count)
    for worker in workers:
        await start(worker)
    await fleet.until(lambda: len(web.groups.members(MODELS)) == known + count)
    sessions = web.entities.ref(Session, SESSIONS)
    await fleet.until(lambda: sessions.where("s1") is not None)
    return workers


def said(session: str, words: int = 4) -> dict[str, Any]:
    return {"session": session, "content": "word " * words}


def conversation(words: int = 4) -> dict[str, Any]:
    return {"turns": [{"role": "user", "content": "word " * words}]}


def events(answer: httpx.Response) -> list[Any]:
    """The data of each event."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


async def ask(front: httpx.AsyncClient, session: str, words: int = 4) -> list[Any]:
    answer = await front.post("/chat", json=said(session, words))
    assert answer.status_code == 200, answer.text
    return events(answer)


async def test_the_tokens_come_one_by_one_with_their_ids(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    await start_workers(fleet, web, 2)
    answer = await front.post("/chat", json=said("s1", 2))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [each["token"] for each in events(answer)[1:-1]] == ["You", "said:", "word", "word"]
    assert answer.text.endswith('id: 5\ndata: {"token":"word"}\n\nevent: end\ndata: null\n\n')


async def test_a_conversation_goes_on_where_it_was_and_its_worker_knows_it(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    await start_workers(fleet, web, 2)
    first = [(await ask(front, f"s{number}"))[0] for number in range(8)]
    again = [(await ask(front, f"s{number}"))[0] for number in range(8)]
    assert [each["worker"] for each in again] == [each["worker"] for each in first]
    assert {each["cached_turns"] for each in first} == {0}
    assert {each["cached_turns"] for each in again} == {2}
    turns = (await front.get("/sessions/s3")).json()
    assert [each["role"] for each in turns] == ["user", "assistant"] * 2
    assert turns[1]["content"] == "You said: word word word word"
    assert (await front.get("/sessions/nobody")).json() == []


async def test_two_turns_of_one_conversation_are_answered_one_after_the_other(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    await start_workers(fleet, web, 2)
    answers = await asyncio.gather(*(ask(front, "s1", words) for words in (7, 2, 5)))
    assert sorted(len(answer) for answer in answers) == [6, 9, 11]
    turns = (await front.get("/sessions/s1")).json()
    assert [each["role"] for each in turns] == ["user", "assistant"] * 3


async def test_a_worker_that_leaves_finishes_its_answers_and_gets_no_new_ones(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    [one] = await start_workers(fleet, web, 1)
    running = asyncio.create_task(ask(front, "s1", words=100))
    await fleet.sleep(1)
    [two] = await start_workers(fleet, web, 1)
    stopping = asyncio.create_task(one.stop())
    await fleet.sleep(0.1)
    assert (await ask(front, "s2"))[0]["worker"] == two.name
    answer = await running
    assert (len(answer), answer[-1]) == (1 + 102 + 1, None)
    await stopping
    assert one.drain_report is not None
    assert one.drain_report.cut == 0


@pytest.mark.fleet(seeds=2)
async def test_no_answer_is_lost_while_the_workers_are_replaced_one_by_one(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    workers = await start_workers(fleet, web, 3)
    answers: list[list[Any]] = []
    sessions = [f"s{client}-{number}" for client in range(4) for number in range(3)]

    async def ask_on(client: int) -> None:
        for number in range(7):
            answer = await ask(front, f"s{client}-{number % 3}", words=18)
            answers.append(answer)

    asking = [asyncio.create_task(ask_on(client)) for client in range(4)]
    for worker in workers:
        await fleet.sleep(1)
        await worker.stop()
        await start(await fleet.restart(worker))
    await asyncio.gather(*asking)
    assert len(answers) == 4 * 7
    assert [answer for answer in answers if answer[-1] is not None or len(answer) != 22] == []
    kept = [len((await front.get(f"/sessions/{session}")).json()) for session in sessions]
    assert kept == [6, 4, 4] * 4, "no turn is lost, and none is there twice"


async def test_a_worker_that_crashes_ends_its_answers_with_an_event(
    fleet: Fleet, web: Node, front: httpx.AsyncClient
) -> None:
    [worker] = await start_workers(fleet, web, 1)
    running = asyncio.create_task(ask(front, "s1", words=100))
    await fleet.sleep(1)
    await fleet.crash(worker)
    last = (await running)[-1]
    assert (last["kind"], last["retry"]) == ("node_lost", "if_idempotent")


async def test_without_workers_the_answer_is_503_and_when_to_come_back(front: httpx.AsyncClient) -> None:
    for path, body, kind in (("/chat", said("s1"), "not_owner"), ("/title", conversation(), "no_member")):
        answer = await front.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (answer.json()["kind"], answer.json()["retry"]) == (kind, "safe")
    assert (await front.get("/ready")).status_code == 503


async def test_a_client_that_goes_frees_the_model(fleet: Fleet, web: Node, front: httpx.AsyncClient) -> None:
    await start_workers(fleet, web, 1)
    running = asyncio.create_task(ask(front, "s1", words=1000))
    await fleet.sleep(1)
    [before] = (await front.get("/workers")).json()["workers"]
    running.cancel()
    await asyncio.wait({running})
    await fleet.sleep(0.1)
    [after] = (await front.get("/workers")).json()["workers"]
    assert (before["running"], after["running"], after["cancelled"]) == (1, 0, 1)
    assert (await front.get("/sessions/s1")).json() == [], "a turn without its answer is not kept"


async def test_a_title_comes_from_any_worker(fleet: Fleet, web: Node, front: httpx.AsyncClient) -> None:
    await start_workers(fleet, web, 2)
    answer = await front.post("/title", json=conversation(9))
    assert answer.json() == {"title": "said: word word"}
    assert (await front.get("/ready")).json() == {"ready": True, "models": True}


@pytest.mark.parametrize("wrong", [{}, {"session": "", "content": "x"}, {"session": "s", "content": ""}])
async def test_what_says_nothing_is_refused(front: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    assert (await front.post("/chat", json=wrong)).status_code == 422
    assert (await front.post("/title", json={"turns": []})).status_code == 422
    assert (await front.get("/sessions/" + "x" * 101)).status_code == 422
