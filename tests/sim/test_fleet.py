"""Fleet and FleetRun: the methods that tests use, and the end of a test."""

from __future__ import annotations

import ast
import asyncio
import contextvars
import importlib
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import fleetlm.testing
from fleetlm import Call, NoConnection, NotSerializable, Process, Settings, SettingsError
from fleetlm.testing import (
    Deadlock,
    Fleet,
    Leaked,
    LeftOver,
    LimitReached,
    NotMeshed,
    NotReached,
    NotSimulated,
    RealSleep,
    SimLoop,
    Unhandled,
    run,
)
from fleetlm.testing.runner import FleetRun

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NAMES = [f"fleetlm@{ip}" for ip in (A, B, C)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)


@pytest.fixture
def course() -> Iterator[FleetRun]:
    course = FleetRun(7)
    yield course
    course.end()


Story = Callable[[Fleet], Coroutine[Any, Any, Any]]


def play(story: Story, seed: int = 7, **options: Any) -> Any:
    course = FleetRun(seed, **options)
    return course.test(story(course.fleet), "story")


async def echo(process: Process) -> None:
    async for message in process.mailbox:
        match message:
            case Call(message=text):
                message.reply(text)


# The names of the package.


def test_the_three_lists_of_public_names_agree() -> None:
    tree = ast.parse(Path(fleetlm.testing.__file__).read_text(encoding="utf-8"))
    for_types = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fleetlm.")
        for alias in node.names
    }
    assert for_types == fleetlm.testing._MODULE_OF
    assert sorted(fleetlm.testing.__all__) == sorted(for_types)


@pytest.mark.parametrize("name", fleetlm.testing.__all__)
def test_every_public_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(fleetlm.testing._MODULE_OF[name])
    assert getattr(fleetlm.testing, name) is getattr(module, name)
    assert name in dir(fleetlm.testing)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Fleat'"):
        fleetlm.testing.Fleat  # noqa: B018  # the access is what is tested


# Nodes.


def test_started_nodes_are_connected() -> None:
    async def story(fleet: Fleet) -> None:
        nodes = await fleet.start(3)
        assert [node.name for node in nodes] == NAMES
        assert nodes[0].list() == NAMES[1:]
        four = await fleet.node(mailbox_limit=5)
        assert four.list() == NAMES
        assert four.settings.mailbox_limit == 5

    play(story)


def test_a_restarted_node_is_connected() -> None:
    async def story(fleet: Fleet) -> None:
        _, two, _ = await fleet.start(3)
        again = await fleet.restart(two)
        assert again.incarnation != two.incarnation
        assert again.list() == [NAMES[0], NAMES[2]]

    play(story)


def test_start_with_wait_false_does_not_wait() -> None:
    async def story(fleet: Fleet) -> None:
        [one] = await fleet.start()
        fleet.partition(one)
        two = await fleet.node(wait=False)
        assert two.list() == []
        again = await fleet.restart(two, wait=False)
        with pytest.raises(NotMeshed, match=f"{NAMES[0]} misses {NAMES[1]}"):
            await fleet.node()
        assert again.list() == [NAMES[2]]  # it runs nevertheless

    play(story)


def test_one_node_or_several_can_be_cut_off() -> None:
    async def story(fleet: Fleet) -> None:
        one, two, three = await fleet.start(3)
        for group in (one, one.name, A, [one]):
            fleet.partition(group)
            await fleet.until(lambda: one.list() == [] and two.list() == [three.name], timeout=15)
            fleet.heal()
            await fleet.mesh()
        fleet.partition_one_way(one, two)
        await fleet.until(lambda: one.list() == [three.name], timeout=15)

    play(story)


def test_settings_are_those_of_the_test() -> None:
    async def story(fleet: Fleet) -> tuple[float, str | None]:
        [one] = await fleet.start()
        return one.settings.call_timeout_s, one.settings.dns_query

    assert play(story, settings={"call_timeout_s": 1.5}) == (1.5, "cluster.test")
    assert play(story, settings=Settings(call_timeout_s=2.5)) == (2.5, "cluster.test")
    assert play(story, settings=Settings(call_timeout_s=2.5, dns_query="b.test")) == (2.5, "b.test")


def test_what_could_not_be_sent_to_another_node_is_refused_on_one_node_too() -> None:
    async def story(fleet: Fleet) -> list[Any]:
        [one] = await fleet.start()
        one.spawn(echo, name="echo")
        outcomes: list[Any] = []
        for message in (object(), {"a": [1]}):
            try:
                reply = await one.call("echo", message)
                outcomes.append(reply is message)
            except NotSerializable as error:
                outcomes.append(error.path)
        return outcomes

    assert play(story) == ["message", False]
    assert play(story, settings={"mailbox_limit": 10}) == ["message", False]
    assert play(story, settings={"debug": False}) == [True, True]


def test_latency_is_that_of_the_test() -> None:
    async def story(fleet: Fleet) -> float:
        one, two = await fleet.start(2)
        two.spawn(echo, name="echo")
        began = fleet.now
        await one.call(("echo", two.name), 1)
        return fleet.now - began

    assert play(story, latency_s=(0.5, 0.6)) >= 1.0 > play(story)


def test_chance_is_the_seeds() -> None:
    async def story(fleet: Fleet) -> tuple[Any, ...]:
        [one] = await fleet.start()
        return fleet.seed, fleet.rng.random(), random.random(), one.incarnation

    state = random.getstate()
    assert play(story, 1) == play(story, 1)
    first, second = play(story, 1), play(story, 2)
    assert not set(first) & set(second)
    assert random.getstate() == state


# Waiting.


def test_until_returns_what_is_true_as_soon_as_it_is() -> None:
    async def story(fleet: Fleet) -> None:
        began = fleet.now
        assert await fleet.until(lambda: fleet.now >= began + 3 and "done") == "done"
        assert fleet.now == pytest.approx(began + 3, abs=0.02)

    play(story)


def test_until_awaits_and_takes_errors_of_the_fleet_for_not_yet() -> None:
    async def story(fleet: Fleet) -> None:
        one, two = await fleet.start(2)
        fleet.loop.call_later(2, lambda: two.spawn(echo, name="echo"))
        assert await fleet.until(lambda: one.call(("echo", two.name), "x")) == "x"

        def asserted() -> bool:
            assert fleet.now > 5
            return True

        assert await fleet.until(asserted)

    play(story)


def test_until_says_what_it_waited_for_and_what_came_of_it() -> None:
    async def story(fleet: Fleet) -> None:
        names, one = NAMES, fleet
        with pytest.raises(NotReached) as caught:
            await fleet.until(
                lambda: [node.name for node in one.nodes.values()]
                == names,  # in two lines
                timeout=3,
            )  # fmt: skip
        said = str(caught.value)
        assert said.startswith(
            "not within 3 s: [node.name for node in one.nodes.values()] == names; it was False"
        )
        assert f"names = {names}" in said
        assert fleet.now == 3

        async def never() -> None:
            await asyncio.Event().wait()

        with pytest.raises(NotReached, match=r"within 2 s: .*never; it was still waiting"):
            await fleet.until(never, timeout=2)
        assert fleet.now == 5

        def lost() -> bool:
            raise NoConnection(B, "gone")

        with pytest.raises(NotReached, match=r"lost; it raised NoConnection: .*gone"):
            await fleet.until(lost, timeout=1)
        with pytest.raises(NotReached, match=r"0 s: fleet\.now < 0"):
            await fleet.until(lambda: fleet.now < 0, timeout=0)

    play(story)


def test_until_raises_what_is_no_not_yet() -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.until(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        play(story)


def test_a_condition_without_a_source_is_named() -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.until(eval("lambda: 0"), timeout=1)

    with pytest.raises(NotReached, match=r"<lambda>; it was 0"):
        play(story)


# The end of a test.


def test_what_a_test_returns_comes_through_and_its_nodes_are_stopped() -> None:
    nodes = []

    async def story(fleet: Fleet) -> str:
        nodes.extend(await fleet.start(2))
        return "done"

    assert play(story) == "done"
    assert all(node._stopped.is_set() for node in nodes)


def test_what_can_never_go_on_says_where_it_waits() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock) as caught:
        play(story)
    [note] = caught.value.__notes__
    assert f"story waits at {__file__}:" in note


def test_what_waits_for_ever_beside_running_nodes_says_where() -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.start(2)
        await asyncio.Event().wait()

    with pytest.raises(LimitReached, match="100 virtual seconds") as caught:
        play(story, limit_s=100)
    assert f"story waits at {__file__}:" in caught.value.__notes__[0]


def test_what_is_left_over_fails_the_test() -> None:
    held = []

    async def story(fleet: Fleet) -> None:
        held.append(asyncio.create_task(asyncio.sleep(1000)))

    with pytest.raises(LeftOver, match="sleep"):
        play(story)
    assert held[0].cancelled()


def test_a_leak_of_a_node_fails_the_test() -> None:
    async def story(fleet: Fleet) -> None:
        one, two = await fleet.start(2)
        link = one._driver.sessions[two.name]
        await fleet.stop(one)
        one._driver.sessions["fleetlm@10.0.0.9"] = link

    with pytest.raises(Leaked, match=r"10.0.0.1: session with fleetlm@10.0.0.9"):
        play(story)


def test_the_tests_own_error_comes_first() -> None:
    async def story(fleet: Fleet) -> None:
        one, two = await fleet.start(2)
        link = one._driver.sessions[two.name]
        await fleet.stop(one)
        one._driver.sessions["fleetlm@10.0.0.9"] = link
        raise KeyError("the test's own")

    with pytest.raises(KeyError) as caught:
        play(story)
    [note] = caught.value.__notes__
    assert note.startswith("Also: Leaked: ")


def test_a_forgotten_error_fails_the_test_also_in_its_last_turn() -> None:
    async def bad() -> None:
        raise ValueError("bad")

    async def story(fleet: Fleet) -> None:
        task = asyncio.create_task(bad())
        await fleet.sleep(1)
        del task

    for seconds in (0, 1):

        async def main(seconds: int = seconds) -> None:
            task = asyncio.create_task(bad())
            await asyncio.sleep(seconds)
            del task

        with pytest.raises(Unhandled, match="bad"):
            run(main())
    with pytest.raises(Unhandled, match="bad") as caught:
        play(story)
    assert not hasattr(caught.value, "__notes__")


# Async fixtures.


def test_fixtures_and_the_test_share_loop_and_context(course: FleetRun) -> None:
    told: contextvars.ContextVar[str] = contextvars.ContextVar("told", default="")
    ended: list[str] = []

    async def started() -> list[str]:
        assert SimLoop.current() is course.fleet.loop
        told.set("by a fixture")
        return [node.name for node in await course.fleet.start(2)]

    async def grouped(names: list[str]) -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(1000))
            yield len(names)
            task.cancel()
        ended.append(f"grouped, {len(course.fleet.nodes)} nodes run")

    async def last() -> AsyncIterator[None]:
        yield
        ended.append("last")

    names = course.set_up(started, {}, "started")
    assert names == NAMES[:2]
    assert course.set_up(grouped, {"names": names}, "grouped") == 2
    assert course.set_up(last, {}, "last") is None

    async def story() -> str:
        await asyncio.sleep(5)
        assert ended == []
        return told.get()

    assert course.test(story(), "story") == "by a fixture"
    assert ended == ["last", "grouped, 2 nodes run"]
    course.end()
    assert len(ended) == 2


def test_a_fixture_that_fails_shows_where(course: FleetRun) -> None:
    async def early() -> AsyncIterator[None]:
        raise KeyError("early")
        yield

    async def nothing() -> AsyncIterator[None]:
        for each in ():
            yield each

    async def stuck() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    with pytest.raises(KeyError, match="early"):
        course.set_up(early, {}, "early")
    with pytest.raises(ValueError, match="the fixture nothing did not yield"):
        course.set_up(nothing, {}, "nothing")
    with pytest.raises(Deadlock, match="stuck"):
        course.set_up(stuck, {}, "stuck")


def test_a_fixture_that_fails_at_the_end_fails_the_test() -> None:
    async def late() -> AsyncIterator[None]:
        yield
        raise KeyError("late")

    async def twice() -> AsyncIterator[None]:
        yield
        yield

    async def fine() -> None:
        pass

    async def not_fine() -> None:
        raise IndexError

    course = FleetRun(1)
    course.set_up(late, {}, "late")
    course.set_up(twice, {}, "twice")
    with pytest.raises(ValueError, match="twice yields more than once") as caught:
        course.test(fine(), "fine")
    assert caught.value.__notes__ == ["Also: KeyError: 'late'"]

    course = FleetRun(1)
    course.set_up(late, {}, "late")
    with pytest.raises(IndexError) as failed:
        course.test(not_fine(), "not_fine")
    assert failed.value.__notes__ == ["Also: KeyError: 'late'"]


def test_a_bad_option_leaves_nothing_behind() -> None:
    state = random.getstate()
    with pytest.raises(SettingsError, match="Did you mean call_timeout_s"):
        FleetRun(1, settings={"call_timeout": 1})
    assert random.getstate() == state


# The real world.


def test_a_real_sleep_on_the_loop_is_an_error() -> None:
    real = time.sleep

    async def story(fleet: Fleet) -> None:
        time.sleep(0)
        pause = 5
        time.sleep(pause)

    with pytest.raises(RealSleep, match=r"time.sleep\(5\) would block every node") as caught:
        play(story)
    assert isinstance(caught.value, NotSimulated)
    assert time.sleep is real


def test_others_sleep_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    pause = 0.001

    async def threaded(fleet: Fleet) -> None:
        thread = threading.Thread(target=lambda: slept.append(time.sleep(pause) or pause))
        thread.start()
        thread.join()

    async def faked(fleet: Fleet) -> None:
        time.sleep(pause)

    play(threaded)
    assert slept == [pause]
    monkeypatch.setattr("time.sleep", lambda _seconds: slept.append(7))
    play(faked)
    assert slept == [pause, 7]


def test_a_socket_is_an_error() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    with pytest.raises(NotSimulated, match="create_connection"):
        play(story)
