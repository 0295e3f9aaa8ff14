"""Hooks of a node that leaves: which run, in what order, and what a bad one may spoil."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest

from fleetlm.errors import NodeStopped
from fleetlm.runtime.hooks import PHASES, LeavingHooks
from fleetlm.runtime.user_functions import UserFunctions
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run


def hooks(**settings: Any) -> LeavingHooks:
    made = Settings(**settings)
    return LeavingHooks("fleetlm@10.0.0.1", made, UserFunctions("fleetlm@10.0.0.1", made))


def now() -> float:
    return SimLoop.current().time()


def test_the_hooks_of_a_phase_begin_in_their_order_and_run_at_the_same_time() -> None:
    async def main() -> None:
        told: list[str] = []

        async def slow(name: str) -> None:
            told.append(name)
            await asyncio.sleep(2)
            told.append(f"{name} done")

        some = hooks()
        assert not some.has("before_drain")
        for name in ("a", "b"):
            some.add("before_drain", functools.partial(slow, name), None)
        some.add("before_drain", lambda: told.append("plain"), None)
        some.add("after_drain", lambda: told.append("later"), None)
        await some.run("before_drain", now() + 60)
        assert now() == 2
        assert told == ["a", "b", "plain", "a done", "b done"]
        await some.run("before_stop", now() + 60)
        await some.run("after_drain", now() + 60)
        assert told[-1] == "later"

    run(main())


def test_a_hook_that_raises_or_takes_too_long_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        told: list[str] = []

        async def broken() -> None:
            raise ValueError("boom")

        async def endless() -> None:
            try:
                await asyncio.sleep(1_000)
            finally:
                told.append("cancelled")

        some = hooks(hook_s=3)
        some.add("after_drain", broken, None)
        some.add("after_drain", endless, None)
        some.add("after_drain", lambda: told.append("fine"), None)
        await some.run("after_drain", now() + 60)
        assert now() == 3, "its own limit"
        assert told == ["fine", "cancelled"]
        await some.run("after_drain", now() + 1)
        assert now() == 4, "the limit of all"
        await some.run("after_drain", now())
        assert now() == 4
        assert told == ["fine", "cancelled"] * 2

    run(main())
    assert "broken (after_drain) of node fleetlm@10.0.0.1 raised; the node goes on" in caplog.text
    assert "ValueError: boom" in caplog.text
    assert "endless (after_drain) of node fleetlm@10.0.0.1 was not done within 3 s" in caplog.text
    assert "was not called: the time for leaving is over" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING, logging.ERROR}


def test_what_is_no_hook_is_refused() -> None:
    async def main() -> None:
        some = hooks(max_hooks=1)
        with pytest.raises(ValueError, match="'drain' is no phase of leaving; use one of before_drain, "):
            some.check("drain", None)
        for limit_s in (0, -1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=r"timeout is .*, not a finite number of seconds above 0"):
                some.add("before_drain", print, limit_s)
        with pytest.raises(TypeError, match="the phase is a keyword"):
            some.add("before_drain", "after_drain", None)  # type: ignore[arg-type]
        for phase in PHASES[:1]:
            some.add(phase, print, 1)
        with pytest.raises(ValueError, match="there are 1 hooks already"):
            some.add("before_stop", print, 1)

    run(main())


def test_what_a_plain_hook_needs_is_imported_when_it_is_registered() -> None:
    """A node that leaves may be of a version whose files are not there any more."""
    given = Settings()
    functions = UserFunctions("fleetlm@10.0.0.1", given)
    some = LeavingHooks("fleetlm@10.0.0.1", given, functions)

    async def leave() -> None:
        """Runs on the loop."""

    some.add("before_stop", leave, None)
    assert "threads" not in vars(functions)
    some.add("before_stop", print, None)
    assert "threads" in vars(functions)
    functions.close()


async def test_functions_that_are_closed_have_no_threads() -> None:
    functions = UserFunctions("fleetlm@10.0.0.1", Settings())
    functions.close()
    with pytest.raises(NodeStopped):
        await functions.run(print, 5)
