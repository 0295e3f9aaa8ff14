"""A node's address and port, looked at again and again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from fleetlm.discovery.address_watch import (
    LOOKS_TO_BE_GONE,
    LOOKS_TO_MISS_PORT,
    AddressProblem,
    AddressWatch,
    Verdict,
)
from fleetlm.discovery.interfaces import InterfaceAddress
from fleetlm.discovery.own_address import HasAddress, OwnAddress, Rule


def watch(
    rule: Rule = Rule.ROUTE,
    *,
    local: Collection[str] = ("10.0.0.7", "10.9.0.7"),
    ip: str = "10.0.0.7",
    ports: range = range(4370, 4371),
    routes: Mapping[str, str] | None = None,
    shared: Collection[str] = (),
) -> AddressWatch:
    own = OwnAddress(ip, "the route to a peer uses it", rule)
    return AddressWatch(own, ports, lambda: lambda each: each in local, (routes or {}).get, lambda: shared)


def test_a_record_under_another_local_address_is_reported_once() -> None:
    address = watch()
    problem = address.look(["10.9.0.5", "10.9.0.7"])
    assert problem is not None
    assert problem.verdict is Verdict.MOVED
    assert "FLEETLM_NODE_IP=10.9.0.7" in problem.text
    assert address.look(["10.9.0.5", "10.9.0.7"]) is None


def test_a_virtual_address_that_other_machines_have_too_is_no_better_one() -> None:
    address = watch(shared=["10.9.0.7"])
    assert look_often(address, ["10.9.0.7"]) == []


def test_an_address_that_dns_named_before_this_machine_had_it_is_reported_when_it_has_it() -> None:
    local = {"127.0.0.1"}
    address = watch(Rule.LOOPBACK, local=local, ip="127.0.0.1")
    answer = ["10.0.0.7", "10.0.0.8"]
    assert look_often(address, answer) == []
    local.add("10.0.0.7")
    (problem,) = look_often(address, answer)
    assert problem.verdict is Verdict.MOVED
    assert "DNS lists this machine as 10.0.0.7, but this node uses 127.0.0.1" in problem.text


def test_a_node_that_started_without_an_address_is_told_when_there_is_one_that_dns_does_not_list() -> None:
    local = {"127.0.0.1"}
    routes: dict[str, str] = {"10.0.0.8": "127.0.0.1"}
    address = watch(Rule.LOOPBACK, local=local, ip="127.0.0.1", routes=routes)
    answer = ["10.0.0.8:4370", "127.0.0.9:4370"]
    assert look_often(address, answer) == []
    routes["10.0.0.8"] = "10.0.0.7"
    assert look_often(address, answer) == []  # not yet an address of this machine
    local.add("10.0.0.7")
    (problem,) = look_often(address, answer)
    assert problem.verdict is Verdict.MOVED
    assert "this machine has the address 10.0.0.7 now (packets to the peer 10.0.0.8 leave" in problem.text


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.LOOPBACK])
def test_an_address_that_was_decided_is_not_questioned_by_a_route(rule: Rule) -> None:
    address = watch(rule, routes={"10.0.0.8": "10.9.0.7"})
    assert look_often(address, ["10.0.0.8"]) == []


def test_one_look_at_the_interfaces_serves_a_thousand_addresses() -> None:
    looks = []

    def observe() -> HasAddress:
        looks.append(1)
        return {"10.0.0.7"}.__contains__

    own = OwnAddress("10.0.0.7", "the route to a peer uses it", Rule.ROUTE)
    address = AddressWatch(own, range(4370, 4371), observe)
    looks.clear()
    address.look([f"10.1.{n // 250}.{n % 250}" for n in range(1000)])
    assert len(looks) == 1


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


def exposing(here: Collection[str] | None) -> AddressWatch:
    """A node that listens at all addresses, and refuses what comes to those that begin with 203."""
    own = OwnAddress("10.0.0.7", "the route to a peer uses it", Rule.ROUTE)

    def list_here() -> list[InterfaceAddress] | None:
        return None if here is None else [InterfaceAddress(ip, "eth0") for ip in here]

    def refuse(ip: str) -> str | None:
        return "it is public" if ip.startswith("203.") else None

    return AddressWatch(
        own,
        range(4370, 4371),
        lambda: {"10.0.0.7"}.__contains__,
        lambda _: None,
        lambda: (),
        refuse,
        list_here,
    )


def test_a_public_address_that_appears_later_is_reported_each_time_that_it_appears() -> None:
    here = {"10.0.0.7"}
    address = exposing(here)
    assert look_often(address, ["10.0.0.7"]) == []
    here.add("203.0.113.5")
    (problem,) = look_often(address, ["10.0.0.7"])
    assert problem.verdict is Verdict.EXPOSED
    assert "this machine has the address 203.0.113.5 now" in problem.text
    assert "refuses all connections that come to it" in problem.text
    here.remove("203.0.113.5")
    assert look_often(address, ["10.0.0.7"]) == []
    here.add("203.0.113.5")
    assert len(look_often(address, ["10.0.0.7"])) == 1


def test_where_the_system_lists_no_addresses_none_is_reported() -> None:
    assert look_often(exposing(None), ["10.0.0.7"]) == []
