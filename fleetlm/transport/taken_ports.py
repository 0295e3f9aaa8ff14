"""Says who holds the ports that a node cannot bind: for `StartFailed`, and for `fleetlm doctor`.

Two things are found out about each port. `port_holders` finds the socket and, where this user may see it, the
process. And the program that listens is asked who it is (`probe`), which also works where its process cannot
be seen: a node of another user, or of another container that shares this network.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fleetlm.settings import Settings
from fleetlm.transport.port_holders import ANY_IPS, PortHolder, find_holders
from fleetlm.transport.probe import probe
from fleetlm.wire.frames import IAm

ASK_S: Final = 1.0
"""Seconds for the programs to say who they are, all at the same time: a node answers in milliseconds."""
MAX_ASKED: Final = 32
"""Ports whose programs are asked. Each question needs descriptors and a thread for a moment."""
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class TakenPort:
    """What is known of a port that cannot be bound.

    Attributes:
        port: the port.
        holders: the sockets that hold it; empty where the system does not tell.
        node: what the node there says about itself; None if no node of this cluster answered.
    """

    port: int
    holders: tuple[PortHolder, ...] = ()
    node: IAm | None = None


async def look_at_ports(ip: str, ports: Sequence[int], settings: Settings) -> list[TakenPort]:
    """Find out who holds each port. Takes at most `ASK_S` seconds, and a moment for the processes.

    Args:
        ip: the address on which a node would listen.
        ports: the ports that it cannot bind.
        settings: the cookie and the limits.
    """
    found = find_holders(ports, ip)  # Not in a thread: a program may have replaced those by gevent's.

    async def look_at(number: int, port: int) -> TakenPort:
        holders = tuple(each for each in found if each.port == port)
        is_asked = number < MAX_ASKED and (not holders or holders[0].is_listening)
        where = LOOPBACK if holders and holders[0].ip in ANY_IPS else ip
        answer = await probe(where, port, settings, ASK_S) if is_asked else None
        return TakenPort(port, holders, answer if isinstance(answer, IAm) else None)

    return list(await asyncio.gather(*(look_at(number, port) for number, port in enumerate(ports))))


def explain_taken(taken: Sequence[TakenPort], slot: int | None = None) -> str:
    """Return why a node cannot listen, with one line for each port, and what to do.

    Args:
        taken: all ports on which the node may listen, in order.
        slot: `Settings.node_slot`, if that fixes the port.
    """
    first, last = taken[0].port, taken[-1].port
    if slot is not None:
        what, cure = f"port {first} (FLEETLM_NODE_SLOT={slot})", "give this process another FLEETLM_NODE_SLOT"
    elif len(taken) == 1:
        share = f"{first}-{min(first + 15, 65_535)}"
        what = f"port {first} (FLEETLM_NODE_PORT)"
        cure = f"give the nodes of the cluster a range, each of them the same: FLEETLM_NODE_PORT={share}"
    else:
        wider = f"{first}-{min(last + len(taken), 65_535)}"
        what = f"each of the {len(taken)} ports {first}-{last} (FLEETLM_NODE_PORT)"
        cure = f"widen the range, on every node of the cluster: FLEETLM_NODE_PORT={wider}"
    lines = [f"{what} is in use:", *(f"  {line}" for line in describe_ports(taken))]
    lines.append(f"Stop {'it' if len(taken) == 1 else 'one of them'}, or {cure}.")
    lines += _further_advice(taken)
    return "\n".join(lines)


def describe_ports(taken: Iterable[TakenPort]) -> list[str]:
    """Return a line for each port: who holds it."""
    return [f"{each.port}: {describe_holder(each)}" for each in taken]


def describe_holder(taken: TakenPort) -> str:
    """Return who holds a port, as far as that was seen."""
    process = _describe_process(taken.holders[0]) if taken.holders else ""
    if taken.node is not None:
        return f"{taken.node.name}, {process}" if process else taken.node.name
    if not taken.holders:
        return "a program that this system does not name, and that does not answer as a node of this cluster"
    if not taken.holders[0].is_listening:
        return f"a connection of {process}"
    return f"{process}, which does not answer as a node of this cluster"


def _describe_process(holder: PortHolder) -> str:
    if holder.pid == os.getpid():
        return f"this process ({holder.pid})"
    if holder.pid is not None:
        return f"process {holder.pid} ({holder.command or 'it has ended'})"
    if holder.uid != os.geteuid():
        return f"a process of user {holder.uid} that this user may not look into"
    return "a process that cannot be seen from here, perhaps in another container that shares this network"


def _further_advice(taken: Collection[TakenPort]) -> list[str]:
    first = min(each.port for each in taken)
    last = max(each.port for each in taken)
    advice = []
    if any(each.holders and not each.holders[0].is_listening for each in taken):
        ports = str(first) if first == last else f"{first}-{last}"
        advice.append(
            "Keep outgoing connections away from these ports: "
            f"sysctl -w net.ipv4.ip_local_reserved_ports={ports}"
        )
    if any(not each.holders or each.holders[0].pid is None for each in taken):
        which = f"sport = :{first}" if first == last else f"sport >= :{first} and sport <= :{last}"
        advice.append(f"Root sees all processes of this machine: ss -tanp '{which}'")
    return advice
