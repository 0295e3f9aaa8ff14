"""The inside of a helper process: ``python -m benchmarks.helper MODULE:FUNCTION CONFIG``.

The function gets a `Parent` and the config. Nothing that a floor may do without is imported here.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterator


class Parent:
    """The process that started this one."""

    def say(self, **facts: object) -> None:
        """Say a line."""
        sys.stdout.write(f"{json.dumps(facts)}\n")
        sys.stdout.flush()

    def commands(self) -> Iterator[str]:
        """What it says, until it ends. Blocks the thread."""
        for line in sys.stdin:
            yield line.strip()

    async def command(self) -> str:
        """The next thing that it says, or an empty string at its end. Does not block the loop."""
        import asyncio  # noqa: PLC0415

        line: str = await asyncio.to_thread(sys.stdin.readline)
        return line.strip()

    async def gone(self) -> None:
        """Wait for its end."""
        while await self.command():
            pass


def run_loop(main: Coroutine[Any, Any, None], loop: str) -> None:
    """Run a coroutine on uvloop or on asyncio's own loop."""
    import asyncio  # noqa: PLC0415

    if loop == "uvloop":
        import uvloop  # noqa: PLC0415

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def main() -> None:
    """Find the function and call it."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    function(Parent(), json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
