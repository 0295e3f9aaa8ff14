"""`fleetlm health`: which addresses are asked, and what makes a node healthy."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.cli import health
from fleetlm.cli.main import main
from fleetlm.settings import Settings
from fleetlm.wire.frames import IAm

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = HEAD + (
    "   0: 0200007F:1112 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    "   1: 0700000A:1112 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n"
    "   2: 0700000A:1112 0800000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n"
    "   3: 0700000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1\n"
)
TCP6 = HEAD + (
    "   0: 000000FD000000000000000007000000:1112 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5 1\n"
    "   1: 00000000000000000000000001000000:1112 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5 1\n"
)


def test_listeners_are_read_from_the_kernels_tables() -> None:
    assert health.parse_listeners(TCP, 4370) == ["127.0.0.2", "10.0.0.7"]
    assert health.parse_listeners(TCP6, 4370) == ["fd00::7", "::1"]
    assert health.parse_listeners(TCP, 9) == []


@pytest.mark.parametrize(
    "table", ["", HEAD, HEAD + "nonsense\n", HEAD + "0: xyz:1112 0:0 0A\n", HEAD + "0: 02:zz 0 0A"]
)
def test_a_table_that_cannot_be_read_names_no_listener(table: str) -> None:
    assert health.parse_listeners(table, 4370) == []


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, IAm | str]) -> None:
    async def probe(ip: str, _port: int, _settings: Settings, _timeout_s: float) -> IAm | str:
        return answers[ip]

    monkeypatch.setattr(health, "probe", probe)


def iam(name: str) -> IAm:
    return IAm(name=name, incarnation=1, cluster="", connected=3)


@pytest.mark.parametrize(
    ("answers", "is_healthy", "words"),
    [
        ({}, False, "no program listens on port 4370"),
        ({"10.0.0.7": iam("fleetlm@10.0.0.7")}, True, "fleetlm@10.0.0.7 answers, connected to 3"),
        ({"10.0.0.7": "10.0.0.7:4370: no answer within 4 s"}, False, "no answer within 4 s"),
        ({"10.0.0.7": iam("other@10.0.0.7")}, False, "other@10.0.0.7 answers, not fleetlm@"),
        ({"10.0.0.7": iam("fleetlm@10.0.0.7"), "10.0.0.8": "silent"}, False, "silent"),
    ],
)
async def test_a_node_is_healthy_if_it_answers(
    answers: dict[str, Any], is_healthy: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, answers)
    healthy, text = await health.check(Settings(), list(answers), 1.0)
    assert (healthy, words in text) == (is_healthy, True)


@pytest.mark.parametrize(("answer", "code"), [(iam("fleetlm@10.0.0.7"), 0), ("no answer", 1)])
def test_the_exit_code_is_the_verdict(
    answer: IAm | str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, {"10.0.0.7": answer})
    monkeypatch.setattr(health, "find_listeners", lambda _settings: ["10.0.0.7"])
    assert main(["health", "--timeout", "1"]) == code
    printed = capsys.readouterr()
    assert (printed.out == "") == bool(code), "what is wrong goes to stderr"


def test_a_setting_that_cannot_be_used_is_exit_code_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETLM_NODE_PORT", "many")
    assert main(["health"]) == 78
    assert "FLEETLM_NODE_PORT" in capsys.readouterr().err


def test_without_the_kernels_tables_the_configured_address_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TABLES", ("/nowhere/tcp",))
    assert health.find_listeners(Settings()) == ["127.0.0.1"]
    assert health.find_listeners(Settings(node_ip="10.0.0.7")) == ["10.0.0.7"]
