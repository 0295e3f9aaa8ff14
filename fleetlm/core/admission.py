"""Whether a node may connect: the checks of a HELLO, beginning with the reasons that help people most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetlm.names import NodeName
from fleetlm.wire.frames import PROTOCOL_MAX, PROTOCOL_MIN, Hello, Refusal, Refused

if TYPE_CHECKING:
    from fleetlm.core.connection import Identity


ONE_BASENAME = (
    ": the nodes of one cluster have one DNS_CLUSTER_NODE_BASENAME. To tell them apart use process groups, "
    "for several nodes on one machine a range of ports (FLEETLM_NODE_PORT=4370-4385), and to keep two "
    "clusters apart FLEETLM_CLUSTER"
)
"""What to do where nodes of two basenames meet in one cluster."""


def judge(me: Identity, hello: Hello, *, leaving: bool) -> tuple[Refusal, str] | None:
    """Check a HELLO.

    Returns:
        None if the handshake may go on; otherwise the refusal, and its detail for the logs of both sides.
    """
    if (hello.name, hello.incarnation) == (me.name, me.incarnation):
        return Refusal.SELF, _describe_self(me, hello.dialled)
    if hello.protocol_max < PROTOCOL_MIN or hello.protocol_min > PROTOCOL_MAX:
        return Refusal.INCOMPATIBLE, (
            f"{hello.name} speaks protocol {hello.protocol_min} to {hello.protocol_max}, "
            f"{me.name} {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade the older one"
        )
    if hello.cluster != me.cluster:
        return Refusal.WRONG_CLUSTER, (
            f"{hello.name} is of cluster {hello.cluster!r}, {me.name} of {me.cluster!r} (FLEETLM_CLUSTER)"
        )
    if hello.base_port != me.base_port:
        return Refusal.OTHER_BASE_PORT, (
            f"the first port of {hello.name} is {hello.base_port}, that of {me.name} {me.base_port}: set "
            "FLEETLM_NODE_PORT to ranges with the same first port on all nodes of the cluster"
        )
    if not same_fleet(me.name, hello.name):
        return Refusal.OTHER_BASENAME, f"{hello.name} is not named as {me.name} is{ONE_BASENAME}"
    if hello.dialled != me.name:
        return Refusal.WRONG_NAME, f"you dialled {hello.dialled}, I am {me.name}{_advise(me, hello)}"
    if hello.name == me.name or NodeName.parse(hello.name).address in me.alias_addresses:
        return Refusal.DUPLICATE_NAME, (
            f"{hello.name} is my name or has an address of mine: two nodes have the same address and port, "
            "check FLEETLM_NODE_IP"
        )
    if leaving:
        return Refusal.DRAINING, f"{me.name} is leaving"
    return None


def _describe_self(me: Identity, dialled: str) -> str:
    if dialled == me.name:
        return f"{dialled} is this node itself"
    text = f"at the address of {dialled} this node itself answers, {me.name}"
    return text if same_fleet(me.name, dialled) else text + ONE_BASENAME


def refused_by(answer: Refused) -> str:
    """Return the text of a refusal for the dialler's table and log."""
    return f"refused by {answer.name}: {answer.refusal.word} ({answer.detail})"


def duplicate(hello: Hello) -> str:
    """Return why a HELLO in the name of a connected node is refused that its address does not confirm."""
    return (
        f"{hello.name} is connected, and what answers at its address did not dial anew: perhaps two nodes "
        "have the same name, check FLEETLM_NODE_IP"
    )


def _advise(me: Identity, hello: Hello) -> str:
    """Return what to do where two basenames meet in one cluster; "" where they are the same."""
    return "" if same_fleet(me.name, hello.dialled) else ONE_BASENAME


def same_fleet(mine: str, other: str) -> bool:
    """Whether two names share a basename: only such nodes are found through the same DNS name."""
    return mine.partition("@")[0] == other.partition("@")[0]
