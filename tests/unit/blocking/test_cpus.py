"""How many CPUs a program may use: the arithmetic, and the files of control groups as kernels write them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from fleetlm.blocking import cpus as module
from fleetlm.blocking.cpus import count, cpus, groups_of, quota_of_v1, quota_of_v2


@pytest.mark.parametrize(
    ("allowed", "quotas", "result"),
    [
        (64, [], 64),
        (64, [math.inf], 64),
        (64, [2.0], 2),
        (64, [1.5], 2),  # Two processes use 1.5 CPUs up; one does not.
        (64, [math.inf, 4.0, 2.0], 2),  # A group around this one may have less.
        (2, [8.0], 2),
        (8, [0.1], 1),
        (0, [], 1),
    ],
)
def test_a_quota_is_rounded_up_and_the_smallest_one_counts(
    allowed: int, quotas: list[float], result: int
) -> None:
    assert count(allowed, quotas) == result


def test_the_files_of_both_versions_are_read() -> None:
    assert quota_of_v2("150000 100000\n") == 1.5
    assert quota_of_v2("max 100000\n") == math.inf
    assert quota_of_v1("200000\n", "100000\n") == 2
    assert quota_of_v1("-1\n", "100000\n") == math.inf


@pytest.mark.parametrize("text", ["", "garbage", "1 2 3", "100000 0", "-5 100000"])
def test_what_cannot_be_read_is_no_limit(text: str) -> None:
    assert quota_of_v2(text) == math.inf


def test_the_group_of_each_hierarchy() -> None:
    text = "12:cpu,cpuacct:/docker/abc\n1:name=systemd:/x:y\n0::/user.slice/run.scope\n\nnonsense\n"
    found = groups_of(text)
    assert found["cpu"] == found["cpuacct"] == "/docker/abc"
    assert found["name=systemd"] == "/x:y"
    assert found[""] == "/user.slice/run.scope"


def files(root: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("group", "contents", "result"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # A container with a namespace of its own.
        ("0::/docker/abc\n", {"cpu.max": "200000 100000\n"}, 2),  # It sees the name that the host uses.
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/../..\n", {"cpu.max": "max 100000\n"}, 16),
        (
            "4:cpu,cpuacct:/docker/abc\n",
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "4:cpu,cpuacct:/kube/pod\n",
            {
                "cpu,cpuacct/kube/pod/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/kube/pod/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ("", {}, 16),
    ],
)
def test_every_group_around_this_process_counts(
    group: str, contents: dict[str, str], result: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_allowed", lambda: 16)
    files(tmp_path / "cgroup", contents)
    (tmp_path / "self").write_text(group, encoding="utf-8")
    assert cpus(str(tmp_path / "self"), str(tmp_path / "cgroup")) == result


def test_without_control_groups_the_affinity_counts_or_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = str(tmp_path / "nothing")
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert cpus(nothing, nothing) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus(nothing, nothing) == 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert cpus(nothing, nothing) == 5
    assert cpus() >= 1
