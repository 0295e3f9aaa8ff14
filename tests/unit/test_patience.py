"""Limits of tests are stretched where the machine is busy."""

from __future__ import annotations

import os

import pytest

from tests.support import patience
from tests.support.patience import allowed_s, stretched


@pytest.mark.parametrize(
    ("load", "cores", "limit_s", "bound_s"),
    [(0.1, 2, 20, 10), (3.0, 2, 20, 15), (8.0, 2, 40, 40), (90.0, 2, 100, 100), (9.0, None, 90, 90)],
)
def test_a_limit_grows_with_the_load_of_a_core(
    load: float, cores: int | None, limit_s: int, bound_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert stretched(10.0) == limit_s
    assert allowed_s(10.0) == bound_s


def test_a_limit_has_an_end() -> None:
    assert patience.LEAST <= stretched(1.0) <= patience.MOST
