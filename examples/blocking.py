"""Processes that run blocking code in a thread or in a worker process, while their node stays responsive.

``python blocking.py`` serves a driver that only waits and a computation that holds the GIL. It shows that
the node replies to other calls meanwhile, which errors failures raise, and that a dead worker is replaced.
"""

from __future__ import annotations

import asyncio
import os
import time

from fleetlm import Call, Node, Process, Settings, WorkerDied

PORT = int(os.environ.get("EXAMPLE_PORT", "24388"))


def query(key: str) -> str:
    """Stand in for a blocking driver: it waits, and releases the GIL."""
    time.sleep(0.2)
    return f"row of {key}"


def primes(below: int) -> int:
    """Stand in for a computation: in a thread it would hold up the event loop."""
    if below < 0:
        raise ValueError("primes are positive")
    return sum(all(number % by for by in range(2, int(number**0.5) + 1)) for number in range(2, below))


def out_of_memory(_: int) -> int:
    """Stand in for a native library that crashes its process."""
    os._exit(9)


WORK = {"primes": primes, "crash": out_of_memory}


async def database(process: Process) -> None:
    """Serve calls concurrently: each has its own task, and the pool bounds how many run at a time."""

    async def answer(call: Call) -> None:
        call.reply(await process.node.run_blocking(query, call.message))

    async with asyncio.TaskGroup() as tasks:
        async for message in process.mailbox:
            if isinstance(message, Call):
                tasks.create_task(answer(message))


async def calculator(process: Process) -> None:
    """Serve one call at a time: the function runs in another process, and the event loop stays free."""
    async for message in process.mailbox:
        match message:
            case Call(message=(what, argument)):
                try:
                    message.reply(await process.node.run_in_process(WORK[what], argument))
                except (ValueError, WorkerDied) as error:
                    message.fail(error)


async def heart(process: Process) -> None:
    """Reply at once, which shows that the event loop runs."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply("beat")


async def main() -> None:
    """Call all three on one node; calls from another node look the same."""
    settings = Settings(node_ip="127.0.0.1", node_ports=(PORT, PORT), remote=False, blocking_processes=1)
    async with Node.start(settings) as node:
        node.spawn(database, name="database")
        node.spawn(calculator, name="calculator")
        node.spawn(heart, name="heart")

        began = time.perf_counter()
        rows = asyncio.gather(*(node.call("database", f"k{number}") for number in range(8)))
        count = asyncio.create_task(node.call("calculator", ("primes", 100_000), timeout=20))
        beats = 0
        while not rows.done():
            await node.call("heart", None)
            await asyncio.sleep(0.01)
            beats += 1
        took_s = time.perf_counter() - began
        print(f"{len(await rows)} queries of 200 ms took {'less' if took_s < 1.0 else 'more'} than a second")
        print("meanwhile the node was", "alive" if beats > 3 else "held up")
        print("primes:", await count)

        for request in (("primes", -1), ("crash", 0), ("primes", 10)):
            try:
                print(request, "→", await node.call("calculator", request, timeout=20))
            except Exception as error:  # noqa: BLE001  # every kind of error is shown
                print(request, "→", error)


if __name__ == "__main__":  # A worker process imports this file, and must not start a node.
    asyncio.run(main())
