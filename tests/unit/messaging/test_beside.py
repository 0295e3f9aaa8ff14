"""Large messages are unpacked beside the loop."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from fleetlm.messaging import beside
from fleetlm.messaging.chunks import Whole
from fleetlm.wire.codec import BadData, Codec


def whole(packed: bytes) -> Whole:
    return Whole(packed, (), len(packed), 1)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_off_while_a_thread_unpacks_and_only_then(
    is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(beside, "_let_others_run", lambda: seen.append(gc.isenabled()))
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        value = list(range(100_000))
        assert beside.unpack(Codec(), whole(Codec().pack_value(value)), 16) == (value, 0)
        assert gc.isenabled() is is_on
        with pytest.raises(BadData):
            beside.unpack(Codec(), whole(b"\xc1"), 16)
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if was_on else gc.disable)()
    assert seen
    assert not any(seen)


def test_other_threads_run_between_two_slices() -> None:
    beside._let_others_run()


def test_the_collector_is_on_again_after_the_last_of_several_threads() -> None:
    was_on = gc.isenabled()
    gc.enable()
    try:
        with beside._NO_COLLECTION:
            with beside._NO_COLLECTION:
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled()
    finally:
        (gc.enable if was_on else gc.disable)()
