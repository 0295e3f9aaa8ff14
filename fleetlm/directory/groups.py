"""Process groups: the replicated table of memberships, and what a program may ask of it.

Theory of operation. `core.group_table` decides who is a member of what and returns effects;
`ReplicatedGroups` performs them: a `Tell` goes to the other nodes through `Replication`, a `Joined` or
`Left` to the subscriptions. `Groups`, which a program holds, only reads that table, changes memberships
of this node's processes, and sends to members.

A membership is a row of the node on which the process runs, so joining and leaving is local and
immediate, and other nodes see it one hop later. Consequences for callers: `pick` may return a member that
has just ended (a call to it raises `NoProcess`), and two nodes may see different members for the time of
one hop. A group never shows a member on a node that is not connected, nor a member whose `Down` this node's
processes have got already (`directory.replication` explains both).

Source: OTP pg.erl; differs: one scope, groups are named by text, and the snapshot is part of `watch`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.actors.handlers import HasHandlers, check_actor
from fleetlm.actors.refs import ActorRefs, ManySender
from fleetlm.core.group_table import Effect, GroupTable, Tell
from fleetlm.core.picking import By, Key, Picker
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.messages import Joined, Left
from fleetlm.processes.running import plain_class

if TYPE_CHECKING:
    import random

    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.messaging.fan_out import FanOut
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses

A = TypeVar("A", bound=HasHandlers)

Change = Joined | Left


class ReplicatedGroups:
    """Implements `replication.Table` for memberships: performs what `GroupTable` decides.

    Args:
        context: of this node.
        local: this node's processes; only those that live may join.
        replication: carries the facts; this table adds itself to it.
        rng: source of chance for picks.
    """

    topic = "groups"

    def __init__(
        self, context: NodeContext, local: LocalProcesses, replication: Replication, rng: random.Random
    ) -> None:
        settings = context.settings
        self._context = context
        self._local = local
        self._replication = replication
        self.table: GroupTable = GroupTable(
            context.name, context.incarnation, settings.max_memberships, self._is_alive
        )
        self.picker: Picker = Picker(rng, self._load, context.is_draining)
        self.feed: Feed[Change] = Feed(settings.events_limit, _key, _gone, _undo)
        replication.add(self)

    def own_facts(self) -> Iterable[Any]:
        """Return all memberships of this node's processes."""
        return self.table.own_facts()

    def node_down(self, node: str) -> Iterator[None]:
        """Drop the memberships of a node's processes at the first step, and publish one with each step."""
        for effect in self.table.node_down(node):
            self.perform((effect,))
            yield

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """Take what a connected node says about its processes. Raises: ValueError for nonsense."""
        self.perform(self.table.told(node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        """Drop the memberships of a process of this node that has ended."""
        self.perform(self.table.exited(pid))

    def close(self) -> None:
        """End every subscription after what is queued. Called when the node stops."""
        self.feed.close()

    def perform(self, effects: Iterable[Effect]) -> None:
        """Tell the other nodes and the subscribers; forget how an empty group was picked from."""
        for effect in effects:
            if isinstance(effect, Tell):
                self._replication.tell(self.topic, effect.fact)
                continue
            self.feed.publish(effect)
            if isinstance(effect, Left) and not self.table.has(effect.group):
                self.picker.forget(effect.group)

    def _is_alive(self, pid: Pid) -> bool:
        return self._local.process(pid) is not None

    def _load(self, pid: Pid) -> int:
        """Return how many requests a process has outstanding, as far as this node knows."""
        if pid.node != self._context.name:
            session = self._context.sessions.get(pid.node)
            return 0 if session is None else session.load(pid.number)
        return self._local.load_of(pid)


class Groups:
    """`node.groups`: named groups of processes anywhere in the cluster, after Erlang's pg.

    A group exists while it has a member. Only the node of a process makes it join or leave, so there
    is no lock and no conflict: a node sees its own members at once, and those of a connected node one hop
    later. Members of a node that is lost leave. A process that ends leaves its groups before any
    process is told that it has ended.
    """

    def __init__(
        self, context: NodeContext, replicated: ReplicatedGroups, fan_out: FanOut, sender: ManySender
    ) -> None:
        self._context = context
        self._replicated = replicated
        self._table = replicated.table
        self._fan_out = fan_out
        self._sender = sender

    def join(self, group: str, *pids: Pid) -> None:
        """Make processes of this node members of a group; a process may join several times.

        Args:
            group: 1 to 255 printable characters.
            *pids: of this node.

        Raises:
            NoProcess: one of them has ended, or lives elsewhere; none of them joined.
            InvalidName: not a name for a group; none of them joined.
            TooManyMemberships: beyond `Settings.max_memberships`; none of them joined.
        """
        self._context.check_loop("Groups.join")
        self._replicated.perform(self._table.joined(group, pids))

    def leave(self, group: str, *pids: Pid) -> bool:
        """Take back one join of each of these processes of this node.

        Returns:
            False if one of them was not a member; the others have left nevertheless.
            Source: OTP pg:leave/2; differs: its ``not_joined`` says that none of them was a member.
        """
        self._context.check_loop("Groups.leave")
        effects = self._table.left(group, pids)
        self._replicated.perform(effects)
        return sum(isinstance(effect, Left) for effect in effects) == len(pids)

    def members(self, group: str) -> builtins.list[Pid]:
        """Return all members, by node name and number: the same order on every node.

        A process that joined twice is there twice. The list is empty where the group has no member.
        """
        return [*self._table.members(group)]

    def local_members(self, group: str) -> builtins.list[Pid]:
        """Return the members on this node, in the order of their numbers."""
        return self._table.local_members(group)

    def list(self) -> builtins.list[str]:
        """Return the groups that have a member anywhere, sorted. Source: OTP pg:which_groups/0."""
        return self._table.groups()

    def watch(self, group: str | None = None) -> Subscription[Change]:
        """Subscribe to changes: a `Joined` for every membership there is now, then every change.

        There is no gap in between. A process that joined several times leaves as often. Close the
        subscription when it is not needed any more. Source: OTP pg:monitor/1, which returns the members;
        differs: the snapshot is part of the stream.

        Args:
            group: only this group; None: all groups.
        """
        if group is None:
            return self._replicated.feed.subscribe()
        return self._replicated.feed.subscribe(lambda change: change.group == group)

    def pick(self, group: str, by: By = "random", key: Key | None = None) -> Pid:
        """Choose one member.

        * ``"random"``: each join has the same chance.
        * ``"round_robin"``: the member after the one that this node chose last, in the order of
          `members`; the first one is arbitrary.
        * ``"key"``: the same member for the same ``key`` on every node that knows the same members. A
          member that leaves gives away only its own keys, and one that joins takes only the keys that it
          gets. Source: rendezvous hashing, Thaler and Ravishankar 1998.
        * ``"least_loaded"``: the member with the fewest requests outstanding as far as this node knows: for
          a member on this node the messages in its mailbox and the calls that it has not answered; for
          another one the messages that this node sent and it has not taken, and this node's calls that it
          has not answered. Chance decides among equals. It looks at every member. Source:
          least-request balancing of HTTP proxies; differs: messages count.

        A member on a node that is draining is chosen only where all members are on such nodes. For
        ``"round_robin"``, ``"key"`` and ``"least_loaded"`` a process that joined twice counts once.

        Args:
            group: its name.
            by: the rule.
            key: for ``by="key"``. ``"7"``, ``b"7"`` and ``7`` are three keys.

        Raises:
            NoMember: the group has no member.
            ValueError, TypeError: ``by`` is not one of these rules, or ``key`` does not fit it.
        """
        return self._replicated.picker.pick(group, self._table.members(group), by, key)

    async def broadcast(self, group: str, message: Any, *, local_only: bool = False) -> int:
        """Send to every member, encoded once; to a process that joined several times once.

        Waits for members whose windows are full, after it has sent to all others. Members that have no room
        within `Settings.send_timeout_s` are passed over. Members on this node get the object itself.

        Args:
            group: its name.
            message: as `Node.send`.
            local_only: only to members on this node.

        Returns:
            The number of members to which it was sent.

        Raises:
            NotSerializable: nothing was sent.
            MessageTooLarge: for one of the nodes; members on others may have got it.
            NodeStopped: this node has been stopped.
        """
        members = self._table.local_members(group) if local_only else self._table.members(group)
        return await self._fan_out.send(dict.fromkeys(members), message)

    def refs(self, actor: Callable[..., A], group: str) -> ActorRefs[A]:
        """Return typed references to the actors that are members at the moment of each use, each once.

        ::

            loads = await node.groups.refs(Model, "models").multicall(Model.load)

        Args:
            actor: their class, or a base class of it that has the handlers.
            group: its name.

        Raises:
            TypeError: ``actor`` is not a subclass of `Actor`.
        """
        check_actor(actor)
        return ActorRefs(self._sender, plain_class(actor), lambda: dict.fromkeys(self.members(group)))


def _key(change: Change) -> Hashable:
    return (change.group, change.pid)


def _gone(change: Change) -> bool:
    return isinstance(change, Left)


def _undo(change: Change) -> Change:
    return Left(change.group, change.pid, "missed: this subscriber reads too slowly")
