"""What this node knows of the whole cluster, for people: `Node.overview`, and the answers to peers that ask.

Theory of operation. Each node makes the part about itself (`own_overview`); for an overview the others are
asked for theirs, all at once. Looking must cost a node little, however many look:

* A part is kept for `KEPT_S`. Whoever asks meanwhile gets the same one, and whoever asks while it is made
  waits for it (`_OwnPart`). So a peer that asks without end costs little more than the sending of answers.
* The parts of the others are kept for as long, and each peer is asked once at a time, for `ASK_S` at most
  (`_PeerPart`). Each caller of `everywhere` waits as long as it wants to, and shows an error for a peer that
  has not answered by then. So a node that hangs delays nobody and is not asked again and again.
* When nobody has asked for `FORGET_S`, the parts are dropped; that of a peer is with its session.

Requests to peers are tasks of this module. `close` cancels them when the node stops, and callers that still
wait then get `NodeStopped`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Any

from fleetlm.core.overview_shape import (
    DOES_NOT_KNOW,
    UNREADABLE,
    Part,
    absent,
    cut,
    peer_state,
    read_part,
)
from fleetlm.errors import FleetError, NodeStopped, RemoteError
from fleetlm.runtime.own_overview import OwnOverview, Watched
from fleetlm.seconds import check_seconds

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.messaging.session import Session

log: logging.Logger = logging.getLogger("fleetlm")

KEPT_S = 0.5
"""Seconds for which a part serves everybody who asks."""
ASK_S = 5.0
"""Seconds that a peer has to answer, for whoever waits so long."""
MAX_TIMEOUT_S = 60.0
"""The longest time that a caller of `Overview.everywhere` waits."""
FORGET_S = 5.0
"""Seconds after which parts that nobody looks at are dropped: those of 1,000 nodes take some megabytes."""
MAX_NODES = 1 << 16
"""More nodes are not believed to have been asked by a peer."""


class _OwnPart:
    """The part of this node while it is made, and for `KEPT_S` afterwards."""

    def __init__(self, node: Watched) -> None:
        self._own = OwnOverview(node)
        self._name = node.context.name
        self._loop = node.context.loop
        self._kept: Part | None = None
        self._cut: dict[tuple[int, bool], Part] = {}
        """The part as it was shortened for so many nodes, and whether for a peer."""
        self._kept_at = 0.0
        self._steps: Iterator[Part | None] | None = None
        self._waiting: list[Callable[[], None]] = []

    def ask(self, then: Callable[[], None]) -> None:
        """Call ``then`` when there is a part: at once, or in a later turn of the loop."""
        if self._kept is not None and self._loop.time() - self._kept_at < KEPT_S:
            then()
            return
        self._waiting.append(then)
        if self._steps is None:
            self._steps = self._own.steps()
            self._go_on()

    def shortened(self, nodes: int, *, for_peer: bool) -> Part:
        """Return the part for an overview of so many nodes; only within `ask`."""
        assert self._kept is not None, "there is a part"
        key = nodes, for_peer
        found = self._cut.get(key)
        if "error" in self._kept:
            return self._kept
        if found is None:
            found = cut(self._kept, nodes, for_peer=for_peer)
            self._cut = {key: found}
        return found

    def forget(self) -> None:
        """Drop the part."""
        self._kept, self._cut = None, {}

    def close(self) -> None:
        """Make no part any more, and tell those that wait."""
        if self._steps is not None:
            self._steps = iter(())
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def _go_on(self) -> None:
        """Take one step; the next one is taken in the next turn of the loop."""
        assert self._steps is not None, "a part is being made"
        try:
            made = next(self._steps, None)
        except Exception as error:  # Whoever waits would wait forever, and so would all who ask later.
            log.exception("this node cannot tell of itself")
            made = absent(self._name, f"it cannot tell of itself: {type(error).__name__}", state="up")
        if made is None and self._waiting:
            self._loop.call_soon(self._go_on)
            return
        self._steps = None
        self._kept, self._kept_at, self._cut = made, self._loop.time(), {}
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


class _PeerPart:
    """What a peer told of itself last, and the request to it."""

    __slots__ = ("asking", "at", "part")

    def __init__(self) -> None:
        self.asking: asyncio.Task[None] | None = None
        self.part: Part | None = None
        self.at = 0.0


class Overview:
    """Makes overviews on one node, and answers peers."""

    def __init__(self, node: Watched) -> None:
        self._node = node
        self._context = node.context
        self._loop = node.context.loop
        self._own = _OwnPart(node)
        self._peers: dict[str, _PeerPart] = {}
        self._asked_at = 0.0
        self._forgetting: asyncio.TimerHandle | None = None
        self._is_closed = False

    def answer(self, argument: Any, call: Call) -> None:
        """Answer a peer that asks for the part of this node.

        Args:
            argument: how many nodes are asked; anything else counts as one.
            call: of the peer.
        """
        nodes = argument if type(argument) is int and 0 < argument <= MAX_NODES else 1
        self._remember()
        self._own.ask(lambda: self._reply(call, nodes))

    def _reply(self, call: Call, nodes: int) -> None:
        """Send the part of this node."""
        if self._is_closed:
            call.fail(NodeStopped(self._context.name, "it stops"))
            return
        try:
            call.reply(self._own.shortened(nodes, for_peer=True))
        except FleetError as error:  # `Call.reply` has told the peer.
            del error

    async def everywhere(self, timeout_s: float) -> dict[str, Any]:
        """See `Node.overview`."""
        check_seconds(timeout_s, above=0)
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        self._check_open()
        self._remember()
        sessions = dict(self._context.sessions)
        self._drop_all_but(sessions)
        nodes = len(sessions) + 1
        asked = {name: self._ask_peer(session, nodes) for name, session in sessions.items()}
        made: asyncio.Future[None] = self._loop.create_future()
        self._own.ask(lambda: None if made.done() else made.set_result(None))
        tasks = {each.asking for each in asked.values() if each.asking is not None}
        await asyncio.wait({made, *tasks}, timeout=timeout_s)
        self._check_open()
        await made  # It does not depend on others, and is never far away.
        self._check_open()
        name = self._context.name
        parts = {name: self._own.shortened(nodes, for_peer=False)}
        late = f"it did not answer within {timeout_s:g} s"
        for peer, row in self._node.kernel.topology.peers.items():
            state = peer_state(row.status, is_draining=row.is_draining)
            told = asked.get(peer)
            if told is None or peer not in self._context.sessions:
                why = row.connection.last_error
                error = f"it is not connected: {why}" if why else "it is not connected"
                parts[peer] = absent(peer, error, state=state)
            elif told.part is None or told.asking is not None:
                parts[peer] = absent(peer, late, state=state)
            else:
                parts[peer] = told.part
        return {"asked": name, "wall_ms": self._node.wall_ms(), "nodes": parts}

    def close(self) -> None:
        """Stop asking: the node stops."""
        self._is_closed = True
        if self._forgetting is not None:
            self._forgetting.cancel()
        for each in self._peers.values():
            if each.asking is not None:
                each.asking.cancel()
        self._own.close()

    def _check_open(self) -> None:
        if self._is_closed or self._node.outbound.stopped:
            raise NodeStopped(self._context.name, self._node.outbound.stopped or "is stopping")

    def _ask_peer(self, session: Session, nodes: int) -> _PeerPart:
        """Ask a peer for its part, unless it has told it just now, or is asked already."""
        known = self._peers.setdefault(session.name, _PeerPart())
        is_fresh = known.part is not None and self._loop.time() - known.at < KEPT_S
        if known.asking is None and not is_fresh:
            task = self._loop.create_task(
                self._take_part(session, known, nodes), name=f"overview of {session.name}"
            )
            known.asking = task
        return known

    async def _take_part(self, session: Session, known: _PeerPart, nodes: int) -> None:
        """Take what a peer tells, or why it tells nothing."""
        name = session.name
        try:
            told = await self._node.outbound.ask(name, "overview", nodes, ASK_S)
            part = read_part(told, name)
        except RemoteError as error:
            does_not_know = error.type_name == "InvalidName"
            part = absent(name, DOES_NOT_KNOW if does_not_know else str(error), state="up")
        except FleetError as error:
            part = absent(name, str(error), state="up")
        except ValueError:
            part = absent(name, UNREADABLE, state="up")
        finally:
            known.asking = None
        known.part, known.at = part, self._loop.time()

    def _remember(self) -> None:
        """Note that somebody looks, so that the parts are dropped some seconds later."""
        self._asked_at = self._loop.time()
        if self._forgetting is None and not self._is_closed:
            self._forgetting = self._loop.call_later(FORGET_S, self._forget)

    def _forget(self) -> None:
        """Drop the parts if nobody has looked for a while."""
        left_s = self._asked_at + FORGET_S - self._loop.time()
        if left_s > 0:
            self._forgetting = self._loop.call_later(left_s, self._forget)
            return
        self._forgetting = None
        self._own.forget()
        self._drop_all_but(())

    def _drop_all_but(self, names: Container[str]) -> None:
        """Drop what peers have told, but for these names, and for requests that are on their way."""
        self._peers = {
            name: each for name, each in self._peers.items() if name in names or each.asking is not None
        }
