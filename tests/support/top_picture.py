"""Draws the picture of `fleetlm top` in docs/top.md from a simulated cluster.

python -m tests.support.top_picture docs/images/top.svg
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from pathlib import Path
from typing import Any

from fleetlm import Actor, Child, FleetError, Process, Supervisor, handler
from fleetlm.cli.top.app import TopApp
from fleetlm.cli.top.source import Look
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated

SIZE = (156, 27)


class Model(Actor):
    """Answers slowly, so that there is something to see."""

    async def init(self) -> None:
        self.node.groups.join("models", self.process.pid)

    @handler
    async def generate(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def user(process: Process, seed: int) -> None:
    """Asks one model after the other."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(0.0, 0.2))
        try:
            pid = process.node.groups.pick("models")
            await process.node.ref(Model, pid).within(20).call(Model.generate, rng.uniform(0.1, 1.2))
        except FleetError:
            continue


def looks() -> list[dict[str, Any]]:
    """Return two overviews of a cluster at work, a second apart."""
    seen: list[dict[str, Any]] = []

    @simulated
    async def look(fleet: Fleet) -> None:
        nodes = await fleet.mesh(3)
        for number, node in enumerate(nodes):
            children = [Child(each, Model, register=each) for each in ("llama", "whisper")]
            node.spawn(Supervisor(children), name="models")
            for nth in range(4):
                node.spawn(user, 10 * number + nth, name=f"user-{nth}")
        clock: SimLoop = fleet.loop  # All of this takes no time.
        await asyncio.sleep(30 - clock.time())
        for _ in range(2):
            seen.append(await nodes[0].overview())
            await asyncio.sleep(1)

    look()
    return seen


class _Nothing:
    """A source that sees nothing by itself."""

    node = ""

    def look(self) -> Look:
        return Look(None)

    def close(self) -> None:
        """Nothing is open."""


async def draw(overviews: list[dict[str, Any]]) -> str:
    """Return the view of processes as SVG, without the fonts of other hosts that textual names."""
    app = TopApp(_Nothing(), 3_600.0)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        for each in overviews:
            app.show_look(Look(each))
        await pilot.press("2")
        await pilot.pause()
        svg = app.export_screenshot(title="fleetlm top")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main(path: Path) -> None:
    """Write the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(asyncio.run(draw(looks())), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
