"""Two thousand soak runs of actors that feed themselves, cast and call in circles, and end in every way."""

from __future__ import annotations

import pytest

from tests.sim.seeded import named
from tests.sim.soak_circles import play

pytestmark = pytest.mark.long
BLOCK = 100


@pytest.mark.parametrize("seeds", [range(at, at + BLOCK) for at in range(12, 2_012, BLOCK)], ids=named)
def test_soak_circles(seeds: range) -> None:
    for seed in seeds:
        try:
            play(seed)
        except BaseException as error:
            error.add_note(f"replay: python -m tests.sim.soak_circles {seed} {seed + 1}")
            raise
