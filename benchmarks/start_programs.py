"""The programs that `benchmarks.start` launches. They import only what they need, as that is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.helper import Parent

if TYPE_CHECKING:
    from fleetlm import Node


def embedded(parent: Parent, _config: dict[str, Any]) -> None:
    """Run a node embedded in a program, on asyncio's loop."""
    import asyncio  # noqa: PLC0415

    import fleetlm  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm.Node.start():
            parent.report()
            await parent.wait_until_closed()

    asyncio.run(main())


def with_metrics(parent: Parent, _config: dict[str, Any]) -> None:
    """Run a node whose metrics are counted and can be rendered."""
    import asyncio  # noqa: PLC0415

    import fleetlm  # noqa: PLC0415
    from fleetlm.metrics import NodeMetrics  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm.Node.start() as node:
            with NodeMetrics(node):
                parent.report()
                await parent.wait_until_closed()

    asyncio.run(main())


def with_tracing(parent: Parent, _config: dict[str, Any]) -> None:
    """Run a node that is traced."""
    import asyncio  # noqa: PLC0415

    import fleetlm  # noqa: PLC0415
    from fleetlm import tracing  # noqa: PLC0415

    async def main() -> None:
        async with fleetlm.Node.start() as node:
            with tracing.instrument(node):
                parent.report()
                await parent.wait_until_closed()

    asyncio.run(main())


def with_ops(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node with the ops listener, at another address and the same port."""
    import asyncio  # noqa: PLC0415

    import fleetlm  # noqa: PLC0415
    from fleetlm import Settings  # noqa: PLC0415

    async def main() -> None:
        settings = Settings.from_env().replace(ops=f"127.0.0.2:{config['port']}")
        async with fleetlm.Node.start(settings):
            parent.report()
            await parent.wait_until_closed()

    asyncio.run(main())


async def ready(_node: Node) -> None:
    """The application of ``fleetlm start``: report that the node is ready."""
    parent = Parent()
    parent.report()
    await parent.wait_until_closed()


def parts(parent: Parent, config: dict[str, Any]) -> None:
    """Import the libraries that a node needs, and bind one socket."""
    import asyncio  # noqa: PLC0415

    import msgpack  # noqa: PLC0415

    from benchmarks import raw  # noqa: PLC0415

    async def main() -> None:
        sock, context = raw.router(config["port"], "127.0.0.1")
        reader = raw.FdReader(sock, lambda: None)
        msgpack.packb(None)
        parent.report()
        await parent.wait_until_closed()
        reader.close()
        context.destroy(0)

    asyncio.run(main())


def bare(parent: Parent, _config: dict[str, Any]) -> None:
    """Run the interpreter alone."""
    parent.report()
    for _ in parent.read_commands():
        pass
