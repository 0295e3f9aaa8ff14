"""Failures of requests as they travel: a kind and some texts, and the error that the caller gets for them."""

from __future__ import annotations

from enum import IntEnum

from fleetlm.errors import (
    AlreadyRegistered,
    Draining,
    FleetError,
    NoFactory,
    NoHandler,
    NoProcess,
    ProcessDown,
    RemoteError,
    Undecodable,
    WouldBlock,
)
from fleetlm.texts import SHORT


class FailureKind(IntEnum):
    """Why a request has no reply, as it travels."""

    NO_PROCESS = 1
    PROCESS_DOWN = 2
    RAISED = 3
    UNDECODABLE = 4
    TOO_MANY = 5
    NO_HANDLER = 9
    NO_FACTORY = 6
    DRAINING = 7
    NAME_TAKEN = 8


def error_of_failure(kind: object, details: object) -> FleetError:
    """The exception for a failure that came over a connection. Raises: ValueError for nonsense."""
    if not isinstance(details, list) or not all(isinstance(text, str) for text in details):
        raise ValueError("a failure without its details")
    texts = [*details, "", "", ""]
    match kind:
        case FailureKind.NO_PROCESS:
            return NoProcess(texts[0])
        case FailureKind.PROCESS_DOWN:
            return ProcessDown(texts[0], texts[1])
        case FailureKind.RAISED:
            return RemoteError(texts[0], texts[1], texts[2])
        case FailureKind.UNDECODABLE:
            return Undecodable(texts[0], texts[1])
        case FailureKind.TOO_MANY:
            return WouldBlock(texts[0], texts[1])
        case FailureKind.NO_HANDLER:
            return NoHandler(texts[0], texts[1])
        case FailureKind.NO_FACTORY:
            return NoFactory(texts[0], texts[1])
        case FailureKind.DRAINING:
            return Draining(texts[0])
        case FailureKind.NAME_TAKEN:
            return AlreadyRegistered(texts[0], texts[1])
    raise ValueError(f"failure of kind {SHORT.repr(kind)} is not known to this version")
