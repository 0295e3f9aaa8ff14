"""The sending side of a node: finds where a target is, waits for room, sorts out the outcome.

**Where a message goes.** `route` names the session and the key of the process there; without a session the
target is on this node, and the message goes straight into its mailbox. A pid of another incarnation names a
process that is gone, so nothing is sent. A name is looked up where it arrives.

**Room.** On a session, `Session.obstacle` says what keeps a message back and `Session.admit` sends and
counts it; on this node the limit of the mailbox makes senders wait. `send_nowait` raises `WouldBlock` at
once. `send` and `cast` wait up to `Settings.send_timeout_s`, a request until its deadline, and raise
`WouldBlock` then, which says that nothing was sent. A process that sends to itself does not wait, since it
would wait for itself: its message goes beyond the limit, up to `mailbox.MOST_BEYOND`. `waits` holds who waits
for whom, so that circles are found.

**Outcomes of a request**, sorted by what the caller may do. Before the message is appended every error
means that nothing was sent: `NoProcess`, `NoConnection`, `WouldBlock`, `NotSerializable`,
`MessageTooLarge`. After that exactly one outcome reaches the future in ``calls``: the reply; a failure of
the peer, which `error_of_failure` turns into an error; `NodeLost` when the session ends, or `NoConnection`
if the peer has said that it did not take the request (`settling`); `CallTimeout` at the deadline. The first
outcome counts, since a future is set once, and a late outcome finds no entry.

**Giving up.** A caller that is cancelled, or whose deadline passes, takes its entry out and sends a CANCEL
in the order of its other messages, so that the CANCEL arrives after the request itself. Calls on this node
are abandoned directly.

Source: gen_server:call/3 of OTP, which monitors, sends and waits; differs: the deadline travels with the
request, an expired request is not run, and giving up cancels the handler.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.errors import (
    Draining,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoProcess,
    NotSerializable,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.messaging.deadline import SERVING, within_deadline
from fleetlm.messaging.in_flight import InFlight
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.own_loop import check_loop, home_of
from fleetlm.messaging.packing import copy_of, pack_handle, pack_payload
from fleetlm.messaging.request_context import RequestContext
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.messaging.targets import MAX_TIMEOUT_S, Payload, Target
from fleetlm.messaging.waits import Waits, WaitsFor
from fleetlm.messaging.wheel import Wheel
from fleetlm.messaging.windows import NODE, NodeKey, check_new_key, local_units
from fleetlm.names import canonical_node
from fleetlm.seconds import check_seconds, check_timeout
from fleetlm.taps import outcome_of
from fleetlm.wire import operations
from fleetlm.wire.blobs import Packed
from fleetlm.wire.failures import FailureKind, error_of_failure
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.core.topology import Topology
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.session import Session
    from fleetlm.messaging.targets import Waiting
    from fleetlm.settings import Settings
    from fleetlm.wire.codec import Codec

_CALL = operations.Op.CALL
_REFUSED = (NoConnection, NoProcess, WouldBlock, NotSerializable, Draining)
"""Errors that may come without any wait: nothing was sent."""


class Outbound:
    """The sending side of a node.

    Args:
        name: this node.
        incarnation: of this node; a pid of an earlier one is gone.
        settings: of this node.
        codec: packs messages.
        boxes: the mailboxes of this node's processes, by number and by name.
        sessions: the sessions that are up, by the name of their node.
        topology: says why a node is not connected.
        waits: who waits for whom on this node, on which loop, and for whose turn.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        settings: Settings,
        codec: Codec,
        boxes: dict[Key, Mailbox],
        sessions: dict[str, Session],
        topology: Topology,
        waits: Waits,
    ) -> None:
        self.is_behind: bool = False
        """See `Caller`: never on this node."""
        self.stopped: str = ""
        """Why nothing can be sent any more; empty while the node runs."""
        self._name = name
        self._incarnation = incarnation
        self._settings = settings
        self._copies = settings.debug
        self.canonical: Callable[[str], str] = partial(canonical_node, base_port=settings.base_port)
        """Returns the canonical text of a node name in this cluster. Raises: InvalidName."""
        self._codec = codec
        self._boxes = boxes
        self._sessions = sessions
        self._topology = topology
        self._loop = waits.loop
        self._home = home_of(waits.loop)
        self._turns = waits.turns
        self.waits: Waits = waits
        self.context: RequestContext = RequestContext(name, incarnation, self.route, self._loop.time)
        """What travels with a message where `CARRYING` is active."""
        self.in_flight: InFlight = InFlight(waits.loop.time)
        self.wheel: Wheel = Wheel(waits.loop)
        """The deadlines of requests."""
        self._next_ref = 0
        self.failures: dict[str, int] = {}
        """Calls that did not end well, by outcome (`taps.OUTCOMES`)."""
        self.local_calls: dict[int, Waiting] = {}
        """Calls and streams that stay on this node and have no outcome yet, by ref."""

    # One-way messages.

    async def send(  # noqa: PLR0912  # each helper would cost every message a call
        self, to: Target, message: Any, timeout_s: float | None = None
    ) -> None:
        """See `Node.send`."""
        try:
            if isinstance(to, tuple) and (session := self._sessions.get(to[1])) is not None:
                key: Key = to[0]  # A copy of `route` for the usual case, because every message passes here.
                if self._home._thread_id != get_ident():  # noqa: SLF001  # see `own_loop`
                    check_loop(self._loop, "send")
            else:
                session, key = self.route(to)
            if session is None:
                must_yield = False
                waiting = self._put_here(to, key, message, timeout_s)
                if waiting is not None:
                    await waiting
            else:
                # A copy of `Session.obstacle` and `admit` for a small message; a test holds it to them.
                held = session.held
                try:
                    held_now = held[key]
                except KeyError:
                    held_now = check_new_key(key)
                if held_now >= session.held_limit or (session.is_slow and session.is_full):
                    await self._wait_to_send(session, to, timeout_s, key)
                    held_now = held.get(key, 0)
                packed = self._codec.pack([key, message], message)  # `operations.one_way` inline.
                if len(packed) + self._codec.extra_bytes < session.plain_bytes:
                    must_yield = session.append(packed)
                    held[key] = held_now + 1
                else:
                    await self._admit_later(
                        session, to, key, packed, timeout_s, extra_bytes=self._codec.extra_bytes
                    )
                    must_yield = session.must_yield()
            turns = self._turns
            if must_yield:
                await asyncio.sleep(0)
            elif turns.left:
                turns.left -= 1
            elif turns.is_over():
                await turns.next()
        except Exception as error:
            await self._explain(error, timeout_s)
            raise

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `Node.send_nowait`."""
        session, key = self.route(to)
        if session is None:
            self._put(to, self.box_of(to, key), message)
            return
        # `admit` checks all windows; on a slow session it is worth checking before the message is packed.
        obstacle = session.obstacle(key) if session.is_slow else None
        if obstacle is None:
            packed = self._codec.pack([key, message], message)  # `operations.one_way` inline.
            obstacle = session.admit(key, packed, extra_bytes=self._codec.extra_bytes)
        if obstacle is not None:
            raise WouldBlock(to, session.explain(obstacle, key))

    def cast_nowait(self, to: Target, request: Invoke) -> None:
        """Do as `send_nowait` for a request to an actor."""
        session, key = self.route(to)
        if session is None:
            self._put(to, self.box_of(to, key), request)
            return
        parts = request.parts()
        packed = self._codec.pack(operations.cast(key, parts, 1), parts)
        obstacle = session.admit(key, packed, extra_bytes=self._codec.extra_bytes)
        if obstacle is not None:
            raise WouldBlock(to, session.explain(obstacle, key))

    async def cast(self, to: Target, request: Invoke, timeout_s: float | None = None) -> None:
        """Do as `send` for a request to an actor."""
        try:
            session, key = self.route(to)
            if session is None:
                full = self._put_here(to, key, request, timeout_s)
                if full is not None:
                    await full
                await self._turns.pause()
                return
            parts = request.parts()
            try:
                packed = self._codec.pack(operations.cast(key, parts, 1), parts)
            except NotSerializable as error:
                raise request.explain(error) from None
            extra_bytes = self._codec.extra_bytes
            await self._admit_later(session, to, key, packed, timeout_s, extra_bytes=extra_bytes)
            if session.must_yield():
                await asyncio.sleep(0)
            else:
                await self._turns.pause()
        except Exception as error:
            await self._explain(error, timeout_s)
            raise

    def pack_payload(self, message: Any) -> Payload:
        """See `packing.pack_payload`."""
        return pack_payload(self._codec, message)

    def put_packed(self, to: Target, payload: Payload, message: Any, sender: Hashable) -> bool:
        """Send one of many messages, whose payload is packed already, if there is room for it.

        Args:
            to: the process.
            payload: of `pack_payload`.
            message: the same unpacked, for a process of this node.
            sender: the task on whose behalf it is sent; the message stays behind what that task sent before.

        Returns:
            False if it would have to wait: nothing was sent.

        Raises:
            NoConnection, NoProcess, MessageTooLarge: nothing was sent.
            WouldBlock: nothing was sent, and the sender would wait for itself.
        """
        session, key = self.route(to)
        if session is not None:
            packed = self._address(key, payload, message)
            return session.admit(key, packed, sender, extra_bytes=payload.extra_bytes) is None
        box = self.box_of(to, key)
        if box.full and not self._is_own(to, box):
            return False
        box.put(self.copied(to, message))
        return True

    async def send_packed(
        self, to: Target, payload: Payload, message: Any, sender: Hashable, timeout_s: float | None = None
    ) -> None:
        """Do as `put_packed`, but wait for room. Raises: WouldBlock: there was none within ``timeout_s``."""
        while not self.put_packed(to, payload, message, sender):
            session, key = self.route(to)
            if session is not None:
                packed = self._address(key, payload, message)
                extra_bytes = payload.extra_bytes
                await self._admit_later(session, to, key, packed, timeout_s, sender, extra_bytes)
                return
            await self._wait_to_send(self.box_of(to, key), to, timeout_s)

    # Requests.

    async def call(  # noqa: C901, PLR0912, PLR0915  # a coroutine for each step would cost every call a lot
        self, to: Target, message: Any, timeout_s: float | None = None
    ) -> Any:
        """See `Node.call`. One coroutine from the program to the reply: `request` has its steps, too."""
        try:
            if timeout_s is None:
                timeout_s = self._settings.call_timeout_s
            if SERVING.get() is not None:
                timeout_s = within_deadline(timeout_s)
            timeout_s = min(timeout_s, MAX_TIMEOUT_S)
            loop = self._loop
            deadline = (began := loop.time()) + timeout_s
            session, key = self.route(to)
            if session is None:
                return await self.call_here(to, key, message, timeout_s, deadline)
            # A copy of `Session.obstacle` and `admit` for a small message; a test holds it to them.
            held = session.held
            try:
                held_now = held[key]
            except KeyError:
                held_now = check_new_key(key)
            timeout_ms = 1 if timeout_s <= 0.001 else int(timeout_s * 1000)  # Raises for nan.
            if held_now >= session.held_limit or (session.is_slow and session.is_full):
                await self.wait_for_room(session, to, timeout_s, deadline, key)
                timeout_ms = max(1, int((deadline - loop.time()) * 1000))
            self._next_ref = ref = self._next_ref + 1
            in_flight = self.in_flight.admit(session, began, message) if self.in_flight.is_watched else 0
            if type(message) is Invoke:
                packed = pack_handle(
                    self._codec, session.light_bytes, key, message, ref, timeout_ms, in_flight
                )
            else:  # `operations.call` inline.
                packed = self._codec.pack([_CALL, key, message, ref, timeout_ms, in_flight], message)
            task = asyncio.current_task(loop)
            if len(packed) + self._codec.extra_bytes < session.plain_bytes:
                session.append_call(packed, task)
                held[key] = held.get(key, 0) + 1
                open_calls = session.open_calls
                open_calls[key] = open_calls.get(key, 0) + 1
            else:
                await self._admit_call(
                    session, to, key, packed, timeout_s, deadline, None, self._codec.extra_bytes
                )
            future: asyncio.Future[Any] = loop.create_future()
            session.calls[ref] = future
            process, wait = self.waits.process_of(task), None
            if process is not None:
                wait = self.waits.begin(process, WaitsFor.REPLY, to, session)
                wait.key, wait.ref = key, ref
            slot = self.wheel.enter(future, deadline, to, timeout_s)
            try:
                outcome = await future
            finally:
                slot.pop(future, None)
                if wait is not None:
                    self.waits.end(wait)
                if session.open_calls.get(key) == 1:  # `Session.call_ended` inline.
                    del session.open_calls[key]
                else:
                    session.call_ended(key)
                if session.calls.pop(ref, None) is not None:
                    session.control(operations.cancel(ref), after=task)
            turns = self._turns
            if turns.left:  # A thousand replies may have come at once.
                turns.left -= 1
            elif turns.is_over():
                await turns.next()
            return outcome
        except BaseException as error:
            self.count_failure(error)
            await self._explain(error, timeout_s)
            raise

    async def _explain(self, error: BaseException, timeout_s: object) -> None:
        """Give way if a request was refused: a program may try again in a loop.

        Raises:
            TypeError, ValueError: in place of such an error, if the time-out is its cause.
        """
        if isinstance(error, _REFUSED):
            await self._turns.pause()
        elif type(error) is TypeError or type(error) is ValueError:
            check_timeout(timeout_s)

    def count_failure(self, error: BaseException) -> None:
        """Count the outcome of a call that did not end well."""
        outcome = outcome_of(error)
        self.failures[outcome] = self.failures.get(outcome, 0) + 1

    async def _admit_call(
        self, session: Session, to: Target, key: Key, packed: Packed, timeout_s: float, deadline: float,
        sender: Hashable = None, extra_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Send a packed call, and count it, as soon as there is room. Raises: as `wait_for_room`."""
        while session.admit(key, packed, sender, extra_bytes=extra_bytes, is_call=True) is not None:
            await self.wait_for_room(session, to, timeout_s, deadline, key, len(packed), sender)
            packed = self.in_flight.mark(packed, deadline - timeout_s)

    async def ask(self, node: str, verb: str, argument: Any, timeout_s: float) -> Any:
        """Ask a connected node itself; such a request is small and waits for no window. Raises: as `call`."""
        try:
            self._check_running()
            check_seconds(timeout_s)
            timeout_s = min(timeout_s, MAX_TIMEOUT_S)
            session, ref = self._find_session(self.canonical(node)), self.take_ref()
            packed = self._codec.pack(operations.request(verb, argument, ref), argument)
            return await self.request(session, node, ref, packed, timeout_s, self._loop.time() + timeout_s)
        except Exception as error:
            await self._explain(error, timeout_s)
            raise

    # What streams, remote spawning and the directory share.

    def route(self, to: Target) -> tuple[Session | None, Key]:
        """Find the session to a target (None: it is on this node) and its key there; `send` has a copy.

        Raises:
            NodeStopped, NoConnection, NoProcess, InvalidName: it cannot be sent to.
        """
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)
        if self._home._thread_id != get_ident() and _get_running_loop() is not self._loop:  # noqa: SLF001
            check_loop(self._loop, "A method that sends or asks")
        if isinstance(to, tuple):  # the usual case: a connected node
            name, node = to
            session = self._sessions.get(node)
            if session is not None:
                return session, name
        if isinstance(to, Pid):
            if to.node == self._name:
                return None, to.number
            session = self._sessions.get(to.node) or self._find_session(to.node)
            if session.incarnation != to.incarnation:
                raise NoProcess(to)
            return session, to.number
        if isinstance(to, str):
            return None, to
        name, node = to
        if node != self._name:
            node = self.canonical(node)
        return (None if node == self._name else self._find_session(node)), name

    def box_of(self, to: Target, key: Key) -> Mailbox:
        """Find the mailbox of a process of this node. Raises: NoProcess."""
        if isinstance(to, Pid) and to.incarnation != self._incarnation:
            raise NoProcess(to)
        box = self._boxes.get(key)
        if box is None:
            raise NoProcess(to)
        return box

    def refuse_own(self, to: Target, box: Mailbox) -> None:
        """Refuse a request of a process to itself, which could not take it while it waits for the reply.

        Raises:
            WouldBlock: the target is the caller itself, and nothing else takes its messages.
        """
        process = self.waits.process_of(asyncio.current_task(self._loop))
        if process is not None and process.mailbox is box and not box.waited_for:
            raise WouldBlock(
                to,
                "it is the caller itself, which takes no message while it waits for the reply: call the "
                "method directly, cast to it, or make the handler that calls concurrent",
            )

    async def wait_for_room(
        self, window: Mailbox | Session, to: Target, timeout_s: float, deadline: float, *message: Any
    ) -> None:
        """Wait for room in a mailbox, or on a session, and let `waits` know meanwhile.

        Args:
            window: where the message goes.
            to: for the error.
            timeout_s: seconds that the caller asked for; for the error.
            deadline: on the loop's clock, in seconds.
            message: for a session, what `Session.room` takes: key, size and sender.

        Raises:
            WouldBlock: there is none by the deadline.
            NoConnection: the session ended first.
        """
        check_seconds(timeout_s)
        task = asyncio.current_task(self._loop)
        process = self.waits.process_of(task)
        wait = self.waits.begin(process, WaitsFor.ROOM, to, window)
        if message:
            wait.key = message[0]
        if process is None and task is not None:
            wait.task = task.get_name()
        try:
            async with asyncio.timeout_at(deadline):
                await window.room(*message)
        except TimeoutError:
            raise WouldBlock(to, f"its window stayed full for the {timeout_s:g} s of the deadline") from None
        finally:
            self.waits.end(wait)

    async def call_here(self, to: Target, key: Key, message: Any, timeout_s: float, deadline: float) -> Any:
        """Call a process of this node: the `Call` goes into its mailbox, and this object is the `Caller`."""
        box, loop = self.box_of(to, key), self._loop
        process = self.waits.process_of(asyncio.current_task(loop))
        if process is not None and process.mailbox is box:
            self.refuse_own(to, box)
        if box.full:
            await self.wait_for_room(box, to, timeout_s, deadline)
            box = self.box_of(to, key)  # The process may have ended meanwhile.
        if self._copies:
            message = self.copied(to, message)  # Before anything is noted, since it may raise.
        self._next_ref = ref = self._next_ref + 1
        future: asyncio.Future[Any] = loop.create_future()
        slot = self.wheel.enter(future, deadline, to, timeout_s)  # First, since it raises for nan.
        self.local_calls[ref] = future
        began = deadline - timeout_s
        if self.in_flight.is_watched and self.in_flight.covers(began):
            began = -math.inf
        call = Call(message, self, ref, deadline, loop.time, 0, math.inf, began)
        wait = None
        if process is not None:
            wait = self.waits.begin(process, WaitsFor.REPLY, to, box)
            wait.call = call
        box.put(call)
        try:
            outcome = await future
        finally:
            slot.pop(future, None)
            if wait is not None:
                self.waits.end(wait)
            self.local_calls.pop(ref, None)
            if not call._done:  # noqa: SLF001  # `Call.open` inline
                call.abandon()
        turns = self._turns
        if turns.left:  # A thousand replies may have come at once.
            turns.left -= 1
        elif turns.is_over():
            await turns.next()
        return outcome

    async def request(  # noqa: PLR0913, PLR0917  # an object for them would cost every call
        self, session: Session, to: Target, ref: int, packed: Packed, timeout_s: float, deadline: float,
        sender: Hashable = None, key: Key | NodeKey = NODE, extra_bytes: int = 0,
    ) -> Any:  # fmt: skip
        """Send a packed request and wait for its outcome; `NODE` is the key of the node itself."""
        if key is NODE:
            session.append(packed, sender)
        else:
            await self._admit_call(session, to, key, packed, timeout_s, deadline, sender, extra_bytes)
        future: asyncio.Future[Any] = self._loop.create_future()
        session.calls[ref] = future
        process = None if key is NODE else self.waits.process_of(asyncio.current_task(self._loop))
        wait = None
        if process is not None:
            wait = self.waits.begin(process, WaitsFor.REPLY, to, session)
            wait.key, wait.ref = key, ref
        slot = self.wheel.enter(future, deadline, to, timeout_s)
        try:
            outcome = await future
        finally:
            slot.pop(future, None)
            if wait is not None:
                self.waits.end(wait)
            if key is not NODE:
                session.call_ended(key)
            self.close_request(session, ref, sender)
        await self._turns.pause()
        return outcome

    def close_request(self, session: Session, ref: int, sender: Hashable) -> None:
        """Take a request out; if it has no outcome yet, tell the peer that no answer is wanted any more."""
        if session.calls.pop(ref, None) is not None:
            session.control(operations.cancel(ref), after=sender or asyncio.current_task(self._loop))

    def take_ref(self) -> int:
        """Draw a number for a request of this node."""
        self._next_ref += 1
        return self._next_ref

    def copied(self, to: Target, message: Any) -> Any:
        """Return what a process of this node gets: the message itself; with FLEETLM_DEBUG=1 a copy.

        The copy has been through the codec, so that what works on one node works across two.

        Raises:
            NotSerializable, Undecodable: with FLEETLM_DEBUG=1, as another node would.
        """
        return copy_of(self._codec, to, message) if self._copies else message

    def close(self, reason: str) -> None:
        """Stop with the node: calls that stay on this node get `NodeLost`, later sends `NodeStopped`."""
        self.stopped = "has been stopped"
        self.wheel.close()
        for future in list(self.local_calls.values()):  # A stream that ends takes itself out.
            if not future.done():
                future.set_exception(NodeLost(self._name, reason))

    # `Caller` for calls that stay on this node.

    def replied(self, ref: int, value: Any) -> None:
        """Hand the result over."""
        future = self.local_calls.get(ref)
        if future is not None and not future.done():
            future.set_result(self.copied(self._name, value) if self._copies else value)

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        """Hand the failure over as the error that a caller on another node would get."""
        future = self.local_calls.get(ref)
        if future is not None and not future.done():
            future.set_exception(error_of_failure(kind, list(details)))

    def packed_item(self, _ref: int, value: Any, window: int) -> tuple[tuple[Any, int], int]:
        """Prepare an item of a stream: it is handed over as it is, and weighed by what it seems to hold."""
        count = local_units(value)
        count = min(count, window)
        if self._copies:
            value = self.copied(self._name, value)
        return (value, count), count

    async def item(self, ref: int, packed: tuple[Any, int], _timeout_s: float) -> None:
        """Hand an item of a stream over."""
        consumer = self.local_calls.get(ref)
        if isinstance(consumer, ConsumerEnd):
            consumer.put(*packed)

    async def caught_up(self) -> None:
        """Return at once: answers on this node are handed over and never wait."""

    def forget(self, ref: int) -> None:
        """Do nothing: a caller on this node takes its entry out itself."""

    # Internals.

    def _check_running(self) -> None:
        if self.stopped:
            raise NodeStopped(self._name, self.stopped)
        if self._home._thread_id != get_ident():  # noqa: SLF001
            check_loop(self._loop, "A method that sends or asks")

    def _find_session(self, node: str) -> Session:
        """Find a session by the canonical name of its node. Raises: NoConnection, with the known reason."""
        session = self._sessions.get(node)
        if session is not None:
            return session
        peer = self._topology.peers.get(node)
        if peer is None:
            why = "no such node is known; Node.list('known') shows those that are"
        else:
            why = peer.connection.last_error or f"it is {peer.status}"
        raise NoConnection(node, why)

    def _address(self, key: Key, payload: Payload, message: Any) -> Packed:
        """Make one of many messages of a packed payload."""
        pack = operations.packed_cast if type(message) is Invoke else operations.packed_one_way
        return payload.beside(pack(self._codec.pack_value(key), payload.packed))

    def _put_here(
        self, to: Target, key: Key, message: Any, timeout_s: float | None
    ) -> Coroutine[Any, Any, None] | None:
        """Put a message into a mailbox of this node; if it is full, return what to await instead."""
        box = self.box_of(to, key)
        if box.full and not self._is_own(to, box):
            return self._put_later(box, to, key, message, timeout_s)
        box.put(self.copied(to, message) if self._copies else message)
        return None

    async def _put_later(
        self, box: Mailbox, to: Target, key: Key, message: Any, timeout_s: float | None
    ) -> None:
        await self._wait_to_send(box, to, timeout_s)
        box = self.box_of(to, key)  # The process may have ended meanwhile.
        box.put(self.copied(to, message))

    def _put(self, to: Target, box: Mailbox, message: Any) -> None:
        """Put a message into a mailbox of this node. Raises: WouldBlock if it is full."""
        if box.full and not self._is_own(to, box):
            raise WouldBlock(to, f"its mailbox holds {len(box):,} messages")
        box.put(self.copied(to, message))

    def _is_own(self, to: Target, box: Mailbox) -> bool:
        """Whether a full mailbox is that of the sender itself, which must not wait for itself.

        Raises:
            WouldBlock: it is, and takes no further message even so.
        """
        task = asyncio.current_task(self._loop)
        if box.may_exceed(task):
            return True
        if box.belongs_to(task):
            raise WouldBlock(to, f"it is the sender itself, and {len(box):,} messages wait for it already")
        return False

    async def _wait_to_send(
        self, window: Mailbox | Session, to: Target, timeout_s: float | None, *message: Any
    ) -> None:
        """Wait for room for a message, up to `Settings.send_timeout_s`. Raises: as `wait_for_room`."""
        if not isinstance(window, Mailbox) and window.windows.draw(message[0]):
            return
        limit_s = self._settings.send_timeout_s if timeout_s is None else min(timeout_s, MAX_TIMEOUT_S)
        await self.wait_for_room(window, to, limit_s, self._loop.time() + limit_s, *message)

    async def _admit_later(
        self, session: Session, to: Target, key: Key, packed: Packed, timeout_s: float | None,
        sender: Hashable = None, extra_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Do as `Session.admit` as soon as there is room. Raises: as `wait_for_room`."""
        limit_s = self._settings.send_timeout_s if timeout_s is None else min(timeout_s, MAX_TIMEOUT_S)
        deadline = self._loop.time() + limit_s
        while session.admit(key, packed, sender, extra_bytes=extra_bytes) is not None:
            if not session.windows.draw(key):
                await self.wait_for_room(session, to, limit_s, deadline, key, len(packed), sender)
