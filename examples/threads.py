"""Worker code in plain threads, without asyncio: the node runs in its own thread.

Each worker process has a thread for each request, as a WSGI server or a job runner has, and all its threads
share one node. ``python threads.py`` runs two such workers in one program, on addresses 127.0.0.N (on macOS,
add aliases first).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from fleetlm import Call, NotDelivered, OutcomeUnknown, Process, Settings, SyncNode, node_in_thread

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24386"))


async def counter(process: Process) -> None:
    """Count words. A process is a coroutine: it runs on the node's event loop, not in a caller's thread."""
    counts: dict[str, int] = {}
    async for message in process.mailbox:
        match message:
            case Call(message=("count", str(word))):
                counts[word] = counts.get(word, 0) + 1
                message.reply(counts[word])


def handle(node: SyncNode, at: str, word: str) -> str:
    """Serve one request in a thread: call, wait for the reply, and describe the outcome."""
    try:
        count = node.call(("counter", at), ("count", word), timeout=2)
    except NotDelivered as error:
        return f"{word}: never ran ({type(error).__name__})"
    except OutcomeUnknown as error:
        return f"{word}: may have run ({type(error).__name__})"
    return f"{word}: {count}"


def settings(ip: str) -> Settings:
    """Settings for this example; in production they come from the environment."""
    return Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)


def main() -> None:
    """Run a front worker with eight threads and a back worker that counts; then the back worker stops."""
    with node_in_thread(settings(ADDRESSES[0])) as front, ThreadPoolExecutor(8) as threads:
        with node_in_thread(settings(ADDRESSES[1])) as back:
            back.spawn(counter, name="counter")
            front.ready(1, timeout=5)
            words = ["llama", "mistral"] * 100
            began = time.perf_counter()
            replies = list(threads.map(lambda word: handle(front, back.name, word), words))
            took_s = time.perf_counter() - began
            print(f"{len(replies)} calls from 8 threads in {took_s * 1e3:.0f} ms")
            print(max(replies, key=lambda reply: (reply.startswith("llama"), int(reply.split()[-1]))))
            gone = back.name
        print(handle(front, gone, "llama"))


if __name__ == "__main__":
    main()
