"""rpyc: a threaded server in each process, and blocking connections. It has services, and no actors."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any

import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks import measures
from benchmarks.helper import Parent
from benchmarks.peers.counter import Counter
from benchmarks.raw import exit_with_parent
from benchmarks.registry import Metrics


class Echo(rpyc.Service):  # type: ignore[misc]  # the package has no types
    """Echoes, measures and counts."""

    def __init__(self) -> None:
        self._counter = Counter()

    def exposed_echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload

    def exposed_length(self, payload: bytes) -> int:
        """Reply with the length."""
        return len(payload)

    def exposed_count(self, _payload: bytes) -> None:
        """Count a message."""
        self._counter.add()

    def exposed_counted(self, expected: int) -> int:
        """Reply with the count, and start anew when all have come."""
        return self._counter.counted(expected)


def server(parent: Parent, config: dict[str, Any]) -> None:
    """Run the server."""
    ip, port = config["ips"][config["index"]], config["port"]
    serving = ThreadedServer(Echo(), hostname=ip, port=port, protocol_config={"sync_request_timeout": 60})
    threading.Thread(target=serving.start, daemon=True).start()
    while not serving.active:
        time.sleep(0.01)
    exit_with_parent(parent)
    threading.Event().wait()


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Connect to each server, and call."""
    options = {"sync_request_timeout": 60}
    connections = [rpyc.connect(ip, config["port"], config=options) for ip in config["ips"][1:]]
    roots = [connection.root for connection in connections for _ in range(config.get("each", 1))]
    parent.report(ready=True)
    for _ in parent.read_commands():
        parent.report(**_measure(config, roots))


def _measure(config: dict[str, Any], roots: list[Any]) -> Metrics:
    root = roots[0]
    match config["work"]:
        case "calls":
            times = [_timed(lambda: root.echo(measures.PAYLOAD)) for _ in range(config["sequential"])]
            metrics = measures.percentiles(times)
            for outstanding in config["at_once"]:
                metrics[measures.rate_key(outstanding)] = _at_once(root, outstanding, config["outstanding"])
            return metrics
        case "fan-out":
            callers = [rpyc.async_(each.echo) for each in roots]

            def call_all() -> None:
                for answer in [call(measures.PAYLOAD) for call in callers]:
                    answer.wait()

            times = [_timed(call_all) for _ in range(config["count"])]
            return {"rate": len(times) / sum(times), **measures.percentiles(times)}
        case "bulk":
            rates = {}
            for key in config["sizes"]:
                payload = os.urandom(measures.SIZES[key])
                most = max(1, min(1_000, config["total_mib"] * measures.MIB // len(payload)))
                times: list[float] = []
                while len(times) < most and sum(times) < measures.BULK_S:
                    times.append(_timed(lambda data=payload: root.length(data)))
                rates[key] = len(times) * len(payload) / sum(times)
            return rates
        case "one-way":
            return _one_way(root, config["count"])
        case other:
            raise ValueError(f"no work is called {other!r}")


def _timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _at_once(root: Any, outstanding: int, count: int) -> float:
    echo = rpyc.async_(root.echo)
    open_calls: deque[Any] = deque()
    started = time.perf_counter()
    for _ in range(count):
        if len(open_calls) == outstanding:
            open_calls.popleft().wait()
        open_calls.append(echo(measures.PAYLOAD))
    while open_calls:
        open_calls.popleft().wait()
    return count / (time.perf_counter() - started)


def _one_way(root: Any, count: int) -> Metrics:
    send = rpyc.async_(root.count)  # It has no message without a reply; these are not waited for.
    started = time.perf_counter()
    for _ in range(count):
        send(measures.PAYLOAD)
    while root.counted(count) < count:
        pass
    return {"rate": count / (time.perf_counter() - started)}
