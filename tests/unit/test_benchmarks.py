"""The machinery of the benchmarks; no figure is checked here."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import (
    __main__ as command_line,
    charts,
    fanout,
    guard,
    idle,
    machine,
    measures,
    page,
    peers,
    report,
    ways,
)
from benchmarks.__main__ import BENCHMARKS
from benchmarks.helpers import (
    Helper,
    HelperFailed,
    Launch,
    ProcessGroup,
    ServersAndDriver,
    free_port,
    rss_bytes,
)
from benchmarks.measures import percentiles
from benchmarks.peers import asyncio_client
from benchmarks.registry import Benchmark, Metric, Metrics, Options
from fleetlm.testing import Fleet

NAMES = [
    *(
        "one-way",
        "calls",
        "actors",
        "fan-out",
        "fan-out-64",
        "fan-out-512",
        "bulk",
        "beside",
        "streams",
        "local",
        "spawn",
    ),
    *("metrics", "entities", "entities-here", "many-entities", "picks", "gauges"),
    *("start", "mesh", "idle", "crash", "thousand"),
]
WITHOUT_FLOOR = {"metrics"}  # Its first variant is fleetlm without what the others add.
RATE = Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3)
LAG = Metric("lag_s", "lag", "ms", more_is_better=False, scale=1e3)


class Fake:
    """A variant with given runs."""

    def __init__(
        self, label: str, runs: Sequence[Metrics], log: list[str], floor: bool = True, is_peer: bool = False
    ) -> None:
        self.label = label
        self.floor = floor
        self.is_peer = is_peer
        self._runs = list(runs)
        self._log = log

    def open(self) -> None:
        self._log.append(f"open {self.label}")

    def run(self) -> Metrics:
        self._log.append(f"run {self.label}")
        if not self._runs:
            raise HelperFailed("no more runs")
        return self._runs.pop(0)

    def close(self) -> None:
        self._log.append(f"close {self.label}")


def fake_benchmark(log: list[str], ours: Sequence[Metrics], theirs: Sequence[Metrics]) -> Benchmark:
    return Benchmark(
        "fake",
        "a fake",
        [RATE, LAG],
        lambda _options: [Fake("fleetlm", ours, log, floor=False), Fake("floor", theirs, log)],
    )


OURS: list[Metrics] = [{"rate": 3_000.0}, {"rate": 6_000.0}, {"rate": 1_000.0}]
THEIRS: list[Metrics] = [{"rate": 1_000.0, "lag_s": 0.1}, {"rate": 3_000.0}, {"rate": 1_000.0}]


@pytest.fixture
def result() -> report.Result:
    return report.measure(fake_benchmark([], OURS, THEIRS), Options(repeat=3))


def test_variants_run_in_turns_and_all_are_closed() -> None:
    log: list[str] = []
    report.measure(fake_benchmark(log, OURS, THEIRS), Options(repeat=2))
    assert log == [
        *("open fleetlm", "open floor"),
        *("run fleetlm", "run floor", "run fleetlm", "run floor"),
        *("close floor", "close fleetlm"),
    ]


def test_a_failure_closes_what_was_opened() -> None:
    log: list[str] = []
    with pytest.raises(HelperFailed):
        report.measure(fake_benchmark(log, [], []), Options(repeat=1))
    assert log[-2:] == ["close floor", "close fleetlm"]


def test_another_library_that_fails_ends_only_its_own_part_and_is_named(tmp_path: Path) -> None:
    log: list[str] = []
    peer = Fake("zebra 1.0", [{"rate": 1_500.0}], log, floor=False, is_peer=True)
    benchmark = Benchmark(
        "fake", "a fake", [RATE, LAG], lambda _options: [Fake("fleetlm", OURS, log, floor=False), peer]
    )
    result = report.measure(benchmark, Options(repeat=3))
    assert log.count("run zebra 1.0") == 2  # The second one fails, and there is no third one.
    assert log.count("run fleetlm") == 3
    assert result.ratio(result.series[1], "rate") == 2.0
    assert report.table(result).endswith("\n  zebra 1.0 failed: no more runs")
    written = page.write(tmp_path, [result], Options(repeat=3), machine.facts(), [])
    assert "\nzebra 1.0 failed: no more runs\n" in written.read_text(encoding="utf-8")


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians(result: report.Result) -> None:
    ours, floor = result.series
    assert ours.values("rate") == [3_000.0, 6_000.0, 1_000.0]
    assert result.ratio(floor, "rate") == 2.0  # the median of 3, 2 and 1
    assert result.ratio(floor, "lag_s") is None  # fleetlm does not report it


def test_the_table_shows_medians_ranges_and_ratios(result: report.Result) -> None:
    text = report.table(result)
    assert "messages, thousand/s (more is better)" in text
    (ours,) = [line for line in text.splitlines() if line.startswith("    fleetlm")]
    assert ours.split()[1:] == ["3", "1", "to", "6"]
    floor = next(line for line in text.splitlines() if line.startswith("    floor"))
    assert floor.split()[1:] == ["1", "1", "to", "3", "2.00", "x"]
    assert "lag, ms (less is better)" in text
    assert max(map(len, text.splitlines())) <= 114


@pytest.mark.parametrize(
    ("value", "text"), [(1_234_567.0, "1,234,567"), (123.4, "123"), (12.34, "12.3"), (0.1234, "0.123")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.format_figure(value) == text


def test_json_has_every_run_and_the_machine(result: report.Result) -> None:
    known = machine.facts()
    data = json.loads(json.dumps(report.as_json([result], Options(repeat=3, quick=True), known)))
    assert data["options"] == {"quick": True, "loop": "uvloop", "repeat": 3}
    assert data["machine"]["cpus"] >= 1
    (fake,) = data["benchmarks"]
    ours, floor = fake["variants"]
    assert (ours["floor"], floor["floor"]) == (False, True)
    assert ours["runs"] == OURS
    assert ours["medians"] == {"rate": 3_000.0}
    assert floor["fleetlm_by_this"] == {"rate": 2.0, "lag_s": None}


def test_the_machine_is_described() -> None:
    text = machine.summary(machine.facts())
    assert "CPUs" in text
    assert "libzmq" in text
    assert machine._version("no-such-distribution-at-all") == "none"


# The registry and the command line.


def test_fleetlm_comes_first_and_floors_follow() -> None:
    assert list(BENCHMARKS) == NAMES
    for name, benchmark in BENCHMARKS.items():
        first, *others = benchmark.variants(Options(loop="asyncio"))
        assert benchmark.name == name
        assert not first.floor
        assert any(variant.floor for variant in others) is (name not in WITHOUT_FLOOR), name
        assert len({variant.label for variant in [first, *others]}) == len(others) + 1
        assert len({metric.key for metric in benchmark.metrics}) == len(benchmark.metrics)


def test_quick_means_less_work() -> None:
    assert Options(quick=True).size(100, 10) == 10
    assert Options().size(100, 10) == 100


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES


@pytest.mark.parametrize("arguments", [["no-such"], ["--repeat", "0"], ["--loop", "trio"]])
def test_invalid_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command_line.main(arguments)
    assert refused.value.code != 0


@pytest.fixture
def fake_registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    monkeypatch.setitem(BENCHMARKS, "fake", fake_benchmark(log, OURS, THEIRS))
    return log


def test_a_run_prints_tables_and_writes_json(
    fake_registered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert command_line.main(["fake", "--quick", "--loop", "asyncio", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "median of 3 rounds" in out
    assert "fake: a fake" in out
    assert fake_registered.count("run fleetlm") == command_line.QUICK_REPEAT
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [each["name"] for each in data["benchmarks"]] == ["fake"]
    assert data["options"]["loop"] == "asyncio"


def test_percentiles() -> None:
    assert percentiles([float(number) for number in range(100)]) == {"p50_s": 50.0, "p99_s": 99.0}
    assert percentiles([1.0]) == {"p50_s": 1.0, "p99_s": 1.0}


# Helper processes.

BARE: tuple[str, dict[str, Any]] = ("start_programs:bare", {})


def test_a_helper_sends_facts_and_ends_with_its_stdin() -> None:
    helper = Helper(*BARE)
    try:
        assert helper.receive() == {}
        assert rss_bytes(helper.os_pid) > 1_000_000
    finally:
        helper.close()
    assert not Path(f"/proc/{helper.os_pid}").exists()


def test_a_helper_that_ends_is_an_error() -> None:
    helper = Helper("nothing", {}, [sys.executable, "-c", "print('{}')"])
    try:
        assert helper.receive() == {}
        with pytest.raises(HelperFailed, match="nothing ended"):
            helper.receive()
    finally:
        helper.close()


def test_a_free_port() -> None:
    assert free_port(["127.0.0.1", "127.0.0.2"]) >= 20_000
    with pytest.raises(HelperFailed, match=r"no port is free on 192\.0\.2\.1"):
        free_port(["192.0.2.1"])


def test_a_launch_measures_time_and_memory() -> None:
    launch = Launch("bare", floor=True, target=BARE[0], config=BARE[1])
    metrics = launch.run()
    assert set(metrics) == {"start_s", "rss_bytes"}
    launch.close()


SMALL = {
    "loop": "asyncio",
    "count": 200,
    "sequential": 5,
    "outstanding": 200,
    "at_once": [10, 100],
    "total_mib": 2,
    "sizes": ["kib_64", "mib_1"],
    "each": 2,
    "seconds": 0.1,
    "large": True,
    "items": 50,
    "large_items": 2,
}


@pytest.mark.parametrize(
    ("server", "driver", "more"),
    [
        ("one_way:fleetlm_receiver", "one_way:fleetlm_sender", {}),
        ("one_way:loop_receiver", "one_way:raw_sender", {"whole": True}),
        ("calls:fleetlm_server", "calls:fleetlm_client", {}),
        ("fan_out:fleetlm_server", "fan_out:fleetlm_client", {}),
        ("bulk:fleetlm_server", "bulk:fleetlm_client", {}),
        ("bulk:fleetlm_server", "beside:client", {}),
        ("streams:actor_server", "streams:actor_client", {}),
        ("start_programs:bare", "local:fleetlm_node_alone", {}),
        ("start_programs:bare", "thousand:simulate", {"members": 5}),
        *(
            pytest.param(server, driver, more, marks=pytest.mark.long)
            for server, driver, more in (  # What fleetlm is compared with changes with the benchmarks alone.
                ("one_way:loop_receiver", "one_way:raw_sender", {"whole": False}),
                ("one_way:blocking_receiver", "one_way:raw_sender", {}),
                ("calls:loop_server", "calls:loop_client", {}),
                ("calls:blocking_server", "calls:blocking_client", {}),
                ("calls:blocking_server", "fan_out:blocking_client", {}),
                ("bulk:raw_server", "bulk:raw_client", {}),
                ("streams:plain_server", "streams:plain_client", {}),
                ("streams:raw_server", "streams:raw_client", {}),
                ("start_programs:bare", "local:bare_tasks", {}),
            )
        ),
    ],
)
def test_every_pair_of_programs_works(server: str, driver: str, more: dict[str, Any]) -> None:
    session = ServersAndDriver(driver, floor=False, server=server, driver=driver, config={**SMALL, **more})
    try:
        session.open()
        for _ in range(2):
            metrics = session.run()
            assert metrics
            assert all(value >= 0 for value in metrics.values())
    finally:
        session.close()


@pytest.mark.parametrize("target", ["mesh:fleetlm_nodes", "mesh:raw_nodes"])
def test_a_mesh_forms(target: str) -> None:
    crowd = ProcessGroup(target, floor=False, target=target, config=SMALL, members=(2, 4), each=2)
    assert set(crowd.run()) == {"formed_2_s", "formed_4_s"}


@pytest.mark.parametrize("target", ["idle:node", "idle:sockets"])
def test_idle_nodes_are_measured(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SETTLE_S", 0.0)
    config = SMALL | {"window_s": 0.05}
    found = idle.IdleNodes(target, floor=False, target=target, config=config, members=(2,)).run()
    assert set(found) == {"total_s_2", "main_s_2"}
    assert min(found.values()) > 0


@pytest.mark.parametrize("target", ["fleetlm_processes", "tasks_with_deques", "tasks_with_queues"])
def test_spawning_is_measured(target: str) -> None:
    launch = Launch(target, floor=False, target=f"spawn:{target}", config=SMALL)
    assert {"rate", "bytes_each"} <= set(launch.run())


@pytest.mark.long
def test_a_crash_is_measured() -> None:
    ours, floor = BENCHMARKS["crash"].variants(Options(loop="asyncio"))
    assert set(ours.run()) == {"known_s", "failed_s"}
    assert set(floor.run()) == {"known_s"}


# The peers. A module of the package stands in for one that is installed.


class FakeTarget:
    """A target of `peers.asyncio_client`."""

    def __init__(self) -> None:
        self.count = 0

    async def echo(self, payload: bytes) -> bytes:
        return payload

    async def length(self, payload: bytes) -> int:
        await asyncio.sleep(0)  # As a socket does, or nothing would run beside a large call.
        return len(payload)

    async def cast(self, payload: bytes) -> None:
        self.count += 1

    async def counted(self, expected: int) -> int:
        return self.count


@pytest.mark.parametrize("work", sorted(peers.MESSAGES))
async def test_a_client_of_a_peer_measures_every_work(work: str) -> None:
    metrics = await asyncio_client._measure({**SMALL, "work": work}, [FakeTarget(), FakeTarget()])
    assert metrics
    assert all(value > 0 for value in metrics.values())


async def test_a_client_of_a_peer_refuses_work_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no work is called 'sleep'"):
        await asyncio_client._measure({"work": "sleep"}, [FakeTarget()])


async def test_a_peer_that_loses_messages_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LOST_AFTER_S", 0.0)

    async def send_all(count: int) -> None:
        pass

    async def counted() -> int:
        return 3

    with pytest.raises(RuntimeError, match="3 of 5 messages arrived"):
        await measures.one_way(send_all, counted, 5)


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = peers.Peer("gone", "with_gone", "no_such_package_at_all", peers.MESSAGES)
    monkeypatch.setattr(peers, "PEERS", (gone,))
    options = Options(peers=frozenset({"gone"}))
    assert peers.absent(options) == ["gone is left out: it is not installed for this Python"]
    assert peers.absent(Options()) == []
    assert peers.variants(options, "calls", {}) == []


def test_a_peer_that_is_installed_takes_part_in_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here = peers.Peer("here", "with_here", "pytest", frozenset({"calls"}))
    monkeypatch.setattr(peers, "PEERS", (here,))
    options = Options(peers=frozenset({"here"}))
    assert [variant.label for variant in peers.variants(options, "calls", {})] == [
        f"here {pytest.__version__}"
    ]
    assert peers.variants(options, "bulk", {}) == []
    assert here.command("client", {"index": 0})[-2:] == ["peers.with_here:client", '{"index": 0}']


def test_a_peer_has_its_own_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PYTHON_CASTY", "/opt/python3.12")
    assert {peer.name: peer.python for peer in peers.PEERS}["casty"] == "/opt/python3.12"


def test_the_ways_of_fleetlm_begin_with_the_usual_one() -> None:
    assert [way.label for way in ways.fleetlm_ways(Options(loop="asyncio"))] == ["fleetlm (asyncio)"]
    first, *others = ways.fleetlm_ways(Options(loop="asyncio", ways=True))
    assert first.config == {}
    assert any(way.config.get("loop") == "uvloop" for way in others)
    assert any("cookie" in way.config.get("settings", {}) for way in others)
    over_zeromq = [way for way in others if way.config.get("settings", {}).get("local_road") is False]
    assert [way.label for way in over_zeromq] == ["fleetlm (asyncio, over ZeroMQ)"]


def test_only_known_peers_can_be_asked_for() -> None:
    assert command_line.peers_named("all") == frozenset(command_line.PEERS)
    assert command_line.peers_named("Erlang,rpyc") == {"erlang", "rpyc"}
    assert command_line.peers_named(None) == frozenset()
    with pytest.raises(SystemExit, match="unknown peer 'akka'"):
        command_line.peers_named("akka")


# The page, its charts and the guard.


def test_a_chart_has_a_bar_for_each_variant(result: report.Result) -> None:
    drawing = charts.chart(result, RATE)
    assert drawing is not None
    tree = ET.fromstring(drawing)  # It is well-formed.
    bars = [each for each in tree.iter() if each.tag.endswith("rect")]
    assert [bar.get("class") for bar in bars] == ["ours", "floor"]
    assert float(bars[0].get("width", "0")) == pytest.approx(3 * float(bars[1].get("width", "0")), rel=0.01)
    assert "fleetlm" in drawing


def test_a_metric_of_one_variant_has_no_chart(result: report.Result) -> None:
    assert charts.chart(result, LAG) is None


def test_a_bar_that_is_too_long_is_cut() -> None:
    far = report.measure(fake_benchmark([], [{"rate": 1.0}], [{"rate": 1_000.0}]), Options(repeat=1))
    drawing = charts.chart(far, RATE)
    assert drawing is not None
    assert "1 →" in drawing


def test_the_page_has_the_conditions_the_charts_and_all_figures(
    result: report.Result, tmp_path: Path
) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "old.svg").write_text("of an earlier run", encoding="utf-8")
    written = page.write(tmp_path, [result], Options(repeat=3), machine.facts(), ["x is left out"])
    text = written.read_text(encoding="utf-8")
    assert written == tmp_path / "REPORT.md"
    assert "- x is left out" in text
    assert "![messages](charts/fake-rate.svg)" in text
    assert "| messages, thousand/s | fleetlm | 3 | 1 to 6 |  |" in text
    assert "| 2.00 x |" in text
    assert [file.name for file in (tmp_path / "charts").iterdir()] == ["fake-rate.svg"]


def test_the_guard_complains_of_a_ratio_that_is_too_low(
    result: report.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LEAST", {"fake": [("rate", "floor", 1.9)]})
    assert guard.complaints([result]) == []
    monkeypatch.setattr(guard, "LEAST", {"fake": [("rate", "floor", 2.1), ("lag_s", "floor", 1.0)]})
    assert guard.complaints([result]) == [
        "fake: messages: fleetlm / floor is 2.00, below 2.1",
        "fake: lag: fleetlm / floor is missing, above 1",
    ]


def test_the_guard_knows_the_floors() -> None:
    for name, bounds in guard.LEAST.items():
        benchmark = BENCHMARKS[name]
        labels = [variant.label for variant in benchmark.variants(Options())]
        for key, label, _ in bounds:
            assert key in {metric.key for metric in benchmark.metrics}
            assert any(each.startswith(label) for each in labels), label


def test_a_run_that_the_guard_complains_of_fails(
    fake_registered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(guard, "LEAST", {"fake": [("rate", "floor", 9.0)]})
    command = ["--guard", "--quick", "--loop", "asyncio", "--report", str(tmp_path)]
    assert command_line.main(command) == 1
    assert capsys.readouterr().out.count("below 9") == 2
    assert fake_registered.count("open fleetlm") == 2  # A bad ratio is measured once more.
    assert (tmp_path / "REPORT.md").exists()


# The script for a cluster of the user.


async def test_the_script_measures_all_nodes(fleet: Fleet) -> None:
    nodes = await fleet.start(3)
    for node in nodes[1:]:
        node.spawn(fanout.echo, name="echo")
    times, missing = await fanout.measure(nodes[0], "echo", b"x", 4, 5.0)
    assert (len(times), missing) == (4, 0)
    assert "0 replies missing" in fanout.report([0.001, 0.002], 0)


async def test_the_script_counts_the_replies_that_are_missing(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = await fleet.start(3)
    nodes[1].spawn(fanout.echo, name="echo")
    _, missing = await fanout.measure(nodes[0], "echo", b"x", 2, 5.0)
    assert missing == 2
    assert "no process" in capsys.readouterr().err
