"""Sends and calls: finds the road to a target, waits for its window, sorts out the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.errors import (
    FleetError,
    InvalidName,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    Undecodable,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.messaging.onto import append, first, is_full, put, put_later, waiting
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.targets import MAX_TIMEOUT_S, Target, expire
from fleetlm.messaging.windows import units
from fleetlm.names import canonical_node
from fleetlm.wire.codec import unreadable_in
from fleetlm.wire.extensions import SHORT
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.frames import Op
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.core.topology import Topology
    from fleetlm.messaging.mailbox import Key, Mailbox
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Waiting
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec

_Asked = tuple["Session", int, asyncio.Future[Any], Target, int | str]
"""A call of many that is on its way: session, ref, where the outcome will be, target, its key there."""


class Messenger:
    """The sending side of a node."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        settings: Settings,
        codec: Codec,
        boxes: dict[Key, Mailbox],
        sessions: dict[str, Session],
        topology: Topology,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.stopped = ""
        """Why nothing can be sent any more, or empty."""
        self._name = name
        self._incarnation = incarnation
        self._settings = settings
        self._codec = codec
        self._boxes = boxes
        self._sessions = sessions
        self._topology = topology
        self._loop = loop
        self._next_ref = 0
        self.local_calls: dict[int, Waiting] = {}

    async def send(self, to: Target, message: Any) -> None:
        """See `Node.send`."""
        if isinstance(to, tuple) and (session := self._sessions.get(to[1])) is not None:
            key: int | str = to[0]  # `_route` by hand: this is what every message costs.
        else:
            session, key = self.route(to)
            if session is None:
                await self._send_local(to, key, message)
                return
        held = session.held
        try:
            held_now = held[key]
        except KeyError:
            held_now = first(key)
        if held_now >= session.window or (session.slow and session.full):
            await session.room(0, key)
            held_now = held.get(key, 0)
        packed = self._codec.pack([key, message], message)
        if len(packed) < session.plain_bytes:
            must_yield = session.append(packed)
            held[key] = held_now + 1
        else:
            if len(packed) > session.small_bytes and session.crowded:
                await session.room(len(packed), key)
            must_yield = append(session, key, packed)
        if must_yield:
            await asyncio.sleep(0)

    async def send_within(self, to: Target, message: Any, timeout_s: float) -> None:
        """As `send`, but `WouldBlock` is raised where its window stays full for so long."""
        deadline = self._loop.time() + min(timeout_s, MAX_TIMEOUT_S)
        while True:
            try:
                self.send_nowait(to, message)
                return
            except WouldBlock:
                session, key = self.route(to)
            if session is None:
                await self.wait_for_room(self.box_of(to, key), to, timeout_s, deadline)
            else:  # If its windows have room, a large message waits for others of that kind.
                size = 0 if session.full or session.windows.full(key) else session.small_bytes + 1
                await self.wait_for_room(session, to, timeout_s, deadline, size, key)

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        session, key = self.route(to)
        if session is None:
            box = self.box_of(to, key)
            if box.full:
                raise WouldBlock(to, f"its mailbox holds {len(box):,} messages")
            box.put(self.copied(to, message))
            return
        if waiting(session, key) >= session.window:
            raise WouldBlock(to, f"{session.held[key]:,} messages of this node wait there")
        if session.full:
            raise WouldBlock(to, f"{session.in_flight:,} bytes are in flight to {session.name}")
        packed = self._codec.pack([key, message], message)
        if len(packed) > session.small_bytes and session.crowded:
            raise WouldBlock(to, f"large messages of {session.in_flight:,} bytes wait for {session.name}")
        append(session, key, packed)

    async def cast(self, to: Target, request: Invoke) -> None:
        """As `send`, for a request to an actor."""
        session, key = self.route(to)
        if session is None:
            await self._send_local(to, key, request)
            return
        if waiting(session, key) >= session.window or session.full:
            await session.room(0, key)
        parts, weight = request.parts(), 1
        packed = self._codec.pack([int(Op.CAST), key, parts, weight], parts)
        if len(packed) >= session.plain_bytes:
            if len(packed) > session.small_bytes and session.crowded:
                await session.room(len(packed), key)
            weight = units(len(packed), session.window)
            packed = self._codec.pack([int(Op.CAST), key, parts, weight], parts)
            if len(packed) > session.small_bytes:  # In pieces, its receiver weighs it as it has become.
                weight = units(len(packed), session.window)
        must_yield = session.append(packed)
        session.windows.sent(key, weight)
        if must_yield:
            await asyncio.sleep(0)

    async def call(self, to: Target, message: Any, timeout_s: float) -> Any:
        """See `Node.call`."""
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        deadline = self._loop.time() + timeout_s
        session, key = self.route(to)
        if session is None:
            return await self._call_local(to, key, message, timeout_s, deadline)
        if waiting(session, key) >= session.window or session.full:
            await self.wait_for_room(session, to, timeout_s, deadline, 0, key)
        ref = self.take_ref()
        timeout_ms = max(1, int((deadline - self._loop.time()) * 1000))
        if type(message) is Invoke:
            parts = message.parts()
            packed = self._codec.pack([int(Op.HANDLE), key, parts, ref, timeout_ms], parts)
        else:
            packed = self._codec.pack([int(Op.CALL), key, message, ref, timeout_ms], message)
        if len(packed) > session.small_bytes and session.crowded:
            await self.wait_for_room(session, to, timeout_s, deadline, len(packed), key)
        return await self._request(session, to, ref, packed, timeout_s, deadline, key=key)

    async def ask(self, node: str, verb: str, argument: Any, timeout_s: float) -> Any:
        """Ask a connected node itself. Raises: as `call`."""
        self._check_running()
        session = self._session(canonical_node(node))
        ref = self.take_ref()
        packed = self._codec.pack([int(Op.REQUEST), verb, argument, ref], argument)
        return await self._request(session, node, ref, packed, timeout_s, self._loop.time() + timeout_s)

    async def multicall(self, targets: Sequence[Target], message: Any, timeout_s: float) -> list[Any]:
        """See `Node.multicall`."""
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        payload = self._codec.pack_value(message)
        deadline = self._loop.time() + timeout_s
        sender = asyncio.current_task()  # Those that must wait run in tasks of their own, and keep its order.
        asked: list[_Asked] = []
        calls = [
            self._ask_at_once(to, payload, timeout_s, sender, asked)
            or self._one_of_many(to, message, payload, timeout_s, deadline, sender)
            for to in targets
        ]
        timer = self._loop.call_at(deadline, _expire_all, asked, timeout_s)
        try:
            results = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            timer.cancel()
            for session, ref, _, _, key in asked:
                session.called_back(key)
                self._done_with(session, ref, sender)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, FleetError):
                raise result
        return results

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None) -> int:
        """See `Node.broadcast`."""
        self._check_running()
        if type(name) is not str:
            raise InvalidName(SHORT.repr(name), "a broadcast goes to a name")
        payload = self._codec.pack_value(message)
        packed = b"\x92" + self._codec.pack_value(name) + payload
        wanted = [*self._sessions, self._name] if nodes is None else [canonical_node(node) for node in nodes]
        sessions = [session for session in map(self._sessions.get, wanted) if session is not None]
        size = len(packed)
        full = [session for session in sessions if is_full(session, name, size)]
        sent = sum(put(session, name, packed) for session in sessions if session not in full)
        waits = [put_later(session, name, packed, asyncio.current_task()) for session in full]
        if self._name in wanted:
            waits.append(self._broadcast_here(name, message))
        if len(waits) == 1:
            sent += await waits[0]
        elif waits:  # Those that are behind must not keep it from each other.
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                sent += outcome
        if any(session.must_yield() for session in sessions):
            await asyncio.sleep(0)
        return sent

    # How.

    def route(self, to: Target) -> tuple[Session | None, int | str]:
        """The session to a target (None: it is on this node) and its key there."""
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)
        if isinstance(to, tuple):  # the usual case: a connected node
            name, node = to
            session = self._sessions.get(node)
            if session is not None:
                return session, name
        if isinstance(to, Pid):
            if to.node == self._name:
                return None, to.number
            session = self._sessions.get(to.node) or self._session(to.node)
            if session.incarnation != to.incarnation:
                raise NoProcess(to)
            return session, to.number
        if isinstance(to, str):
            return None, to
        name, node = to
        if node != self._name:
            node = canonical_node(node)
        return (None if node == self._name else self._session(node)), name

    def _session(self, node: str) -> Session:
        session = self._sessions.get(node)
        if session is not None:
            return session
        peer = self._topology.peers.get(node)
        if peer is None:
            why = "no such node is known; Node.list('known') shows those that are"
        else:
            why = peer.connection.last_error or f"it is {peer.status}"
        raise NoConnection(node, why)

    def box_of(self, to: Target, key: int | str) -> Any:
        """The mailbox of a process of this node. Raises: NoProcess."""
        if isinstance(to, Pid) and to.incarnation != self._incarnation:
            raise NoProcess(to)
        box = self._boxes.get(key)
        if box is None:
            raise NoProcess(to)
        return box

    async def _send_local(self, to: Target, key: int | str, message: Any) -> None:
        box = self.box_of(to, key)
        if box.full:
            await box.room()
            box = self.box_of(to, key)  # It may have ended meanwhile.
        box.put(self.copied(to, message))

    async def _call_local(
        self, to: Target, key: int | str, message: Any, timeout_s: float, deadline: float
    ) -> Any:
        box = self.box_of(to, key)
        if box.full:
            await self.wait_for_room(box, to, timeout_s, deadline)
            box = self.box_of(to, key)
        ref = self.take_ref()
        future: asyncio.Future[Any] = self._loop.create_future()
        self.local_calls[ref] = future
        call = Call(self.copied(to, message), self, ref, deadline, self._loop.time)
        box.put(call)
        timer = self._loop.call_at(deadline, expire, future, to, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self.local_calls.pop(ref, None)
            call.abandon()

    async def _request(
        self,
        session: Session,
        to: Target,
        ref: int,
        packed: bytes,
        timeout_s: float,
        deadline: float,
        sender: Hashable = None,
        key: int | str | None = None,
    ) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        if key is None:
            session.append(packed, sender)
        else:
            append(session, key, packed, sender)
            session.called(key)
        session.calls[ref] = future
        timer = self._loop.call_at(deadline, expire, future, to, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            if key is not None:
                session.called_back(key)
            self._done_with(session, ref, sender)

    def _done_with(self, session: Session, ref: int, sender: Hashable) -> None:
        """If the call has no outcome yet, tell the peer that nobody waits for it any more."""
        if session.calls.pop(ref, None) is not None:
            session.control([int(Op.CANCEL), ref, None], after=sender or asyncio.current_task())

    def _ask_at_once(
        self, to: Target, payload: bytes, timeout_s: float, sender: Hashable, asked: list[_Asked]
    ) -> asyncio.Future[Any] | None:
        """Send one of many without a task of its own, which costs more than all the rest.

        Returns:
            Where its outcome will be; None where it must wait, stays on this node, or cannot be sent.
        """
        try:
            session, key = self.route(to)
            if session is None or waiting(session, key) >= session.window or session.full:
                return None
            packed = self._packed_call(key, payload, self.take_ref(), timeout_s)
            if len(packed) >= session.plain_bytes:
                return None
            append(session, key, packed, sender)
        except (FleetError, TypeError, ValueError):
            return None  # `_one_of_many` raises it where it becomes a result.
        ref = self._next_ref
        future = session.calls[ref] = self._loop.create_future()
        session.called(key)
        asked.append((session, ref, future, to, key))
        return future

    def _packed_call(self, key: int | str, payload: bytes, ref: int, timeout_s: float) -> bytes:
        pack = self._codec.pack_value
        timeout_ms = max(1, int(timeout_s * 1000))
        return b"\x95" + pack(int(Op.CALL)) + pack(key) + payload + pack(ref) + pack(timeout_ms)

    async def _one_of_many(
        self,
        to: Target,
        message: Any,
        payload: bytes,
        timeout_s: float,
        deadline: float,
        sender: Hashable,
    ) -> Any:
        session, key = self.route(to)
        if session is None:
            return await self._call_local(to, key, message, timeout_s, deadline)
        if waiting(session, key) >= session.window or session.full:
            await self.wait_for_room(session, to, timeout_s, deadline, 0, key)
        ref = self.take_ref()
        packed = self._packed_call(key, payload, ref, deadline - self._loop.time())
        if len(packed) > session.small_bytes and session.crowded:
            await self.wait_for_room(session, to, timeout_s, deadline, len(packed), key)
        return await self._request(session, to, ref, packed, timeout_s, deadline, sender, key)

    async def wait_for_room(
        self, window: Any, to: Target, timeout_s: float, deadline: float, *of: Any
    ) -> None:
        """Wait for room in a mailbox or on a session, for a size and a key."""
        try:
            async with asyncio.timeout_at(deadline):
                await window.room(*of)
        except TimeoutError:
            raise WouldBlock(to, f"its window stayed full for the {timeout_s:g} s of the deadline") from None

    async def _broadcast_here(self, name: str, message: Any) -> int:
        try:
            await self._send_local(name, name, message)
        except NoProcess:
            return 0
        return 1

    def copied(self, to: Target, message: Any) -> Any:
        """With FLEETLM_DEBUG=1 what stays on this node goes through the codec like what leaves it."""
        if not self._settings.debug:
            return message
        copy = self._codec.unpack(self._codec.pack_value(message))
        found = unreadable_in(copy)
        if found is not None:
            raise Undecodable(to, found.why)
        return copy

    def take_ref(self) -> int:
        """A number for a request of this node."""
        self._next_ref += 1
        return self._next_ref

    def _check_running(self) -> None:
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)

    def put_packed(self, to: Pid, payload: bytes, message: Any, sender: Hashable) -> bool:
        """Send what is packed already to one of many; on this node ``message`` itself arrives.

        Behind what ``sender`` has sent before, whichever task this is.

        Returns:
            False where it would have to wait: nothing was sent.

        Raises:
            NoConnection, NoProcess, MessageTooLarge: nothing was sent.
        """
        session, key = self.route(to)
        if session is None:
            box = self.box_of(to, key)
            if not box.full:
                box.put(self.copied(to, message))
                return True
            return False
        packed = b"\x92" + self._codec.pack_value(key) + payload
        crowded = session.crowded and (len(packed) > session.small_bytes or session.lanes.has(sender))
        if crowded or session.full or session.windows.full(key):
            return False
        append(session, key, packed, sender)
        return True

    async def send_packed(self, to: Pid, payload: bytes, message: Any, sender: Hashable) -> None:
        """As `put_packed`, but waits for room."""
        while not self.put_packed(to, payload, message, sender):
            session, key = self.route(to)
            if session is None:
                await self.box_of(to, key).room()
            else:
                await session.room(
                    session.small_bytes + 1, key
                )  # As for a large one: the sender may have a lane.

    # `Caller` for calls that stay on this node.

    def replied(self, ref: int, value: Any) -> None:
        """Hand the result over."""
        future = self.local_calls.get(ref)
        if future is not None and not future.done():
            future.set_result(self.copied(self._name, value))

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Hand the failure over."""
        future = self.local_calls.get(ref)
        if future is not None and not future.done():
            future.set_exception(error_of_failure(kind, list(details)))

    async def item(self, ref: int, value: Any) -> None:
        """Hand an item over."""
        inlet = self.local_calls.get(ref)
        if isinstance(inlet, ConsumerEnd):
            inlet.put(self.copied(self._name, value))

    def forget(self, ref: int) -> None:
        """Nobody waits."""

    def close(self, reason: str) -> None:
        """The node stops: whoever still waits hears it."""
        self.stopped = "has been stopped"
        for future in self.local_calls.values():
            if not future.done():
                future.set_exception(NodeLost(self._name, reason))


def _expire_all(asked: list[_Asked], timeout_s: float) -> None:
    for _, _, future, to, _ in asked:
        expire(future, to, timeout_s)
