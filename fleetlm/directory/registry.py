"""Cluster-wide names: the replicated table of claims, and what a program may ask of it.

Theory of operation. `core.name_table` decides which claim for a name holds and returns effects;
`ReplicatedNames` performs them: a `Tell` goes to the other nodes through `Replication`, a `Registered` or
`Unregistered` to the subscriptions, and a `Lose` becomes an exit signal or a message to the process that
lost. `Registry`, which a program holds, reads that table and asks the node of a process to claim a name.

A *claim* is a row of the node on which the process runs. That node alone makes it, at once and without
asking another node, and that node alone withdraws it. The races, and where each is settled:

* Two nodes claim the same name before either has got the other's claim (at the same moment, or on two
  sides of a partition). Every node that sees both claims chooses the same one (`name_table.older`, or
  `Registry.resolve`). The node of the other claim withdraws it and tells its process (`_lost`).
* Only the path between two nodes is cut, and both claim a name. A node that is connected to both sees both
  claims, and tells the node of the outdone one (`pulsed`), which acts as above.
* The holder ends while another process waits for the name. The end is a row that goes, so `watch` and
  `wait_for` see it after one hop. The next claim wins; a later one gets `AlreadyRegistered`.
* The node that is asked to claim for its process is lost before it answers: `NodeLost`. The claim may
  exist there, and this node sees it once both are connected again.

Source: OTP global.erl and Horde.Registry for what a program sees; differs: a registration waits for no
other node, and the loser is told by its own node with a reason that it can trap.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.actors.handlers import HasHandlers, check_actor
from fleetlm.actors.ref import ActorRef
from fleetlm.core.name_table import Claim, Effect, Lose, NameTable, OnLoss, Say, Tell, older
from fleetlm.directory.replication import MAX_FACT_BYTES, read_value
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.errors import (
    AlreadyRegistered,
    MessageTooLarge,
    NodeStopped,
    NoProcess,
    RemoteError,
    TooManyNames,
)
from fleetlm.ids import Pid
from fleetlm.messages import NameLost, Registered, Unregistered
from fleetlm.names import check_process_name
from fleetlm.processes.running import plain_class
from fleetlm.seconds import check_seconds, check_timeout
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.actors.ref import Sender
    from fleetlm.directory.replication import Replication
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.signals import Signals
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

A = TypeVar("A", bound=HasHandlers)
Event = Registered | Unregistered
Resolve = Callable[[Claim, Claim], Claim]

_PIECE_BYTES = MAX_FACT_BYTES // 2
"""Bytes of claims in one fact of a snapshot. One more claim of any allowed size still fits into it."""


class ReplicatedNames:
    """Implements `replication.Table` for claims: performs what `NameTable` decides.

    Args:
        context: of this node.
        codec: packs and reads the meta of a claim.
        local: this node's processes; only those that live may have a name.
        signals: sends the exit signal to a process that lost its name.
        replication: carries the facts; this table adds itself to it.
        wall_ms: milliseconds of the wall clock now. Claims get this time plus what the loop's clock has
            counted since, so that a wall clock that is set back does not make a later claim older.
    """

    topic = "names"

    def __init__(
        self,
        context: NodeContext,
        codec: Codec,
        local: LocalProcesses,
        signals: Signals,
        replication: Replication,
        wall_ms: int,
    ) -> None:
        settings = context.settings
        self._context = context
        self._codec = codec
        self._local = local
        self._signals = signals
        self._replication = replication
        self._loop = asyncio.get_running_loop()
        self._wall_ms = wall_ms - int(self._loop.time() * 1000)
        self._max_meta_bytes = min(settings.max_meta_bytes, _PIECE_BYTES // 2)
        self._max_asked = max(1, settings.max_cluster_names // 2)
        """Names from which on other nodes get no more here; the others are for this node's own program."""
        self._waiters: dict[str, dict[asyncio.Future[None], None]] = {}
        self.resolve: Resolve | None = None
        """See `Registry.resolve`."""
        self.table: NameTable = NameTable(
            context.name,
            context.incarnation,
            settings,
            functools.partial(read_value, codec, "the meta of a cluster-wide name"),
            self._decide,
            lambda node: node in context.sessions,
            functools.partial(replication.before_change, self.topic),
        )
        self.feed: Feed[Event] = Feed(
            settings.events_limit, _name, _gone, _undo, pack=_packed, unpack=_registered
        )
        replication.add(self)

    # `replication.Table`.

    def own_keys(self) -> Iterable[str]:
        """Return the names that this node claims."""
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[str]) -> Iterator[Any]:
        """Return the claims to these names, in pieces that fit into a fact."""
        return self.table.own_facts(keys, _PIECE_BYTES)

    def node_down(self, node: str) -> Iterator[None]:
        """Drop the claims of a node, one with each step."""
        for effects in self.table.node_down(node):
            self.perform(effects)
            yield

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """Take what a connected node says about its claims. Raises: ValueError, TypeError for nonsense."""
        self.perform(self.table.told(node, incarnation, fact))

    def pulsed(self) -> None:
        """Tell nodes whose claims are outdone by claims that they do not see; called about every second."""
        self.perform(self.table.pulsed())

    def exited(self, pid: Pid) -> None:
        """Withdraw the claims of a process of this node that has ended."""
        self.perform(self.table.exited(pid.number))

    def close(self) -> None:
        """End every subscription after what is queued, and wake the callers that wait for a name."""
        self.feed.close()
        for name in self._waiters:
            self._wake(name)

    # What other nodes ask.

    def asked_to_claim(self, name: str, pid: Pid, packed: bytes, on_loss: OnLoss) -> Any:
        """Claim a name for a process of this node, and return the answer for the node that asked.

        Raises:
            InvalidName, MessageTooLarge: nothing changed.
            ValueError: ``packed`` cannot be read.
        """
        check_process_name(name)
        self.check_size(packed)
        if len(self.table.own_keys()) >= self._max_asked and name not in self.table.own_keys():
            why = f"other nodes may ask a node for {self._max_asked:,}, half of Settings.max_cluster_names"
            return ["full", why]
        try:
            self.claim(name, pid, packed, on_loss)
        except AlreadyRegistered as error:
            return ["taken", error.owner]
        except NoProcess:
            return ["noproc", None]
        except TooManyNames as error:
            return ["full", error.why]
        return ["ok", None]

    def asked_to_disclaim(self, name: str, pid: Pid) -> bool:
        """Withdraw the claim of a process of this node; return False if it does not have the name."""
        effects = self.table.disclaimed(name, pid)
        self.perform(effects)
        return bool(effects)

    # What the registry of this node asks.

    def claim(self, name: str, pid: Pid, packed: bytes, on_loss: OnLoss) -> None:
        """Claim a name for a process of this node.

        Raises: NoProcess, NotAllowed, AlreadyRegistered, TooManyNames.
        """
        if self._local.process(pid) is None:
            raise NoProcess(pid)
        self._local.check_reachable(pid, "a cluster-wide name")
        since_ms = max(0, self._wall_ms + int(self._loop.time() * 1000))
        self.perform(self.table.claimed(name, pid.number, packed, since_ms, on_loss))

    def packed(self, meta: Any) -> bytes:
        """Pack the meta of a claim. Raises: NotSerializable, MessageTooLarge."""
        packed = self._codec.pack_value(meta)
        self.check_size(packed)
        return packed

    def check_size(self, packed: bytes) -> None:
        """Raise MessageTooLarge if a packed meta is longer than the limit."""
        if len(packed) > self._max_meta_bytes:
            raise MessageTooLarge(len(packed), self._max_meta_bytes, "Settings.max_meta_bytes")

    async def next_registration(self, name: str) -> None:
        """Return when a process has registered ``name``, perhaps only for a moment, or the node stops."""
        future = self._loop.create_future()
        waiters = self._waiters.setdefault(name, {})
        waiters[future] = None
        try:
            await future
        finally:
            del waiters[future]
            if not waiters:
                self._waiters.pop(name, None)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Tell other nodes, subscribers, callers that wait for a name, and processes that lost one."""
        for effect in effects:
            match effect:
                case Tell(fact, to):
                    self._replication.tell(self.topic, fact, to)
                case Say(event):
                    self.feed.publish(event)
                    if isinstance(event, Registered):
                        self._wake(event.name)
                case Lose(claim, winner, on_loss):
                    self._lost(claim, winner, on_loss)

    # Internals.

    def _decide(self, first: Claim, second: Claim) -> Claim:
        """Return the winner of two claims: the choice of `Registry.resolve`, if any, else the older."""
        if self.resolve is not None:
            try:
                winner = self.resolve(first, second)
            except Exception:
                log.exception("resolve failed for the name %r; the older claim stays", first.name)
            else:
                if winner is first or winner is second:
                    return winner
                shown = SHORT.repr(winner)
                log.error("resolve returned %s for the name %r; the older claim stays", shown, first.name)
        return older(first, second)

    def _lost(self, claim: Claim, winner: Pid, on_loss: OnLoss) -> None:
        """Tell a process of this node that another process has won its name."""
        lost = NameLost(claim.name, winner)
        log.warning("%s lost the cluster-wide name %r to %s", claim.pid, claim.name, winner)
        if on_loss == "exit":
            self._signals.exit(self._context.pid, claim.pid, lost)
            return
        box = self._local.boxes.get(claim.pid.number)
        if box is not None:
            box.put(lost)

    def _wake(self, name: str) -> None:
        for future in self._waiters.get(name, ()):
            if not future.done():
                future.set_result(None)


class Registry:
    """`node.registry`: names that a process has in the whole cluster, not only on its node.

    The node of a process registers it: the registration holds at once, and other nodes see it one hop
    later. In a cluster in which every node is connected to every other one, a name has at most one holder.
    Two nodes that were not connected may both have registered the name. When they connect, or about two
    seconds after a third node is connected to both, the older claim stays, and the process with the other one
    is told: by default it gets an exit signal with the reason `NameLost`. Two claims of which no node sees
    both hold both: on two sides of a partition, and at the two ends of a chain of nodes. So a name is no
    lock; where two holders would do harm, let a database decide.

    A supervised process that wants a name must therefore be ready to stand by: a process that raises
    `AlreadyRegistered` again and again makes its supervisor give up. Watch the name, and register
    when it is free::

        async def leader(process: Process) -> None:
            registry = process.node.registry
            with contextlib.closing(registry.watch("leader")) as changes:
                while registry.whereis("leader") != process.pid:
                    try:
                        await registry.register("leader", process.pid)
                    except AlreadyRegistered:
                        await anext(changes)
            ...  # From here on it leads, until it ends.

    A name that was lost does not count against the supervisor's intensity. A name ends with its
    process, and on other nodes with the connection to its node.

    Source: OTP global.erl and Horde.Registry for what a program sees; differs: a registration waits
    for no other node, and the loser is told by its own node with a reason that it can trap.
    """

    def __init__(
        self, context: NodeContext, replicated: ReplicatedNames, outbound: Outbound, sender: Sender
    ) -> None:
        self._context = context
        self._replicated = replicated
        self._table = replicated.table
        self._outbound = outbound
        self._sender = sender

    async def register(
        self, name: str, pid: Pid, meta: Any = None, *, on_loss: OnLoss = "exit", timeout: float = 5.0
    ) -> None:
        """Give a process a name in the cluster: at once if it runs on this node, else by asking its node.

        A process may have several. Registering the same name for the same process again replaces
        ``meta`` and ``on_loss``; the age of the claim stays.

        Args:
            name: 1 to 255 printable characters, independent of the names of `Node.register`.
            pid: of a living process, on any connected node.
            meta: a message value that `lookup` shows on every node; packed it has at most
                `Settings.max_meta_bytes`.
            on_loss: what the process gets if another process wins the name: ``"exit"``, an exit signal
                with the reason `NameLost` (a message `Exit` if it traps exits), or ``"message"``,
                a `NameLost` in its mailbox.
            timeout: seconds that the node of the process has to answer.

        Raises:
            AlreadyRegistered: another process holds the name, as the process's node sees it.
            NoProcess, InvalidName, NotSerializable, MessageTooLarge, TooManyNames: nothing changed.
            NotAllowed: the process is for its own node only, or its node lets others register no names;
                nothing changed.
            NoConnection: its node is not connected; nothing changed.
            NodeLost, CallTimeout: its node may have registered it.
            NodeStopped: this node has been stopped.
            ValueError: ``on_loss`` is neither of the two.
        """
        self._check_running()
        check_process_name(name)
        if on_loss not in ("exit", "message"):
            raise ValueError(f"on_loss is {on_loss!r}; use 'exit' or 'message'")
        check_seconds(timeout)
        packed = self._replicated.packed(meta)
        if pid.node == self._context.name:
            self._replicated.claim(name, pid, packed, on_loss)
            return
        answer = await self._outbound.ask(pid.node, "claim", [name, pid, packed, on_loss], timeout)
        match answer:
            case ["ok", _]:
                return
            case ["taken", owner]:
                raise AlreadyRegistered(name, owner)
            case ["noproc", _]:
                raise NoProcess(pid)
            case ["full", str(why)]:
                raise TooManyNames(name, pid.node, why)
        raise RemoteError("ValueError", f"{pid.node} answered {SHORT.repr(answer)}")

    async def unregister(self, name: str, timeout: float = 5.0) -> bool:
        """Take a name away from the process that holds it, on any node.

        Args:
            name: as this node sees it.
            timeout: seconds that the node of the holder has to answer.

        Returns:
            False if no process held the name any more when the node of the holder was asked.

        Raises:
            NoConnection, NodeLost, CallTimeout: its node could not be asked.
            NodeStopped: this node has been stopped.
        """
        self._check_running()
        check_seconds(timeout)
        claim = self._table.holder(name)
        if claim is None:
            return False
        if claim.pid.node == self._context.name:
            return self._replicated.asked_to_disclaim(name, claim.pid)
        return bool(await self._outbound.ask(claim.pid.node, "disclaim", [name, claim.pid], timeout))

    @property
    def resolve(self) -> Resolve | None:
        """A function that decides between two claims for one name; None: the older claim stays.

        It is called with the two claims, the older one first, and returns one of them. It is called on
        every node that sees both, so it must be the same function on all nodes and depend on nothing
        but the claims. Set it before the first claim. If it raises, or returns something else, the
        older claim stays. It must be transitive (if A beats B and B beats C, A beats C), or else every
        process may lose the name.
        """
        return self._replicated.resolve

    @resolve.setter
    def resolve(self, resolve: Resolve | None) -> None:
        self._replicated.resolve = resolve
        self._replicated.perform(self._table.reviewed())

    def whereis(self, name: str) -> Pid | None:
        """Return the process that holds a name, as this node sees it, or None."""
        claim = self._table.holder(name)
        return None if claim is None else claim.pid

    def lookup(self, name: str) -> Claim | None:
        """Return the claim that holds: the process, its meta, and since when; or None."""
        return self._table.holder(name)

    def resolve_name(self, name: str) -> Pid:
        """Return the process that holds a name. Raises: NoProcess if no process does."""
        claim = self._table.holder(name)
        if claim is None:
            raise NoProcess(name)
        return claim.pid

    def ref(self, actor: Callable[..., A], name: str) -> ActorRef[A]:
        """Return a typed reference to the actor that holds a name at the moment of each use.

        A use raises `NoProcess` while no process holds the name.

        Args:
            actor: its class, or a base class of it that has the handlers.
            name: cluster-wide.

        Raises:
            TypeError: ``actor`` is not a subclass of `Actor`.
        """
        check_actor(actor)
        return ActorRef(self._sender, plain_class(actor), functools.partial(self.resolve_name, name))

    def list(self) -> dict[str, Pid]:
        """Return every name and the process that holds it, sorted by name."""
        return {name: claim.pid for name, claim in self._table.holders().items()}

    async def wait_for(self, name: str, timeout: float | None = None) -> Pid:
        """Return the process that holds a name; wait until there is one.

        Args:
            name: cluster-wide.
            timeout: seconds; None waits without limit.

        Raises:
            TimeoutError: no process held it within ``timeout`` seconds.
            InvalidName: no process can have that name.
            NodeStopped: this node was stopped meanwhile.
        """
        check_process_name(name)
        check_timeout(timeout)
        async with asyncio.timeout(timeout):
            while True:
                self._check_running()
                claim = self._table.holder(name)
                if claim is not None:
                    return claim.pid
                await self._replicated.next_registration(name)

    def watch(self, name: str | None = None) -> Subscription[Event]:
        """Subscribe to changes: a `Registered` for every name that is held now, then every change.

        There is no gap in between. For each name the two alternate strictly: another holder, or another
        meta, is an `Unregistered` followed by a `Registered`. Close the subscription when it is not
        needed any more.

        Args:
            name: only this name; None: all names.
        """
        if name is None:
            return self._replicated.feed.subscribe()
        return self._replicated.feed.subscribe(lambda event: event.name == name)

    def _check_running(self) -> None:
        if self._outbound.stopped:
            raise NodeStopped(self._context.name, self._outbound.stopped)


def _name(event: Event) -> str:
    return event.name


def _packed(event: Event) -> tuple[Any, ...]:
    """Return what the feed keeps of a registration: no objects, but perhaps the meta."""
    pid, meta = event.pid, event.meta if isinstance(event, Registered) else None
    return event.name, meta, pid.node, pid.incarnation, pid.number


def _registered(packed: tuple[Any, ...]) -> Event:
    name, meta, *pid = packed
    return Registered(name, Pid(*pid), meta)


def _gone(event: Event) -> bool:
    return isinstance(event, Unregistered)


def _undo(event: Event) -> Event:
    return Unregistered(event.name, event.pid, "missed: this subscriber reads too slowly")
