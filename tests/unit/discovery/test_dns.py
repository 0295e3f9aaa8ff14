"""`DnsDiscovery` imports dnspython at the first lookup of a name, and off the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery import dns
from fleetlm.discovery.dns import DnsDiscovery
from tests.support.threads import refuse_threads

FOUND = Answer(Outcome.ADDRESSES, ("10.0.0.2",), "1 address")


class Lookups:
    """Stands for `NameLookups`."""

    def __init__(self) -> None:
        self.runs = 0
        self.made_in = threading.current_thread()
        self.is_closed = False

    def describe_servers(self) -> str:
        return "10.9.9.9"

    async def run(self) -> list[tuple[str, Answer]]:
        self.runs += 1
        return [("a.test", FOUND)]

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Replace the import of what looks names up."""

    def install(replacement: Callable[[], Any]) -> None:
        monkeypatch.setattr(dns, "_make_lookups", lambda *_: replacement())

    return install


async def test_addresses_need_no_lookup_of_names(make: Callable[[Callable[[], Any]], None]) -> None:
    make(lambda: pytest.fail("dnspython was imported"))
    discovery = DnsDiscovery("10.0.0.1, fd00::1")
    answer = await discovery.lookup()
    assert answer.addresses == ("10.0.0.1", "fd00::1")
    assert discovery.source == "a list of 2 addresses"
    await discovery.close()


async def test_the_first_lookup_of_a_name_makes_it_in_a_thread(
    make: Callable[[Callable[[], Any]], None],
) -> None:
    made: list[Lookups] = []

    def lookups() -> Lookups:
        made.append(Lookups())
        return made[-1]

    make(lookups)
    discovery = DnsDiscovery("a.test, 10.0.0.1")
    assert discovery.source == 'DNS name "a.test" and 1 address'
    assert made == []
    await discovery.close()
    for _ in range(2):
        assert (await discovery.lookup()).addresses == ("10.0.0.1", "10.0.0.2")
    assert discovery.source == 'DNS name "a.test" at 10.9.9.9 and 1 address'
    assert [each.runs for each in made] == [2]
    assert made[0].made_in is not threading.current_thread()
    await discovery.close()
    assert made[0].is_closed


def make_slowly(make: Callable[[Callable[[], Any]], None]) -> threading.Event:
    """Let the import last until the event that is returned is set."""
    may_end = threading.Event()

    def slow() -> Lookups:
        may_end.wait(30)
        return Lookups()

    make(slow)
    return may_end


async def test_the_loop_goes_on_meanwhile_and_a_lookup_has_its_bound(
    make: Callable[[Callable[[], Any]], None],
) -> None:
    may_end = make_slowly(make)
    discovery = DnsDiscovery("a.test", lifetime_s=0.01)
    answer = await discovery.lookup()
    assert answer.outcome is Outcome.FAILED
    assert answer.detail == "the import of dnspython has taken longer than 0.01 s so far"
    may_end.set()
    discovery._lifetime_s = 30.0
    assert await discovery.lookup() == FOUND


async def test_who_looks_once_can_wait_for_the_import_before(
    make: Callable[[Callable[[], Any]], None],
) -> None:
    may_end = make_slowly(make)
    discovery = DnsDiscovery("a.test", lifetime_s=0.01)
    await discovery.prepare(0.01)
    assert (await discovery.lookup()).outcome is Outcome.FAILED
    asyncio.get_running_loop().call_later(0.02, may_end.set)
    await discovery.prepare(30)
    assert await discovery.lookup() == FOUND
    await discovery.prepare(30)
    await DnsDiscovery("10.0.0.1").prepare(30)  # There is nothing to wait for.


async def test_the_next_lookup_waits_for_the_import_that_has_begun(
    make: Callable[[Callable[[], Any]], None],
) -> None:
    may_end = threading.Event()
    begun = 0

    def slow() -> Lookups:
        nonlocal begun
        begun += 1
        may_end.wait(30)
        return Lookups()

    make(slow)
    discovery = DnsDiscovery("a.test", lifetime_s=0.01)
    for _ in range(3):
        assert (await discovery.lookup()).outcome is Outcome.FAILED
    may_end.set()
    discovery._lifetime_s = 30.0
    assert [await discovery.lookup() for _ in range(2)] == [FOUND, FOUND]
    assert begun == 1


async def test_without_a_thread_the_lookup_has_failed_and_the_next_one_tries_again(
    make: Callable[[Callable[[], Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Lookups)
    discovery = DnsDiscovery("a.test")
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        for _ in range(2):
            assert await discovery.lookup() == Answer(
                Outcome.FAILED,
                (),
                "dnspython has not been imported, since no thread could be started for it (can't start new "
                "thread; perhaps this process or its container has reached its limit of threads)",
            )
    assert await discovery.lookup() == FOUND


async def test_an_error_of_the_lookup_itself_is_not_taken_for_a_slow_import(
    make: Callable[[Callable[[], Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def time_out(_lookups: Lookups) -> list[tuple[str, Answer]]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(Lookups, "run", time_out)
    make(Lookups)
    answer = await DnsDiscovery("a.test").lookup()
    assert (answer.outcome, answer.detail) == (Outcome.FAILED, "TimeoutError: no answer")


async def test_a_failed_import_is_a_failed_lookup(make: Callable[[Callable[[], Any]], None]) -> None:
    is_there = False

    def load() -> Lookups:
        if not is_there:
            raise ImportError("No module named 'dns'")
        return Lookups()

    make(load)
    discovery = DnsDiscovery("a.test")
    for _ in range(2):
        answer = await discovery.lookup()
        assert (answer.outcome, answer.detail) == (Outcome.FAILED, "ImportError: No module named 'dns'")
    is_there = True
    assert await discovery.lookup() == FOUND


async def test_a_lookup_can_be_cancelled_meanwhile(make: Callable[[Callable[[], Any]], None]) -> None:
    may_end, began = threading.Event(), threading.Event()

    def slow() -> Lookups:
        began.set()
        may_end.wait(30)
        return Lookups()

    make(slow)
    task = asyncio.ensure_future(DnsDiscovery("a.test", lifetime_s=30.0).lookup())
    await asyncio.to_thread(began.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()


def test_a_name_server_of_the_program_is_asked_with_its_scope() -> None:
    made = dns._make_lookups(["a.test"], ("fe80::1%lo", 5353), 1.0, ("/none", "/none", "/none"), None)
    assert made.describe_servers() == "[fe80::1%lo]:5353"


def test_importing_it_imports_no_dnspython() -> None:
    program = "import sys, fleetlm.discovery.dns as d; print([m for m in sys.modules if m[:3] == 'dns'])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
