"""What a node that finds no free port says about the programs that hold them."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from fleetlm import Node, Settings
from fleetlm.transport.port_holders import PortHolder
from fleetlm.transport.taken_ports import (
    MAX_SHOWN,
    TakenPort,
    describe_holder,
    explain_taken,
    look_at_ports,
)
from fleetlm.wire.frames import IAm
from tests.support.transport_rig import PORT, free_ip

SILENT = "which does not answer as a node of this cluster"
UNSEEN = "a process that cannot be seen from here, perhaps in another container that shares this network"


def held(port: int = 4370, **changes: object) -> PortHolder:
    known = {
        "ip": "10.0.0.7",
        "is_listening": True,
        "uid": os.geteuid(),
        "inode": 5,
        "pid": 12,
        "command": "nginx",
    }
    return PortHolder(port=port, **(known | changes))  # type: ignore[arg-type]


def taken(*holders: PortHolder, port: int = 4370, node: IAm | None = None) -> TakenPort:
    return TakenPort(port, holders, node, was_asked=True)


def a_node(name: str = "fleetlm@10.0.0.7") -> IAm:
    return IAm(name=name, cluster="", connected=3)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (taken(held(command="python w.py"), node=a_node()), "fleetlm@10.0.0.7, process 12 (python w.py)"),
        (taken(held()), f"process 12 (nginx), {SILENT}"),
        (TakenPort(4370, (held(),)), "process 12 (nginx)"),
        (
            taken(held(command="")),
            f"process 12 (it has ended), {SILENT}",
        ),
        (taken(held(is_listening=False)), "a connection of process 12 (nginx)"),
        (taken(node=a_node()), "fleetlm@10.0.0.7"),
        (taken(), "no program can be seen there: perhaps it has just ended"),
        (taken(held(pid=None), node=a_node()), f"fleetlm@10.0.0.7, {UNSEEN}"),
    ],
)
def test_who_holds_a_port(port: TakenPort, words: str) -> None:
    assert describe_holder(port) == words


def test_this_process_is_named_as_such() -> None:
    ours = taken(held(pid=os.getpid()), node=a_node())
    assert describe_holder(ours) == f"fleetlm@10.0.0.7, this process ({os.getpid()})"


def test_a_process_of_another_user_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = taken(held(pid=None, uid=33))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert describe_holder(theirs).startswith("a process of user 33 that this user may not look into, which")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert describe_holder(theirs).startswith(UNSEEN)


def test_a_full_range_names_each_holder_and_says_what_to_do() -> None:
    full = [taken(held(command="python w.py"), node=a_node()), taken(held(4371, pid=13), port=4371)]
    assert explain_taken(full) == (
        "each of the 2 ports 4370-4371 (FLEETLM_NODE_PORT) is in use:\n"
        "  4370: fleetlm@10.0.0.7, process 12 (python w.py)\n"
        "  4371: process 13 (nginx), which does not answer as a node of this cluster\n"
        "Stop one of them, or widen the range upwards: FLEETLM_NODE_PORT=4370-4373."
    )


def test_a_wide_range_is_not_listed_to_its_end() -> None:
    text = explain_taken([taken(held(4370 + each), port=4370 + each) for each in range(100)])
    assert len(text.splitlines()) == MAX_SHOWN + 3
    assert "  and 68 more" in text


def test_a_slot_that_is_taken_says_so() -> None:
    text = explain_taken([taken(held(4373), port=4373)], slot=3)
    assert text.startswith("port 4373 (FLEETLM_NODE_SLOT=3) is in use:\n  4373: process 12 (nginx)")
    assert text.endswith("Stop it, or give this process another FLEETLM_NODE_SLOT.")


def test_a_single_port_that_is_taken_leads_to_a_range() -> None:
    text = explain_taken([taken(held())])
    assert "port 4370 (FLEETLM_NODE_PORT) is in use:" in text
    assert "give the nodes of the cluster a range, all the same: FLEETLM_NODE_PORT=4370-4385." in text


def test_an_outgoing_connection_leads_to_the_kernels_setting() -> None:
    text = explain_taken([taken(held(is_listening=False)), taken(held(4371), port=4371)])
    assert "sysctl -w net.ipv4.ip_local_reserved_ports=4370-4371." in text


def test_a_process_that_cannot_be_seen_leads_to_root(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [taken(held(pid=None)), taken(port=4371)]
    monkeypatch.setattr(sys, "platform", "linux")
    assert explain_taken(hidden).endswith("ss -tanp 'sport >= :4370 and sport <= :4371'")
    assert explain_taken(hidden[:1]).endswith("ss -tanp 'sport = :4370'")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert explain_taken(hidden).endswith("lsof -nP -iTCP:4370-4371")
    assert "root" not in explain_taken([taken(held())])


async def test_programs_are_asked_who_they_are() -> None:
    ip = free_ip()
    settings = Settings(node_ip=ip, node_ports=(PORT, PORT + 1), dns_query=ip, remote=False)
    async with Node.start(settings) as node:
        with socket.create_server((ip, PORT + 1)):
            one, two = await look_at_ports(ip, [PORT, PORT + 1], settings)
    assert one.node is not None
    assert one.node.name == node.name
    assert (two.port, two.node) == (PORT + 1, None)
    assert {each.pid for found in (one, two) for each in found.holders} == {os.getpid()}
