"""A description of the machine on which figures were measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import zmq


def facts() -> dict[str, Any]:
    """Return the processor, the versions and the load."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "load_1_min": os.getloadavg()[0],
        "versions": {name: _version(name) for name in ("pyzmq", "msgpack", "dnspython", "uvloop")},
    }


def summary(known: dict[str, Any]) -> str:
    """Format the facts for the top of the tables."""
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return (
        f"{known['processor']}, {known['cpus']} CPUs, {known['system']}, load {known['load_1_min']:.2f}\n"
        f"Python {known['python']}, libzmq {known['libzmq']}, {versions}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
