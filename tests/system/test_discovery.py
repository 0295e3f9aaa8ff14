"""Discovery against a real name server on loopback that fails in every way."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns import DnsDiscovery, StaticDiscovery
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, RecordType, Reply
from tests.support.patience import allowed_s, stretched
from tests.support.threads import full_default_executor, refuse_threads

NAME = "fleet.test"
BOTH = ["127.0.0.3", "::1", "127.0.0.2"]
SORTED = ("127.0.0.2", "127.0.0.3", "::1")
ENOUGH_S = 5.0
SHORT_S = 0.3


def asking(
    server: DnsServer,
    resolv_conf: Path | str = "/nonexistent/resolv.conf",
    *,
    query: str = NAME,
    lifetime_s: float = ENOUGH_S,
) -> DnsDiscovery:
    """Discovery at ``server``, with search domains only from the test's own resolv.conf."""
    return DnsDiscovery(
        query,
        server=(server.host, server.port),
        lifetime_s=lifetime_s,
        resolv_conf=resolv_conf,
    )


def system(hosts: dict[str, list[str]], asked: list[str] | None = None) -> SystemLookup:
    def resolve(host: str) -> list[str]:
        if asked is not None:
            asked.append(host)
        if host not in hosts:
            raise OSError("Name or service not known")
        return hosts[host]

    return SystemLookup(resolve)


async def timed(discovery: DnsDiscovery) -> tuple[Answer, float]:
    started = time.monotonic()
    answer = await discovery.lookup()
    return answer, time.monotonic() - started


async def test_both_families_in_one_sorted_answer() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        discovery = asking(server)
        answer = await discovery.lookup()
        assert answer == Answer(Outcome.ADDRESSES, SORTED, "3 addresses")
        assert server.queries == {(NAME, "A"): 1, (NAME, "AAAA"): 1}
        assert discovery.source == f'DNS name "{NAME}" at {server.address}'


async def test_nothing_is_remembered_whatever_the_ttl() -> None:
    async with DnsServer(ttl_s=600) as server:
        discovery = asking(server)
        for addresses in (["127.0.0.2"], ["127.0.0.3"], ["127.0.0.2", "127.0.0.3"]):
            server.set(NAME, addresses)
            assert (await discovery.lookup()).addresses == tuple(addresses)


@pytest.mark.parametrize(
    ("addresses", "detail"),
    [(["127.0.0.2"], "1 address"), (["::1"], "1 address")],
)
async def test_one_family_is_a_whole_answer(addresses: list[str], detail: str) -> None:
    async with DnsServer() as server:
        server.set(NAME, addresses)
        assert await asking(server).lookup() == Answer(Outcome.ADDRESSES, tuple(addresses), detail)


@pytest.mark.parametrize(
    ("faults", "detail"),
    [
        ([], "NXDOMAIN"),
        ([(Reply.EMPTY, None)], "no record"),
        ([(Reply.EMPTY, "A")], "A: no record; AAAA: NXDOMAIN"),
    ],
)
async def test_empty_is_what_the_server_says_it_is(
    faults: list[tuple[Reply, RecordType | None]], detail: str
) -> None:
    async with DnsServer() as server:
        for reply, rdtype in faults:
            server.behave(reply, NAME, rdtype)
        assert await asking(server).lookup() == Answer(Outcome.EMPTY, (), detail)


async def test_nxdomain_for_one_family_does_not_hide_the_other() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(Reply.NXDOMAIN, rdtype="AAAA")
        assert await asking(server).lookup() == Answer(
            Outcome.ADDRESSES, ("127.0.0.2", "127.0.0.3"), "2 addresses"
        )
        server.heal()
        server.behave(Reply.NXDOMAIN, rdtype="A")
        assert await asking(server).lookup() == Answer(Outcome.ADDRESSES, ("::1",), "1 address")


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (Fault(Reply.SERVFAIL), "SERVFAIL from {server}"),
        (Fault(Reply.REFUSED), "REFUSED from {server}"),
        (Fault(Reply.NOTIMP), "NOTIMP from {server}"),
        (Fault(Reply.DROP), "no answer from {server}"),
        (Fault(Reply.GARBAGE), "no answer from {server}"),
        (Fault(Reply.WRONG_ID), "no answer from {server}"),
        (Fault(delay_s=2.0), "no answer from {server}"),
        (
            Fault(truncate=0, tcp_reply=Reply.HANG_UP),
            "a truncated answer from {server}, a closed connection from {server}",
        ),
        (Fault(truncate=0, tcp_reply=Reply.SERVFAIL), "SERVFAIL from {server}"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_failures_say_nothing_about_the_nodes(fault: Fault, detail: str) -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(fault)
        answer, seconds = await timed(asking(server, lifetime_s=SHORT_S))
        assert (answer.outcome, answer.addresses) == (Outcome.FAILED, ())
        assert detail.format(server=server.address) in answer.detail
        assert seconds < SHORT_S + allowed_s(0.7)
        server.heal()
        assert (await asking(server).lookup()).addresses == SORTED


async def test_a_servfail_is_retried_once_and_soon() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(Reply.SERVFAIL, NAME, "A", times=1)
        assert (await asking(server).lookup()).outcome is Outcome.ADDRESSES
        assert server.queries[NAME, "A"] == 2

        server.behave(Reply.SERVFAIL)
        answer, seconds = await timed(asking(server))
        assert answer.outcome is Outcome.FAILED
        assert seconds < min(4.0, allowed_s(1.0))  # of 5
        assert server.queries == {(NAME, "A"): 4, (NAME, "AAAA"): 3}


@pytest.mark.parametrize(
    "reply",
    [Reply.SERVFAIL, Reply.REFUSED, Reply.DROP, Reply.GARBAGE],
    ids=lambda reply: reply.name,
)
async def test_one_failed_family_makes_the_answer_partial(reply: Reply) -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(reply, rdtype="AAAA")
        answer = await asking(server, lifetime_s=SHORT_S).lookup()
        assert (answer.outcome, answer.addresses) == (Outcome.PARTIAL, ("127.0.0.2", "127.0.0.3"))
        assert answer.detail.startswith("2 addresses, but AAAA: ")


async def test_one_failed_family_beside_an_empty_one_is_a_failure() -> None:
    async with DnsServer() as server:
        server.behave(Reply.SERVFAIL, rdtype="AAAA")
        answer = await asking(server).lookup()
        assert answer.outcome is Outcome.FAILED
        assert answer.detail == f"AAAA: SERVFAIL from {server.address}"


async def test_a_resolver_that_drops_aaaa_does_not_cost_the_whole_lifetime() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(Reply.DROP, rdtype="AAAA")
        answer, seconds = await timed(asking(server, lifetime_s=20.0))
        assert (answer.outcome, len(answer.addresses)) == (Outcome.PARTIAL, 2)
        assert answer.detail == f"2 addresses, but AAAA: no answer from {server.address}"
        assert 0.9 < seconds < allowed_s(2.0)


async def test_a_late_answer_within_the_lifetime_is_an_answer() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(Fault(delay_s=0.2))
        assert (await asking(server).lookup()).addresses == SORTED


async def test_large_answers_come_whole() -> None:
    many = [f"127.1.{n >> 8}.{n & 255}" for n in range(1000)]
    async with DnsServer() as server:
        server.set(NAME, many[:70])  # over 512 bytes and under 1232: EDNS
        assert (await asking(server).lookup()).addresses == tuple(many[:70])
        assert server.queries[NAME, "A"] == 1
        server.set(NAME, many)  # TCP
        assert (await asking(server).lookup()) == Answer(Outcome.ADDRESSES, tuple(many), "1000 addresses")


async def test_names_are_found_while_the_program_has_taken_all_threads_of_the_default_executor() -> None:
    many = [f"127.1.{n >> 8}.{n & 255}" for n in range(1000)]
    async with DnsServer() as server, full_default_executor() as executor:
        discovery = asking(server, lifetime_s=stretched(ENOUGH_S))
        server.set(NAME, BOTH)
        assert await discovery.lookup() == Answer(Outcome.ADDRESSES, SORTED, "3 addresses")
        server.set(NAME, many)  # Over TCP.
        assert await discovery.lookup() == Answer(Outcome.ADDRESSES, tuple(many), "1000 addresses")
        assert executor._work_queue.empty()  # Nothing of discovery waits behind the program's calls.


async def test_a_large_answer_is_read_although_no_thread_can_be_started() -> None:
    many = [f"127.1.{n >> 8}.{n & 255}" for n in range(1000)]
    async with DnsServer() as server:
        server.set(NAME, many)
        discovery = asking(server, lifetime_s=stretched(ENOUGH_S))
        first = await discovery.lookup()
        with pytest.MonkeyPatch.context() as patch:
            refuse_threads(patch)
            assert await discovery.lookup() == first
        assert first == Answer(Outcome.ADDRESSES, tuple(many), "1000 addresses")


@pytest.mark.parametrize("tcp_reply", [Reply.HANG_UP, Reply.REFUSED, Reply.DROP])
async def test_a_truncated_answer_without_tcp_is_partial(tcp_reply: Reply) -> None:
    async with DnsServer() as server:
        server.set(NAME, ["127.0.0.2"] * 2 + [f"127.0.1.{n}" for n in range(1, 11)])
        server.behave(Fault(truncate=4, tcp_reply=tcp_reply))
        answer = await asking(server, lifetime_s=SHORT_S).lookup()
        assert answer.outcome is Outcome.PARTIAL
        assert len(answer.addresses) == 4
        assert "truncated, and TCP failed" in answer.detail


async def test_a_server_from_before_edns_is_asked_without_it() -> None:
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(Fault(edns=False))
        assert (await asking(server).lookup()).addresses == SORTED


async def test_samples_are_whole_answers() -> None:
    async with DnsServer() as server:
        server.set(NAME, [f"127.0.1.{n}" for n in range(1, 21)])
        server.behave(Fault(sample=8))
        answer = await asking(server).lookup()
        assert (answer.outcome, len(answer.addresses)) == (Outcome.ADDRESSES, 8)


async def test_unusable_addresses_are_passed_over_and_told() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["0.0.0.0", "127.0.0.2", "fe80::1", "::ffff:127.0.0.3"])
        answer = await asking(server).lookup()
        assert (answer.outcome, answer.addresses) == (
            Outcome.ADDRESSES,
            ("127.0.0.2", "127.0.0.3"),
        )
        assert answer.detail.startswith("2 addresses, passed over ")
        assert "0.0.0.0 (unspecified" in answer.detail
        assert "fe80::1 (link-local" in answer.detail


async def test_an_answer_of_nothing_usable_is_a_failure_and_not_an_empty_cluster() -> None:
    async with DnsServer() as server:
        server.set(NAME, ["0.0.0.0", "::"])
        answer = await asking(server).lookup()
        assert answer.outcome is Outcome.FAILED
        assert answer.detail.startswith("no usable address: passed over 0.0.0.0")


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "resolv.conf"
        path.write_text(text)
        return path

    return write


async def test_search_domains_are_those_of_the_system(resolv_conf: Callable[[str], Path]) -> None:
    conf = resolv_conf("nameserver 127.0.0.53\nsearch prod.test svc.test\noptions ndots:2\n")
    async with DnsServer() as server:
        server.set("fleet.svc.test", ["127.0.0.2"])
        server.set("b.c.test", ["127.0.0.3"])
        assert (await asking(server, conf, query="fleet").lookup()).addresses == ("127.0.0.2",)
        assert ("fleet", "A") not in server.queries
        assert (await asking(server, conf, query="fleet.").lookup()).outcome is Outcome.EMPTY
        assert server.queries["fleet", "A"] == 1
        assert (await asking(server, conf, query="b.c.test").lookup()).addresses == ("127.0.0.3",)
        assert ("b.c.test.prod.test", "A") not in server.queries


@pytest.mark.parametrize("reply", [Reply.SERVFAIL, Reply.REFUSED, Reply.DROP])
async def test_a_broken_search_domain_does_not_hide_the_name(
    resolv_conf: Callable[[str], Path], reply: Reply
) -> None:
    conf = resolv_conf("search broken.test\noptions ndots:5\n")
    async with DnsServer() as server:
        server.set(NAME, BOTH)
        server.behave(reply, f"{NAME}.broken.test")
        answer = await asking(server, conf, lifetime_s=2 * SHORT_S).lookup()
        assert (answer.outcome, answer.addresses) == (Outcome.ADDRESSES, SORTED)
        assert f"after {NAME}.broken.test. failed" in answer.detail
        server.behave(reply, f"{NAME}.broken.test")
        server.delete(NAME)
        assert (await asking(server, conf, lifetime_s=2 * SHORT_S).lookup()).outcome is (Outcome.FAILED)


async def test_a_search_domain_that_makes_the_name_too_long_is_left_out(
    resolv_conf: Callable[[str], Path],
) -> None:
    conf = resolv_conf(f"search {'.'.join(['x' * 60] * 4)}\n")
    async with DnsServer() as server:
        server.set("fleet-of-workers", ["127.0.0.2"])
        answer = await asking(server, conf, query="fleet-of-workers").lookup()
        assert answer.addresses == ("127.0.0.2",)


@pytest.mark.parametrize("text", [None, "", "search example.test\n", "nameserver not-an-address\n"])
async def test_a_machine_without_a_name_server_asks_its_own_and_says_so(
    resolv_conf: Callable[[str], Path], text: str | None
) -> None:
    conf = Path("/nonexistent/resolv.conf") if text is None else resolv_conf(text)
    discovery = DnsDiscovery(NAME, lifetime_s=SHORT_S, resolv_conf=conf, system=system({}))
    answer = await discovery.lookup()
    assert discovery.source == f'DNS name "{NAME}" at 127.0.0.1 ({conf} names no name server)'
    # Where this machine has a name server of its own, that one knows no such name.
    assert answer.outcome is Outcome.EMPTY or f"({conf} names no name server)" in answer.detail
    await discovery.close()


async def test_a_changed_resolver_configuration_is_used_at_once(
    resolv_conf: Callable[[str], Path],
) -> None:
    async with DnsServer() as server:
        server.set("fleet.late.test", BOTH)
        conf = resolv_conf("search early.test\n")
        discovery = asking(server, conf, query="fleet")
        assert (await discovery.lookup()).outcome is Outcome.EMPTY
        resolv_conf("search late.test\n")
        assert (await discovery.lookup()).addresses == SORTED


@pytest.mark.parametrize("query", ["a..b", "x" * 64, ".".join(["x" * 60] * 5), ""])
async def test_a_name_that_cannot_be_asked_for_is_a_failure(query: str) -> None:
    async with DnsServer() as server:
        answer = await asking(server, query=query).lookup()
        assert answer.outcome in (Outcome.FAILED, Outcome.EMPTY)
        assert answer.addresses == ()


async def test_a_dead_port_is_a_failure_within_the_lifetime() -> None:
    async with DnsServer() as server:
        discovery = asking(server, lifetime_s=SHORT_S)
    answer, seconds = await timed(discovery)
    assert answer.outcome is Outcome.FAILED
    assert seconds < SHORT_S + allowed_s(0.7)


async def test_a_given_server_replaces_the_hosts_file_and_the_c_library(tmp_path: Path) -> None:
    asked: list[str] = []
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.4 {NAME}\n")
    async with DnsServer() as server:
        discovery = DnsDiscovery(
            NAME,
            server=(server.host, server.port),
            hosts=hosts,
            nsswitch_conf="/nonexistent",
            system=system({NAME: ["127.0.0.4"]}, asked),
        )
        assert (await discovery.lookup()).outcome is Outcome.EMPTY
        server.behave(Reply.REFUSED)
        assert (await discovery.lookup()).outcome is Outcome.FAILED
    assert asked == []


async def test_a_stuck_system_lookup_is_given_up_and_never_piles_up() -> None:
    release = threading.Event()
    calls: list[str] = []

    def stuck(host: str) -> list[str]:
        calls.append(host)
        release.wait()
        return ["127.0.0.4"]

    lookup = SystemLookup(stuck)
    for _ in range(3):
        assert await lookup.addresses(NAME, timeout_s=0.05) is None
    assert calls == [NAME]
    assert await lookup.addresses("other.test", timeout_s=0.05) is None
    release.set()
    assert await lookup.addresses(NAME, timeout_s=5.0) == ("127.0.0.4",)  # the late answer
    assert calls == [NAME]
    assert await lookup.addresses(NAME, timeout_s=5.0) == ("127.0.0.4",)
    assert calls == [NAME, NAME]


async def test_the_real_system_lookup_knows_this_machine_and_nothing_made_up() -> None:
    assert "127.0.0.1" in (await SystemLookup().addresses("127.0.0.1", timeout_s=5.0) or ())
    assert await SystemLookup().addresses("x" * 300, timeout_s=5.0) == ()


def test_a_system_lookup_that_outlives_its_loop_is_forgotten() -> None:
    release = threading.Event()

    def stuck(_host: str) -> list[str]:
        release.wait()
        return []

    before = set(threading.enumerate())
    lookup = SystemLookup(stuck)
    asyncio.run(lookup.addresses(NAME, timeout_s=0.01))
    (thread,) = set(threading.enumerate()) - before
    release.set()
    thread.join(5.0)
    assert not thread.is_alive()


def test_a_program_ends_although_the_import_of_dnspython_hangs() -> None:
    program = """
import asyncio, threading
from fleetlm.discovery import dns

dns._make_lookups = lambda *_: threading.Event().wait()

async def main():
    discovery = dns.DnsDiscovery("fleet.test", lifetime_s=0.01)
    for _ in range(2):
        print((await discovery.lookup()).detail)

asyncio.run(main())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=stretched(10.0)
    )
    detail = "the import of dnspython has taken longer than 0.01 s so far\n"
    assert (run.returncode, run.stdout, run.stderr) == (0, detail * 2, "")


async def test_a_system_lookup_outlives_whatever_its_resolver_raises() -> None:
    def broken(_host: str) -> list[str]:
        raise KeyError("a bug of a resolver")

    assert await SystemLookup(broken).addresses(NAME, timeout_s=stretched(5.0)) == ()


async def test_a_system_lookup_without_a_thread_knows_nothing_and_tries_again() -> None:
    lookup = system({NAME: ["127.0.0.4"]})
    with pytest.MonkeyPatch.context() as patch:
        refuse_threads(patch)
        assert await lookup.addresses(NAME, timeout_s=0.05) is None
    assert await lookup.addresses(NAME, timeout_s=stretched(5.0)) == ("127.0.0.4",)


async def test_a_closed_discovery_leaves_no_task_and_no_socket_after_a_cancelled_lookup() -> None:
    async with DnsServer() as server:
        server.behave(Reply.DROP)
        discovery = asking(server)
        for pause_s in (0.0, 0.05):
            before = asyncio.all_tasks()
            lookup = asyncio.create_task(discovery.lookup())
            await asyncio.sleep(pause_s)
            lookup.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lookup
            await discovery.close()
            assert asyncio.all_tasks() == before
        server.heal()
        server.set(NAME, BOTH)
        assert (await discovery.lookup()).addresses == SORTED
    gc.collect()  # a socket left open would warn, and a warning is an error here


async def test_a_lookup_outlives_whatever_the_resolver_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def explode(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("boom")

    async with DnsServer() as server:
        monkeypatch.setattr("dns.message.make_query", explode)
        answer = await asking(server).lookup()
    assert answer == Answer(Outcome.FAILED, (), "RuntimeError: boom")


@pytest.mark.parametrize("query", ["127.0.0.3, ::1,127.0.0.2", "127.0.0.2,127.0.0.3,0::1,"])
async def test_a_query_of_addresses_is_a_static_list(query: str) -> None:
    discovery = DnsDiscovery(query, resolv_conf="/nonexistent/resolv.conf")
    assert discovery.source == "a list of 3 addresses"
    assert await discovery.lookup() == Answer(Outcome.ADDRESSES, SORTED, "3 addresses")


async def test_a_static_list() -> None:
    assert await StaticDiscovery(BOTH).lookup() == Answer(Outcome.ADDRESSES, SORTED, "3 addresses")
    assert await StaticDiscovery([]).lookup() == Answer(Outcome.EMPTY, (), "no addresses")
    nothing = await StaticDiscovery(["0.0.0.0"]).lookup()
    assert nothing.outcome is Outcome.FAILED
