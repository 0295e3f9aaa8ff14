from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fleetlm.core import admission
from fleetlm.wire.frames import PROTOCOL_MAX, Refusal, Refused
from tests.support.kernel_fakes import hello_of, identity, name

ME = identity(1, aliases=("fd00::1",))


@pytest.mark.parametrize(
    ("number", "changes", "refusal", "words"),
    [
        (1, {"incarnation": 100}, Refusal.SELF, "is this node itself"),
        (
            1,
            {"incarnation": 100, "to": 3},
            Refusal.SELF,
            "at the address of fleetlm@10.0.0.3 this node itself",
        ),
        (2, {"cluster": "blue"}, Refusal.WRONG_CLUSTER, "is of cluster 'blue', fleetlm@10.0.0.1 of ''"),
        (2, {"base_port": 4371}, Refusal.OTHER_BASE_PORT, "set FLEETLM_NODE_PORT to ranges"),
        (2, {"name": "api@10.0.0.2"}, Refusal.OTHER_BASENAME, "have one DNS_CLUSTER_NODE_BASENAME"),
        (2, {"to": 3}, Refusal.WRONG_NAME, "you dialled fleetlm@10.0.0.3, I am fleetlm@10.0.0.1"),
        (1, {"incarnation": 7}, Refusal.DUPLICATE_NAME, "check FLEETLM_NODE_IP"),
        (2, {"name": "fleetlm@fd00::1"}, Refusal.DUPLICATE_NAME, "check FLEETLM_NODE_IP"),
    ],
)
def test_each_reason_has_its_words(
    number: int, changes: dict[str, Any], refusal: Refusal, words: str
) -> None:
    verdict = admission.judge(ME, hello_of(number, **changes), leaving=False)
    assert verdict is not None
    assert verdict[0] is refusal
    assert words in verdict[1]


def test_a_node_that_finds_itself_under_another_basename_hears_that_there_is_one_for_all() -> None:
    hello = dataclasses.replace(hello_of(1, incarnation=100), dialled="api@10.0.0.1")
    verdict = admission.judge(ME, hello, leaving=False)
    assert verdict is not None
    assert verdict[0] is Refusal.SELF
    assert "this node itself answers, fleetlm@10.0.0.1: the nodes of one cluster have one" in verdict[1]


def test_a_node_without_fault_is_admitted() -> None:
    assert admission.judge(ME, hello_of(2), leaving=False) is None


def test_a_node_that_leaves_admits_no_peer() -> None:
    assert admission.judge(ME, hello_of(2), leaving=True) == (Refusal.DRAINING, f"{name(1)} is leaving")


@pytest.mark.parametrize(
    ("low", "high", "refused"), [(-3, -1, True), (1, 9, True), (-3, 0, False), (0, 0, False), (0, 9, False)]
)
def test_one_version_in_common_is_enough(low: int, high: int, refused: bool) -> None:
    low, high = PROTOCOL_MAX + low, PROTOCOL_MAX + high
    hello = dataclasses.replace(hello_of(2), protocol_min=low, protocol_max=high)
    verdict = admission.judge(ME, hello, leaving=False)
    assert (verdict is not None) is refused
    if verdict is not None:
        assert verdict[0] is Refusal.INCOMPATIBLE
        assert f"speaks protocol {low} to {high}" in verdict[1]


def test_what_matters_most_is_said_first() -> None:
    hello = hello_of(2, cluster="blue", to=3)
    verdict = admission.judge(ME, hello, leaving=True)
    assert verdict is not None
    assert verdict[0] is Refusal.WRONG_CLUSTER


def test_a_refusal_reads_as_a_sentence() -> None:
    answer = Refused(Refusal.WRONG_CLUSTER, "a is of blue", name(2))
    assert admission.refused_by(answer) == "refused by fleetlm@10.0.0.2: wrong_cluster (a is of blue)"


def test_a_duplicate_says_what_was_seen_and_what_to_check() -> None:
    text = admission.duplicate(hello_of(2))
    assert text.startswith(f"{name(2)} is connected, and what answers at its address did not dial anew")
    assert "check FLEETLM_NODE_IP" in text


def test_nodes_of_one_basename_are_of_one_fleet() -> None:
    assert admission.same_fleet("a@10.0.0.1", "a@fd00::1")
    assert not admission.same_fleet("a@10.0.0.1", "b@10.0.0.1")
