"""Says who holds the ports that a node cannot bind: for `StartFailed`, and for `fleetlm doctor`.

Two things are found out about each port. `port_holders` finds the socket and, where this user may see it, the
process. And the program that listens is asked who it is (`probe`), which also works where its process cannot
be seen: a node of another user, or of another container that shares this network.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from fleetlm.names import MAX_PORT
from fleetlm.records import Record
from fleetlm.settings import Settings
from fleetlm.transport.port_holders import ANY_IPS, PortHolder, find_holders
from fleetlm.transport.probe import probe
from fleetlm.wire.frames import IAm

ASK_S: Final = 1.0
"""Seconds for the programs to say who they are, all at the same time: a node answers in milliseconds."""
MAX_ASKED: Final = 32
"""Ports whose programs are asked. Each question needs descriptors and a thread for a moment."""
MAX_SHOWN: Final = 32
"""Ports with a line of their own; a range may have 256."""
LOOPBACK: Final = "127.0.0.1"


class TakenPort(Record):
    """What is known of a port that cannot be bound.

    Attributes:
        port: the port.
        holders: the sockets that hold it; empty where the system does not tell.
        node: what the node there says about itself; None if no node of this cluster answered.
        was_asked: whether the program there was asked who it is.
    """

    port: int
    holders: tuple[PortHolder, ...] = ()
    node: IAm | None = None
    was_asked: bool = False


async def look_at_ports(ip: str, ports: Sequence[int], settings: Settings) -> list[TakenPort]:
    """Find out who holds each port. Takes at most `ASK_S` seconds, and a moment for the processes.

    Args:
        ip: the address on which a node would listen.
        ports: the ports that it cannot bind.
        settings: the cookie and the limits.
    """
    found = find_holders(ports, ip)  # Not in a thread: a program may have replaced those by gevent's.
    missing = set(ports) - {each.port for each in found}
    found += find_holders(missing)  # Behind NAT a node listens on all addresses, so each of them counts.

    async def look_at(number: int, port: int) -> TakenPort:
        holders = tuple(each for each in found if each.port == port)
        is_asked = number < MAX_ASKED and (not holders or holders[0].is_listening)
        where = LOOPBACK if holders and holders[0].ip in ANY_IPS else ip
        answer = await probe(where, port, settings, ASK_S) if is_asked else None
        return TakenPort(port, holders, answer if isinstance(answer, IAm) else None, was_asked=is_asked)

    return list(await asyncio.gather(*(look_at(number, port) for number, port in enumerate(ports))))


def explain_taken(taken: Sequence[TakenPort], slot: int | None = None) -> str:
    """Return why a node cannot listen, with one line for each port, and what to do.

    Args:
        taken: all ports on which the node may listen, in order.
        slot: `Settings.node_slot`, if that fixes the port.
    """
    lines = [f"  {each.port}: {describe_holder(each)}" for each in taken[:MAX_SHOWN]]
    if len(taken) > MAX_SHOWN:
        lines.append(f"  and {len(taken) - MAX_SHOWN} more")
    return "\n".join([f"{name_ports(taken, slot)} is in use:", *lines, advise(taken, slot)])


def name_ports(taken: Sequence[TakenPort], slot: int | None = None) -> str:
    """Return which ports are meant, with the variable that says so."""
    first, last = taken[0].port, taken[-1].port
    if slot is not None:
        return f"port {first} (FLEETLM_NODE_SLOT={slot})"
    if first == last:
        return f"port {first} (FLEETLM_NODE_PORT)"
    return f"each of the {len(taken)} ports {first}-{last} (FLEETLM_NODE_PORT)"


def advise(taken: Sequence[TakenPort], slot: int | None = None) -> str:
    """Return what to do where all these ports are taken."""
    first, last = taken[0].port, taken[-1].port
    if slot is not None:
        advice = ["Stop it, or give this process another FLEETLM_NODE_SLOT."]
    elif first == last:
        share = f"{first}-{min(first + 15, MAX_PORT)}"
        advice = [
            f"Stop it, or give the nodes of the cluster a range, all the same: FLEETLM_NODE_PORT={share}."
        ]
    else:
        wider = f"{first}-{min(last + len(taken), MAX_PORT)}"
        advice = [f"Stop one of them, or widen the range upwards: FLEETLM_NODE_PORT={wider}."]
    if any(each.holders and not each.holders[0].is_listening for each in taken):
        ports = str(first) if first == last else f"{first}-{last}"
        advice.append(
            "Keep outgoing connections away from these ports: "
            f"sysctl -w net.ipv4.ip_local_reserved_ports={ports}."
        )
    if any(not each.holders or each.holders[0].pid is None for each in taken):
        advice.append(f"On the host, root sees the processes of all containers: {_command(first, last)}")
    return "\n".join(advice)


def describe_holder(taken: TakenPort) -> str:
    """Return who holds a port, as far as that was seen."""
    process = _describe_process(taken.holders[0]) if taken.holders else ""
    if taken.node is not None:
        return f"{taken.node.name}, {process}" if process else taken.node.name
    if not taken.holders:
        return "no program can be seen there: perhaps it has just ended"
    if not taken.holders[0].is_listening:
        return f"a connection of {process}"
    return f"{process}, which does not answer as a node of this cluster" if taken.was_asked else process


def _describe_process(holder: PortHolder) -> str:
    if holder.pid == os.getpid():
        return f"this process ({holder.pid})"
    if holder.pid is not None:
        return f"process {holder.pid} ({holder.command or 'it has ended'})"
    if os.geteuid() not in (0, holder.uid):
        return f"a process of user {holder.uid} that this user may not look into"
    return "a process that cannot be seen from here, perhaps in another container that shares this network"


def _command(first: int, last: int) -> str:
    """Return the command that shows the processes which hold ports."""
    if not sys.platform.startswith("linux"):
        return f"lsof -nP -iTCP:{first}" + (f"-{last}" if last > first else "")
    which = f"sport = :{first}" if first == last else f"sport >= :{first} and sport <= :{last}"
    return f"ss -tanp '{which}'"
