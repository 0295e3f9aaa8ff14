"""The arithmetic of docs/leaving.md, docs/operate.md and docker/: platforms wait as long as it takes."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fleetlm import Settings
from fleetlm.cli import health
from fleetlm.cli.exit_codes import EX_CONFIG, EX_CUT
from tests.support.guides import OPERATE, ROOT, blocks

PAGE = ROOT / "docs" / "leaving.md"
DEFAULTS = Settings()
NEEDED_S = DEFAULTS.drain_s + 5
"""Without hooks that run after the drain, and without preStop."""
yaml: Any = pytest.importorskip("yaml")


def block(language: str, word: str) -> str:
    """The one block of the page in this language that has a word."""
    (found,) = [each.text for each in blocks(PAGE) if each.language == language and word in each.text]
    return found


def manifests(path: Path) -> list[Any]:
    text = next(
        each.text for each in blocks(path) if each.language == "yaml" and "kind: Deployment" in each.text
    )
    return list(yaml.safe_load_all(text))


def command(probe: dict[str, Any]) -> health.Asked:
    fleetlm, word, *arguments = probe["exec"]["command"]
    assert (fleetlm, word) == ("fleetlm", "health")
    asked = health.parse(arguments)
    assert asked is not None, arguments
    assert probe["timeoutSeconds"] > asked.timeout_s, "its own time-out says why"
    return asked


def test_trees_have_the_five_seconds_of_the_rule() -> None:
    assert DEFAULTS.terminate_s == DEFAULTS.hook_s == 5
    assert "preStop + `FLEETLM_DRAIN_MS` + 5 s" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [PAGE, OPERATE], ids=lambda page: page.name)
def test_kubernetes_waits_for_pre_stop_and_the_drain_twice(page: Path) -> None:
    service, deployment = manifests(page)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    drain_s = float(env.get("FLEETLM_DRAIN_MS", DEFAULTS.drain_s * 1000)) / 1000
    pre_stop_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= pre_stop_s + 2 * drain_s + 5
    assert pod["enableServiceLinks"] is False
    assert container["ports"] == [{"containerPort": 4370}]
    assert not command(container["livenessProbe"]).ready
    assert command(container["readinessProbe"]).ready


def test_no_probe_that_restarts_a_container_asks_the_event_loop() -> None:
    """A startup probe may: nothing is lost when a node is restarted that has never been ready."""
    _, deployment = manifests(PAGE)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert command(container["startupProbe"]).ready
    assert container["startupProbe"]["failureThreshold"] * 10 >= 600
    assert json.loads(block("json", "stopTimeout"))["healthCheck"]["command"][1:] == [
        "fleetlm",
        "health",
        "--live",
    ]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert 'CMD ["fleetlm", "health", "--live"]' in dockerfile


def test_fly_sends_sigterm_and_waits() -> None:
    fly = tomllib.loads(block("toml", "kill_signal"))
    assert fly["kill_signal"] == "SIGTERM"
    assert NEEDED_S <= fly["kill_timeout"] <= 300


@pytest.mark.parametrize("text", [block("yaml", "services:"), (ROOT / "docker/compose.yaml").read_text()])
def test_compose_waits_and_asks_whether_the_node_is_ready(text: str) -> None:
    worker = yaml.safe_load(text)["services"]["worker"]
    drain_s = float(worker["environment"].get("FLEETLM_DRAIN_MS", DEFAULTS.drain_s * 1000)) / 1000
    assert float(worker["stop_grace_period"].removesuffix("s")) >= drain_s + 5
    word, *arguments = worker["healthcheck"]["test"]
    assert (word, arguments) == ("CMD", ["fleetlm", "health", "--ready"])
    assert float(worker["healthcheck"]["timeout"].removesuffix("s")) > health.DEFAULT_TIMEOUT_S


def test_ecs_waits_within_what_fargate_allows() -> None:
    container = json.loads(block("json", "stopTimeout"))
    (drain,) = container["environment"]
    assert float(drain["value"]) / 1000 + 5 <= container["stopTimeout"] <= 120


def test_nomad_sends_sigterm_and_waits() -> None:
    task = block("hcl", "kill_timeout")
    assert 'kill_signal  = "SIGTERM"' in task
    found = re.search(r'kill_timeout = "(\d+)s"', task)
    assert found is not None
    assert float(found[1]) >= NEEDED_S


def test_systemd_waits_and_knows_the_exit_codes() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment]  # as its documentation says
    unit.read_string(block("ini", "TimeoutStopSec"))
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) >= NEEDED_S
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["RestartPreventExitStatus"]) == EX_CONFIG
    assert int(service["SuccessExitStatus"]) == EX_CUT
