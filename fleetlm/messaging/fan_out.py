"""One message to many processes, encoded once.

A target whose window is full must not delay the message for the others. So the message goes first to every
target that has room, and then to all the others at once, each as soon as there is room for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fleetlm.call import TooLargeForPeer
from fleetlm.errors import InvalidName, NoConnection, NodeStopped, NoProcess, NotAllowed, WouldBlock
from fleetlm.ids import Pid
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.own_loop import check_loop
from fleetlm.messaging.targets import Payload
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Target

_UNREACHABLE = (NoConnection, NoProcess, NotAllowed, TooLargeForPeer, WouldBlock)
"""Errors of one target, which is passed over."""


class FanOut:
    """Sends one message to many processes.

    Args:
        name: of this node.
        sessions: the sessions that are up, by the name of their node.
        outbound: packs the message, and sends it to each process.
    """

    __slots__ = ("_name", "_outbound", "_sessions")

    def __init__(self, name: str, sessions: Mapping[str, Session], outbound: Outbound) -> None:
        self._name = name
        self._sessions = sessions
        self._outbound = outbound

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None) -> int:
        """See `Node.broadcast`."""
        self._check_running()
        if type(name) is not str:
            raise InvalidName(SHORT.repr(name), "a broadcast goes to a name")
        here, sessions = self._name, self._sessions
        payload = self._outbound.pack_payload(message)
        wanted = [*sessions, here] if nodes is None else [self._outbound.canonical(node) for node in nodes]
        targets = [(name, node) for node in wanted if node in sessions or node == here]
        return await self._send(targets, message, payload, None)

    async def send(self, targets: Iterable[Target], message: Any, timeout_s: float | None = None) -> int:
        """Send to each target; a process of this node gets the object itself.

        Args:
            targets: one that cannot be reached is passed over, and so is one without room in time.
            message: a value; any object, if all targets are on this node.
            timeout_s: seconds to wait for room; default `Settings.send_timeout_s`.

        Returns:
            The number of targets to which it was sent.

        Raises:
            NotSerializable, NodeStopped: nothing was sent.
            MessageTooLarge: larger than this node sends. A node that takes less is passed over.
            InvalidName: for one of the targets; others may have got it.
        """
        self._check_running()
        targets = list(targets)
        if CARRYING.is_active and type(message) is Invoke:
            return await self._send_carrying(targets, message, timeout_s)
        return await self._send_packed(targets, message, timeout_s)

    async def _send_carrying(self, targets: list[Target], message: Invoke, timeout_s: float | None) -> int:
        """Send a request with its carrier to the nodes that take carriers, and without it to others."""
        context = self._outbound.context
        with context.asked("broadcast", None, message, len(targets)) as asked:
            carrier = CARRYING.pack(asked)
            if carrier is None:
                return await self._send_packed(targets, message, timeout_s)
            able: list[Target] = []
            others: list[Target] = []
            for to in targets:  # Once, since a session may end while the first ones are sent to.
                (able if context.is_able(to) else others).append(to)
            sent = await self._send_packed(able, Invoke.carrying(message, carrier), timeout_s)
            if others:
                sent += await self._send_packed(others, message, timeout_s)
            return sent

    async def _send_packed(self, targets: list[Target], message: Any, timeout_s: float | None) -> int:
        """Send to each target a message that is packed once."""
        payload = Payload(b"", 0)
        if any(self._is_elsewhere(to) for to in targets):
            payload = self._outbound.pack_payload(message)
        return await self._send(targets, message, payload, timeout_s)

    async def _send(
        self, targets: Iterable[Target], message: Any, payload: Payload, timeout_s: float | None
    ) -> int:
        sender = asyncio.current_task()
        sent, behind = 0, []
        for to in targets:
            try:
                if self._outbound.put_packed(to, payload, message, sender):
                    sent += 1
                else:
                    behind.append(to)
            except _UNREACHABLE:
                continue
        if behind:
            waits = [self._send_later(to, payload, message, sender, timeout_s) for to in behind]
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                sent += outcome
        elif payload.packed and any(session.must_yield() for session in self._sessions.values()):
            await asyncio.sleep(0)
        else:
            await self._outbound.waits.turns.pause()
        return sent

    def _check_running(self) -> None:
        check_loop(self._outbound.waits.loop, "A broadcast")
        if self._outbound.stopped:
            raise NodeStopped(self._name, self._outbound.stopped)

    def _is_elsewhere(self, to: Target) -> bool:
        """Whether the message to a target must be packed; a wrong target is refused when it is used."""
        if isinstance(to, str):
            return False
        return (to.node if isinstance(to, Pid) else to[1]) != self._name

    async def _send_later(
        self, to: Target, payload: Payload, message: Any, sender: Hashable, timeout_s: float | None
    ) -> int:
        """Send once there is room, on behalf of ``sender``; return how many targets that reached."""
        try:
            await self._outbound.send_packed(to, payload, message, sender, timeout_s)
        except _UNREACHABLE:
            return 0
        return 1
