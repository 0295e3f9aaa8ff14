"""Who may read what the ops listener tells, by the headers of a request."""

from __future__ import annotations

import pytest

from fleetlm.ops.access import Access, Verdict

TOKEN = "nPq7-wJ2_rT9xYb4mLc8"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:4380",
        "LOCALHOST:1",
        "127.0.0.1:4380",
        "127.8.9.1",
        "[::1]:4380",
        "[::1]",
    ],
)
def test_without_a_token_loopback_names_are_answered(host: str) -> None:
    assert Access(None).judge({"host": host}) is Verdict.TRUSTED


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ":4380",
            "evil.example",
            "evil.example:4380",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ),
        *(
            "10.0.0.1:4380",
            "[fd00::1]:4380",
            "[::1",
            "[::1]evil.example:1:2",
            "127.0.0.1@evil.example",
            "0",
            "2130706433",
        ),
    ],
)
def test_without_a_token_other_names_are_not_answered(host: str) -> None:
    assert Access(None).judge({"host": host}) is Verdict.WRONG_HOST


def test_a_program_can_allow_further_names() -> None:
    access = Access(None, ["Ops.Internal"])
    assert access.judge({"host": "ops.internal:80"}) is Verdict.TRUSTED
    assert access.judge({"host": "evil.example"}) is Verdict.WRONG_HOST
    assert Access(None, ["*"]).judge({}) is Verdict.TRUSTED


def test_with_a_token_the_header_counts_and_the_name_does_not() -> None:
    access = Access(TOKEN, ["*"])
    assert access.judge({"host": "localhost"}) is Verdict.NEEDS_TOKEN
    assert access.judge({"host": "x", "authorization": f"Bearer {TOKEN}"}) is Verdict.TRUSTED
    assert access.judge({"authorization": f"bearer  {TOKEN} "}) is Verdict.TRUSTED
    assert access.judge({"authorization": f"Bearer {TOKEN}x"}) is Verdict.WRONG_TOKEN
    assert access.judge({"authorization": "Bearer"}) is Verdict.WRONG_TOKEN
    assert access.judge({"authorization": f"Basic {TOKEN}"}) is Verdict.NEEDS_TOKEN


def test_the_cookie_stands_for_the_token_and_does_not_show_it() -> None:
    access = Access(TOKEN)
    host = "fleet.internal:4380"
    name, value = access.cookie(host)
    assert TOKEN not in name + value
    assert access.judge({"host": host, "cookie": f"{name}={value}"}) is Verdict.TRUSTED
    others = f'odd=[1"; {name}={value}; a'
    assert access.judge({"host": host, "cookie": others}) is Verdict.TRUSTED, "a cookie of another program"
    assert access.judge({"host": host, "cookie": f"{name}=0"}) is Verdict.WRONG_TOKEN
    assert access.judge({"host": host, "cookie": f"{name}={TOKEN}"}) is Verdict.WRONG_TOKEN
    assert access.judge({"host": host, "cookie": "other=1"}) is Verdict.NEEDS_TOKEN


@pytest.mark.parametrize("asked", ["fleet.internal:4381", "[fd00::7]:4381", "fleet.internal", "", "odd host"])
def test_the_cookie_of_one_port_opens_no_other_one(asked: str) -> None:
    access = Access(TOKEN)
    name, value = access.cookie("fleet.internal:4380")
    other_name, _ = access.cookie(asked)
    assert access.judge({"host": asked, "cookie": f"{name}={value}"}) is Verdict.NEEDS_TOKEN
    assert access.judge({"host": asked, "cookie": f"{other_name}={value}"}) is Verdict.WRONG_TOKEN


def test_two_tokens_have_two_cookies() -> None:
    one, other = Access(TOKEN).cookie("a:1"), Access(TOKEN[::-1]).cookie("a:1")
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert one == Access(TOKEN).cookie("A:1 "), "it is the same after a restart"
    assert not Access(None).is_token("")
    assert Access(TOKEN).is_token(TOKEN)
    assert not Access(TOKEN).is_token("\ud800")


def test_a_page_of_another_site_reads_nothing_but_may_lead_here() -> None:
    for access, good in (
        (Access(None), {"host": "localhost"}),
        (Access(TOKEN), {"authorization": f"Bearer {TOKEN}"}),
    ):
        cross = {**good, "sec-fetch-site": "cross-site"}
        assert access.judge({**cross, "sec-fetch-mode": "no-cors"}) is Verdict.CROSS_SITE
        assert access.judge({**cross, "sec-fetch-mode": "navigate"}) is Verdict.TRUSTED
        assert access.judge({**good, "sec-fetch-site": "same-origin"}) is Verdict.TRUSTED
