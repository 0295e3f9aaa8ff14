"""The worker of the container tests: records every nodeup and nodedown with its time.

`fleetlm remote "sys.modules['recorder'].events"` reads it from outside.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import fleetlm

events: list[tuple[float, str, str, int, str]] = []
"""(seconds since the epoch, "NodeUp" or "NodeDown", node, incarnation, reason)."""


async def main(node: fleetlm.Node) -> None:
    async for event in node.events():
        if not hasattr(event, "incarnation"):
            continue
        kind, reason = type(event).__name__, str(getattr(event, "reason", ""))
        events.append((time.time(), kind, str(event.node), event.incarnation, reason))
