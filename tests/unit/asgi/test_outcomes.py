"""Each error of fleetlm has a status code that says whether the request may be repeated."""

from __future__ import annotations

import inspect

import pytest

from fleetlm import errors
from fleetlm.asgi import outcome_of
from fleetlm.asgi.outcomes import INTERNAL, MAX_RETRY_AFTER_S
from fleetlm.errors import (
    CallTimeout,
    Draining,
    Expired,
    FleetError,
    MessageTooLarge,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoHandler,
    NoMember,
    NoProcess,
    NotAllowed,
    NotDelivered,
    NotSerializable,
    OutcomeUnknown,
    ProcessDown,
    RemoteError,
    StreamIdle,
    WouldBlock,
)

NODE = "fleetlm@10.0.0.7"
EVERY_CLASS = [
    each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, FleetError)
]


@pytest.mark.parametrize(
    ("error", "kind", "status", "retry"),
    [
        (NoConnection(NODE, "refused"), "no_connection", 503, "safe"),
        (NoProcess("model"), "no_process", 503, "safe"),
        (NoMember("models"), "no_member", 503, "safe"),
        (WouldBlock("model", "its window is full"), "would_block", 503, "safe"),
        (Draining(NODE, 2.5), "draining", 503, "safe"),
        (Expired(), "expired", 503, "safe"),
        (NodeStopped(NODE), "node_stopped", 503, "safe"),
        (NoHandler("model", "no such handler"), "no_handler", 500, "no"),
        (NotAllowed(NODE, "calls"), "not_allowed", 500, "no"),
        (CallTimeout("model", 5.0), "call_timeout", 504, "if_idempotent"),
        (StreamIdle("model", 60.0), "stream_idle", 504, "if_idempotent"),
        (NodeLost(NODE, "closed"), "node_lost", 502, "if_idempotent"),
        (ProcessDown("model", "killed"), "process_down", 502, "if_idempotent"),
        (Draining(NODE, 2.5, has_begun=True), "draining", 502, "if_idempotent"),
        (RemoteError("ValueError", "wrong"), "remote_error", 500, "no"),
        (RemoteError("NoProcess", "", "", NoProcess("cache")), "remote_error", 500, "if_idempotent"),
        (RemoteError("NodeLost", "", "", NodeLost(NODE, "")), "remote_error", 500, "if_idempotent"),
        (RemoteError("X", "", "", RemoteError("ValueError", "")), "remote_error", 500, "no"),
        (MessageTooLarge(2, 1), "message_too_large", 413, "no"),
        (NotSerializable("x", "object"), "not_serializable", 500, "no"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FleetError) else None,
)
def test_the_class_of_an_error_says_what_a_client_may_do(
    error: FleetError, kind: str, status: int, retry: str
) -> None:
    outcome = outcome_of(error)
    assert (outcome.kind, outcome.status, outcome.retry) == (kind, status, retry)


@pytest.mark.parametrize("cls", EVERY_CLASS, ids=lambda cls: cls.__name__)
def test_what_has_not_run_is_never_answered_as_what_may_have_run(cls: type[FleetError]) -> None:
    error = cls.__new__(cls)
    error.__dict__.update(retry_after=0.0, has_begun=False, cause=None)
    outcome = outcome_of(error)
    assert 400 <= outcome.status < 600
    if issubclass(cls, OutcomeUnknown):
        assert (outcome.status in (502, 504), outcome.retry) == (True, "if_idempotent")
    elif outcome.retry == "safe":
        assert issubclass(cls, NotDelivered | NodeStopped)
        assert outcome.headers == {"Retry-After": "1"}


def test_a_node_that_drains_says_when_to_come_back_and_never_a_time_that_nobody_waits() -> None:
    assert outcome_of(Draining(NODE, 2.1)).headers == {"Retry-After": "3"}
    assert outcome_of(Draining(NODE, 900.0)).headers == {"Retry-After": str(MAX_RETRY_AFTER_S)}
    assert outcome_of(Draining(NODE, 0.0)).headers == {"Retry-After": "1"}


def test_only_what_is_safe_to_repeat_has_a_time_for_it() -> None:
    assert outcome_of(NodeLost(NODE, "closed")).headers == {}
    assert outcome_of(Draining(NODE, 5, has_begun=True)).headers == {}
    assert INTERNAL.headers == {}


def test_what_the_client_reads_names_no_node_and_no_exception() -> None:
    secret = RemoteError("SecretError", "password=hunter2", "Traceback of /srv/app.py")
    for error in (NoConnection(NODE, "10.0.0.8 refused"), NodeLost(NODE, "x"), secret):
        told = str(outcome_of(error).problem())
        assert not any(word in told for word in ("10.0.0", "Secret", "hunter2", "Traceback", "refused"))


def test_the_body_is_that_of_rfc_9457() -> None:
    assert outcome_of(NoProcess("model")).problem() == {
        "title": "Service Unavailable",
        "status": 503,
        "kind": "no_process",
        "retry": "safe",
        "retry_after_s": 1,
        "detail": "The request has not run. It is safe to repeat it.",
    }


def test_an_error_class_of_the_program_shows_the_class_that_fleetlm_knows() -> None:
    class OutOfGpus(NotDelivered):
        pass

    assert outcome_of(OutOfGpus()).kind == "not_delivered"
    assert outcome_of(OutOfGpus()).retry == "safe"
