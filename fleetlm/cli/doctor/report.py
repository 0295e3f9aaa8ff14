"""The report of `fleetlm doctor`: the findings about one node, or about all nodes of this machine.

Nodes of one machine mostly share their settings, DNS and peers. What is found for all of them is shown once,
at the top; below it stands what concerns one node only.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from fleetlm.cli.doctor.findings import FAIL, OK, WARN, Finding, failed
from fleetlm.escapes import escape
from fleetlm.records import Record

_WIDTH_CHARS = 100
_TEXT_COLUMN = 19


class Report(Record):
    """The findings about one node, in the order of the checks.

    Attributes:
        node: its name; empty where no node runs, and the environment was checked.
        findings: what was found.
    """

    node: str
    findings: Sequence[Finding]


def merge(reports: Sequence[Report]) -> list[Report]:
    """Return what all reports have in common first, under no name, then the rest of each."""
    if len(reports) == 1:
        return [Report("", reports[0].findings)]
    first, *others = reports
    common = [each for each in first.findings if all(each in other.findings for other in others)]
    rest = [Report(each.node, [one for one in each.findings if one not in common]) for each in reports]
    return [Report("", common), *rest]


def show(reports: Sequence[Report], as_json: bool) -> None:
    """Print the report: one entry for each finding, then a summary with counts."""
    merged = merge(reports)
    findings = [finding for report in merged for finding in report.findings]
    if as_json:
        entries = [
            asdict(one) | {"node": report.node or None} for report in merged for one in report.findings
        ]
        nodes = [report.node for report in reports if report.node]
        print(json.dumps({"ok": not failed(findings), "nodes": nodes, "findings": entries}))
        return
    if len(reports) > 1:
        print(f"{len(reports)} nodes run on this machine. What concerns all of them:\n")
    for report in merged:
        if report.node:
            print(f"\n{escape(report.node)}\n")
        for finding in said_once(report.findings):
            print(format_finding(finding, sys.stdout.isatty()))
    print(f"\n{summarize(findings)}")


def said_once(findings: Sequence[Finding]) -> list[Finding]:
    """Of findings in a row with the same cure, as those of dead peers, leave it only to the last."""
    cures = [finding.cure for finding in findings]
    return [
        replace(finding, cure="") if cure == below else finding
        for finding, cure, below in zip(findings, cures, [*cures[1:], ""], strict=False)
    ]


def summarize(findings: Iterable[Finding]) -> str:
    """Return the last line of the report: whether all checks passed, and how many did not."""
    levels = [finding.level for finding in findings]
    failures, warnings, passed = (levels.count(level) for level in (FAIL, WARN, OK))
    if not failures and not warnings:
        return f"All checks passed ({passed})."
    count = f"{failures} check{'' if failures == 1 else 's'} failed" if failures else "No check failed"
    return f"{count}; {warnings} warning{'' if warnings == 1 else 's'}, {passed} passed."


def format_finding(finding: Finding, colours: bool) -> str:
    """Return the lines of one finding: level, topic and text, and below them what to do."""
    colour = {"ok": "32", "warn": "33", "fail": "31"}[finding.level]
    level = f"{finding.level:<4}"
    level = f"\x1b[{colour}m{level}\x1b[0m" if colours else level
    line = f"{level}  {finding.topic:<12} {escape(finding.text)}"
    if not finding.cure:
        return line
    cure = textwrap.fill(
        escape(finding.cure),
        width=_WIDTH_CHARS,
        initial_indent=" " * _TEXT_COLUMN + "→ ",
        subsequent_indent=" " * (_TEXT_COLUMN + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{line}\n{cure}"
