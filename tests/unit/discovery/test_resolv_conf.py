from __future__ import annotations

import socket

import dns.name
import pytest
from hypothesis import example, given, strategies as st

from fleetlm.discovery.resolv_conf import ResolverConfig, ServerAddress, parse, parse_server


def read(text: str, **kwargs: object) -> ResolverConfig:
    return parse(text, source="resolv.conf", **kwargs)  # type: ignore[arg-type]


def servers(text: str) -> list[str]:
    return [str(server) for server in read(text).servers]


def searched(config: ResolverConfig) -> list[str]:
    return [str(domain) for domain in config.search]


def candidates(text: str, query: str) -> list[str]:
    return [str(name) for name in read(text).candidates(dns.name.from_text(query, origin=None))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.0.0.1\nnameserver 10.0.0.2\n", ["10.0.0.1", "10.0.0.2"]),
        ("nameserver\t10.0.0.1", ["10.0.0.1"]),
        ("nameserver 10.0.0.1 # the office\n", ["10.0.0.1"]),
        ("nameserver 10.0.0.1\r\nsearch a.test\r\n", ["10.0.0.1"]),
        ("nameserver fe80::1%eth0\nnameserver fe80::2%3\n", ["fe80::1%eth0", "fe80::2%3"]),
        ("nameserver FDAA:0::3\n", ["fdaa::3"]),
        ("nameserver 127.1\n", ["127.0.0.1"]),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 6)), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("; nameserver 10.0.0.1\n# nameserver 10.0.0.1\nnameserver 10.0.0.2\n", ["10.0.0.2"]),
        (" nameserver 10.0.0.1\nnameserver 10.0.0.2\n", ["10.0.0.2"]),
        ("NAMESERVER 10.0.0.1\nnameserver 10.0.0.2\n", ["10.0.0.2"]),
    ],
)
def test_name_servers_are_those_that_the_c_library_reads(text: str, expected: list[str]) -> None:
    config = read(text)
    assert [str(server) for server in config.servers] == expected
    assert config.remarks == ()
    assert not config.names_no_server


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("nameserver dns.corp.example", '"dns.corp.example" is not an IP address'),
        ("nameserver 10.0.0.9:53", '"10.0.0.9:53" is not an IP address'),
        ("nameserver 10.0.0.256", '"10.0.0.256" is not an IP address'),
        ("nameserver", "an address is missing"),
        ("nameserver 10.0.0.9#53", '"10.0.0.9#53" is not an IP address'),
        ("nameserver #10.0.0.1", '"#10.0.0.1" is not an IP address'),
        ("search corp..example ok.example", 'passed over the search domain "corp..example"'),
        ("options ndots:x", 'passed over the option "ndots:x", which has no number'),
        ("options timeout: rotate", 'passed over the option "timeout:", which has no number'),
    ],
)
def test_what_cannot_be_read_is_passed_over_and_named_with_its_line(line: str, remark: str) -> None:
    config = read(f"# managed by hand\n{line}\nnameserver 10.0.0.1\n")
    assert [str(server) for server in config.servers] == ["10.0.0.1"]
    (found,) = config.remarks
    assert found.startswith("resolv.conf line 2: passed over ")
    assert remark in found


def test_the_rest_of_a_line_with_a_fault_counts() -> None:
    config = read("search corp..example ok.example\noptions ndots:x rotate attempts:3\n")
    assert searched(config) == ["ok.example."]
    assert (config.ndots, config.rotate, config.attempts) == (1, True, 3)


def test_a_file_that_names_no_server_means_the_one_of_this_machine() -> None:
    for text in ("", "search a.test\n", "nameserver ns1\n"):
        config = read(text)
        assert servers(text) == ["127.0.0.1"]
        assert config.names_no_server


def test_options() -> None:
    config = read(
        "options ndots:5 timeout:3 attempts:4 rotate use-vc single-request no-aaaa no-tld-query\n"
        "options edns0 trust-ad single-request-reopen inet6 no-such-option x:y\n"
    )
    assert (config.ndots, config.timeout_s, config.attempts) == (5, 3, 4)
    flags = (config.rotate, config.use_tcp, config.single_request, config.no_aaaa, config.no_tld_query)
    assert flags == (True,) * 5
    assert config.remarks == ()


def test_numbers_stay_within_the_limits_of_the_c_library() -> None:
    high = read("options ndots:99 timeout:99 attempts:99999999999999\n")
    assert (high.ndots, high.timeout_s, high.attempts) == (15, 30, 5)
    low = read("options ndots:0 timeout:0 attempts:0\n")
    assert (low.ndots, low.timeout_s, low.attempts) == (0, 1, 1)


def test_the_last_of_domain_and_search_holds() -> None:
    assert searched(read("domain a.test\nsearch b.test c.test\n")) == ["b.test.", "c.test."]
    assert searched(read("search b.test c.test\ndomain a.test ignored\n")) == ["a.test."]


@pytest.mark.parametrize("number", [" 3", "\t3", "3,timeout:1", "3x", "+3", "03"])
def test_a_number_is_read_as_far_as_it_is_one(number: str) -> None:
    """As atoi(3) of the C library does, which also skips the space before it."""
    config = read(f"options ndots:{number} rotate\n")
    assert (config.ndots, config.rotate, config.remarks) == (3, True, ())


def test_a_search_domain_may_begin_with_a_dot() -> None:
    config = read("search .a.test . ..b.test c.test\n")
    assert [str(domain) for domain in config.search] == ["a.test.", ".", "c.test."]
    assert len(config.remarks) == 1


def test_the_environment_replaces_the_search_domains_and_adds_options() -> None:
    config = read(
        "search b.test\noptions ndots:2\n",
        environ={"LOCALDOMAIN": "x.test y.test", "RES_OPTIONS": "ndots:4 rotate"},
    )
    assert searched(config) == ["x.test.", "y.test."]
    assert (config.ndots, config.rotate) == (4, True)


def test_the_domain_of_the_host_is_searched_only_if_nothing_else_is_named() -> None:
    assert searched(read("", host_name="n1.corp.test")) == ["corp.test."]
    assert searched(read("", host_name="n1")) == []
    assert searched(read("search a.test\n", host_name="n1.corp.test")) == ["a.test."]


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("search a.test b.test\n", "w", ["w.a.test.", "w.b.test.", "w."]),
        ("search a.test\n", "w.x", ["w.x.", "w.x.a.test."]),
        ("search a.test\noptions ndots:2\n", "w.x", ["w.x.a.test.", "w.x."]),
        ("search a.test\noptions ndots:0\n", "w", ["w.", "w.a.test."]),
        ("search a.test\n", "w.", ["w."]),
        ("", "w", ["w."]),
        ("search .\n", "w", ["w."]),
        ("search . a.test\n", "w", ["w.", "w.a.test."]),
        ("search a.test a.test\n", "w", ["w.a.test.", "w."]),
        ("search a.test\noptions no-tld-query\n", "w", ["w.a.test."]),
        ("search a.test\noptions no-tld-query\n", "w.x", ["w.x.", "w.x.a.test."]),
        (f"search {'.'.join(['x' * 60] * 4)} a.test\n", "worker-of-a-fleet", ["worker-of-a-fleet.a.test.",
                                                                              "worker-of-a-fleet."]),
    ],
)  # fmt: skip
def test_candidates_follow_search_and_ndots(text: str, query: str, expected: list[str]) -> None:
    assert candidates(text, query) == expected


def test_a_server_says_how_it_is_reached() -> None:
    assert ServerAddress("10.0.0.1").sockaddr() == ("10.0.0.1", 53)
    assert ServerAddress("fdaa::3", "", 5353).sockaddr() == ("fdaa::3", 5353, 0, 0)
    assert ServerAddress("fe80::1", "7").sockaddr() == ("fe80::1", 53, 0, 7)
    assert ServerAddress("fdaa::3").family == socket.AF_INET6
    assert str(ServerAddress("fdaa::3", "", 5353)) == "[fdaa::3]:5353"
    assert str(ServerAddress("10.0.0.1", "", 5353)) == "10.0.0.1:5353"
    with pytest.raises(OSError, match=r"."):
        ServerAddress("fe80::1", "no-such-interface0").sockaddr()


@given(st.text(st.sampled_from("nameservrch doptins:.#;%0159af\t\r\n"), max_size=80))
@example("nameserver \ud800\n")
@example("search \x00 " + "x" * 300)
@example("options ndots:" + "9" * 5000)
def test_any_text_is_read(text: str) -> None:
    config = read(f"{text}\nnameserver 10.0.0.1\n")
    assert config.servers
    assert all(parse_server(server.ip) == ServerAddress(server.ip) for server in config.servers)
