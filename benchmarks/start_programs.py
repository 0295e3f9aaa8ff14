"""What `benchmarks.start` launches. Only what a program needs is imported, as that is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.helper import Parent

if TYPE_CHECKING:
    from fleetlm import Node


def embedded(parent: Parent, _config: dict[str, Any]) -> None:
    """A program of its own, on asyncio's loop."""
    import asyncio  # noqa: PLC0415

    import fleetlm  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm.Node.start():
            parent.say()
            await parent.gone()

    asyncio.run(main())


async def ready(_node: Node) -> None:
    """For ``fleetlm start``."""
    parent = Parent()
    parent.say()
    await parent.gone()


def parts(parent: Parent, config: dict[str, Any]) -> None:
    """The libraries that a node cannot do without, and one bound socket."""
    import asyncio  # noqa: PLC0415

    import msgpack  # noqa: PLC0415

    from benchmarks import raw  # noqa: PLC0415

    async def main() -> None:
        sock, context = raw.router(config["port"], "127.0.0.1")
        reader = raw.FdReader(sock, lambda: None)
        msgpack.packb(None)
        parent.say()
        await parent.gone()
        reader.close()
        context.destroy(0)

    asyncio.run(main())


def bare(parent: Parent, _config: dict[str, Any]) -> None:
    """The interpreter."""
    parent.say()
    for _ in parent.commands():
        pass
