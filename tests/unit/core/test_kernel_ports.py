"""Several nodes on one host, as the kernel and the table of one node see them."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.core import admission
from fleetlm.core.connection import Phase
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.effects import Dial, HangUp, Send
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Refusal
from tests.support.kernel_fakes import (
    TELLER,
    Meeting,
    T,
    addresses,
    hello_frame,
    hello_of,
    identity,
    ip,
    kernel,
    name,
    quiet,
    ready_frame,
    said,
)

RANGE = Settings(node_ports=(4370, 4372))


def iam(text: str, *, cluster: str = "", base_port: int = 4370) -> bytes:
    return frames.iam(IAm(text, cluster, 0, base_port))


def searching(settings: Settings = RANGE) -> tuple[Meeting, int]:
    """A node that has just dialled the port after the base port of node 2, where none answers."""
    m = Meeting(settings)
    m.kernel.looked_up(T, addresses(2))
    m.kernel.channel_lost(T, 1, "connection refused")
    [dial] = [each for each in m.kernel.tick(T + 0.5) if isinstance(each, Dial) and each.port == 4371]
    assert dial.ip == ip(2)
    return m, dial.channel


RANK = f"{name(2)}:4371"


def up(m: Meeting, text: str, **changes: Any) -> None:
    """Complete the handshake with the node of that name."""
    half = m.met(2)
    m.kernel.control_frame(m.now, half, hello_frame(hello_of(2, name=text, **changes), 77))
    out = m.kernel.topology.peers[text].connection.outgoing
    assert out is not None
    m.kernel.opened(m.now, out.channel)
    hello = hello_of(2, name=text, **changes)
    m.kernel.control_frame(m.now, half, ready_frame(77, 1, out.epoch, hello))
    assert m.kernel.topology.peers[text].is_up


def test_a_search_asks_who_is_there_and_dials_the_node_by_its_name() -> None:
    m, channel = searching()
    assert m.kernel.opened(T + 0.5, channel) == [Send(channel, frames.probe())]
    effects = m.kernel.answered(T + 0.5, channel, iam(RANK))
    assert effects[0] == HangUp(channel)
    assert Dial(channel + 1, ip(2), 4371) in effects
    assert said(effects) == []


def test_an_empty_port_leaves_nothing() -> None:
    m, channel = searching()
    assert said(m.kernel.channel_lost(T + 0.6, channel, "connection refused")) == []
    assert list(m.kernel.topology.peers) == [name(2)]
    assert channel not in m.kernel.ports.searches


def test_a_search_that_takes_too_long_is_given_up() -> None:
    m, channel = searching()
    assert HangUp(channel) in m.kernel.tick(T + 4)


def test_what_answers_as_no_node_or_as_one_of_another_cluster_is_passed_over() -> None:
    for frame in (
        iam(RANK, cluster="blue"),
        frames.refused(frames.Refused(Refusal.DRAINING, "", name(2))),
    ):
        m, channel = searching()
        effects = m.kernel.answered(T + 0.5, channel, frame)
        assert effects[0] == HangUp(channel)
        assert list(m.kernel.topology.peers) == [name(2)]
        assert said(effects) == []


def test_a_node_of_another_basename_is_told_once_what_to_do_instead() -> None:
    m, channel = searching()
    (level, text), *rest = said(m.kernel.answered(T + 0.5, channel, iam(f"api@{ip(2)}:4371")))
    assert (level, rest) == ("info", [])
    assert "for several nodes on one machine a range of ports" in text
    hello = hello_of(2, name=f"api@{ip(2)}")
    fields = {name: getattr(hello, name) for name in hello.__match_args__}
    wrong = frames.Hello(**(fields | {"dialled": f"api@{ip(1)}"}))
    verdict = admission.judge(identity(1), wrong, leaving=False)
    assert verdict is not None
    assert "one DNS_CLUSTER_NODE_BASENAME" in verdict[1]


def test_a_node_with_another_base_port_is_dialled_so_that_both_say_why() -> None:
    m, channel = searching()
    effects = m.kernel.answered(T + 0.5, channel, iam(name(2), base_port=4371))
    assert Dial(channel + 1, ip(2), 4371) in effects
    verdict = admission.judge(identity(1), hello_of(2, base_port=4371), leaving=False)
    assert verdict is not None
    assert verdict[0] is Refusal.OTHER_BASE_PORT
    assert "the first port of fleetlm@10.0.0.2 is 4371, that of fleetlm@10.0.0.1 4370" in verdict[1]


def test_the_own_host_is_searched_at_the_start_and_nothing_is_dialled_after_the_goodbye() -> None:
    k = kernel(1, RANGE)
    effects = k.started(T)
    assert effects == [Dial(1, ip(1), 4371), Dial(2, ip(1), 4372)]
    assert HangUp(1) in k.left(T, "shutdown")
    assert k.deadline() is None


def test_a_node_finds_another_of_its_host_that_it_has_forgotten_though_a_third_one_is_connected() -> None:
    m = Meeting(RANGE, port=4372, name=f"{name(1)}:4372")
    for dial in m.kernel.started(T):
        assert isinstance(dial, Dial)
        m.kernel.channel_lost(T, dial.channel, "connection refused")
    mate = m.kernel.topology.meet(T, f"{name(1)}:4371")
    assert mate is not None
    mate.connection.phase = Phase.UP
    [dial] = m.kernel.tick(T + 0.5)
    assert isinstance(dial, Dial)
    assert (dial.ip, dial.port) == (ip(1), 4370)
    effects = m.kernel.answered(T + 0.5, dial.channel, iam(name(1)))
    assert Dial(dial.channel + 1, ip(1), 4370) in effects
    assert name(1) in m.kernel.topology.peers


@pytest.mark.parametrize("is_node", [True, False], ids=["a node of another cluster", "another program"])
def test_a_port_where_something_else_listens_is_left_alone_for_a_while(is_node: bool) -> None:
    m, channel = searching(RANGE.replace(node_ports=(4370, 4371)))
    if is_node:
        m.kernel.answered(T + 0.5, channel, iam(RANK, cluster="blue"))
    else:
        m.kernel.channel_lost(T + 0.5, channel, "no greeting of ZeroMQ", is_foreign=True)
    dials: list[float] = []
    while not dials:
        m.now = m.kernel.deadline() or 0.0
        dials += [m.now for each in m.kernel.tick(m.now) if isinstance(each, Dial) and each.port == 4371]
    assert dials[0] - (T + 0.5) >= RANGE.backoff_max_s


def test_a_guess_leaves_the_table_when_another_node_of_its_host_is_connected() -> None:
    m = Meeting(RANGE)
    m.kernel.looked_up(T, addresses(2))
    m.kernel.channel_lost(T, 1, "connection refused")
    up(m, RANK)
    assert list(m.kernel.topology.peers) == [RANK]
    m.kernel.looked_up(T + 5, addresses(2))
    assert list(m.kernel.topology.peers) == [RANK], "no new guess"
    assert m.kernel.topology.peers[RANK].in_dns
    assert m.kernel.topology.select(["dns"]) == [RANK]


def test_a_guess_that_is_being_dialled_leaves_when_the_dial_fails() -> None:
    m = Meeting(RANGE)
    m.kernel.looked_up(T, addresses(2))
    up(m, RANK)
    assert list(m.kernel.topology.peers) == [name(2), RANK]
    assert said(m.kernel.channel_lost(T, 1, "connection refused")) == []
    assert list(m.kernel.topology.peers) == [RANK]


def test_a_record_with_a_port_names_one_node_and_nothing_is_searched() -> None:
    m = Meeting(RANGE)
    answer = Answer(Outcome.ADDRESSES, (f"{ip(1)}:4370", f"{ip(2)}:4370", f"{ip(3)}:5000"), "3")
    assert quiet(m.kernel.looked_up(T, answer)) == [Dial(1, ip(2), 4370), Dial(2, ip(3), 5000)]
    assert list(m.kernel.topology.peers) == [name(2), f"{name(3)}:5000"]
    for channel in (1, 2):
        m.kernel.channel_lost(T, channel, "connection refused")
    assert not m.kernel.ports.searches
    assert all(row.in_dns for row in m.kernel.topology.info(T))
    m.kernel.looked_up(T + 5, Answer(Outcome.ADDRESSES, (f"{ip(2)}:4370",), "1"))
    assert not m.kernel.topology.peers[f"{name(3)}:5000"].in_dns


def test_dns_that_names_a_host_prunes_none_of_its_nodes() -> None:
    m = Meeting(RANGE.replace(prune_after_lookups=2))
    up(m, RANK)
    for lookup in range(5):
        m.kernel.looked_up(T + lookup, addresses(2))
    assert m.kernel.topology.peers[RANK].is_up
    for lookup in range(5):
        m.kernel.looked_up(T + 10 + lookup, addresses(3))
    assert not m.kernel.topology.peers[RANK].is_up


def test_aliases_are_addresses_with_the_port_of_their_node() -> None:
    m = Meeting(RANGE, aliases=("fd00::1",))
    up(m, RANK, aliases=("fd00::2",))
    table = m.kernel.topology
    assert table.peers[RANK].announced == ("[fd00::2]:4371",)
    table.learn_alias(T, "[fd00::2]:4371", RANK)
    assert table.aliases == {"fd00::1": name(1), "[fd00::2]:4371": RANK}
    assert table.meet(T, "fleetlm@[fd00::2]:4371") is None, "the same node"
    assert table.meet(T, "fleetlm@[fd00::2]:4372") is not None, "another one"
    m.kernel.looked_up(T, Answer(Outcome.ADDRESSES, ("fd00::2",), "1"))
    assert "fleetlm@fd00::2" not in table.peers, "a node of that host is connected"
    table.forget(table.peers[RANK])
    assert table.aliases == {"fd00::1": name(1)}


def test_a_stranger_at_an_address_with_several_nodes_is_not_taken_for_one_of_them() -> None:
    m = Meeting(RANGE)
    for port in (4371, 4372):
        m.kernel.heard_of(T, [f"{name(2)}:{port}"], TELLER)
    m.kernel.stranger_refused(T, ip(2), "authentication failed: another cookie")
    assert [row.last_error for row in m.kernel.topology.info(T)] == ["", ""]


def test_names_of_peers_lose_the_base_port() -> None:
    m = Meeting(RANGE)
    m.kernel.heard_of(T, [f"{name(2)}:4370", f"{name(1)}:4370"], TELLER)
    assert list(m.kernel.topology.peers) == [name(2)]


def test_the_own_host_is_searched_until_a_node_of_it_is_connected() -> None:
    m = Meeting(RANGE)
    assert m.kernel.topology.is_searched(ip(1))
    mate = m.kernel.topology.meet(T, f"{name(1)}:4371")
    assert mate is not None
    assert m.kernel.topology.is_searched(ip(1))
    mate.connection.phase = Phase.UP
    assert not m.kernel.topology.is_searched(ip(1))


def test_two_nodes_may_have_aliases_at_one_address() -> None:
    table = Meeting(RANGE).kernel.topology
    table.learn_alias(T, "fd00::2", name(2))
    table.learn_alias(T, "[fd00::2]:4371", RANK)
    assert table.meet(T, "fleetlm@fd00::2", introduced_by="fd00::2") is not None
    assert table.aliases == {"[fd00::2]:4371": RANK}


def test_the_own_address_is_not_taken_for_that_of_a_load_balancer() -> None:
    k = kernel(1, RANGE)
    k.looked_up(T, addresses(1))
    k.asked_for(T, f"api@{ip(1)}")
    k.opened(T, 1)
    answer = frames.refused(frames.Refused(Refusal.SELF, "", name(1)))
    assert not [text for _, text in said(k.answered(T, 1, answer)) if "load balancer" in text]
