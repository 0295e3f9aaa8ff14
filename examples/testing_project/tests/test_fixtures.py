"""An async fixture on the test's own event loop, as docs/testing.md shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from counter import COUNTER, add, ask, counter

from fleetlm import Node
from fleetlm.testing import Fleet


@pytest.fixture
async def counting(fleet: Fleet) -> AsyncIterator[Node]:
    node = await fleet.node()
    node.spawn(counter, name=COUNTER)
    yield node
    assert await ask(node, node.name, "value") > 0  # The cluster still runs here.


async def test_another_node_may_count(fleet: Fleet, counting: Node) -> None:
    client = await fleet.node()
    assert await add(client, [counting.name]) == 1
