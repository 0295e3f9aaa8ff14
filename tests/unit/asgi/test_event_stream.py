"""`sse`: items become events, at the pace of the client, and every end is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from fleetlm import Actor, Node, handler
from fleetlm.asgi import Event, sse
from fleetlm.asgi.leaving import STATE_KEY, Leaving
from fleetlm.errors import CallTimeout, Draining, FleetError, NoConnection, NodeLost, NoProcess
from fleetlm.testing import Fleet
from tests.support.asgi_client import Client

SAFE = {"retry": "safe", "retry_after_s": 1, "detail": "The request has not run. It is safe to repeat it."}
IN_DOUBT = {
    "retry": "if_idempotent",
    "retry_after_s": None,
    "detail": "The request may have run. Repeat it only if it may run twice.",
}


class Model(Actor):
    """Yields numbers, and notes how each stream has ended."""

    def __init__(self) -> None:
        self.produced = 0
        self.ends: list[str] = []

    @handler(concurrent=True)
    async def count(self, to: int, pause_s: float = 0.0) -> AsyncIterator[int]:
        try:
            for number in range(1, to + 1):
                await asyncio.sleep(pause_s)
                self.produced = number
                yield number
        except (asyncio.CancelledError, GeneratorExit):  # it waits by itself, or in its `yield`
            self.ends.append("cancelled")
            raise
        self.ends.append("done")

    @handler(concurrent=True)
    async def fail(self, after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise ValueError("secret")


async def served(fleet: Fleet) -> tuple[Node, Node, Model, Any]:
    """Start a front end and a worker. Returns the two nodes, the actor, and a reference to it."""
    web, worker = await fleet.start(2)
    model = Model()
    worker.spawn(model, name="model")
    return web, worker, model, web.ref(Model, "model", at=worker.name)


async def items_of(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        if isinstance(item, BaseException):
            raise item
        yield item


async def test_each_item_is_an_event_and_the_end_is_told(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = await Client(sse(ref.stream(Model.count, 3))).run()
    assert client.status == 200
    assert client.headers["content-type"].startswith("text/event-stream")
    assert client.headers["cache-control"] == "no-cache, no-transform"
    assert client.headers["x-accel-buffering"] == "no"
    assert "content-length" not in client.headers
    assert client.events == [("message", 1), ("message", 2), ("message", 3), ("end", None)]
    assert client.is_complete
    assert model.ends == ["done"]


async def test_ids_and_names_are_as_asked_for() -> None:
    numbered = await Client(sse(items_of("a", "b"), ids=True, event="token", end="")).run()
    assert numbered.text == 'event: token\nid: 1\ndata: "a"\n\nevent: token\nid: 2\ndata: "b"\n\n'
    keyed = sse(items_of({"n": 7}), ids=lambda item: item["n"], encode=lambda item: f"n={item['n']}", end="")
    assert (await Client(keyed).run()).text == "id: 7\ndata: n=7\n\n"


async def test_items_that_are_events_are_sent_as_they_are() -> None:
    client = await Client(sse(items_of(Event("plain", event="note"), 1), ids=True, end="")).run()
    assert client.text == "event: note\ndata: plain\n\nid: 2\ndata: 1\n\n"


async def test_an_empty_stream_is_a_response_with_an_end() -> None:
    client = await Client(sse(items_of())).run()
    assert (client.status, client.events) == (200, [("end", None)])


async def test_a_head_request_runs_nothing(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = await Client(sse(ref.stream(Model.count, 3)), method="HEAD").run()
    assert (client.status, client.text, client.is_complete) == (200, "", True)
    assert model.produced == 0


@pytest.mark.parametrize(
    "wrong",
    [{"on_disconnect": "detach"}, {"heartbeat_s": 0}, {"first_item_s": -1}, {"send_timeout_s": float("nan")}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|not a number of seconds above 0"):
        sse(items_of(), **wrong)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_error_before_the_first_item_has_its_status_code(fleet: Fleet) -> None:
    web, worker, *_ = await served(fleet)
    nobody = web.ref(Model, "nobody", at=worker.name)
    client = await Client(sse(nobody.stream(Model.count, 3))).run()
    assert client.status == 503
    assert client.headers["retry-after"] == "1"
    assert client.headers["content-type"] == "application/problem+json"
    assert '"kind":"no_process"' in client.text


async def test_an_exception_of_the_handler_before_its_first_item_is_a_500_that_tells_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    *_, ref = await served(fleet)
    client = await Client(sse(ref.stream(Model.fail, 0)), "/chat").run()
    assert client.status == 500
    assert "secret" not in client.text
    assert "ValueError" not in client.text
    [record] = [each for each in caplog.records if each.name == "fleetlm.asgi"]
    assert "/chat was answered with 500: ValueError: secret" in record.getMessage()
    assert "Traceback" in record.getMessage()


async def test_an_exception_of_the_handler_after_an_item_is_an_event(fleet: Fleet) -> None:
    *_, ref = await served(fleet)
    client = await Client(sse(ref.stream(Model.fail, 1))).run()
    assert client.status == 200
    (first, item), (last, error) = client.events
    assert (first, item, last) == ("message", 0, "error")
    assert (error["kind"], error["retry"]) == ("remote_error", "no")
    assert "secret" not in client.text
    assert client.is_complete


async def test_the_loss_of_the_worker_amid_a_stream_is_an_event(fleet: Fleet) -> None:
    _, worker, _, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 1.0))).start()
    await client.until("data: 2")
    await fleet.crash(worker)
    await client.done()
    assert client.events[-1] == ("error", {"kind": "node_lost", **IN_DOUBT})
    assert client.is_complete


async def test_a_worker_whose_drain_ends_amid_a_stream_is_an_event_with_a_time_to_come_back(
    fleet: Fleet,
) -> None:
    _, worker, _, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 1.0))).start()
    await client.until("data: 2")
    await worker.stop(drain_s=2.0)
    await client.done()
    name, error = client.events[-1]
    assert (name, error["kind"], error["retry"], error["retry_after_s"]) == (
        "error", "draining", "if_idempotent", 1,
    )  # fmt: skip
    assert "retry: 1000\n" in client.text


@pytest.mark.parametrize(
    ("error", "kind", "more"),
    [
        (NoProcess("model"), "no_process", SAFE),
        (CallTimeout("model", 1.0), "call_timeout", IN_DOUBT),
        (NodeLost("fleetlm@10.0.0.7", "x"), "node_lost", IN_DOUBT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_outcome_may_end_a_stream(error: FleetError, kind: str, more: dict[str, Any]) -> None:
    client = await Client(sse(items_of("a", error))).run()
    assert client.events == [("message", "a"), ("error", {"kind": kind, **more})]


async def test_an_exception_of_the_program_is_told_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(sse(items_of("a", KeyError("secret"))))
    with pytest.raises(KeyError, match="secret"):
        await client.run()
    assert client.events[-1][1]["kind"] == "internal_error"
    assert client.is_complete
    before = Client(sse(items_of(KeyError("secret"))))
    with pytest.raises(KeyError, match="secret"):
        await before.run()
    assert before.messages == []


async def test_what_cannot_be_encoded_is_an_error_of_the_program() -> None:
    client = Client(sse(items_of("a", float("nan"))))
    with pytest.raises(ValueError, match="JSON compliant"):
        await client.run()
    assert client.events[-1][1]["kind"] == "internal_error"


# ── pace ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_handler_waits_for_a_client_that_does_not_read(fleet: Fleet) -> None:
    web, _, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100_000), send_timeout_s=1000)).start()
    await client.until("data: 10\n")
    client.stop_reading()
    await fleet.sleep(30)
    sent = client.events[-1][1]
    assert model.produced <= sent + 1 + 2 * web.settings.stream_window
    produced = model.produced
    await fleet.sleep(20)
    assert model.produced == produced
    client.reads.set()
    await client.until(f"data: {produced + 100}\n")
    client.go()
    await client.done()


async def test_a_client_that_takes_nothing_for_too_long_counts_as_gone(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    *_, model, ref = await served(fleet)
    caplog.set_level(logging.INFO, "fleetlm.asgi")
    client = Client(sse(ref.stream(Model.count, 100_000), send_timeout_s=20, heartbeat_s=5)).start()
    await client.until("data: 10\n")
    client.stop_reading()
    began = fleet.now
    await client.done()
    assert 20 <= fleet.now - began < 21
    assert "takes nothing for 20 s" in caplog.text
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)


async def test_a_silent_stream_has_heartbeats_and_a_busy_one_has_none(fleet: Fleet) -> None:
    *_, ref = await served(fleet)
    silent = await Client(sse(ref.stream(Model.count, 2, 20.0), heartbeat_s=6, first_item_s=30)).run()
    assert silent.text.count(": heartbeat") == 3
    assert silent.events == [("message", 1), ("message", 2), ("end", None)]
    busy = await Client(sse(ref.stream(Model.count, 40, 1.0), heartbeat_s=6)).run()
    assert ": heartbeat" not in busy.text
    off = await Client(sse(ref.stream(Model.count, 2, 50.0), heartbeat_s=None, first_item_s=90)).run()
    assert ": heartbeat" not in off.text


async def test_a_response_begins_in_time_even_if_its_stream_does_not(fleet: Fleet) -> None:
    *_, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 1, 40.0), first_item_s=10)).start()
    await fleet.sleep(9.9)
    assert client.status is None
    await fleet.sleep(0.2)
    assert (client.status, client.text) == (200, ": heartbeat\n\n")
    await client.done()
    assert client.events == [("message", 1), ("end", None)]


async def test_an_error_after_a_late_begin_is_an_event(fleet: Fleet) -> None:
    _, worker, _, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 1, 40.0), first_item_s=5)).start()
    await fleet.sleep(6)
    await fleet.crash(worker)
    await client.done()
    assert [name for name, _ in client.events] == ["error"]


# ── clients that go ──────────────────────────────────────────────────────────────────────────────


async def test_the_handler_of_a_client_that_has_gone_is_cancelled_within_a_second(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 5.0))).start()
    await client.until("data: 1\n")
    client.go()
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)
    assert not client.is_complete


async def test_the_client_may_go_before_the_first_item(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 5.0))).start()
    await fleet.sleep(1)
    client.go()
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)
    assert client.messages == []


async def test_a_server_that_raises_on_send_says_that_the_client_has_gone(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 0.5))).start()
    await client.until("data: 2\n")
    client.breaks = OSError("connection reset")
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)


async def test_a_heartbeat_notices_a_client_that_has_gone_without_a_word(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 100, 1000.0), heartbeat_s=6, first_item_s=1)).start()
    await fleet.sleep(2)
    client.breaks = OSError("connection reset")
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)


async def test_a_stream_may_be_read_to_its_end_without_its_client(fleet: Fleet) -> None:
    *_, model, ref = await served(fleet)
    client = Client(sse(ref.stream(Model.count, 10, 1.0), on_disconnect="finish")).start()
    await client.until("data: 2\n")
    client.go()
    await client.done()
    assert model.ends == ["done"]
    assert "data: 4" not in client.text


@pytest.mark.parametrize("error", [None, NoConnection("fleetlm@10.0.0.7", "x"), KeyError("x")], ids=repr)
async def test_a_stream_without_its_client_ends_quietly_whatever_its_end(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fleetlm.asgi")
    goes_on = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2
        yield 3
        if error is not None:
            raise error

    client = Client(sse(items(), on_disconnect="finish")).start()
    await client.until("data: 1\n")
    client.breaks = OSError("connection reset")
    goes_on.set()
    await client.done()
    assert client.events == [("message", 1)]
    assert [each.name for each in caplog.records] == ([] if error is None else ["fleetlm.asgi"])


async def test_an_error_of_the_stream_is_not_taken_for_one_of_the_socket() -> None:
    assert issubclass(NoConnection, OSError)
    client = await Client(sse(items_of("a", NoConnection("fleetlm@10.0.0.7", "x")))).run()
    assert client.events[-1][1]["kind"] == "no_connection"


async def test_an_error_of_the_server_is_raised(fleet: Fleet) -> None:
    *_, ref = await served(fleet)

    async def receive() -> Any:
        raise RuntimeError("the server is broken")

    async def send(_message: Any) -> None:
        pass

    scope = Client(sse(items_of())).scope
    with pytest.raises(RuntimeError, match="the server is broken"):
        await sse(ref.stream(Model.count, 100, 1.0))(scope, receive, send)


async def test_a_generator_is_closed_however_the_response_ends() -> None:
    closed = []

    async def items() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    client = Client(sse(items())).start()
    await client.until("data: 1\n")
    client.go()
    await client.done()
    assert closed == [True]
    cancelled = Client(sse(items())).start()
    await cancelled.until("data: 1\n")
    assert cancelled.task is not None
    cancelled.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled.done()
    assert closed == [True, True]


async def test_a_background_task_runs_only_for_a_client_that_has_got_all() -> None:
    ran: list[str] = []

    def after(what: str) -> BackgroundTask:
        async def note() -> None:
            ran.append(what)

        return BackgroundTask(note)

    await Client(sse(items_of(1), background=after("whole"))).run()
    await Client(sse(items_of(1, NoProcess("x")), background=after("failed"))).run()
    gone = Client(sse(items_of(1), background=after("gone")))
    gone.breaks = OSError()
    await gone.run()
    assert ran == ["whole"]


# ── a worker that leaves ─────────────────────────────────────────────────────────────────────────


async def test_responses_that_go_on_when_the_worker_leaves_are_ended_with_an_event(fleet: Fleet) -> None:
    web, _, model, ref = await served(fleet)
    leaving = Leaving(web)
    begun = Client(sse(ref.stream(Model.count, 100, 1.0)), state={STATE_KEY: leaving}).start()
    waiting = Client(
        sse(ref.stream(Model.count, 1, 50.0), first_item_s=60), state={STATE_KEY: leaving}
    ).start()
    await begun.until("data: 2\n")
    stuck = Client(sse(ref.stream(Model.count, 100_000)), state={STATE_KEY: leaving}).start()
    await stuck.until("data: 2\n")
    stuck.stop_reading()
    await fleet.sleep(1)
    assert len(leaving.responses) == 3
    for response in [*leaving.responses]:
        response.cut(Draining(web.name, has_begun=True))
        response.cut(Draining(web.name, has_begun=True))
    for client in (begun, waiting, stuck):
        await client.done()
    assert leaving.responses == set()
    assert (begun.events[-1][0], begun.events[-1][1]["kind"]) == ("error", "draining")
    assert begun.is_complete
    assert waiting.status == 502
    assert not stuck.is_complete
    await fleet.until(lambda: len(model.ends) == 3, timeout=1)


async def test_a_response_that_begins_when_the_time_is_over_is_ended_too(fleet: Fleet) -> None:
    web, _, model, ref = await served(fleet)
    leaving = Leaving(web)
    leaving.is_over = True
    late = Client(sse(ref.stream(Model.count, 100, 1.0)), state={STATE_KEY: leaving})
    await late.run()
    assert late.status == 503
    assert "draining" in late.text
    assert leaving.responses == set()
    assert model.produced == 0, "it has not run, as the status code says"


# ── applications ─────────────────────────────────────────────────────────────────────────────────


async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


@pytest.mark.parametrize("middleware", ["none", "http", "gzip"])
@pytest.mark.parametrize("mounted", [False, True])
async def test_it_works_in_applications_mounts_and_middleware(
    fleet: Fleet, middleware: str, mounted: bool
) -> None:
    *_, model, ref = await served(fleet)

    async def chat(_request: Request) -> Response:
        return sse(ref.stream(Model.count, 100, 0.5))

    around = {
        "none": [],
        "http": [Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
        "gzip": [Middleware(GZipMiddleware, minimum_size=1)],
    }[middleware]
    app = Starlette(routes=[Route("/chat", chat)], middleware=around)
    if mounted:
        app = Starlette(routes=[Mount("/sub", app)])
    headers = [(b"accept-encoding", b"gzip")]
    client = Client(app, "/sub/chat" if mounted else "/chat", headers=headers).start()
    await client.until("data: 3\n")
    client.go()
    await client.done()
    await fleet.until(lambda: model.ends == ["cancelled"], timeout=1)
