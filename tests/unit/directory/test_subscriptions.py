from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, strategies as st

from fleetlm.directory.subscriptions import Feed, Subscription
from tests.support.session_fakes import virtual


@dataclass(frozen=True)
class Thing:
    name: str
    here: bool = True


def feed(limit: int = 10) -> Feed[Thing]:
    return Feed(
        limit, lambda event: event.name, lambda event: not event.here, lambda event: Thing(event.name, False)
    )


async def heard(subscription: Subscription[Thing]) -> list[Thing]:
    subscription.close()
    return [event async for event in subscription]


@virtual
async def test_the_present_comes_first_and_a_thing_may_come_several_times() -> None:
    things = feed()
    for event in (Thing("a"), Thing("a"), Thing("b"), Thing("b", False)):
        things.publish(event)
    subscription = things.subscribe()
    things.publish(Thing("a", False))
    assert await heard(subscription) == [Thing("a"), Thing("a"), Thing("a", False)]
    assert list(things.present) == [Thing("a")]


@virtual
async def test_a_subscriber_hears_what_it_wants() -> None:
    things = feed()
    things.publish(Thing("a"))
    subscription = things.subscribe(lambda event: event.name == "b")
    things.publish(Thing("b"))
    things.publish(Thing("a", False))
    assert await heard(subscription) == [Thing("b")]


@virtual
async def test_what_never_came_cannot_go_twice() -> None:
    things = feed()
    things.publish(Thing("a", False))
    assert list(things.present) == []


@virtual
async def test_a_present_that_is_longer_than_the_limit_is_told_once_and_its_changes_after_it() -> None:
    things = feed(limit=3)
    for number in range(10):
        things.publish(Thing(f"t{number}"))
    subscription = things.subscribe()
    things.publish(Thing("t0", False))
    assert await heard(subscription) == [*(Thing(f"t{n}") for n in range(10)), Thing("t0", False)]


@virtual
async def test_a_long_present_still_has_a_bound_on_what_waits() -> None:
    things = feed(limit=3)
    for number in range(10):
        things.publish(Thing(f"t{number}"))
    subscription = things.subscribe()
    for _ in range(100):
        things.publish(Thing("t0", False))
        things.publish(Thing("t0"))
        assert len(subscription._queue) <= 20
    told = await heard(subscription)
    assert {event.name for event in told if event.here} == {f"t{n}" for n in range(10)}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), max_size=60))
def test_a_slow_reader_ends_up_with_the_truth(course: list[tuple[str, bool, int]]) -> None:
    @virtual
    async def play() -> None:
        things, known = feed(limit=3), dict.fromkeys("abc", 0)
        there = dict.fromkeys("abc", 0)
        subscription = things.subscribe()

        async def read() -> None:
            event = await anext(subscription)
            known[event.name] += 1 if event.here else -1
            assert known[event.name] >= 0

        unread = 0
        for name, here, reads in course:
            if here or there[name]:
                there[name] += 1 if here else -1
                things.publish(Thing(name, here))
            unread = len(subscription._queue)
            for _ in range(min(reads, unread)):
                await read()
        subscription.close()
        while subscription._queue:
            await read()
        assert known == there

    play()
