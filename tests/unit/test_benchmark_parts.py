"""The parts of a run of the benchmarks: their time, what is left out, and the programs of the newer ones."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    __main__ as command_line,
    entities,
    fanout,
    helper,
    helpers,
    instructions,
    machine,
    observed,
    page,
    peers,
    picks,
    report,
    start,
    streams,
)
from benchmarks.__main__ import BENCHMARKS
from benchmarks.budget import Budget
from benchmarks.helpers import Helper, HelperFailed, Helpers, Launch, Mode, Session
from benchmarks.in_memory import MemoryTransport
from benchmarks.peers import with_erlang
from benchmarks.peers.counter import Counter
from benchmarks.registry import Benchmark, Metric, Metrics, Options
from fleetlm import Node, Settings
from fleetlm.testing import Fleet
from fleetlm.testing.loop import run

RATE = Metric("rate", "messages", "thousand/s", more_is_better=True, scale=1e-3)


class Clock:
    """A clock that work moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Work:
    """A variant whose runs take a time."""

    def __init__(
        self, label: str, clock: Clock, run_s: float, is_peer: bool = False, fails: bool = False
    ) -> None:
        self.label = label
        self.floor = is_peer
        self.is_peer = is_peer
        self.runs = 0
        self.is_open = False
        self._clock = clock
        self._run_s = run_s
        self._fails = fails

    def open(self) -> None:
        self.is_open = True

    def run(self) -> Metrics:
        if self._fails:
            raise HelperFailed(f"{self.label} ended")
        self.runs += 1
        self._clock.now_s += self._run_s
        return {"rate": 1_000.0}

    def close(self) -> None:
        self.is_open = False


def part(*variants: Work, name: str = "part", **more: Any) -> Benchmark:
    return Benchmark(name, "a part", [RATE], lambda _: variants, **more)


# The time of a run.


def test_a_part_gets_its_share_of_what_the_others_have_left() -> None:
    clock = Clock()
    time_left = Budget(100.0, [part(share=1), part(share=3), part(share=6)], clock)
    assert time_left.next_limit_s() == pytest.approx(10.0)
    clock.now_s = 1.0  # It needed one second of its ten.
    assert time_left.next_limit_s() == pytest.approx(99 * 3 / 9)
    clock.now_s = 80.0  # It needed more.
    assert time_left.next_limit_s() == pytest.approx(20.0)


def test_nothing_is_left_when_the_time_is_over_and_without_a_limit_there_is_always_more() -> None:
    clock = Clock()
    time_left = Budget(10.0, [part(), part()], clock)
    clock.now_s = 11.0
    assert time_left.next_limit_s() == 0.0
    assert Budget(math.inf, [part()], clock).next_limit_s() == math.inf


def test_no_round_begins_that_would_end_too_late() -> None:
    clock = Clock()
    ours, peer = Work("fleetlm", clock, 2.0), Work("zebra", clock, 1.0, is_peer=True)
    result = report.measure(part(ours, peer), Options(repeat=9), limit_s=10.0, clock=clock)
    assert (ours.runs, peer.runs) == (3, 3)
    assert result.note == "3 of 9 rounds: its 10 s of the run were over"
    assert report.table(result).endswith(f"\n  {result.note}")
    assert not ours.is_open


def test_another_library_is_left_out_when_the_first_round_takes_too_long() -> None:
    clock = Clock()
    ours, peer = Work("fleetlm", clock, 20.0), Work("zebra", clock, 1.0, is_peer=True)
    result = report.measure(part(ours, peer), Options(repeat=2), limit_s=10.0, clock=clock)
    assert (ours.runs, peer.runs) == (1, 0)
    assert "zebra failed: its part had no time left of 10 s" in report.table(result)


def test_a_part_may_ask_for_more_rounds_and_for_fewer() -> None:
    clock = Clock()
    more, fewer = Work("fleetlm", clock, 0.0), Work("fleetlm", clock, 0.0)
    report.measure(part(more, least_rounds=7), Options(repeat=3))
    report.measure(part(fewer, most_rounds=2), Options(repeat=3))
    assert (more.runs, fewer.runs) == (7, 2)


# What is left out is named, and ends nothing.


def test_parts_that_fail_or_cannot_be_measured_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    broken = part(Work("fleetlm", clock, 1.0, fails=True), name="broken")
    absent = part(Work("fleetlm", clock, 1.0), name="absent", why_not=lambda _: "zebra is not installed")
    good = part(Work("fleetlm", clock, 1.0), name="good")
    parts = [broken, absent, good]
    results, skipped, has_failed = command_line.measure_all(parts, Options(repeat=1), math.inf)
    assert [result.benchmark.name for result in results] == ["good"]
    assert skipped == [
        "broken is left out: it failed: fleetlm ended",
        "absent is left out: zebra is not installed",
    ]
    assert has_failed
    out = capsys.readouterr().out
    assert all(f"\n{line}\n" in f"\n{out}" for line in skipped)


def test_a_run_without_time_measures_nothing_and_says_so() -> None:
    parts = [part(Work("fleetlm", Clock(), 1.0), name=name) for name in ("one", "two")]
    results, skipped, has_failed = command_line.measure_all(parts, Options(repeat=1), 0.0)
    assert (results, has_failed) == ([], False)
    assert skipped == [f"{name} is left out: the time of the run was over" for name in ("one", "two")]


def test_a_run_with_a_part_that_fails_writes_its_report_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setitem(BENCHMARKS, "broken", part(Work("fleetlm", clock, 1.0, fails=True), name="broken"))
    monkeypatch.setitem(BENCHMARKS, "good", part(Work("fleetlm", clock, 1.0), name="good"))
    command = ["broken", "good", "--quick", "--minutes", "1", "--loop", "asyncio", "--report", str(tmp_path)]
    assert command_line.main(command) == 1
    text = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert "\n- broken is left out: it failed: fleetlm ended\n" in text
    assert "\n## good: a part\n" in text


def test_a_number_of_minutes_must_be_positive() -> None:
    with pytest.raises(SystemExit, match="--minutes must be more than 0"):
        command_line.main(["--minutes", "0"])


def test_the_report_lists_its_parts_and_the_rounds_that_are_missing(tmp_path: Path) -> None:
    clock = Clock()
    ours = Work("fleetlm", clock, 8.0)
    result = report.measure(part(ours), Options(repeat=2), limit_s=10.0, clock=clock)
    written = page.write(tmp_path, [result], Options(repeat=2), machine.facts(), [])
    text = written.read_text(encoding="utf-8")
    assert "## Parts\n\n- part: a part\n" in text
    assert "\n1 of 2 rounds: its 10 s of the run were over\n" in text
    assert report.as_json([result], Options(), {})["benchmarks"][0]["note"] == result.note


def test_a_start_without_compiled_modules_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert start.why_not(Options()) == ""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert start.why_not(Options()) == "PYTHONDONTWRITEBYTECODE is set"


@pytest.mark.parametrize("module", [observed, entities])
def test_a_part_whose_package_is_missing_is_left_out(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert module.why_not(Options()) != ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert module.why_not(Options()) == ""


# Helpers.


def test_helpers_end_in_the_reverse_order_of_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class FakeHelper:
        def __init__(self, target: str, config: dict[str, Any], command: Sequence[str] | None = None) -> None:
            self.target = target
            log.append(f"start {target} {config['index']} {command}")

        def receive(self) -> dict[str, Any]:
            return {}

        def close(self) -> None:
            log.append(f"close {self.target}")

    monkeypatch.setattr("benchmarks.helpers.Helper", FakeHelper)
    ours = Helpers("fleetlm", floor=False, config={})
    ours.start_members("module:node", 2)
    ours.close()
    ours.close()
    assert log == [
        *("start module:node 0 None", "start module:node 1 None"),
        *("close module:node", "close module:node"),
    ]
    assert not ours.is_peer
    log.clear()
    theirs = Helpers("zebra", floor=True, config={}, command=lambda target, _: ["zebra", target])
    theirs.start("node", {"index": 0})
    assert theirs.is_peer
    assert log == ["start zebra, node, 0 ['zebra', 'node']"]


def test_a_helper_that_sends_no_facts_has_failed() -> None:
    helper = Helper("zebra", {}, [sys.executable, "-c", "print('WARNING: zebra')"])
    try:
        with pytest.raises(HelperFailed, match="zebra sent b'WARNING: zebra'"):
            helper.receive()
    finally:
        helper.close()


class FakeSession:
    """A session that notes what it is asked."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def open(self) -> None:
        self.log.append("open")

    def run(self, command: str) -> Metrics:
        self.log.append(command)
        return {}

    def close(self) -> None:
        self.log.append("close")


def test_modes_send_their_commands_to_the_session_that_they_share() -> None:
    session: Any = FakeSession()
    modes = [Mode("fleetlm", session, "plain"), Mode("the least", session, "bare", floor=True)]
    report.measure(Benchmark("part", "a part", [RATE], lambda _: modes), Options(repeat=1))
    assert session.log == ["open", "open", "plain", "bare", "close", "close"]
    assert [mode.floor for mode in modes] == [False, True]


# The programs of the newer parts. One test starts them all, since each start costs a third of a second.

SMALL = {
    "loop": "asyncio",
    "sequential": 3,
    "outstanding": 200,
    "count": 100,
    "at_once": [100],
    "seconds": 0.01,
    "members": [10, 20],
}


def run_modes(server: str, driver: str, modes: Sequence[str], servers: int, **more: Any) -> list[Metrics]:
    config = {**SMALL, **more}
    session = Session("session", floor=False, server=server, driver=driver, config=config, servers=servers)
    try:
        for _ in modes:
            session.open()  # It starts its processes once.
        return [session.run(mode) for mode in modes]
    finally:
        session.close()


def test_observing_is_measured_in_every_mode() -> None:
    modes = (observed.PLAIN, observed.METRICS, observed.TELEMETRY)
    found = run_modes("observed:server", "observed:client", modes, 1)
    keys = {metric.key for metric in observed.BENCHMARK.metrics}
    assert [set(metrics) for metrics in found] == [keys] * 3
    assert min(value for metrics in found for value in metrics.values()) > 0


async def test_observers_are_switched(fleet: Fleet) -> None:
    node = await fleet.node()
    observers = observed.Observers(node)
    node.spawn(observed.echo, name="echo")
    observers.switch(observed.TELEMETRY)
    await node.call("echo", b"x")
    await fleet.until(lambda: observers.events > 0)
    for mode in (observed.METRICS, observed.PLAIN):
        observers.switch(mode)
        seen = observers.events
        await node.call("echo", b"x")
        await fleet.sleep(0.1)
        assert observers.events == seen
    with pytest.raises(ValueError, match="no mode is called 'loud'"):
        observers.switch("loud")


async def test_the_echo_counts_what_is_no_call(fleet: Fleet) -> None:
    node = await fleet.node()
    node.spawn(observed.echo, name="echo")
    for _ in range(3):
        await node.send("echo", b"x")
    assert await node.call("echo", None) == 3
    assert await node.call("echo", None) == 0
    assert await node.call("echo", b"y") == b"y"


def test_small_differences_are_shown_with_three_digits_and_quartiles() -> None:
    ratios = [0.9, 1.0, 1.01, 1.02, 1.2]
    assert report.format_ratio(ratios) == "1.01 x"
    assert report.format_ratio(ratios, is_fine=True) == "1.010 x (1.000 to 1.020)"
    assert report.format_ratio([1.0], is_fine=True) == "1.00 x"
    assert report.format_ratio([], is_fine=True) == ""


def test_another_commit_takes_part_in_new_pairs_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="there is no fleetlm in"):
        command_line.main(["metrics", "--against", str(tmp_path)])
    started: list[tuple[str, str | None]] = []

    class Fake:
        def __init__(self, target: str, config: dict[str, Any]) -> None:
            started.append((target, config.get("tree")))

        def receive(self) -> None:
            """It is ready."""

        def request(self, command: str, _timeout_s: float) -> Metrics:
            return {command: 1.0}

        def close(self) -> None:
            started.append(("closed", None))

    monkeypatch.setattr(helpers, "Helper", Fake)
    variants = observed.variants(Options(against=tmp_path))
    assert [variant.label for variant in variants][-1] == f"nobody observes, {tmp_path.name}"
    for variant in variants:
        variant.open()
    assert started == []
    assert [variant.run() for variant in variants[1:]] == [
        {observed.METRICS: 1.0}, {observed.TELEMETRY: 1.0}, {observed.PLAIN: 1.0}
    ]  # fmt: skip
    tree = str(tmp_path.resolve())
    closed = ("closed", None)
    assert started[-4:] == [("observed:server", tree), ("observed:client", tree), closed, closed]
    assert started[:2] == [("observed:server", None), ("observed:client", None)]


def test_a_helper_refuses_another_fleetlm_than_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["helper", "observed:server", json.dumps({"tree": str(tmp_path)})])
    with pytest.raises(SystemExit, match=r"fleetlm comes from .*, not from"):
        helper.main()


def test_all_kinds_of_messages_of_which_instructions_are_counted_arrive() -> None:
    async def main() -> None:
        ips = ["127.0.0.1", "127.0.0.2"]
        usual = Settings(dns_query=",".join(ips), remote=False)
        starting = [Node.start(usual.replace(node_ip=ip), transport=MemoryTransport()) for ip in ips]
        async with starting[0] as here, starting[1] as there:
            for node in (here, there):
                node.spawn(instructions.echo, name="echo")
                node.spawn(instructions.sink, name="sink")
                node.spawn(instructions.Echo, name="actor")
            await here.ready(1)
            await instructions.host_entities(here, there)
            for do in instructions.works(here, there.name).values():
                await do(100)
            assert await here.call(("sink", there.name), None) == 100
            assert await here.call("sink", None) == 100
            with instructions.observed(here, instructions.TELEMETRY):
                await here.call("echo", b"x")

    run(main())


def test_picks_are_measured_for_every_rule_and_size() -> None:
    rules = (picks.BY_LOAD, picks.WHERE, picks.KEY + picks.CHURN, picks.FLOOR)
    found = run_modes("start_programs:bare", "picks:members", rules, 0)
    assert [set(metrics) for metrics in found] == [{"pick_10_s", "pick_20_s"}] * 4


async def test_what_is_picked_is_a_member_with_what_was_wanted(fleet: Fleet) -> None:
    node = await fleet.node(newcomer_s=picks.NOT_NEW_S)
    picks.fill(node, "group", 20)
    todo: dict[str, Any] = picks.picks(node, "group")
    members = node.groups.members("group")
    assert set(todo) == {picks.BY_LOAD, picks.TWO_CHOICES, picks.WHERE, picks.KEY, picks.FLOOR}
    assert all(pick() in members for pick in todo.values())
    metas = {info.pid: info.meta for info in node.groups.describe("group")}
    assert {metas[todo[picks.WHERE]()]["model"] for _ in range(5)} == {"model-3"}
    assert {todo[picks.KEY]() for _ in range(5)} == {todo[picks.KEY]()}


async def test_members_come_and_go_and_the_group_keeps_its_size(fleet: Fleet) -> None:
    node = await fleet.node()
    picks.fill(node, "group", 5)
    group = "group" + picks.CHURN
    before = node.groups.members(group)
    change, watching = picks.churn(node, group), node.groups.watch(group)
    for _ in range(3):
        change()
    changes = [await anext(watching) for _ in range(5 + 6)][5:]
    assert [each.pid for each in changes] == [before[0]] * 2 + [before[1]] * 2 + [before[2]] * 2
    assert node.groups.members(group) == before


def test_gauges_are_measured_in_the_simulation() -> None:
    modes = ("report", "pick", "idle")
    found = run_modes("start_programs:bare", "gauges:simulate", modes, 0, members=3, ticks=2)
    assert [set(metrics) for metrics in found] == [{"tick_s"}] * 3


@pytest.mark.skipif(entities.why_not(Options()) != "", reason="this fleetlm has no entities")
def test_entities_are_measured_beside_actors() -> None:
    modes = (entities.ENTITY, entities.ACTOR)
    found = run_modes("entities:server", "entities:client", modes, 1)
    found += run_modes("start_programs:bare", "entities:alone", modes, 0)
    assert all({"p50_s", "rate_100"} <= set(metrics) for metrics in found)
    usual = {"start_s", "rss_bytes"}
    for function, more in (("entities", {"revive_s"}), ("actors", set())):
        config = {"loop": "asyncio", "count": 200}
        launch = Launch(function, floor=False, target=f"many_entities:{function}", config=config)
        each = {"bytes_each", "most_bytes", "begin_s", "again_s", "end_s"}
        assert set(launch.run()) == usual | more | each


def test_calls_go_to_one_after_the_other() -> None:
    asked: list[int] = []
    calls: Any = [lambda number=number: asked.append(number) for number in range(3)]
    call: Any = entities.in_turn(calls)
    for _ in range(4):
        call()
    assert asked == [0, 1, 2, 0]


@pytest.mark.long
@pytest.mark.parametrize("function", [function for function, _ in start.EXTRAS.values()])
def test_a_start_with_extras_is_measured(function: str) -> None:
    launch = Launch("extras", floor=False, target=f"start_programs:{function}", config={"env": start.QUERY})
    assert set(launch.run()) == {"start_s", "rss_bytes"}


async def test_a_stream_that_loses_items_is_not_measured() -> None:
    async def items(count: int, _size: int) -> Any:
        for _ in range(min(count, 2)):
            yield b""

    with pytest.raises(RuntimeError, match="2 of 5 items arrived"):
        await streams.measure(items, {"sequential": 1, "items": 5, "large_items": 1})


# The peers.


def test_what_nobody_answers_is_counted_until_all_have_come() -> None:
    counter = Counter()
    counter.add()
    assert counter.counted(2) == 1
    counter.add()
    assert counter.counted(2) == 2
    assert counter.counted(2) == 0


def test_a_slow_peer_gets_a_part_of_the_work() -> None:
    slow = peers.Peer("slow", "with_slow", "slow", peers.MESSAGES, pace=0.1)
    config = {"count": 1_000, "outstanding": 100, "sequential": 5, "each": 2}
    assert peers.paced(slow, config) == {"count": 100, "outstanding": 20, "sequential": 5, "each": 2}
    assert peers.paced(peers.PEERS[0], config) == config


def test_erlang_becomes_a_node_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda _program, command: commands.append(command))
    monkeypatch.setenv("ERL_CRASH_DUMP_BYTES", "0")  # It is set, and so restored.
    config = {"index": 1, "ips": ["127.0.0.1", "127.0.0.2"], "port": 4_711, "window_s": 0.5}
    functions = (with_erlang.mesh_node, with_erlang.idle_node, with_erlang.crash_node)
    for function in functions:
        function(None, config)  # type: ignore[arg-type]  # the program talks to the parent by itself
    with_erlang.client(None, {**config, "work": "beside", "seconds": 2})  # type: ignore[arg-type]
    for command, task in zip(commands, ("mesh", "idle", "crash"), strict=False):
        assert command[command.index("-name") + 1] == "bench1@127.0.0.2"
        nodes = "bench0@127.0.0.1,bench1@127.0.0.2"
        assert f"member({json.dumps([task, '1', nodes, '500'])})" in command[-1]
    assert commands[-1][-1].endswith('"2000"]).')


@pytest.mark.long
@pytest.mark.skipif(peers.PEERS[0].version is None, reason="Erlang is not installed")
@pytest.mark.parametrize("work", sorted(peers.PEERS[0].works))
def test_erlang_measures_everything(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.idle.SETTLE_S", 0.0)
    benchmark = BENCHMARKS[work]
    options = Options(quick=True, loop="asyncio", peers=frozenset({"erlang"}))
    (erlang,) = [each for each in benchmark.variants(options) if getattr(each, "is_peer", False)]
    for name, small in (("_members", (2,)), ("_config", {**getattr(erlang, "_config", {}), **SMALL})):
        if hasattr(erlang, name):
            monkeypatch.setattr(erlang, name, small)
    try:
        erlang.open()
        assert min(erlang.run().values()) >= 0
    finally:
        erlang.close()


# The script for a cluster of the user.


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--payload", "-1"], ["--nodes", "x"]])
def test_the_script_refuses_numbers_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        fanout.parser().parse_args(arguments)


async def test_the_script_measures_what_its_options_say(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = await fleet.start(2)
    nodes[1].spawn(fanout.echo, name="worker")
    monkeypatch.setattr(sys, "argv", ["fanout.py", "--name", "worker", "--payload", "9", "--count", "7"])
    assert await fanout.main(nodes[0]) == 0
    out, progress = capsys.readouterr()
    assert "0 replies missing" in out
    assert "7 of 7 to 1 nodes" in progress


async def test_the_script_says_which_nodes_it_did_not_find(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = await fleet.start(2)
    monkeypatch.setattr(sys, "argv", ["fanout.py", "--nodes", "3"])
    assert await fanout.main(nodes[0]) == 1
    assert "1 of 3 other nodes after 30 s" in capsys.readouterr().err


async def test_the_script_ends_when_no_node_is_left(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    node = await fleet.node()
    times, missing = await fanout.measure(node, "worker", b"", 5, 1.0)
    assert (times, missing) == ([], 5)
    assert "no node is connected" in capsys.readouterr().err
    assert fanout.report(times, missing) == "nothing was measured; 5 replies missing"


async def test_the_script_serves(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = await fleet.node()
    monkeypatch.setattr(sys, "argv", ["fanout.py", "--serve", "--name", "worker"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await fanout.main(node)
    assert await node.call("worker", b"x") == b"x"
    assert "replies as 'worker'" in capsys.readouterr().out
