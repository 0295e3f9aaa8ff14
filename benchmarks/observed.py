"""What it costs to observe a node: metrics for Prometheus, and an observer of telemetry.

All modes use the same two nodes and take turns on them, since the differences are a few percent, and two
pairs of processes differ by more. With ``--against FOLDER``, a checkout of another commit, its nodes take
part, too, and for that reason each run of each variant is a new pair of processes: many rounds are needed.
`benchmarks.instructions` compares the same without noise, and without the kernel and ZeroMQ.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from benchmarks import fleetlm_node, measures
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Mode, ServersAndDriver, Session
from benchmarks.measures import PAYLOAD, percentiles
from benchmarks.registry import Benchmark, Metric, Metrics, Options, Variant
from fleetlm import Actor, Call, Node, Process, handler

OUTSTANDING = 100
PLAIN, METRICS, TELEMETRY = "plain", "metrics", "telemetry"
WORKS = {
    "calls": "calls",
    "actors": "calls of an actor",
    "sends": "one-way messages",
    "local": "calls on one node, one at a time",
}


def variants(options: Options) -> list[Variant]:
    """Nodes that nobody observes, with metrics, with an observer of all events, and of another commit."""
    programs: dict[str, Any] = {
        "floor": False,
        "server": "observed:server",
        "driver": "observed:client",
        "config": {
            "loop": options.loop,
            "sequential": options.size(1_000, 300),
            "outstanding": options.size(20_000, 8_000),
            "count": options.size(100_000, 40_000),
        },
    }
    modes = {
        f"fleetlm, nobody observes ({options.loop})": PLAIN,
        "fleetlm with NodeMetrics": METRICS,
        "fleetlm with an observer of all telemetry": TELEMETRY,
    }
    if options.against is None:
        session = Session("two nodes", **programs)
        return [Mode(label, session, mode) for label, mode in modes.items()]
    other = programs | {"config": programs["config"] | {"tree": str(options.against.resolve())}}
    return [
        *(NewPair(label, mode, **programs) for label, mode in modes.items()),
        NewPair(f"nobody observes, {options.against.name}", PLAIN, **other),
    ]


def why_not(_options: Options) -> str:
    """Return why the metrics cannot be measured."""
    return "" if importlib.util.find_spec("prometheus_client") else "prometheus-client is not installed"


BENCHMARK = Benchmark(
    "metrics",
    f"what observing both nodes costs; {OUTSTANDING} calls outstanding, 64 bytes each",
    [
        Metric("p50_s", "call, round trip p50", "µs", more_is_better=False, scale=1e6),
        *(
            Metric(f"rate_{work}", title, "thousand/s", more_is_better=True, scale=1e-3)
            for work, title in WORKS.items()
        ),
        *(
            Metric(f"cpu_{work}_s", f"{title}, both nodes, each", "µs CPU", more_is_better=False, scale=1e6)
            for work, title in WORKS.items()
        ),
    ],
    variants,
    least_rounds=9,
    is_fine=True,
    why_not=why_not,
)


class NewPair(ServersAndDriver):
    """A variant of which each run is a new pair of processes: some pairs are slower than others by chance."""

    def __init__(self, label: str, mode: str, **programs: Any) -> None:
        super().__init__(label, **programs)
        self._mode = mode

    def open(self) -> None:
        """Do nothing: `run` starts the processes."""

    def run(self, command: str = "") -> Metrics:
        """Start the processes, do one run, and end them."""
        try:
            super().open()
            return super().run(command or self._mode)
        finally:
            self.close()


class Observers:
    """What observes a node, one mode at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stack = ExitStack()
        self.events = 0

    def switch(self, mode: str) -> None:
        """End the mode that was, and begin another one. Raises: ValueError for an unknown one."""
        self._stack.close()
        match mode:
            case "plain":
                pass
            case "metrics":
                from fleetlm.metrics import NodeMetrics  # noqa: PLC0415  an extra

                self._stack.enter_context(NodeMetrics(self._node))
            case "telemetry":
                self._stack.enter_context(self._node.telemetry.attach(self._observe))
            case _:
                raise ValueError(f"no mode is called {mode!r}")

    def _observe(self, _event: object) -> None:
        self.events += 1


class Echo(Actor):
    """An actor that echoes."""

    @handler
    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload


async def echo(process: Process) -> None:
    """Reply to calls with what they sent, and to ``None`` with the number of other messages until then."""
    count = 0
    async for message in process.mailbox:
        if message.__class__ is not Call:
            count += 1
        elif message.message is None:
            message.reply(count)
            count = 0
        else:
            message.reply(message.message)


def server(parent: Parent, config: dict[str, Any]) -> None:
    """Run the node that is called."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            observers = Observers(node)

            async def control(process: Process) -> None:
                async for call in process.mailbox:
                    if call.message is not None:
                        observers.switch(call.message)
                        gc.collect()
                    call.reply(time.process_time())

            node.spawn(echo, name="echo")
            node.spawn(Echo, name="actor")
            node.spawn(control, name="control")
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Run the node that calls; a command is a mode."""

    async def main() -> None:
        async with fleetlm_node.start(config) as node:
            (peer,) = await fleetlm_node.peers(node, config)
            observers = Observers(node)
            node.spawn(echo, name="here")
            parent.report(ready=True)
            while mode := await parent.read_command():
                observers.switch(mode)
                await node.call(("control", peer), mode)
                gc.collect()
                parent.report(**await measure(node, peer, config))

    run_loop(main(), config["loop"])


async def measure(node: Node, peer: str, config: dict[str, Any]) -> Metrics:
    """Measure each kind of message in the present mode."""
    to, ref = ("echo", peer), node.ref(Echo, "actor", at=peer)
    metrics: Metrics = {}

    async def both_s() -> float:
        return time.process_time() + float(await node.call(("control", peer), None))

    async def measure_work(work: str, count: int, run: Callable[[], Awaitable[object]]) -> None:
        before_s, started = await both_s(), time.perf_counter()
        await run()
        metrics[f"rate_{work}"] = count / (time.perf_counter() - started)
        metrics[f"cpu_{work}_s"] = (await both_s() - before_s) / count

    async def send_all() -> None:
        for _ in range(config["count"]):
            await node.send(to, PAYLOAD)
        counted = await node.call(to, None, timeout=60)
        if counted != config["count"]:
            raise RuntimeError(f"{counted} of {config['count']} messages arrived")

    def call_all(call: measures.Call) -> Callable[[], Awaitable[object]]:
        return lambda: measures.at_once(call, OUTSTANDING, config["outstanding"])

    times = await measures.one_at_a_time(lambda: node.call(to, PAYLOAD), config["sequential"])
    calls = config["outstanding"] // OUTSTANDING * OUTSTANDING
    await measure_work("calls", calls, call_all(lambda: node.call(to, PAYLOAD)))
    await measure_work("actors", calls, call_all(lambda: ref.call(Echo.echo, PAYLOAD)))
    await measure_work("sends", config["count"], send_all)
    local = 10 * config["sequential"]
    await measure_work(
        "local", local, lambda: measures.one_at_a_time(lambda: node.call("here", PAYLOAD), local)
    )
    return {"p50_s": percentiles(times)["p50_s"], **metrics}
