"""Limits of tests are stretched where the machine is busy."""

from __future__ import annotations

import os

import pytest

from tests.support import patience
from tests.support.patience import stretched


@pytest.mark.parametrize(
    ("load", "cores", "limit_s"),
    [(0.1, 2, 20.0), (8.0, 2, 40.0), (10.0, 2, 50.0), (90.0, 2, 100.0), (9.0, None, 90.0)],
)
def test_a_limit_grows_with_the_load_of_a_core(
    load: float, cores: int | None, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert stretched(10.0) == limit_s


def test_a_limit_has_an_end() -> None:
    assert patience.LEAST <= stretched(1.0) <= patience.MOST
