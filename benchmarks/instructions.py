"""How many instructions of the processor a message takes, observed and not, here and in another checkout.

    python -m benchmarks.instructions [--against FOLDER] [--count N]

FOLDER is a checkout of another commit, for example one from `git worktree add`. valgrind counts, so what else
runs on the machine does not matter, and differences of one in a thousand can be seen; a run takes a minute or
two. Two nodes on one event loop share a transport in memory, so kernel, ZeroMQ and waiting are left out: a
share is larger here than it is of the time that a program sees.

valgrind slows everything down some fifty times. So the ticks of the nodes are made rare, and what adapts with
them (`taps.Sampler`) adapts within the run only, as in the first second of load.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import helper_environment
from benchmarks.in_memory import MemoryTransport
from benchmarks.measures import PAYLOAD
from fleetlm import Actor, Call, Node, Process, Settings, handler

COUNT = 2_000
WARM_UP = 200
OUTSTANDING = 100
TICK_S = 60.0
TIMEOUT_S = 600.0
KIND, SHARDS = "echo", 8
ENTITIES = "of an entity"
MARK = "getlogin"
"""A function of the C library that nothing else calls: valgrind writes down its counts before each call."""
PLAIN, METRICS, TELEMETRY = "plain", "metrics", "telemetry"
_SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)


def main() -> int:
    """Count, and print a table."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    top.add_argument(
        "--against", type=Path, metavar="FOLDER", help="another checkout, whose nodes nobody observes"
    )
    top.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"messages of each kind ({COUNT})")
    args = top.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed")
    runs: list[tuple[str, str, Path | None]] = [
        ("nobody observes", PLAIN, None),
        ("NodeMetrics", METRICS, None),
        ("an observer of all", TELEMETRY, None),
    ]
    if args.against is not None:
        runs.insert(0, (f"nobody observes, {args.against.name}", PLAIN, args.against.resolve()))
    columns = []
    for label, mode, tree in runs:
        columns.append((label, counted(mode, tree, args.count)))
        print(label, {name: round(each) for name, each in columns[-1][1].items()}, flush=True)
    first = columns[0][1]
    print(f"instructions a message, and how many more than in the first column ({args.count} of each kind)")
    print(f"{'':24}" + "".join(f"{label:>34}" for label, _ in columns))
    for work, least in first.items():
        cells = [f"{found[work]:>24,.0f} {found[work] / least - 1:>+8.1%}" for _, found in columns]
        print(f"{work:24}" + "".join(f"{cell:>34}" for cell in cells))
    for work in first:
        if work.endswith(ENTITIES):
            actor = work.replace(ENTITIES, "of an actor")
            ratios = [f"{found[work] / found[actor]:>34.3f}" for _, found in columns]
            print(f"{f'{work} / actor':24}" + "".join(ratios))
    return 0


def counted(mode: str, tree: Path | None, count: int) -> dict[str, float]:
    """Return the instructions for one message of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        config = {"mode": mode, "count": count} | ({} if tree is None else {"tree": str(tree)})
        command = [
            *("valgrind", "--tool=callgrind", f"--dump-before={MARK}"),
            f"--callgrind-out-file={folder}/counts",
            *(sys.executable, "-m", "benchmarks.helper", "instructions:work", json.dumps(config)),
        ]
        env = helper_environment() | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, env=env, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        names = json.loads(done.stdout)["works"]
        found = []
        for number in range(1, 2 * len(names) + 1):
            summary = _SUMMARY.search(Path(folder, f"counts.{number}").read_text(encoding="utf-8"))
            assert summary is not None
            found.append(int(summary[1]))
        # Before each kind and after it is a mark; what stands at the second one is what it took.
        return {name: found[2 * at + 1] / count for at, name in enumerate(names)}


class Echo(Actor):
    """An actor that echoes."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload


async def echo(process: Process) -> None:
    """Reply to calls with what they sent."""
    async for call in process.mailbox:
        call.reply(call.message)


async def sink(process: Process) -> None:
    """Take messages; reply to a call with their number."""
    seen = 0
    async for message in process.mailbox:
        if type(message) is Call:
            message.reply(seen)
        else:
            seen += 1


def works(here: Node, there: str) -> dict[str, Callable[[int], Awaitable[None]]]:
    """Return what is done so many times, by the names of the rows."""
    far, near = here.ref(Echo, "actor", at=there), here.ref(Echo, "actor")

    async def send(to: Any, count: int) -> None:
        for _ in range(count):
            await here.send(to, PAYLOAD)
        await here.call(to, None)

    def call() -> Awaitable[object]:
        return here.call(("echo", there), PAYLOAD)

    def call_actor() -> Awaitable[object]:
        return far.call(Echo.echo, PAYLOAD)

    found = {
        "call": lambda count: one_by_one(call, count),
        "100 calls": lambda count: together(call, count),
        "call of an actor": lambda count: one_by_one(call_actor, count),
        "100 calls of an actor": lambda count: together(call_actor, count),
        "one-way": lambda count: send(("sink", there), count),
        "local call": lambda count: one_by_one(lambda: here.call("echo", PAYLOAD), count),
        "local call of an actor": lambda count: one_by_one(lambda: near.call(Echo.echo, PAYLOAD), count),
        "local one-way": lambda count: send("sink", count),
    }
    return found | entity_works(here, there)


def entity_works(here: Node, there: str) -> dict[str, Callable[[int], Awaitable[None]]]:
    """Return the same calls to entities: one lives on each node."""
    if importlib.util.find_spec("fleetlm.entities") is None:
        return {}
    from benchmarks.entity_echo import EchoEntity  # noqa: PLC0415  # an older checkout has none

    refs = here.entities.ref(EchoEntity, KIND)
    keys = {refs.where(f"key{number}"): refs[f"key{number}"] for number in range(64)}
    far, near = keys[there], keys[here.name]

    def call_entity() -> Awaitable[object]:
        return far.call(EchoEntity.echo, PAYLOAD)

    return {
        "call of an entity": lambda count: one_by_one(call_entity, count),
        "100 calls of an entity": lambda count: together(call_entity, count),
        "local call of an entity": lambda count: one_by_one(
            lambda: near.call(EchoEntity.echo, PAYLOAD), count
        ),
    }


def work(parent: Parent, config: dict[str, Any]) -> None:
    """Do the work, with a mark before and after each kind of it."""

    async def run() -> None:
        ips = ["127.0.0.1", "127.0.0.2"]
        usual = Settings(dns_query=",".join(ips), remote=False, tick_s=TICK_S, call_timeout_s=TIMEOUT_S)
        async with AsyncExitStack() as stack:
            starting = [Node.start(usual.replace(node_ip=ip), transport=MemoryTransport()) for ip in ips]
            here, there = [await stack.enter_async_context(each) for each in starting]
            for node in (here, there):
                node.spawn(echo, name="echo")
                node.spawn(sink, name="sink")
                node.spawn(Echo, name="actor")
                if config["mode"] != PLAIN:
                    stack.enter_context(observed(node, config["mode"]))
            await here.ready(1, timeout=TIMEOUT_S)
            await host_entities(here, there)
            todo = works(here, there.name)
            gc.disable()
            for do in todo.values():
                await do(WARM_UP)
            for do in todo.values():
                mark()
                await do(config["count"])
                mark()
            parent.report(works=list(todo))

    run_loop(run(), "uvloop")


async def host_entities(*nodes: Node) -> None:
    """Host entities on both nodes, and wait until all shards have owners on both."""
    if importlib.util.find_spec("fleetlm.entities") is None:
        return
    from benchmarks.entity_echo import EchoEntity  # noqa: PLC0415  # an older checkout has none

    for node in nodes:
        await node.entities.host(EchoEntity, KIND, shards=SHARDS, settle_s=0.0, rebalance_s=0.0)
    refs = nodes[0].entities.ref(EchoEntity, KIND)
    owned: dict[int, str] = {}
    while len(owned) < SHARDS or len(set(owned.values())) < len(nodes):
        await asyncio.sleep(0.05)
        owned = refs.shards()


def observed(node: Node, mode: str) -> Any:
    """Let the node be observed until the end of a block."""
    if mode == TELEMETRY:
        return node.telemetry.attach(lambda _: None)
    from fleetlm.metrics import NodeMetrics  # noqa: PLC0415  # an extra

    return NodeMetrics(node)


async def one_by_one(call: Callable[[], Awaitable[object]], count: int) -> None:
    """Make one call after the other."""
    for _ in range(count):
        await call()


async def together(call: Callable[[], Awaitable[object]], count: int) -> None:
    """Make calls with `OUTSTANDING` at a time."""
    await asyncio.gather(*(one_by_one(call, count // OUTSTANDING) for _ in range(OUTSTANDING)))


def mark() -> None:
    """Call `MARK`."""
    try:
        os.getlogin()
    except OSError:  # There is no terminal.
        return


if __name__ == "__main__":
    sys.exit(main())
