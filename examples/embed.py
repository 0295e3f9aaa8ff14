"""A node inside your own program: a server with an inference worker pool that spans machines.

Every replica runs this program. It accepts prompts on its own TCP port (a line in, a line out) and has one
*pool*, which collects prompts into batches and runs the model on each batch in a thread, so that the event
loop stays free. A replica gives each prompt to the pool of the next node in turn.

``python embed.py`` starts three replicas as processes on this machine and sends them prompts. A replica that
is stopped by SIGTERM finishes the prompts that it has taken.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from itertools import count

import fleetlm
from fleetlm import Call, Node, NotDelivered, Process, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
NODE_PORT = int(os.environ.get("EXAMPLE_PORT", "24376"))
LINE_PORT = NODE_PORT + 1
BATCH = 8
LINGER_S = 0.005
"""How long a batch waits to fill: a model takes about as long for eight prompts as for one."""


def model(prompts: list[str]) -> list[str]:
    """Stand in for a model on a GPU: slow, blocking, better in batches."""
    time.sleep(0.02)
    return [prompt.upper() for prompt in prompts]


async def pool(process: Process) -> None:
    """Collect calls into batches. Further calls wait in the mailbox, which is bounded."""
    while True:
        batch = [await process.receive()]
        until = time.monotonic() + LINGER_S
        while len(batch) < BATCH and (left_s := until - time.monotonic()) > 0:
            try:
                batch.append(await process.receive(timeout=left_s))
            except TimeoutError:
                break
        # Do not spend GPU time on callers that have given up meanwhile.
        calls = [call for call in batch if isinstance(call, Call) and call.wanted]
        texts = await asyncio.to_thread(model, [call.message for call in calls])
        for call, text in zip(calls, texts, strict=True):
            call.reply((text, process.node.name, len(calls)))


class Frontend:
    """The program's own server; it runs on the same event loop as the node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._turns = count()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: each line is a prompt."""
        while line := await reader.readline():
            text, by, batch = await self.infer(line.decode().strip())
            writer.write(f"{text} (on {by}, in a batch of {batch})\n".encode())
            await writer.drain()
        writer.close()

    async def infer(self, prompt: str) -> tuple[str, str, int]:
        """Call the next pool in turn; if the call never ran, because that node is gone, call another one."""
        while True:
            names = sorted([self.node.name, *self.node.list()])
            name = names[next(self._turns) % len(names)]
            try:
                reply: tuple[str, str, int] = await self.node.call(("pool", name), prompt, timeout=10)
            except NotDelivered:
                await asyncio.sleep(0.05)
            else:
                return reply


async def replica(node: Node) -> None:
    """Serve until SIGTERM. A pool that ends is a failure of the whole program, which then exits with 1."""
    node.spawn(pool, name="pool", essential=True)
    server = await asyncio.start_server(Frontend(node).serve, node.own_address.ip, LINE_PORT)
    async with server:
        await node.ready(len(ADDRESSES) - 1, timeout=10)
        print("ready", flush=True)
        await node.wait_stopped()


async def main() -> None:
    """Start three replicas, then send thirty prompts to the first one."""
    replicas = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, ip),
            stdout=asyncio.subprocess.PIPE,
        )
        for ip in ADDRESSES
    ]
    try:
        for each in replicas:
            assert each.stdout is not None
            if await each.stdout.readline() != b"ready\n":
                sys.exit("a replica did not start; see its error above")
        started = time.perf_counter()
        replies = await asyncio.gather(*(ask(f"prompt {number}") for number in range(30)))
        took_s = time.perf_counter() - started
        print(replies[0])
        nodes = Counter(reply.split("on ")[1].split(",")[0] for reply in replies)
        print(f"{len(replies)} prompts in {took_s * 1e3:.0f} ms on {len(nodes)} nodes: {dict(nodes)}")
    finally:
        for each in replicas:
            if each.returncode is None:
                each.terminate()
        codes = [await each.wait() for each in replicas]
        print("exit codes:", codes)


async def ask(prompt: str) -> str:
    """Send a prompt to the first replica over plain TCP, and return its reply."""
    reader, writer = await asyncio.open_connection(ADDRESSES[0], LINE_PORT)
    writer.write(f"{prompt}\n".encode())
    line = (await reader.readline()).decode().strip()
    writer.close()
    await writer.wait_closed()
    return line


if __name__ == "__main__":
    if len(sys.argv) > 1:
        settings = Settings(
            dns_query=",".join(ADDRESSES),
            node_ip=sys.argv[1],
            node_ports=(NODE_PORT, NODE_PORT),
            remote=False,
        )
        fleetlm.run(replica, settings, log_level="warning")
    else:
        asyncio.run(main())
