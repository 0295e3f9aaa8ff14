"""`Fleet` without its fixture, under Hypothesis: docs/testing.md shows this test."""

from __future__ import annotations

from hypothesis import given, strategies as st

import fleetlm.testing
from fleetlm.testing import Fleet


@given(st.integers(0, 1000))
def test_two_nodes_meet_with_any_seed(seed: int) -> None:
    async def main() -> None:
        async with Fleet(seed) as fleet:
            one, two = await fleet.start(2)
            assert one.list() == [two.name]

    fleetlm.testing.run(main(), seed=seed)
