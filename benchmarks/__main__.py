"""The command line of the benchmarks: ``python -m benchmarks [names] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import actors, bulk, calls, fan_out, machine, mesh, one_way, report, spawn, start
from benchmarks.registry import Benchmark, Options

_MODULES = (one_way, calls, actors, fan_out, bulk, start, mesh, spawn)
BENCHMARKS: dict[str, Benchmark] = {each.BENCHMARK.name: each.BENCHMARK for each in _MODULES}
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
            print(f"{benchmark.name:<10} {benchmark.title}")
        return 0
    if args.repeat is not None and args.repeat < 1:
        raise SystemExit("--repeat must be at least 1")
    options = Options(
        quick=args.quick,
        loop=args.loop or ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio"),
        repeat=args.repeat or (QUICK_REPEAT if args.quick else REPEAT),
    )
    known = machine.facts()
    print(machine.summary(known))
    print(f"median of {options.repeat} rounds, variants in turns; loopback\n")
    started = time.perf_counter()
    results = []
    for benchmark in chosen(args.names):
        results.append(report.measure(benchmark, options, _progress))
        _progress("")
        print(report.table(results[-1]), end="\n\n", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if args.json is not None:
        text = json.dumps(report.as_json(results, options, known), indent=1)
        args.json.write_text(f"{text}\n", encoding="utf-8")
    return 0


def _progress(text: str) -> None:
    """Show a line of progress on a terminal; it is overwritten."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
