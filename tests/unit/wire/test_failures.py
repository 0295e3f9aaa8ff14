"""Failures: the error that a caller gets for what came over the wire."""

from __future__ import annotations

import pytest

from fleetlm.errors import (
    AlreadyRegistered,
    Draining,
    FleetError,
    NoFactory,
    NoHandler,
    NoProcess,
    NotDelivered,
    OutcomeUnknown,
    ProcessDown,
    RemoteError,
    Undecodable,
    WouldBlock,
)
from fleetlm.wire.failures import FailureKind, error_of_failure


@pytest.mark.parametrize(
    ("kind", "details", "expected", "base"),
    [
        (FailureKind.NO_PROCESS, ["x"], NoProcess, NotDelivered),
        (FailureKind.PROCESS_DOWN, ["x", "normal"], ProcessDown, OutcomeUnknown),
        (FailureKind.RAISED, ["ValueError", "no", "Traceback"], RemoteError, FleetError),
        (FailureKind.UNDECODABLE, ["x", "no such tag"], Undecodable, NotDelivered),
        (FailureKind.TOO_MANY, ["x", "its mailbox is full"], WouldBlock, NotDelivered),
        (FailureKind.NO_HANDLER, ["x", "no handler"], NoHandler, NotDelivered),
        (FailureKind.NO_FACTORY, ["x", "f"], NoFactory, NotDelivered),
        (FailureKind.DRAINING, ["x"], Draining, NotDelivered),
        (FailureKind.NAME_TAKEN, ["x", "<pid>"], AlreadyRegistered, FleetError),
        (1, [], NoProcess, NotDelivered),
    ],
)
def test_failures_become_exceptions(kind: int, details: list[str], expected: type, base: type) -> None:
    error = error_of_failure(kind, details)
    assert type(error) is expected
    assert isinstance(error, base)
    assert all(detail in error.args for detail in details)


@pytest.mark.parametrize(
    ("kind", "details"), [(0, []), (99, []), ("1", []), (None, []), (1, None), (1, [1]), (1, "text")]
)
def test_malformed_failures_are_refused(kind: object, details: object) -> None:
    with pytest.raises(ValueError, match="failure"):
        error_of_failure(kind, details)
