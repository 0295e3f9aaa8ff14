"""Send messages to a process on every node of a cluster, and measure how long all replies take.

Run it where the cluster's three variables are set, as they are for its nodes:

    python benchmarks/fanout.py --name worker --payload 64 --count 1000

It joins the cluster as one more node and calls the process that is registered as ``worker`` on each node. The
process must reply; ``--serve`` runs one that does, to try it out:

    DNS_CLUSTER_QUERY=127.0.0.1 python benchmarks/fanout.py --serve &
    DNS_CLUSTER_QUERY=127.0.0.1 python benchmarks/fanout.py
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import fleetlm
from fleetlm import Node, Process

PROGRESS_EVERY_S = 0.5
READY_TIMEOUT_S = 30.0
"""Seconds to find the cluster: a few lookups of DNS, and the dials that follow."""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options."""
    top = argparse.ArgumentParser(
        description="Measure fan-out: one message to all nodes, until all have replied."
    )
    top.add_argument("--name", default="echo", help="the registered name of the processes (default: echo)")
    top.add_argument(
        "--payload", type=natural, default=64, metavar="BYTES", help="of a message (default: 64)"
    )
    top.add_argument("--count", type=positive, default=1_000, help="messages to each process (default: 1000)")
    top.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="for all replies (default: 5)"
    )
    top.add_argument("--nodes", type=positive, default=1, help="other nodes to wait for first (default: 1)")
    top.add_argument("--serve", action="store_true", help="run a process that replies, and measure nothing")
    return top


def natural(text: str) -> int:
    """Return a number of at least 0. Raises: ValueError, ArgumentTypeError for another text."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def positive(text: str) -> int:
    """Return a number of at least 1. Raises: ValueError, ArgumentTypeError for another text."""
    number = natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


async def echo(process: Process) -> None:
    """Reply with what was sent."""
    async for call in process.mailbox:
        call.reply(call.message)


async def measure(
    node: Node, name: str, payload: bytes, count: int, timeout_s: float
) -> tuple[list[float], int]:
    """Send ``count`` messages to the process of each connected node.

    Returns:
        The seconds that each took until all had replied, and how many replies were missing; a message for
        which no node was left counts as one of these.
    """
    times: list[float] = []
    missing = 0
    shown_at = started = time.perf_counter()
    for number in range(1, count + 1):
        targets = [(name, peer) for peer in node.list()]
        if not targets:
            print("\nno node is connected any more", file=sys.stderr)
            missing += count - len(times)
            break
        sent_at = time.perf_counter()
        replies = await node.multicall(targets, payload, timeout=timeout_s)
        now = time.perf_counter()
        times.append(now - sent_at)
        failures = [reply for reply in replies if isinstance(reply, BaseException)]
        if failures and not missing:
            print(f"\nthe first failure: {failures[0]}", file=sys.stderr)
        missing += len(failures)
        if now - shown_at >= PROGRESS_EVERY_S or number == count:
            shown_at = now
            rate = number / (now - started)
            print(
                f"\r{number:,} of {count:,} to {len(targets)} nodes, {rate:,.0f}/s", end="", file=sys.stderr
            )
    print(file=sys.stderr)
    return times, missing


def report(times: list[float], missing: int) -> str:
    """Return the figures as text."""
    if not times:
        return f"nothing was measured; {missing} replies missing"
    ordered = sorted(times)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return (
        f"all replies: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, slowest {ordered[-1] * 1e3:.2f} ms; "
        f"{len(times) / sum(times):,.0f} fan-outs/s; {missing} replies missing"
    )


async def main(node: Node) -> int:
    """Measure, or serve until a signal. Returns the exit code: 1 if nodes or replies were missing."""
    options = parser().parse_args()
    if options.serve:
        node.spawn(echo, name=options.name)
        print(f"{node.name} replies as {options.name!r}; end it with Ctrl-C", flush=True)
        await asyncio.Event().wait()
    try:
        await node.ready(options.nodes, timeout=READY_TIMEOUT_S)
    except TimeoutError:
        found = len(node.list())
        print(
            f"{found} of {options.nodes} other nodes after {READY_TIMEOUT_S:.0f} s; are DNS_CLUSTER_QUERY and"
            " FLEETLM_COOKIE those of the cluster? `fleetlm doctor` looks for the reason.",
            file=sys.stderr,
        )
        return 1
    payload = bytes(options.payload)
    times, missing = await measure(node, options.name, payload, options.count, options.timeout)
    print(report(times, missing))
    return 1 if missing else 0


if __name__ == "__main__":
    parser().parse_args()  # Before the node starts: a wrong option must not join a cluster.
    sys.exit(fleetlm.run(main, log_level="warning"))
