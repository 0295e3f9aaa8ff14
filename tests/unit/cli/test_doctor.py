"""The checks of `fleetlm doctor` on made-up facts, and its report."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from typing import Any

import pytest

from fleetlm.cli.doctor import checks, gather, report
from fleetlm.cli.doctor.checks import Facts, FreePort, PeerFact
from fleetlm.cli.doctor.findings import FAIL, OK, WARN, Finding, failed
from fleetlm.cli.doctor.gather import AskedNode
from fleetlm.cli.doctor.report import Report, format_finding
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.remote import finder
from fleetlm.remote.facts import node_facts, plain
from fleetlm.remote.protocol import SocketFile
from fleetlm.settings import Settings
from fleetlm.transport.port_holders import PortHolder
from fleetlm.transport.taken_ports import TakenPort
from fleetlm.wire.frames import IAm
from tests.support.remote_fakes import FakeNode, node_info, row

ME = "10.0.0.1"
PEER = "10.0.0.2"
COOKIE = "a-secret-of-enough-characters"
ON = Settings().replace(dns_query="worker", cookie=COOKIE)


def answered(*addresses: str, outcome: Outcome = Outcome.ADDRESSES, detail: str = "") -> Answer:
    return Answer(outcome, addresses, detail or f"{len(addresses)} addresses")


def iam(ip: str = PEER, basename: str = "fleetlm", cluster: str = "") -> IAm:
    return IAm(name=f"{basename}@{ip}", cluster=cluster, connected=1)


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
        "port": FreePort(4370),
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


@pytest.mark.parametrize(
    ("networks", "level", "words"),
    [
        (("10.0.0.0/8",), OK, "FLEETLM_ALLOWED_NETWORKS is 10.0.0.0/8"),
        (("10.0.0.2/32",), FAIL, "10.0.0.1 is outside"),
        (("10.0.0.1/32",), WARN, "passed over: 10.0.0.2"),
    ],
)
def test_allowed_networks_are_compared_with_the_addresses(
    networks: tuple[str, ...], level: str, words: str
) -> None:
    found = checks.judge(facts(settings=ON.replace(allowed_networks=networks)))
    finding = one(found, "allowed networks")
    assert finding.level == level
    assert words in finding.text


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
    assert not failed(found)


def test_every_failure_says_what_to_do_and_reveals_no_secret() -> None:
    unhealthy = [
        facts(answer=answered(outcome=Outcome.EMPTY, detail="NXDOMAIN"), port="in use"),
        facts(peers=[PeerFact(PEER, 4370, why) for why in ("refused", "timeout", "no route")]),
        facts(node=running(row(status="wanted", attempts=3, last_error="wrong_cluster")), port=None),
        facts(own_ip="127.0.0.1"),
    ]
    for each in unhealthy:
        found = checks.judge(each)
        assert failed(found)
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


SRV = ON.replace(dns_query="_fleetlm._tcp.service.consul.")


def listing(count: int, port: str = "") -> Answer:
    return answered(*(f"10.0.1.{number}{port}" for number in range(1, count + 1)))


@pytest.mark.parametrize(
    ("answer", "settings", "words"),
    [
        (listing(8), ON, "exactly 8, perhaps a sample (AWS Cloud Map"),
        (listing(8, ":4370"), SRV, "exactly 8, perhaps a sample (AWS Cloud Map"),
        (listing(3, ":20000"), SRV, "exactly 3, perhaps a sample (Consul"),
    ],
)
def test_an_answer_of_a_telling_size_is_perhaps_a_sample(
    answer: Answer, settings: Settings, words: str
) -> None:
    for node in (None, running(row(f"fleetlm@{answer.addresses[1]}"))):
        finding = one(checks.judge_lookup(facts(answer=answer, settings=settings, node=node)))
        assert finding.level == OK
        assert words in finding.text


@pytest.mark.parametrize(
    ("answer", "settings"), [(listing(7), ON), (listing(9), ON), (listing(3), ON), (listing(4, ":1"), SRV)]
)
def test_an_answer_of_another_size_is_not(answer: Answer, settings: Settings) -> None:
    assert "sample" not in one(checks.judge_lookup(facts(answer=answer, settings=settings))).text


def test_a_node_that_is_connected_to_all_of_eight_has_no_sample() -> None:
    rows = [row(f"fleetlm@10.0.1.{number}") for number in range(2, 9)]
    found = facts(answer=listing(8), own_ip="10.0.1.1", node=running(*rows))
    assert "sample" not in one(checks.judge_lookup(found)).text
    one_less = facts(answer=listing(8), own_ip="10.0.1.1", node=running(*rows[1:]))
    assert "perhaps a sample" in one(checks.judge_lookup(one_less)).text


def test_nodes_that_are_connected_and_not_listed_show_a_sample() -> None:
    rows = [row(f"fleetlm@10.0.2.{number}") for number in (1, 2)]
    rows += [row("fleetlm@10.0.1.2:4371"), row("fleetlm@10.0.2.9", status="down")]
    finding = one(checks.judge_lookup(facts(answer=listing(5), node=running(*rows))))
    assert finding.level == OK
    assert finding.text.endswith("; 2 nodes connected that it does not list: perhaps it is a sample")


def test_nodes_of_a_host_that_srv_records_name_by_port_are_told_apart() -> None:
    rows = [row("fleetlm@10.0.1.1:20000"), row("fleetlm@10.0.1.1:20017")]
    found = facts(answer=answered("10.0.1.1:20000", "10.0.1.2:4370"), settings=SRV, node=running(*rows))
    assert "1 node connected that it does not list" in one(checks.judge_lookup(found)).text


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
    assert not failed(checks.judge(off))


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
        (PeerFact(PEER, 4370, "reset"), FAIL, "in place of a node"),
    ],
)
def test_each_peer(fact: PeerFact, level: str, words: str) -> None:
    finding = checks.judge_peer(ON, fact, up=False, named=True)
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


def test_an_address_of_this_machine_at_which_no_node_listens_is_perhaps_a_virtual_one() -> None:
    refused = PeerFact(PEER, 4370, "refused")
    (finding,) = checks.judge_peers(facts(peers=[refused], local={PEER: True}))
    assert "this machine has the address" in finding.text
    assert "Perhaps other machines have it too" in finding.cure
    (finding,) = checks.judge_peers(facts(peers=[refused], local={PEER: False}))
    assert "the machine is up" in finding.text


def test_an_address_that_dns_does_not_name_any_more_is_no_failure() -> None:
    fact = PeerFact(PEER, 4370, "timeout")
    assert checks.judge_peer(ON, fact, up=False, named=False).level == WARN


# ── crash on boot ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("port", "level", "words"),
    [
        (FreePort(4370), OK, f"{ME}:4370 is free"),
        (FreePort(4372), OK, f"{ME}:4372 is free"),
        ("Permission denied", FAIL, f"{ME}:4370-4385 cannot be bound: Permission denied"),
        ("10.0.0.1 is no address of this machine", FAIL, "FLEETLM_NODE_IP must be an address of this"),
    ],
)
def test_the_port_before_a_start(port: Any, level: str, words: str) -> None:
    finding = one(checks.judge_port(facts(port=port)))
    assert finding.level == level
    assert words in f"{finding.text} {finding.cure}"


def held(port: int, node: IAm | None = None, pid: int | None = 12) -> TakenPort:
    holder = PortHolder(port, ME, True, os.geteuid(), 5, pid, "nginx" if pid else "")
    return TakenPort(port, (holder,), node, was_asked=True)


UNSEEN = "a process that cannot be seen from here, perhaps in another container that shares this network"
TWO = ON.replace(node_ports=(4370, 4371))


def test_a_full_range_keeps_a_node_from_starting() -> None:
    full = facts(settings=TWO, port="Address already in use", ports=[held(4370, iam(ME)), held(4371)])
    finding = one(checks.judge_port(full))
    assert finding.level == FAIL
    assert "each of the 2 ports 4370-4371 (FLEETLM_NODE_PORT) is in use at 10.0.0.1" in finding.text
    assert finding.cure.startswith("Stop one of them, or widen the range")


def test_a_range_that_nodes_of_this_cluster_hold_may_be_meant_so() -> None:
    full = facts(settings=TWO, port="in use", ports=[held(4370, iam(ME)), held(4371, iam(f"{ME}:4371"))])
    assert one(checks.judge_port(full)).level == WARN


def test_a_slot_that_is_taken_is_said_with_its_number() -> None:
    slot = facts(settings=TWO.replace(node_slot=1), port="in use", ports=[held(4371)])
    assert "port 4371 (FLEETLM_NODE_SLOT=1) is in use" in one(checks.judge_port(slot)).text


def test_the_ports_of_the_machine_are_listed_with_who_holds_them() -> None:
    found = checks.judge_ports(facts(ports=[held(4370, iam(ME)), held(4371), held(4373, pid=None)]))
    assert [finding.level for finding in found] == [OK] * 4
    assert [finding.text for finding in found] == [
        "3 of the 16 ports 4370-4385 at 10.0.0.1 are in use",
        "4370: fleetlm@10.0.0.1, process 12 (nginx)",
        "4371: process 12 (nginx), which does not answer as a node of this cluster",
        f"4373: {UNSEEN}, which does not answer as a node of this cluster",
    ]
    assert checks.judge_ports(facts()) == []


def test_another_program_on_the_first_port_of_the_range_is_a_warning() -> None:
    total, first = checks.judge_ports(facts(ports=[held(4370)]))
    assert (total.level, total.text) == (OK, "1 of the 16 ports 4370-4385 at 10.0.0.1 is in use")
    assert first.level == WARN
    assert "The first port should be a node's" in first.cure


def test_a_holder_that_was_not_asked_is_not_said_to_be_silent() -> None:
    unasked = TakenPort(4370, held(4370).holders)
    assert [each.text for each in checks.judge_ports(facts(ports=[unasked]))][1] == "4370: process 12 (nginx)"


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
    fact = await gather.contact(PEER, 4371, ON, ask_who=True)
    assert asked == [0, gather.LARGE_PROBE_BYTES]
    assert fact == PeerFact(PEER, 4371, None, iam(), takes_large=False)


async def test_a_host_whose_first_port_is_empty_is_asked_at_its_other_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def contact(ip: str, port: int, _settings: Settings, *, ask_who: bool) -> PeerFact:
        return PeerFact(ip, port, None if port == 4372 else "refused")

    async def try_tcp(_ip: str, port: int) -> str | None:
        return None if port == 4372 else "refused"

    monkeypatch.setattr(gather, "contact", contact)
    monkeypatch.setattr(gather, "try_tcp", try_tcp)
    assert await gather.contact_host(PEER, [4370, 4371, 4372], ON, ask_who=True) == PeerFact(PEER, 4372, None)
    assert (await gather.contact_host(PEER, [4370, 4371], ON, ask_who=True)).port == 4370
    assert (await gather.contact_host(PEER, [4371], ON, ask_who=True)).tcp == "refused"


async def test_each_question_is_asked_once_for_all_nodes_of_a_machine() -> None:
    asked: list[str] = []

    async def question() -> str:
        asked.append("dns")
        return "answer"

    questions = gather.Questions()
    assert await questions.ask("dns", question) == await questions.ask("dns", question) == "answer"
    assert asked == ["dns"]


def test_a_guess_is_not_cured_as_a_finding() -> None:
    guess = "10.0.0.2:4370: it accepts connections and closes them at once: perhaps a proxy or a sidecar"
    assert "If the nodes have cookies" in checks.cure_for(guess)


def test_an_environment_that_cannot_be_used_is_exit_code_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gather, "ask_nodes", lambda _: ([], "none runs", 0))
    monkeypatch.setenv("DNS_POLL_INTERVAL_MS", "5s")
    assert gather.main() == 78
    assert "DNS_POLL_INTERVAL_MS is '5s'" in capsys.readouterr().out
    assert gather.main(as_json=True) == 78
    assert json.loads(capsys.readouterr().out)["ok"] is False


OPEN = ON.replace(cookie=None)


def open_node(warning: str | None) -> dict[str, Any]:
    """What a running node without a cookie tells."""
    told = running()
    return {**told, "cookie": False, "info": {**told["info"], "exposure_warning": warning}}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "not shown"),
        ({"settings": OPEN}, WARN, "every machine that reaches 10.0.0.1 "),
        ({"settings": OPEN}, WARN, "Make one with `fleetlm cookie`, and set FLEETLM_COOKIE to it on every"),
        ({"settings": Settings()}, WARN, "every machine that reaches 10.0.0.1 "),
        (
            {"settings": OPEN, "reached": ("10.0.0.1", "8.8.8.8")},
            FAIL,
            "no node can start: FLEETLM_COOKIE is",
        ),
        ({"settings": OPEN.replace(insecure=True), "own_ip": "8.8.8.8"}, WARN, "8.8.8.8 (the Internet incl"),
        ({"settings": OPEN, "own_ip": "127.0.0.1"}, OK, "only programs on this machine can reach the node"),
        ({"node": open_node("no cookie is set: a; do b")}, WARN, "no cookie is set: a Do b"),
        ({"node": open_node(None), "settings": OPEN}, OK, "only programs on this machine"),
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


def test_peers_with_a_local_road_are_counted() -> None:
    near, far = row("fleetlm@10.0.0.3", road="local"), row("fleetlm@10.0.0.4", road="zeromq")
    found = checks.judge_mesh(facts(node=running(near, far)))
    how = "1 of them through a Unix socket of this host"
    assert one(found, "mesh").text == f"connected to 2 nodes, {how}"


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
    assert not failed(checks.judge_mesh(facts(node=running(gone))))


@pytest.mark.parametrize(
    "error",
    ["wrong_name", "duplicate_name", "incompatible", "draining", "cookie", "answers but does not dial back"],
)
def test_typed_refusals_have_cures(error: str) -> None:
    assert checks.cure_for(error) != checks.cure_for("connection refused")


def test_a_program_that_sends_back_garbage_is_not_a_matter_of_one_way_firewalls() -> None:
    error = "10.0.0.2:4370: it sends back more than answers and heartbeats, as no fleetlm node does"
    assert checks.cure_for(error) == checks.cure_for("connection refused")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "refused"),
        (ConnectionResetError(errno.ECONNRESET, "Connect call failed"), "reset"),
        (TimeoutError(), "timeout"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed"), os.strerror(errno.EHOSTUNREACH)),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("Multiple exceptions"), "Multiple exceptions"),
    ],
)
async def test_the_reason_why_tcp_does_not_connect_is_named(
    error: OSError, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_connection(_ip: str, _port: int) -> None:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    assert await gather.try_tcp(PEER, 4370) == found


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
        "ports": [5000, 5003],
        "dns_server": ["127.0.0.1", 53],
        "cluster": "c",
    }
    adopted = gather.adopt_settings(ON, told)
    assert (adopted.dns_query, adopted.node_ports, adopted.cluster) == ("other", (5000, 5003), "c")
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
    told = running(row("fleetlm@10.0.0.3"), row(f"fleetlm@{PEER}:4371"), row(f"fleetlm@{ME}:4372"))
    answer = answered(ME, PEER, "10.0.0.4", "10.0.0.5:7000")
    assert gather.list_peer_addresses(answer, told, ME, 4370) == [
        "10.0.0.4", "10.0.0.5:7000", "10.0.0.3:4370", f"{PEER}:4371", f"{ME}:4372",
    ]  # fmt: skip
    assert gather.list_peer_addresses(answered(ME, f"{ME}:4370", f"{ME}:4371"), running(), ME, 4370) == [
        f"{ME}:4371"
    ]
    assert gather.list_peer_addresses(None, None, ME, 4370) == []
    many = answered(*(f"10.1.{n // 250}.{n % 250 + 1}" for n in range(900)))
    assert len(gather.list_peer_addresses(many, None, ME, 4370)) == gather.MAX_PEERS


def test_a_peer_is_judged_by_its_port() -> None:
    node = running(row(f"fleetlm@{PEER}:4371"))
    fact = PeerFact(PEER, 4371, None, "no answer within 2.5 s")
    assert one(checks.judge_peers(facts(node=node, peers=[fact]))).level == WARN
    other = PeerFact(PEER, 4370, None, "no answer within 2.5 s")
    assert one(checks.judge_peers(facts(node=node, peers=[other]))).level == FAIL


def test_srv_addresses_are_hosts_too() -> None:
    srv = facts(answer=answered(f"{ME}:4371", f"{PEER}:5001"))
    assert one(checks.judge_own_address(srv)).level == OK
    only = facts(answer=answered(f"{ME}:4370"))
    assert "only this node" in one(checks.judge_lookup(only)).text


# ── several nodes on one machine ─────────────────────────────────────────────────────────────────


def test_what_is_found_for_all_nodes_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    dns, port = Finding(OK, "dns", "fine"), Finding(WARN, "port", "odd", "Look")
    reports = [Report(f"fleetlm@{ME}", [dns, port]), Report(f"fleetlm@{ME}:4371", [dns])]
    assert report.merge(reports) == [
        Report("", [dns]), Report(f"fleetlm@{ME}", [port]), Report(f"fleetlm@{ME}:4371", []),
    ]  # fmt: skip
    report.show(reports, as_json=False)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "2 nodes run on this machine. What concerns all of them:",
        "ok    dns          fine",
        f"fleetlm@{ME}",
        "warn  port         odd",
        "                   → Look",
        f"fleetlm@{ME}:4371",
        "No check failed; 1 warning, 1 passed.",
    ]
    report.show(reports, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["nodes"] == [f"fleetlm@{ME}", f"fleetlm@{ME}:4371"]
    assert [(each["topic"], each["node"]) for each in said["findings"]] == [
        ("dns", None),
        ("port", f"fleetlm@{ME}"),
    ]


async def test_a_silent_node_among_several_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gathered(*_: Any) -> Facts:
        return facts(node=running(row(f"fleetlm@{PEER}")), port=PeerFact(ME, 4370, None, iam(ME)))

    monkeypatch.setattr(gather, "gather", gathered)
    nodes = [
        AskedNode(f"fleetlm@{ME}", running(), ""),
        AskedNode("fleetlm@x", None, "fleetlm@x did not respond"),
    ]
    first, second = await gather.examine(ON, nodes, "", "")
    assert not failed(first.findings)
    assert [(each.level, each.text) for each in second.findings] == [(FAIL, "fleetlm@x did not respond")]


def test_all_nodes_of_the_machine_are_asked_or_the_wanted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [SocketFile("/run", f"fleetlm@{ME}", 11), SocketFile("/run", f"fleetlm@{ME}:4371", 12)]
    silent = AskedNode(found[1].node, None, "it did not respond")
    monkeypatch.setattr(finder, "discover", lambda _env, _uid: found)
    monkeypatch.setattr(
        gather, "ask_node", lambda each: (silent, 4) if each.pid == 12 else (AskedNode(each.node, {}, ""), 0)
    )
    both = [AskedNode(found[0].node, {}, ""), silent]
    assert gather.ask_nodes(None) == (both, "", 0)
    assert gather.ask_nodes("4370") == ([both[0]], "", 0)
    assert gather.ask_nodes("4371") == ([], "it did not respond", 4)
    assert gather.ask_nodes("4379")[2] == finder.NO_NODE
    del found[0]
    assert gather.ask_nodes(None) == ([], "it did not respond", 0)
    del found[0]
    nodes, why, code = gather.ask_nodes(None)
    assert (nodes, code) == ([], 0)
    assert why.startswith("no node of this user runs on this machine")


def test_the_report_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding(OK, "dns", "fine"), Finding(FAIL, "peer", "10.0.0.2:4370 refuses", "Start it " * 20)]
    report.show([Report("", found)], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    dns          fine"
    assert lines[1] == "fail  peer         10.0.0.2:4370 refuses"
    assert lines[2].startswith("                   → Start it")
    assert all(len(line) <= 100 for line in lines)
    assert lines[-1] == "1 check failed; 0 warnings, 1 passed."
    assert "\x1b" not in "".join(lines)
    assert "\x1b[31mfail\x1b[0m" in report.format_finding(found[1], colours=True)


@pytest.mark.parametrize(
    ("levels", "summary"),
    [
        ([OK, OK], "All checks passed (2)."),
        ([OK, WARN, OK], "No check failed; 1 warning, 2 passed."),
        ([FAIL, WARN, WARN, FAIL], "2 checks failed; 2 warnings, 0 passed."),
    ],
)
def test_the_report_ends_with_a_summary(levels: list[str], summary: str) -> None:
    assert report.summarize(Finding(level, "dns", "text") for level in levels) == summary


def test_the_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    report.show([Report("fleetlm@10.0.0.1", [Finding(WARN, "dns", "text", "cure")])], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "nodes": ["fleetlm@10.0.0.1"],
        "findings": [{"level": "warn", "topic": "dns", "text": "text", "cure": "cure", "node": None}],
    }


def test_a_report_moves_no_cursor_and_forges_no_line() -> None:
    hostile = "it said \x1b[2J\nok    cookie       all is well\u202e"
    for colours in (True, False):
        text = format_finding(Finding(WARN, "peer", hostile, hostile), colours)
        assert "\x1b[2J" not in text
        assert "\u202e" not in text
        assert not any(line.startswith("ok") for line in text.split("\n"))
        assert "\\x1b[2J\\nok" in text


def test_what_to_do_about_many_dead_peers_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    dead = [Finding(FAIL, "peer", f"10.0.0.{number} is dead", "Start it") for number in range(3)]
    found = [Finding(OK, "dns", "fine"), *dead, Finding(FAIL, "peer", "10.0.0.9 is odd", "Look"), dead[0]]
    report.show([Report("", found)], as_json=False)
    assert [line[19:] for line in capsys.readouterr().out.splitlines()[:9]] == [
        "fine", "10.0.0.0 is dead", "10.0.0.1 is dead", "10.0.0.2 is dead", "→ Start it",
        "10.0.0.9 is odd", "→ Look", "10.0.0.0 is dead", "→ Start it",
    ]  # fmt: skip
    report.show([Report("", found)], as_json=True)
    assert capsys.readouterr().out.count("Start it") == 4
