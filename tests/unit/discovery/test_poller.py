from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.poller import LOOKUP_LIMIT_S, Poller
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from tests.support.session_fakes import virtual

STEADY = Settings(poll_interval_s=5.0, poll_jitter=0.0)
FOUND = Answer(Outcome.ADDRESSES, ("10.0.0.2",), "one")


class Script:
    """A discovery that follows a script and records when it was asked."""

    source = "script"

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.asked_at: list[float] = []
        self.running = 0

    async def lookup(self) -> Answer:
        self.asked_at.append(SimLoop.current().time())
        assert self.running == 0, "lookups overlap"
        self.running += 1
        try:
            step = self.steps.pop(0) if self.steps else None
            if step is not None:
                result = step()
                if asyncio.iscoroutine(result):
                    await result
            return FOUND
        finally:
            self.running -= 1


class Rig:
    def __init__(self, script: Script, settings: Settings = STEADY, *, met: bool = True) -> None:
        self.answers: list[Answer] = []
        self.met = met
        self.script = script
        self.poller = Poller(script, settings, random.Random(1), self.answers.append, lambda: self.met)

    async def run(self, seconds: float, first: Answer | None = None) -> list[float]:
        self.poller.start(first)
        await asyncio.sleep(seconds)
        await self.poller.stop()
        return self.script.asked_at


def failing(error: BaseException) -> Callable[[], object]:
    def step() -> None:
        raise error

    return step


@virtual
async def test_it_asks_at_once_and_then_at_the_interval() -> None:
    rig = Rig(Script())
    assert await rig.run(16) == [0, 5, 10, 15]
    assert rig.answers == [FOUND] * 4
    assert (rig.poller.polls, rig.poller.last_answer, rig.poller.last_answer_at) == (4, FOUND, 15)


@virtual
async def test_alone_it_asks_fast_at_first() -> None:
    asked = await Rig(Script(), met=False).run(12)
    assert asked == [0, 0.25, 0.75, 1.75, 3.75, 7.75]


@virtual
async def test_what_is_known_already_is_used_first() -> None:
    rig = Rig(Script())
    first = Answer(Outcome.EMPTY, (), "nobody")
    await rig.run(1, first)
    assert rig.answers == [first, FOUND]


@virtual
async def test_slow_lookups_never_overlap() -> None:
    asked = await Rig(Script(*[lambda: asyncio.sleep(7)] * 3)).run(20)
    assert asked == [0, 7, 14]


@virtual
async def test_a_kick_asks_at_once_but_not_more_often_than_the_fast_interval() -> None:
    rig = Rig(Script())
    rig.poller.start(None)
    await asyncio.sleep(2)
    rig.poller.kick()
    rig.poller.kick()
    await asyncio.sleep(0.1)
    rig.poller.kick()
    await asyncio.sleep(10)
    await rig.poller.stop()
    assert rig.script.asked_at == [0, 2, 2.25, 7.25]


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("a bug"), TimeoutError()])
def test_a_discovery_that_raises_is_asked_again(error: Exception) -> None:
    async def main() -> None:
        rig = Rig(Script(failing(error)))
        assert await rig.run(6) == [0, 5]
        assert [answer.outcome for answer in rig.answers] == [Outcome.FAILED, Outcome.ADDRESSES]
        assert type(error).__name__ in rig.answers[0].detail

    run(main())


@virtual
async def test_a_cancellation_from_inside_the_discovery_does_not_end_it() -> None:
    rig = Rig(Script(failing(asyncio.CancelledError())))
    assert await rig.run(6) == [0, 5]
    assert rig.answers[0].outcome is Outcome.FAILED


@virtual
async def test_a_lookup_that_never_ends_is_given_up() -> None:
    rig = Rig(Script(lambda: asyncio.sleep(1e6)))
    assert await rig.run(LOOKUP_LIMIT_S + 1) == [0, LOOKUP_LIMIT_S]
    assert rig.answers[0].outcome is Outcome.FAILED


def test_an_answer_that_cannot_be_used_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        script = Script()

        def use(answer: Answer) -> None:
            raise RuntimeError("a bug of the node")

        poller = Poller(script, STEADY, random.Random(1), use, lambda: True)
        poller.start(None)
        await asyncio.sleep(11)
        await poller.stop()
        assert script.asked_at == [0, 5, 10]

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "polling goes on" in caplog.text


@virtual
async def test_stopping_in_the_middle_of_a_lookup_ends_it() -> None:
    rig = Rig(Script(lambda: asyncio.sleep(50)))
    assert await rig.run(1) == [0]
    assert rig.answers == []
    await rig.poller.stop()


@virtual
async def test_it_can_be_stopped_without_having_been_started() -> None:
    await Rig(Script()).poller.stop()


class Closable(Script):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


@virtual
async def test_a_discovery_that_can_be_closed_is_closed_when_polling_ends() -> None:
    discovery = Closable()
    await Rig(discovery).run(7)
    assert (discovery.asked_at, discovery.closed) == ([0, 5], 1)


@virtual
async def test_a_discovery_that_cannot_close_does_not_stop_a_node_from_leaving() -> None:
    discovery = Closable(RuntimeError("boom"))
    await Rig(discovery).run(1)
    assert discovery.closed == 1
