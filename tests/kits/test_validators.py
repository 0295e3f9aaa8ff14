"""The other kits, as the validators of their platforms see them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.guides import ROOT
from tests.support.kit_files import SWARM, TASK, UNITS
from tests.support.kits import COMPOSE, DEPLOY, Program, complaints, files, image_name, seconds

pytestmark = pytest.mark.kits

NOMAD = DEPLOY / "nomad" / "fleetlm.nomad.hcl"
STACK = DEPLOY / "ecs" / "cloudmap.yaml"
YAMLS = [path for path in files() if path.suffix in (".yaml", ".yml")]
YAML_RULES = """{extends: default, rules: {
  document-start: disable,
  braces: {max-spaces-inside: 1},
  comments: {min-spaces-from-content: 2},
  comments-indentation: disable,
  line-length: {max: 125},
  indentation: {indent-sequences: consistent},
  octal-values: disable,
  truthy: {check-keys: false}}}"""
"""The rules of yamllint: those by default, but for the form of this repository."""
TASK_KEYS = {"awslogs-group", "awslogs-region", "awslogs-stream-prefix"}
"""Keys that are names and not of the API."""


# ── YAML, Compose, workflows ─────────────────────────────────────────────────────────────────────


def test_every_yaml_file_is_well_formed(tool: Callable[..., str]) -> None:
    tool("yamllint", "--strict", "--config-data", YAML_RULES, *YAMLS)


def test_compose_files_fit_the_specification(tool: Callable[..., str]) -> None:
    paths = [SWARM, COMPOSE, ROOT / "docker" / "compose.yaml"]
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *paths)


def test_a_misspelt_key_would_be_found(tool: Callable[..., str], tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(
        COMPOSE.read_text(encoding="utf-8").replace("stop_grace_period", "stop_grace"), encoding="utf-8"
    )
    said = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong, ok=(1,))
    assert "stop_grace" in said


def test_the_workflows_fit_their_schema(tool: Callable[..., str]) -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


# ── ECS ──────────────────────────────────────────────────────────────────────────────────────────


def as_cloudformation(value: Any) -> Any:
    """A request of the API as the properties of a resource: the same keys with capitals."""
    if isinstance(value, dict):
        return {
            key if key in TASK_KEYS else key[0].upper() + key[1:]: as_cloudformation(each)
            for key, each in value.items()
        }
    return [as_cloudformation(each) for each in value] if isinstance(value, list) else value


def test_the_stack_fits_the_schemas_of_its_resources(tool: Callable[..., str]) -> None:
    tool("cfn-lint", STACK)


def test_the_task_definition_fits_the_schema(tool: Callable[..., str], tmp_path: Path) -> None:
    resource = {"Type": "AWS::ECS::TaskDefinition", "Properties": as_cloudformation(TASK)}
    path = tmp_path / "task.json"

    def written() -> Path:
        path.write_text(
            json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Task": resource}}),
            encoding="utf-8",
        )
        return path

    tool("cfn-lint", written())
    resource["Properties"]["ContainerDefinitions"][0]["StopTimeouts"] = 60
    assert "StopTimeouts" in tool("cfn-lint", written(), ok=(2,))


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path, tool: Callable[..., str], tmp_path: Path) -> None:
    """With a program that exists: that of the kit stands on the machine of its user."""
    program = tmp_path / "fleetlm"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    text = unit.read_text(encoding="utf-8").replace("/opt/fleetlm/bin/fleetlm", str(program))
    (tmp_path / unit.name).write_text(text, encoding="utf-8")
    assert tool("systemd-analyze", "verify", "--man=no", tmp_path / unit.name, says_all=True) == ""
    (tmp_path / unit.name).write_text(text.replace("KillMode=mixed", "KillMode=mixd"), encoding="utf-8")
    assert "mixd" in tool("systemd-analyze", "verify", "--man=no", tmp_path / unit.name, says_all=True)


# ── Nomad ────────────────────────────────────────────────────────────────────────────────────────


def plain(value: Any) -> Any:
    """What python-hcl2 reads, without the quotes around texts and the notes about blocks."""
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items() if not str(key).startswith("__")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return json.loads(value)
    return value


@pytest.fixture(scope="module")
def job(library: Callable[[str], Any]) -> dict[str, Any]:
    with NOMAD.open(encoding="utf-8") as file:
        parsed = plain(library("hcl2").load(file))
    found: dict[str, Any] = parsed["job"][0]["fleetlm"] | {"image": parsed["variable"][0]["image"]["default"]}
    return found


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for one in job["group"] for name, each in one.items()}


def run_time(text: str) -> str:
    """A value as a task sees it."""
    values = {
        "NOMAD_IP_fleetlm": "10.0.0.7",
        "NOMAD_PORT_fleetlm": "23456",
        "NOMAD_SECRETS_DIR": "/secrets",
        "attr.unique.network.ip-address": "10.0.0.7",
    }
    return re.sub(r"\$\{([^}]+)\}", lambda found: values[found[1]], text)


def nomad_program(job: dict[str, Any], name: str, task: dict[str, Any]) -> Program:
    config = task["config"][0]
    env = {key: run_time(value) for key, value in task["env"][0].items()}
    command = [config["command"], *config["args"]]
    return Program(f"nomad {name}", command, image_name(job["image"]), env, seconds(task["kill_timeout"]))


def test_every_task_starts_and_has_the_time_to_leave(job: dict[str, Any]) -> None:
    for name, group in groups(job).items():
        task = group["task"][0][name]
        assert task["kill_signal"] == "SIGTERM"
        assert complaints(nomad_program(job, name, task)) == []
        assert ("shutdown_delay" in task) == (name == "web")


def test_a_node_listens_on_the_port_that_nomad_gives_it_and_that_srv_records_name(
    job: dict[str, Any],
) -> None:
    for name, group in groups(job).items():
        task = group["task"][0][name]
        env = task["env"][0]
        ports = {label: port for each in group["network"][0]["port"] for label, port in each.items()}
        assert ports["fleetlm"]["to"] == -1, "the port inside is the one outside"
        assert env["FLEETLM_NODE_PORT"] == "${NOMAD_PORT_fleetlm}"
        assert env["FLEETLM_NODE_IP"] == "${NOMAD_IP_fleetlm}"
        assert env["FLEETLM_BIND"] == "*"
        assert set(task["config"][0]["ports"]) == ports.keys()
        if name == "web":
            args = task["config"][0]["args"]
            assert int(args[args.index("--port") + 1]) == ports["http"]["to"]


def test_the_query_names_the_service_of_every_group_and_its_check_asks_for_life(job: dict[str, Any]) -> None:
    for name, group in groups(job).items():
        service = next(each for each in group["service"] if each["port"] == "fleetlm")
        query = group["task"][0][name]["env"][0]["DNS_CLUSTER_QUERY"]
        assert query == f"_{service['name']}._tcp.service.consul."
        assert service["provider"] == "consul"
        (check,) = service["check"]
        assert (check["command"], check["args"]) == ("fleetlm", ["health", "--live"])
        assert check["task"] == name


def test_the_cookie_is_a_file_for_the_user_of_the_image_and_a_new_one_restarts_nothing(
    job: dict[str, Any],
) -> None:
    for name, group in groups(job).items():
        task = group["task"][0][name]
        (template,) = task["template"]
        assert template["destination"] == task["env"][0]["FLEETLM_COOKIE_FILE"]
        assert (template["perms"], template["uid"], template["gid"]) == ("0400", 10001, 10001)
        assert template["change_mode"] == "noop"


def test_the_page_says_that_clients_must_allow_the_kill_timeout(job: dict[str, Any]) -> None:
    longest = max(seconds(group["task"][0][name]["kill_timeout"]) for name, group in groups(job).items())
    text = NOMAD.read_text(encoding="utf-8")
    allowed = re.search(r'max_kill_timeout = "(\d+)s"', text)
    assert allowed is not None
    assert float(allowed[1]) >= longest


# ── the commands in the heads of the kits ────────────────────────────────────────────────────────


def test_the_commands_in_the_heads_name_files_that_exist() -> None:
    for path in files():
        for line in path.read_text(encoding="utf-8").splitlines():
            if not re.match(r"#   \w", line):
                continue
            for word in shlex.split(
                line.removeprefix("#   ").rstrip("\\").replace("$(", "").replace(")", "")
            ):
                named = word.rpartition("file://")[2]
                if named.startswith(("deploy/", "docker/")):
                    assert (ROOT / named).exists(), f"{path.name}: {named}"


def test_every_yaml_file_can_be_loaded_without_tags_but_that_of_cloudformation() -> None:
    for path in YAMLS:
        if path != STACK:
            assert list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
