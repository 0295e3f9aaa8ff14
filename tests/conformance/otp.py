"""Runs judge.erl, and keeps the record of what Erlang/OTP does (otp.json).

``python -m tests.conformance.otp`` writes the record anew; it needs ``erl``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.script import FOLDER, Step, flat, scenarios

RECORD = FOLDER / "otp.json"
JUDGE = FOLDER / "judge.erl"
LIMIT_S = 39.0
"""The judge ends by itself before this."""
LOAD = (
    '{{ok, judge, Code}} = compile:file("{judge}", [binary, nowarn_unused_vars]),'
    '{{module, judge}} = code:load_binary(judge, "judge.erl", Code),'
    "persistent_term:put(judge_code, Code), judge:main()."
)

Outcomes = dict[str, list[str]]


@dataclass(frozen=True)
class Verdict:
    """What the judge said."""

    otp: str
    outcomes: Outcomes


def erlang() -> str | None:
    """Where ``erl`` is; the nodes need the addresses 127.0.0.0/8, which Linux has."""
    return shutil.which("erl") if sys.platform == "linux" else None


def judge(named: dict[str, list[Step]]) -> Verdict:
    """Play scenarios on real Erlang nodes. Raises: RuntimeError, when the judge could not."""
    with tempfile.TemporaryDirectory() as home:
        script = Path(home, "scenarios.txt")
        script.write_text(flat(named), encoding="utf-8")
        load = LOAD.format(judge=JUDGE)
        command = [
            str(erlang()), "-noshell", "-name", "here@127.0.0.1", "-setcookie", f"c{secrets.token_hex(16)}",
            "-start_epmd", "false", "-erl_epmd_port", str(_free_port()),
            "-kernel", "inet_dist_use_interface", "{127,0,0,1}", "dist_auto_connect", "never",
            "connect_all", "false", "prevent_overlapping_partitions", "false",
            "logger_level", "none", "-eval", f'io:format("~s~n", [erlang:system_info(otp_release)]), {load}',
            "-extra", str(script),
        ]  # fmt: skip
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
            env={"HOME": home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            check=False,
        )
    if ran.returncode != 0:
        raise RuntimeError(f"the judge ended with {ran.returncode}: {ran.stderr[-4000:]}{ran.stdout[-500:]}")
    otp, *lines = ran.stdout.splitlines()
    return Verdict(
        otp, {name: json.loads(said) for name, _, said in (line.partition("\t") for line in lines)}
    )


def recorded() -> Verdict:
    """The record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return Verdict(record["otp_release"], record["outcomes"])


def write(verdict: Verdict) -> None:
    """Make this the record. Raises: RuntimeError, if a scenario could not be played."""
    unplayed = [name for name, said in verdict.outcomes.items() if said[0].startswith("could not")]
    if unplayed:
        raise RuntimeError(f"not recorded, since these could not be played: {unplayed}")
    text = json.dumps({"otp_release": verdict.otp, "outcomes": verdict.outcomes}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")


def _free_port() -> int:
    """Free on this node's address; the others have addresses of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    write(judge(scenarios()))
