"""A stream that is begun anew as long as none of its items has come."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from fleetlm.errors import NoProcess, NotDelivered, OutcomeUnknown, ProcessDown, RemoteError
from fleetlm.messaging.repeated_source import RepeatedSource


class Given:
    """A source of given items, the last of which may be why it ends."""

    def __init__(self, *items: Any) -> None:
        self._items = deque(items)
        self.items: deque[Any] = deque()
        self.take = self.items.popleft
        self.is_closed = False

    async def wait(self) -> bool:
        if self.is_closed or not self._items:
            return False
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        self.items.append(item)
        return True

    def close(self) -> None:
        self.is_closed = True


class Repeated(RepeatedSource):
    """Opens the given sources, one after the other."""

    def __init__(self, *sources: Given | BaseException, most: int = 99) -> None:
        super().__init__()
        self.sources = deque(sources)
        self.failures: list[BaseException] = []
        self.most = most
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self) -> Any:
        await self.gate.wait()
        source = self.sources.popleft()
        if isinstance(source, BaseException):
            raise source
        return source

    async def goes_on(self, error: NotDelivered | OutcomeUnknown) -> bool:
        self.failures.append(error)
        return len(self.failures) <= self.most


REFUSED = NoProcess("x")


async def read(source: RepeatedSource) -> list[Any]:
    found = []
    while await source.wait():
        found.append(source.take())
    return found


async def test_the_items_are_those_of_the_first_source_that_has_one() -> None:
    source = Repeated(Given(REFUSED), REFUSED, Given(ProcessDown("x", "gone")), Given(1, 2))
    assert await read(source) == [1, 2]
    assert len(source.failures) == 3
    assert not source.sources


async def test_a_source_that_ends_without_an_item_is_the_end() -> None:
    source = Repeated(Given(), Given(1))
    assert await read(source) == []
    assert len(source.sources) == 1


async def test_after_an_item_nothing_is_begun_anew() -> None:
    source = Repeated(Given(1, REFUSED), Given(2))
    assert await source.wait()
    assert source.take() == 1
    with pytest.raises(NoProcess):
        await source.wait()
    assert source.failures == []


async def test_the_last_failure_is_raised_at_each_call() -> None:
    source = Repeated(Given(REFUSED), REFUSED, Given(1), most=1)
    for _ in range(3):
        with pytest.raises(NoProcess) as raised:
            await source.wait()
        assert raised.value is REFUSED
    assert len(source.sources) == 1


async def test_what_ran_and_raised_is_never_repeated() -> None:
    source = Repeated(Given(RemoteError("ValueError", "no", "")), Given(1))
    with pytest.raises(RemoteError):
        await source.wait()
    assert source.failures == []


async def test_a_source_that_is_closed_closes_the_one_behind_it() -> None:
    behind = Given(1, 2)
    source = Repeated(behind)
    assert await source.wait()
    source.close()
    assert behind.is_closed
    assert not source.items
    assert await source.wait() is False


async def test_a_source_that_is_closed_while_it_opens_closes_what_comes() -> None:
    behind = Given(1)
    source = Repeated(behind)
    source.gate.clear()
    waiting = asyncio.create_task(source.wait())
    await asyncio.sleep(0)
    source.close()
    source.gate.set()
    assert await waiting is False
    assert behind.is_closed


async def test_a_failure_after_the_close_is_not_repeated() -> None:
    source = Repeated(REFUSED, Given(1))
    source.gate.clear()
    waiting = asyncio.create_task(source.wait())
    await asyncio.sleep(0)
    source.close()
    source.gate.set()
    with pytest.raises(NoProcess):
        await waiting
    assert source.failures == []
