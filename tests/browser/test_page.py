"""The page in a real browser, about a real cluster of three nodes."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="`make test-browser` installs it")

from fleetlm.ops.application import OpsApp
from fleetlm.ops.listener import Listener, listen
from tests.browser.browsing import TIMEOUT_MS, node_with_page, ops_port, watching
from tests.support.ops_fakes import FakeQuestions, kind, overview_of, process
from tests.system.cluster_tools import Fleet

pytestmark = [pytest.mark.browser, pytest.mark.deadline(60)]

HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>\u202e\u0000"
)
PHONE = {"viewport": {"width": 390, "height": 844}}


async def test_a_killed_worker_is_red_within_two_seconds() -> None:
    async with Fleet(static=(2, 3, 4)) as fleet:
        here = await node_with_page(fleet)
        victim = await fleet.worker(3)
        await fleet.worker(4)
        await here.ready(2, 15.0)
        a, b, c = fleet.name(2), fleet.name(3), fleet.name(4)
        async with watching(here) as page:
            await page.open()
            for one, other in ((a, b), (a, c), (c, b), (b, c)):
                await page.cell(one, other, "up")
            await page.page.wait_for_selector("text=gpu-1", timeout=TIMEOUT_MS)
            await page.page.wait_for_selector("#groups >> text=rankers", timeout=TIMEOUT_MS)
            await page.page.wait_for_selector("#names >> text=leader", timeout=TIMEOUT_MS)
            chats = "document.querySelector('#entities tbody tr')?.textContent"
            await page.until(f"{chats}?.startsWith('chats') && {chats}.includes('16 / 16')")
            await page.picture("light")
            victim.kill()
            taken = await page.cell(a, b, "down", 2.0)
            print(f"red after {taken:.2f} s")
            await page.page.wait_for_selector(f'#nodes tr:has-text("{b}") td[data-state=down]', timeout=2_000)
            await page.page.wait_for_selector("#events >> text=NodeDown", timeout=TIMEOUT_MS)
            await page.page.hover(f'td[aria-label^="{a} sees {b}:"]')
            await page.page.wait_for_selector("#detail >> text=last error", timeout=TIMEOUT_MS)
            await page.picture("down")
            page.check()


async def test_a_node_that_holds_the_gil_is_shown_as_busy_and_comes_back() -> None:
    async with Fleet(static=(2, 3, 4)) as fleet:
        here = await node_with_page(fleet)
        await fleet.worker(3)
        holder = await fleet.worker(4)
        await here.ready(2, 15.0)
        a, c = fleet.name(2), fleet.name(4)
        async with watching(here, color_scheme="dark") as page:
            await page.open()
            await page.cell(a, c, "up")
            held = holder.submit("hold_gil", seconds=8.0)
            await page.cell(a, c, "busy", 8.0)
            await page.page.wait_for_selector(f'#nodes tr:has-text("{c}") td[data-state=busy]', timeout=2_000)
            await page.picture("dark")
            await held
            await page.cell(a, c, "up")
            page.check()


async def test_the_page_says_that_it_is_disconnected_and_connects_again() -> None:
    async with Fleet(static=(2,)) as fleet:
        first = await node_with_page(fleet)
        port = ops_port(first)
        async with watching(port) as page:
            await page.open()
            await first.stop(drain_s=0)
            await page.page.wait_for_selector("#live[data-state=disconnected]", timeout=TIMEOUT_MS)
            assert "Disconnected from fleetlm@" in await page.page.inner_text("#banner")
            again = await node_with_page(fleet, FLEETLM_OPS=f"127.0.0.1:{port}")
            await page.page.wait_for_selector("#live[data-state=live]", timeout=TIMEOUT_MS)
            assert await page.page.is_hidden("#banner")
            assert ops_port(again) == port


async def test_the_keyboard_reaches_everything_in_order() -> None:
    async with Fleet(static=(2, 3)) as fleet:
        here = await node_with_page(fleet)
        await fleet.worker(3)
        await here.ready(1, 15.0)
        a, b = fleet.name(2), fleet.name(3)
        async with watching(here) as page:
            await page.open()
            await page.cell(a, b, "up")
            press = page.page.keyboard.press
            order = []
            for _ in range(6):
                await press("Tab")
                order.append(await page.focused())
            assert order[:4] == ["Skip to the nodes", "scope", "filter", "theme"]
            assert order[4] == a, "the first cell of the matrix is one stop"
            await page.page.focus('td[role=gridcell][tabindex="0"]')
            await press("ArrowRight")
            assert (await page.focused()).startswith(f"{a} sees {b}: up")
            assert "road" in await page.page.inner_text("#detail")
            await press("ArrowDown")
            assert await page.focused() == b
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.page.evaluate(outline) != "none"

            await page.page.focus('#trees [role=treeitem][tabindex="0"]')
            await press("End")
            await press("Home")
            await press("ArrowLeft")
            assert await page.page.get_attribute("#trees [role=treeitem]", "aria-expanded") == "false"
            await press("ArrowRight")
            await press("ArrowDown")
            key = "document.activeElement.dataset.key"
            assert str(await page.page.evaluate(key)).endswith(tuple("0123456789>"))

            await page.page.focus("#nodes thead button")
            await press("Enter")
            assert await page.page.get_attribute("#nodes thead th", "aria-sort") == "descending"

            await press("/")
            assert await page.focused() == "filter"
            await page.page.keyboard.type("archive")
            rows = "document.querySelectorAll('#processes tbody tr')"
            await page.until(f"{rows}.length === 1 && {rows}[0].textContent.includes('archive')")
            await press("Escape")
            await page.until(f"{rows}.length > 1")
            await page.page.select_option("#scope", b)
            await page.until("!document.querySelector('#processes tbody').textContent.includes('archive')")
            page.check()


async def test_on_a_phone_nothing_is_wider_than_the_screen() -> None:
    async with Fleet(static=(2, 3, 4)) as fleet:
        here = await node_with_page(fleet)
        await fleet.worker(3)
        await fleet.worker(4)
        await here.ready(2, 15.0)
        async with watching(here, **PHONE, has_touch=True, is_mobile=True) as page:
            await page.open()
            await page.cell(fleet.name(2), fleet.name(3), "up")
            assert await page.page.evaluate("document.documentElement.scrollWidth") <= 390
            size = "e => getComputedStyle(e).fontSize"
            sizes = f"[...document.querySelectorAll('.tools select, .tools input')].map({size})"
            assert set(await page.page.evaluate(sizes)) == {"16px"}, "a smaller one makes phones zoom"
            await page.picture("phone")
            page.check()


async def test_dark_and_light_follow_the_system_and_the_button() -> None:
    async with Fleet(static=(2,)) as fleet:
        here = await node_with_page(fleet)
        async with watching(here, color_scheme="dark") as page:
            await page.open()
            background = "getComputedStyle(document.body).backgroundColor"
            dark = await page.page.evaluate(background)
            await page.page.emulate_media(color_scheme="light")
            light = await page.page.evaluate(background)
            assert dark != light
            for text, expected in (("light", light), ("dark", dark), ("system", light)):
                await page.page.click("#theme")
                assert await page.page.inner_text("#theme") == f"theme: {text}"
                assert await page.page.evaluate(background) == expected
            await page.page.click("#theme")
            await page.page.emulate_media(color_scheme="dark")
            await page.page.reload()
            assert await page.page.evaluate(background) == light, "the choice is remembered"
            page.check()


async def test_a_token_opens_the_page_once_and_stays_in_no_address() -> None:
    token = "nPq7-wJ2_rT9xYb4mLc8"
    async with Fleet(static=(2,)) as fleet:
        here = await node_with_page(fleet, FLEETLM_OPS_TOKEN=token)
        async with watching(here) as page:
            answer = await page.page.goto(page.base)
            assert answer is not None
            assert answer.status == 401
            await page.page.fill("#token", "wrong")
            await page.page.press("#token", "Enter")
            await page.page.wait_for_url("**/login")
            await page.page.fill("#token", token)
            await page.page.click("button")
            await page.page.wait_for_selector("#live[data-state=live]", timeout=TIMEOUT_MS)
            assert page.page.url == page.base
            (cookie,) = await page.page.context.cookies()
            assert cookie["httpOnly"]
            assert cookie["sameSite"] == "Strict"
            assert token not in cookie["value"]
            await page.page.context.clear_cookies()
            await page.open(f"?token={token}")
            assert page.page.url == page.base
            port = ops_port(here)
            await here.stop(drain_s=0)
            await page.page.wait_for_selector("#live[data-state=disconnected]", timeout=TIMEOUT_MS)
            await node_with_page(fleet, FLEETLM_OPS=f"127.0.0.1:{port}", FLEETLM_OPS_TOKEN=token[::-1])
            await page.page.wait_for_selector("#token", timeout=TIMEOUT_MS)


async def test_64_nodes_and_hostile_texts_are_shown_as_texts() -> None:
    questions = FakeQuestions(64)
    shown = overview_of(64)
    evil = next(iter(shown["nodes"].values()))
    evil["processes"]["shown"] = [
        process(HOSTILE, HOSTILE, 1, 5, HOSTILE),
        process("x" * 300, "y" * 300, 2, 9),
    ]
    evil["trees"][0]["name"] = HOSTILE
    evil["groups"] = {HOSTILE: {"members": [HOSTILE], "count": 1}}
    evil["events"] = [{"wall_ms": 1e99, "kind": HOSTILE, "text": HOSTILE * 10}]
    evil["names"] = "no map at all"
    evil["kinds"] = {
        HOSTILE: {
            "is_hosted": True,
            "runs": HOSTILE,
            "owned": HOSTILE,
            "differing": {HOSTILE: 1},
            "quorum": 7,
        },
        "lost": kind(quorum={"expected": 3, "seen": 1, "holds": False}, unowned=9),
    }
    evil["peers"][0]["last_error"] = HOSTILE
    questions.overview_now = shown
    sockets = listen("127.0.0.1", range(1))
    listener = Listener(OpsApp(questions), sockets, "the page of a fake")
    port = sockets[0].getsockname()[1]
    listener.start()
    try:
        async with watching(port) as page:
            await page.open()
            await page.until("document.querySelectorAll('td[role=gridcell]').length === 4096")
            assert await page.page.locator('td[role=gridcell][tabindex="0"]').count() == 1
            assert await page.page.locator("img, script:not([src])").count() == 0
            assert "hacked" not in await page.page.title()
            assert await page.page.evaluate("document.documentElement.scrollWidth") <= 1_280
            assert await page.page.locator("#processes tbody tr").count() > 2
            lost = page.page.locator("#entities tbody tr", has_text="no quorum: 1 of 3 hosts are seen")
            assert await lost.locator("td[data-state=down]").count() == 1
            await page.page.screenshot()
            page.check()
    finally:
        listener.stop()
        listener.thread.join()
