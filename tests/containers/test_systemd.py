"""The systemd kit on a real systemd, the first process of a container: its units, as their first lines say.

The container may mount, which systemd needs for the sandbox of a unit and for control groups, and is not
otherwise privileged. Its name in DNS is that of the kit's environment file.
"""

from __future__ import annotations

import json
import operator
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from tests.containers.cluster import BASE_IMAGE, BUILD_S, HERE, MESH_S, docker, eventually, ip_of, logs
from tests.support.guides import ROOT, blocks
from tests.support.kits import DEPLOY
from tests.support.patience import stretched

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

KIT = DEPLOY / "systemd"
PAGE = ROOT / "docs" / "deploy" / "systemd.md"
QUERY = "fleetlm.example.internal"
BOOT_S, START_S, CALL_S = 60.0, 60.0, 40.0
CALL_LASTS_S = 8
"""Longer than EXTEND_EVERY_S of `fleetlm.cli.service_manager` and than the time to stop that a test sets."""
RIGHTS = (
    *(
        "--cap-add",
        "SYS_ADMIN",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "apparmor=unconfined",
    ),
    *("--cap-add", "SYS_PTRACE"),  # as root has on a machine: `fleetlm remote` looks into private folders
    *("--cgroupns", "private", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
)
SLOTS = range(4)


def commands_of(unit: str) -> list[str]:
    """What the first lines of a unit tell its reader to type."""
    lines = (KIT / unit).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]


class Machine:
    """One container with systemd."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.ip = ip_of(container)

    def sh(self, command: str, *, check: bool = True, limit_s: float = 60.0) -> str:
        done = docker("exec", self.container, "bash", "-euc", command, check=check, limit_s=limit_s)
        return done.stdout if check else done.stdout + done.stderr

    def ctl(self, *arguments: str, check: bool = True) -> str:
        command = ("exec", self.container, "systemctl", "--no-pager", *arguments)
        return docker(*command, check=check, limit_s=START_S + BOOT_S).stdout

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.ctl("show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str) -> list[str]:
        return self.sh(f"journalctl --quiet --output cat --unit {unit}").splitlines()

    def name(self, slot: int) -> str:
        return f"fleetlm@{self.ip}:{4370 + slot}" if slot else f"fleetlm@{self.ip}"

    def remote(self, slot: int, expression: str) -> list[str]:
        """The command that evaluates an expression in the node of a slot."""
        return ["docker", "exec", self.container, "fleetlm", "remote", "--node", str(slot), expression]

    def drop_in(self, unit: str, *lines: str) -> None:
        """Add lines to the section [Service] of a unit; none: take them back."""
        folder = f"/run/systemd/system/{unit}.d"
        text = "\\n".join(["[Service]", *lines])
        self.sh(f"mkdir -p {folder}; printf '{text}\\n' >{folder}/test.conf" if lines else f"rm -rf {folder}")
        self.ctl("daemon-reload")


@pytest.fixture(scope="module")
def machine(image: str) -> Iterator[Machine]:
    tag, network = f"{image}-systemd", f"fleetlm-systemd-{uuid.uuid4().hex[:10]}"
    args = ("--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--build-arg", f"NODE_IMAGE={image}", "--tag", tag)
    docker(
        "build", "--quiet", *args, "--file", str(HERE / "systemd" / "Dockerfile"), str(ROOT), limit_s=BUILD_S
    )
    container = ""
    try:
        docker("network", "create", network)
        place = ("--network", network, "--network-alias", QUERY)
        container = docker("run", "--detach", *RIGHTS, *place, tag).stdout.strip()
        started = Machine(container)
        state = ("exec", container, "systemctl", "is-system-running")
        eventually(
            lambda: docker(*state, check=False).stdout.strip() or logs(container),
            lambda said: said in ("running", "degraded"),
            within_s=BOOT_S,
        )
        yield started
    finally:
        if container:
            docker("rm", "--force", "--volumes", container, check=False)
        docker("network", "rm", network, check=False)
        docker("image", "rm", "--force", tag, check=False)


@pytest.fixture(scope="module")
def nodes(machine: Machine) -> Machine:
    """Four nodes, started as the template unit says."""
    for command in commands_of("fleetlm@.service"):
        machine.sh(command, limit_s=START_S * 2)
    return machine


def listed(machine: Machine, slot: int) -> list[str]:
    done = subprocess.run(machine.remote(slot, "Node.list()"), capture_output=True, text=True, check=False)
    return sorted(json.loads(done.stdout.replace("'", '"'))) if done.returncode == 0 else [done.stderr]


def is_complete(machine: Machine) -> None:
    """Wait until the node of each slot sees all others."""
    for slot in SLOTS:
        others = sorted(machine.name(other) for other in SLOTS if other != slot)
        eventually(partial(listed, machine, slot), partial(operator.eq, others), within_s=stretched(MESH_S))


def test_nothing_has_failed_since_the_machine_began(machine: Machine) -> None:
    assert machine.ctl("list-units", "--failed", "--plain", "--no-legend") == ""
    assert machine.sh("readlink /proc/1/exe").strip() == "/usr/lib/systemd/systemd"


def test_the_commands_of_the_template_return_when_four_nodes_take_work(nodes: Machine) -> None:
    for slot in SLOTS:
        unit = f"fleetlm@{slot}"
        assert nodes.show(unit, "ActiveState") == "active"
        assert "is ready" in nodes.show(unit, "StatusText")
        assert nodes.show(unit, "NRestarts") == "0"


def test_the_nodes_of_all_slots_are_one_cluster_that_root_finds_in_their_private_folders(
    nodes: Machine,
) -> None:
    is_complete(nodes)
    assert nodes.sh("ls -d /tmp/fleetlm-* 2>/dev/null || true") == ""


def test_the_nodes_are_not_root_and_have_a_copy_of_the_cookie_that_nobody_else_reads(nodes: Machine) -> None:
    cookie = nodes.sh("cat /etc/fleetlm/cookie").strip()
    users = set()
    for slot in SLOTS:
        pid = nodes.show(f"fleetlm@{slot}", "MainPID")
        users.add(nodes.sh(f"stat --format %u /proc/{pid}").strip())
        assert cookie not in nodes.sh(f"tr '\\0' '\\n' </proc/{pid}/environ")
        owner, mode = nodes.sh(
            f"stat --format '%u %a' /run/credentials/fleetlm@{slot}.service/cookie"
        ).split()
        assert owner in users
        assert mode == "400"
        assert nodes.sh(f"cat /run/credentials/fleetlm@{slot}.service/cookie").strip() == cookie
    (user,) = users  # All instances of a template have one.
    assert int(user) >= 61_184  # Source: systemd, "UIDs and GIDs on Linux": the range for DynamicUser.


def test_the_journal_has_the_log_of_each_node_in_json(nodes: Machine) -> None:
    own = [line for line in nodes.journal("fleetlm@1") if line.startswith("{")]
    assert own
    assert any(nodes.name(1) in json.loads(line)["message"] for line in own)
    assert not any("Traceback" in line for line in nodes.journal("fleetlm@1"))


def test_doctor_finds_nothing_wrong_as_the_page_runs_it(nodes: Machine) -> None:
    (block,) = (each for each in blocks(PAGE) if each.text.startswith("systemd-run"))
    said = nodes.sh(block.text)
    assert "is encrypted" in said


def test_a_node_whose_model_is_not_loaded_is_activating_and_says_why(nodes: Machine) -> None:
    nodes.sh("touch /opt/fleetlm/no-model-7")
    nodes.ctl("start", "--no-block", "fleetlm@7")
    try:
        eventually(
            lambda: nodes.show("fleetlm@7", "StatusText"), lambda said: "the check model says no" in said
        )
        assert nodes.show("fleetlm@7", "ActiveState") == "activating"
        nodes.sh("rm /opt/fleetlm/no-model-7")
        eventually(lambda: nodes.show("fleetlm@7", "ActiveState"), lambda state: state == "active")
    finally:
        nodes.ctl("stop", "fleetlm@7")
    assert nodes.show("fleetlm@7", "Result") == "success"


def test_a_node_that_is_stopped_finishes_its_call_although_that_takes_longer_than_the_unit_allows(
    nodes: Machine,
) -> None:
    """It asks for more time. Without that systemd would kill it after 3 s."""
    is_complete(nodes)
    nodes.drop_in("fleetlm@1.service", "TimeoutStopSec=3")
    call = f"await node.call(('late', {nodes.name(1)!r}), {CALL_LASTS_S}, timeout=30)"
    with subprocess.Popen(nodes.remote(0, call), stdout=subprocess.PIPE, text=True) as calling:
        try:
            eventually(
                lambda: nodes.journal("fleetlm@1"), lambda lines: f"a call of {CALL_LASTS_S} s" in lines
            )
            nodes.ctl("stop", "--no-block", "fleetlm@1")
            eventually(
                lambda: nodes.show("fleetlm@1", "StatusText"),
                lambda said: "finishes what it has begun" in said,
            )
            said, _ = calling.communicate(timeout=CALL_S)
        finally:
            calling.kill()
    assert said.strip() == repr(nodes.name(1))
    eventually(lambda: nodes.show("fleetlm@1", "ActiveState"), lambda state: state == "inactive")
    assert nodes.show("fleetlm@1", "Result") == "success"
    assert nodes.show("fleetlm@1", "ExecMainStatus") == "0"
    nodes.drop_in("fleetlm@1.service")
    nodes.ctl("start", "fleetlm@1")
    is_complete(nodes)


def test_a_loop_over_the_slots_is_a_rolling_update(nodes: Machine) -> None:
    before = [nodes.show(f"fleetlm@{slot}", "MainPID") for slot in SLOTS]
    nodes.sh("for slot in 0 1 2 3; do systemctl restart fleetlm@$slot; done", limit_s=START_S * 3)
    after = [nodes.show(f"fleetlm@{slot}", "MainPID") for slot in SLOTS]
    assert set(before).isdisjoint(after)
    is_complete(nodes)


def test_a_node_that_crashes_is_started_again(nodes: Machine) -> None:
    pid = nodes.show("fleetlm@2", "MainPID")
    nodes.sh(f"kill -KILL {pid}")
    eventually(lambda: nodes.show("fleetlm@2", "NRestarts"), lambda count: count == "1")
    eventually(lambda: nodes.show("fleetlm@2", "ActiveState"), lambda state: state == "active")
    is_complete(nodes)


def test_a_setting_that_cannot_be_used_fails_the_unit_once(nodes: Machine) -> None:
    nodes.drop_in("fleetlm@9.service", "Environment=DNS_POLL_INTERVAL_MS=soon")
    done = docker("exec", nodes.container, "systemctl", "start", "fleetlm@9", check=False)
    assert done.returncode != 0
    assert nodes.show("fleetlm@9", "ExecMainStatus") == "78"
    assert nodes.show("fleetlm@9", "ActiveState") == "failed"
    assert nodes.show("fleetlm@9", "NRestarts") == "0"
    assert any("DNS_POLL_INTERVAL_MS" in line for line in nodes.journal("fleetlm@9"))
    nodes.drop_in("fleetlm@9.service")
    nodes.ctl("reset-failed", "fleetlm@9")


def test_the_nodes_come_back_with_the_machine(nodes: Machine) -> None:
    docker("restart", "--time", "60", nodes.container, limit_s=90)
    nodes.ip = ip_of(nodes.container)
    eventually(
        lambda: docker("exec", nodes.container, "systemctl", "is-active", "fleetlm@3", check=False).stdout,
        lambda said: said.strip() == "active",
        within_s=BOOT_S,
    )
    is_complete(nodes)


def test_the_unit_for_one_node_starts_as_its_first_lines_say(nodes: Machine) -> None:
    """The last one: it takes the port of the node in slot 0."""
    for slot in SLOTS:
        nodes.ctl("disable", "--now", f"fleetlm@{slot}")
    for command in commands_of("fleetlm.service"):
        nodes.sh(command, limit_s=START_S)
    assert nodes.show("fleetlm", "ActiveState") == "active"
    assert nodes.sh("fleetlm remote 'node.name'").strip() == repr(nodes.name(0))
    nodes.ctl("stop", "fleetlm")
    assert nodes.show("fleetlm", "Result") == "success"
