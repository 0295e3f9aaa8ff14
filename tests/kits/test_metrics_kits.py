"""What a node renders, the alerts and the dashboard, by the tools of Prometheus, and held to each other."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fleetlm import Actor, Node, NoProcess, Settings, handler
from fleetlm.metrics import SERIES, NodeMetrics

pytestmark = pytest.mark.kits

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
ALERTS_TEST = ROOT / "deploy" / "prometheus" / "alerts_test.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "fleetlm.json"
FROM_THE_SCRAPE = {"job", "instance"}
SUFFIXES = ("_bucket", "_count", "_sum")


def promtool(*arguments: str, stdin: str = "", cwd: Path = ROOT) -> str:
    tool = shutil.which("promtool")
    assert tool, "promtool is not installed (Debian: apt-get install prometheus)"
    done = subprocess.run(
        [tool, *arguments], input=stdin, capture_output=True, text=True, timeout=50, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Model(Actor):
    @handler
    async def infer(self) -> None: ...


@pytest.fixture(scope="module")
def rendered() -> str:
    """What two nodes that talk to each other render: that of the first one."""

    async def main() -> str:
        settings = Settings(node_ports=(28_490, 28_490), remote=False)
        async with (
            Node.start(settings.replace(node_ip="127.0.0.1")) as one,
            Node.start(settings.replace(node_ip="127.0.0.2")) as two,
        ):
            metrics = NodeMetrics(one)
            assert await one.connect(two.name, 30)
            local = await one.start_actor(Model)
            await local.call(Model.infer)
            await one.ref(Model, two.spawn(Model)).call(Model.infer)
            with pytest.raises(NoProcess):
                await one.call(("nobody", two.name), 1)
            one.groups.join("models", local.pid)
            return metrics.render().decode()

    return asyncio.run(main())


def test_promtool_accepts_what_a_node_renders(rendered: str) -> None:
    assert promtool("check", "metrics", stdin=rendered) == ""


def test_a_node_renders_each_series(rendered: str) -> None:
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", rendered, re.MULTILINE))
    assert types == {series.name: series.type for series in SERIES}
    assert 'fleetlm_sent_messages_total{peer="fleetlm@127.0.0.2"}' in rendered


def test_promtool_accepts_the_alerts_and_their_tests_pass() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(ALERTS))
    assert "SUCCESS" in promtool("test", "rules", ALERTS_TEST.name, cwd=ALERTS_TEST.parent)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_each_alert_fires_in_a_test_and_says_what_to_do() -> None:
    tests = yaml.safe_load(ALERTS_TEST.read_text(encoding="utf-8"))["tests"]
    checked = [each for test in tests for each in test["alert_rule_test"]]
    fired = {each["alertname"] for each in checked if each.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def dashboard_expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"]


def expressions() -> list[str]:
    return [*(rule["expr"] for rule in alerts()), *dashboard_expressions()]


def labels_of(name: str) -> set[str]:
    """The labels of a name as it stands in an expression. Raises: KeyError for one that is not rendered."""
    known = {series.name: series for series in SERIES}
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    if base in known and known[base].type == "histogram":
        assert name.endswith(SUFFIXES), f"{name} is a histogram"
        return {*known[base].labels, *({"le"} if name.endswith("_bucket") else ())}
    return {*known[name].labels}


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_series_and_labels_that_a_node_renders(expression: str, rendered: str) -> None:
    names = set(re.findall(r"\bfleetlm_\w+", expression))
    assert names
    has: set[str] = set(FROM_THE_SCRAPE)
    for name in names:
        has |= labels_of(name)
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert f"# TYPE {base if base in {each.name for each in SERIES} else name} " in rendered
    for selector_of, selector in re.findall(r"\b(fleetlm_\w+)\{(.*?)\}", expression):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert used <= labels_of(selector_of) | FROM_THE_SCRAPE
    for by in re.findall(r"\b(?:by|on) \((.*?)\)", expression):
        assert set(by.split(", ")) <= has


def test_values_of_labels_in_expressions_exist() -> None:
    from fleetlm.core.dns_answers import Outcome
    from fleetlm.metrics.reading import HANDOFF_ENDS, STATES
    from fleetlm.telemetry import ENDS, OUTCOMES

    known = {*STATES, *HANDOFF_ENDS, *ENDS, *OUTCOMES, *(each.value for each in Outcome)}
    for expression in expressions():
        for values in re.findall(r'\b(?:state|reason|outcome|end)(?:=~|!~|!=|=)"(.*?)"', expression):
            assert set(values.split("|")) <= known


def test_promtool_can_read_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for number, expression in enumerate(dashboard_expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_the_dashboard_shows_every_series() -> None:
    shown = " ".join(dashboard_expressions())
    assert [series.name for series in SERIES if series.name not in shown] == []


def test_the_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_dashboard_asks_the_data_source_that_is_chosen() -> None:
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
