"""Sends and calls: finds the road to a target, waits for its window, sorts out the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call, FailureKind, failure
from fleetlm.core.codec import unreadable_in
from fleetlm.core.frames import Op
from fleetlm.errors import (
    CallTimeout,
    FleetError,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    Undecodable,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.names import canonical_node

if TYPE_CHECKING:
    from fleetlm.core.codec import Codec
    from fleetlm.core.topology import Topology
    from fleetlm.link import Link
    from fleetlm.local import LocalProcesses
    from fleetlm.settings import Settings

Target = Pid | str | tuple[str, str]
"""A pid, a name registered on this node, or ``(name, node)`` (an `Address`)."""

MAX_TIMEOUT_S = 86_400.0
"""A longer deadline, ``inf`` included, is this one: what travels is a number of milliseconds."""


_Asked = tuple["Link", int, asyncio.Future[Any], Target]
"""A call of many that is on its way: link, ref, where the outcome will be, target."""


class Messenger:
    """The sending side of a node."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        settings: Settings,
        codec: Codec,
        local: LocalProcesses,
        links: dict[str, Link],
        topology: Topology,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.stopped = ""
        """Why nothing can be sent any more, or empty."""
        self._name = name
        self._incarnation = incarnation
        self._settings = settings
        self._codec = codec
        self._local = local
        self._links = links
        self._topology = topology
        self._loop = loop
        self._next_ref = 0
        self._local_calls: dict[int, asyncio.Future[Any]] = {}

    async def send(self, to: Target, message: Any) -> None:
        """See `Node.send`."""
        if isinstance(to, tuple) and (link := self._links.get(to[1])) is not None:
            key: int | str = to[0]  # `_route` by hand: this is what every message costs.
        else:
            link, key = self._route(to)
            if link is None:
                await self._send_local(to, key, message)
                return
        if link.slow and link.full:
            await link.room()
        packed = self._codec.pack([key, message], message)
        if len(packed) > link.small_bytes and link.crowded:
            await link.room(len(packed))
        if link.append(packed):
            await asyncio.sleep(0)

    async def send_within(self, to: Target, message: Any, timeout_s: float) -> None:
        """As `send`, but `WouldBlock` is raised where its window stays full for so long."""
        deadline = self._loop.time() + min(timeout_s, MAX_TIMEOUT_S)
        while True:
            try:
                self.send_nowait(to, message)
                return
            except WouldBlock:
                link, key = self._route(to)
            if link is None:
                await self._room(self._box(to, key), to, timeout_s, deadline)
            else:  # If its window has room, a large message waits for others of that kind.
                large = () if link.full else (link.small_bytes + 1,)
                await self._room(link, to, timeout_s, deadline, *large)

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        link, key = self._route(to)
        if link is None:
            box = self._box(to, key)
            if box.full:
                raise WouldBlock(to, f"its mailbox holds {len(box):,} messages")
            box.put(self._copied(to, message))
            return
        if link.full:
            raise WouldBlock(to, f"{link.in_flight:,} bytes are in flight to {link.name}")
        packed = self._codec.pack([key, message], message)
        if len(packed) > link.small_bytes and link.crowded:
            raise WouldBlock(to, f"large messages of {link.in_flight:,} bytes wait for {link.name}")
        link.append(packed)

    async def call(self, to: Target, message: Any, timeout_s: float) -> Any:
        """See `Node.call`."""
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        deadline = self._loop.time() + timeout_s
        link, key = self._route(to)
        if link is None:
            return await self._call_local(to, key, message, timeout_s, deadline)
        if link.full:
            await self._room(link, to, timeout_s, deadline)
        ref = self._take_ref()
        timeout_ms = max(1, int((deadline - self._loop.time()) * 1000))
        packed = self._codec.pack([int(Op.CALL), key, message, ref, timeout_ms], message)
        if len(packed) > link.small_bytes and link.crowded:
            await self._room(link, to, timeout_s, deadline, len(packed))
        return await self._request(link, to, ref, packed, timeout_s, deadline)

    async def ask(self, node: str, verb: str, argument: Any, timeout_s: float) -> Any:
        """Ask a connected node itself. Raises: as `call`."""
        self._check_running()
        link = self._link(canonical_node(node))
        ref = self._take_ref()
        packed = self._codec.pack([int(Op.REQUEST), verb, argument, ref], argument)
        return await self._request(link, node, ref, packed, timeout_s, self._loop.time() + timeout_s)

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
            for link, ref, _, _ in asked:
                self._done_with(link, ref, sender)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, FleetError):
                raise result
        return results

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None) -> int:
        """See `Node.broadcast`."""
        self._check_running()
        payload = self._codec.pack_value(message)
        packed = b"\x92" + self._codec.pack_value(name) + payload
        wanted = [*self._links, self._name] if nodes is None else [canonical_node(node) for node in nodes]
        links = [link for link in map(self._links.get, wanted) if link is not None]
        size = len(packed)
        full = [link for link in links if link.full or (size > link.small_bytes and link.crowded)]
        sent = sum(_put(link, packed) for link in links if link not in full)
        for link in full:  # Those that are behind must not keep it from the others.
            try:
                await link.room(size)
            except NoConnection:
                continue
            sent += _put(link, packed)
        if self._name in wanted:
            sent += await self._broadcast_here(name, message)
        if any(link.must_yield() for link in links):
            await asyncio.sleep(0)
        return sent

    # How.

    def _route(self, to: Target) -> tuple[Link | None, int | str]:
        """The link to a target (None: it is on this node) and its key there."""
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)
        if isinstance(to, tuple):  # the usual case: a connected node
            name, node = to
            link = self._links.get(node)
            if link is not None:
                return link, name
        if isinstance(to, Pid):
            if to.node == self._name:
                return None, to.number
            link = self._links.get(to.node) or self._link(to.node)
            if link.incarnation != to.incarnation:
                raise NoProcess(to)
            return link, to.number
        if isinstance(to, str):
            return None, to
        name, node = to
        if node != self._name:
            node = canonical_node(node)
        return (None if node == self._name else self._link(node)), name

    def _link(self, node: str) -> Link:
        link = self._links.get(node)
        if link is not None:
            return link
        peer = self._topology.peers.get(node)
        if peer is None:
            why = "no such node is known; Node.list('known') shows those that are"
        else:
            why = peer.connection.last_error or f"it is {peer.status}"
        raise NoConnection(node, why)

    def _box(self, to: Target, key: int | str) -> Any:
        if isinstance(to, Pid) and to.incarnation != self._incarnation:
            raise NoProcess(to)
        box = self._local.boxes.get(key)
        if box is None:
            raise NoProcess(to)
        return box

    async def _send_local(self, to: Target, key: int | str, message: Any) -> None:
        box = self._box(to, key)
        if box.full:
            await box.room()
            box = self._box(to, key)  # It may have ended meanwhile.
        box.put(self._copied(to, message))

    async def _call_local(
        self, to: Target, key: int | str, message: Any, timeout_s: float, deadline: float
    ) -> Any:
        box = self._box(to, key)
        if box.full:
            await self._room(box, to, timeout_s, deadline)
            box = self._box(to, key)
        ref = self._take_ref()
        future = self._local_calls[ref] = self._loop.create_future()
        call = Call(self._copied(to, message), self, ref, deadline, self._loop.time)
        box.put(call)
        timer = self._loop.call_at(deadline, _expire, future, to, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._local_calls.pop(ref, None)
            call.abandon()

    async def _request(
        self,
        link: Link,
        to: Target,
        ref: int,
        packed: bytes,
        timeout_s: float,
        deadline: float,
        sender: Hashable = None,
    ) -> Any:
        future = self._loop.create_future()
        link.append(packed, sender)
        link.calls[ref] = future
        timer = self._loop.call_at(deadline, _expire, future, to, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._done_with(link, ref, sender)

    def _done_with(self, link: Link, ref: int, sender: Hashable) -> None:
        """If the call has no outcome yet, tell the peer that nobody waits for it any more."""
        if link.calls.pop(ref, None) is not None:
            link.control([int(Op.CANCEL), ref, None], after=sender or asyncio.current_task())

    def _ask_at_once(
        self, to: Target, payload: bytes, timeout_s: float, sender: Hashable, asked: list[_Asked]
    ) -> asyncio.Future[Any] | None:
        """Send one of many without a task of its own, which costs more than all the rest.

        Returns:
            Where its outcome will be; None where it must wait, stays on this node, or cannot be sent.
        """
        try:
            link, key = self._route(to)
            if link is None or link.full:
                return None
            packed = self._packed_call(key, payload, self._take_ref(), timeout_s)
            if len(packed) > link.small_bytes:
                return None
            link.append(packed, sender)
        except (FleetError, TypeError, ValueError):
            return None  # `_one_of_many` raises it where it becomes a result.
        ref = self._next_ref
        future = link.calls[ref] = self._loop.create_future()
        asked.append((link, ref, future, to))
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
        link, key = self._route(to)
        if link is None:
            return await self._call_local(to, key, message, timeout_s, deadline)
        if link.full:
            await self._room(link, to, timeout_s, deadline)
        ref = self._take_ref()
        packed = self._packed_call(key, payload, ref, deadline - self._loop.time())
        if len(packed) > link.small_bytes and link.crowded:
            await self._room(link, to, timeout_s, deadline, len(packed))
        return await self._request(link, to, ref, packed, timeout_s, deadline, sender)

    async def _room(self, window: Any, to: Target, timeout_s: float, deadline: float, *size: int) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await window.room(*size)
        except TimeoutError:
            raise WouldBlock(to, f"its window stayed full for the {timeout_s:g} s of the deadline") from None

    async def _broadcast_here(self, name: str, message: Any) -> int:
        try:
            await self._send_local(name, name, message)
        except NoProcess:
            return 0
        return 1

    def _copied(self, to: Target, message: Any) -> Any:
        """With FLEETLM_DEBUG=1 what stays on this node goes through the codec like what leaves it."""
        if not self._settings.debug:
            return message
        copy = self._codec.unpack(self._codec.pack_value(message))
        found = unreadable_in(copy)
        if found is not None:
            raise Undecodable(to, found.why)
        return copy

    def _take_ref(self) -> int:
        self._next_ref += 1
        return self._next_ref

    def _check_running(self) -> None:
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)

    # `Caller` for calls that stay on this node.

    def replied(self, ref: int, value: Any) -> None:
        """Hand the result over."""
        future = self._local_calls.get(ref)
        if future is not None and not future.done():
            future.set_result(self._copied(self._name, value))

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Hand the failure over."""
        future = self._local_calls.get(ref)
        if future is not None and not future.done():
            future.set_exception(failure(kind, list(details)))

    def forget(self, ref: int) -> None:
        """Nobody waits."""

    def close(self, reason: str) -> None:
        """The node stops: whoever still waits hears it."""
        self.stopped = "has been stopped"
        for future in self._local_calls.values():
            if not future.done():
                future.set_exception(NodeLost(self._name, reason))


def _expire_all(asked: list[_Asked], timeout_s: float) -> None:
    for _, _, future, to in asked:
        _expire(future, to, timeout_s)


def _expire(future: asyncio.Future[Any], to: Target, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(CallTimeout(to, timeout_s))


def _put(link: Link, packed: bytes) -> int:
    """How many were sent: one, or none if the connection is over."""
    try:
        link.append(packed)
    except NoConnection:
        return 0
    return 1
