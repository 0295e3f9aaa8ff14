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

from benchmarks.helpers import Helper, ServersAndDriver
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
        works: what it can do of ``calls``, ``actors``, ``one-way``, ``fan-out`` and ``bulk``.
    """

    name: str
    module: str
    package: str
    works: frozenset[str]

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


ALL = frozenset({"calls", "actors", "one-way", "fan-out", "bulk"})
PEERS = (
    Peer("Erlang", "with_erlang", "", ALL),
    Peer("casty", "with_casty", "casty", ALL),
    Peer("xoscar", "with_xoscar", "xoscar", ALL),
    Peer("rpyc", "with_rpyc", "rpyc", ALL - {"actors"}),
    Peer("ray", "with_ray", "ray", ALL),
)


class PeerServersAndDriver(ServersAndDriver):
    """The processes of a peer."""

    is_peer = True

    def __init__(self, peer: Peer, label: str, config: Mapping[str, Any], servers: int) -> None:
        super().__init__(label, floor=True, server="server", driver="client", config=config, servers=servers)
        self._peer = peer

    def start_helper(self, target: str, config: Mapping[str, Any]) -> Helper:
        """Start one process with the interpreter of the peer."""
        return Helper(f"{self._peer.name} {target}", config, self._peer.command(target, config))


def chosen(options: Options) -> list[Peer]:
    """Return the peers that were asked for and are installed."""
    return [peer for peer in PEERS if peer.name.lower() in options.peers and peer.version is not None]


def variants(options: Options, work: str, config: Mapping[str, Any], servers: int = 1) -> Sequence[Variant]:
    """Return a variant for each peer that can do this work."""
    return [
        PeerServersAndDriver(peer, f"{peer.name} {peer.version}", {**config, "work": work}, servers)
        for peer in chosen(options)
        if work in peer.works
    ]


def absent(options: Options) -> list[str]:
    """Return a line for each peer that was asked for and is not installed."""
    return [
        f"{peer.name} is left out: it is not installed for {peer.python if peer.package else 'this machine'}"
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
