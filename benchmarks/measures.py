"""What a client measures, whatever answers: fleetlm, a floor on the loop, or another library."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.registry import Metrics

PAYLOAD = bytes(64)
OUTSTANDING = (10, 100, 1_000)
"""Calls without a reply yet at a time, one measurement each."""
MIB = 1024 * 1024
SIZES = {"kib_64": MIB // 16, "mib_1": MIB, "mib_16": 16 * MIB, "mib_256": 256 * MIB}
"""Bytes of a large message, by the key of its metric."""

BULK_S = 3.0
"""Seconds for the calls of one size: some peers need minutes for all."""
LARGE_BYTES = 16 * MIB
"""Of the calls beside which small ones are measured."""
PAUSE_S = 0.002
"""Between two small calls, so that they measure the waiting and do not add to it."""

Call = Callable[[], Awaitable[object]]


def percentiles(times_s: list[float]) -> Metrics:
    """Return the 50th and the 99th percentile."""
    ordered = sorted(times_s)
    return {
        "p50_s": ordered[len(ordered) // 2],
        "p99_s": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }


def rate_key(outstanding: int) -> str:
    """Return the key of the metric for so many outstanding calls."""
    return f"rate_{outstanding}"


async def one_at_a_time(call: Call, count: int) -> list[float]:
    """Return the seconds that each of ``count`` calls takes, one after the other."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return times


async def at_once(call: Call, outstanding: int, count: int) -> float:
    """Return calls per second with so many outstanding."""

    async def call_repeatedly(times: int) -> None:
        for _ in range(times):
            await call()

    each = max(1, count // outstanding)
    started = time.perf_counter()
    await asyncio.gather(*(call_repeatedly(each) for _ in range(outstanding)))
    return each * outstanding / (time.perf_counter() - started)


async def calls(call: Call, config: dict[str, Any]) -> Metrics:
    """Measure calls one at a time, and with each number of `OUTSTANDING`.

    Args:
        call: sends `PAYLOAD` and waits for the reply.
        config: ``sequential`` and ``outstanding``, the numbers of calls.
    """
    metrics = percentiles(await one_at_a_time(call, config["sequential"]))
    for outstanding in config.get("at_once", OUTSTANDING):
        metrics[rate_key(outstanding)] = await at_once(call, outstanding, config["outstanding"])
    return metrics


async def fan_outs(call_all: Call, config: dict[str, Any]) -> Metrics:
    """Measure ``count`` messages to all targets, each until all have replied."""
    times = await one_at_a_time(call_all, config["count"])
    return {"rate": len(times) / sum(times), **percentiles(times)}


async def bulk(call: Callable[[bytes], Awaitable[object]], config: dict[str, Any]) -> Metrics:
    """Measure large calls, one at a time; the reply is the length of what arrived.

    Args:
        call: sends the payload and waits for the reply.
        config: ``total_mib`` for each size, at most as much as `BULK_S` is enough for, and ``sizes``, keys
            of `SIZES`.
    """
    rates = {}
    for key in config["sizes"]:
        payload = os.urandom(SIZES[key])  # Some peers compress.
        most = max(1, min(1_000, config["total_mib"] * MIB // len(payload)))
        count, started = 0, time.perf_counter()
        while count < most and time.perf_counter() - started < BULK_S:
            length = await call(payload)
            if length != len(payload):
                raise RuntimeError(f"{length} of {len(payload)} bytes arrived")
            count += 1
        rates[key] = count * len(payload) / (time.perf_counter() - started)
    return rates


async def beside(call: Callable[[bytes], Awaitable[int]], config: dict[str, Any]) -> Metrics:
    """Measure small calls while large ones travel on the same connection, one after the other.

    Args:
        call: sends the payload and waits for the reply, the length of what arrived.
        config: ``seconds``, and ``large``: false for the small calls alone.
    """
    payload, moved = bytes(LARGE_BYTES), 0

    async def call_large() -> None:
        nonlocal moved
        while True:
            moved += await call(payload)

    large = asyncio.create_task(call_large()) if config["large"] else None
    started, times = time.perf_counter(), []
    while time.perf_counter() - started < config["seconds"]:
        if large is not None and large.done():
            large.result()  # It has failed, and nothing is beside the small calls any more.
        sent = time.perf_counter()
        await call(PAYLOAD)
        times.append(time.perf_counter() - sent)
        await asyncio.sleep(PAUSE_S)
    took_s = time.perf_counter() - started
    if large is None:
        return percentiles(times)
    large.cancel()
    await asyncio.wait([large])
    return {"large": moved / took_s, **percentiles(times)}


async def one_way(
    send_all: Callable[[int], Awaitable[object]], counted: Callable[[], Awaitable[int]], count: int
) -> Metrics:
    """Measure messages without a reply, until the receiver has counted all of them.

    Args:
        send_all: sends so many of `PAYLOAD`.
        counted: asks the receiver how many have come since the last question that found all of them.
        count: messages of a run.
    """
    started = time.perf_counter()
    await send_all(count)
    while (received := await counted()) < count:
        if time.perf_counter() - started > LOST_AFTER_S:
            raise RuntimeError(f"{received} of {count} messages arrived")
    return {"rate": count / (time.perf_counter() - started)}


LOST_AFTER_S = 60.0
"""Seconds after which messages that have not arrived are taken for lost."""
