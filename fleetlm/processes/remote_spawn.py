"""Spawning on another node, by the name of a factory that it has registered: no code travels.

    node.factories.register("session", session)                        # on every worker
    pid = await node.spawn_at("fleetlm@10.0.0.7", "session", "s1")     # from anywhere
    pid, ref = await process.spawn_monitor_at("fleetlm@10.0.0.7", "session", "s1")

The asked node links or monitors before the first line runs. The asking node records its end when the
reply is taken from the wire, not when the coroutine that waits for it goes on: what comes right
behind the reply, such as the exit of a process that failed at once, finds everything in place.

Source: OTP 23 spawn_request (erl_bif_info, dist.c DOP_SPAWN_REQUEST); differs: names instead of
module and function, and a process that nobody waits for any more is killed, where Erlang lets one
live that is neither linked nor abandoned on request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    Draining,
    InvalidName,
    NodeStopped,
    NoFactory,
    NoProcess,
    NotSerializable,
    ProcessDown,
    RemoteError,
    Undecodable,
)
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Exit
from fleetlm.messaging.targets import MAX_TIMEOUT_S
from fleetlm.messaging.windows import NODE
from fleetlm.names import canonical_node, check_process_name
from fleetlm.wire.frames import Op

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.messaging.session import Session
    from fleetlm.node import Node
    from fleetlm.process import Process, ProcessFunction
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.signals import Signals
    from fleetlm.wire.codec import Codec

Names = list[str]
"""`Factories.list` hides the built-in name inside the class."""


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """What a node is asked: the argument of the verb ``spawn``.

    Attributes:
        factory: its name on the asked node.
        args: passed to the process function after its `Process`.
        name: registered at once, or None.
        owner: the process that asks; number 0 where it is the node itself.
        act: of linking it with ``owner``, or None; see `core.relations`.
        ref: of the monitor that ``owner`` holds, or None.
    """

    factory: str
    args: tuple[Any, ...]
    name: str | None
    owner: Pid
    act: int | None
    ref: Ref | None

    def packed(self) -> list[Any]:
        """As it travels; `asked_to_spawn` reads it."""
        return [self.factory, self.args, self.name, self.owner, self.act, self.ref]


def asked_to_spawn(session: Session, argument: list[Any]) -> SpawnRequest | None:
    """Read what a peer sent; None for what is none, or speaks for processes that are not the peer's."""
    match argument:
        case [
            str(factory),
            tuple(args),
            None | str() as name,
            Pid() as owner,
            None | int() as act,
            None | Ref() as ref,
        ] if _is_of(session, owner) and (ref is None or _is_of(session, ref)):
            return SpawnRequest(factory, args, name, owner, act, ref)
    return None


class Factories:
    """``node.factories``: the process functions of this node that other nodes may spawn by name."""

    def __init__(
        self, node: Node, codec: Codec, local: LocalProcesses, signals: Signals, messenger: Messenger
    ) -> None:
        self._node = node
        self._codec = codec
        self._local = local
        self._signals = signals
        self._messenger = messenger
        self._functions: dict[str, ProcessFunction] = {}

    def register(self, name: str, function: ProcessFunction) -> None:
        """Let every node of the cluster, this one included, spawn ``function`` under this name.

        Args:
            name: 1 to 255 printable characters; processes have names of their own.
            function: what `Node.spawn` takes.

        Raises:
            AlreadyRegistered: another function has the name. The same one again changes nothing.
            InvalidName: not a name, or `Settings.max_factories` are registered; nothing changed.
            TypeError: ``function`` cannot be called.
        """
        if not callable(function):
            raise TypeError(f"a factory is a coroutine function, not {function!r}")
        owner = self._functions.get(check_process_name(name), function)
        if owner != function:
            raise AlreadyRegistered(name, getattr(owner, "__qualname__", repr(owner)))
        most = self._node.settings.max_factories
        if name not in self._functions and len(self._functions) >= most:
            raise InvalidName(name, f"{most:,} factories are registered already (Settings.max_factories)")
        self._functions[name] = function

    def unregister(self, name: str) -> bool:
        """Take a factory away; what it has spawned lives on. False if nobody had the name."""
        return self._functions.pop(name, None) is not None

    def list(self) -> Names:
        """The names of this node's factories, sorted."""
        return sorted(self._functions)

    # The runtime's business.

    def asked(self, session: Session, spawn: SpawnRequest) -> Pid:
        """A peer asks. Raises: Draining, NoFactory, AlreadyRegistered, InvalidName; nothing was spawned."""
        pid = self._spawn_here(spawn)
        if spawn.act is not None:
            self._signals.told(session, ["link", spawn.owner, pid.number, spawn.act])
            process = self._local.process(pid)
            if process is not None:
                process.parent = spawn.owner
        if spawn.ref is not None:
            self._signals.told(session, ["monitor", spawn.ref, pid.number])
        return pid

    async def spawn(
        self,
        at: str,
        factory: str,
        args: tuple[Any, ...],
        name: str | None,
        timeout_s: float,
        owner: Process | None = None,
        *,
        linked: bool = False,
        monitored: bool = False,
    ) -> tuple[Pid, Ref | None]:
        """See `Node.spawn_at`, `Process.spawn_link_at` and `Process.spawn_monitor_at`."""
        at = canonical_node(at)
        self._check(at, factory, name, owner)
        sender = Pid(self._node.name, self._node.incarnation, 0) if owner is None else owner.pid
        if at == self._node.name:
            copied = self._messenger.copied((factory, at), args)
            pid = self._spawn_here(SpawnRequest(factory, copied, name, sender, None, None))
            if linked and owner is not None:
                self._signals.adopt(owner, pid)
            return pid, owner.monitor(pid) if monitored and owner is not None else None
        ref = self._signals.new_ref() if monitored else None
        act = self._signals.relations.new_act() if linked else None
        spawn = SpawnRequest(factory, args, name, sender, act, ref)
        return await self._spawn_there(at, spawn, owner, min(timeout_s, MAX_TIMEOUT_S)), ref

    def _check(self, at: str, factory: str, name: str | None, owner: Process | None) -> None:
        if self._messenger.stopped:
            raise NodeStopped(self._node.name, self._messenger.stopped)
        check_process_name(factory)
        if name is not None:
            check_process_name(name)
        if owner is not None and not _alive(self._local, owner):
            raise NoProcess(owner.pid)
        session = self._node.sessions.get(at)
        if session is not None and session.peer.draining:
            raise Draining(at)

    def _spawn_here(self, spawn: SpawnRequest) -> Pid:
        node = self._node
        if node.kernel.draining:
            raise Draining(node.name)
        function = self._functions.get(spawn.factory)
        if function is None:
            raise NoFactory(node.name, spawn.factory)
        return node.spawn(function, *spawn.args, name=spawn.name)

    async def _spawn_there(
        self, at: str, spawn: SpawnRequest, owner: Process | None, timeout_s: float
    ) -> Pid:
        target = (spawn.factory, at)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        spawning = _Spawning(self._local, self._signals, self._node.sessions, at, spawn, owner)
        try:
            await self._send(target, spawn, timeout_s, deadline, spawning)
            await asyncio.wait({spawning}, timeout=deadline - loop.time())
        except NotSerializable as error:
            raise NotSerializable(error.path.replace("message[1]", "args", 1), error.what) from None
        except BaseException:
            spawning.give_up()
            raise
        if not spawning.done():
            spawning.give_up()
            raise CallTimeout(target, timeout_s)
        try:
            return spawning.result()
        except Undecodable as error:
            raise Undecodable(target, error.why) from None

    async def _send(
        self, target: tuple[str, str], spawn: SpawnRequest, timeout_s: float, deadline: float,
        spawning: _Spawning,
    ) -> None:  # fmt: skip
        """Raises: NotDelivered, NotSerializable, MessageTooLarge; nothing was sent."""
        messenger = self._messenger
        session, _ = messenger.route(target)
        assert session is not None
        if session.obstacle(NODE) is not None:
            await messenger.wait_for_room(session, target, timeout_s, deadline)
        ref, argument = messenger.take_ref(), spawn.packed()
        packed = self._codec.pack([int(Op.REQUEST), "spawn", argument, ref], argument)
        while session.admit(NODE, packed) is not None:
            await messenger.wait_for_room(session, target, timeout_s, deadline, NODE, len(packed))
        session.calls[ref] = spawning


class _Spawning(asyncio.Future[Pid]):
    """A spawn request on its way, in `Session.calls` until its answer comes or the connection ends.

    Whoever stops waiting for it does not cancel it but calls `give_up`: its answer may still come,
    and is undone then.
    """

    def __init__(
        self,
        local: LocalProcesses,
        signals: Signals,
        sessions: dict[str, Session],
        at: str,
        spawn: SpawnRequest,
        owner: Process | None,
    ) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._local = local
        self._signals = signals
        self._sessions = sessions
        self._at = at
        self._spawn = spawn
        self._owner = owner
        self._given_up = False
        self._unwanted = False

    def set_result(self, result: Any) -> None:
        """The reply is being taken from the wire: what stands behind it comes after this."""
        session = self._sessions.get(self._at)
        if session is None or not isinstance(result, Pid) or not _is_of(session, result):
            why = f"{self._at} answered a spawn request with what is no pid of its own"
            self.set_exception(RemoteError("TypeError", why))
            return
        owner, spawn = self._owner, self._spawn
        ended = owner is not None and not _alive(self._local, owner)
        if self._unwanted or (ended and spawn.act is None):
            self._kill(result)
        elif owner is not None and ended:
            self._signals.ended_before(owner, result)
        elif owner is not None:
            number = owner.pid.number
            self._signals.relations.spawned(number, result, spawn.act, spawn.ref)
        if owner is not None and ended:
            self.set_exception(ProcessDown(owner.pid, owner.exit_reason))
        elif self._given_up:
            self.cancel()
        else:
            super().set_result(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """It failed, or the connection is over."""
        if self._given_up:
            self.cancel()  # There is nobody to retrieve it.
        else:
            super().set_exception(exception)

    def give_up(self) -> None:
        """Nobody waits any more: what was spawned, or will have been, is to be as if it never was.

        A linked process that ends while it waits is another matter: its exit settles the rest.
        """
        self._given_up = True
        runs = self.done() and self.exception() is None  # Looking at an exception retrieves it.
        owner = self._owner
        if (
            owner is not None
            and self._spawn.act is not None
            and (owner.ending or not _alive(self._local, owner))
        ):
            return
        self._unwanted = True
        if runs:
            self._undo(self.result())

    def _undo(self, pid: Pid) -> None:
        """Its ends are recorded: whoever has given it up must not hear of its death."""
        owner, spawn = self._owner, self._spawn
        if owner is not None and _alive(self._local, owner):
            if spawn.act is not None:
                owner.unlink(pid)
                owner.mailbox.discard(lambda message: isinstance(message, Exit) and message.pid == pid)
            if spawn.ref is not None:
                owner.demonitor(spawn.ref)
        self._kill(pid)

    def _kill(self, pid: Pid) -> None:
        self._signals.exit(self._spawn.owner, pid, "kill")


def _alive(local: LocalProcesses, process: Process) -> bool:
    return local.process(process.pid) is process


def _is_of(session: Session, identity: Pid | Ref) -> bool:
    """A node speaks for its own processes alone."""
    return identity.node == session.name and identity.incarnation == session.incarnation
