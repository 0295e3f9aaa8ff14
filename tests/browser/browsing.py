"""Chromium for the tests of the page: what it asks for, and what it complains about, is kept.

async with Fleet(static=(2, 3, 4)) as fleet, watching(await node_with_page(fleet)) as page:
    await page.cell("a@…", "b@…", "up")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from fleetlm import Actor, Call, Child, Entity, FleetError, Node, Process, Supervisor, handler
from fleetlm.ops.service import OpsService
from tests.support.guides import ROOT
from tests.system.cluster_tools import Fleet

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
IMAGES = ROOT / "docs" / "images"
MAX_IMAGE_BYTES = 200_000
TIMEOUT_MS = 15_000


class Chat(Entity):
    """Something with a key."""

    @handler
    async def say(self) -> str:
        return self.key


class Ranker(Actor):
    """Something to supervise."""

    async def init(self) -> None:
        self.node.groups.join("rankers", self.process.pid)


async def slow(process: Process) -> None:
    """Takes no message but the first, so that its mailbox grows."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            continue
        await process.node.wait_stopped()


async def chatter(process: Process) -> None:
    """Something to chart: calls the others again and again."""
    node, ended = process.node, asyncio.Event()
    for number in itertools.count():
        for name in node.list():
            with contextlib.suppress(FleetError):
                await node.call(("echo", name), "x" * (number % 400))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 0.02)


def ops_port(node: Node) -> int:
    """The port of a node's ops listener."""
    (service,) = (each for each in node._services if isinstance(each, OpsService))
    assert service.port is not None
    return service.port


async def node_with_page(fleet: Fleet, **env: str) -> Node:
    """Start node 2 of a fleet with an ops listener and something to see."""
    node = await fleet.node(2, fleet.settings(2, **{"FLEETLM_OPS": "127.0.0.1:0", **env}))
    pool = Supervisor([Child(f"gpu-{each}", Ranker) for each in range(2)])
    node.spawn(Supervisor([Child("ranker", Ranker), Child("pool", pool)]), name="workers")
    node.spawn(slow, name="archive")
    node.spawn(chatter, name="chatter")
    for number in range(20):
        node.send_nowait("archive", number)
    await node.registry.register("leader", node.spawn(slow))
    chats = await node.entities.host(Chat, "chats", shards=16)
    for number in range(3):
        await chats[f"c-{number}"].call(Chat.say)
    return node


class Watched:
    """One page, and all that the browser said about it."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    async def open(self, path: str = "") -> None:
        """Open the page and wait until it is live."""
        await self.page.goto(self.base + path)
        await self.page.wait_for_selector("#live[data-state=live]", timeout=TIMEOUT_MS)

    async def cell(self, one: str, other: str, state: str, timeout_s: float = 15.0) -> float:
        """Wait until the page shows that a node sees another one like this. Returns the seconds taken."""
        began = time.monotonic()
        selector = f'td[role=gridcell][aria-label^="{one} sees {other}:"][data-state="{state}"]'
        await self.page.wait_for_selector(selector, timeout=timeout_s * 1_000)
        return time.monotonic() - began

    async def until(self, script: str) -> None:
        """Wait until an expression is true. Playwright's own way evaluates a text, which the page forbids."""
        async with asyncio.timeout(TIMEOUT_MS / 1_000):
            while not await self.page.evaluate(script):
                await asyncio.sleep(0.02)

    async def focused(self) -> str:
        """What has the focus: its id, its label or its text."""
        script = "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim())(document.activeElement)"
        return str(await self.page.evaluate(script))

    async def charted(self) -> None:
        """Wait until the charts show something."""
        line = "document.querySelectorAll('.tile .line')[0].getAttribute('d')"
        await self.until(f"{line}.split('L').length > 5")

    async def picture(self, name: str) -> None:
        """Keep a picture of what is seen, for the documentation."""
        await self.charted()
        IMAGES.mkdir(exist_ok=True)
        path = IMAGES / f"page-{name}.png"
        await self.page.screenshot(path=path)
        assert path.stat().st_size <= MAX_IMAGE_BYTES

    def check(self) -> None:
        """Check that nothing was complained about, and that no other host was asked."""
        assert self.complaints == []
        assert self.requests
        assert [url for url in self.requests if not url.startswith(self.base)] == []


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start the browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def watching(node_or_port: Node | int, **options: Any) -> AsyncIterator[Watched]:
    """Open a page that is not loaded yet. Options are those of Playwright's ``new_context``."""
    port = node_or_port if isinstance(node_or_port, int) else ops_port(node_or_port)
    async with chromium() as browser:
        context: BrowserContext = await browser.new_context(
            **{"viewport": {"width": 1_280, "height": 900}, "color_scheme": "light", **options}
        )
        yield Watched(await context.new_page(), f"http://127.0.0.1:{port}/")
