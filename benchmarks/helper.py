"""The main module of a helper process: ``python -m benchmarks.helper MODULE:FUNCTION CONFIG``.

The function gets a `Parent` and the config. This module imports nothing that a floor does not need.
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
    """The process that started this one; connected by stdin and stdout."""

    def report(self, **facts: object) -> None:
        """Send facts to the parent, as one line of JSON."""
        sys.stdout.write(f"{json.dumps(facts)}\n")
        sys.stdout.flush()

    def read_commands(self) -> Iterator[str]:
        """Yield the parent's commands until it closes the pipe. Blocks the thread."""
        for line in sys.stdin:
            yield line.strip()

    async def read_command(self) -> str:
        """Return the next command; empty when the parent has closed the pipe. Does not block the loop."""
        import asyncio  # noqa: PLC0415

        line: str = await asyncio.to_thread(sys.stdin.readline)
        return line.strip()

    async def wait_until_closed(self) -> None:
        """Wait until the parent closes the pipe."""
        while await self.read_command():
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
    """Import the function that the command line names, and call it.

    If the config has a ``tree``, the checkout of another commit, fleetlm is imported from there.
    """
    module, _, name = sys.argv[1].partition(":")
    config = json.loads(sys.argv[2])
    if "tree" in config:
        sys.path.insert(0, config["tree"])
        found = importlib.import_module("fleetlm").__file__
        if not str(found).startswith(config["tree"]):
            raise SystemExit(f"fleetlm comes from {found}, not from {config['tree']}")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    function(Parent(), config)


if __name__ == "__main__":
    main()
