"""Connects `fleetlm.telemetry`, which is pure, with the event loop and the log of a node."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fleetlm.telemetry import Attachment, Telemetry
from fleetlm.texts import loggable

if TYPE_CHECKING:
    from fleetlm.processes.context import NodeContext

log: logging.Logger = logging.getLogger("fleetlm")


def make_telemetry(context: NodeContext) -> Telemetry:
    """Make the observers of a node."""
    return Telemetry(context.taps, context.loop.call_soon, _complain, context.check_loop)


def _complain(attachment: Attachment, error: Exception) -> None:
    """Log the first exception of an observer."""
    log.error(
        "an observer raised %s, and stays attached; what it raises from now on is counted and not logged: %r",
        type(error).__name__,
        attachment,
        exc_info=loggable(error),
    )
