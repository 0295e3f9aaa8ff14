"""When a node is ready, and what its checks may do."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from fleetlm import Readiness
from tests.sim.fleet import A, B, Fleet, simulated


async def is_loaded(answer: object) -> object:
    await asyncio.sleep(0)
    return answer


class Loaded:
    async def __call__(self) -> bool:
        return True


@simulated
async def test_a_node_is_ready_from_its_start_to_its_end(fleet: Fleet) -> None:
    node = await fleet.start(A)
    assert await node.readiness() == Readiness(node.name, True, 0, ())
    assert str(await node.readiness()) == f"{node.name} is ready, connected to 0"
    await node.stop()
    assert (await node.readiness()).reasons == ("it has stopped",)


@simulated
async def test_a_node_that_drains_is_not_ready(fleet: Fleet) -> None:
    node = await fleet.start(A)
    await node.drain()
    assert str(await node.readiness()) == f"{node.name} is not ready: it is draining"


@simulated
async def test_a_node_with_too_few_peers_is_not_ready(fleet: Fleet) -> None:
    node, _ = await fleet.mesh(2)
    assert (await node.readiness(1)).is_ready
    found = await node.readiness(2)
    assert (found.connected, found.reasons) == (1, ("it is connected to 1 node(s), and 2 are needed",))


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (lambda: True, ""),
        (lambda: "loaded", ""),
        (lambda: None, "says no"),
        (lambda: 0, "says no"),
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (functools.partial(is_loaded, True), ""),
        (functools.partial(is_loaded, False), "says no"),
        (lambda: is_loaded(True), ""),
        (lambda: is_loaded(None), "says no"),
        (Loaded(), ""),
        (functools.partial(asyncio.sleep, 10, True), "was not done within 3 s (Settings.check_s)"),
    ],
)
@simulated
async def test_a_check_says_whether_the_node_is_ready(fleet: Fleet, check: Any, reason: str) -> None:
    node = await fleet.start(A)
    node.add_check("model", check)
    found = await node.readiness()
    assert (found.is_ready, found.reasons) == (not reason, (f"the check model {reason}",) if reason else ())
    assert node.remove_check("model")
    assert not node.remove_check("model")
    assert (await node.readiness()).is_ready


@simulated
async def test_checks_run_at_the_same_time_and_each_reason_is_told(fleet: Fleet) -> None:
    node = await fleet.start(B)
    for name in ("a", "b", "c"):
        node.add_check(name, functools.partial(asyncio.sleep, 2.9, name != "b"))
    began = fleet.loop.time()
    assert (await node.readiness()).reasons == ("the check b says no",)
    assert fleet.loop.time() - began < 3.0
    node.add_check("b", lambda: True)  # It replaces the former one of that name.
    assert (await node.readiness()).is_ready


@simulated
async def test_checks_are_functions_and_their_number_is_limited(fleet: Fleet) -> None:
    node = await fleet.start(A, max_hooks=2)
    with pytest.raises(TypeError, match="the check 'x' must be a function without arguments, not True"):
        node.add_check("x", True)  # type: ignore[arg-type]
    node.add_check("a", lambda: True)
    node.add_check("b", lambda: True)
    node.add_check("b", lambda: True)
    with pytest.raises(ValueError, match="2 checks are there already"):
        node.add_check("c", lambda: True)
