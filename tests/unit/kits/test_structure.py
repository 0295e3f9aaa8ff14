"""The kits say the same things on every platform, and nothing that does not exist. No tool is needed here."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fleetlm import Settings
from fleetlm.cli.exit_codes import EX_CONFIG, EX_CUT
from tests.support.guides import ROOT
from tests.support.kit_files import (
    FLY,
    SWARM,
    TASK,
    UNITS,
    Unit,
    compose_services,
    programs,
    select,
    systemd_programs,
)
from tests.support.kits import (
    COMPOSE,
    DEPLOY,
    VARIABLE,
    Image,
    Program,
    complaints,
    files,
    images,
    known_variables,
    needed_grace_s,
    seconds,
)

PROGRAMS = programs()
FLY_KEYS: dict[str, type | tuple[type, ...]] = {
    "app": str,
    "primary_region": str,
    "kill_signal": str,
    "kill_timeout": (int, str),
    "build.dockerfile": str,
    "build.build-target": str,
    "env.*": str,
    "processes.*": str,
    "http_service.processes": list,
    "http_service.internal_port": int,
    "http_service.force_https": bool,
    "http_service.auto_stop_machines": str,
    "http_service.auto_start_machines": bool,
    "http_service.min_machines_running": int,
    "http_service.concurrency.type": str,
    "http_service.concurrency.soft_limit": int,
    "http_service.concurrency.hard_limit": int,
    "http_service.checks.#.method": str,
    "http_service.checks.#.path": str,
    "http_service.checks.#.interval": str,
    "http_service.checks.#.timeout": str,
    "http_service.checks.#.grace_period": str,
    "deploy.strategy": str,
    "deploy.max_unavailable": (int, float),
    "deploy.wait_timeout": str,
    "vm.#.processes": list,
    "vm.#.size": str,
    "vm.#.memory": str,
}
"""What fly.toml may have, with its type. Source: the reference of fly.toml; flyctl ignores what it does not
know, so that a misspelt key has no effect."""


# ── every kit ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.where)
def test_a_program_of_a_kit_starts_is_looked_at_and_has_the_time_to_leave(program: Program) -> None:
    assert complaints(program) == []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_in_a_kit_is_one_that_a_node_knows(path: Path) -> None:
    found = set(VARIABLE.findall(path.read_text(encoding="utf-8")))
    assert found - known_variables() == set()


def test_the_kits_are_there() -> None:
    folders = {path.relative_to(DEPLOY).parts[0] for path in files() if path.is_relative_to(DEPLOY)}
    assert folders >= {"kubernetes", "fly", "ecs", "nomad", "swarm", "systemd"}


def test_no_kit_has_a_secret_in_it() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"FLEETLM_COOKIE['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9_-]{16}", text), path
        assert "BEGIN" not in text, path


def test_every_kit_has_a_page() -> None:
    for name in ("kubernetes", "fly", "ecs", "nomad", "swarm", "systemd", "compose"):
        assert (ROOT / "docs" / "deploy" / f"{name}.md").exists()


# ── the image ────────────────────────────────────────────────────────────────────────────────────


def test_the_images_run_without_root_and_are_stopped_by_sigterm() -> None:
    assert images().keys() == {"fleetlm-worker", "fleetlm-web"}
    assert {image.user for image in images().values()} == {"fleetlm"}
    assert {image.stop_signal for image in images().values()} == {"SIGTERM"}
    assert images()["fleetlm-worker"].entry_point == ["fleetlm"]
    assert images()["fleetlm-web"].modules.keys() == {"web", "model"}


# ── the rules themselves ─────────────────────────────────────────────────────────────────────────


def good(**changes: Any) -> Program:
    values: dict[str, Any] = {
        "where": "kit",
        "command": ["fleetlm", "start", "model:main"],
        "image": "fleetlm-web",
        "env": {"DNS_CLUSTER_QUERY": "worker", "FLEETLM_REQUIRE_COOKIE": "1", "FLEETLM_COOKIE_FILE": "/c"},
        "grace_s": 55,
        "probes": {"liveness": ["fleetlm", "health", "--live"]},
    }
    return Program(**(values | changes))


def test_a_good_program_has_no_fault() -> None:
    assert complaints(good()) == []
    assert (
        complaints(good(command=["uvicorn", "web:app", "--timeout-graceful-shutdown", "25"], grace_s=80))
        == []
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grace_s": 54}, "the grace is 54 s, and 55 s are needed"),
        ({"pre_stop_s": 5}, "60 s are needed"),
        ({"env": {"FLEETLM_REQUIRE_COOKIE": "1", "FLEETLM_COOKIE_FILE": "/c"}}, "clustering is off"),
        ({"env": {"DNS_CLUSTER_QUERY": "worker"}}, "without a cookie"),
        ({"env": {"FLEETLM_DRAINS_MS": "1"}}, "Did you mean FLEETLM_DRAIN_MS"),
        ({"image": "nginx"}, "does not say how to build nginx"),
        ({"image": "fleetlm-worker"}, "no module model, only echo"),
        ({"command": ["fleetlm", "start", "model:run"]}, "model.py has no run"),
        ({"command": ["fleetlm", "begin"]}, "cannot be parsed: fleetlm begin"),
        ({"command": ["uvicorn", "--grace", "1"]}, "cannot be parsed: uvicorn"),
        ({"command": ["uvicorn", "web:app"]}, "uvicorn waits without limit"),
        ({"command": ["sleep", "1"]}, "starts sleep"),
        ({"probes": {"liveness": ["fleetlm", "health", "--ready"]}}, "ends nodes that only wait"),
        ({"probes": {"readiness": ["fleetlm", "health", "--alive"]}}, "cannot be parsed"),
        ({"probes": {"readiness": ["curl", "localhost"]}}, "runs curl"),
    ],
)  # fmt: skip
def test_a_fault_is_found(changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in "\n".join(complaints(good(**changes)))
    capsys.readouterr()


def test_the_grace_counts_all_that_happens_one_after_the_other() -> None:
    web = good(command=["uvicorn", "web:app", "--timeout-graceful-shutdown", "25"], pre_stop_s=5)
    assert needed_grace_s(web) == 5 + 25 + 2 * 25 + 5


def test_an_image_is_what_its_stages_add_up_to() -> None:
    assert isinstance(images()["fleetlm-web"], Image)
    assert "echo" not in images()["fleetlm-web"].modules


# ── Fly.io ───────────────────────────────────────────────────────────────────────────────────────


def keys_of(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of a document, with ``#`` for the place in a list of tables."""
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in keys_of(each, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for each in value for leaf in keys_of(each, f"{path}.#")]
    return [(path, value)]


def test_fly_toml_has_only_keys_that_fly_knows() -> None:
    for path, value in keys_of(FLY):
        free = f"{path.partition('.')[0]}.*"
        assert isinstance(value, FLY_KEYS[free if free in FLY_KEYS else path]), path


def test_fly_asks_for_the_app_itself_and_its_files_exist() -> None:
    assert select(FLY, "env.DNS_CLUSTER_QUERY") == f"{FLY['app']}.internal."
    assert (DEPLOY / "fly" / FLY["build"]["dockerfile"]).resolve() == ROOT / "docker" / "Dockerfile"


def test_fly_does_not_cut_a_drain_and_stops_no_machine_by_itself() -> None:
    assert FLY["kill_signal"] == "SIGTERM"
    assert seconds(FLY["kill_timeout"]) <= 300
    assert select(FLY, "http_service.auto_stop_machines") == "off"
    port = FLY["processes"]["web"].partition("--port ")[2].split()[0]
    assert int(port) == select(FLY, "http_service.internal_port")
    groups = [*FLY["http_service"]["processes"], *(name for vm in FLY["vm"] for name in vm["processes"])]
    assert set(groups) == FLY["processes"].keys()


# ── ECS ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_task_fits_fargate_and_the_stack() -> None:
    stack = (DEPLOY / "ecs" / "cloudmap.yaml").read_text(encoding="utf-8")
    (container,) = TASK["containerDefinitions"]
    env = {each["name"]: each["value"] for each in container["environment"]}
    assert container["stopTimeout"] <= 120  # Fargate
    assert env["DNS_CLUSTER_QUERY"] == re.search(r"Value: (\S+internal\.)$", stack, re.MULTILINE)[1]  # type: ignore[index]
    zone, service = re.search(r"Name: (fleetlm\.internal)", stack), re.search(r"Name: (nodes)\n", stack)
    assert zone is not None
    assert service is not None
    assert env["DNS_CLUSTER_QUERY"] == f"{service[1]}.{zone[1]}."
    ports = {each["containerPort"] for each in container["portMappings"]}
    assert ports == {int(env["FLEETLM_NODE_PORT"])}
    assert set(map(int, re.findall(r"(?:From|To)Port: (\d+)", stack))) == ports | {8000}
    assert ipaddress.ip_network(env["FLEETLM_NODE_IP"]) == ipaddress.ip_network(
        env["FLEETLM_ALLOWED_NETWORKS"]
    )
    ttl = re.search(r"TTL: (\d+)", stack)
    assert ttl is not None
    assert int(ttl[1]) <= 10


# ── Swarm and Compose ────────────────────────────────────────────────────────────────────────────


def test_swarm_asks_for_the_tasks_of_every_service_and_never_for_a_virtual_address() -> None:
    services = compose_services(SWARM)
    for service in services.values():
        query = service["environment"]["DNS_CLUSTER_QUERY"]
        assert sorted(query.split(",")) == sorted(f"tasks.{name}" for name in services)


def test_swarm_takes_the_address_of_the_overlay_whose_subnet_is_set() -> None:
    networks = yaml.safe_load(SWARM.read_text(encoding="utf-8"))["networks"]
    (subnet,) = [each["subnet"] for each in networks["cluster"]["ipam"]["config"]]
    assert {one["environment"]["FLEETLM_NODE_IP"] for one in compose_services(SWARM).values()} == {subnet}


def test_swarm_starts_a_new_container_before_the_old_one_leaves() -> None:
    for service in compose_services(SWARM).values():
        assert service["deploy"]["update_config"]["order"] == "start-first"
        assert service["deploy"]["update_config"]["parallelism"] == 1


def test_compose_publishes_the_front_end_alone_and_on_this_machine_alone() -> None:
    services = compose_services(COMPOSE)
    assert [name for name, service in services.items() if "ports" in service] == ["web"]
    assert services["web"]["ports"] == ["${HTTP_PORT:-127.0.0.1:8000}:8000"]
    assert services["web"]["environment"]["DNS_CLUSTER_QUERY"] == ",".join(services)


@pytest.mark.parametrize("path", [SWARM, COMPOSE], ids=lambda path: path.name)
def test_containers_run_with_a_read_only_root_and_without_capabilities(path: Path) -> None:
    for service in compose_services(path).values():
        assert service["read_only"]
        if path == SWARM:  # which passes over `tmpfs`
            assert service["volumes"] == [{"type": "tmpfs", "target": "/tmp"}]
        else:
            assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["init"]


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_waits_for_the_node_and_lets_it_leave(path: Path) -> None:
    service = Unit(path)["Service"]
    assert service["Type"] == "notify"
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert int(service["SuccessExitStatus"]) == EX_CUT
    assert int(service["RestartPreventExitStatus"]) == EX_CONFIG
    assert "WatchdogSec" not in service  # a node that computes for a minute is alive
    name, _, source = service["LoadCredential"].partition(":")
    assert source == "/etc/fleetlm/cookie"
    assert f"FLEETLM_COOKIE_FILE=%d/{name}" in service["Environment"]


def test_the_template_differs_by_its_slot_alone() -> None:
    one, many = UNITS
    assert many.name == "fleetlm@.service"
    lines = [
        set(path.read_text(encoding="utf-8").partition("[Unit]")[2].splitlines()) for path in (one, many)
    ]
    assert {line.partition("=")[0] for line in lines[0] ^ lines[1]} == {"Description", "Environment"}
    slots = [program.settings.node_slot for program in systemd_programs()]
    assert slots == [None, 3]


def test_a_drain_by_default_fits_into_the_grace_of_every_kit() -> None:
    default = Settings().drain_s
    assert {program.settings.drain_s for program in PROGRAMS} == {default}
