"""What puppets and nodes do with groups: `node.groups` after OTP's pg."""

from __future__ import annotations

import contextlib

from fleetlm import NoProcess, Pid
from tests.conformance.ours import Extra, Puppet, Stage
from tests.conformance.script import Step

PREFIX = "pg/"


async def join(puppet: Puppet, words: Step) -> None:
    """A dead process that joins is a member that has ended already: either way, none."""
    with contextlib.suppress(NoProcess):
        puppet.process.node.groups.join(words[0], _who(puppet, words))


async def leave(puppet: Puppet, words: Step) -> None:
    """And say whether it had joined."""
    left = puppet.process.node.groups.leave(words[0], _who(puppet, words))
    puppet.note("leave ok" if left else "leave not_joined")


def members(stage: Stage, group: str, home: str) -> None:
    """What a node says of a group."""
    groups = stage.nodes[home].groups
    for what, pids in ((" has", groups.members(group)), (" has here", groups.local_members(group))):
        labels = sorted(stage.labels[pid] for pid in pids)
        stage.note(f"at {home}", " ".join([group + what, *labels]))


def _who(puppet: Puppet, words: Step) -> Pid:
    return puppet.stage.who(words[1] if len(words) > 1 else "me", puppet.process)


GROUPS = Extra({"join": join, "leave": leave}, members)
