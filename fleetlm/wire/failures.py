"""Failures of requests: the kind and texts that travel, and the exception that the caller gets for them."""

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
    StreamIdle,
    Undecodable,
    WouldBlock,
)
from fleetlm.texts import SHORT


class FailureKind(IntEnum):
    """Why a request has no reply. The numbers travel, and are never given a second meaning."""

    # The comments name the texts that travel with each kind.
    NO_PROCESS = 1  # target
    PROCESS_DOWN = 2  # target, reason
    RAISED = 3  # name of the exception's type, text, traceback
    UNDECODABLE = 4  # target, why
    TOO_MANY = 5  # target, why
    NO_FACTORY = 6  # node, name of the factory
    DRAINING = 7  # node
    NAME_TAKEN = 8  # name, owner
    NO_HANDLER = 9  # target, why
    UNREAD = 10  # none: the consumer of a stream knows what it asked for


def error_of_failure(kind: object, details: object) -> FleetError:
    """Return the exception for a failure that came over a session.

    Texts that are missing at the end are taken as empty.

    Raises:
        ValueError: an unknown kind, or ``details`` is not a list of texts.
    """
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
        case FailureKind.UNREAD:
            return StreamIdle(texts[0], 0.0, is_unread=True)  # The consumer's end knows both facts.
    raise ValueError(f"failure of kind {SHORT.repr(kind)} is not known to this version")
