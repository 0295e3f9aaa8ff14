"""The checks of `fleetlm doctor` on made-up facts, and its report."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from fleetlm.cli.doctor import checks, gather
from fleetlm.cli.doctor.checks import FAIL, OK, WARN, Facts, Finding, PeerFact
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.remote.facts import node_facts, plain
from fleetlm.settings import Settings
from fleetlm.wire.frames import IAm
from tests.support.remote_fakes import FakeNode, node_info, row

ME = "10.0.0.1"
PEER = "10.0.0.2"
COOKIE = "a-secret-of-enough-characters"
ON = Settings().replace(dns_query="worker", cookie=COOKIE)


def answered(*addresses: str, outcome: Outcome = Outcome.ADDRESSES, detail: str = "") -> Answer:
    return Answer(outcome, addresses, detail or f"{len(addresses)} addresses")


def iam(ip: str = PEER, basename: str = "fleetlm", cluster: str = "") -> IAm:
    return IAm(name=f"{basename}@{ip}", incarnation=9, cluster=cluster, connected=1)


def facts(**changes: Any) -> Facts:
    """Return the facts of a healthy cluster of two, without a running node on this machine."""
    values: dict[str, Any] = {
        "settings": ON,
        "own_ip": ME,
        "own_why": "set by POD_IP",
        "own_warning": None,
        "answer": answered(ME, PEER),
        "source": 'DNS name "worker"',
        "peers": [PeerFact(PEER, 4370, None, iam())],
        "node_why": "no node runs here",
    }
    return Facts(**(values | changes))


def running(*rows: Any, **info: Any) -> dict[str, Any]:
    """Return what a running node says about itself."""
    node = FakeNode(f"fleetlm@{ME}", cookie=COOKIE)
    told = node_facts(node)  # type: ignore[arg-type]
    return told | {"info": plain(node_info(name=node.name, peers=rows, **info))}


def one(findings: list[Finding], topic: str | None = None) -> Finding:
    fitting = [finding for finding in findings if topic in (None, finding.topic)]
    assert len(fitting) == 1, fitting
    return fitting[0]


def test_a_healthy_cluster_passes_all_checks() -> None:
    found = checks.judge(
        facts(
            node=running(row(f"fleetlm@{PEER}")),
            port=PeerFact(ME, 4370, None, iam(ME)),
        )
    )
    assert {finding.level for finding in found} == {OK}
    assert {finding.topic for finding in found} == {
        "node", "settings", "own address", "port", "cookie", "dns", "peer", "mesh", "flapping",
    }  # fmt: skip
    assert not checks.failed(found)


def test_every_failure_says_what_to_do_and_reveals_no_secret() -> None:
    unhealthy = [
        facts(answer=answered(outcome=Outcome.EMPTY, detail="NXDOMAIN"), port="in use"),
        facts(peers=[PeerFact(PEER, 4370, why) for why in ("refused", "timeout", "no route")]),
        facts(node=running(row(status="wanted", attempts=3, last_error="wrong_cluster")), port=None),
        facts(own_ip="127.0.0.1"),
    ]
    for each in unhealthy:
        found = checks.judge(each)
        assert checks.failed(found)
        assert all(finding.cure for finding in found if finding.level == FAIL)
        assert COOKIE not in repr(found)


# ── isolated nodes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (answered(ME, PEER), OK, f"({ME}, {PEER})"),
        (answered(ME), WARN, "only this node"),
        (answered(ME), WARN, "normal for the first node"),
        (
            answered(ME, detail="1 address, from /etc/hosts"),
            WARN,
            "end the name in DNS_CLUSTER_QUERY with a dot",
        ),
        (answered(outcome=Outcome.EMPTY, detail="NXDOMAIN"), FAIL, "clusterIP: None"),
        (answered(outcome=Outcome.FAILED, detail="SERVFAIL from 10.0.0.2"), FAIL, "/etc/resolv.conf"),
        (answered(PEER, outcome=Outcome.PARTIAL, detail="1 address, but AAAA: timeout"), WARN, "timeout"),
        (answered(*(f"10.0.1.{n}" for n in range(20))), OK, "and 12 more"),
        (answered(f"{ME}:4370", f"{PEER}:9000"), OK, f"({ME}:4370, {PEER}:9000)"),
        (answered(f"{ME}:4370"), WARN, "only this node"),
        (answered(f"{ME}:4370", f"{ME}:4371"), OK, "4371"),
    ],
)
def test_the_lookup(answer: Answer, level: str, words: str) -> None:
    finding = one(checks.judge_lookup(facts(answer=answer)))
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


@pytest.mark.parametrize("outcome", [Outcome.EMPTY, Outcome.FAILED])
def test_a_service_without_nodes_is_told_what_srv_names_look_like(outcome: Outcome) -> None:
    settings = ON.replace(dns_query="worker,_fleetlm._tcp.worker")
    finding = one(checks.judge_lookup(facts(answer=answered(outcome=outcome), settings=settings)))
    assert finding.level == FAIL
    assert "SRV records" in finding.cure
    assert "_<service>._tcp.service.consul." in finding.cure


def test_a_virtual_address_is_recognised() -> None:
    vip = "172.20.0.9"
    behind = PeerFact(vip, 4370, None, iam(PEER))
    finding = one(checks.judge_lookup(facts(answer=answered(vip), peers=[behind])))
    assert finding.level == FAIL
    assert "virtual address" in finding.text
    assert "tasks.<service>" in finding.cure
    same = PeerFact(vip, 4370, None, iam(vip))
    assert one(checks.judge_lookup(facts(answer=answered(vip), peers=[same]))).level == OK
    mine = facts(answer=answered(vip), peers=[behind], local={vip: True})
    assert one(checks.judge_lookup(mine)).level == OK


def test_clustering_off() -> None:
    off = facts(settings=Settings(), own_ip="127.0.0.1", answer=None, peers=[])
    assert "runs alone" in one(checks.judge_settings(off)).text
    assert checks.judge_lookup(off) == []
    assert not checks.failed(checks.judge(off))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "set by POD_IP"),
        ({"own_warning": "several addresses; set FLEETLM_NODE_IP"}, WARN, "Several addresses; set"),
        ({"own_ip": "127.0.0.1"}, FAIL, "Set FLEETLM_NODE_IP"),
        ({"own_ip": "10.9.9.9"}, WARN, "the DNS answer does not contain it"),
        ({"own_ip": "127.0.0.5", "answer": answered("127.0.0.5", "127.0.0.6")}, OK, "127.0.0.5"),
        ({"answer": answered(outcome=Outcome.FAILED)}, OK, ME),
        ({"answer": answered(f"{ME}:4370", f"{ME}:9000", "[fd00::7]:4370")}, OK, ME),
        ({"answer": answered(f"{ME}:9000")}, WARN, "with the port 9000 (SRV records)"),
        ({"answer": answered(f"{ME}:9000")}, WARN, "Set FLEETLM_NODE_PORT to the port"),
        ({"own_ip": "127.0.0.1", "answer": answered(f"{PEER}:4370")}, FAIL, "Set FLEETLM_NODE_IP"),
        ({"node": running(observed_ips=["192.168.0.9"])}, WARN, "192.168.0.9"),
    ],
)
def test_the_own_address(changes: dict[str, Any], level: str, words: str) -> None:
    finding = one(checks.judge_own_address(facts(**changes)))
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


@pytest.mark.parametrize(
    ("fact", "level", "words"),
    [
        (PeerFact(PEER, 4370, None, iam()), OK, "connected to 1 node"),
        (PeerFact(PEER, 4370, None, None), OK, "accepts connections"),
        (PeerFact(PEER, 4370, "refused"), FAIL, "FLEETLM_NODE_PORT"),
        (PeerFact(PEER, 4370, "timeout"), FAIL, "Allow TCP port 4370"),
        (PeerFact(PEER, 4370, "No route to host"), FAIL, "No route to host"),
        (PeerFact(PEER, 4370, None, "10.0.0.2:4370: another cookie"), FAIL, "FLEETLM_COOKIE"),
        (PeerFact(PEER, 4370, None, iam(cluster="blue")), FAIL, "FLEETLM_CLUSTER"),
        (PeerFact(PEER, 4370, None, iam(basename="other")), FAIL, "DNS_CLUSTER_NODE_BASENAME"),
        (PeerFact(PEER, 4370, None, iam("10.0.0.3")), WARN, "another address"),
        (PeerFact("fdaa::2", 4370, "refused"), FAIL, "[fdaa::2]:4370"),
    ],
)
def test_each_peer(fact: PeerFact, level: str, words: str) -> None:
    finding = checks.judge_peer(ON, fact, up=False, named=True)
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


def test_an_address_that_dns_does_not_name_any_more_is_no_failure() -> None:
    fact = PeerFact(PEER, 4370, "timeout")
    assert checks.judge_peer(ON, fact, up=False, named=False).level == WARN


# ── crash on boot ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("port", "level", "words"),
    [
        (None, OK, "is free"),
        ("Permission denied", FAIL, "cannot be bound: Permission denied"),
        ("10.0.0.1 is no address of this machine", FAIL, "FLEETLM_NODE_IP must be an address of this"),
        (PeerFact(ME, 4370, None, iam(ME)), WARN, f"taken by the node fleetlm@{ME}"),
        (PeerFact(ME, 4370, None, "no ZeroMQ"), FAIL, "ss -tanp"),
    ],
)
def test_the_port_before_a_start(port: Any, level: str, words: str) -> None:
    finding = one(checks.judge_port(facts(port=port)))
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


@pytest.mark.parametrize(
    ("port", "level"),
    [
        (PeerFact(ME, 4370, None, iam(ME)), OK),
        (PeerFact(ME, 4370, None, None), OK),
        (PeerFact(ME, 4370, None, iam(PEER)), FAIL),
        (PeerFact(ME, 4370, "timeout"), FAIL),
        (None, FAIL),
    ],
)
def test_the_port_of_a_running_node(port: Any, level: str) -> None:
    assert one(checks.judge_port(facts(port=port, node=running()))).level == level


def test_a_port_that_peers_reached_is_no_failure_behind_nat() -> None:
    silent = PeerFact(ME, 4370, "timeout")
    found = one(checks.judge_port(facts(node=running(row("fleetlm@10.0.0.2")), port=silent)))
    assert found.level == OK
    assert "1 node reached it there" in found.text
    assert "timeout" in found.text
    alone = one(checks.judge_port(facts(node=running(row("fleetlm@10.0.0.2", status="down")), port=silent)))
    assert alone.level == FAIL


def test_a_path_that_swallows_large_packets_is_a_failure_with_a_guess() -> None:
    fact = PeerFact(PEER, 4370, None, iam(), takes_large=False)
    found = one(checks.judge_peers(facts(peers=[fact])))
    assert found.level == FAIL
    assert "not one of several packets" in found.text
    assert found.cure.startswith("Perhaps")
    assert "MTU" in found.cure


async def test_a_node_that_answers_is_asked_a_large_question_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def probe(_ip: str, _port: int, _settings: Settings, _timeout_s: float, padding: int = 0) -> Any:
        asked.append(padding)
        return "no answer" if padding else iam()

    monkeypatch.setattr(gather, "probe", probe)
    fact = await gather.contact(PEER, ON, ask_who=True)
    assert asked == [0, gather.LARGE_PROBE_BYTES]
    assert fact == PeerFact(PEER, ON.base_port, None, iam(), takes_large=False)


def test_a_guess_is_not_cured_as_a_finding() -> None:
    guess = "10.0.0.2:4370: it accepts connections and closes them at once: perhaps a proxy or a sidecar"
    assert "If the nodes have cookies" in checks.cure_for(guess)


def test_an_environment_that_cannot_be_used_is_exit_code_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gather, "ask_node", lambda _: (None, "none runs", 0))
    monkeypatch.setenv("DNS_POLL_INTERVAL_MS", "5s")
    assert gather.main() == 78
    assert "DNS_POLL_INTERVAL_MS is '5s'" in capsys.readouterr().out
    assert gather.main(as_json=True) == 78
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "not shown"),
        ({"settings": ON.replace(cookie=None)}, WARN, "openssl rand"),
        ({"settings": ON.replace(cookie=None), "own_ip": "127.0.0.1"}, OK, "listens on this machine only"),
        ({"node": running(), "cookie_known": False}, WARN, "Run doctor with the node's"),
    ],
)
def test_the_cookie(changes: dict[str, Any], level: str, words: str) -> None:
    finding = one(checks.judge_cookie(facts(**changes)))
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


# ── nodes that come and go, and the table of a running node ──────────────────────────────────────


def test_flapping() -> None:
    flapping = row(connections=7, last_error="heartbeat timeout")
    finding = one(checks.judge_stability(facts(node=running(flapping, row("fleetlm@10.0.0.3")))))
    assert finding.level == WARN
    assert "came up 7 times; last error: heartbeat timeout" in finding.text
    assert "memory limit" in finding.cure


def test_missing_peers_are_reported_with_the_reason() -> None:
    lost = row(
        status="down", attempts=4, last_error="refused by x: wrong_cluster (…)", last_error_age_s=125.0
    )
    found = checks.judge_mesh(facts(node=running(lost, row("fleetlm@10.0.0.3", status="busy"))))
    assert one(found, "mesh").text == "connected to 1 node"
    missing, busy = (finding for finding in found if finding.topic == "connection")
    assert missing.level == FAIL
    assert "(status down, 4 attempts): refused by x: wrong_cluster (…), 2 min ago" in missing.text
    assert "FLEETLM_CLUSTER" in missing.cure
    assert busy.level == WARN


def test_a_peer_that_is_gone_from_dns_too_is_no_failure() -> None:
    gone = row(status="down", attempts=4, last_error="left: shutdown", in_dns=False)
    assert not checks.failed(checks.judge_mesh(facts(node=running(gone))))


@pytest.mark.parametrize(
    "error",
    ["wrong_name", "duplicate_name", "incompatible", "draining", "cookie", "cannot be reached back"],
)
def test_typed_refusals_have_cures(error: str) -> None:
    assert checks.cure_for(error) != checks.cure_for("connection refused")


def test_a_late_loop_and_a_differing_environment_are_reported() -> None:
    unhealthy = facts(
        node=running(lag_ms=4_000), differs=["DNS_CLUSTER_QUERY"], environment_error="X is 'y'; allowed: z."
    )
    found = checks.judge(unhealthy)
    assert "4,000 ms late" in next(f.text for f in found if "late" in f.text)
    assert any("differs from the node's in DNS_CLUSTER_QUERY" in f.text for f in found)
    assert any(f.text.startswith("X is 'y'") for f in found)


# ── gathering, as far as it is pure; and the report ──────────────────────────────────────────────


def test_the_nodes_settings_hold_but_the_cookie_is_this_shells() -> None:
    told = running() | {
        "query": "other",
        "ports": [5000, 5010],
        "dns_server": ["127.0.0.1", 53],
        "cluster": "c",
    }
    adopted = gather.adopt_settings(ON, told)
    assert (adopted.dns_query, adopted.base_port, adopted.cluster) == ("other", 5000, "c")
    assert adopted.dns_server == ("127.0.0.1", 53)
    assert adopted.cookie == COOKIE


def test_only_what_is_set_here_can_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DNS_CLUSTER", "FLEETLM")):
            monkeypatch.delenv(name)
    mine = ON.replace(node_ports=(1, 1), cluster="x")
    assert gather.find_differences(mine, running()) == []
    monkeypatch.setenv("FLEETLM_NODE_PORT", "1")
    assert gather.find_differences(mine, running()) == ["FLEETLM_NODE_PORT"]


def test_addresses_to_ask_are_those_of_dns_and_of_the_table_without_ourselves() -> None:
    told = running(row("fleetlm@10.0.0.3"), row(f"fleetlm@{PEER}"))
    assert gather.list_peer_addresses(answered(ME, PEER), told, ME) == [PEER, "10.0.0.3"]
    assert gather.list_peer_addresses(None, None, ME) == []
    many = answered(*(f"10.1.{n // 250}.{n % 250 + 1}" for n in range(900)))
    assert len(gather.list_peer_addresses(many, None, ME)) == gather.MAX_PEERS


def test_the_report_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding(OK, "dns", "fine"), Finding(FAIL, "peer", "10.0.0.2:4370 refuses", "Start it " * 20)]
    gather.show(found, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    dns          fine"
    assert lines[1] == "fail  peer         10.0.0.2:4370 refuses"
    assert lines[2].startswith("                   → Start it")
    assert all(len(line) <= 100 for line in lines)
    assert lines[-1] == "1 check failed; 0 warnings, 1 passed."
    assert "\x1b" not in "".join(lines)
    assert "\x1b[31mfail\x1b[0m" in gather.format_finding(found[1], colours=True)


@pytest.mark.parametrize(
    ("levels", "summary"),
    [
        ([OK, OK], "All checks passed (2)."),
        ([OK, WARN, OK], "No check failed; 1 warning, 2 passed."),
        ([FAIL, WARN, WARN, FAIL], "2 checks failed; 2 warnings, 0 passed."),
    ],
)
def test_the_report_ends_with_a_summary(levels: list[str], summary: str) -> None:
    assert gather.summarize(Finding(level, "dns", "text") for level in levels) == summary


def test_the_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    gather.show([Finding(WARN, "dns", "text", "cure")], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "findings": [{"level": "warn", "topic": "dns", "text": "text", "cure": "cure"}],
    }
