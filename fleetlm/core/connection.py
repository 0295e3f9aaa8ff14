"""The connection to one peer: two halves, the handshake between them, and the end.

Each node dials the other and sends only over the channel that it dialled, so a connection consists of two
halves (`core.halves`): `Outgoing`, our channel with our epoch, and `Incoming`, the peer's dial with its
source and epoch. The connection is up when both work. The phases::

               dial()                    ready(), naming our epoch
       IDLE ───────────► DIALLING ────────────────────────────────► UP
        ▲                   │                                        │
        └── channel lost, refused, timed out ◄───────────────────────┘ either half ends, or a goodbye

This node's side of the handshake, in DIALLING; the peer does the same on its side:

1. our channel opens                   → send HELLO, with our epoch in the header
2. a HELLO in the peer's name arrives  → once step 1 is done, send READY naming the epoch of that HELLO
3. a READY naming *our* epoch arrives  → the half on which it came is the peer's: UP

Steps 1 and 2 happen in either order. Both nodes usually dial at the same time. That needs no tie-break,
because two dials make the two halves of one connection.

What proves what. A HELLO proves nothing: everybody who can connect can send one in any name, with any
incarnation. So a HELLO makes this node dial, or send a READY, to the address in that name, and changes
nothing else. A READY is the proof: it names the epoch of our HELLO, which went to the address in the peer's
name and nowhere else. So the peer was reached at that address, which is how a node owns its name, and the
half on which its READY comes is its own. The READY has the peer's HELLO in it, so that the HELLOs that came
before need not be remembered, and a flood of forged ones displaces none. The peer's READY and its messages
come over one ordered half, so no message arrives before the connection is up.

A HELLO while the connection is up (`Claim`) says that the peer dialled anew: it was restarted, or it regards
the connection as over. Or somebody else sent that HELLO. So this node dials the address of the peer once
more, beside the connection, and says in its HELLO that it is a *check* (`Check`):

- a peer that has a connection to us did not dial, and refuses the check: ``connected``;
- a peer that dials us answers with the READY of step 3, which names the epoch of the check. That is the
  proof: the connection goes down, and this node dials anew. After a restart the old incarnation is thus down
  before the new one comes up, and the clocks of the two play no part in it;
- no answer, or another one: the connection stays, and whoever sent that HELLO is refused as
  ``duplicate_name``.

Checks and early dials are limited for each name (`Connection.hellos`), so that forged HELLOs cause few.

Races, and where each is settled:

- The peer gives up a half that we regard as good, and dials again. While we are DIALLING nothing is lost:
  our READY for its new HELLO introduces our half to it again.
- The connection ends while a claim waits (the loss of the peer's half was read after its HELLO): this node
  dials at once (`down`), and sends the READY for the waiting half.
- A READY for an earlier attempt of ours names another epoch and is passed over. So is all that comes on a
  half that no READY has proven: its GOODBYE, for instance, ends nothing.
- A frame is lost, or one of an earlier dial arrives late: the numbering of `Incoming` notices it, and
  `broken` gives up both halves.

Pauses between dials (`_go_idle`, `down`). A handshake proves little: a firewall may reset each connection a
moment after it, and two nodes whose limits differ end theirs at the first table. So only a connection that
has lived for `Settings.settled_s` counts as a success. Each one that ends earlier doubles the pause before
the next dial, and the peer's HELLO, which otherwise makes us dial back at once, shortens that pause to half
of its ceiling at most. A peer that was restarted begins anew.

`Connection` takes facts and returns effects. It never reads a clock, and never raises on what a peer does.
`core.kernel` decides which facts reach it, and updates the other tables for its effects.

Source: Erlang's distribution handshake (erl_dist_protocol); differs: one TCP connection for each
direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from fleetlm.core.buckets import Bucket
from fleetlm.core.effects import (
    Dial,
    Down,
    Effect,
    End,
    ExpectRoad,
    FollowRoad,
    HangUp,
    OpenRoad,
    Send,
    TakeRoad,
    Up,
)
from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.names import NodeName, endpoint
from fleetlm.records import Record, Row
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, Hello, Kind, Ready

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings


EndStep = Callable[[float, str], list[Effect]]
"""Ends a connection or an attempt at a time, for a reason."""
PROTOCOL_ERROR = "protocol error"
"""How the reason begins with which a node ends a connection whose peer broke the protocol."""


MAX_HEARD = 4
"""Epochs of HELLOs that wait for our channel to open. An honest peer has one, or two if it dialled again."""
MAX_CONFIRMED = 8
"""Epochs that one half of ours confirms without proof. A READY from the peer is confirmed beyond it."""
HELLO_BURST = 4
"""HELLOs in one name that act at once (a dial, a check); then one in each `Settings.hello_s`."""


class Claim(Row):
    """A HELLO in the name of a peer that is up: its source, and what it says."""

    source: bytes
    hello: Hello


@dataclass(slots=True)
class Check:
    """A second dial to the address of a peer that is up, which settles a claim."""

    out: Outgoing
    deadline: float
    claim: Claim


class Phase(Enum):
    """The state of the connection to one peer."""

    IDLE = "idle"
    DIALLING = "dialling"
    UP = "up"


class Identity(Record):
    """How this node presents itself to others; the same from its start to its end.

    Attributes:
        name: ``basename@ip``, with the port if it is not the cluster's base port.
        incarnation: of this start of the node, 64 bits.
        cluster: the cluster's id; nodes of other clusters are refused.
        port: where this node listens.
        aliases: further addresses of this machine; the node listens there on the same port.
        window_bytes: bytes that one peer may have in flight to this node.
        max_message_bytes: the largest message that it takes.
        mailbox_limit: units that one peer may send to one process before the process takes some.
        features: what else its HELLO says, such as the rights that it denies (`wire.rights`).
        road: the number of its listener for local roads; 0: it has none.
        max_frame_bytes: the largest frame that it takes; 0: it does not say so.
    """

    name: str
    incarnation: int
    cluster: str
    port: int
    aliases: tuple[str, ...]
    window_bytes: int
    max_message_bytes: int
    mailbox_limit: int = 4_096
    base_port: int = 4_370
    """The port of a node whose name has none."""
    features: tuple[str, ...] = ()
    road: int = 0
    max_frame_bytes: int = 0

    @property
    def alias_addresses(self) -> tuple[str, ...]:
        """The aliases as they stand in a node name, with this node's port."""
        return addresses_at(self.aliases, self.name)

    def hello(self, dialled: str, *, is_check: bool = False) -> Hello:
        """Build the HELLO for the node ``dialled``."""
        return Hello(
            name=self.name,
            incarnation=self.incarnation,
            dialled=dialled,
            cluster=self.cluster,
            port=self.port,
            base_port=self.base_port,
            protocol_min=frames.PROTOCOL_MIN,
            protocol_max=frames.PROTOCOL_MAX,
            aliases=self.aliases,
            window_bytes=self.window_bytes,
            mailbox_limit=self.mailbox_limit,
            max_message_bytes=self.max_message_bytes,
            is_check=is_check,
            features=self.features,
            road=self.road,
            max_frame_bytes=self.max_frame_bytes,
        )


def addresses_at(ips: Iterable[str], name: str) -> tuple[str, ...]:
    """Return the addresses that a node has where it listens at ``ips`` on the port in its name."""
    own = NodeName.parse(name)
    return tuple(NodeName(own.basename, ip, own.port).address for ip in ips)


class Connection:
    """The state machine of one peer. Each method takes a fact and returns the effects that follow.

    Attributes:
        ip: the address in the peer's name.
        port: the port in it, or the base port.
        target: the address to dial: that one, or an alias of the peer.
        outgoing: our half, from `dial` to the end of the attempt or connection.
        incoming: the peer's half; only while up, since only a READY proves which one it is.
        heard: epochs of the latest HELLOs in the peer's name, to be confirmed when our channel opens.
        claim: the latest HELLO in its name since it is up, unless it is settled.
        check: the dial that settles a claim, while it is in progress.
        hellos: limits how often HELLOs in its name act.
        incarnation: of the peer, when it was up last; 0 before.
        attempt: failed attempts since it was up last.
        short_lived: connections in a row that ended before they had lived for `Settings.settled_s`.
        foreign: dials in a row that found another program at this address.
        next_dial_at: when to dial next; only in IDLE.
        earliest_dial_at: the peer's HELLO does not bring `next_dial_at` forward beyond this.
        deadline: when the present step of the handshake must be done; only in DIALLING.
        up_at: since when it is up, None if it is not.
        ups: how many times it has been up.
        last_error: why the last attempt failed or the connection ended; "" before the first such error.
        last_error_at: when that was.
    """

    __slots__ = (
        "attempt",
        "check",
        "claim",
        "deadline",
        "earliest_dial_at",
        "foreign",
        "heard",
        "hellos",
        "incarnation",
        "incoming",
        "ip",
        "last_error",
        "last_error_at",
        "me",
        "name",
        "next_dial_at",
        "outgoing",
        "phase",
        "port",
        "rng",
        "settings",
        "short_lived",
        "target",
        "up_at",
        "ups",
    )

    def __init__(
        self, name: str, ip: str, me: Identity, settings: Settings, rng: random.Random, now: float
    ) -> None:
        self.name: str = name
        self.ip: str = ip
        self.target: str = ip
        self.port: int = NodeName.parse(name).port or settings.base_port
        self.me: Identity = me
        self.settings: Settings = settings
        self.rng: random.Random = rng
        self.phase: Phase = Phase.IDLE
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.incarnation: int = 0
        self.attempt: int = 0
        self.short_lived: int = 0
        self.foreign: int = 0
        self.next_dial_at: float = now
        self.earliest_dial_at: float = now
        self.deadline: float = 0.0
        self.up_at: float | None = None
        self.ups: int = 0
        self.heard: dict[int, None] = {}
        self.claim: Claim | None = None
        self.check: Check | None = None
        self.hellos: Bucket = Bucket(1 / settings.hello_s, HELLO_BURST, now)
        self.last_error: str = ""
        self.last_error_at: float = now

    def wake_at(self, now: float) -> float | None:
        """Return when time alone changes something: a dial is due, or takes too long. None if nothing is."""
        if self.phase is Phase.IDLE:
            return self.next_dial_at
        if self.phase is Phase.DIALLING:
            return self.deadline
        if self.check is not None:
            return self.check.deadline
        return None if self.claim is None else self.check_at(now)

    def check_at(self, now: float) -> float:
        """Return when a claim may be checked."""
        return max(self.earliest_dial_at, self.hellos.ready_at(now))

    @property
    def road(self) -> str:
        """How messages travel to the peer, as people read it; "" while it is not up."""
        if self.phase is not Phase.UP or self.outgoing is None:
            return ""
        return "local" if self.outgoing.is_local else "zeromq"

    # Facts about our own half.

    def dial(self, now: float, channel: int) -> list[Effect]:
        """Begin an attempt on a new channel. Only from IDLE."""
        self.phase = Phase.DIALLING
        self.outgoing = Outgoing(channel, self.rng.randrange(1, 1 << frames.EPOCH_BITS))
        self.deadline = now + self.settings.connect_timeout_s
        return [Dial(channel, self.target, self.port)]

    def begin_check(self, now: float, channel: int) -> list[Effect]:
        """Dial the peer's address beside the connection, to settle the claim. Only if `check_at` is over."""
        assert self.claim is not None
        self.hellos.take(now)
        out = Outgoing(channel, self.rng.randrange(1, 1 << frames.EPOCH_BITS))
        self.check = Check(out, now + self.settings.connect_timeout_s, self.claim)
        self.claim = None
        return [Dial(channel, self.target, self.port)]

    def is_check(self, channel: int) -> bool:
        """Whether this channel is that of the check."""
        return self.check is not None and self.check.out.channel == channel

    def end_check(self) -> list[Effect]:
        """Give up the check: whatever it found out does not confirm the claim."""
        check, self.check = self.check, None
        return [] if check is None else [HangUp(check.out.channel)]

    def opened(self, now: float, channel: int) -> list[Effect]:
        """A channel can carry frames: send HELLO, and READY for the HELLOs that are here already."""
        deadline = now + self.settings.handshake_timeout_s
        check, out = self.check, self.outgoing
        if check is not None and check.out.channel == channel:
            check.deadline = deadline
            return self._introduce(now, check.out, is_check=True)
        if self.phase is not Phase.DIALLING or out is None or out.opened_at is not None:
            return []
        self.deadline = deadline
        effects = self._introduce(now, out, is_check=False)
        for epoch in self.heard:
            effects += self._confirm(epoch)
        return effects

    def _introduce(self, now: float, out: Outgoing, *, is_check: bool) -> list[Effect]:
        """Send HELLO on a half of ours, once."""
        if out.opened_at is not None:
            return []
        out.opened_at = now
        body = frames.pack_hello(self.me.hello(self.name, is_check=is_check))
        return [Send(out.channel, out.header(Kind.HELLO) + body)]

    def channel_lost(
        self, now: float, reason: str, *, is_foreign: bool = False, kind: End = End.LOST
    ) -> list[Effect]:
        """Our channel could not be opened, or has ended; ``is_foreign``: another program listens there."""
        if self.phase is Phase.UP:
            return self.down(now, reason, kind=kind)
        effects = self.failed(now, reason)
        if is_foreign:
            self._wait_for_another_node(now)
        return effects

    def failed(self, now: float, reason: str) -> list[Effect]:
        """Give up this attempt, for ``reason``; the next one follows after a back-off."""
        self.last_error, self.last_error_at = reason, now
        return self._go_idle(now)

    def timed_out(self, now: float) -> list[Effect]:
        """`deadline` has passed in DIALLING: give up, and name the step that was not reached."""
        return self.failed(now, self._missing_step())

    # Facts about the peer's half.

    def hello(self, now: float, source: bytes, epoch: int, hello: Hello) -> list[Effect]:
        """Take a HELLO in the peer's name that the kernel has admitted: confirm it, or have it checked.

        It may be forged: it ends nothing and replaces nothing.
        """
        self.heard.pop(epoch, None)
        self.heard[epoch] = None
        if len(self.heard) > MAX_HEARD:
            del self.heard[next(iter(self.heard))]
        if self.phase is Phase.UP:
            self.claim = Claim(source, hello)
            return []
        if hello.incarnation != self.incarnation:
            self.short_lived, self.earliest_dial_at = 0, now
        self.foreign = 0
        if self.phase is Phase.IDLE and self.hellos.take(now):
            # The peer may be alive: dial back without waiting, unless its connections end at once.
            self.next_dial_at = min(self.next_dial_at, max(now, self.earliest_dial_at))
        return self._confirm(epoch)

    def expects(self, epoch: int) -> bool:
        """Whether a READY that names this epoch proves who the peer is, or that it dialled anew."""
        out = self.outgoing if self.phase is Phase.DIALLING else self.check.out if self.check else None
        return out is not None and out.opened_at is not None and out.epoch == epoch

    def ready(self, now: float, half: Incoming) -> list[Effect]:
        """Take a READY that `expects`, which came over ``half``: go up, or go down if it confirms a claim."""
        if self.phase is Phase.UP:
            self.claim = Claim(half.source, half.hello)
            same = half.hello.incarnation == self.incarnation
            if same:
                return self.down(now, "the peer dialled anew", kind=End.REDIALLED)
            return self.down(now, "restarted: another incarnation", kind=End.RESTARTED)
        out = self.outgoing
        assert out is not None
        if half.epoch not in out.confirmed:
            out.confirmed.clear()  # This one is proven: `MAX_CONFIRMED` is not for it.
        effects = self._confirm(half.epoch)  # Usually nothing: `opened` or `hello` has sent it.
        self.phase = Phase.UP
        self.incoming = half
        self.incarnation = half.hello.incarnation
        self.attempt = 0
        self.up_at = now
        self.ups += 1
        self.heard.clear()
        return [*effects, Up(self.name, self.incarnation, out, half), *self._agree_on_roads(out, half)]

    # The local road.

    def _agree_on_roads(self, out: Outgoing, half: Incoming) -> list[Effect]:
        """Let both halves change over to local roads, if both nodes have some; they may be on two hosts.

        Not after a connection that ended soon: its local road may have been the reason.
        """
        if not (self.me.road and half.hello.road) or self.short_lived:
            return []
        return [
            ExpectRoad(half.source, frames.ticket(half.epoch, out.epoch)),
            OpenRoad(out.channel, half.hello.road, frames.ticket(out.epoch, half.epoch)),
        ]

    def road_opened(self) -> list[Effect]:
        """The peer has let our half in at its local road: say where the frames of this one end, and change.

        Only while up.
        """
        out = self.outgoing
        assert out is not None
        out.is_local = True
        return [Send(out.channel, out.header(Kind.MOVED)), TakeRoad(out.channel)]

    def moved(self) -> list[Effect]:
        """The peer's half changes over: what follows comes over the local road. Only while up.

        Raises:
            BadFrame: it has changed over before, or this node has no local road.
        """
        half = self.incoming
        assert half is not None
        if half.is_local or not self.me.road:
            raise BadFrame("it changes over to a local road that there is not")
        half.is_local = True
        return [FollowRoad(half.source)]

    def source_lost(self, now: float, reason: str, kind: End = End.LOST) -> list[Effect]:
        """The peer's half has ended. Only while up."""
        return self.down(now, reason, kind=kind)

    def broken(self, now: float, reason: str) -> list[Effect]:
        """The peer broke the protocol on its half, or a frame was lost there. Only while up.

        The peer may still regard the connection as up. It is told the reason, so that its own log and table
        have it too; where that is lost, dialling anew tells it that the connection is over.
        """
        return self._say_goodbye(partial(self.down, kind=End.PROTOCOL_ERROR), now, reason)

    # Ending the connection.

    def down(self, now: float, reason: str, *, in_order: bool = False, kind: End = End.LOST) -> list[Effect]:
        """End a connection that is up: give up both halves, and dial again after a back-off.

        ``in_order``: a node ended it on purpose, which says nothing of how long connections last.
        """
        self.last_error, self.last_error_at = reason, now
        gone = Down(self.name, self.incarnation, reason, kind)
        settled = self.up_at is not None and now - self.up_at >= self.settings.settled_s
        self.short_lived = 0 if settled or in_order else self.short_lived + 1
        self.up_at = None
        effects = self._go_idle(now)
        self._wait_after_short_life(now)
        if self.claim is not None or self.check is not None:  # The peer, it seems, has dialled already.
            self.next_dial_at = max(now, self.earliest_dial_at)
        self.claim = None
        return [gone, *effects, *self.end_check()]

    def leave(self, now: float, reason: str, kind: End = End.STOPPING) -> list[Effect]:
        """End the connection or attempt on our side, and send the peer a GOODBYE if our channel is open."""
        return self._say_goodbye(partial(self._end, kind), now, reason)

    def _end(self, kind: End, now: float, reason: str) -> list[Effect]:
        """End whatever there is, and give up both halves."""
        if self.phase is Phase.UP:
            return self.down(now, reason, in_order=True, kind=kind)
        return self._go_idle(now)

    def _say_goodbye(self, end: EndStep, now: float, reason: str) -> list[Effect]:
        """Send a GOODBYE if our channel is open, perform ``end``, and let the frame leave."""
        out = self.outgoing
        effects: list[Effect] = []
        flush_s = 0.0
        if out is not None and out.opened_at is not None:
            effects.append(Send(out.channel, out.header(Kind.GOODBYE) + frames.pack_goodbye(reason)))
            flush_s = self.settings.goodbye_flush_s
        return effects + [
            HangUp(effect.channel, flush_s) if isinstance(effect, HangUp) else effect
            for effect in end(now, reason)
        ]

    def _confirm(self, epoch: int) -> list[Effect]:
        """Send READY for a half that may be the peer's, once for each, as soon as our channel is open."""
        out = self.outgoing
        if out is None or out.opened_at is None:
            return []
        if epoch in out.confirmed or len(out.confirmed) >= MAX_CONFIRMED:
            return []
        out.confirmed.add(epoch)
        body = frames.pack_ready(Ready(epoch, self.me.hello(self.name)))
        return [Send(out.channel, out.header(Kind.READY) + body)]

    def _go_idle(self, now: float) -> list[Effect]:
        """Close our channel, and set the time of the next attempt."""
        effects: list[Effect] = [] if self.outgoing is None else [HangUp(self.outgoing.channel)]
        self.phase = Phase.IDLE
        self.outgoing = self.incoming = None
        self.next_dial_at = now + self._backoff_s()
        self.attempt += 1
        return effects

    def _backoff_s(self) -> float:
        """Draw the pause before the next attempt: uniform below a ceiling that doubles (full jitter).

        Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; differs: never below a fifth of
        the first ceiling, so that attempts do not spin.
        """
        s = self.settings
        ceiling = min(s.backoff_max_s, s.backoff_min_s * 2.0 ** min(self.attempt, 16))
        return max(s.backoff_min_s / 5, self.rng.uniform(0.0, ceiling))

    def _wait_after_short_life(self, now: float) -> None:
        """Set the pause after a connection that ended: none of its own if that one had settled.

        The ceiling begins at four times that of a failed dial and doubles up to twice the highest one. The
        pause is at least half of it: both nodes draw one, and the shorter one decides.
        """
        s = self.settings
        ceiling = min(2 * s.backoff_max_s, 2 * s.backoff_min_s * 2.0 ** min(self.short_lived, 16))
        least = 0.0 if self.short_lived == 0 else ceiling / 2
        self.earliest_dial_at = now + least
        if least:
            self.next_dial_at = max(self.next_dial_at, now + self.rng.uniform(least, ceiling))

    def wait_for_a_sign(self, now: float) -> None:
        """Set the pause after a failed dial to a node that, for all that is known, may not exist.

        It is at least two seconds, then four, and so on: an honest node introduces itself again, which ends
        the pause, and nobody can have a third party dialled often.
        """
        least = min(self.settings.backoff_max_s, 2.0 ** min(self.attempt, 16))
        self.next_dial_at = max(self.next_dial_at, now + least)

    def _wait_for_another_node(self, now: float) -> None:
        """Set the long pause before the next dial to an address where another program listens.

        A node that gets this address later introduces itself, which ends the pause (`hello`).
        """
        s = self.settings
        self.foreign += 1
        ceiling = min(s.foreign_backoff_max_s, s.backoff_max_s * 2.0 ** min(self.foreign, 16))
        self.next_dial_at = now + self.rng.uniform(ceiling / 2, ceiling)

    def _missing_step(self) -> str:
        """Return a text that names the step of the handshake that took too long, and what may be wrong."""
        s = self.settings
        there = endpoint(self.target, self.port)
        if self.outgoing is None or self.outgoing.opened_at is None:
            return f"connect timeout: {there} did not answer within {s.connect_timeout_s:g} s"
        if not self.heard:
            return (
                f"{there} answers but does not dial back within {s.handshake_timeout_s:g} s: it "
                f"cannot reach us at {endpoint(NodeName.parse(self.me.name).ip, self.me.port)}, "
                "or is not a fleetlm node"
            )
        return f"handshake timeout: {there} dialled us but did not confirm within {s.handshake_timeout_s:g} s"
