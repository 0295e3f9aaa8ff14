"""One peer: two halves, the handshake between them, and the end.

::

            we dial ──► opened ──► HELLO ──►        (outgoing: our channel, our epoch)
            peer's HELLO ──► READY ──►              (incoming: its source, its epoch)
            peer's READY, naming our epoch ──► UP

A READY that names the epoch of *our* HELLO proves that the peer was reached at the address that we
dialled: the HELLO went nowhere else. That is how a node owns its name. And because the peer's HELLO,
its READY and its messages come over one ordered half, no message can come before the connection is
up. Source: Erlang's distribution handshake (erl_dist_protocol); differs: one TCP connection for each
direction, so simultaneous dialling is the normal case and needs no tie-break.

`Connection` takes facts and returns effects. It never reads a clock and never raises on what a peer
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from fleetlm.core.effects import Dial, Down, Effect, HangUp, Send, Up
from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.names import endpoint
from fleetlm.wire import frames
from fleetlm.wire.frames import Hello, Kind, Ready

if TYPE_CHECKING:
    import random

    from fleetlm.settings import Settings


class Phase(Enum):
    """Where the connection to one peer stands."""

    IDLE = "idle"
    DIALLING = "dialling"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Identity:
    """This node, as it presents itself. Fixed from the start of a node to its end."""

    name: str
    incarnation: int
    cluster: str
    port: int
    aliases: tuple[str, ...]
    window_bytes: int
    max_message_bytes: int
    mailbox_limit: int = 4_096

    def hello(self, dialled: str, dropped: int) -> Hello:
        """How this node introduces itself to the one it dialled."""
        return Hello(
            name=self.name,
            incarnation=self.incarnation,
            dialled=dialled,
            cluster=self.cluster,
            port=self.port,
            protocol_min=frames.PROTOCOL_MIN,
            protocol_max=frames.PROTOCOL_MAX,
            aliases=self.aliases,
            window_bytes=self.window_bytes,
            mailbox_limit=self.mailbox_limit,
            max_message_bytes=self.max_message_bytes,
            dropped=dropped,
        )


class Connection:
    """The state of one peer, driven by facts. Each fact returns the effects that follow from it."""

    __slots__ = (
        "attempt",
        "deadline",
        "dropped",
        "incarnation",
        "incoming",
        "ip",
        "last_error",
        "last_error_at",
        "me",
        "name",
        "next_dial_at",
        "opened_at",
        "outgoing",
        "phase",
        "port",
        "rng",
        "settings",
        "up_at",
        "ups",
    )

    def __init__(
        self, name: str, ip: str, me: Identity, settings: Settings, rng: random.Random, now: float
    ) -> None:
        self.name = name
        self.ip = ip
        self.port = settings.node_port
        self.me = me
        self.settings = settings
        self.rng = rng
        self.phase = Phase.IDLE
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.incarnation = 0
        self.attempt = 0
        self.next_dial_at = now
        self.deadline = 0.0
        self.opened_at: float | None = None
        self.up_at: float | None = None
        self.ups = 0
        self.dropped = 0
        self.last_error = ""
        self.last_error_at = now

    # Facts about our half.

    def dial(self, now: float, channel: int) -> list[Effect]:
        """Time to try. Only from IDLE."""
        self.phase = Phase.DIALLING
        self.outgoing = Outgoing(channel, self.rng.randrange(1, 1 << 32))
        self.opened_at = None
        self.deadline = now + self.settings.connect_timeout_s
        return [Dial(channel, self.ip, self.port)]

    def opened(self, now: float) -> list[Effect]:
        """The address answered: say who we are, and READY if we have heard the peer."""
        out = self.outgoing
        if self.phase is not Phase.DIALLING or out is None or self.opened_at is not None:
            return []
        self.opened_at = now
        self.deadline = now + self.settings.handshake_timeout_s
        body = frames.pack_hello(self.me.hello(self.name, self.dropped))
        effects: list[Effect] = [Send(out.channel, out.header(Kind.HELLO) + body)]
        return effects + self._ready()

    def channel_lost(self, now: float, reason: str) -> list[Effect]:
        """Our half failed, or ended: a connection that was up is over."""
        if self.phase is Phase.UP:
            return self.down(now, reason)
        return self.failed(now, reason)

    def failed(self, now: float, reason: str) -> list[Effect]:
        """This attempt is over: try again after a back-off."""
        self.last_error, self.last_error_at = reason, now
        return self._to_idle(now)

    def timed_out(self, now: float) -> list[Effect]:
        """`deadline` passed while dialling: say which step was not reached."""
        return self.failed(now, self._missing_step())

    # Facts about the peer's half.

    def hello(self, now: float, source: bytes, epoch: int, hello: Hello, ip: str) -> list[Effect]:
        """The peer dialled us, and the kernel found nothing against it.

        A peer only dials when it has no connection, so one that we hold to be up is over. A dial of
        ours whose HELLO the peer heard and then gave up (it says so), or that went to its former
        incarnation, cannot be completed: start afresh. Any other is kept, and confirmed once more.
        """
        effects: list[Effect] = []
        if self.phase is Phase.UP:
            effects += self.down(now, "the peer dialled anew")
        elif self._spoilt(hello):
            effects += self._to_idle(now)
        self.incoming = Incoming(source, epoch, hello, ip)
        if self.phase is Phase.IDLE:
            self.next_dial_at = now  # It is alive: no back-off.
        return effects + self._ready()

    def ready(self, now: float, ready: Ready) -> list[Effect]:
        """The peer has heard us. If it names the HELLO of this attempt, both halves work."""
        out, incoming = self.outgoing, self.incoming
        if self.phase is not Phase.DIALLING or out is None or incoming is None:
            return []
        if ready.epoch != out.epoch:
            return []
        effects = self._ready()  # Sent already, unless the peer's READY overtook `opened`.
        self.phase = Phase.UP
        self.incarnation = incoming.hello.incarnation
        self.attempt = 0
        self.up_at = now
        self.ups += 1
        return [*effects, Up(self.name, self.incarnation, out, incoming)]

    def source_lost(self, now: float, reason: str) -> list[Effect]:
        """The peer's half ended."""
        if self.phase is Phase.UP:
            return self.down(now, reason)
        self.incoming = None  # Our own half stays: the peer may dial anew and complete it.
        return []

    def broken(self, now: float, reason: str) -> list[Effect]:
        """The peer's half brought what it must not, or lost something.

        What we told the peer cannot be completed over it, and the peer may hold the connection to
        be up: start afresh, which tells it so.
        """
        if self.phase is Phase.UP:
            return self.down(now, reason)
        self._give_up_incoming()
        return self.failed(now, reason) if self.phase is Phase.DIALLING else []

    # The end.

    def down(self, now: float, reason: str) -> list[Effect]:
        """Up no more, for whatever reason: both halves are given up."""
        self.last_error, self.last_error_at = reason, now
        gone = Down(self.name, self.incarnation, reason)
        self.up_at = None
        self._give_up_incoming()
        return [gone, *self._to_idle(now)]

    def leave(self, now: float, reason: str) -> list[Effect]:
        """We end it: tell the peer why, with whatever phase it is in."""
        out = self.outgoing
        effects: list[Effect] = []
        flush_s = 0.0
        if out is not None and self.opened_at is not None:
            effects.append(Send(out.channel, out.header(Kind.GOODBYE) + frames.pack_goodbye(reason)))
            flush_s = self.settings.goodbye_flush_s
        ended = self.down(now, reason) if self.phase is Phase.UP else self._to_idle(now)
        self._give_up_incoming()
        return effects + [
            HangUp(effect.channel, flush_s) if isinstance(effect, HangUp) else effect for effect in ended
        ]

    def _ready(self) -> list[Effect]:
        out, incoming = self.outgoing, self.incoming
        if out is None or incoming is None or self.opened_at is None:
            return []
        if out.confirmed_epoch == incoming.epoch:
            return []
        out.confirmed_epoch, out.confirmed_incarnation = incoming.epoch, incoming.hello.incarnation
        body = frames.pack_ready(Ready(incoming.epoch, incoming.hello.incarnation))
        return [Send(out.channel, out.header(Kind.READY) + body)]

    def _spoilt(self, hello: Hello) -> bool:
        if self.outgoing is None or self.opened_at is None:
            return False
        restarted = self.outgoing.confirmed_incarnation not in (0, hello.incarnation)
        return restarted or hello.dropped == self.outgoing.epoch

    def _give_up_incoming(self) -> None:
        if self.incoming is not None:
            self.dropped = self.incoming.epoch
            self.incoming = None

    def _to_idle(self, now: float) -> list[Effect]:
        effects: list[Effect] = [] if self.outgoing is None else [HangUp(self.outgoing.channel)]
        self.phase = Phase.IDLE
        self.outgoing = None
        self.opened_at = None
        self.next_dial_at = now + self._backoff_s()
        self.attempt += 1
        return effects

    def _backoff_s(self) -> float:
        """Full jitter: uniform below a ceiling that doubles; never so short that it spins.

        Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; differs: a floor of a fifth
        of the first ceiling.
        """
        s = self.settings
        ceiling = min(s.backoff_max_s, s.backoff_min_s * 2.0 ** min(self.attempt, 16))
        return max(s.backoff_min_s / 5, self.rng.uniform(0.0, ceiling))

    def _missing_step(self) -> str:
        s = self.settings
        there = endpoint(self.ip, self.port)
        if self.opened_at is None:
            return f"connect timeout: {there} did not answer within {s.connect_timeout_s:g} s"
        if self.incoming is None:
            return (
                f"{there} answers but does not dial back within {s.handshake_timeout_s:g} s: it cannot "
                f"reach us at {endpoint(self.me.name.partition('@')[2], self.me.port)}, or is no fleetlm node"
            )
        return f"handshake timeout: {there} dialled us but did not confirm within {s.handshake_timeout_s:g} s"
