"""Questions to a node: shared, paced, with a limit, and from another thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm.errors import NodeStopped
from fleetlm.ops import questions
from fleetlm.ops.questions import NoAnswer, NodeQuestions, Shared
from fleetlm.testing import Fleet


class Asked:
    """A question that is answered when the test says so."""

    def __init__(self) -> None:
        self.count = 0
        self.answers: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self) -> int:
        self.count += 1
        return await self.answers.get()


def parts_on(loop: asyncio.AbstractEventLoop) -> SimpleNamespace:
    """The parts of a node that runs on a loop, as far as they are asked for."""
    return SimpleNamespace(context=SimpleNamespace(loop=loop))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_those_who_ask_meanwhile_share_the_next_question() -> None:
    asked = Asked()
    shared = Shared(asked, 0.0)
    first = asyncio.create_task(shared.get())
    await turns()
    later = [asyncio.create_task(shared.get()) for _ in range(50)]
    await turns()
    assert asked.count == 1, "the second question waits for the first one"
    asked.answers.put_nowait(1)
    asked.answers.put_nowait(2)
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 50, "no answer is older than the request for it"
    assert asked.count == 2


async def test_no_answer_is_kept_when_all_have_it() -> None:
    class Answer:
        pass

    async def ask() -> Answer:
        return Answer()

    shared = Shared(ask, 0.0)
    for _ in range(2):
        gone = weakref.ref(await shared.get())
        await turns()
        gc.collect()
        assert gone() is None


async def test_an_asker_that_gives_up_takes_the_question_from_nobody() -> None:
    asked = Asked()
    shared = Shared(asked, 0.0)
    patient = asyncio.create_task(shared.get())
    with pytest.raises(TimeoutError):
        await shared.get(0.0)
    impatient = asyncio.create_task(shared.get())
    await turns()
    impatient.cancel()
    asked.answers.put_nowait(7)
    assert await patient == 7
    shared.close()


async def test_an_error_reaches_all_who_asked_and_the_next_question_is_asked() -> None:
    errors: list[Exception] = [ValueError("once")]

    async def ask() -> str:
        if errors:
            raise errors.pop()
        return "well"

    shared = Shared(ask, 0.0)
    results = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
    assert [type(each) for each in results] == [ValueError, ValueError]
    assert await shared.get() == "well"


async def test_there_is_a_pause_between_two_questions() -> None:
    loop = asyncio.get_running_loop()
    began = []

    async def ask() -> None:
        began.append(loop.time())

    shared = Shared(ask, 0.05)
    for _ in range(3):
        await shared.get()
    assert began[2] - began[0] >= 0.099


async def test_a_node_is_asked_from_its_own_loop_and_from_another_one(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    here = NodeQuestions(node)
    assert (await here.readiness()).is_ready
    assert list((await here.overview())["nodes"]) == [node.name]
    here.close()


class FakeMetrics:
    """Stands for `fleetlm.metrics.NodeMetrics`."""

    def __init__(self, node: Any) -> None:
        self.threads: list[threading.Thread] = []

    def render(self) -> bytes:
        self.threads.append(threading.current_thread())
        return b"fleetlm_up 1\n"

    def close(self) -> None:
        self.threads.append(threading.current_thread())


def test_a_loop_in_another_thread_is_asked_and_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()

    class Node:
        name = "fleetlm@10.0.0.1"

        async def readiness(self) -> Any:
            return threading.current_thread()

        async def overview(self) -> Any:
            raise NodeStopped(self.name, "shutdown")

    monkeypatch.setattr(questions, "parts_of", lambda _node: parts_on(loop))
    monkeypatch.setattr(questions, "NodeMetrics", FakeMetrics)
    node = NodeQuestions(Node())  # type: ignore[arg-type]  # no loop runs yet, as in a test of the program
    metrics = node._metrics
    assert isinstance(metrics, FakeMetrics)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def ask() -> None:
        with pytest.raises(RuntimeError, match=r"fleetlm\.ops\.app was called on another event loop"):
            NodeQuestions(Node())  # type: ignore[arg-type]
        assert await node.readiness() is thread
        with pytest.raises(NoAnswer, match=r"fleetlm@10\.0\.0\.1 does not answer"):
            await node.overview()
        assert await node.metrics() == b"fleetlm_up 1\n"
        assert metrics.threads[-1] not in (thread, threading.current_thread()), "it may block neither loop"
        node.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        assert metrics.threads[-1] is thread
        loop.close()
        with pytest.raises(NoAnswer, match="closed"):
            await node.readiness()
        node.close()

    asyncio.run(ask())


async def test_on_the_nodes_own_loop_the_metrics_need_no_thread(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "NodeMetrics", FakeMetrics)
    (node,) = await fleet.start(1)
    asking = NodeQuestions(node)
    assert await asking.metrics() == b"fleetlm_up 1\n"
    assert isinstance(asking._metrics, FakeMetrics)
    assert asking._metrics.threads == [threading.current_thread()]
    asking.close()


async def test_a_loop_that_stands_still_is_said_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    class Node:
        name = "fleetlm@10.0.0.1"
        asked = 0

        async def readiness(self) -> Any:
            Node.asked += 1
            await asyncio.Event().wait()

    monkeypatch.setattr(questions, "parts_of", lambda _node: parts_on(loop))
    monkeypatch.setattr(questions, "NodeMetrics", FakeMetrics)
    node = NodeQuestions(Node())  # type: ignore[arg-type]
    get = Shared.get
    monkeypatch.setattr(Shared, "get", lambda self, limit_s=0.0: get(self, limit_s))
    for _ in range(5):
        with pytest.raises(NoAnswer, match="has not answered for 5 s"):
            await node.readiness()
        await turns()
    assert Node.asked == 1
    node.close()
    await turns()
