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
import contextlib
import inspect
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from fleetlm.actors.handlers import HasHandlers, check_actor, name_of_marked
from fleetlm.actors.refs import ActorRefs
from fleetlm.core.group_table import Effect, GroupTable, Tell
from fleetlm.directory.members import Member, ReplicatedMembers, membership_key
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.errors import NoProcess
from fleetlm.ids import Pid
from fleetlm.messages import Joined, Left
from fleetlm.processes.running import plain_class
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    import random

    from fleetlm.actors.sender import ActorSender
    from fleetlm.core.member_loads import MemberInfo
    from fleetlm.core.picking import By, Picker, Score
    from fleetlm.core.rings import Key
    from fleetlm.directory.group_calls import GroupCalls
    from fleetlm.directory.group_ref import GroupRef
    from fleetlm.directory.replication import Replication
    from fleetlm.messaging.fan_out import FanOut
    from fleetlm.messaging.retries import Retries
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.stream import Stream
    from fleetlm.wire.codec import Codec

A = TypeVar("A", bound=HasHandlers)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

Change = Joined | Left


class ReplicatedGroups:
    """Implements `replication.Table` for memberships: performs what `GroupTable` decides.

    Args:
        context: of this node.
        codec: packs what members tell.
        local: this node's processes; only those that live may join.
        replication: carries the facts; this table adds itself to it.
        rng: source of chance for picks.
    """

    topic = "groups"

    def __init__(
        self,
        context: NodeContext,
        codec: Codec,
        local: LocalProcesses,
        replication: Replication,
        rng: random.Random,
    ) -> None:
        settings = context.settings
        self._context = context
        self._local = local
        self._replication = replication
        self.table: GroupTable = GroupTable(
            context.name,
            context.incarnation,
            settings.max_memberships,
            self._is_alive,
            partial(replication.before_change, self.topic),
        )
        # Before this table itself: a meta must arrive before the membership that it belongs to.
        self.members: ReplicatedMembers = ReplicatedMembers(
            context, codec, local, replication, self.table.members
        )
        self._rng = rng
        self.feed: Feed[Change] = Feed(settings.events_limit, _key, _gone, _undo, pack=_key, unpack=_joined)
        replication.add(self)

    @cached_property
    def picker(self) -> Picker:
        """Made at its first use: a node that picks no members starts without this code."""
        from fleetlm.core.picking import Picker  # noqa: PLC0415
        from fleetlm.core.sticky_keys import StickyKeys  # noqa: PLC0415

        context, members = self._context, self.members
        sticky = StickyKeys(context.settings.max_sticky_keys, context.settings.sticky_idle_s)
        return Picker(self._rng, members.outstanding, members, context.drain_step, sticky, context.loop.time)

    def check_reachable(self, pids: Iterable[Pid]) -> None:
        """Raise NotAllowed if a process is for this node only, since members are asked from everywhere."""
        for pid in pids:
            self._local.check_reachable(pid, "a place in a group")

    def own_keys(self) -> Iterable[int]:
        """Return the numbers of this node's processes that are members."""
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[int]) -> Iterator[Any]:
        """Return all memberships of these processes."""
        return self.table.own_facts(keys)

    def node_down(self, node: str) -> Iterator[None]:
        """Drop the memberships of a node's processes now, and publish one with each step."""
        return self._each(self.table.node_down(node))

    def told(self, node: str, incarnation: int, fact: Any) -> bool:
        """Take what a connected node says about its processes, or a part of it: see `replication.Table`."""
        self.perform(self.table.told(node, incarnation, fact))
        return not self.table.is_told(node, fact)

    def exited(self, pid: Pid) -> None:
        """Drop the memberships of a process of this node that has ended."""
        self.perform(self.table.exited(pid))

    def close(self) -> None:
        """End every subscription after what is queued. Called when the node stops."""
        self.feed.close()

    def perform(self, effects: Iterable[Effect]) -> None:
        """Tell the other nodes and the subscribers; forget how an empty group was picked from."""
        for group, pid in self.table.take_new():
            self.members.joined(group, pid)
        for effect in effects:
            if isinstance(effect, Tell):
                self._replication.tell(self.topic, effect.fact)
                continue
            if isinstance(effect, Left) and not self.table.has_member(effect.group, effect.pid):
                self.members.left(effect.group, effect.pid)
            self.feed.publish(effect)
            if isinstance(effect, Left) and not self.table.has(effect.group) and "picker" in vars(self):
                self.picker.forget(effect.group)

    def check_member(self, group: str, pid: Pid) -> None:
        """Raise NoProcess unless a process of this node is a member of a group."""
        if pid.node != self._context.name or not self.table.has_member(group, pid):
            raise NoProcess(pid)

    def _each(self, effects: Iterable[Effect]) -> Iterator[None]:
        """Perform one effect with each step."""
        for effect in effects:
            self.perform((effect,))
            yield

    def _is_alive(self, pid: Pid) -> bool:
        return self._local.process(pid) is not None


class Groups:
    """`node.groups`: named groups of processes anywhere in the cluster, after Erlang's pg.

    A group exists while it has a member. Only the node of a process makes it join or leave, so there
    is no lock and no conflict: a node sees its own members at once, and those of a connected node one hop
    later. Members of a node that is lost leave. A process that ends leaves its groups before any
    process is told that it has ended.
    """

    def __init__(
        self,
        context: NodeContext,
        replicated: ReplicatedGroups,
        fan_out: FanOut,
        sender: ActorSender,
        retries: Retries,
    ) -> None:
        self._context = context
        self._replicated = replicated
        self._table = replicated.table
        self._fan_out = fan_out
        self._sender = sender
        self._retries = retries

    @cached_property
    def _calls(self) -> GroupCalls:
        """Made at its first use, like the picker."""
        from fleetlm.directory.group_calls import GroupCalls  # noqa: PLC0415

        picker, settings = self._replicated.picker, self._context.settings
        return GroupCalls(self._table, picker, self._sender, self._retries, settings)

    @overload
    def join(self, group: str, pid: Pid, /, *, meta: Any = None) -> Member: ...
    @overload
    def join(self, group: str, /, *pids: Pid) -> None: ...
    def join(self, group: str, /, *pids: Pid, meta: Any = None) -> Member | None:
        """Make processes of this node members of a group; a process may join several times.

        ::

            member = node.groups.join("models", self.pid, meta={"model": "llama-70b", "zone": "a"})
            member.report(load=0.7, queue=12)

        Args:
            group: 1 to 255 printable characters.
            *pids: of this node.
            meta: a message value that every node sees before it sees the member (`describe`), and by which
                members can be picked (``where=``); at most `Settings.max_meta_bytes` when packed. With one
                process only. None: a process that is a member already keeps the one it has.

        Returns:
            For one process its `Member`, to report gauges; else None.

        Raises:
            NotSerializable, MessageTooLarge: ``meta`` cannot be told; none of them joined.
            TypeError: ``meta`` is given for several processes; none of them joined.
            NoProcess: one of them has ended, or lives elsewhere; none of them joined.
            InvalidName: not a name for a group; none of them joined.
            TooManyMemberships: beyond `Settings.max_memberships`; none of them joined.
            NotAllowed: one of them is for this node only; none of them joined.
        """
        self._context.check_loop("Groups.join")
        if meta is not None and len(pids) != 1:
            raise TypeError(f"meta= describes one process, and {len(pids)} are to join")
        replicated = self._replicated
        packed = replicated.members.packed(meta)
        replicated.check_reachable(pids)
        if packed is not None:
            replicated.members.check_room(group, pids[0], packed)
        effects = self._table.joined(group, pids)
        if packed is not None:
            replicated.members.describe_member(group, pids[0], packed)
        replicated.perform(effects)
        return Member(replicated.members, replicated.check_member, group, pids[0]) if len(pids) == 1 else None

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

    def describe(self, group: str) -> builtins.list[MemberInfo]:
        """Return what is known of each member, each process once: its meta, gauges and load.

        Its cost grows with the number of members; rules that pick look at 128 of them at most.
        """
        return self._replicated.members.describe(group, [*dict.fromkeys(self._table.members(group))])

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

    def pick(
        self,
        group: str,
        by: By = "random",
        key: Key | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> Pid:
        """Choose one member.

        * ``"random"``: each join has the same chance.
        * ``"round_robin"``: the member after the one that this node chose last, in the order of
          `members`; the first one is arbitrary.
        * ``"key"``: the same member for the same ``key`` on every node that knows the same members. Where a
          member leaves, or its node drains, only its own keys move, evenly to all others. Where one joins n
          others, about one key in n + 1 moves to it, away from members that live, and no other key moves. A
          node that restarts has new members: their keys move twice. Members have about as many keys each: the
          standard deviation is 4 %. A pick takes some microseconds in groups of any size. Source: multi-probe
          consistent hashing, Appleton and O'Reilly 2015.
        * ``"sticky"``: the member to which ``key`` went last from this node, while it is a member and its
          node is not draining, however many join. A key that is new here goes where ``"key"`` sends it. Each
          node remembers for itself: another node, which has not used the key yet, may pick a member that has
          joined since. So let one node ask for a session, or give the session a name (`Registry`). This node
          remembers `Settings.max_sticky_keys` keys, each for `Settings.sticky_idle_s` after its last use.
        * ``"least_loaded"``: the member with the smallest load: the requests that all nodes together have
          outstanding there (messages that it has not taken, and calls and streams that it has not ended),
          plus its gauge ``load``, if it reports one. What other nodes have outstanding is known as of
          `Settings.gauge_s` ago, for groups of at most 128 members. A gauge older than
          `Settings.gauge_stale_s` counts as the mean of the others, and to a member that has just
          joined a part of the mean is added (`Settings.newcomer_s`). Chance decides among equals. In a group
          of more than 128 members it is the one with the smallest load among 32 that chance has chosen.
          Source: least-request balancing of HTTP proxies, which know their own requests only.
        * ``"two_choices"``: the member with the smaller load of two that chance has chosen: nearly as even,
          and many nodes that know old loads do not all choose the same member. Source: Mitzenmacher 1996.
        * ``score=``, in place of a rule: a function that gets a `MemberInfo` and returns a number; the member
          with the highest one is picked (of more than 128 members, among 32). It is called for each member
          at each pick, so it must be quick. An object with a method ``picked`` hears which one it was.
          `fleetlm.llm` has a score for inference workers with prefix caches.

        A member on a node that is draining is chosen only where all members are on such nodes; then first one
        whose node still serves everything. A call to a node that refuses new work gets `Draining`. Members on
        a node whose event loop stands still are passed over in the same way, except with a key. For
        all rules but ``"random"`` a process that joined twice counts once.

        Args:
            group: its name.
            by: the rule.
            key: for ``"key"`` and ``"sticky"``. ``"7"``, ``b"7"`` and ``7`` are three keys.
            where: names and values that the meta of the member must have, being a dict:
                ``where={"model": "llama-70b"}``. Each member is looked at, so the cost grows with the group.
            score: see above.

        Raises:
            NoMember: the group has no member, or none with this meta.
            ValueError, TypeError: ``by`` is not one of these rules, or ``key`` or ``score`` does not fit it;
                ``where`` is no mapping, or ``score`` no function.
        """
        return self._calls.pick(group, by, key, where, score)

    @contextlib.contextmanager
    def chosen(
        self,
        group: str,
        by: By = "least_loaded",
        key: Key | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> Iterator[Pid]:
        """Choose one member as `pick` does, and count it as one request more while the block runs.

        ::

            with node.groups.chosen("models") as pid:  # for work that fleetlm does not see, such as HTTP
                ...

        Calls and streams of fleetlm count by themselves.

        Raises: as `pick`.
        """
        self._context.check_loop("Groups.chosen")
        pid = self.pick(group, by, key, where=where, score=score)
        members = self._replicated.members
        members.hold(pid, 1)
        try:
            yield pid
        finally:
            members.hold(pid, -1)

    @overload
    def call(
        self,
        group: str,
        handler: Callable[[A, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def call(
        self,
        group: str,
        message: Any,
        /,
        *,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Coroutine[Any, Any, Any]: ...
    def call(  # type: ignore[misc]
        self,
        group: str,
        message: Any,
        /,
        *args: Any,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """Call one member, and another one if the request was not delivered.

        ::

            answer = await node.groups.call("models", Model.answer, prompt, by="least_loaded", timeout=2)

        A request that was not delivered (`NotDelivered`: it never ran) is made again at another member, at
        once; one that may have run (`OutcomeUnknown`) only if ``idempotent``. Members on the node that has
        just refused or failed are passed over while there are others. When all have been tried, and while the
        group is empty, there is a random pause before the next attempt. A node repeats requests only within
        its budget (`Settings.retry_ratio`). For several requests, for named arguments, and to say which
        members are wanted, make a reference: `ref`.

        Args:
            group: its name.
            message: a handler of the members, being actors, as ``Model.answer``; or for other processes a
                message, as in `Node.call`.
            *args: arguments of the handler.
            by: as in `pick`, for the first attempt.
            key: as in `pick`.
            attempts: how often the request is made at most.
            timeout: seconds for all attempts together; default `Settings.call_timeout_s`. In a handler of an
                `Actor` at most what is left of the call being served.
            idempotent: whether the request may run twice.

        Returns:
            The reply of the member, or the result of its handler.

        Raises:
            NoMember: the group is empty; a `NotDelivered`.
            NotDelivered: it never ran, at any member that was tried. The error is the last one, with a note
                on the others.
            OutcomeUnknown: it may have run.
            RemoteError: it ran and raised.
            TypeError: ``message`` is a function and not a handler, or ``args`` are given without a handler.
            ValueError: as `pick`, or ``attempts`` is not a whole number from 1. Nothing was sent.
        """
        self._context.check_loop("Groups.call")
        request = self._calls.request(group, by, key, attempts, idempotent)
        return self._calls.call(request, request_or_message(message, args), timeout)

    @overload
    def stream(
        self,
        group: str,
        handler: Callable[[A, *Ts], AsyncIterator[R]],
        /,
        *args: *Ts,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> Stream[R]: ...
    @overload
    def stream(
        self,
        group: str,
        message: Any,
        /,
        *,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> Stream[Any]: ...
    def stream(  # type: ignore[misc]
        self,
        group: str,
        message: Any,
        /,
        *args: Any,
        by: By = "random",
        key: Key | None = None,
        attempts: int = 3,
        timeout: float | None = None,
        idle: float | None = None,
        idempotent: bool = False,
    ) -> Stream[Any]:
        """Call one member for a stream of items, and another one if it fails before the first item.

        Args:
            group: its name.
            message: as `call`; a handler that yields.
            *args: arguments of the handler.
            by: as in `pick`, for the first attempt.
            key: as in `pick`.
            attempts: how often the stream is asked for at most.
            timeout: seconds for the whole stream, all attempts included; None: as long as items come.
            idle: seconds that the stream may pause, as in `Node.stream`.
            idempotent: whether the handler may begin twice.

        Returns:
            A `Stream`, which begins when its first item is waited for.

        Raises:
            NotDelivered, OutcomeUnknown, RemoteError: when it is iterated. Before the first item as `call`;
                after it as `Node.stream`, and nothing is repeated.
            TypeError, ValueError: as `call`.
        """
        self._context.check_loop("Groups.stream")
        request = self._calls.request(group, by, key, attempts, idempotent)
        return self._calls.stream(request, request_or_message(message, args), timeout, idle)

    def ref(
        self,
        actor: Callable[..., A],
        group: str,
        by: By = "random",
        key: Key | None = None,
        *,
        attempts: int = 3,
        idempotent: bool = False,
        where: Mapping[str, Any] | None = None,
        score: Score | None = None,
    ) -> GroupRef[A]:
        """Return a typed reference to any member: each request picks one, and is repeated as by `call`.

        ::

            models = node.groups.ref(Model, "models", by="least_loaded")
            answer = await models.within(2).call(Model.answer, prompt)
            async for token in models.stream(Model.complete, prompt): ...

        Args:
            actor: the class of the members, or a base class of it that has the handlers.
            group: its name; it need not have members yet.
            by: as in `pick`.
            key: as in `pick`; `GroupRef.keyed` gives another one.
            attempts: how often a request is made at most.
            idempotent: whether requests may run twice; `GroupRef.retrying` says it for some of them.
            where: as in `pick`.
            score: as in `pick`; `GroupRef.scored` gives another one.

        Raises:
            TypeError: ``actor`` is not a subclass of `Actor`; or as `call`.
            ValueError: as `call`.
        """
        check_actor(actor)
        from fleetlm.directory.group_ref import GroupRef  # noqa: PLC0415  # most programs need none

        request = self._calls.request(group, by, key, attempts, idempotent, where, score)
        return GroupRef(self._calls, plain_class(actor), request)

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
            MessageTooLarge: larger than this node sends. Members on nodes that take less are passed over.
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


def request_or_message(message: Any, args: tuple[Any, ...]) -> Any:
    """Return what `Groups.call` sends. Raises: TypeError: as there."""
    if inspect.isroutine(message):
        return Invoke(name_of_marked(message), args, {})
    if args:
        raise TypeError(f"arguments go with a handler, such as Model.answer, not with {SHORT.repr(message)}")
    return message


def _key(change: Change) -> tuple[str, str, int, int]:
    """Return what a change is about, without objects: the feed keeps it."""
    return membership_key(change.group, change.pid)


def _joined(key: tuple[str, str, int, int]) -> Change:
    group, node, incarnation, number = key
    return Joined(group, Pid(node, incarnation, number))


def _gone(change: Change) -> bool:
    return isinstance(change, Left)


def _undo(change: Change) -> Change:
    return Left(change.group, change.pid, "missed: this subscriber reads too slowly")
