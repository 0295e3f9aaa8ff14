"""Five containers under load, restarted one after the other: no request fails and none runs twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containers.cluster import HERE, Cluster, docker, eventually, inspect, logs
from tests.system.rolling_ledger import QUIET, Account
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.containers

NODES = 5
ROUNDS = 2
READY_S = 60.0


class Rolling:
    """The containers, and the folder in which they write what they do."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._records, self._account = RunRecords(folder), Account()
        self.starts = NODES
        cluster.scale(NODES)
        self.wait_until_ready()
        self.containers = cluster.containers()

    def account(self) -> Account:
        return self._account.take_all(self._records.new())

    def wait_until_ready(self) -> None:
        eventually(lambda: self.account().ready, lambda ready: ready >= self.starts, READY_S)

    def start(self, container: str) -> None:
        docker("start", container)
        self.starts += 1
        self.wait_until_ready()

    def restart(self, container: str) -> None:
        docker("stop", container)  # the grace period of docker/compose.yaml
        code = inspect(container, ".State.ExitCode")
        assert code == "0", f"left with {code}:\n{logs(container)}"
        self.start(container)

    def kill(self, container: str) -> None:
        docker("kill", container)
        self.start(container)

    def end_calls(self) -> Account:
        """End the callers, and return what all nodes have done."""
        (self.folder / QUIET).touch()
        eventually(lambda: self.account().quiet, lambda quiet: quiet >= NODES, READY_S)
        account = self.account()
        print(f"{len(account.asked)} requests, {len(account.ended('unknown'))} in doubt: {account.kinds()}")
        return account


def cluster_of(image: str, folder: Path) -> Cluster:
    variables = {
        "FLEETLM_TEST_JOURNALS": str(folder),
        "FLEETLM_TEST_SYSTEM": str(HERE.parent / "system"),
    }
    return Cluster(image, overlay=HERE / "rolling.yaml", variables=variables)


def test_rolling_restarts_fail_no_request_and_run_none_twice(image: str, folder: Path) -> None:
    with cluster_of(image, folder) as cluster:
        rolling = Rolling(cluster, folder)
        for _ in range(ROUNDS):
            for container in rolling.containers:
                rolling.restart(container)
        account = rolling.end_calls()
    assert account.complaints() == []
    assert set(account.kinds()) == {"group", "name", "stream"}


def test_kills_leave_only_what_was_running_in_doubt(image: str, folder: Path) -> None:
    with cluster_of(image, folder) as cluster:
        rolling = Rolling(cluster, folder)
        for container in rolling.containers:
            rolling.kill(container)
        account = rolling.end_calls()
    assert account.complaints(after_kill=True) == []
