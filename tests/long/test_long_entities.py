"""Sessions on three real hosts that are restarted, killed and frozen while a fourth node appends to them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import allowed_s, slowness
from tests.system.entity_fleet import WORKERS, EntityFleet
from tests.system.entity_ledger import REFUSED, UNKNOWN
from tests.system.program_fleet import STORE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long
ROUNDS = 3
PAUSE_S = 0.25
"""Within this time 99 of 100 requests have their answers, while hosts leave and come."""
LEASE_S = 1.5
LEASE_MAX_S = 6.0
TAKES_OVER_S = 20.0
"""Seconds until others serve the sessions of a host that is frozen."""
LOOK_S = 0.25
MANY = 200
"""Requests without which a story tells nothing. A busy machine is given fewer of them in a second."""


@pytest.mark.alone
@pytest.mark.deadline(180)
@pytest.mark.parametrize("lease_s", [0.0, LEASE_S], ids=["available", "quorum"])
def test_rolling_restarts_leave_no_gap_and_fail_no_request(tmp_path: Path, lease_s: float) -> None:
    with EntityFleet(tmp_path, {"ENTITY_LEASE_S": str(lease_s)}) as rolling:
        codes = [rolling.restart(number) for _ in range(ROUNDS) for number in WORKERS]
        account = rolling.end_calls()
    pauses = {share: round(account.pause_s(share) * 1e3, 1) for share in (0.5, 0.99, 0.999, 1.0)}
    print(f"{len(account.asked)} requests; milliseconds until they ended, by share: {pauses}")
    assert account.complaints() == []
    assert set(codes) == {0}
    assert len(account.lines) == 1_000
    assert account.pause_s(0.99) < allowed_s(PAUSE_S)


@pytest.mark.deadline(180)
def test_after_kills_everything_that_was_acknowledged_is_in_the_store(tmp_path: Path) -> None:
    rng = random.Random(11)
    env = {"ENTITY_STORE": str(tmp_path / STORE), "ENTITY_IDLE_S": "2", "ENTITY_SESSIONS": "200"}
    with EntityFleet(tmp_path, env) as fleet:
        for _ in range(2 * ROUNDS):
            fleet.kill(rng.choice(WORKERS))
        account = fleet.end_calls()
    print(f"{len(account.took)} requests were acknowledged, {len(account.ended[UNKNOWN])} are in doubt")
    assert account.complaints(UNKNOWN) == []
    assert account.ended[UNKNOWN]
    assert len(account.took) > MANY


@pytest.mark.alone
@pytest.mark.deadline(180)
def test_an_owner_that_was_frozen_is_fenced_before_it_serves(tmp_path: Path) -> None:
    lease_s = min(LEASE_MAX_S, LEASE_S * slowness(1.0))
    env = {
        "ENTITY_LEASE_S": str(lease_s),
        "FLEETLM_NODE_TIMEOUT_MS": str(int(lease_s * 1_000)),
        "ENTITY_OWN_CALLS": "30",
        "ENTITY_SESSIONS": "200",
        "ENTITY_STORE": str(tmp_path / STORE),
    }
    with EntityFleet(tmp_path, env) as fleet:
        for number in WORKERS:
            freeze(fleet, number)
        account = fleet.end_calls(1 + len(WORKERS))
    ends = {what: len(requests) for what, requests in account.ended.items()}
    print(f"{len(account.took)} requests were acknowledged; others: {ends}")
    assert account.complaints(UNKNOWN, REFUSED) == []
    assert len(account.took) > MANY


def freeze(fleet: EntityFleet, number: int) -> None:
    """Freeze a host until the others serve its sessions, and wait until it serves again itself."""
    name = fleet.fleet.name(number)

    def owned() -> set[str]:
        runs = fleet.account().runs
        return {key for key in runs if key.startswith("s-") and max(runs[key]).node.startswith(name)}

    fleet.wait(owned, TAKES_OVER_S, f"{name} serves no session", LOOK_S)
    mine = owned()
    frozen_at = fleet.freeze(number)

    def is_taken_over() -> bool:
        runs = fleet.account().runs
        return all(max(runs[key]).at > frozen_at for key in mine)

    try:
        fleet.wait(is_taken_over, TAKES_OVER_S, f"nobody has taken over from {name}", LOOK_S)
    finally:
        thawed_at = fleet.thaw(number)

    def serves_again() -> bool:
        return any(
            run.node.startswith(name) and run.at > thawed_at
            for runs in fleet.account().runs.values()
            for run in runs
        )

    fleet.wait(serves_again, TAKES_OVER_S, f"{name} does not serve again", LOOK_S)
