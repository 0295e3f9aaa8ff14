"""The number of CPUs that this program may use: its affinity, and the quotas of its control groups.

A container that is limited to 2 CPUs of a machine with 64 sees all 64, also in its affinity mask: the limit
is a quota of CPU time, which the kernel keeps in the files of its control group (cgroup). One worker
process for each CPU of the machine would then be 64 processes that share the time of two.

`count` is pure; `cpus` reads the files. A group may have less than its parents, never more, so every group
from this process's own up to the root counts. A quota is rounded up: 1.5 CPUs are used up by two processes,
not by one.

Source: OpenJDK's CgroupSubsystem for where the files are; differs: a file that cannot be read is no limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

PROC = "/proc/self/cgroup"
ROOT = "/sys/fs/cgroup"


def count(allowed: int, quotas: Iterable[float]) -> int:
    """Return how many processes can compute at a time.

    Args:
        allowed: CPUs in the affinity mask, or of the machine.
        quotas: CPU time of each control group, in CPUs.
    """
    return max(1, math.ceil(min([float(allowed), *quotas])))


def quota_of_v2(text: str) -> float:
    """Return the CPUs that a ``cpu.max`` allows: 1.5 for ``"150000 100000"``; infinity without a limit."""
    match text.split():
        case [str(quota), str(period)] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return math.inf


def quota_of_v1(quota: str, period: str) -> float:
    """Return the CPUs that ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` allow; -1 there means no limit."""
    return quota_of_v2(f"{quota.strip()} {period.strip()}")


def groups_of(text: str) -> dict[str, str]:
    """Return the control group for each hierarchy of ``/proc/self/cgroup``; version 2 is named ``""``."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match line.split(":", 2):
            case [_, controllers, path]:
                found.update(dict.fromkeys(controllers.split(","), path))
    return found


def cpus(proc: str = PROC, root: str = ROOT) -> int:
    """Return how many processes of this program can compute at a time, at least 1."""
    return count(_allowed(), _quotas(proc, root))


def _allowed() -> int:
    """Return the number of CPUs in this process's affinity mask, or of the machine where there is no mask."""
    process_cpu_count = getattr(os, "process_cpu_count", None)  # Python 3.13, which knows PYTHON_CPU_COUNT.
    if process_cpu_count is not None:
        return process_cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _quotas(proc: str, root: str) -> Iterator[float]:
    """Yield the quota of each control group that this process is in."""
    groups = groups_of(_read(proc))
    for folder in _folders(root, groups.get("")):
        yield quota_of_v2(_read(f"{folder}/cpu.max"))
    for mount in (f"{root}/cpu", f"{root}/cpu,cpuacct"):
        for folder in _folders(mount, groups.get("cpu")):
            yield quota_of_v1(_read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us"))


def _folders(mount: str, group: str | None) -> Iterator[str]:
    """Yield the folders of a group and of the groups around it.

    A container may see the name of its group as the host does, and only its own folder, as the root.
    """
    yield mount
    parts = [part for part in (group or "").split("/") if part]
    for depth in range(len(parts), 0, -1):
        if ".." not in parts[:depth]:
            yield "/".join([mount, *parts[:depth]])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # pathlib is slow to import
            return file.read()
    except OSError:  # There is no such hierarchy or group here.
        return ""
