"""Rolling restarts of five real nodes under load: no request fails and none runs twice."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.system.rolling_fleet import CALLERS, NODES, RollingFleet

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long
ROUNDS = 10


@pytest.mark.deadline(600)
def test_ten_rolling_restarts_fail_no_request_and_run_none_twice(tmp_path: Path) -> None:
    with RollingFleet(tmp_path) as rolling:
        codes = [rolling.restart(number) for _ in range(ROUNDS) for number in NODES]
        rolling.end_calls()
        account = rolling.account()
    print(f"{len(account.asked)} requests; ended well, by kind: {dict(account.kinds())}")
    assert account.complaints() == []
    assert set(codes) == {0}
    assert set(account.kinds()) == {"group", "name", "fixed", "stream"}


@pytest.mark.deadline(600)
def test_kills_leave_only_what_was_running_in_doubt(tmp_path: Path) -> None:
    rng = random.Random(9)
    with RollingFleet(tmp_path) as rolling:
        for _ in range(ROUNDS):
            rolling.kill(rng.choice([number for number in NODES if number not in CALLERS]))
        rolling.end_calls()
        account = rolling.account()
    unknown = account.ended("unknown")
    print(f"{len(account.asked)} requests, {len(unknown)} in doubt: {account.kinds()}")
    assert account.complaints(after_kill=True) == []
