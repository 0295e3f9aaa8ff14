"""A node's address and port, looked at again and again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from fleetlm.discovery.address_watch import (
    LOOKS_TO_BE_GONE,
    LOOKS_TO_MISS_PORT,
    AddressProblem,
    AddressWatch,
    Verdict,
)
from fleetlm.discovery.own_address import OwnAddress, Rule


def watch(
    rule: Rule = Rule.ROUTE,
    *,
    local: Collection[str] = ("10.0.0.7", "10.9.0.7"),
    ip: str = "10.0.0.7",
    ports: range = range(4370, 4371),
) -> AddressWatch:
    own = OwnAddress(ip, "the route to a peer uses it", rule)
    return AddressWatch(own, lambda each: each in local, ports)


def test_a_record_under_another_local_address_is_reported_once() -> None:
    address = watch()
    problem = address.look(["10.9.0.5", "10.9.0.7"])
    assert problem is not None
    assert problem.verdict is Verdict.MOVED
    assert "FLEETLM_NODE_IP=10.9.0.7" in problem.text
    assert address.look(["10.9.0.5", "10.9.0.7"]) is None


def test_records_that_agree_or_say_nothing_are_no_problem() -> None:
    assert watch().look(["10.0.0.7", "10.9.0.7"]) is None
    assert watch().look(["10.9.0.5"]) is None
    assert watch(local=("10.0.0.7", "127.0.0.2")).look(["127.0.0.2"]) is None
    assert watch(Rule.EXPLICIT).look(["10.9.0.7"]) is None


def test_an_address_that_this_machine_has_lost_is_reported_once_after_two_looks() -> None:
    local = {"10.0.0.7"}
    address = watch(local=local)
    assert address.look(["10.0.0.7"]) is None
    local.clear()
    looks = [address.look([]) for _ in range(LOOKS_TO_BE_GONE + 2)]
    problems = [problem for problem in looks if problem is not None]
    assert [problem.verdict for problem in problems] == [Verdict.GONE]
    assert looks[LOOKS_TO_BE_GONE - 1] is problems[0]
    assert "10.0.0.7" in problems[0].text


def test_an_address_that_comes_back_is_not_gone() -> None:
    local = {"10.0.0.7"}
    address = watch(local=local)
    for _ in range(5):
        local.clear()
        assert address.look([]) is None
        local.add("10.0.0.7")
        assert address.look([]) is None


def test_an_address_behind_nat_cannot_be_lost() -> None:
    address = watch(Rule.EXPLICIT, local=(), ip="203.0.113.5")
    assert [address.look([]) for _ in range(9)] == [None] * 9


def look_often(address: AddressWatch, *answers: Sequence[str], times: int = 30) -> list[AddressProblem]:
    looks = [address.look(answers[n % len(answers)]) for n in range(times)]
    return [problem for problem in looks if problem is not None]


def test_an_srv_record_with_another_port_is_reported_once_and_not_at_once() -> None:
    address = watch()
    answer = ["10.0.0.2:9000", "10.0.0.7:23456", "10.0.0.7:24000"]
    assert look_often(address, answer, times=LOOKS_TO_MISS_PORT - 1) == []
    (problem,) = look_often(address, answer)
    assert problem.verdict is Verdict.OTHER_PORT
    assert "10.0.0.7 with the port 23456, 24000 (SRV records)" in problem.text
    assert "this node listens on port 4370" in problem.text
    assert "set FLEETLM_NODE_PORT" in problem.text


def test_an_explicit_address_behind_nat_can_have_the_wrong_port_too() -> None:
    address = watch(Rule.EXPLICIT, local=(), ip="203.0.113.5", ports=range(4370, 4386))
    (problem,) = look_often(address, [f"203.0.113.5:{port}" for port in (1, 2, 3, 4)])
    assert "with the port 1, 2, 3, ... (SRV records)" in problem.text
    assert "a port of 4370-4385" in problem.text


@pytest.mark.parametrize(
    "answers",
    [
        [["10.0.0.7:4370", "10.0.0.7:23456"]],
        [["10.0.0.7", "10.0.0.7:23456"]],
        [["10.0.0.2:23456"]],
        [["10.9.0.5:23456", "garbage"]],
        [[]],
        # A sample: now and then it names the port.
        [["10.0.0.7:23456"], ["10.0.0.7:23456"], ["10.0.0.7:4370"]],
    ],
)
def test_srv_records_that_name_the_port_or_say_nothing_are_no_problem(answers: list[list[str]]) -> None:
    assert look_often(watch(), *answers) == []


def test_a_port_of_the_range_may_be_that_of_another_node_of_this_machine() -> None:
    assert look_often(watch(ports=range(4370, 4386)), ["10.0.0.7:4375"]) == []


def test_this_machine_under_another_address_is_found_in_srv_records_too() -> None:
    problem = watch().look(["10.9.0.5:4370", "10.9.0.7:4370"])
    assert problem is not None
    assert problem.verdict is Verdict.MOVED
    assert "FLEETLM_NODE_IP=10.9.0.7 " in problem.text
