"""The application of the ops listener, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

import fleetlm.ops
from fleetlm import Settings
from fleetlm.ops import application
from fleetlm.ops.application import OpsApp
from fleetlm.ops.questions import NodeGone
from fleetlm.testing import Fleet
from tests.support.ops_fakes import NAME, FakeQuestions, node_name, overview_of

TOKEN = "nPq7-wJ2_rT9xYb4mLc8"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def client(app: Any, base: str = "http://127.0.0.1:4380", **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base, **options)


async def answer(app: OpsApp, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    async with client(app) as asking:
        return await asking.request(method, path, **options)


async def test_health_is_one_line() -> None:
    questions = FakeQuestions()
    app = OpsApp(questions)
    live = await answer(app, "/health/live")
    assert (live.status_code, live.text, questions.asked) == (200, "live\n", 0), "the node is not asked"
    ready = await answer(app, "/health/ready")
    assert (ready.status_code, ready.text) == (200, f"{NAME} is ready, connected to 2\n")
    assert (await answer(app, "/health/ready?min_nodes=2")).status_code == 200
    few = await answer(app, "/health/ready?min_nodes=3")
    assert few.status_code == 503
    assert few.text == f"{NAME} is not ready: it is connected to 2 node(s), and 3 are needed\n"
    questions.reasons = ("it is draining", "the check db raised ValueError: a\nb")
    not_ready = await answer(app, "/health/ready?min_nodes=9")
    assert not_ready.status_code == 503
    assert not_ready.text.count("\n") == 1
    assert not_ready.text.startswith(
        f"{NAME} is not ready: it is draining; the check db raised ValueError: a"
    )
    assert not_ready.text.endswith("and 9 are needed\n")


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "99999999", "1" * 400, "²", ""])
async def test_a_number_of_nodes_that_is_none_is_refused(text: str) -> None:
    assert (
        await answer(OpsApp(FakeQuestions()), "/health/ready", params={"min_nodes": text})
    ).status_code == 400


async def test_a_node_that_does_not_answer_is_not_ready_and_alive() -> None:
    questions = FakeQuestions()
    questions.why = "the event loop has not answered for 5 s"
    app = OpsApp(questions)
    assert (await answer(app, "/health/live")).status_code == 200
    for path in ("/health/ready", "/metrics", "/cluster.json"):
        silent = await answer(app, path)
        assert (silent.status_code, silent.text) == (503, "the event loop has not answered for 5 s\n")


async def test_a_long_reason_is_cut() -> None:
    questions = FakeQuestions()
    questions.why = "x" * 5_000
    assert len((await answer(OpsApp(questions), "/metrics")).text) == application.MAX_REASON_CHARS + 2


async def test_metrics_and_cluster() -> None:
    app = OpsApp(FakeQuestions(5))
    metrics = await answer(app, "/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics.text.endswith("fleetlm_up 1\n")
    cluster = (await answer(app, "/cluster.json")).json()
    assert cluster["asked"] == NAME
    assert list(cluster["nodes"]) == [node_name(each) for each in range(1, 6)]
    assert cluster["nodes"][NAME]["groups"]["rankers"]["count"] == 1


async def test_a_part_that_is_no_json_is_an_error_of_that_node() -> None:
    questions = FakeQuestions()
    questions.overview_now = {
        "asked": NAME,
        "wall_ms": 1,
        "nodes": {"a": {"x": float("nan")}, "b": {"y": b"z"}, "c": {}},
    }
    cluster = (await answer(OpsApp(questions), "/cluster.json")).json()
    assert "cannot be shown" in cluster["nodes"]["a"]["error"]
    assert "cannot be shown" in cluster["nodes"]["b"]["error"]
    assert cluster["nodes"]["c"] == {}


async def test_every_response_has_the_headers_that_keep_other_sites_out() -> None:
    app = OpsApp(FakeQuestions(), TOKEN)
    for path, headers in (
        ("/", {}),
        ("/", BEARER),
        ("/nope", BEARER),
        ("/health/live", {}),
        ("/app.js", BEARER),
    ):
        found = (await answer(app, path, headers=headers)).headers
        assert found["cache-control"] == "no-store"
        assert found["x-content-type-options"] == "nosniff"
        assert found["referrer-policy"] == "no-referrer"
        policy = found["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "access-control-allow-origin" not in found


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
async def test_it_is_read_only(method: str) -> None:
    for path in ("/", "/cluster.json", "/health/ready", "/metrics"):
        refused = await answer(OpsApp(FakeQuestions()), path, method)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_head_has_no_body() -> None:
    app = OpsApp(FakeQuestions())
    for path in ("/", "/health/live", "/cluster.json", "/metrics", "/events", "/style.css"):
        assert (await answer(app, path, "HEAD")).status_code == 200


async def test_the_page_consists_of_its_own_files_and_names_no_other_host() -> None:
    app = OpsApp(FakeQuestions())
    page = await answer(app, "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name, kind in application.STATIC.items():
        file = await answer(app, f"/{name}")
        assert (file.status_code, file.headers["content-type"]) == (200, kind)
        text = file.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for path in ("/../settings.py", "/%2e%2e/secret", "/static/app.js", "/index.html/", "//etc/passwd"):
        assert (await answer(app, path)).status_code in (404, 405)


async def test_a_request_for_another_name_is_refused() -> None:
    app = OpsApp(FakeQuestions())
    async with client(app, "http://evil.example") as asking:
        for path in ("/", "/cluster.json", "/events", "/metrics"):
            assert (await asking.get(path)).status_code == 421
        assert (await asking.get("/health/ready")).text == "ready\n"
    allowed = OpsApp(FakeQuestions(), hosts=["ops.internal"])
    async with client(allowed, "http://ops.internal") as asking:
        assert (await asking.get("/cluster.json")).status_code == 200


async def test_another_sites_page_gets_nothing() -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert (await answer(OpsApp(FakeQuestions()), "/events", headers=headers)).status_code == 403


async def test_without_the_token_there_is_one_word_about_health_and_a_form() -> None:
    questions = FakeQuestions()
    questions.reasons = ("the check db raised ValueError: secret",)
    app = OpsApp(questions, TOKEN)
    for path in ("/", "/cluster.json", "/events", "/metrics", "/app.js", "/nope"):
        refused = await answer(app, path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await answer(app, path, headers={"authorization": "Bearer wrong"})).status_code == 401
    form = await answer(app, "/", headers={"accept": "text/html"})
    assert form.status_code == 401
    assert '<form class="panel" method="post" action="login">' in form.text
    assert (await answer(app, "/health/live")).text == "live\n"
    ready = await answer(app, "/health/ready")
    assert (ready.status_code, ready.text) == (503, "not ready\n")
    questions.why = "a secret reason"
    assert (await answer(app, "/health/ready")).text == "not ready\n"
    questions.why, questions.reasons = "", ()
    assert (await answer(app, "/health/ready")).text == "ready\n"
    assert "connected to 2" in (await answer(app, "/health/ready", headers=BEARER)).text
    assert (await answer(app, "/cluster.json", headers=BEARER)).status_code == 200


async def test_a_long_path_of_a_stranger_is_cut_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"authorization": "Bearer wrong"}
    assert (await answer(OpsApp(FakeQuestions(), TOKEN), f"/{'a' * 9_000}", headers=wrong)).status_code == 401
    (line,) = caplog.messages
    assert len(line) < 200


async def test_a_browser_logs_in_once_and_the_token_leaves_the_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = OpsApp(FakeQuestions(), TOKEN)
    async with client(app) as browser:
        wrong = await browser.get("/", params={"token": "wrong"})
        assert wrong.status_code == 401
        assert "wrong token" in caplog.text
        assert not browser.cookies
        let_in = await browser.get("/", params={"token": TOKEN})
        assert (let_in.status_code, let_in.headers["location"]) == (303, "/")
        cookie = let_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert (await browser.get("/")).status_code == 200
        assert (await browser.get("/cluster.json")).status_code == 200
        again = await browser.get("/", params={"token": TOKEN})
        assert (again.status_code, again.headers["location"]) == (303, "/")
    assert TOKEN not in caplog.text


async def test_the_form_logs_in_and_has_a_limit() -> None:
    app = OpsApp(FakeQuestions(), TOKEN)
    async with client(app) as browser:
        assert (await browser.get("/login")).status_code == 200
        assert (await browser.post("/login", data={"token": "wrong"})).status_code == 401
        assert (await browser.post("/login", content=b"\xff\x00&&&&&&")).status_code in (400, 401)
        large = await browser.post("/login", content=b"x" * (application.MAX_FORM_BYTES + 1))
        assert large.status_code == 413
        assert (await browser.post("/login", data={"token": f" {TOKEN} "})).status_code == 303
        assert (await browser.get("/metrics")).status_code == 200


async def test_a_link_of_another_site_leads_on_by_a_page_since_its_cookie_is_strict() -> None:
    app = OpsApp(FakeQuestions(), TOKEN)
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    page = await answer(app, "/", params={"token": TOKEN}, headers=headers)
    assert page.status_code == 200
    assert 'http-equiv="refresh" content="0;url=/"' in page.text
    assert "set-cookie" in page.headers


class Stream:
    """One response that has no end, taken message by message."""

    def __init__(self, app: Any, path: str = "/events") -> None:
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        self._gone = asyncio.Event()
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 4380), "state": {},
        }  # fmt: skip
        self.task = asyncio.get_running_loop().create_task(app(self.scope, self._receive, self._queue.put))

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def events(self, kind: str) -> dict[str, Any]:
        """The data of the next event of a kind."""
        text = b""
        while True:
            message = await self._queue.get()
            text += message.get("body", b"")
            *whole, text = text.split(b"\n\n")
            for event in whole:
                if event.startswith(b"event: %s\n" % kind.encode()):
                    found: dict[str, Any] = json.loads(event.partition(b"data: ")[2])
                    return found

    async def leave(self) -> None:
        """Disconnect."""
        self._gone.set()
        while not self.task.done():
            if not self._queue.empty():
                self._queue.get_nowait()
            await asyncio.sleep(0)
        await self.task


async def test_events_begin_with_everything_and_go_on_with_what_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.0)
    app = OpsApp(FakeQuestions())
    stream = Stream(app)
    assert (await stream.events("history"))["columns"] == [
        "messages_sent",
        "messages_received",
        "bytes_sent",
        "lag_ms",
    ]
    assert stream.scope["state"][application.ENDLESS] is True
    first = await stream.events("cluster")
    assert first["nodes"] == [node_name(each) for each in (1, 2, 3)]
    assert set(first["set"][NAME]) == {
        *("head", "peers", "processes", "trees", "groups", "names", "kinds", "events"),
    }  # fmt: skip
    second = await stream.events("cluster")
    assert "nodes" not in second
    assert set(second["set"][NAME]) == {"head"}, "the rest is as it was"
    assert second["rates"][NAME][:3] == [100.0, 90.0, 10_000.0]
    await stream.leave()
    assert not app.watching.is_full
    app.close()


async def test_there_are_so_many_watchers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.MAX_WATCHERS", 2)
    app = OpsApp(FakeQuestions())
    streams = [Stream(app), Stream(app)]
    for stream in streams:
        await stream.events("history")
    refused = await answer(app, "/events")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    await streams[0].leave()
    another = Stream(app)
    await another.events("history")
    app.close()
    for stream in (streams[1], another):
        await stream.leave()


async def test_all_watchers_together_cost_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 60.0)
    questions = FakeQuestions()
    app = OpsApp(questions)
    streams = [Stream(app) for _ in range(5)]
    for stream in streams:
        assert (await stream.events("cluster"))["asked"] == NAME
    assert questions.asked == 1
    app.close()
    for stream in streams:
        await stream.leave()
    assert questions.is_closed


@pytest.mark.parametrize("state", ["draining", "leaving"])
async def test_watchers_in_a_programs_own_server_end_when_the_node_leaves(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.0)
    questions = FakeQuestions()
    watching = OpsApp(questions).watching
    events = watching.watch()
    text = await anext(events)
    overview = overview_of(2)
    overview["nodes"][overview["asked"]]["state"] = state
    questions.overview_now = overview
    async with asyncio.timeout(10):
        async for piece in events:
            text += piece
    assert f'"state":"{state}"'.encode() in text, "it is told before it ends"
    again = watching.watch()
    assert b"retry" in await anext(again), "a page that connects again is served"
    await again.aclose()
    watching.close()


async def test_what_nobody_watches_any_more_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.0)
    monkeypatch.setattr("fleetlm.ops.watching.LINGER_S", 0.0)
    watching = OpsApp(FakeQuestions()).watching
    events = watching.watch()
    async with asyncio.timeout(10):
        while not watching.board.number:
            await anext(events)
        await events.aclose()
        assert watching._asking is not None
        await watching._asking
    assert watching.board.number == 0
    again = watching.watch()
    text = await anext(again)
    async with asyncio.timeout(10):
        while b'"set"' not in text:
            text += await anext(again)
    await again.aclose()
    watching.close()


async def test_watchers_of_the_listener_go_on_while_the_node_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.0)
    questions = FakeQuestions()
    watching = OpsApp(questions).watching
    watching.ends_with_node = False
    overview = overview_of(2)
    overview["nodes"][overview["asked"]]["state"] = "draining"
    questions.overview_now = overview
    events = watching.watch()
    async with asyncio.timeout(10):
        while questions.asked < 3:
            await anext(events)
    await events.aclose()
    watching.close()


async def test_watchers_end_with_a_node_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(FakeQuestions):
        async def overview(self) -> Mapping[str, Any]:
            raise NodeGone("it has stopped")

    watching = OpsApp(Gone()).watching
    async with asyncio.timeout(10):
        text = b"".join([piece async for piece in watching.watch()])
    assert b"it has stopped" in text
    assert watching._asking is not None
    await watching._asking
    watching.close()


async def test_a_watcher_hears_that_the_node_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.ops.watching.PERIOD_S", 0.0)
    questions = FakeQuestions()
    app = OpsApp(questions)
    stream = Stream(app)
    await stream.events("cluster")
    questions.why = "its loop is blocked"
    while "stalled" not in (event := await stream.events("cluster")):
        pass
    assert event["stalled"] == "its loop is blocked"
    assert "rates" not in event
    questions.why = ""
    while event.get("stalled") != "":
        event = await stream.events("cluster")
    await stream.leave()
    app.close()


async def test_it_speaks_the_other_parts_of_asgi() -> None:
    app = OpsApp(FakeQuestions())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    coming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(coming)

    await app({"type": "lifespan"}, receive, send)
    assert [each["type"] for each in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert app.watching.is_full, "it is closed"
    await app({"type": "websocket", "path": "/"}, receive, send)
    assert sent[-1] == {"type": "websocket.close", "code": 1008}


async def test_mounted_below_a_path_it_stays_there() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    mounted = Starlette(routes=[Mount("/ops", OpsApp(FakeQuestions(), TOKEN))])
    async with client(mounted) as browser:
        assert (await browser.get("/ops/health/live")).text == "live\n"
        assert (await browser.get("/ops/")).status_code == 401
        let_in = await browser.get("/ops/", params={"token": TOKEN})
        assert let_in.headers["location"] == "/ops/"
        assert "Path=/ops/" in let_in.headers["set-cookie"]
        assert (await browser.get("/ops/")).status_code == 200
        assert (await browser.get("/ops/cluster.json")).status_code == 200
        assert (await browser.get("/ops/app.js")).status_code == 200


async def test_a_program_mounts_it_for_its_own_node(fleet: Fleet) -> None:
    (node,) = await fleet.start(1)
    app = fleetlm.ops.app(node)
    async with client(app) as asking:
        ready, cluster = await asking.get("/health/ready"), await asking.get("/cluster.json")
    assert ready.text == f"{node.name} is ready, connected to 0\n"
    assert list(cluster.json()["nodes"]) == [node.name]
    with_token = fleetlm.ops.app(node, token=TOKEN)
    assert (await answer(with_token, "/cluster.json")).status_code == 401
    await node.stop()
    gone = await answer(app, "/cluster.json")
    assert gone.status_code == 503
    assert "has been stopped" in gone.text or "stopped" in gone.text
    app.close()


def test_the_token_of_the_settings_is_the_default() -> None:
    assert Settings(ops="127.0.0.1:0", ops_token=TOKEN).ops_token == TOKEN
