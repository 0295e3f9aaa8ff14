"""Five nodes under load, one of them killed every few seconds: every outcome must be true."""

from __future__ import annotations

import ipaddress
import random
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.containers import kill_journal
from tests.containers.cluster import HERE, Cluster, CommandError, docker, eventually, inspect, ip_of, logs
from tests.containers.kill_journal import NOT_DELIVERED, OK, RAISED, UNKNOWN, Fault, Journal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.containers

NODES = 5
KILLING_S = 120.0
EVERY_S = (3.0, 6.0)
KINDS = ["kill"] * 6 + ["term"] * 2 + ["pause"] * 2
"""Kinds of fault; shuffled and used again when all were used."""
ALIVE = 2
"""The least number of nodes without a fault at any time, so that calls have targets."""
DEAD_S = (0.0, 3.0)
PAUSED_S = (5.0, 8.0)
"""Seconds of a pause: longer than the node timeout in kill.yaml."""
LEAVES_WITHIN_S = 20.0
QUIET_WITHIN_S = 30.0
NOTICE_S = {"kill": 6.0, "term": 12.0, "pause": 12.0}
"""Seconds until nodedown on a busy machine: at once, after draining up to 5 s, after the timeout."""
SETTLE_S = 15.0
MOVES = 0.4
"""Share of restarts at another address out of a few, so that addresses pass from node to node."""
ADDRESSES = range(2, 10)
FAULTS_SHOWN = 25


@dataclass
class Container:
    """One of the five containers."""

    id: str
    due: float = 0.0
    state: str = "runs"
    fault: int = -1
    """Index of its current fault; -1 for none."""

    @property
    def host(self) -> str:
        return self.id[:12]


class Killing:
    """Chooses faults and victims, and ends each fault when it is due."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self.folder = folder
        self.random = random.Random(seed)
        self.containers = [Container(container) for container in cluster.containers()]
        self.killed: set[str] = set()
        """Names of journals whose node was killed; all other nodes left in order."""
        self.ended: set[str] = set()
        """Names of journals whose node was killed or told to leave."""
        self.faults: list[Fault] = []
        self.bag: list[str] = []
        self.moves = 0
        self.network = f"{cluster.project}_default"

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        next_fault = time.monotonic()
        while time.monotonic() < end:
            for container in self.containers:
                self.advance(container)
            if time.monotonic() >= next_fault and self.hit():
                next_fault = time.monotonic() + self.random.uniform(*EVERY_S)
            time.sleep(0.1)
        eventually(self.all_run, bool)

    def all_run(self) -> bool:
        for container in self.containers:
            self.advance(container)
        return all(container.state == "runs" for container in self.containers)

    def newest(self, container: Container) -> str | None:
        """Return the name of the container's current journal, or None if its node has not written yet."""
        mine = [
            path
            for path in self.folder.glob("*.journal")
            if path.read_bytes()[:64].split(b"\n")[0].endswith(f" {container.host}".encode())
        ]
        return next((path.name for path in mine if path.name not in self.ended), None)

    def hit(self) -> bool:
        """Start a fault on a random node; return False if no node can be spared."""
        running = [container for container in self.containers if container.state == "runs"]
        if len(running) <= ALIVE:
            return False
        victim = self.random.choice(running)
        name = self.newest(victim)
        if name is None:
            return False
        if not self.bag:
            self.bag = self.random.sample(KINDS, len(KINDS))
        what = self.bag.pop()
        node, _, incarnation = name.removesuffix(".journal").partition("+")
        at = time.time()
        match what:
            case "kill":
                docker("kill", victim.id)
                self.killed.add(name)
                self.ended.add(name)
                victim.state, lasts_s = "dead", self.random.uniform(*DEAD_S)
            case "term":
                docker("kill", "--signal", "TERM", victim.id)
                self.ended.add(name)
                victim.state, lasts_s = "leaves", LEAVES_WITHIN_S
            case _:
                docker("pause", victim.id)
                victim.state, lasts_s = "paused", self.random.uniform(*PAUSED_S)
        victim.due = time.monotonic() + lasts_s
        victim.fault = len(self.faults)
        self.faults.append(Fault(what, (node, incarnation), at, at + lasts_s))
        return True

    def advance(self, container: Container) -> None:
        """End the faults that are due."""
        due = time.monotonic() >= container.due
        match container.state:
            case "paused" if due:
                docker("unpause", container.id)
                self.faults[container.fault] = self.faults[container.fault]._replace(until=time.time())
                container.state = "runs"
            case "dead" if due:
                self.start(container)
            case "leaves":
                if inspect(container.id, ".State.Running") == "false":
                    code = inspect(container.id, ".State.ExitCode")
                    assert code == "0", f"left with {code}:\n{logs(container.id)}"
                    container.state, container.due = "dead", time.monotonic()
                else:
                    assert not due, f"does not leave:\n{logs(container.id)}"

    def start(self, container: Container) -> None:
        if self.random.random() < MOVES:
            self.move(container)
        try:
            docker("start", container.id)
        except CommandError:  # another container has its address now
            self.move(container)
            docker("start", container.id)
        container.state = "runs"

    def move(self, container: Container) -> None:
        """Give a stopped container another address, mostly one that another node had before."""
        subnet = ipaddress.ip_network(self.cluster.env["FLEETLM_TEST_SUBNET"])
        taken = {ip_of(other.id) for other in self.containers}
        free = [ip for ip in (str(subnet[host]) for host in ADDRESSES) if ip not in taken]
        docker("network", "disconnect", self.network, container.id)
        docker(
            "network",
            "connect",
            "--alias",
            "worker",
            "--ip",
            self.random.choice(free),
            self.network,
            container.id,
        )
        self.moves += 1

    # The end.

    def quiesce(self) -> None:
        """End every caller with an outcome, then every node."""
        self.cluster.assert_mesh(NODES)
        (self.folder / "quiet").touch()
        eventually(self.not_quiet, lambda names: names == [], within_s=QUIET_WITHIN_S)
        self.cluster.assert_mesh(NODES)
        self.cluster.compose("stop", "--timeout", str(int(LEAVES_WITHIN_S)))

    def not_quiet(self) -> list[str]:
        names = [self.newest(container) or container.host for container in self.containers]
        return [name for name in names if not self.has_quiet(name)]

    def has_quiet(self, name: str) -> bool:
        path = self.folder / name
        return path.exists() and b" quiet\n" in path.read_bytes()

    def journals(self) -> list[Journal]:
        found = []
        for path in sorted(self.folder.glob("*.journal")):
            journal = kill_journal.read(path.name, path.read_text(encoding="ascii"))
            journal.killed = path.name in self.killed
            found.append(journal)
        return found


def test_every_outcome_is_true_while_nodes_are_killed(image: str, tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    folder.chmod(0o777)  # the node in the container runs as another user
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed of the faults: {seed}")
    variables = {"FLEETLM_TEST_JOURNALS": str(folder)}
    with Cluster(image, overlay=HERE / "kill.yaml", variables=variables) as cluster:
        cluster.scale(NODES)
        cluster.assert_mesh(NODES)
        killing = Killing(cluster, folder, seed)
        try:
            killing.run(KILLING_S)
            killing.quiesce()
        except AssertionError:
            for container in killing.containers:
                print(f"{container}:\n{logs(container.id)}")
            raise

    journals = killing.journals()
    report = kill_journal.check(journals, killing.faults, NOTICE_S, SETTLE_S)
    done = {what: sum(1 for fault in killing.faults if fault.what == what) for what in sorted(set(KINDS))}
    size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{len(journals)} lives; {done}; {killing.moves} moves; {size_mb:.1f} MB of journals in {folder}")
    print(kill_journal.shown(report.table))
    print(dict(report.seen))
    for violation in report.violations[:FAULTS_SHOWN]:
        print(violation)
    assert not report.violations, f"{len(report.violations)} violations; the first are above"

    assert done["kill"] >= 10
    assert min(done.values()) >= 1
    assert report.total(OK) >= 10_000
    assert report.total(NOT_DELIVERED) >= 1_000
    assert report.total(UNKNOWN) >= 1_000
    assert report.total(RAISED) >= 200
    for way in ("unknown:NodeLost", "unknown:ProcessDown", "not_delivered:NoConnection"):
        assert sum(row[way] for row in report.table.values()) >= 50, way
    assert report.seen["messages got"] >= 5_000
    assert report.seen["kill"] >= done["kill"]
    assert report.seen["met"] >= NODES
    shutil.rmtree(folder)
