"""What a check of `fleetlm doctor` says."""

from __future__ import annotations

from collections.abc import Iterable

from fleetlm.records import Record

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(Record):
    """The result of one check.

    Attributes:
        level: `OK`, `WARN` or `FAIL`.
        topic: what was checked.
        text: what was found.
        cure: what to do; empty where nothing needs to be done.
    """

    level: str
    topic: str
    text: str
    cure: str = ""


def failed(findings: Iterable[Finding]) -> bool:
    """Whether a check failed."""
    return any(finding.level == FAIL for finding in findings)
