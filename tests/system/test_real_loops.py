"""All features in one short run: on asyncio's loop, on uvloop, and with one of each."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.patience import allowed_s
from tests.system.cluster_tools import Fleet, all_sunk

pytest.importorskip("uvloop", reason="the extra `uvloop` is not installed")


COOKIE = "a secret for both loops"


@pytest.mark.parametrize(
    ("loops", "cookie"),
    [
        pytest.param(("uvloop", "uvloop"), None, id="uvloop-uvloop-plain"),
        pytest.param(("asyncio", "uvloop"), COOKIE, id="asyncio-uvloop-cookie"),
        pytest.param(("uvloop", "uvloop"), COOKIE, id="uvloop-uvloop-cookie", marks=pytest.mark.long),
        pytest.param(("asyncio", "uvloop"), None, id="asyncio-uvloop-plain", marks=pytest.mark.long),
    ],
)
async def test_all_features_in_a_short_run(loops: tuple[str, str], cookie: str | None) -> None:
    env = {"FLEETLM_COOKIE": cookie} if cookie else {}
    async with Fleet(static=(2, 3), **env) as fleet:  # type: ignore[arg-type]
        a, b = [await fleet.worker(n, loop=loop) for n, loop in zip((2, 3), loops, strict=True)]
        here, there = fleet.name(2), fleet.name(3)
        await asyncio.gather(*(w.ask("meshed", others=1, timeout=10.0) for w in (a, b)))
        trips = await a.ask("round_trips", to=there, count=200)
        assert len(trips) == 200
        await a.ask("flood", to=there, stream="a", size=200)
        await b.ask("flood", to=here, stream="b", size=200)
        await a.ask("bulk", to=there, size=3_000_000, count=2, stream="bulk")
        sent = [(await w.ask("flooded", stream=stream))["sent"] for w, stream in ((a, "a"), (b, "b"))]
        await all_sunk(b, {"a": sent[0], "bulk": 4})
        await all_sunk(a, {"b": sent[1]})
        print(f"{loops}: median call {sorted(trips)[100] * 1000:.2f} ms, {sent} messages each way")
        assert (await a.ask("call", to=there, name="nobody", message=1))["error"] == "NoProcess"
        assert (await a.ask("call", to=there, name="slow", message=1, timeout=0.1))["error"] == "CallTimeout"
        assert (await b.ask("reconnected_by", name=here)) is True
        left = time.monotonic()
        assert await a.ask("stop") < allowed_s(2.0)
        down = await fleet.down(there, here, since=left)
        assert down.reason == "left: shutdown"
        assert await a.exit_code() == 0
