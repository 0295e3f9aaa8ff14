"""Keys are derived from the cookie, and only nodes with the cookie pass the ZAP handler."""

from __future__ import annotations

import re
import time

import pytest
import zmq
from zmq.utils import z85

from fleetlm.settings import Settings
from fleetlm.transport import curve
from fleetlm.transport.curve import CurveKeys, ZapHandler, keys_from_cookie
from fleetlm.transport.probe import probe
from fleetlm.transport.router import UNKNOWN_IP
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm
from tests.support.patience import allowed_s
from tests.support.transport_rig import COOKIE, OTHER_COOKIE, both_loops, free_ip, raw_server, station

# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("full_price")
def test_the_same_cookie_gives_the_same_keys_everywhere() -> None:
    keys = keys_from_cookie("0123456789abcdef", "blue")
    # A fixed value: another derivation would split a cluster in the middle of an upgrade.
    assert keys.public == b"@B+vU6keg0FYS=wkMWEf3U<B8FHlM[u78^z<7$h?"
    curve.keys_from_cookie.cache_clear()
    assert keys_from_cookie("0123456789abcdef", "blue") == keys


def test_the_id_of_the_cluster_is_part_of_the_keys() -> None:
    assert keys_from_cookie(COOKIE, "blue") != keys_from_cookie(COOKIE, "green")
    assert keys_from_cookie(COOKIE, "") == keys_from_cookie(COOKIE)


@pytest.mark.usefixtures("full_price")
async def test_a_guess_costs_the_memory_and_the_work_that_are_recommended() -> None:
    """Source: OWASP, password storage: N=2**17 r=8 p=1, or the same work with less memory."""
    assert curve.SCRYPT_N * curve.SCRYPT_R * 128 == 32 * 2**20
    assert curve.SCRYPT_N * curve.SCRYPT_R * curve.SCRYPT_P >= 2**15 * 8 * 3


async def test_the_keys_of_all_cookies_are_derived_the_first_one_first() -> None:
    assert await curve.derive_keys(Settings()) == ()
    settings = Settings(cookie=COOKIE, other_cookies=(OTHER_COOKIE,), cluster="blue")
    expected = (keys_from_cookie(COOKIE, "blue"), keys_from_cookie(OTHER_COOKIE, "blue"))
    assert await curve.derive_keys(settings) == expected


def test_keys_fit_together_and_differ_by_cookie() -> None:
    one, other = keys_from_cookie(COOKIE), keys_from_cookie(OTHER_COOKIE)
    assert one.public == zmq.curve_public(one.secret)
    assert len(z85.decode(one.secret)) == len(z85.decode(one.public)) == 32
    assert {*one}.isdisjoint(other)


def test_a_cookie_is_any_text() -> None:
    assert keys_from_cookie("kekse für alle, 餅乾") != keys_from_cookie("kekse fur alle, 餅乾")
    assert keys_from_cookie("bytes of an environment \udcff") != keys_from_cookie("bytes of an environment ?")


@pytest.mark.usefixtures("full_price")
def test_deriving_is_slow_for_guessers_and_done_once() -> None:
    curve.keys_from_cookie.cache_clear()
    took = []
    for _ in range(2):
        start = time.thread_time()
        keys_from_cookie("how long does this take?")
        took.append(time.thread_time() - start)
    assert 0.05 < took[0] < allowed_s(3)
    assert took[1] < allowed_s(0.001)


def test_secrets_are_not_shown() -> None:
    keys = keys_from_cookie(COOKIE)
    assert keys.secret.decode() not in f"{keys} {keys!r}"
    assert keys.public.decode() in repr(keys)


# ── who gets in ──────────────────────────────────────────────────────────────────────────────────


def test_the_handler_admits_the_clusters_own_key_alone() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys, other = keys_from_cookie(COOKIE), keys_from_cookie(OTHER_COOKIE)
    handler = ZapHandler(context, keys.public)
    try:
        assert handler.callback(curve.ZAP_DOMAIN, keys.public)
        assert not handler.callback(curve.ZAP_DOMAIN, other.public)
        assert not handler.callback(curve.ZAP_DOMAIN, b"")
        assert not handler.callback("another", keys.public)
        handler.serve()  # no request waits
    finally:
        handler.close()
        context.term()


@both_loops
async def test_one_cookie_lets_frames_through() -> None:
    async with station(cookie=COOKIE) as a, station(cookie=COOKIE) as b:
        channel = await a.reach(b)
        assert a.send(channel, b"hello")
        source, frame = await b.seen.until("frame")
        assert frame == b"hello"
        assert b.seen.all("met") == [(source, a.ip)]
        b.transport.answer(source, b"who?")
        assert await a.seen.until("answered") == (channel, b"who?")


@pytest.mark.parametrize(
    ("ours", "theirs", "said_here", "said_there"),
    [
        # Where the other end closes first, the dialled node cannot know why, and says "perhaps".
        (
            COOKIE,
            OTHER_COOKIE,
            "its cookie differs from ours",
            "cookie differs from ours|with another cookie",
        ),
        (COOKIE, None, "it has no", "it has a cookie, and this node has none|has a cookie while this one"),
        (None, COOKIE, "requires a cookie, and this node has none", "it has no|or without one"),
    ],
)
async def test_other_cookies_get_nothing_in_and_both_sides_say_why(
    ours: str | None, theirs: str | None, said_here: str, said_there: str
) -> None:
    async with station(cookie=ours) as a, station(cookie=theirs) as b:
        channel = a.dial(b.ip, b.port)
        lost, reason = await a.seen.until("lost")
        assert lost == channel
        assert f"{b.ip}:{b.port}: authentication failed" in reason
        assert said_here in reason
        assert not a.send(channel, b"let me in")
        ip, why = await b.seen.until("refused")
        assert ip in (a.ip, UNKNOWN_IP)
        assert re.search(said_there, why)
        assert not b.seen.all("frame")
        assert not b.seen.all("met")


async def test_knowing_the_public_key_is_not_enough() -> None:
    public, secret = zmq.curve_keypair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.curve_serverkey = keys_from_cookie(COOKIE).public
    dealer.curve_publickey, dealer.curve_secretkey = public, secret
    dealer.linger = 0
    dealer.reconnect_ivl = -1
    try:
        async with station(cookie=COOKIE) as a, station(cookie=COOKIE) as b:
            dealer.connect(f"tcp://{a.ip}:{a.port}")
            dealer.send(b"let me in")
            _, why = await a.seen.until("refused")
            assert "its key is not the cluster's" in why
            assert not a.seen.all("frame")
            channel = await b.reach(a)
            b.send(channel, b"a friend")
            await a.seen.until("frame")
            assert a.seen.frames == [b"a friend"]
    finally:
        dealer.close()
        context.term()


# ── asking who is there ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cookie", [None, COOKIE])
async def test_a_probe_returns_the_nodes_identity(cookie: str | None) -> None:
    me = IAm("fleetlm@127.0.0.1", "blue", 3)
    async with station(cookie=cookie) as a:
        a.seen.on_fact = lambda fact: (
            a.transport.answer(fact[1], frames.iam(me)) if fact[0] == "frame" else None
        )
        assert await probe(a.ip, a.port, Settings(cookie=cookie), 3.0) == me
        assert a.seen.frames == [frames.probe()]


async def test_a_probe_says_why_there_is_no_answer() -> None:
    ip = free_ip()
    assert await probe(ip, 14_371, Settings(), 3.0) == f"{ip}:14371: connection refused"
    async with station(cookie=COOKIE) as a:
        plain = await probe(a.ip, a.port, Settings(), 3.0)
        assert isinstance(plain, str)
        assert "authentication failed: it requires a cookie" in plain
        silent = await probe(a.ip, a.port, Settings(cookie=COOKIE), 0.2)
        assert silent == f"{a.ip}:{a.port}: it accepted the connection, but there was no answer within 0.2 s"
    with raw_server(ip, 14_371):
        mute = await probe(ip, 14_371, Settings(), 0.2)
        assert isinstance(mute, str)
        assert "0.2 s" in mute


async def test_a_probe_refuses_an_answer_that_is_not_a_nodes() -> None:
    async with station() as a:
        a.seen.on_fact = lambda fact: a.transport.answer(fact[1], b"nonsense") if fact[0] == "frame" else None
        answer = await probe(a.ip, a.port, Settings(), 3.0)
    assert isinstance(answer, str)
    assert "not as a fleetlm node does" in answer


def test_keys_are_a_pair() -> None:
    assert CurveKeys._fields == ("public", "secret")


# ── while the cookie is changed ──────────────────────────────────────────────────────────────────


async def test_a_node_with_two_cookies_dials_with_the_other_one_where_the_first_is_refused() -> None:
    both = Settings(cookie=COOKIE, other_cookies=(OTHER_COOKIE,))
    async with (
        station(cookie=COOKIE, other_cookies=(OTHER_COOKIE,)) as a,
        station(cookie=OTHER_COOKIE) as b,
        station(cookie=COOKIE) as c,
    ):
        for other in (b, c):
            channel = await a.reach(other)
            assert a.send(channel, b"hello")
            await other.seen.until("frame")
        assert a.seen.all("lost") == []
        refused = b.dial(a.ip, a.port)
        assert (await b.seen.until("lost"))[0] == refused, "a listens with its first cookie"
        await c.reach(a)
        assert isinstance(await probe(b.ip, b.port, both, 1.0), str)


async def test_a_node_with_two_cookies_words_a_refusal_as_normal() -> None:
    async with station(cookie=COOKIE, other_cookies=(OTHER_COOKIE,)) as a, station(cookie=OTHER_COOKIE) as b:
        b.dial(a.ip, a.port)
        _, reason = await a.seen.until("refused")
        assert reason.startswith("it dialled with another cookie than the first one")


async def test_a_node_that_none_of_the_cookies_opens_is_reported_once() -> None:
    async with (
        station(cookie=COOKIE, other_cookies=(OTHER_COOKIE,)) as a,
        station(cookie="x good cookie 7f3a91c") as b,
    ):
        channel = a.dial(b.ip, b.port)
        lost, reason = await a.seen.until("lost")
        assert lost == channel
        assert "authentication failed" in reason
        assert len(a.seen.all("lost")) == 1
