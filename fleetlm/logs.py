"""Log records that say where they come from: node, process, handler, trace, and what the caller carries.

::

    handler = logging.StreamHandler()
    handler.addFilter(fleetlm.logs.LogContext(node))
    handler.setFormatter(logging.Formatter("%(asctime)s %(fleetlm_process)s %(trace_id)s %(message)s"))

``fleetlm start`` does the same by itself where ``FLEETLM_LOG=json``: the fields of `LogContext.fields` stand
in each of its lines.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from fleetlm.escapes import escape
from fleetlm.messaging.carrying import CARRYING, HANDLING
from fleetlm.node import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetlm.node import Node
    from fleetlm.wire.carriers import Value

ATTRIBUTES: Final = {
    "fleetlm_node": "node",
    "fleetlm_process": "process",
    "fleetlm_handler": "handler",
    "trace_id": "trace_id",
    "span_id": "span_id",
    "fleetlm_context": "context",
}
"""The attributes that the filter gives to records, and the field in each."""


class LogContext(logging.Filter):
    """A filter that lets every record pass, and gives it the context in which it was made.

    Add it to a handler, or to the `logging.handlers.QueueHandler` in front of one, since a filter must run
    where the record is made. One of a logger itself sees no records of the loggers below it. A record gets
    these attributes, with empty texts where something does not apply:

    ===================  ===================================================================================
    ``fleetlm_node``     the name of the node
    ``fleetlm_process``  the pid of the process whose task, or handler, made the record
    ``fleetlm_handler``  actor and handler, such as ``Sessions.append``
    ``trace_id``         of OpenTelemetry's current span, 32 hexadecimal digits
    ``span_id``          of the same, 16 hexadecimal digits
    ``fleetlm_context``  the context variables that travel (`fleetlm.carry`): ``request-id=r-1 tenant=7``
    ===================  ===================================================================================

    From the first filter on, each handler of an actor notes in its context who it is, so that records of the
    tasks and threads that it starts have its name, too.

    Args:
        node: the node of the program. A record of a handler has the node of the handler, where there are
            several.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node.name
        self._local = parts_of(node).local
        CARRYING.label_handlers()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to a record. Returns True."""
        fields = self.fields()
        for attribute, field in ATTRIBUTES.items():
            value = fields.get(field, "")
            setattr(record, attribute, value if isinstance(value, str) else _line_of(value))
        return True

    def fields(self) -> dict[str, Any]:
        """Return what is known of the place where this is called, without what does not apply.

        Returns:
            ``node``, ``process``, ``handler``, ``trace_id`` and ``span_id`` as texts, and ``context``: the
            variables that travel, by name, with bytes as hexadecimal digits.
        """
        fields: dict[str, Any] = {"node": self._node}
        handling = HANDLING.get()
        if handling is not None:
            fields["node"] = handling.pid.node
            fields["process"] = str(handling.pid)
            fields["handler"] = f"{handling.runs}.{handling.handler}"
        elif (pid := self._pid()) is not None:
            fields["process"] = pid
        fields |= _trace_fields()
        if CARRYING.variables and (values := CARRYING.values()):
            fields["context"] = {name: _shown(value) for name, value in values.items()}
        return fields

    def _pid(self) -> str | None:
        """Return the pid of the process whose task runs at the moment, as text."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return None  # In another thread.
        process = self._local.of_task(task)
        return None if process is None else str(process.pid)


def _trace_fields() -> dict[str, str]:
    """Return the ids of the current span, if the program has imported OpenTelemetry and is in a span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    span = trace.get_current_span().get_span_context()
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else {}


def _shown(value: Value) -> str | int:
    return value.hex() if isinstance(value, bytes) else value


def _line_of(values: Mapping[str, object]) -> str:
    """Return variables in one line. Peers choose their values, which must not look like further lines."""
    return " ".join(f"{name}={escape(str(value))}" for name, value in values.items())
