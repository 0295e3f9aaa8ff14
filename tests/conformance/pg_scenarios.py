"""What puppets and nodes do with groups: `node.groups` after OTP's pg."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

from fleetlm import Node, NoProcess, Pid
from tests.conformance.ours import Extra, Puppet, Stage
from tests.conformance.script import Step

PREFIX = "pg/"


def exist() -> bool:
    """Whether this version has groups."""
    return importlib.util.find_spec("fleetlm.core.groups") is not None and hasattr(Node, "groups")


def groups_of(node: Node) -> Any:
    """``join``, ``leave``, ``members`` and ``local_members`` of a node."""
    return node.groups  # type: ignore[attr-defined,unused-ignore]


async def join(puppet: Puppet, words: Step) -> None:
    """A dead process that joins is a member that has ended already: either way, none."""
    with contextlib.suppress(NoProcess):
        groups_of(puppet.process.node).join(words[0], _who(puppet, words))


async def leave(puppet: Puppet, words: Step) -> None:
    """And say whether it had joined."""
    left = groups_of(puppet.process.node).leave(words[0], _who(puppet, words))
    puppet.note("leave ok" if left else "leave not_joined")


def members(stage: Stage, group: str, home: str) -> None:
    """What a node says of a group."""
    groups = groups_of(stage.nodes[home])
    for what, pids in ((" has", groups.members(group)), (" has here", groups.local_members(group))):
        labels = sorted(stage.labels[pid] for pid in pids)
        stage.note(f"at {home}", " ".join([group + what, *labels]))


def _who(puppet: Puppet, words: Step) -> Pid:
    return puppet.stage.who(words[1] if len(words) > 1 else "me", puppet.process)


GROUPS = Extra({"join": join, "leave": leave}, members)
