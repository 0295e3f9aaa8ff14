"""Exception handlers for Starlette and FastAPI that answer a `FleetError` with its status code."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from fleetlm.asgi.outcomes import Outcome, outcome_of
from fleetlm.errors import FleetError, RemoteError

log: logging.Logger = logging.getLogger("fleetlm.asgi")

CLIENT_CLOSED_REQUEST = 499
"""The status code in the access log for a client that has gone, as nginx has it; nobody receives it."""
TRY_AGAIN_LATER, INTERNAL_ERROR = 1013, 1011
"""Codes with which a WebSocket is closed. Source: RFC 6455 and the registry that it opened."""


def install(app: Starlette) -> None:
    """Answer errors of fleetlm with the status codes of `outcome_of`.

    ::

        asgi.install(app)

    The body is JSON (``application/problem+json``)::

        {"title": "Service Unavailable", "status": 503, "kind": "draining", "retry": "safe",
         "retry_after_s": 2, "detail": "The request has not run. It is safe to repeat it."}

    It says nothing about nodes, processes and exceptions; the log of ``fleetlm.asgi`` does. A WebSocket is
    closed with 1013 where the request may be repeated, else with 1011.

    Args:
        app: of Starlette or FastAPI. A mounted application has handlers of its own, so it needs a call of its
            own. A handler that the program adds for a subclass, such as `NoProcess`, comes first.
    """
    # Starlette's types have no handler for both requests and WebSockets.
    app.add_exception_handler(FleetError, cast("Any", _answer_failure))
    app.add_exception_handler(ClientDisconnect, _answer_nobody)


def problem_response(outcome: Outcome) -> Response:
    """Return the response for an outcome."""
    body = json.dumps(outcome.problem(), separators=(",", ":"))
    return Response(body, outcome.status, outcome.headers, media_type="application/problem+json")


def log_failure(scope: Scope, error: FleetError, outcome: Outcome) -> None:
    """Log what the client is not told. Only an exception of a handler is an error here."""
    path = scope.get("path", "")
    if isinstance(error, RemoteError):
        log.error("%s was answered with %d: %s\n%s", path, outcome.status, error, error.traceback_text)
    else:
        log.info("%s was answered with %d: %s", path, outcome.status, error)


async def _answer_failure(connection: Any, error: Exception) -> Response | None:
    assert isinstance(error, FleetError)
    outcome = outcome_of(error)
    log_failure(connection.scope, error, outcome)
    if isinstance(connection, WebSocket):
        if connection.application_state is not WebSocketState.DISCONNECTED:
            code = INTERNAL_ERROR if outcome.retry == "no" else TRY_AGAIN_LATER
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # The client has gone meanwhile.
                await connection.close(code, outcome.kind)
        return None
    return problem_response(outcome)


async def _answer_nobody(_connection: Any, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
