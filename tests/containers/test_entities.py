"""Sessions in five containers that are restarted one after the other, while a sixth one appends to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containers.cluster import HERE, Cluster, docker, eventually, inspect, logs
from tests.support.patience import allowed_s, stretched
from tests.system.entity_ledger import DONE_SUFFIX, QUIET, READY_SUFFIX, Account
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.containers

WORKERS = 5
UP_S = 30.0
PAUSE_S = 0.25
"""Within this time 99 of 100 requests have their answers, while hosts leave and come."""


def test_a_rolling_restart_leaves_no_gap_and_fails_no_request(image: str, folder: Path) -> None:
    variables = {"FLEETLM_TEST_JOURNALS": str(folder), "FLEETLM_TEST_SYSTEM": str(HERE.parent / "system")}
    with Cluster(image, overlay=HERE / "entities.yaml", variables=variables) as cluster:
        cluster.scale(WORKERS)
        try:
            wait_for(folder, READY_SUFFIX, WORKERS + 1)
        except AssertionError as error:
            raise AssertionError("\n".join(map(logs, cluster.containers()))) from error
        label = f"label=com.docker.compose.project={cluster.project}"
        listed = docker(
            "ps", "--quiet", "--filter", label, "--filter", "label=com.docker.compose.service=worker"
        )
        workers = listed.stdout.split()
        assert len(workers) == WORKERS
        for number, worker in enumerate(workers, 1):
            docker("stop", worker)  # the grace period of docker/compose.yaml
            code = inspect(worker, ".State.ExitCode")
            assert code == "0", f"left with {code}:\n{logs(worker)}"
            docker("start", worker)
            wait_for(folder, READY_SUFFIX, WORKERS + 1 + number)
        (folder / QUIET).touch()
        wait_for(folder, DONE_SUFFIX, 1)
        account = Account().take_all(RunRecords(folder).new())
    pauses = {share: round(account.pause_s(share) * 1e3, 1) for share in (0.5, 0.99, 0.999, 1.0)}
    print(f"{len(account.asked)} requests; milliseconds until they ended, by share: {pauses}")
    assert account.complaints() == []
    assert len(account.lines) == 1_000
    assert account.pause_s(0.99) < allowed_s(PAUSE_S)


def wait_for(folder: Path, suffix: str, count: int) -> None:
    """Return when so many runs of nodes have made their file."""
    eventually(lambda: len([*folder.glob(f"*{suffix}")]), lambda found: found >= count, stretched(UP_S))
