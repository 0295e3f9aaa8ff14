"""Cluster-wide names: performs what `core.registry` decides."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.core.name_table import Claim, Effect, Lose, NameTable, OnLoss, Say, Tell, older
from fleetlm.directory.replication import MAX_FACT_BYTES
from fleetlm.directory.subscriptions import Feed, Subscription
from fleetlm.errors import (
    AlreadyRegistered,
    MessageTooLarge,
    NodeStopped,
    NoProcess,
    RemoteError,
    TooManyNames,
)
from fleetlm.messages import NameLost, Registered, Unregistered
from fleetlm.names import check_process_name
from fleetlm.texts import SHORT
from fleetlm.wire.codec import unreadable_in

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.actors.ref import ActorRef
    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.node import Node
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.wire.codec import Codec

log = logging.getLogger("fleetlm")

A = TypeVar("A", bound="Actor")
Event = Registered | Unregistered
Resolve = Callable[[Claim, Claim], Claim]

Holders = dict[str, "Pid"]
"""`Registry.list` hides the built-in name inside the class."""
_PIECE_BYTES = MAX_FACT_BYTES // 2
"""Of claims in one fact: one more, of any allowed size, still fits."""


class Registry:
    """`node.registry`: names that a process has in the whole cluster, not on its node alone.

    The node of a process speaks for it: a registration holds at once, and other nodes see it one hop
    later. In a connected cluster a name has at most one holder. Nodes that could not hear each other
    may both have registered it; when they meet, the older claim stays and the process with the other
    one is told: by default it gets an exit signal with the reason `NameLost`.

    A supervised process that wants a name must therefore be ready to stand by: one that raises
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

    A name that was lost does not count against the supervisor's intensity. Names end with their
    process, and on other nodes with the connection to its node.

    Source: OTP global.erl and Horde.Registry for what a program sees; differs: a registration waits
    for nobody, and the loser is told by its own node with a reason that it can trap.
    """

    topic = "names"

    def __init__(
        self,
        node: Node,
        tables: Replication,
        codec: Codec,
        local: LocalProcesses,
        messenger: Messenger,
        wall_ms: int,
    ) -> None:
        self._node = node
        self._tables = tables
        self._codec = codec
        self._local = local
        self._messenger = messenger
        self._loop = asyncio.get_running_loop()
        self._wall_ms = wall_ms - int(self._loop.time() * 1000)
        self._meta_limit_bytes = min(node.settings.max_meta_bytes, _PIECE_BYTES // 2)
        self._resolve: Resolve | None = None
        self._names = NameTable(node.name, node.incarnation, node.settings, self._read, self._decide)
        self._feed: Feed[Event] = Feed(node.settings.events_limit, _name, _gone, _undo)
        self._waiters: dict[str, dict[asyncio.Future[None], None]] = {}

    # Claims.

    async def register(
        self, name: str, pid: Pid, meta: Any = None, *, on_loss: OnLoss = "exit", timeout: float = 5.0
    ) -> None:
        """Give a process a name in the cluster: on this node at once, elsewhere by asking its node.

        A process may have several. Registering the same name for the same process again replaces
        ``meta`` and ``on_loss``; the age of the claim stays.

        Args:
            name: 1 to 255 printable characters. It has nothing to do with names of `Node.register`.
            pid: of a living process, on any connected node.
            meta: a message value for whoever looks the name up; at most `Settings.max_meta_bytes`.
            on_loss: what the process gets if another one wins the name: ``"exit"``, an exit signal
                with the reason `NameLost` (a message `Exit` if it traps exits), or ``"message"``,
                a `NameLost` in its mailbox.
            timeout: seconds that the node of the process has to answer.

        Raises:
            AlreadyRegistered: another process holds the name, as the process's node sees it.
            NoProcess, InvalidName, NotSerializable, MessageTooLarge, TooManyNames: nothing changed.
            NoConnection: its node is not connected; nothing changed.
            NodeLost, CallTimeout: its node may have registered it.
            NodeStopped: this node has been stopped.
        """
        packed = self._packed(name, meta, on_loss)
        if pid.node == self._node.name:
            self._claim(name, pid, packed, on_loss)
            return
        answer = await self._messenger.ask(pid.node, "claim", [name, pid, packed, on_loss], timeout)
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
        """Take a name away from the process that holds it, on whichever node.

        Returns:
            False if nobody holds it, or no more when its node was asked.

        Raises:
            NoConnection, NodeLost, CallTimeout: its node could not be asked.
            NodeStopped: this node has been stopped.
        """
        self._check_running()
        claim = self._names.holder(name)
        if claim is None:
            return False
        if claim.pid.node == self._node.name:
            return self.asked_to_disclaim(name, claim.pid)
        return bool(await self._messenger.ask(claim.pid.node, "disclaim", [name, claim.pid], timeout))

    @property
    def resolve(self) -> Resolve | None:
        """Decides between two claims for one name instead of their age; None: the older one stays.

        Called with the two claims, the older first, on every node that sees both, so it must be the
        same function on all nodes and look at nothing but the claims; returns one of them. Set it
        before the first claim. If it raises, or returns something else, the age decides. It should
        be an order (who beats whom that beats a third also beats that): else all may lose.
        """
        return self._resolve

    @resolve.setter
    def resolve(self, resolve: Resolve | None) -> None:
        self._resolve = resolve
        self._perform(self._names.reviewed())

    # Looks.

    def whereis(self, name: str) -> Pid | None:
        """The process that holds a name, as this node sees it."""
        claim = self._names.holder(name)
        return None if claim is None else claim.pid

    def lookup(self, name: str) -> Claim | None:
        """The same with its meta, and since when."""
        return self._names.holder(name)

    def resolve_name(self, name: str) -> Pid:
        """The process that holds a name. Raises: NoProcess."""
        claim = self._names.holder(name)
        if claim is None:
            raise NoProcess(name)
        return claim.pid

    def ref(self, actor: type[A], name: str) -> ActorRef[A]:
        """A typed reference to whichever actor holds a name when it is used; nobody: `NoProcess` then."""
        return self._node.ref(actor, functools.partial(self.resolve_name, name))

    def list(self) -> Holders:
        """Every name and the process that holds it, sorted by name."""
        return {name: claim.pid for name, claim in self._names.holders().items()}

    async def wait_for(self, name: str, timeout: float | None = None) -> Pid:
        """The process that holds a name; waits until there is one.

        Raises:
            TimeoutError: nobody within ``timeout`` seconds (None: waits for ever).
            InvalidName: nobody ever can.
            NodeStopped: this node was stopped meanwhile.
        """
        check_process_name(name)
        async with asyncio.timeout(timeout):
            while True:
                self._check_running()
                claim = self._names.holder(name)
                if claim is not None:
                    return claim.pid
                await self._registered(name)

    def watch(self, name: str | None = None) -> Subscription[Event]:
        """A `Registered` for every name that is held now, then every change, with no gap.

        For each name they alternate strictly: another holder, or another meta, is `Unregistered`
        and then `Registered`. Close the subscription when it is not needed any more.

        Args:
            name: only this one.
        """
        if name is None:
            return self._feed.subscribe()
        return self._feed.subscribe(lambda event: event.name == name)

    # What other nodes ask.

    def asked_to_claim(self, name: str, pid: Pid, packed: bytes, on_loss: OnLoss) -> Any:
        """Register a process of this node. Raises: InvalidName, MessageTooLarge; ValueError for nonsense."""
        check_process_name(name)
        self._check_size(packed)
        try:
            self._claim(name, pid, packed, on_loss)
        except AlreadyRegistered as error:
            return ["taken", error.owner]
        except NoProcess:
            return ["noproc", None]
        except TooManyNames as error:
            return ["full", error.why]
        return ["ok", None]

    def asked_to_disclaim(self, name: str, pid: Pid) -> bool:
        """Take a name from a process of this node; False if it does not have it."""
        effects = self._names.disclaimed(name, pid)
        self._perform(effects)
        return bool(effects)

    # `tables.Table`.

    def own_facts(self) -> Iterable[Any]:
        """See `tables.Table`."""
        return self._names.own_facts(_PIECE_BYTES)

    def node_down(self, node: str) -> None:
        """See `tables.Table`."""
        self._perform(self._names.node_down(node))

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """See `tables.Table`."""
        self._perform(self._names.told(node, incarnation, fact))

    def exited(self, pid: Pid) -> None:
        """See `tables.Table`."""
        self._perform(self._names.exited(pid.number))

    def close(self) -> None:
        """See `tables.Table`."""
        self._feed.close()
        for name in self._waiters:
            self._wake(name)

    # How.

    def _claim(self, name: str, pid: Pid, packed: bytes, on_loss: OnLoss) -> None:
        if self._local.process(pid) is None:
            raise NoProcess(pid)
        since_ms = max(0, self._wall_ms + int(self._loop.time() * 1000))
        self._perform(self._names.claimed(name, pid.number, packed, since_ms, on_loss))

    def _packed(self, name: str, meta: Any, on_loss: str) -> bytes:
        self._check_running()
        check_process_name(name)
        if on_loss not in ("exit", "message"):
            raise ValueError(f"on_loss is {on_loss!r}: 'exit' or 'message'")
        packed = self._codec.pack_value(meta)
        self._check_size(packed)
        return packed

    def _check_size(self, packed: bytes) -> None:
        if len(packed) > self._meta_limit_bytes:
            raise MessageTooLarge(len(packed), self._meta_limit_bytes, "Settings.max_meta_bytes")

    def _check_running(self) -> None:
        if self._messenger.stopped:
            raise NodeStopped(self._node.name, self._messenger.stopped)

    def _read(self, packed: bytes) -> Any:
        meta = self._codec.unpack(packed)
        found = unreadable_in(meta)
        if found is None:
            return meta
        log.warning("the meta of a cluster-wide name is shown as None: %s", found.why)
        return None

    def _decide(self, first: Claim, second: Claim) -> Claim:
        if self._resolve is not None:
            try:
                winner = self._resolve(first, second)
            except Exception:
                log.exception("resolve failed for the name %r; the older claim stays", first.name)
            else:
                if winner is first or winner is second:
                    return winner
                shown = SHORT.repr(winner)
                log.error("resolve returned %s for the name %r; the older claim stays", shown, first.name)
        return older(first, second)

    def _perform(self, effects: Iterable[Effect]) -> None:
        for order in effects:
            match order:
                case Tell(fact):
                    self._tables.tell(self.topic, fact)
                case Say(event):
                    self._feed.publish(event)
                    if isinstance(event, Registered):
                        self._wake(event.name)
                case Lose(claim, winner, on_loss):
                    self._lost(claim, winner, on_loss)

    def _lost(self, claim: Claim, winner: Pid, on_loss: OnLoss) -> None:
        lost = NameLost(claim.name, winner)
        log.warning("%s lost the cluster-wide name %r to %s", claim.pid, claim.name, winner)
        if on_loss == "exit":
            self._node.exit(claim.pid, lost)
            return
        box = self._local.boxes.get(claim.pid.number)
        if box is not None:
            box.put(lost)

    async def _registered(self, name: str) -> None:
        """Return when somebody has registered it, perhaps only for a moment, or the node has stopped."""
        future = self._loop.create_future()
        waiters = self._waiters.setdefault(name, {})
        waiters[future] = None
        try:
            await future
        finally:
            del waiters[future]
            if not waiters:
                self._waiters.pop(name, None)

    def _wake(self, name: str) -> None:
        for future in self._waiters.get(name, ()):
            if not future.done():
                future.set_result(None)


def _name(event: Event) -> str:
    return event.name


def _gone(event: Event) -> bool:
    return isinstance(event, Unregistered)


def _undo(event: Event) -> Event:
    return Unregistered(event.name, event.pid, "missed: this subscriber reads too slowly")
