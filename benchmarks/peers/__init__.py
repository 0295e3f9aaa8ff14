"""Other libraries in the same run: each does the work of a benchmark as its documentation says.

A peer is a module with the functions ``server`` and ``client`` (`benchmarks.helper`); ``config["work"]``
names what the client measures. One that is not installed is left out, with a line that says so.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.helpers import ServersAndDriver
from benchmarks.registry import Options, Variant

PROBE_TIMEOUT_S = 60.0
"""Seconds for a peer to say its version; Ray needs several to import."""


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: as in the tables.
        module: of its programs, below ``benchmarks.peers``.
        package: what to import; empty for a peer that is not written in Python.
        works: which benchmarks it can do.
        pace: the part of the messages and calls of a benchmark that it is given, since it needs much longer
            for each: the rate is the same, and a run ends.
    """

    name: str
    module: str
    package: str
    works: frozenset[str]
    pace: float = 1.0

    @property
    def python(self) -> str:
        """The interpreter to run it with: ``BENCH_PYTHON_<NAME>``, or else this one."""
        return os.environ.get(f"BENCH_PYTHON_{self.name.upper()}", sys.executable)

    @functools.cached_property
    def version(self) -> str | None:
        """Its version; None if it is not installed."""
        if not self.package:
            return _erlang_version()
        code = (
            f"import importlib.metadata as m, importlib as i; "
            f"i.import_module({self.package!r}); print(m.version({self.package!r}))"
        )
        found = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
        return found.stdout.strip() or None

    def command(self, function: str, config: Mapping[str, Any]) -> list[str]:
        """Return the command line of one of its programs."""
        target = f"peers.{self.module}:{function}"
        return [self.python, "-m", "benchmarks.helper", target, json.dumps(config)]


MESSAGES = frozenset({"calls", "actors", "one-way", "fan-out", "bulk", "beside"})
"""What `asyncio_client` measures."""
NODES = frozenset({"local", "spawn", "start", "mesh", "idle", "crash"})
PEERS = (
    Peer("Erlang", "with_erlang", "", MESSAGES | NODES),
    Peer("casty", "with_casty", "casty", MESSAGES),
    Peer("xoscar", "with_xoscar", "xoscar", MESSAGES, pace=0.25),
    # rpyc has no actors, and one blocking connection on which nothing travels beside a large call.
    Peer("rpyc", "with_rpyc", "rpyc", MESSAGES - {"actors", "beside"}, pace=0.25),
    Peer("ray", "with_ray", "ray", MESSAGES, pace=0.1),
)
PACED = ("count", "sequential", "outstanding")
"""Numbers of a config that `Peer.pace` makes smaller."""
LEAST = 20
"""Messages or calls of a run that are left at least."""


def chosen(options: Options) -> list[Peer]:
    """Return the peers that were asked for and are installed."""
    return [peer for peer in PEERS if peer.name.lower() in options.peers and peer.version is not None]


def able(options: Options, work: str) -> list[tuple[Peer, str]]:
    """Return each of them that can do this work, with its label in the tables."""
    return [(peer, f"{peer.name} {peer.version}") for peer in chosen(options) if work in peer.works]


def variants(options: Options, work: str, config: Mapping[str, Any], servers: int = 1) -> Sequence[Variant]:
    """Return a variant of servers and a driver for each peer that can do this work."""
    return [
        ServersAndDriver(
            label,
            floor=True,
            server="server",
            driver="client",
            config={**paced(peer, config), "work": work},
            servers=servers,
            command=peer.command,
        )
        for peer, label in able(options, work)
    ]


def paced(peer: Peer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the numbers for a peer."""
    fewer = {name: max(LEAST, int(config[name] * peer.pace)) for name in PACED if name in config}
    return {**config, **{name: min(config[name], number) for name, number in fewer.items()}}


def absent(options: Options) -> list[str]:
    """Return a line for each peer that was asked for and is not installed."""
    return [
        f"{peer.name} is left out: it is not installed{' for this Python' if peer.package else ''}"
        for peer in PEERS
        if peer.name.lower() in options.peers and peer.version is None
    ]


def _erlang_version() -> str | None:
    if shutil.which("erl") is None or shutil.which("erlc") is None:
        return None
    code = 'io:format("~s", [erlang:system_info(otp_release)]), halt().'
    found = subprocess.run(
        ["erl", "-noshell", "-eval", code],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    return f"OTP {found.stdout.strip()}" if found.returncode == 0 else None
