"""The table of series keeps the conventions of its readers, and the documentation has the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetlm.metrics import SERIES, Series
from fleetlm.metrics.labels import MAX_ACTORS, MAX_GROUPS, MAX_HANDLERS, MAX_PEERS
from fleetlm.metrics.reading import HANDOFF_ENDS, MAILBOXES_AT_ONCE
from fleetlm.telemetry import DROPS, ENDS, KINDS

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
BOUNDED = {
    "version", "python", "state", "peer", "reason", "outcome", "actor", "handler", "table", "group",
    "kind", "end",
}  # fmt: skip
"""Labels whose values the code bounds. No pid, no key, no text."""


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_names_say_what_they_are(series: Series) -> None:
    assert re.fullmatch(r"fleetlm(_[a-z]+)+", series.name)
    assert series.name.endswith("_total") == (series.type == "counter")
    if series.type == "histogram":
        assert series.name.endswith("_seconds")
    assert series.help.endswith(".")
    assert set(series.labels) <= BOUNDED


def test_no_two_series_have_one_family() -> None:
    families = [series.name.removesuffix("_total") for series in SERIES]
    assert len(set(families)) == len(families)


def test_the_guide_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(fleetlm_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", GUIDE, re.MULTILINE)
    shown = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert shown == [tuple(series) for series in SERIES]


def test_the_guide_names_no_other_series() -> None:
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bfleetlm_\w+", GUIDE)}
    assert named - {series.name for series in SERIES} == set()


def test_the_guide_has_each_event_with_its_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (`.*`) \|$", GUIDE, re.MULTILINE)
    shown = {name: tuple(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    assert shown == {kind.__name__: kind.__match_args__ for kind in KINDS}


def test_the_guide_explains_each_reason_and_names_each_alert() -> None:
    for each in (*ENDS, *DROPS, *HANDOFF_ENDS):
        assert f"`{each}`" in GUIDE
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Fleetlm\w+)`", GUIDE, re.MULTILINE) == re.findall(r"alert: (\w+)", alerts)


def test_the_guide_has_the_limits_of_labels() -> None:
    words = " ".join(GUIDE.split())
    labels = (
        f"{MAX_PEERS} peers, {MAX_GROUPS} groups, {MAX_HANDLERS} handlers, the queues of {MAX_ACTORS} actor"
    )
    assert labels in words
    assert f"{MAILBOXES_AT_ONCE:,} processes" in words
