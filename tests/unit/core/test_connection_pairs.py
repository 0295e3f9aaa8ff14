"""Two and three kernels on a network of queues: any interleaving, any loss, any restart."""

from __future__ import annotations

import pytest

from tests.support.tiny_network import TinyNetwork

SETTLED_WITHIN_S = 30.0
"""A silence, a connect and a handshake that time out, and the longest back-off, all in a row."""
STEPS = 150


def story(seed: int, size: int) -> TinyNetwork:
    net = TinyNetwork(seed, size)
    net.chaos(STEPS)
    net.heal()
    net.quiet(SETTLED_WITHIN_S)
    net.converse()
    return net


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("block", range(15))
def test_whatever_happened_all_nodes_connect_in_the_end(size: int, block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        try:
            story(seed, size)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"seed {seed}: story({seed}, {size})") from error
