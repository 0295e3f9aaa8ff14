"""The environment: every variable, its allowed values, and the error for any other value."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from fleetlm.cookies import COOKIE_MAX_LENGTH
from fleetlm.errors import SettingsError
from fleetlm.settings import Settings

COOKIE = "kaeluo4Uo6Xei3shohg0aiQu"
LONGEST = "".join(f"{number:04x}" for number in range(COOKIE_MAX_LENGTH // 4))
OURS = [
    "DNS_CLUSTER_QUERY",
    "DNS_CLUSTER_NODE_BASENAME",
    "DNS_POLL_INTERVAL_MS",
    "FLEETLM_NODE_IP",
    "FLEETLM_NODE_PORT",
    "FLEETLM_NODE_SLOT",
    "FLEETLM_COOKIE",
    "FLEETLM_COOKIE_FILE",
    "FLEETLM_COOKIE_OLD",
    "FLEETLM_BIND",
    "FLEETLM_INSECURE",
    "FLEETLM_REQUIRE_COOKIE",
    "FLEETLM_CLUSTER",
    "FLEETLM_ALLOWED_NETWORKS",
    "FLEETLM_NODE_TIMEOUT_MS",
    "FLEETLM_DRAIN_MS",
    "FLEETLM_PEERS_MAY",
    "FLEETLM_REMOTE",
    "FLEETLM_OPS",
    "FLEETLM_OPS_TOKEN",
    "FLEETLM_OPS_TOKEN_FILE",
    "FLEETLM_LOCAL_ROAD",
    "FLEETLM_DEBUG",
    "FLEETLM_DNS_SERVER",
    "FLEETLM_LOG",
    "FLEETLM_PRUNE_AFTER_LOOKUPS",
]


def refused(**env: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(env)
    return caught.value


# ── what is allowed ──────────────────────────────────────────────────────────────────────────────


def test_defaults() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert not settings.clustering
    assert settings.dns_query is None
    assert settings.node_basename == "fleetlm"
    assert settings.poll_interval_s == 5.0
    assert settings.node_ports == (4370, 4385)
    assert settings.node_timeout_s == 8.0
    assert settings.cluster == ""
    assert settings.cookie is None
    assert settings.node_ip is settings.dns_server is None
    assert settings.remote is True
    assert settings.debug is False
    assert settings.warnings == ()


GOOD: list[tuple[str, str, str, Any]] = [
    ("DNS_CLUSTER_QUERY", "worker", "dns_query", "worker"),
    ("DNS_CLUSTER_QUERY", " worker ", "dns_query", "worker"),
    ("DNS_CLUSTER_QUERY", "tasks.worker", "dns_query", "tasks.worker"),
    ("DNS_CLUSTER_QUERY", "my_app.internal.", "dns_query", "my_app.internal."),
    ("DNS_CLUSTER_QUERY", "a.default.svc.cluster.local", "dns_query", "a.default.svc.cluster.local"),
    ("DNS_CLUSTER_QUERY", "10.0.0.1", "dns_query", "10.0.0.1"),
    ("DNS_CLUSTER_QUERY", "10.0.0.1, FDAA::0:2,", "dns_query", "10.0.0.1,fdaa::2"),
    ("DNS_CLUSTER_QUERY", "a.test, b.test.,a.test", "dns_query", "a.test,b.test."),
    ("DNS_CLUSTER_QUERY", "worker,10.0.0.1,", "dns_query", "worker,10.0.0.1"),
    ("DNS_CLUSTER_QUERY", "_fleetlm._tcp.workers", "dns_query", "_fleetlm._tcp.workers"),
    ("DNS_CLUSTER_QUERY", "_w._tcp.a.svc.,b,10.0.0.1", "dns_query", "_w._tcp.a.svc.,b,10.0.0.1"),
    ("DNS_CLUSTER_QUERY", "_web._canary.service.consul", "dns_query", "_web._canary.service.consul"),
    ("DNS_CLUSTER_QUERY", "a._tcp.b", "dns_query", "a._tcp.b"),
    ("DNS_CLUSTER_QUERY", "", "dns_query", None),
    ("DNS_CLUSTER_QUERY", "  \t ", "dns_query", None),
    ("DNS_CLUSTER_NODE_BASENAME", "my-app_1.x", "node_basename", "my-app_1.x"),
    ("DNS_CLUSTER_NODE_BASENAME", "x" * 64, "node_basename", "x" * 64),
    ("DNS_POLL_INTERVAL_MS", "5000", "poll_interval_s", 5.0),
    ("DNS_POLL_INTERVAL_MS", " 5000 ", "poll_interval_s", 5.0),
    ("DNS_POLL_INTERVAL_MS", "1", "poll_interval_s", 0.001),
    ("DNS_POLL_INTERVAL_MS", "+250", "poll_interval_s", 0.25),
    ("DNS_POLL_INTERVAL_MS", "0100", "poll_interval_s", 0.1),
    ("DNS_POLL_INTERVAL_MS", "86400000", "poll_interval_s", 86_400.0),
    ("FLEETLM_NODE_IP", "10.0.0.7", "node_ip", "10.0.0.7"),
    ("FLEETLM_NODE_IP", "FDAA:0::A2", "node_ip", "fdaa::a2"),
    ("FLEETLM_NODE_IP", "[::1]", "node_ip", "::1"),
    ("FLEETLM_NODE_IP", "eth1", "node_ip", "eth1"),
    ("FLEETLM_NODE_IP", " wg-fleet.100 ", "node_ip", "wg-fleet.100"),
    ("FLEETLM_NODE_IP", "10.8.0.0/16", "node_ip", "10.8.0.0/16"),
    ("FLEETLM_NODE_IP", "FD00::/8", "node_ip", "fd00::/8"),
    ("FLEETLM_NODE_PORT", "1", "node_ports", (1, 1)),
    ("FLEETLM_NODE_PORT", "65535", "node_ports", (65_535, 65_535)),
    ("FLEETLM_NODE_PORT", "4370-4377", "node_ports", (4370, 4377)),
    ("FLEETLM_NODE_PORT", " 5000 - 5255 ", "node_ports", (5000, 5255)),
    ("FLEETLM_NODE_SLOT", "0", "node_slot", 0),
    ("FLEETLM_NODE_SLOT", " 15 ", "node_slot", 15),
    ("FLEETLM_COOKIE", COOKIE, "cookie", COOKIE),
    ("FLEETLM_COOKIE", f" {COOKIE}\n", "cookie", COOKIE),
    ("FLEETLM_COOKIE", COOKIE[:16], "cookie", COOKIE[:16]),
    ("FLEETLM_COOKIE", LONGEST, "cookie", LONGEST),
    ("FLEETLM_BIND", "*", "bind", "*"),
    ("FLEETLM_BIND", "[FD00::7]", "bind", "fd00::7"),
    ("FLEETLM_BIND", "eth1", "bind", "eth1"),
    ("FLEETLM_BIND", "10.8.0.0/16", "bind", "10.8.0.0/16"),
    ("FLEETLM_INSECURE", "1", "insecure", True),
    ("FLEETLM_REQUIRE_COOKIE", "0", "require_cookie", False),
    ("FLEETLM_CLUSTER", "blue", "cluster", "blue"),
    ("FLEETLM_CLUSTER", "", "cluster", ""),
    ("FLEETLM_ALLOWED_NETWORKS", "10.0.0.0/8", "allowed_networks", ("10.0.0.0/8",)),
    ("FLEETLM_ALLOWED_NETWORKS", " 10.1.2.3 , FD00::/8 ", "allowed_networks", ("10.1.2.3/32", "fd00::/8")),
    ("FLEETLM_CLUSTER", "grün/2", "cluster", "grün/2"),
    ("FLEETLM_NODE_TIMEOUT_MS", "200", "node_timeout_s", 0.2),
    ("FLEETLM_DRAIN_MS", "0", "drain_s", 0.0),
    ("FLEETLM_DRAIN_MS", "9500", "drain_s", 9.5),
    ("FLEETLM_REMOTE", "on", "remote", True),
    ("FLEETLM_REMOTE", "off", "remote", False),
    ("FLEETLM_OPS", "off", "ops", None),
    ("FLEETLM_OPS", "127.0.0.1:4380", "ops", "127.0.0.1:4380"),
    ("FLEETLM_OPS", " localhost:0 ", "ops", "127.0.0.1:0"),
    ("FLEETLM_OPS", "[::1]:4380", "ops", "[::1]:4380"),
    ("FLEETLM_OPS", "127.0.0.1:4380-4395", "ops", "127.0.0.1:4380-4395"),
    ("FLEETLM_LOCAL_ROAD", "off", "local_road", False),
    ("FLEETLM_LOCAL_ROAD", "on", "local_road", True),
    ("FLEETLM_DEBUG", "0", "debug", False),
    ("FLEETLM_DEBUG", "1", "debug", True),
    ("FLEETLM_DNS_SERVER", "10.0.0.2", "dns_server", ("10.0.0.2", 53)),
    ("FLEETLM_DNS_SERVER", "127.0.0.1:8600", "dns_server", ("127.0.0.1", 8600)),
    ("FLEETLM_DNS_SERVER", "fdaa::3", "dns_server", ("fdaa::3", 53)),
    ("FLEETLM_DNS_SERVER", "[fdaa::3]:5353", "dns_server", ("fdaa::3", 5353)),
    ("FLEETLM_LOG", "text", "log", "text"),
    ("FLEETLM_LOG", "json", "log", "json"),
    ("FLY_PRIVATE_IP", "fdaa:0:1::3", "fly_private_ip", "fdaa:0:1::3"),
    ("FLY_PRIVATE_IP", "", "fly_private_ip", None),
    ("POD_IP", "10.1.2.3", "pod_ip", "10.1.2.3"),
    ("POD_IP", " ", "pod_ip", None),
]


@pytest.mark.parametrize(("variable", "text", "name", "value"), GOOD)
def test_good_values(variable: str, text: str, name: str, value: object) -> None:
    settings = Settings.from_env({variable: text})
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    assert settings == Settings().replace(**{name: value})


def test_a_query_turns_clustering_on() -> None:
    assert Settings.from_env({"DNS_CLUSTER_QUERY": "worker"}).clustering
    assert not Settings.from_env({"DNS_CLUSTER_QUERY": "  "}).clustering


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in OURS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DNS_CLUSTER_QUERY", "worker")
    monkeypatch.setenv("FLEETLM_NODE_PORT", "4371")
    settings = Settings.from_env()
    assert (settings.dns_query, settings.node_ports) == ("worker", (4371, 4371))


# ── what is not ──────────────────────────────────────────────────────────────────────────────────

NAME = "a DNS name such as worker"
PRUNE = "lookups in a row, a whole number from 1 to 1,000,000"
POLL = "milliseconds, a whole number from 1 to 86,400,000"
DRAIN = "milliseconds, a whole number from 0 to 86,400,000"
BASE = "1 to 64 of A-Z a-z 0-9 _ . -"
NETWORKS = "networks with commas between them, such as 10.0.0.0/8,fd00::/8"
ADDRESS = "one IPv4 or IPv6 address, without a port"
PORT = "a port, a whole number from 1 to 65,535"
PORTS = "a port from 1 to 65,535, or a range of at most 256 such as 4370-4385"
SLOT = "the node's place in the range of FLEETLM_NODE_PORT, a whole number from 0 to 255"
SILENCE = "milliseconds, a whole number from 200 to 86,400,000"
SERVER = "ip or ip:port of a name server ([ip]:port for IPv6)"

BAD: list[tuple[str, str, str]] = [
    *(("DNS_CLUSTER_QUERY", text, NAME) for text in ("http://worker", "worker:4370", "a b")),
    *(("DNS_CLUSTER_QUERY", text, NAME) for text in (".", "a..b", "-a", "a-", "wörker", "*.a")),
    *(("DNS_CLUSTER_QUERY", text, NAME) for text in ("x" * 64, ".".join(["x" * 60] * 5), "a/b")),
    *(("DNS_CLUSTER_QUERY", text, "IP addresses with commas") for text in (",", "a,b c", "10.0.0.1,w:1")),
    *(("DNS_CLUSTER_QUERY", text, NAME) for text in ("10.0.0.256", "10.0.0.1,10.0.0", "a,-b")),
    ("DNS_CLUSTER_QUERY", ",".join(f"a{n}.test" for n in range(17)), "at most 16 DNS names"),
    *(("FLEETLM_PRUNE_AFTER_LOOKUPS", text, PRUNE) for text in ("0", "-1", "", "never", "1000001")),
    *(("DNS_CLUSTER_NODE_BASENAME", text, BASE) for text in ("", " ", "a b", "a@b", "x" * 65, "ä")),
    *(("DNS_POLL_INTERVAL_MS", text, POLL) for text in ("0", "-1", "5s", "1.5", "", "  ", "5_000")),
    *(("DNS_POLL_INTERVAL_MS", text, POLL) for text in ("٥", "5 000", "1e3", "0x10", "five", "--1")),
    *(("DNS_POLL_INTERVAL_MS", text, POLL) for text in ("86400001", "9" * 5000, "inf", "nan", "+")),
    *(("FLEETLM_NODE_IP", text, ADDRESS) for text in ("", "10.0.0.7:4370", "10.0.0.1/8", "eth0:1", "a b")),
    *(("FLEETLM_NODE_IP", text, ADDRESS) for text in ("fe80::1%eth0", "[::1]:4370", "10.0.0", "fd00:::1")),
    *(("FLEETLM_NODE_IP", text, ADDRESS) for text in ("worker-1.example.org", "/", "10.0.0.0/33", "1/eth0")),
    *(
        ("FLEETLM_NODE_IP", text, "an address that peers can connect to")
        for text in ("0.0.0.0", "::", "224.0.0.1", "ff02::1")
    ),
    *(("FLEETLM_NODE_PORT", text, PORTS) for text in ("0", "65536", "-1", "", "http", "4370/tcp")),
    *(("FLEETLM_NODE_PORT", text, PORTS) for text in ("4385-4370", "4370-", "-4385", "1-257", "65000-65536")),
    *(("FLEETLM_NODE_PORT", text, PORTS) for text in ("4370,4371", "4370-4380-4385", "4370..4385", "٤٣٧٠")),
    *(("FLEETLM_NODE_SLOT", text, SLOT) for text in ("", "-1", "256", "one", "1.0")),
    *(("FLEETLM_COOKIE", text, "16 to 4,096 characters") for text in ("", "x" * 15, "y" * 4097)),
    *(("FLEETLM_COOKIE", text, "that nobody can guess") for text in ("x" * 16, "changemechangeme")),
    *(("FLEETLM_BIND", text, "or * for all addresses") for text in ("", "eth0:1", "10.0.0.7:4370")),
    *(("FLEETLM_INSECURE", text, "0 or 1") for text in ("", "yes")),
    *(("FLEETLM_REQUIRE_COOKIE", text, "0 or 1") for text in ("", "true")),
    *(("FLEETLM_CLUSTER", text, "up to 128 printable") for text in ("x" * 129, "a\nb", "\x00")),
    *(
        ("FLEETLM_ALLOWED_NETWORKS", text, NETWORKS)
        for text in ("", " ", "10.0.0.0/33", "private", "10.0.0.1/8")
    ),
    *(
        ("FLEETLM_ALLOWED_NETWORKS", text, NETWORKS)
        for text in ("10.0.0.0/8,", "10.0.0.0/8;fd00::/8", "fe80::%1/64")
    ),
    *(("FLEETLM_DRAIN_MS", text, DRAIN) for text in ("-1", "25s", "", "86400001")),
    *(("FLEETLM_NODE_TIMEOUT_MS", text, SILENCE) for text in ("199", "0", "8s", "", "86400001")),
    *(("FLEETLM_REMOTE", text, "on or off") for text in ("", "1", "ON", "true", "no")),
    *(("FLEETLM_OPS", text, "ip:port, [ip]:port") for text in ("", "4380", "on", "1", "host:1", "::1:4380")),
    *(
        ("FLEETLM_OPS", text, "ip:port, [ip]:port")
        for text in ("127.0.0.1", "127.0.0.1:", "[::1%lo]:1", "[::1]")
    ),
    *(
        ("FLEETLM_OPS", text, "ip:port, [ip]:port")
        for text in ("127.0.0.1:65536", "127.0.0.1:9-1", "http://x:1")
    ),
    *(("FLEETLM_DEBUG", text, "0 or 1") for text in ("", "true", "on", "2")),
    *(("FLEETLM_LOG", text, "text or json") for text in ("", "JSON", "logfmt")),
    *(("FLEETLM_DNS_SERVER", text, SERVER) for text in ("", "ns1", "ns1:53", "fdaa::3::53", ":53")),
    *(("FLEETLM_DNS_SERVER", text, PORT) for text in ("10.0.0.2:0", "10.0.0.2:", "[::1]:x")),
    *(("FLY_PRIVATE_IP", text, ADDRESS) for text in ("nowhere", "10.0.0.1:1")),
    *(("POD_IP", text, ADDRESS) for text in ("nowhere", "10.0.0.1,fdaa::1")),
]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("_tcp.workers.svc", "write _fleetlm._tcp.workers.svc"),
        ("a,_TCP", "write _fleetlm._TCP.workers.example"),
        ("_fleetlm.workers.svc.", "write _fleetlm._tcp.workers.svc"),
        ("_fleetlm", "write _fleetlm._tcp.workers.example"),
        ("_fleetlm._udp.workers", "Nodes speak TCP: write _fleetlm._tcp.workers"),
        ("_fleetlm._tcp.", "The domain is missing: write _fleetlm._tcp.workers.example"),
    ],
)
def test_an_incomplete_srv_name_is_refused_with_the_complete_one(text: str, hint: str) -> None:
    error = refused(DNS_CLUSTER_QUERY=text)
    assert error.allowed.startswith("an SRV name such as _fleetlm._tcp.")
    assert hint in str(error)


@pytest.mark.parametrize(("variable", "text", "allowed"), BAD, ids=lambda v: ascii(v)[:30])
def test_bad_values_name_variable_value_and_what_is_allowed(variable: str, text: str, allowed: str) -> None:
    error = refused(**{variable: text})
    assert error.variable == variable
    assert allowed in error.allowed
    sentence = str(error)
    assert sentence.startswith(f"{variable} is ")
    assert f"allowed: {error.allowed}." in sentence
    if variable == "FLEETLM_COOKIE":
        assert error.value == f"({len(text)} characters)"
        assert not text or text not in sentence
    else:
        assert error.value == text
        assert repr(text) in sentence


def test_bad_values_are_refused_where_clustering_is_off_too() -> None:
    assert refused(DNS_CLUSTER_QUERY="", DNS_POLL_INTERVAL_MS="0").variable == "DNS_POLL_INTERVAL_MS"


def test_what_to_do_about_an_interval() -> None:
    assert refused(DNS_POLL_INTERVAL_MS="5s").hint == ("Write digits only, without a unit or a fraction.")
    assert refused(DNS_POLL_INTERVAL_MS="").hint == "Unset it for the default."
    assert str(refused(DNS_POLL_INTERVAL_MS="0")) == (
        "DNS_POLL_INTERVAL_MS is '0'; allowed: milliseconds, a whole number from 1 to 86,400,000."
    )


# ── names that are not ours ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("variable", "guess"),
    [
        ("FLEETLM_NODE_PROT", "FLEETLM_NODE_PORT"),
        ("FLEETLM_NODEIP", "FLEETLM_NODE_IP"),
        ("FLEETLM_NODE_TIMEOUT", "FLEETLM_NODE_TIMEOUT_MS"),
        ("FLEETLM_DNSSERVER", "FLEETLM_DNS_SERVER"),
        ("FLEETLM_CLUSTERS", "FLEETLM_CLUSTER"),
        ("FLEETLM_COOKIEFILE", "FLEETLM_COOKIE_FILE"),
        ("FLEETLM_node_port", None),
        ("FLEETLM_", None),
        ("FLEETLM_QQQQQQQQQQQQQQQQ", None),
    ],
)
def test_an_unknown_name_has_a_guess(variable: str, guess: str | None) -> None:
    error = refused(**{variable: "1"})
    assert error.variable == variable
    assert "one of FLEETLM_NODE_IP, FLEETLM_NODE_PORT" in error.allowed
    if guess is not None:
        assert error.hint == f"Did you mean {guess}?"
    else:
        assert error.hint


def test_a_misspelt_secret_is_not_shown() -> None:
    for variable in ("FLEETLM_COOKY", "FLEETLM_SECRET", "FLEETLM_KOOKIE", "FLEETLM_CLUSTR", "FLEETLM_X"):
        error = refused(**{variable: COOKIE})
        assert COOKIE not in str(error)
        assert COOKIE not in repr(error)


@pytest.mark.parametrize(
    "variable",
    [
        "FLEETLM_SERVICE_HOST",
        "FLEETLM_SERVICE_PORT",
        "FLEETLM_SERVICE_PORT_DIST",
        "FLEETLM_PORT",
        "FLEETLM_PORT_4370_TCP",
        "FLEETLM_PORT_4370_TCP_ADDR",
        "FLEETLM_PORT_4370_TCP_PORT",
        "FLEETLM_PORT_4370_TCP_PROTO",
        "FLEETLM_PORT_53_UDP_ADDR",
        "FLEETLM_WORKER_SERVICE_HOST",
        "FLEETLM_WORKER_SERVICE_PORT_METRICS",
        "FLEETLM_WORKER_PORT_4370_TCP",
        "FLEETLM_WORKER_PORT_9_SCTP",
    ],
)
def test_the_service_links_of_kubernetes_are_passed_over(variable: str) -> None:
    assert Settings.from_env({variable: "tcp://10.96.0.1:4370"}) == Settings()


def test_the_link_of_a_service_with_a_longer_name_is_passed_over() -> None:
    """Kubernetes sets ``FLEETLM_WORKER_PORT`` for a Service fleetlm-worker."""
    settings = Settings.from_env({"FLEETLM_WORKER_PORT": "tcp://10.96.0.1:4370"})
    assert settings == Settings()
    assert refused(FLEETLM_WORKER_PORT="4370").variable == "FLEETLM_WORKER_PORT"


def test_a_service_link_in_a_known_variable_is_explained() -> None:
    error = refused(FLEETLM_NODE_PORT="tcp://10.96.0.1:4370")
    assert error.variable == "FLEETLM_NODE_PORT"
    assert error.value == "tcp://10.96.0.1:4370"
    assert "service link that Kubernetes injects" in str(error)
    assert "enableServiceLinks: false" in str(error)


def test_other_variables_are_ignored() -> None:
    env = {"PATH": "/bin", "FLEET": "x", "fleetlm_debug": "x", "XFLEETLM_DEBUG": "x", "DNS": "x"}
    assert Settings.from_env(env) == Settings()


def test_a_likely_misspelling_with_a_shared_prefix_is_a_warning() -> None:
    settings = Settings.from_env({"DNS_CLUSTER_QUERRY": "worker", "DNS_DOMAIN": "x"})
    assert settings.warnings == (
        "DNS_CLUSTER_QUERRY is set, but fleetlm does not know it: did you mean DNS_CLUSTER_QUERY?",
    )
    assert settings.dns_query is None


@pytest.mark.parametrize(("interval_ms", "questions"), [("1", "2,000"), ("5", "400"), ("99", "20")])
def test_a_very_short_poll_interval_is_allowed_with_one_clear_warning(
    interval_ms: str, questions: str
) -> None:
    settings = Settings.from_env({"DNS_CLUSTER_QUERY": "worker", "DNS_POLL_INTERVAL_MS": interval_ms})
    assert settings.poll_interval_s == int(interval_ms) / 1000
    (warning,) = settings.warnings
    assert warning.startswith(f"DNS_POLL_INTERVAL_MS is {interval_ms}: ")
    assert f"up to {questions} questions a second" in warning


def test_an_interval_that_burdens_nobody_has_no_warning() -> None:
    assert Settings.from_env({"DNS_CLUSTER_QUERY": "a", "DNS_POLL_INTERVAL_MS": "100"}).warnings == ()
    assert Settings.from_env({"DNS_POLL_INTERVAL_MS": "1"}).warnings == ()  # clustering is off


# ── what follows from them ───────────────────────────────────────────────────────────────────────


def test_what_is_printed_at_boot() -> None:
    assert Settings().effective() == {
        "DNS_CLUSTER_QUERY": "(unset: clustering is off)",
        "DNS_CLUSTER_NODE_BASENAME": "fleetlm",
        "DNS_POLL_INTERVAL_MS": "5000",
        "FLEETLM_NODE_IP": "(detected)",
        "FLEETLM_NODE_PORT": "4370-4385",
        "FLEETLM_NODE_SLOT": "(the first free port)",
        "FLEETLM_COOKIE": "(unset: plain text)",
        "FLEETLM_COOKIE_OLD": "(unset)",
        "FLEETLM_BIND": "(the node's address)",
        "FLEETLM_INSECURE": "0",
        "FLEETLM_REQUIRE_COOKIE": "0",
        "FLEETLM_CLUSTER": "(empty)",
        "FLEETLM_ALLOWED_NETWORKS": "(any)",
        "FLEETLM_NODE_TIMEOUT_MS": "8000",
        "FLEETLM_DRAIN_MS": "25000",
        "FLEETLM_PEERS_MAY": "call,spawn,exit,register",
        "FLEETLM_REMOTE": "on",
        "FLEETLM_OPS": "off",
        "FLEETLM_OPS_TOKEN": "(unset)",
        "FLEETLM_LOCAL_ROAD": "on",
        "FLEETLM_DEBUG": "0",
        "FLEETLM_DNS_SERVER": "(system)",
        "FLEETLM_LOG": "text",
        "FLEETLM_PRUNE_AFTER_LOOKUPS": "(never)",
    }
    env = {
        "DNS_CLUSTER_QUERY": "worker",
        "DNS_CLUSTER_NODE_BASENAME": "app",
        "DNS_POLL_INTERVAL_MS": "12345678",
        "FLEETLM_NODE_IP": "fdaa::2",
        "FLEETLM_NODE_PORT": "4371",
        "FLEETLM_NODE_SLOT": "0",
        "FLEETLM_BIND": "fdaa::/16",
        "FLEETLM_INSECURE": "1",
        "FLEETLM_REQUIRE_COOKIE": "0",
        "FLEETLM_CLUSTER": "blue",
        "FLEETLM_ALLOWED_NETWORKS": "10.0.0.0/8,fd00::/8",
        "FLEETLM_NODE_TIMEOUT_MS": "1234567",
        "FLEETLM_DRAIN_MS": "9500",
        "FLEETLM_PEERS_MAY": "call,register",
        "FLEETLM_REMOTE": "off",
        "FLEETLM_OPS": "127.0.0.1:4380",
        "FLEETLM_LOCAL_ROAD": "off",
        "FLEETLM_DEBUG": "1",
        "FLEETLM_DNS_SERVER": "[fdaa::3]:5353",
        "FLEETLM_LOG": "json",
        "FLEETLM_PRUNE_AFTER_LOOKUPS": "5",
    }
    shown = Settings.from_env(env).effective()
    unset = {"FLEETLM_COOKIE": "(unset: plain text)", "FLEETLM_COOKIE_OLD": "(unset)"}
    assert shown == env | unset | {"FLEETLM_OPS_TOKEN": "(unset)"}
    assert set(shown) <= set(OURS)


def test_times_that_follow() -> None:
    settings = Settings()
    assert settings.heartbeat_timeout_s == settings.node_timeout_s, "silence ends no peer before that time"
    assert settings.longest_silence_s == 1.25 * settings.node_timeout_s, "and every peer soon after it"
    # A PING late by its slack, and then the time-out late by its own.
    late_s = settings.heartbeat_interval_s + 2 * settings.heartbeat_slack_s
    assert settings.heartbeat_timeout_s + late_s == settings.longest_silence_s
    for poll_ms in ("1", "250", "1000", "5000", "86400000"):
        lifetime_s = Settings.from_env({"DNS_POLL_INTERVAL_MS": poll_ms}).dns_lifetime_s
        assert 0.2 <= lifetime_s <= 3.0
        assert lifetime_s <= max(0.2, int(poll_ms) / 1000)


def test_a_copy_with_changes() -> None:
    settings = Settings()
    assert settings.replace(node_ports=(1, 1)).node_ports == (1, 1)
    assert settings.node_ports == (4370, 4385)
    with pytest.raises(SettingsError, match=r"Settings\.node_prt is 1; .* Did you mean node_ports\?"):
        settings.replace(node_prt=1)
    with pytest.raises(SettingsError, match=r"Settings\.kooky is \(masked\)"):
        settings.replace(kooky=COOKIE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.node_ports = (1, 1)  # type: ignore[misc]


def test_every_bound_is_positive() -> None:
    for field in dataclasses.fields(Settings):
        value = getattr(Settings(), field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert value > 0, field.name


VARIABLES = st.one_of(
    st.sampled_from([*OURS, "FLY_PRIVATE_IP", "POD_IP", "PATH", "FLEETLM_SERVICE_HOST"]),
    st.text("ABCDEFGMLOPRST_0", max_size=8).map(lambda tail: "FLEETLM_" + tail),
    st.text("CLUSTERQY_", max_size=10).map(lambda tail: "DNS_" + tail),
    st.text(max_size=10),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.integers(-5, 100_000).map(str),
    st.ip_addresses().map(str),
    st.ip_addresses().map(lambda ip: f"[{ip}]:53"),
    st.sampled_from(["", " ", "worker", "on", "off", "1", "tcp://1.2.3.4:5", COOKIE, "1.2.3.4,::1"]),
)


@given(st.dictionaries(VARIABLES, TEXTS, max_size=5))
@example({"FLEETLM_COOKIE_FILE": "\ud800"})
@example({"FLEETLM_OPS": ":4380", "FLEETLM_OPS_TOKEN": "k7Qm2vX9pLr4Tz8wNc3B"})
@example({"FLEETLM_NODE_PORT": "\udcff"})
@example({"FLEETLM_\udcff": "\udcff"})
@example({"DNS_CLUSTER_QUERY": "\udcff"})
def test_any_environment_gives_settings_or_an_error_that_reads(env: dict[str, str]) -> None:
    try:
        settings: Settings | None = Settings.from_env(env)
    except SettingsError as refusal:
        error = refusal
        settings = None
    if settings is None:
        assert error.variable in env
        assert str(error).startswith(f"{error.variable} is ")
        assert error.allowed
    else:
        again = {
            variable: value for variable, value in settings.effective().items() if not value.startswith("(")
        }
        again["FLEETLM_REQUIRE_COOKIE"] = "0"
        again.pop("FLEETLM_OPS")  # Elsewhere than on loopback it needs its token, which is not shown.
        hidden = ("FLEETLM_COOKIE", "FLEETLM_REQUIRE_COOKIE", "FLEETLM_OPS", "FLEETLM_OPS_TOKEN")
        masked = dict.fromkeys(hidden, "")
        assert Settings.from_env(again).effective() | masked == settings.effective() | masked


@pytest.mark.parametrize(
    ("text", "rights"),
    [
        ("call", {"call"}),
        (" register , call,call", {"call", "register"}),
        ("none", set()),
        ("call,spawn,exit,register", {"call", "spawn", "exit", "register"}),
    ],
)
def test_what_peers_may_do(text: str, rights: set[str]) -> None:
    settings = Settings.from_env({"FLEETLM_PEERS_MAY": text})
    assert settings.peers_may == rights
    assert settings == Settings(peers_may=rights)  # type: ignore[arg-type]
    assert Settings.from_env({"FLEETLM_PEERS_MAY": settings.effective()["FLEETLM_PEERS_MAY"]}) == settings


@pytest.mark.parametrize("text", ["", "all", "call;spawn", "call,", "none,call", "Call"])
def test_rights_that_there_are_not_are_refused(text: str) -> None:
    assert "any of call, spawn, exit, register" in str(refused(FLEETLM_PEERS_MAY=text))


@pytest.mark.parametrize("value", ["call", None, {"all"}, 5, {"call", 5}, [["call"]]])
def test_rights_of_the_wrong_type_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"Settings\.peers_may is .*a set of call, spawn, exit, register"):
        Settings(peers_may=value)


BY_HAND: list[tuple[dict[str, Any], str]] = [
    ({"node_ip": "localhost:1"}, "Settings.node_ip is 'localhost:1'; allowed: one IPv4 or IPv6 address"),
    ({"node_ip": "0.0.0.0"}, "0.0.0.0 is a wildcard or multicast address"),
    ({"node_ip": "fe80::7"}, "fe80::7 is link-local: it means another machine on each interface"),
    ({"dns_query": "bücher.example"}, "A name with other letters is written in its ASCII form (Punycode"),
    ({"node_ports": 4370}, "is 4370; allowed: the first and the last port of a range of at most 256"),
    ({"node_ports": ("4370", "4385")}, "Settings.node_ports is ('4370', '4385'); allowed: the first and"),
    ({"node_ports": (0, 5)}, "Settings.node_ports is (0, 5); allowed: the first and the last port"),
    ({"node_ports": (4385, 4370)}, "Write the lower port first: 4370-4385"),
    ({"node_ports": (1, 257)}, "These are 257 ports."),
    ({"node_ports": (4370, 4371), "node_slot": 2}, "Settings.node_slot is 2; allowed: a place in the range"),
    ({"node_slot": 16}, "Widen the range: FLEETLM_NODE_PORT=4370-"),
    ({"node_basename": "a b"}, "Settings.node_basename is 'a b'; allowed: 1 to 64 of"),
    ({"node_basename": None}, "Settings.node_basename is None; allowed: a text"),
    ({"dns_query": "a b"}, "Settings.dns_query is 'a b'; allowed: a DNS name"),
    ({"cluster": "x" * 129}, "allowed: up to 128 printable characters"),
    (
        {"call_timeout_s": -1},
        "call_timeout_s is -1; allowed: seconds, a number from 1e-06 to 86,400",
    ),
    ({"call_timeout_s": 10**5_000}, "Settings.call_timeout_s is <int of 16,610 bits>; allowed: seconds"),
    ({"tick_s": math.nan}, "Settings.tick_s is nan; allowed: seconds"),
    ({"tick_s": 0.0}, "Settings.tick_s is 0.0; allowed: seconds"),
    ({"drain_s": 90_000}, "Settings.drain_s is 90000; allowed: seconds, a number from 0 to 86,400"),
    ({"node_timeout_s": 0.1}, "allowed: seconds, a number from 0.2 to 86,400"),
    ({"poll_jitter": 1.5}, "Settings.poll_jitter is 1.5; allowed: a number from 0 to 1"),
    ({"mailbox_limit": True}, "allowed: a whole number from 1. This is of type bool"),
    ({"window_bytes": 1e6}, "allowed: bytes, a whole number from 1. This is of type float"),
    ({"max_nesting": 129}, "allowed: a whole number from 1 to 128"),
    ({"blocking_processes": 0}, "Settings.blocking_processes is 0; allowed: a whole number from 1"),
    ({"remote": "off"}, "Settings.remote is 'off'; allowed: True or False"),
    ({"dns_server": "1.1.1.1"}, "allowed: the IP address of a name server and its port"),
    ({"dns_server": ("ns1", 53)}, "Settings.dns_server is ('ns1', 53); allowed: the IP address"),
    ({"cookie": "short"}, "Settings.cookie is (masked); allowed: 16 to 4,096 characters"),
    ({"cookie": 5}, "Settings.cookie is (masked); allowed: a text"),
    ({"cookei": "secret"}, "Settings.cookei is (masked); allowed: only known names. Did you mean cookie?"),
    ({"zzzz": 1}, "Settings.zzzz is 1; allowed: only known names. See the fields of `Settings`"),
]


@pytest.mark.parametrize(("fields", "why"), BY_HAND, ids=[str([*fields]) for fields, _ in BY_HAND])
def test_settings_made_by_hand_are_checked(fields: dict[str, Any], why: str) -> None:
    for make in (lambda: Settings(**fields), lambda: Settings().replace(**fields)):
        with pytest.raises(SettingsError) as caught:
            make()
        assert why in str(caught.value)
        assert "secret" not in str(caught.value)


def test_what_the_environment_sets_is_the_same_by_hand() -> None:
    by_hand = Settings(
        node_ip="FD00::1", dns_query=" A.test , 10.0.0.1", dns_server=("::1", 53), poll_interval_s=1,
        node_timeout_s=0.2, prune_after_lookups=None,
    )  # fmt: skip
    assert by_hand.node_ip == "fd00::1"
    assert by_hand.dns_query == "A.test,10.0.0.1"
    assert by_hand.dns_server == ("::1", 53)
    assert pickle.loads(pickle.dumps(by_hand)) == copy.copy(by_hand) == by_hand


def test_a_slot_outside_the_range_is_an_error_at_boot() -> None:
    error = refused(FLEETLM_NODE_PORT="4370-4373", FLEETLM_NODE_SLOT="4")
    assert str(error) == (
        "FLEETLM_NODE_SLOT is '4'; allowed: a place in the range 4370-4373, from 0 to 3. "
        "Widen the range: FLEETLM_NODE_PORT=4370-…."
    )
    assert refused(FLEETLM_NODE_SLOT="16").allowed == "a place in the range 4370-4385, from 0 to 15"
    assert Settings.from_env({"FLEETLM_NODE_SLOT": "15"}).own_ports == range(4385, 4386)


def test_the_ports_to_try_and_the_base_port_follow_from_range_and_slot() -> None:
    assert list(Settings(node_ports=(5000, 5002)).own_ports) == [5000, 5001, 5002]
    assert list(Settings(node_ports=(5000, 5002), node_slot=1).own_ports) == [5001]
    assert Settings(node_ports=(5000, 5002), node_slot=1).base_port == 5000
    srv = Settings(dns_query="10.0.0.1,_fleetlm._tcp.workers.test", node_ports=(20_000, 20_000))
    assert (srv.base_port, list(srv.own_ports)) == (4370, [20_000])
