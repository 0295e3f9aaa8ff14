"""Reads the files of the kits that need no tool beside Python: units, fly.toml, tasks, Compose."""

from __future__ import annotations

import configparser
import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.support.guides import ROOT
from tests.support.kits import COMPOSE, DEPLOY, Program, image_name, images, seconds

FLY = tomllib.loads((DEPLOY / "fly" / "fly.toml").read_text(encoding="utf-8"))
TASK = json.loads((DEPLOY / "ecs" / "task-definition.json").read_text(encoding="utf-8"))
SWARM = DEPLOY / "swarm" / "stack.yaml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


class Unit(configparser.RawConfigParser):
    """A unit of systemd: keys with their case, and those that stand several times joined by spaces."""

    def __init__(self, path: Path, **specifiers: str) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        text = path.read_text(encoding="utf-8")
        for letter, value in specifiers.items():
            text = text.replace(f"%{letter}", value)
        joined: dict[str, str] = {}
        lines = []
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals and key == "Environment":
                joined[key] = f"{joined.get(key, '')} {value}".strip()
            else:
                lines.append(line)
        at = lines.index("[Service]") + 1
        lines[at:at] = [f"{key}={value}" for key, value in joined.items()]
        self.read_string("\n".join(lines))

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def systemd_programs() -> list[Program]:
    """The nodes of both units."""
    shared = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "environment").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    found = []
    for path in UNITS:
        service = Unit(path, d="/run/credentials/fleetlm", i="3")["Service"]
        first, *rest = shlex.split(service["ExecStart"])
        own = dict(each.split("=", 1) for each in service["Environment"].split())
        command = [Path(first).name, *rest]
        found.append(Program(path.name, command, None, shared | own, seconds(service["TimeoutStopSec"])))
    return found


def fly_programs() -> list[Program]:
    """The process groups of the app."""
    env = {**FLY["env"], "FLEETLM_COOKIE": "k7Qm2vX9pLr4Tz8wNc3B", "FLY_PRIVATE_IP": "fdaa:0:1::3"}
    target = FLY["build"]["build-target"]
    return [
        Program(
            f"fly.toml {name}", shlex.split(command), f"fleetlm-{target}", env, seconds(FLY["kill_timeout"])
        )
        for name, command in FLY["processes"].items()
    ]


def ecs_programs() -> list[Program]:
    """The containers of the task definition."""
    found = []
    for container in TASK["containerDefinitions"]:
        env = {each["name"]: each["value"] for each in container["environment"]}
        env |= {each["name"]: "k7Qm2vX9pLr4Tz8wNc3B" for each in container["secrets"]}
        found.append(
            Program(
                f"task-definition.json {container['name']}",
                container["command"],
                image_name(container["image"]),
                env,
                container["stopTimeout"],
                probes={"liveness": without_cmd(container["healthCheck"]["command"])},
            )
        )
    return found


def compose_services(path: Path) -> dict[str, dict[str, Any]]:
    """The services of a Compose file."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return services


def compose_programs(path: Path) -> list[Program]:
    """The services of a Compose file or of a stack, without variables of the caller."""
    found = []
    kind = "liveness" if path == SWARM else "readiness"  # Swarm replaces what is not healthy.
    for name, service in compose_services(path).items():
        env = {key: "" if value is None else str(value) for key, value in service["environment"].items()}
        if env.get("FLEETLM_COOKIE") == "":
            env["FLEETLM_COOKIE"] = "k7Qm2vX9pLr4Tz8wNc3B"
        default = service["image"].partition(":-")[2].removesuffix("}")
        command = service.get("command") or default_command(image_name(default))
        found.append(
            Program(
                f"{path.relative_to(ROOT)} {name}",
                command,
                image_name(default),
                env,
                seconds(service["stop_grace_period"]),
                probes={kind: without_cmd(service["healthcheck"]["test"])},
            )
        )
    return found


def default_command(name: str) -> Sequence[str]:
    """The command of an image that is started without one."""
    assert name == "fleetlm-web"
    assert not images()[name].entry_point
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith('CMD ["uvicorn"'))
    command: Sequence[str] = json.loads(line.removeprefix("CMD "))
    return command


def without_cmd(test: Sequence[str]) -> Sequence[str]:
    """The command of a health check, whose first word says that no shell runs it."""
    assert test[0] == "CMD"
    return test[1:]


def programs() -> list[Program]:
    """Every program of these kits."""
    return [
        *systemd_programs(),
        *fly_programs(),
        *ecs_programs(),
        *compose_programs(SWARM),
        *compose_programs(COMPOSE),
    ]


def select(mapping: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a path such as ``http_service.checks.0.path``."""
    found: Any = mapping
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else found[part]
    return found
