"""The command line: ``python -m tests.long.attacks [--cookie] [--seconds N] [NAME ...]``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence

from fleetlm.transport.curve import keys_from_cookie
from tests.long.attacks import holders, strangers
from tests.long.attacks.lab import COOKIE, Outcome, lab
from tests.long.attacks.members import MEMBERS, Watched, report
from tests.long.attacks.strangers import Target

CONTROLS = {control.__name__: control for control in strangers.CONTROLS}
STRANGERS = {attack.__name__: attack for attack in strangers.STRANGERS}
HOLDERS = {attack.__name__: attack for attack in holders.HOLDERS}
NAMES = (*CONTROLS, *STRANGERS, *HOLDERS)
ONLY_WITH_COOKIE = {"false_keys"}
MOST_RATIO = 3.0
"""The 99th percentile of honest calls under an attack should be at most so many times the quiet one."""
HEAD = (
    f"{'attack':<14}{'p50 ms':>15}{'p99 ms':>17}{'x':>6}{'max':>7}{'calls':>7}{'lost':>6}{'down':>6}"
    f"{'MB':>12}{'CPU':>12}{'lag ms':>8}{'turn ms':>8}{'gc ms':>7}{'files':>7}{'lines':>7}  what"
)


def row(outcome: Outcome) -> str:
    """Return the row of an attack."""
    quiet, attacked = outcome.quiet, outcome.attacked
    return (
        f"{outcome.name:<14}{quiet.p50_ms:>6.2f} → {attacked.p50_ms:>6.2f}{quiet.p99_ms:>7.2f} →"
        f"{attacked.p99_ms:>8.2f}{outcome.ratio:>6.1f}{attacked.max_ms:>7.0f}{attacked.calls:>7,}"
        f"{attacked.failed:>6}{attacked.downs:>6}{quiet.rss_mb:>5.0f} →{attacked.rss_mb:>5.0f}"
        f"{quiet.cpu:>5.2f} →{attacked.cpu:>5.2f}{attacked.lag_ms:>8.0f}"
        f"{attacked.turn_ms:>8.1f}{attacked.collection_ms:>7.1f}{attacked.descriptors:>7}"
        f"{attacked.lines:>7}  {outcome.note}{'' if outcome.is_alive else '; THE VICTIM HAS ENDED'}"
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return which attacks cost the honest peer more than `MOST_RATIO` times the quiet 99th percentile."""
    quiet_ms = statistics.median(outcome.quiet.p99_ms for outcome in outcomes)
    all_ratios = {outcome.name: outcome.attacked.p99_ms / quiet_ms for outcome in outcomes}
    ratios = {name: ratio for name, ratio in all_ratios.items() if name not in CONTROLS}
    beyond = [f"{name} {ratio:.1f}" for name, ratio in ratios.items() if ratio > MOST_RATIO]
    controls = "".join(
        f"; {name}, no attack: {all_ratios[name]:.1f}" for name in CONTROLS if name in all_ratios
    )
    return (
        f"quiet p99 {quiet_ms:.2f} ms (median of all); under attack at most "
        f"{max(ratios.values(), default=0.0):.1f} times as much; beyond {MOST_RATIO:g} times: "
        f"{', '.join(beyond) or 'none'}{controls}"
    )


def attack(name: str, seconds: float) -> None:
    """Be the attacker: prepare, say so, wait for a line, attack, and tell what was done."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    logging.disable()
    victim, cookie = os.environ["ATTACKED"], os.environ.get("FLEETLM_COOKIE")
    keys = None if cookie is None else keys_from_cookie(cookie)
    port = int(os.environ["FLEETLM_NODE_PORT"])
    target = Target(victim.partition("@")[2], port, victim, os.environ["HONEST"], keys)

    def go() -> None:
        report(ready=True)
        sys.stdin.readline()
        target.until = time.monotonic() + seconds

    async def go_on() -> None:
        await asyncio.to_thread(go)

    if name in HOLDERS:
        note = asyncio.run(holders.attack(HOLDERS[name], target, go_on))
    else:
        attacking = (CONTROLS | STRANGERS)[name](target)
        next(attacking)
        go()
        try:
            next(attacking)
        except StopIteration as end:
            note = end.value
    report(note=note)
    os._exit(0)  # With all connections; to close them one by one takes long at the lowest priority.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen attacks, one after the other, and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.attacks")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"attacks (default: all): {', '.join(NAMES)}"
    )
    parser.add_argument("--cookie", action="store_true", help="with a cookie, which the attacker holds")
    parser.add_argument("--seconds", type=float, default=2.5, help="seconds of each attack (default: 2.5)")
    parser.add_argument("--quiet-seconds", type=float, default=1.5, help="seconds before it (default: 1.5)")
    parser.add_argument("--log", action="store_true", help="print the end of the victim's log")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no attack is named {unknown[0]!r}")
    names = args.names or [name for name in NAMES if args.cookie or name not in ONLY_WITH_COOKIE]
    cookie, began = COOKIE if args.cookie else None, time.monotonic()
    print(f"{'with' if args.cookie else 'without'} a cookie; load {os.getloadavg()[0]:.1f}")
    print(HEAD, flush=True)
    outcomes: list[Outcome] = []
    for name in names:
        with lab(cookie) as running:
            try:
                outcomes.append(running.attack(name, args.quiet_seconds, args.seconds))
                print(row(outcomes[-1]), flush=True)
            except RuntimeError as error:
                print(f"{name:<14}{error}", *running.logs(), sep="\n", flush=True)
            if args.log:
                print(running.log[-2_000:])
    print(summary(outcomes), f"{time.monotonic() - began:.0f} s", sep="\n")
    return 0


def run(argv: Sequence[str]) -> int:
    """Be a member of a lab, the attacker, or the command line."""
    match argv:
        case ["victim" | "honest" as member]:
            logging.basicConfig(level=logging.INFO)
            watched = Watched()
            with asyncio.Runner(loop_factory=watched.loop) as runner:
                runner.run(MEMBERS[member](watched))
            return 0
        case ["attack", name, seconds]:
            attack(name, float(seconds))
            return 0
    return main(argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
