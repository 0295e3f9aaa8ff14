from __future__ import annotations

import os
from pathlib import Path

import pytest

from fleetlm.discovery.system_files import (
    WatchedFile,
    asks_dns,
    knows_more_than_dns,
    parse_hosts,
    parse_services,
    reads_hosts_first,
)

HOSTS = """\
127.0.0.1 localhost
10.0.0.2\tworkers workers.site   # the first
10.0.0.3 WORKERS
fdaa::2 workers
# 10.0.0.9 workers
not-an-address workers
10.0.0.4 workers-2 #workers
10.0.0.2 workers
"""


def test_all_lines_of_a_name_count_in_their_order() -> None:
    found = parse_hosts(HOSTS, frozenset({"workers", "workers.site", "nobody"}))
    assert found == {"workers": ("10.0.0.2", "10.0.0.3", "fdaa::2"), "workers.site": ("10.0.0.2",)}


def test_a_long_hosts_file_is_searched_for_the_names_only() -> None:
    text = "".join(f"0.0.0.0 ad{n}.test\n" for n in range(20_000)) + "10.0.0.2 workers\r\n10.0.0.3 workers"
    assert parse_hosts(text, frozenset({"workers"})) == {"workers": ("10.0.0.2", "10.0.0.3")}
    assert parse_hosts(text, frozenset({""})) == {}


def test_a_final_dot_is_part_of_the_name_in_the_hosts_file() -> None:
    assert parse_hosts(HOSTS, frozenset({"workers."})) == {}


@pytest.mark.parametrize(
    ("text", "services"),
    [
        ("hosts: files dns\n", ("files", "dns")),
        ("passwd: files\nhosts:\tfiles mdns4_minimal [NOTFOUND=return] dns\n",
         ("files", "mdns4_minimal", "dns")),
        ("hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n",
         ("mymachines", "resolve", "files", "myhostname", "dns")),
        ("hosts: dns[ !UNAVAIL = return ]files\n", ("dns",)),
        ("#hosts: dns\n", ("files", "dns")),
        ("HOSTS: dns\n", ("files", "dns")),
        ("hosts: Files dns\n", ("Files", "dns")),
        ("hosts: files\n", ("files",)),
        ("hosts: files # dns\n", ("files", "#", "dns")),
        ("hosts files\n", ("files",)),
        (" hosts : : dns\n", ("dns",)),
        ("hosts: files dns\nhosts: dns\n", ("dns",)),
        ("hosts: dns\nhosts: files dns\nhostsdb: dns\n", ("files", "dns")),
        ("hosts: files [NOTFOUND=return] dns\n", ("files",)),
        ("hosts: files[notfound=Return]dns\n", ("files",)),
        ("hosts: files [UNAVAIL=return NOTFOUND=return] dns\n", ("files",)),
        ("hosts: files [!NOTFOUND=return] dns\n", ("files", "dns")),
        ("hosts: files [!UNAVAIL=merge] dns\n", ("dns",)),
        ("hosts: files [SUCCESS=continue] dns\n", ("dns",)),
        ("hosts: dns [SUCCESS=continue] files\n", ("files",)),
        ("hosts: files [SUCCESS=continue]\n", ("files",)),
        ("hosts: dns [!NOTFOUND=continue] nosuch\n", ("nosuch",)),
        ("hosts: nosuch [UNAVAIL=return] files\n", ("nosuch", "files")),
        ("hosts: dns [NOTFOUND=foo] files\n", ("files", "dns")),
        ("hosts: dns [foo=return] files\n", ("files", "dns")),
        ("hosts: dns [] files\n", ("files", "dns")),
        ("hosts: dns [NOTFOUND=return\n", ("files", "dns")),
        ("hosts: dns [NOTFOUND=return] [UNAVAIL=return] files\n", ("dns",)),
        ("hosts:\n", ("files", "dns")),
        ("", ("files", "dns")),
    ],
)  # fmt: skip
def test_services_of_nsswitch(text: str, services: tuple[str, ...]) -> None:
    assert parse_services(text) == services


@pytest.mark.parametrize(
    ("services", "is_first", "is_asked", "knows_more"),
    [
        (("files", "dns"), True, True, False),
        (("dns", "files"), False, True, True),
        (("files", "mdns4_minimal", "dns"), True, True, True),
        (("resolve", "files", "dns"), True, True, True),
        (("resolve", "dns"), True, True, True),
        (("dns",), False, True, True),
        (("files",), True, False, False),
        (("files", "myhostname"), True, False, True),
    ],
)
def test_who_is_asked_before_and_after_dns_and_whether_dns_is(
    services: tuple[str, ...], is_first: bool, is_asked: bool, knows_more: bool
) -> None:
    assert asks_dns(services) is is_asked
    assert reads_hosts_first(services) is is_first
    assert knows_more_than_dns(services) is knows_more


def test_a_watched_file_is_read_again_only_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    reads: list[str] = []

    def parse(text: str) -> str:
        reads.append(text)
        return text

    watched = WatchedFile(path, parse)
    assert [watched.get(), watched.get()] == ["", ""]  # there is no file
    path.write_text("one")
    assert [watched.get(), watched.get()] == ["one", "one"]
    other = tmp_path / "new"
    other.write_text("two")
    os.utime(other, ns=(0, 0))
    other.replace(path)  # as editors and DHCP clients do
    assert watched.get() == "two"
    path.write_bytes(b"f\xfcr alle")
    assert watched.get() == "f\ufffdr alle"
    path.unlink()
    assert watched.get() == ""
    assert reads == ["", "one", "two", "f\ufffdr alle", ""]


def test_a_path_that_is_none_counts_as_an_empty_file() -> None:
    assert WatchedFile("a\x00b", str.upper).get() == ""
