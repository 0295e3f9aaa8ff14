"""What a node that finds no free port says about the programs that hold them."""

from __future__ import annotations

import os
import socket

import pytest

from fleetlm import Node, Settings
from fleetlm.transport.port_holders import PortHolder
from fleetlm.transport.taken_ports import TakenPort, describe_holder, explain_taken, look_at_ports
from fleetlm.wire.frames import IAm
from tests.support.transport_rig import PORT, free_ip


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


def a_node(name: str = "fleetlm@10.0.0.7") -> IAm:
    return IAm(name=name, incarnation=1, cluster="", connected=3)


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        (
            TakenPort(4370, (held(command="python w.py"),), a_node()),
            "fleetlm@10.0.0.7, process 12 (python w.py)",
        ),
        (TakenPort(4370, (held(),)), "process 12 (nginx), which does not answer as a node of this cluster"),
        (
            TakenPort(4370, (held(pid=os.getpid()),), a_node()),
            f"fleetlm@10.0.0.7, this process ({os.getpid()})",
        ),
        (TakenPort(4370, (held(command=""),)), "process 12 (it has ended), which"),
        (TakenPort(4370, (held(is_listening=False),)), "a connection of process 12 (nginx)"),
        (TakenPort(4370, (), a_node()), "fleetlm@10.0.0.7"),
        (TakenPort(4370), "a program that this system does not name, and that does not answer"),
        (
            TakenPort(4370, (held(pid=None),), a_node()),
            "fleetlm@10.0.0.7, a process that cannot be seen from here, perhaps in another container",
        ),
        (
            TakenPort(4370, (held(pid=None, uid=54321),)),
            "a process of user 54321 that this user may not look into, which does not answer as a node",
        ),
    ],
)
def test_who_holds_a_port(taken: TakenPort, words: str) -> None:
    assert describe_holder(taken).startswith(words)


def test_a_full_range_names_each_holder_and_says_what_to_do() -> None:
    full = [
        TakenPort(4370, (held(command="python w.py"),), a_node()),
        TakenPort(4371, (held(4371, pid=13),)),
    ]
    assert explain_taken(full) == (
        "each of the 2 ports 4370-4371 (FLEETLM_NODE_PORT) is in use:\n"
        "  4370: fleetlm@10.0.0.7, process 12 (python w.py)\n"
        "  4371: process 13 (nginx), which does not answer as a node of this cluster\n"
        "Stop one of them, or widen the range, on every node of the cluster: FLEETLM_NODE_PORT=4370-4373."
    )


def test_a_slot_that_is_taken_says_so() -> None:
    text = explain_taken([TakenPort(4373, (held(4373),))], slot=3)
    assert text.startswith("port 4373 (FLEETLM_NODE_SLOT=3) is in use:\n  4373: process 12 (nginx)")
    assert text.endswith("Stop it, or give this process another FLEETLM_NODE_SLOT.")


def test_a_single_port_that_is_taken_leads_to_a_range() -> None:
    text = explain_taken([TakenPort(4370, (held(),))])
    assert "port 4370 (FLEETLM_NODE_PORT) is in use:" in text
    assert "a range, each of them the same: FLEETLM_NODE_PORT=4370-4385" in text


def test_an_outgoing_connection_leads_to_the_kernels_setting() -> None:
    text = explain_taken([TakenPort(4370, (held(is_listening=False),)), TakenPort(4371, (held(4371),))])
    assert "sysctl -w net.ipv4.ip_local_reserved_ports=4370-4371" in text


def test_a_process_that_cannot_be_seen_leads_to_root() -> None:
    text = explain_taken([TakenPort(4370, (held(pid=None),)), TakenPort(4371)])
    assert "Root sees all processes of this machine: ss -tanp 'sport >= :4370 and sport <= :4371'" in text
    assert "Root" not in explain_taken([TakenPort(4370, (held(),))])


async def test_programs_are_asked_who_they_are() -> None:
    ip = free_ip()
    settings = Settings(node_ip=ip, node_ports=(PORT, PORT), dns_query=ip, remote=False)
    async with Node.start(settings) as node:
        with socket.create_server((ip, PORT + 1)):
            one, two = await look_at_ports(ip, [PORT, PORT + 1], settings)
    assert one.node is not None
    assert one.node.name == node.name
    assert (two.port, two.node) == (PORT + 1, None)
    assert {each.pid for found in (one, two) for each in found.holders} == {os.getpid()}
