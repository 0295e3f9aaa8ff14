"""What a web client is told about a request that failed: status code, kind, and whether to retry.

The rule: the class of a `FleetError` says whether the request may have run, so the status code does too.

* 503: it has not run (`NotDelivered`), and will most likely run soon. A client, or a proxy, may repeat it.
* 502: it was sent, and may have run (`OutcomeUnknown`): the process or its node has ended meanwhile.
* 504: likewise, and there was no reply in time (`CallTimeout`).
* 500: it ran and raised (`RemoteError`), or has not run and never will, because programs do not fit together.
* 413: it is larger than the nodes send to each other.

A name without a process (`NoProcess`) and an empty group (`NoMember`) are 503 and not 404: the program chose
that name, not the client, and a worker that restarts is back in a moment. A program whose clients name
processes maps `NoProcess` to 404 itself.

What a client reads names no node, no address, no process and no text of an exception. The log has those.

Source: RFC 9110 for the status codes and Retry-After, RFC 9457 for the form of the body.
"""

from __future__ import annotations

import math
import re
from http import HTTPStatus
from typing import Any, Final, Literal

from fleetlm.errors import (
    CallTimeout,
    Draining,
    FleetError,
    MessageTooLarge,
    NodeStopped,
    NoFactory,
    NoHandler,
    NotAllowed,
    NotDelivered,
    OutcomeUnknown,
    RemoteError,
    Undecodable,
)
from fleetlm.records import Record

Retry = Literal["safe", "if_idempotent", "no"]

RETRY_AFTER_S: Final = 1
"""Seconds until a client should ask again, where the error does not say: a name or a connection comes back,
and a full window empties, within about that time."""
MAX_RETRY_AFTER_S: Final = 30
"""The end of a drain may be minutes away, but most drains end sooner than they may."""

_RULES: Final[dict[type[BaseException], tuple[int, Retry]]] = {
    FleetError: (500, "no"),
    MessageTooLarge: (413, "no"),
    NodeStopped: (503, "safe"),  # another worker of this program can answer
    NotDelivered: (503, "safe"),
    NoHandler: (500, "no"),
    NoFactory: (500, "no"),
    NotAllowed: (500, "no"),
    Undecodable: (500, "no"),
    OutcomeUnknown: (502, "if_idempotent"),
    CallTimeout: (504, "if_idempotent"),
    RemoteError: (500, "no"),
}
_DETAIL: Final[dict[Retry, str]] = {
    "safe": "The request has not run. It is safe to repeat it.",
    "if_idempotent": "The request may have run. Repeat it only if it may run twice.",
    "no": "The request failed, and would most likely fail again.",
}


class Outcome(Record):
    """How a request has failed, as its client may know it.

    Attributes:
        kind: the class of the error in snake case, such as ``no_process``.
        status: the status code.
        retry: ``safe``: it has not run; ``if_idempotent``: it may have run; ``no``: a repetition would not
            help.
        retry_after_s: seconds to wait before that; None if there is nothing to wait for.
    """

    kind: str
    status: int
    retry: Retry
    retry_after_s: int | None

    @property
    def detail(self) -> str:
        """One sentence for people."""
        return _DETAIL[self.retry]

    @property
    def headers(self) -> dict[str, str]:
        """Return ``Retry-After`` where the status code gives it a meaning."""
        if self.status != HTTPStatus.SERVICE_UNAVAILABLE or self.retry_after_s is None:
            return {}
        return {"Retry-After": str(self.retry_after_s)}

    def event(self) -> dict[str, Any]:
        """Return the data of an ``error`` event."""
        return {
            "kind": self.kind,
            "retry": self.retry,
            "retry_after_s": self.retry_after_s,
            "detail": self.detail,
        }

    def problem(self) -> dict[str, Any]:
        """Return the body of a response, as RFC 9457 has it."""
        return {"title": HTTPStatus(self.status).phrase, "status": self.status, **self.event()}


INTERNAL: Final = Outcome("internal_error", 500, "no", None)
"""Any other exception of the program."""


def outcome_of(error: FleetError) -> Outcome:
    """Return what the client is told about an error."""
    cls = next(each for each in type(error).__mro__ if each in _RULES)
    status, retry = _RULES[cls]
    is_ours = type(error).__module__ == FleetError.__module__
    kind = _snake_case((type(error) if is_ours else cls).__name__)
    if isinstance(error, Draining) and error.has_begun:
        # A stream whose handler has run in part: no proxy may take it for a request that has not run.
        return Outcome(kind, 502, "if_idempotent", RETRY_AFTER_S)
    if isinstance(error, RemoteError) and isinstance(error.cause, NotDelivered | OutcomeUnknown):
        return Outcome(kind, status, "if_idempotent", None)
    return Outcome(kind, status, retry, _seconds(error) if retry == "safe" else None)


def _seconds(error: FleetError) -> int:
    """Return for how long a request that has not run should wait."""
    left_s = error.retry_after if isinstance(error, Draining) else 0.0
    return min(max(RETRY_AFTER_S, math.ceil(left_s)), MAX_RETRY_AFTER_S)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
