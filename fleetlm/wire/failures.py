"""Failures of requests: the kind and texts that travel, and the exception that the caller gets for them.

**Outcomes over several hops.** A handler may itself make requests. If the outcome of one of them ends the
handler, its caller gets a `RemoteError`, since the handler has run, and finds that outcome with its class in
`RemoteError.cause`. It travels behind the texts of RAISED: the name of its class, how many arguments follow,
the arguments as texts; and behind a RemoteError its own cause in the same way. A program's own subclass
travels as the class of fleetlm that it derives from, with its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from fleetlm import errors
from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    Draining,
    FleetError,
    NoFactory,
    NoHandler,
    NoProcess,
    NotAllowed,
    NotDelivered,
    NotLoaded,
    NotOwner,
    NotStored,
    OutcomeUnknown,
    ProcessDown,
    RemoteError,
    StreamIdle,
    Undecodable,
    WouldBlock,
)
from fleetlm.texts import SHORT, text_of


class FailureKind(IntEnum):
    """Why a request has no reply. The numbers travel, and are never given a second meaning."""

    # The comments name the texts that travel with each kind.
    NO_PROCESS = 1  # target
    PROCESS_DOWN = 2  # target, reason
    RAISED = 3  # name of the exception's type, text, traceback, and what `texts_of_outcome` returns
    UNDECODABLE = 4  # target, why
    TOO_MANY = 5  # target, why
    NO_FACTORY = 6  # node, name of the factory
    DRAINING = 7  # node, seconds, "True" if a stream had begun
    NAME_TAKEN = 8  # name, owner
    NO_HANDLER = 9  # target, why
    UNREAD = 10  # none: the consumer of a stream knows what it asked for
    NOT_ALLOWED = 11  # node, why
    NOT_OWNER = 12  # entity, node, epoch
    NOT_LOADED = 13  # entity, why
    NOT_STORED = 14  # entity, why


def may_have_run(kind: FailureKind, details: list[str]) -> bool:
    """Whether a request that failed so may have run: whether its caller gets no `NotDelivered`.

    A stream that had begun when its node drained counts as one that has run.
    """
    if kind is FailureKind.DRAINING:
        return details[2:3] == [_TRUE]
    return kind not in _NEVER_RAN


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
        case FailureKind.RAISED:
            return RemoteError(texts[0], texts[1], texts[2], _read_outcome(details[3:]))
        case FailureKind.DRAINING:
            return Draining(texts[0], _seconds(texts[1]), texts[2] == _TRUE)
        case FailureKind.NOT_OWNER:
            return NotOwner(texts[0], texts[1], int(texts[2] or 0))
        case FailureKind.UNREAD:
            return StreamIdle(texts[0], 0.0, is_unread=True)  # The consumer's end knows both facts.
    made = _OF_TWO_TEXTS.get(kind) if isinstance(kind, int) else None
    if made is None:
        raise ValueError(f"failure of kind {SHORT.repr(kind)} is not known to this version")
    return made(texts[0], texts[1])


_OF_TWO_TEXTS: Final[dict[int, Callable[[str, str], FleetError]]] = {
    FailureKind.PROCESS_DOWN: ProcessDown,
    FailureKind.UNDECODABLE: Undecodable,
    FailureKind.TOO_MANY: WouldBlock,
    FailureKind.NO_FACTORY: NoFactory,
    FailureKind.NAME_TAKEN: AlreadyRegistered,
    FailureKind.NO_HANDLER: NoHandler,
    FailureKind.NOT_ALLOWED: NotAllowed,
    FailureKind.NOT_LOADED: NotLoaded,
    FailureKind.NOT_STORED: NotStored,
}
"""What is made of the first two texts of a failure."""


_NEVER_RAN: Final = frozenset(
    {
        FailureKind.NO_PROCESS,
        FailureKind.UNDECODABLE,
        FailureKind.TOO_MANY,
        FailureKind.NO_FACTORY,
        FailureKind.NO_HANDLER,
        FailureKind.NOT_ALLOWED,
        FailureKind.NOT_OWNER,
        FailureKind.NOT_LOADED,
    }
)
"""The kinds whose exceptions are a `NotDelivered`; `may_have_run` decides on DRAINING."""


def _seconds(text: str) -> float:
    """Read a number of seconds. Raises: ValueError."""
    seconds = float(text or 0)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{SHORT.repr(text)} is not a number of seconds")
    return seconds


# ── outcomes of a handler's own requests ─────────────────────────────────────────────────────────

MAX_HOPS: Final = 8
"""Outcomes in one chain that travel. Services are layered less deeply; a circle of calls is not."""
_TRUE: Final = "True"
"""A fact that is true, as a text."""
_COUNTS: Final = frozenset("0123456789")
"""The facts of an outcome are few."""
MAX_GROUPED: Final = 100
"""Exceptions that are looked at in an exception group."""
_MAX_CHARS: Final = 4_096
"""Longer texts of an outcome are cut, so that a chain of them fits a frame. Of the tracebacks only that of
the last hop travels."""
_CLASSES: Final[dict[str, type[FleetError]]] = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, NotDelivered | OutcomeUnknown | RemoteError)
}
"""The outcomes that travel. A class that is not here travels as the nearest base class that is."""
_RANKS: Final = (OutcomeUnknown, RemoteError, NotDelivered)
"""Of several outcomes in a group the first of these decides: it allows the caller the least."""


def outcome_of(error: BaseException, levels: int = MAX_HOPS) -> FleetError | None:
    """Return the outcome of a request that an exception stands for, or None if it has another origin.

    It is the exception itself, or the one that it was raised from (``raise ... from error``). Of an exception
    group, as a TaskGroup raises it, every part must be one, and the one that allows the caller the least
    counts. Groups inside each other are looked into for so many ``levels``.
    """
    found: BaseException | None = error
    for _ in range(MAX_HOPS):
        if found is None or isinstance(found, _RANKS):
            return found
        if isinstance(found, BaseExceptionGroup):
            return _worst_of(found, levels - 1) if levels else None
        found = found.__cause__
    return None


def texts_of_outcome(error: BaseException) -> list[str]:
    """Return the texts that carry the outcome behind an exception; none if there is none."""
    texts: list[str] = []
    outcome = outcome_of(error)
    for _ in range(MAX_HOPS):
        if outcome is None:
            break
        cls = next(base for base in type(outcome).__mro__ if base.__name__ in _CLASSES)
        args = outcome.args if cls is type(outcome) else (text_of(outcome),)
        if isinstance(outcome, RemoteError):
            args = (outcome.type_name, outcome.text)
        shown = [_text_of_fact(arg)[:_MAX_CHARS] for arg in args]
        texts += [cls.__name__, str(len(shown)), *shown]
        outcome = outcome.cause if isinstance(outcome, RemoteError) else None
    return texts


def _worst_of(group: BaseExceptionGroup[BaseException], levels: int) -> FleetError | None:
    """Return the outcome that allows the least; None if a part of the group is not an outcome."""
    parts: list[FleetError] = []
    for part in group.exceptions[:MAX_GROUPED]:
        outcome = outcome_of(part, levels)
        if outcome is None:
            return None
        parts.append(outcome)
    return min(parts, key=lambda part: next(n for n, cls in enumerate(_RANKS) if isinstance(part, cls)))


def _text_of_fact(fact: object) -> str:
    """Return an argument of an outcome as a text; a target is shown as people name it."""
    if isinstance(fact, tuple) and len(fact) == 2:
        return f"{text_of(fact[0])} on {text_of(fact[1])}"
    return text_of(fact)


def _read_outcome(texts: list[str]) -> FleetError | None:
    """Rebuild an outcome and its own causes. A class that this version does not know ends the chain."""
    links: list[tuple[type[FleetError], list[str]]] = []
    while len(texts) >= 2 and len(links) < MAX_HOPS and texts[0] in _CLASSES and texts[1] in _COUNTS:
        count = int(texts[1])
        links.append((_CLASSES[texts[0]], texts[2 : 2 + count]))
        texts = texts[2 + count :]
    cause: FleetError | None = None
    for cls, facts in reversed(links):
        cause = _rebuild(cls, facts, cause)
    return cause


def _rebuild(cls: type[FleetError], facts: list[str], cause: FleetError | None) -> FleetError:
    """Make an outcome from its facts as texts; from wrong ones, one of its kind with these texts."""
    try:
        if issubclass(cls, RemoteError):
            return RemoteError(facts[0], facts[1], "", cause)
        if issubclass(cls, StreamIdle):
            return StreamIdle(facts[0], float(facts[1]), facts[2:] == [_TRUE])
        if issubclass(cls, Draining):
            return Draining(facts[0], _seconds(facts[1]), facts[2:] == [_TRUE])
        if issubclass(cls, NotOwner):
            return NotOwner(facts[0], facts[1], int(facts[2]))
        if issubclass(cls, CallTimeout):
            return CallTimeout(facts[0], float(facts[1]))
        return cls(*facts)
    except (TypeError, ValueError, LookupError):
        kind = NotDelivered if issubclass(cls, NotDelivered) else OutcomeUnknown
        return kind(" ".join(facts))
