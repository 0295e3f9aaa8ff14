"""Nodes that are stopped, busy, killed, restarted, reconnected and attacked, at full length."""

from __future__ import annotations

import statistics

import pytest

from tests.system.test_real_large import MIB, beside, both_ways
from tests.system.test_real_liveness import held, stopped_and_continued
from tests.system.test_real_restarts import SEEN_WITHIN_S, crashes, reconnects, replaced
from tests.system.test_real_strangers import COOKIES, harassed, kept_out
from tests.transport.test_strangers import CURVE_GREETING, GREETING, READY, close_early

pytestmark = pytest.mark.long


@pytest.mark.deadline(120)
async def test_stopped_and_continued_again_and_again() -> None:
    await stopped_and_continued(rounds=4)


@pytest.mark.alone
@pytest.mark.deadline(120)
async def test_the_gil_held_for_twenty_seconds_under_a_flood() -> None:
    await held(seconds=20.0)


@pytest.mark.alone
@pytest.mark.deadline(120)
async def test_thirty_restarts_within_milliseconds_under_traffic() -> None:
    assert min(await replaced(rounds=30)) < 0.05, "at least one restart must be within 50 ms of the kill"


@pytest.mark.alone
@pytest.mark.deadline(120)
@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
async def test_twenty_crashes_are_seen_at_once(loaded: bool) -> None:
    seen = await crashes(rounds=20, loaded=loaded)
    assert statistics.median(seen) < SEEN_WITHIN_S


@pytest.mark.deadline(180)
async def test_a_hundred_reconnects_leave_descriptors_and_memory_flat() -> None:
    await reconnects(count=100, warm_up=20)


@pytest.mark.alone
@pytest.mark.deadline(120)
async def test_large_messages_for_a_while() -> None:
    await beside(60 * MIB, count=15)
    for _ in range(4):
        await both_ways(60 * MIB)


@pytest.mark.parametrize("cookie", [None, COOKIES[0]], ids=["plain", "cookie"])
@pytest.mark.deadline(60)
async def test_strangers_for_a_while(cookie: str | None) -> None:
    await harassed(cookie, 15.0)


@pytest.mark.parametrize(
    ("mine", "other"), [COOKIES, (COOKIES[0], None)], ids=["two_cookies", "one_has_none"]
)
@pytest.mark.deadline(60)
async def test_kept_out_for_a_while(mine: str, other: str | None, caplog: pytest.LogCaptureFixture) -> None:
    await kept_out(mine, other, 15.0, caplog)


@pytest.mark.parametrize("cookie", [None, COOKIES[0]], ids=["plain", "cookie"])
@pytest.mark.parametrize(
    "said",
    [b"", GREETING[:32], CURVE_GREETING[:32], GREETING + READY],
    ids=["nothing", "half_a_greeting", "half_a_greeting_of_curve", "a_handshake"],
)
@pytest.mark.deadline(180)
async def test_20_000_connections_that_close_early_leave_no_descriptor(
    cookie: str | None, said: bytes
) -> None:
    await close_early(cookie, said, count=20_000)
