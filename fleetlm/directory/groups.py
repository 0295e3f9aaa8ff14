"""Process groups: performs what `core.groups` decides, and sends to members."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

from fleetlm.core.group_table import Effect, GroupTable, Tell
from fleetlm.core.picking import By, Key, Picker
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.errors import NoConnection, NodeStopped, NoProcess
from fleetlm.messages import Joined, Left

if TYPE_CHECKING:
    import random

    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.node import Node
    from fleetlm.wire.codec import Codec

Change = Joined | Left


class Groups:
    """`node.groups`: named groups of processes anywhere in the cluster, after Erlang's pg.

    A group exists while it has a member. Only the node of a process makes it join or leave, so there
    is no lock and no conflict: every node knows its own members at once, those of a connected node
    one hop later, and those of a lost one no more. A member that ends leaves, before anybody hears
    that it has ended.
    """

    topic = "groups"

    def __init__(
        self, node: Node, tables: Replication, messenger: Messenger, codec: Codec, rng: random.Random
    ) -> None:
        self._node = node
        self._tables = tables
        self._messenger = messenger
        self._codec = codec
        self._table = GroupTable(node.name, node.incarnation, node.settings.max_memberships, self._alive)
        self._picker = Picker(rng, self._load, self._draining)
        self._feed: Feed[Change] = Feed(node.settings.events_limit, _key, _gone, _undo)

    # What a program asks.

    def join(self, group: str, *pids: Pid) -> None:
        """Make processes of this node members of a group; one may join several times.

        Args:
            group: 1 to 255 printable characters.
            *pids: of this node.

        Raises:
            NoProcess: one of them has ended, or lives elsewhere; nobody joined.
            InvalidName: not a name for a group; nobody joined.
            TooManyMemberships: beyond `Settings.max_memberships`; nobody joined.
        """
        self._perform(self._table.joined(group, pids))

    def leave(self, group: str, *pids: Pid) -> bool:
        """Take back one join of each of these processes of this node.

        Returns:
            False if one of them was no member (any more); the others have left all the same.
            Source: OTP pg:leave/2; differs: its ``not_joined`` says that nobody was a member.
        """
        effects = self._table.left(group, pids)
        self._perform(effects)
        return sum(isinstance(order, Left) for order in effects) == len(pids)

    def members(self, group: str) -> builtins.list[Pid]:
        """All members, by node name and number: the same order on every node.

        One that joined twice is there twice. Empty where nobody has joined.
        """
        return [*self._table.members(group)]

    def local_members(self, group: str) -> builtins.list[Pid]:
        """The members on this node, in the order of their numbers."""
        return self._table.local_members(group)

    def list(self) -> builtins.list[str]:
        """The groups that have a member anywhere, sorted. Source: OTP pg:which_groups/0."""
        return self._table.groups()

    def watch(self, group: str | None = None) -> Subscription[Change]:
        """Changes of one group, or of all: a `Joined` for every membership there is, then every change.

        With no gap between. What was joined several times is left as often.
        Source: OTP pg:monitor/1, which returns the members; differs: the snapshot is part of the stream.
        """
        if group is None:
            return self._feed.subscribe()
        return self._feed.subscribe(lambda change: change.group == group)

    def pick(self, group: str, by: By = "random", key: Key | None = None) -> Pid:
        """Choose one member.

        * ``"random"``: each join has the same chance.
        * ``"round_robin"``: the member after the one that this node chose last, in the order of
          `members`; begins anywhere.
        * ``"key"``: the same member for the same ``key`` on every node that knows the same members. A
          member that goes gives away its own keys alone; one that comes takes only what it gets.
          Source: rendezvous hashing, Thaler and Ravishankar 1998.
        * ``"least_loaded"``: fewest requests outstanding as this node knows them: of a member here what
          waits in its mailbox and the calls it has not answered; of another one what this node sent and
          it has not taken, and this node's calls that it has not answered. Chance among equals. Costs a
          look at every member. Source: least-request balancing of HTTP proxies; differs: messages count.

        A member on a node that is draining is chosen only where there is nobody else. In the last
        three a process that joined twice counts once.

        Args:
            group: its name.
            by: the rule.
            key: for ``by="key"``. ``"7"``, ``b"7"`` and ``7`` are three keys.

        Raises:
            NoMember: the group is empty.
            ValueError, TypeError: no such rule, or a key that does not fit it.
        """
        return self._picker.pick(group, self._table.members(group), by, key)

    async def broadcast(self, group: str, message: Any, *, local_only: bool = False) -> int:
        """Send to every member, encoded once; to one that joined several times once.

        Waits for members whose windows are full, after it has sent to all others. Those of this node
        get the object itself.

        Args:
            group: its name.
            message: as `Node.send`.
            local_only: only to members on this node.

        Returns:
            To how many members it was sent.

        Raises:
            NotSerializable: nothing was sent.
            MessageTooLarge: for one of the nodes; members on others may have got it.
            NodeStopped: this node has been stopped.
        """
        if self._messenger.stopped:
            raise NodeStopped(self._node.name, self._messenger.stopped)
        known = self._table.local_members(group) if local_only else self._table.members(group)
        members = dict.fromkeys(known)
        abroad = {pid.node for pid in members} - {self._node.name}
        payload = self._codec.pack_value(message) if abroad else b""
        sender = asyncio.current_task()
        sent, behind = 0, []
        for pid in members:
            try:
                if self._messenger.put_packed(pid, payload, message, sender):
                    sent += 1
                else:
                    behind.append(pid)
            except (NoConnection, NoProcess):
                continue
        if behind:
            waits = [self._send_later(pid, payload, message, sender) for pid in behind]
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                sent += outcome
        elif any(node in abroad and session.must_yield() for node, session in self._node.sessions.items()):
            await asyncio.sleep(0)
        return sent

    # `tables.Table`.

    def own_facts(self) -> Iterable[Any]:
        """All memberships of this node's processes."""
        return self._table.own_facts()

    def node_down(self, node: str) -> None:
        """Its members are members no more."""
        self._perform(self._table.node_down(node))

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """A connected node said who of its processes came or went. Raises: ValueError."""
        self._perform(self._table.told(node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        """A process of this node has ended: it leaves."""
        self._perform(self._table.exited(pid))

    def close(self) -> None:
        """The node stops: every subscription ends after what is queued."""
        self._feed.close()

    # How.

    def _perform(self, effects: Iterable[Effect]) -> None:
        for order in effects:
            if isinstance(order, Tell):
                self._tables.tell(self.topic, order.fact)
                continue
            self._feed.publish(order)
            if isinstance(order, Left) and not self._table.has(order.group):
                self._picker.forget(order.group)

    async def _send_later(self, pid: Pid, payload: bytes, message: Any, sender: Hashable) -> int:
        try:
            await self._messenger.send_packed(pid, payload, message, sender)
        except (NoConnection, NoProcess):
            return 0
        return 1

    def _alive(self, pid: Pid) -> bool:
        return self._node.process_info(pid) is not None

    def _load(self, pid: Pid) -> int:
        if pid.node != self._node.name:
            session = self._node.sessions.get(pid.node)
            return 0 if session is None else session.load(pid.number)
        info = self._node.process_info(pid)
        return 0 if info is None else info.mailbox + info.open_calls

    def _draining(self, node: str) -> bool:
        if node == self._node.name:
            return self._node.kernel.draining
        session = self._node.sessions.get(node)
        return session is not None and session.peer.is_draining


def _key(change: Change) -> Hashable:
    return (change.group, change.pid)


def _gone(change: Change) -> bool:
    return isinstance(change, Left)


def _undo(change: Change) -> Change:
    return Left(change.group, change.pid, "missed: this subscriber reads too slowly")
