"""Discovery at several real name servers, with files of its own instead of those in /etc."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery import dns_names, resolv_conf
from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.discovery.resolv_conf import ResolverConfig
from fleetlm.discovery.system_lookup import SystemLookup
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, Reply
from tests.support.patience import allowed_s

NAME = "fleet.test"
FIRST, SECOND = "127.77.0.1", "127.77.0.2"
BOTH = ["127.0.0.2", "::1"]
SORTED = ("127.0.0.2", "::1")
WHOLE = Answer(Outcome.ADDRESSES, SORTED, "2 addresses")


class Machine:
    """Two name servers on the same port, and the files of a machine that asks them."""

    def __init__(self, folder: Path, first: DnsServer, second: DnsServer) -> None:
        self.folder = folder
        self.first = first
        self.second = second
        self.system_hosts: dict[str, list[str]] = {}
        self.write("resolv.conf", f"nameserver {FIRST}\nnameserver {SECOND}\n")
        self.write("hosts", "127.0.0.1 localhost\n")
        self.write("nsswitch.conf", "hosts: files dns\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def discovery(self, query: str = NAME, *, lifetime_s: float = 5.0) -> DnsDiscovery:
        def resolve(host: str) -> list[str]:
            if host not in self.system_hosts:
                raise OSError("Name or service not known")
            return self.system_hosts[host]

        return DnsDiscovery(
            query,
            lifetime_s=lifetime_s,
            resolv_conf=self.folder / "resolv.conf",
            hosts=self.folder / "hosts",
            nsswitch_conf=self.folder / "nsswitch.conf",
            system=SystemLookup(resolve),
        )


Machines = Callable[[], contextlib.AbstractAsyncContextManager[Machine]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Machine]:
        async with DnsServer(FIRST) as first, DnsServer(SECOND, first.port) as second:

            def parse(
                text: str, *, source: str, environ: Mapping[str, str], host_name: str
            ) -> ResolverConfig:
                """Read resolv.conf, which cannot name a port."""
                del environ, host_name
                config = resolv_conf.parse(text, source=source)
                servers = tuple(dataclasses.replace(each, port=first.port) for each in config.servers)
                return dataclasses.replace(config, servers=servers)

            monkeypatch.setattr(dns_names, "parse", parse)
            for each in (first, second):
                each.set(NAME, BOTH)
            yield Machine(tmp_path, first, second)

    return start


@pytest.fixture(autouse=True)
def _only_on_linux() -> None:
    if sys.platform != "linux":
        pytest.skip("other systems have no addresses but 127.0.0.1 on loopback")


async def timed(discovery: DnsDiscovery) -> tuple[Answer, float]:
    started = time.monotonic()
    answer = await discovery.lookup()
    return answer, time.monotonic() - started


async def test_a_dead_first_server_is_passed_by_and_then_asked_last(machine: Machines) -> None:
    async with machine() as m:
        m.first.behave(Reply.DROP)
        discovery = m.discovery(lifetime_s=1.0)
        assert await discovery.lookup() == WHOLE
        asked = m.first.queries.total()
        assert await discovery.lookup() == WHOLE
        assert m.first.queries.total() == asked
        await discovery.close()


async def test_a_port_that_nobody_listens_on_costs_nothing(machine: Machines) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver 127.77.0.9\nnameserver {SECOND}\n")
        answer, seconds = await timed(m.discovery(lifetime_s=20.0))
        assert answer == WHOLE
        assert seconds < allowed_s(2.0)


async def test_a_server_whose_interface_is_missing_is_passed_by(machine: Machines) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver fe80::1%nosuch0\nnameserver {SECOND}\n")
        assert await m.discovery().lookup() == WHOLE


async def test_a_gateway_that_drops_edns_is_asked_without_it(machine: Machines) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver {FIRST}\n")
        m.first.behave(Fault(drops_edns=True))
        discovery = m.discovery(lifetime_s=1.0)
        assert await discovery.lookup() == WHOLE
        asked = m.first.queries.total()
        assert await discovery.lookup() == WHOLE
        assert m.first.queries.total() == asked + 2  # it is not tried with EDNS again
        await discovery.close()


async def test_use_vc_asks_over_tcp(machine: Machines) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver {FIRST}\noptions use-vc\n")
        m.first.behave(Fault(Reply.DROP, tcp_reply=Reply.ANSWER))
        assert await m.discovery().lookup() == WHOLE


async def test_a_server_slower_than_a_lookup_serves_the_next_one(machine: Machines) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver {FIRST}\n")
        m.first.behave(Fault(delay_s=0.5))
        discovery = m.discovery(lifetime_s=0.2)
        assert (await discovery.lookup()).outcome is Outcome.FAILED
        async with asyncio.timeout(20):
            while await discovery.lookup() != WHOLE:
                await asyncio.sleep(0.2)
        await discovery.close()


async def test_the_hosts_file_comes_before_dns_and_its_changes_are_seen(machine: Machines) -> None:
    async with machine() as m:
        discovery = m.discovery()
        assert await discovery.lookup() == WHOLE
        m.write("hosts", f"127.0.0.8 {NAME}\n127.0.0.7 other {NAME.upper()}\n")
        detail = f"2 addresses, from {m.folder / 'hosts'}"
        assert await discovery.lookup() == Answer(Outcome.ADDRESSES, ("127.0.0.7", "127.0.0.8"), detail)
        for each in (m.first, m.second):
            each.behave(Reply.DROP)
        assert (await discovery.lookup()).outcome is Outcome.ADDRESSES
        m.first.heal()
        m.write("nsswitch.conf", "hosts: dns [!UNAVAIL=return] files\n")
        assert await discovery.lookup() == WHOLE


async def test_dns_is_not_asked_where_nsswitch_conf_does_not_name_it(machine: Machines) -> None:
    async with machine() as m:
        m.write("nsswitch.conf", "hosts: files\n")
        detail = f"{m.folder / 'nsswitch.conf'} asks no name server for hosts"
        assert await m.discovery().lookup() == Answer(Outcome.EMPTY, (), detail)
        m.write("hosts", f"127.0.0.8 {NAME}\n")
        assert (await m.discovery().lookup()).addresses == ("127.0.0.8",)
        m.write("hosts", "")
        m.write("nsswitch.conf", "hosts: files myhostname\n")
        m.system_hosts[NAME] = ["127.0.0.6"]
        assert (await m.discovery().lookup()).addresses == ("127.0.0.6",)


async def test_the_c_library_is_asked_where_dns_failed_and_its_answer_is_partial(machine: Machines) -> None:
    async with machine() as m:
        for each in (m.first, m.second):
            each.behave(Reply.REFUSED)
        assert (await m.discovery().lookup()).outcome is Outcome.FAILED
        m.system_hosts[NAME] = ["127.0.0.6", "127.0.0.6"]
        answer = await m.discovery().lookup()
        assert (answer.outcome, answer.addresses) == (Outcome.PARTIAL, ("127.0.0.6",))
        assert answer.detail.startswith("1 address, from the C library (DNS: REFUSED from ")


async def test_the_c_library_is_asked_for_an_absent_name_only_if_it_may_know_more(machine: Machines) -> None:
    async with machine() as m:
        m.system_hosts["printer.local"] = ["127.0.0.5"]
        discovery = m.discovery("printer.local")
        assert await discovery.lookup() == Answer(Outcome.EMPTY, (), "NXDOMAIN")
        m.write("nsswitch.conf", "hosts: files mdns4_minimal [NOTFOUND=return] dns\n")
        detail = "1 address, from the C library (DNS: NXDOMAIN)"
        assert await discovery.lookup() == Answer(Outcome.ADDRESSES, ("127.0.0.5",), detail)


async def test_neither_the_hosts_file_nor_the_c_library_is_asked_for_srv_records(machine: Machines) -> None:
    async with machine() as m:
        name = "_fleetlm._tcp.fleet.test"
        m.write("hosts", f"127.0.0.9 {name}\n")
        m.system_hosts[name] = ["127.0.0.9"]
        m.first.set_srv(name, [(NAME, 4371)])
        discovery = m.discovery(name, lifetime_s=1.0)
        assert (await discovery.lookup()).addresses == ("127.0.0.2:4371", "[::1]:4371")
        for each in (m.first, m.second):
            each.behave(Reply.REFUSED)
        assert (await discovery.lookup()).outcome is Outcome.FAILED
        await discovery.close()


async def test_odd_lines_are_named_in_the_log_once(
    machine: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    async with machine() as m:
        m.write("resolv.conf", f"nameserver dns.corp.example\nnameserver {FIRST}\n")
        discovery = m.discovery()
        with caplog.at_level(logging.WARNING, "fleetlm"):
            for _ in range(3):
                assert await discovery.lookup() == WHOLE
        (line,) = caplog.messages
        assert line == (
            f"{m.folder / 'resolv.conf'} line 1: passed over the name server, "
            '"dns.corp.example" is not an IP address'
        )


async def test_several_names_are_one_cluster(machine: Machines) -> None:
    async with machine() as m:
        m.first.set("b.test", ["127.0.0.3"])
        discovery = m.discovery(f"{NAME},b.test, 127.0.0.4,")
        answer = await discovery.lookup()
        assert discovery.source.startswith(f'DNS names "{NAME}", "b.test" at {FIRST}')
        assert discovery.source.endswith(" and 1 address")
        assert answer.addresses == ("127.0.0.2", "127.0.0.3", "127.0.0.4", "::1")
        assert answer.outcome is Outcome.ADDRESSES
        m.first.behave(Reply.SERVFAIL, "b.test")
        m.second.behave(Reply.SERVFAIL, "b.test")
        answer = await discovery.lookup()
        assert (answer.outcome, answer.addresses) == (Outcome.PARTIAL, ("127.0.0.2", "127.0.0.4", "::1"))


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="needs root, for files in /etc and a loopback of its own",
)
def test_discovery_finds_what_the_c_library_finds() -> None:
    command = ["unshare", "--mount", "--net", sys.executable, "-m", "tests.system.resolver_oracle"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allowed_s(25), check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no namespaces")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) > 15
    for title, (of_the_c_library, ours, detail) in results.items():
        assert ours == of_the_c_library, (title, detail)
