"""Keys of cookies are derived cheaply in these tests: what a derivation costs is the subject of a few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleetlm.transport import curve


@pytest.fixture
def full_price() -> None:
    """For tests of what a derivation costs, and of the keys that come of it: they are as in production."""


@pytest.fixture(autouse=True)
def _cheap_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a derivation take milliseconds instead of a quarter of a second, for this test alone."""
    if "full_price" in request.fixturenames:
        yield
        return
    monkeypatch.setattr(curve, "SCRYPT_N", 2**8)
    curve.keys_from_cookie.cache_clear()
    yield
    curve.keys_from_cookie.cache_clear()
