"""The machinery of the benchmarks; no figure is checked here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command_line, machine, report
from benchmarks.__main__ import BENCHMARKS
from benchmarks.calls import percentiles
from benchmarks.helpers import (
    Helper,
    HelperFailed,
    Launch,
    ProcessGroup,
    ServersAndDriver,
    free_port,
    rss_bytes,
)
from benchmarks.registry import Benchmark, Metric, Metrics, Options

NAMES = ["one-way", "calls", "actors", "fan-out", "bulk", "start", "mesh", "spawn"]
RATE = Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3)
LAG = Metric("lag_s", "lag", "ms", more_is_better=False, scale=1e3)


class Fake:
    """A variant with given runs."""

    def __init__(self, label: str, runs: Sequence[Metrics], log: list[str], floor: bool = True) -> None:
        self.label = label
        self.floor = floor
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
    assert max(map(len, text.splitlines())) <= 100


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
        assert any(variant.floor for variant in others), name
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


SMALL = {"loop": "asyncio", "count": 200, "sequential": 5, "outstanding": 200, "total_mib": 16}


@pytest.mark.parametrize(
    ("server", "driver", "more"),
    [
        ("one_way:fleetlm_receiver", "one_way:fleetlm_sender", {}),
        ("one_way:loop_receiver", "one_way:raw_sender", {"whole": True}),
        ("one_way:loop_receiver", "one_way:raw_sender", {"whole": False}),
        ("one_way:blocking_receiver", "one_way:raw_sender", {}),
        ("calls:fleetlm_server", "calls:fleetlm_client", {}),
        ("calls:loop_server", "calls:loop_client", {}),
        ("calls:blocking_server", "calls:blocking_client", {}),
        ("fan_out:fleetlm_server", "fan_out:fleetlm_client", {}),
        ("calls:blocking_server", "fan_out:blocking_client", {}),
        ("bulk:fleetlm_server", "bulk:fleetlm_client", {}),
        ("bulk:raw_server", "bulk:raw_client", {}),
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
    crowd = ProcessGroup(target, floor=False, target=target, config=SMALL, members=4, each=2)
    assert set(crowd.run()) == {"formed_s"}


@pytest.mark.parametrize("target", ["fleetlm_processes", "tasks_with_deques", "tasks_with_queues"])
def test_spawning_is_measured(target: str) -> None:
    launch = Launch(target, floor=False, target=f"spawn:{target}", config=SMALL)
    assert {"rate", "bytes_each"} <= set(launch.run())
