"""Workers of `multiprocessing`, forked and spawned, each of them a node: ``python workers.py``.

A node does not survive a fork, so each worker starts its own node, in the function that it runs. A program
that forks its workers has no node itself while it forks. With spawned workers it may have one.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess

from fleetlm import Actor, Node, Settings, handler

WORKERS = 2
SETTINGS = Settings.from_env({"FLEETLM_NODE_IP": "127.0.0.1", "DNS_CLUSTER_QUERY": "127.0.0.1", **os.environ})


class Model(Actor):
    """Stand in for what a worker has loaded."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def who(self) -> int:
        return os.getpid()


def work() -> None:
    """Run one worker. SIGTERM ends it: the node finishes what it has begun, and leaves."""
    asyncio.run(serve())


async def serve() -> None:
    """Start the node here: after the fork, in the worker's process."""
    async with Node.start(SETTINGS) as node:
        node.spawn(Model)
        await node.wait_stopped()


def start(context: ForkContext | SpawnContext) -> list[BaseProcess]:
    """Start the workers."""
    workers: list[BaseProcess] = [context.Process(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    return workers


async def ask(workers: list[BaseProcess]) -> None:
    """Start a node beside the workers, and ask each of them who it is."""
    async with Node.start(SETTINGS) as node:
        changes = node.groups.watch("models")
        while len(node.groups.members("models")) < WORKERS:
            await anext(changes)
        pids = await node.groups.refs(Model, "models").multicall(Model.who)
        print(f"{len(node.list('host'))} more nodes beside {node.name}")
        print("they are the workers:", set(pids) == {worker.pid for worker in workers})


def main() -> None:
    """Do it with forked workers, then with spawned ones."""
    for context in (multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")):
        workers = start(context)
        asyncio.run(ask(workers))
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
