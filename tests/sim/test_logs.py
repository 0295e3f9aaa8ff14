"""What log records say of the place where they were made."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import fleetlm
from fleetlm import Actor, Call, Process, handler, tracing
from fleetlm.cli import logs as cli_logs
from fleetlm.logs import ATTRIBUTES, LogContext
from fleetlm.messaging.carrying import CARRYING
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated

REQUEST_ID: ContextVar[Any] = ContextVar("request-id")
log = logging.getLogger("the program")


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    fleetlm.carry(REQUEST_ID)
    yield
    CARRYING.remove("request-id")
    CARRYING.label_handlers(on=False)


async def pass_time(seconds: float) -> None:
    assert isinstance(asyncio.get_running_loop(), SimLoop)  # No time passes really.
    await asyncio.sleep(seconds)


class Worker(Actor):
    def __init__(self, found: LogContext) -> None:
        self.found = found

    @handler
    async def work(self) -> list[Any]:
        beside = asyncio.create_task(self._beside())
        in_thread = await asyncio.to_thread(self.found.fields)
        return [self.found.fields(), await beside, in_thread]

    async def _beside(self) -> dict[str, Any]:
        return self.found.fields()

    @handler
    async def note(self, into: str) -> None:
        log.info("in a cast for %s", into)

    async def handle_info(self, message: Any) -> None:
        if isinstance(message, Call):
            message.reply(self.found.fields())


async def plain(process: Process) -> None:
    async for message in process.mailbox:
        if isinstance(message, Call):
            with fleetlm.carried(message):
                message.reply(LogContext(process.node).fields())


@simulated
async def test_a_handler_its_tasks_and_its_threads_say_who_they_are(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    found = LogContext(two)
    worker = await two.start_actor(Worker(found), name="worker")
    two.spawn(plain, name="plain")
    own = {"node": two.name, "process": str(worker.pid)}
    assert (
        await one.ref(Worker, "worker", at=two.name).call(Worker.work)
        == [{**own, "handler": "Worker.work"}] * 3
    )
    REQUEST_ID.set(b"\x01\xff")
    assert await one.call(worker.pid, "x") == {
        **own, "handler": "Worker.handle_info", "context": {"request-id": "01ff"}
    }  # fmt: skip
    pid = await one.whereis("plain", at=two.name)
    assert await one.call(pid or "", "x") == {
        "node": two.name, "process": str(pid), "context": {"request-id": "01ff"}
    }  # fmt: skip
    assert found.fields() == {"node": two.name, "context": {"request-id": "01ff"}}


@simulated
async def test_the_filter_gives_records_what_formats_name(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    found = LogContext(node)
    worker = await node.start_actor(Worker(found), name="worker")
    stream = io.StringIO()
    into = logging.StreamHandler(stream)
    into.addFilter(found)
    into.setFormatter(logging.Formatter("|".join(f"%({name})s" for name in ATTRIBUTES)))
    log.addHandler(into)
    log.setLevel(logging.INFO)
    try:
        log.info("outside")
        REQUEST_ID.set("r-1\nroot")  # A caller must not be able to forge another line.
        with tracing.instrument(node, TracerProvider()):
            await worker.cast(Worker.note, "the test")
            await pass_time(1)
    finally:
        log.removeHandler(into)
    outside, inside = stream.getvalue().splitlines()
    assert outside == f"{node.name}|||||"
    name, pid, runs, trace_id, span_id, context = inside.split("|")
    assert (name, pid, runs) == (node.name, str(worker.pid), "Worker.note")
    assert (len(trace_id), len(span_id), context) == (32, 16, r"request-id=r-1\nroot")


@simulated
async def test_json_lines_have_the_same_fields(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    worker = await node.start_actor(Worker(LogContext(node)), name="worker")
    formatter = cli_logs.JsonFormatter()
    formatter.find_context = LogContext(node).fields
    lines: list[dict[str, Any]] = []

    class Into(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(formatter.format(record)))

    into = Into()
    log.addHandler(into)
    log.setLevel(logging.INFO)
    try:
        REQUEST_ID.set("r-1")
        with tracing.instrument(node, TracerProvider()):
            await worker.cast(Worker.note, "the test")
            await pass_time(1)
    finally:
        log.removeHandler(into)
    (line,) = lines
    assert line["message"] == "in a cast for the test"
    assert (line["node"], line["process"], line["handler"]) == (node.name, str(worker.pid), "Worker.note")
    assert int(line["trace_id"], 16)
    assert int(line["span_id"], 16)
    assert line["context"] == {"request-id": "r-1"}


@simulated
async def test_handlers_note_nothing_where_no_log_asks_for_it(fleet: Fleet) -> None:
    CARRYING.remove("request-id")
    assert not CARRYING.is_served
    (node,) = await fleet.mesh(1)
    LogContext(node)
    assert (CARRYING.is_served, CARRYING.is_active) == (True, False)
