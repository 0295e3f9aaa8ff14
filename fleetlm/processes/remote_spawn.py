"""Spawns on another node, by the name of a factory that is registered there: no code travels.

    node.factories.register("session", session)                        # on every worker
    pid = await node.spawn_at("fleetlm@10.0.0.7", "session", "s1")     # from anywhere
    pid, ref = await process.spawn_monitor_at("fleetlm@10.0.0.7", "session", "s1")

A process (the *owner*, or the node itself) asks; another node spawns and answers with the pid of the
child. The asked node records its end of the link or the monitor before the child's first line runs. The
asking node records the other end in `_PendingSpawn.set_result`, which the session calls when it takes
the answer from the wire. These are the races, and where each is settled:

* *The child ends at once.* Its exit signal comes right behind the answer, maybe in the same batch. It
  finds the asking end in place, since that does not wait for the owner's coroutine to go on.
* *The owner stops waiting before the answer comes* (time-out, cancellation). `give_up` marks the spawn as
  unwanted; the answer, when it comes, leads to a kill of the child and to nothing else.
* *The owner is cancelled after the answer came, before its coroutine has gone on.* `give_up` finds the
  answer there and takes it back (`_undo`): it removes the link, the monitor and what they have put into
  the mailbox, and kills the child. So a caller that got an exception never gets signals of the child.
* *The owner ends while it waits.* Where the child is linked, the link decides and not the kill: the
  child gets an exit signal with the owner's reason. If the answer comes while the owner still cleans up,
  the link is recorded and its end sends the signal as usual; if it comes later, `Signals.ended_before`
  sends it. A child that is not linked is killed.
* *The session ends before the answer.* The request fails with `NodeLost`, and a child may live there. The
  other node ends its half of the link or monitor with ``"noconnection"``.

Source: OTP 23 spawn_request (erl_bif_info, dist.c DOP_SPAWN_REQUEST); differs: names instead of
module and function, and a child is killed when its caller has stopped waiting; Erlang does that only on
request (spawn_request_abandon) and lets a child without a link live.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    InvalidName,
    NodeStopped,
    NoFactory,
    NoProcess,
    NotAllowed,
    NotSerializable,
    ProcessDown,
    RemoteError,
    Undecodable,
    WouldBlock,
)
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Exit
from fleetlm.messaging.in_flight import unsent
from fleetlm.messaging.targets import MAX_TIMEOUT_S
from fleetlm.messaging.windows import NODE
from fleetlm.names import canonical_node, check_process_name
from fleetlm.processes.functions import process_function
from fleetlm.processes.spawn_pace import SpawnPace
from fleetlm.records import Record
from fleetlm.seconds import check_seconds
from fleetlm.texts import SHORT
from fleetlm.wire import operations
from fleetlm.wire.rights import check_right

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import ProcessFunction, RunningProcess
    from fleetlm.processes.signals import Signals
    from fleetlm.wire.codec import Codec


class SpawnRequest(Record):
    """The argument of the request ``spawn`` that one node sends to another.

    Attributes:
        factory: its name on the asked node.
        args: passed to the process function after its `Process`.
        name: registered at once, or None.
        owner: the process that asks; number 0 where it is the node itself.
        act: the act of linking the child with ``owner``, or None; see `core.links`.
        ref: of the monitor that ``owner`` holds, or None.
        is_in_flight: whether it is made on behalf of work in flight; see `messaging.in_flight`.
    """

    factory: str
    args: tuple[Any, ...]
    name: str | None
    owner: Pid
    act: int | None
    ref: Ref | None
    is_in_flight: bool = False

    def packed(self) -> list[Any]:
        """Return the argument as it is sent; `asked_to_spawn` reads it."""
        return [self.factory, self.args, self.name, self.owner, self.act, self.ref, self.is_in_flight]


def asked_to_spawn(session: Session, argument: list[Any]) -> SpawnRequest | None:
    """Read the argument of a request ``spawn`` that a peer sent.

    Returns:
        None if it is not a request to spawn, or speaks for processes that are not the peer's.
    """
    match argument:
        case [
            str(factory),
            tuple(args),
            None | str() as name,
            Pid() as owner,
            None | int() as act,
            None | Ref() as ref,
            bool(is_in_flight),
        ] if _is_of(session, owner) and (ref is None or _is_of(session, ref)):
            return SpawnRequest(factory, args, name, owner, act, ref, is_in_flight)
    return None


class Factories:
    """``node.factories``: the process functions of this node that other nodes may spawn by name."""

    def __init__(self, max_factories: int) -> None:
        self._max_factories = max_factories
        self._functions: dict[str, ProcessFunction] = {}
        self._local: set[str] = set()
        """The names of those that only this node may spawn."""

    def register(self, name: str, function: ProcessFunction, *, local: bool = False) -> None:
        """Let every node of the cluster, this one included, spawn ``function`` under this name.

        Args:
            name: 1 to 255 printable characters; processes have names of their own.
            function: what `Node.spawn` takes.
            local: only this node may spawn it; another one gets `NotAllowed`.

        Raises:
            AlreadyRegistered: another function has the name. The same one again changes only ``local``.
            InvalidName: not a name, or `Settings.max_factories` are registered; nothing changed.
            TypeError: ``function`` is none that a process can run; see `Node.spawn`.
        """
        process_function(function)
        owner = self._functions.get(check_process_name(name), function)
        if owner != function:
            raise AlreadyRegistered(name, getattr(owner, "__qualname__", repr(owner)))
        most = self._max_factories
        if name not in self._functions and len(self._functions) >= most:
            raise InvalidName(name, f"{most:,} factories are registered already (Settings.max_factories)")
        self._functions[name] = function
        (self._local.add if local else self._local.discard)(name)

    def unregister(self, name: str) -> bool:
        """Take a factory away; the processes that it has spawned live on.

        Returns:
            False if no factory had that name.
        """
        self._local.discard(name)
        return self._functions.pop(name, None) is not None

    def list(self) -> builtins.list[str]:
        """Return the names of this node's factories, sorted."""
        return sorted(self._functions)


class RemoteSpawn:
    """Spawns by the names of factories: on other nodes for this one, and here for other nodes.

    Args:
        context: the node.
        factories: the functions that may be spawned here.
        codec: encodes requests.
        local: the processes of this node.
        signals: their links and monitors.
        outbound: sends requests and refuses when the node has been stopped.
        spawn: `Node.spawn`.

    Attributes:
        pace: how fast a peer may spawn here.
    """

    def __init__(
        self,
        context: NodeContext,
        factories: Factories,
        codec: Codec,
        local: LocalProcesses,
        signals: Signals,
        outbound: Outbound,
        spawn: Callable[..., Pid],
    ) -> None:
        self._context = context
        self._factories = factories
        self._codec = codec
        self._local = local
        self._signals = signals
        self._outbound = outbound
        self._spawn_function = spawn
        self.pace: SpawnPace = SpawnPace(context.loop, context.settings.spawns_per_s)
        self._spawner_of: dict[int, str] = {}
        """Number of a process of this node → the node that has asked for it."""
        self._spawned: Counter[str] = Counter()
        """Node → the living processes here that it has asked for."""

    def spawn_for(self, session: Session, request: SpawnRequest) -> Pid:
        """Spawn what a peer asks for, with the link and the monitor in place before it runs.

        Raises:
            Draining, NoFactory, NotAllowed, AlreadyRegistered, InvalidName: nothing was spawned.
            WouldBlock: the peer has as many processes here, or links and monitors, as it may have; nothing
                was spawned.
        """
        if request.factory in self._factories._local:
            why = f"its factory {SHORT.repr(request.factory)} is for that node only (local=True)"
            raise NotAllowed(self._context.name, why)
        most = self._context.settings.max_spawned
        if self._spawned[session.name] >= most:
            why = f"{most:,} processes that {session.name} has spawned live there already"
            raise WouldBlock((request.factory, self._context.name), f"{why} (Settings.max_spawned)")
        ends = (request.act is not None) + (request.ref is not None)
        if not self._signals.links.has_room(session.name, ends):
            why = f"{session.name} has as many links and monitors there as it may have"
            raise WouldBlock(
                (request.factory, self._context.name), f"{why} (Settings.max_links_and_monitors)"
            )
        pid = self._spawn_here(request)
        self._spawner_of[pid.number] = session.name
        self._spawned[session.name] += 1
        if request.act is not None:
            self._signals.told(session, ["link", request.owner, pid.number, request.act])
            process = self._local.process(pid)
            if process is not None:
                process.parent = request.owner
        if request.ref is not None:
            self._signals.told(session, ["monitor", request.ref, pid.number])
        return pid

    def has_spawned(self, node: str, number: int) -> bool:
        """Return whether a process of this node lives that the other node has asked for."""
        return self._spawner_of.get(number) == node

    def exited(self, pid: Pid) -> None:
        """Note that a process of this node is gone, whoever has asked for it."""
        node = self._spawner_of.pop(pid.number, None)
        if node is not None:
            self._spawned[node] -= 1
            if not self._spawned[node]:
                del self._spawned[node]

    async def spawn(
        self,
        at: str,
        factory: str,
        args: tuple[Any, ...],
        name: str | None,
        timeout_s: float,
        owner: RunningProcess | None = None,
        *,
        linked: bool = False,
        monitored: bool = False,
    ) -> tuple[Pid, Ref | None]:
        """See `Node.spawn_at`, `Process.spawn_link_at` and `Process.spawn_monitor_at`."""
        check_seconds(timeout_s)
        at = canonical_node(at, self._context.settings.base_port)
        is_in_flight = self._check(at, factory, name, owner)
        sender = self._context.pid if owner is None else owner.pid
        if at == self._context.name:
            copied = self._outbound.copied((factory, at), args)
            pid = self._spawn_here(SpawnRequest(factory, copied, name, sender, None, None))
            if linked and owner is not None:
                self._signals.adopt(owner, pid)
            return pid, self._signals.monitor(owner, pid) if monitored and owner is not None else None
        ref = self._signals.new_ref() if monitored else None
        act = self._signals.links.new_act() if linked else None
        request = SpawnRequest(factory, args, name, sender, act, ref, is_in_flight)
        return await self._spawn_there(at, request, owner, min(timeout_s, MAX_TIMEOUT_S)), ref

    def _check(self, at: str, factory: str, name: str | None, owner: RunningProcess | None) -> bool:
        """Refuse what cannot be spawned, before anything is sent.

        Returns:
            Whether the spawn is made on behalf of work in flight.
        """
        if self._outbound.stopped:
            raise NodeStopped(self._context.name, self._outbound.stopped)
        check_process_name(factory)
        if name is not None:
            check_process_name(name)
        if owner is not None and not _is_alive(self._local, owner):
            raise NoProcess(owner.pid)
        session = self._context.sessions.get(at)
        if session is not None:
            check_right(at, session.denied, "spawn")
        watch, loop = self._outbound.in_flight, self._context.loop
        is_in_flight = watch.is_watched and watch.covers(loop.time())
        if self._context.drain_step(at) and not is_in_flight:
            raise unsent(at, 0.0 if session is None else session.peer.drain_until - loop.time())
        return is_in_flight

    def _spawn_here(self, request: SpawnRequest) -> Pid:
        name = self._context.name
        function = self._factories._functions.get(request.factory)
        if function is None:
            raise NoFactory(name, request.factory)
        # Another node must not be able to stop this one with a tree that gives up.
        return self._spawn_function(function, *request.args, name=request.name, essential=False)

    async def _spawn_there(
        self, at: str, request: SpawnRequest, owner: RunningProcess | None, timeout_s: float
    ) -> Pid:
        """Send the request and wait for its answer; an exception leaves no wanted process behind."""
        target = (request.factory, at)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pending = _PendingSpawn(self._local, self._signals, self._context.sessions, at, request, owner)
        try:
            await self._send(target, request, timeout_s, deadline, pending)
            await asyncio.wait({pending}, timeout=deadline - loop.time())
        except NotSerializable as error:
            raise NotSerializable(error.path.replace("message[1]", "args", 1), error.what) from None
        except BaseException:
            pending.give_up()
            raise
        if not pending.done():
            pending.give_up()
            raise CallTimeout(target, timeout_s)
        try:
            return pending.result()
        except Undecodable as error:
            raise Undecodable(target, error.why) from None

    async def _send(
        self, target: tuple[str, str], request: SpawnRequest, timeout_s: float, deadline: float,
        pending: _PendingSpawn,
    ) -> None:  # fmt: skip
        """Send a request. Raises: NotDelivered, NotSerializable, MessageTooLarge; nothing was sent."""
        outbound = self._outbound
        session, _ = outbound.route(target)
        assert session is not None
        if session.obstacle(NODE) is not None:
            await outbound.wait_for_room(session, target, timeout_s, deadline)
        ref, argument = outbound.take_ref(), request.packed()
        packed = self._codec.pack(operations.request("spawn", argument, ref), argument)
        while session.admit(NODE, packed) is not None:
            await outbound.wait_for_room(session, target, timeout_s, deadline, NODE, len(packed))
            if outbound.in_flight.is_watched and outbound.in_flight.covers(deadline - timeout_s):
                argument = replace(request, is_in_flight=True).packed()
                packed = self._codec.pack(operations.request("spawn", argument, ref), argument)
        session.calls[ref] = pending


class _PendingSpawn(asyncio.Future[Pid]):
    """A spawn request on its way, in `Session.calls` until its answer comes or the session ends.

    A caller that stops waiting calls `give_up` and does not cancel the future: the answer may still come,
    and must be undone then. The module's text lists the races.
    """

    def __init__(
        self,
        local: LocalProcesses,
        signals: Signals,
        sessions: dict[str, Session],
        at: str,
        request: SpawnRequest,
        owner: RunningProcess | None,
    ) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._local = local
        self._signals = signals
        self._sessions = sessions
        self._at = at
        self._request = request
        self._owner = owner
        self._is_given_up = False
        self._is_unwanted = False
        """Given up, and no link will end the child: the answer must kill it."""

    def set_result(self, result: Any) -> None:
        """Take the answer from the wire: record the owner's ends, or get rid of the child."""
        session = self._sessions.get(self._at)
        if session is None or not isinstance(result, Pid) or not _is_of(session, result):
            why = f"{self._at} answered a spawn request with a value that is not a pid of its own"
            self.set_exception(RemoteError("TypeError", why))
            return
        owner, request = self._owner, self._request
        ended = owner is not None and not _is_alive(self._local, owner)
        if self._is_unwanted or (ended and request.act is None):
            self._kill(result)
        elif owner is not None and ended:
            self._signals.ended_before(owner, result)
        elif owner is not None:
            number = owner.pid.number
            self._signals.links.spawned(number, result, request.act, request.ref)
        if owner is not None and ended:
            self.set_exception(ProcessDown(owner.pid, owner._exit_reason))
        elif self._is_given_up:
            self.cancel()
        else:
            super().set_result(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Take a failure, or the end of the session."""
        if self._is_given_up:
            self.cancel()  # An exception that no caller retrieves would be logged.
        else:
            super().set_exception(exception)

    def give_up(self) -> None:
        """Stop waiting: a child that was spawned, or will have been, is killed, and its ends removed.

        But if the child is linked with an owner that ends, the link ends the child, with the owner's reason.
        """
        self._is_given_up = True
        is_answered = self.done() and self.exception() is None  # Looking at an exception retrieves it.
        owner = self._owner
        if (
            owner is not None
            and self._request.act is not None
            and (owner._is_ending or not _is_alive(self._local, owner))
        ):
            return
        self._is_unwanted = True
        if is_answered:
            self._undo(self.result())

    def _undo(self, pid: Pid) -> None:
        """Take an answer back: the owner must get no signal of the child that it has given up."""
        owner, request = self._owner, self._request
        if owner is not None and _is_alive(self._local, owner):
            if request.act is not None:
                self._signals.unlink(owner, pid)
                owner.mailbox.discard(lambda message: isinstance(message, Exit) and message.pid == pid)
            if request.ref is not None:
                self._signals.demonitor(owner, request.ref)
        self._kill(pid)

    def _kill(self, pid: Pid) -> None:
        self._signals.exit(self._request.owner, pid, "kill")


def _is_alive(local: LocalProcesses, process: RunningProcess) -> bool:
    return local.process(process.pid) is process


def _is_of(session: Session, identity: Pid | Ref) -> bool:
    """Whether a pid or a ref is of the node of a session: a node speaks for its own processes only."""
    return identity.node == session.name and identity.incarnation == session.incarnation
