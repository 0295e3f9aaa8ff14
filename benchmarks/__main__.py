"""The command line of the benchmarks: ``python -m benchmarks [names] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    actors,
    beside,
    budget,
    bulk,
    calls,
    crash,
    entities,
    fan_out,
    gauges,
    guard,
    idle,
    local,
    machine,
    many_entities,
    mesh,
    observed,
    one_way,
    page,
    peers,
    picks,
    report,
    spawn,
    start,
    streams,
    thousand,
)
from benchmarks.helpers import HelperFailed
from benchmarks.registry import Benchmark, Options

_ALL = (
    *(one_way.BENCHMARK, calls.BENCHMARK, actors.BENCHMARK),
    *(fan_out.BENCHMARK, fan_out.BENCHMARK_64, fan_out.BENCHMARK_512),
    *(bulk.BENCHMARK, beside.BENCHMARK, streams.BENCHMARK, local.BENCHMARK, spawn.BENCHMARK),
    *(observed.BENCHMARK, entities.BENCHMARK, entities.LOCAL, many_entities.BENCHMARK),
    *(picks.BENCHMARK, gauges.BENCHMARK),
    *(start.BENCHMARK, mesh.BENCHMARK, idle.BENCHMARK, crash.BENCHMARK, thousand.BENCHMARK),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
PEERS = tuple(peer.name.lower() for peer in peers.PEERS)
QUICK_REPEAT, REPEAT = 3, 5


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fleetlm, floors in plain pyzmq and other libraries, in turns, on loopback.",
        epilog="benchmarks: " + ", ".join(BENCHMARKS),
    )
    top.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    top.add_argument("--quick", action="store_true", help="less work and fewer rounds")
    top.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="divide so much time among the parts; a part ends before the round that would take longer",
    )
    top.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    top.add_argument(
        "--loop", choices=("uvloop", "asyncio"), help="event loop (default: uvloop if it is installed)"
    )
    top.add_argument(
        "--repeat", type=int, metavar="N", help=f"rounds (default: {REPEAT}; with --quick: {QUICK_REPEAT})"
    )
    top.add_argument(
        "--peers",
        metavar="NAMES",
        help=f"also measure these, where they are installed: all, or {','.join(PEERS)}",
    )
    top.add_argument(
        "--ways",
        action="store_true",
        help="also measure fleetlm over ZeroMQ alone, on the other loop, with a cookie",
    )
    top.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="let `metrics` compare with a checkout of another commit",
    )
    top.add_argument("--report", type=Path, metavar="FOLDER", help="write REPORT.md and its charts to FOLDER")
    top.add_argument("--guard", action="store_true", help="fail if a ratio is far below what it should be")
    top.add_argument("--list", action="store_true", help="list the benchmarks")
    return top


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks with these names, or all. Raises: SystemExit for an unknown name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"unknown benchmark {unknown[0]!r}; use one of {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in names or BENCHMARKS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks, and print their tables. Returns the exit code."""
    args = parser().parse_args(argv)
    if args.list:
        for benchmark in BENCHMARKS.values():
            print(f"{benchmark.name:<12} {benchmark.title}")
        return 0
    if args.repeat is not None and args.repeat < 1:
        raise SystemExit("--repeat must be at least 1")
    if args.against is not None and not (args.against / "fleetlm").is_dir():
        raise SystemExit(f"--against: there is no fleetlm in {args.against}")
    if args.minutes is not None and not args.minutes > 0:
        raise SystemExit("--minutes must be more than 0")
    options = Options(
        quick=args.quick,
        loop=args.loop or ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio"),
        repeat=args.repeat or (QUICK_REPEAT if args.quick else REPEAT),
        peers=peers_named(args.peers),
        ways=args.ways,
        against=args.against,
    )
    names = args.names or (list(guard.LEAST) if args.guard else [])
    known = machine.facts()
    print(machine.summary(known))
    notes = peers.absent(options)
    print(f"median of {options.repeat} rounds, variants in turns; loopback", *notes, "", sep="\n")
    started = time.perf_counter()
    limit_s = math.inf if args.minutes is None else args.minutes * 60
    results, skipped, has_failed = measure_all(chosen(names), options, limit_s)
    notes += skipped
    print(f"{time.perf_counter() - started:.0f} s")
    if args.json is not None:
        text = json.dumps(report.as_json(results, options, known), indent=1)
        args.json.write_text(f"{text}\n", encoding="utf-8")
    if args.report is not None:
        print(f"wrote {page.write(args.report, results, options, known, notes)}")
    complaints = guard.complaints(results) if args.guard else []
    if complaints:  # Once more: a ratio can be bad by chance, while something else begins to run.
        print(*complaints, "measuring these once more", sep="\n")
        suspects = [result.benchmark for result in results if guard.complaints([result])]
        again = [report.measure(benchmark, options, _progress) for benchmark in suspects]
        print(*map(report.table, again), sep="\n\n")
        complaints = guard.complaints(again)
        print(*complaints, sep="\n", end="\n" if complaints else "")
    return 1 if complaints or has_failed else 0


def measure_all(
    benchmarks: Sequence[Benchmark], options: Options, limit_s: float
) -> tuple[list[report.Result], list[str], bool]:
    """Measure one part after the other, and print their tables.

    A part that fails does not end the run: what the others have shown would be lost.

    Returns:
        The results; a line for each part that is not among them, with the reason; and whether one has failed.
    """
    time_left = budget.Budget(limit_s, benchmarks)
    results: list[report.Result] = []
    skipped: list[str] = []
    has_failed = False
    for benchmark in benchmarks:
        part_s = time_left.next_limit_s()
        why_not = benchmark.why_not(options) or ("" if part_s > 0 else "the time of the run was over")
        if not why_not:
            try:
                results.append(report.measure(benchmark, options, _progress, part_s))
            except HelperFailed as error:
                why_not, has_failed = f"it failed: {error}", True
        _progress("")
        if why_not:
            skipped.append(f"{benchmark.name} is left out: {why_not}")
        print(skipped[-1] if why_not else report.table(results[-1]), end="\n\n", flush=True)
    return results, skipped, has_failed


def peers_named(text: str | None) -> frozenset[str]:
    """Return the peers of the option. Raises: SystemExit for an unknown one."""
    names = frozenset(PEERS if text == "all" else filter(None, (text or "").lower().split(",")))
    unknown = sorted(names.difference(PEERS))
    if unknown:
        raise SystemExit(f"unknown peer {unknown[0]!r}; use all, or some of {', '.join(PEERS)}")
    return names


def _progress(text: str) -> None:
    """Show a line of progress on a terminal; it is overwritten."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
