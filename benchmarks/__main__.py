"""The command line of the benchmarks: ``python -m benchmarks [names] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    actors,
    beside,
    bulk,
    calls,
    crash,
    fan_out,
    guard,
    idle,
    local,
    machine,
    mesh,
    one_way,
    page,
    peers,
    report,
    spawn,
    start,
    thousand,
)
from benchmarks.registry import Benchmark, Options

_ALL = (
    *(one_way.BENCHMARK, calls.BENCHMARK, actors.BENCHMARK),
    *(fan_out.BENCHMARK, fan_out.BENCHMARK_64, fan_out.BENCHMARK_512),
    *(bulk.BENCHMARK, beside.BENCHMARK, local.BENCHMARK, spawn.BENCHMARK),
    *(start.BENCHMARK, mesh.BENCHMARK, idle.BENCHMARK, crash.BENCHMARK, thousand.BENCHMARK),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
PEERS = tuple(peer.name.lower() for peer in peers.PEERS)
QUICK_REPEAT, REPEAT = 3, 5


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fleetlm and floors in plain pyzmq, in turns, on loopback.",
        epilog="benchmarks: " + ", ".join(BENCHMARKS),
    )
    top.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    top.add_argument("--quick", action="store_true", help="less work and fewer rounds: under 40 s")
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
    options = Options(
        quick=args.quick,
        loop=args.loop or ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio"),
        repeat=args.repeat or (QUICK_REPEAT if args.quick else REPEAT),
        peers=peers_named(args.peers),
        ways=args.ways,
    )
    names = args.names or (list(guard.LEAST) if args.guard else [])
    known = machine.facts()
    print(machine.summary(known))
    notes = peers.absent(options)
    print(f"median of {options.repeat} rounds, variants in turns; loopback", *notes, "", sep="\n")
    started = time.perf_counter()
    results = []
    for benchmark in chosen(names):
        results.append(report.measure(benchmark, options, _progress))
        _progress("")
        print(report.table(results[-1]), end="\n\n", flush=True)
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
    return 1 if complaints else 0


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
