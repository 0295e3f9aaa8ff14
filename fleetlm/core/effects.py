"""The effects of the connection core: plain data that `runtime.driver` performs in the order given.

The core decides and performs nothing; the driver performs and decides nothing.
"""

from __future__ import annotations

from dataclasses import field
from enum import Enum

from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.records import Record


class Dial(Record):
    """Open a channel to ``ip:port``."""

    channel: int
    ip: str
    port: int


class Send(Record):
    """Send a handshake frame over a channel that this node dialled."""

    channel: int
    frame: bytes


class Reply(Record):
    """Send a frame back to the node that dialled this one, over its channel."""

    source: bytes
    frame: bytes


class HangUp(Record):
    """Close a channel. What was sent on it may still leave for ``flush_s`` seconds."""

    channel: int
    flush_s: float = 0.0


class Disconnect(Record):
    """End the connection of a source that broke the protocol, ``after_s`` seconds from now."""

    source: bytes
    after_s: float = 0.0


class Up(Record):
    """Both halves work: open a session over them. Messages may flow until the matching `Down`.

    The driver takes over the numbering of both halves, which goes on from the handshake.
    """

    name: str
    incarnation: int
    outgoing: Outgoing
    incoming: Incoming


class End(Enum):
    """The kinds of reasons for the end of a session; `fleetlm.telemetry.ENDS` says what they mean."""

    LOST = "lost"
    SILENT = "silent"
    LEFT = "left"
    STOPPING = "stopping"
    REQUESTED = "requested"
    RESTARTED = "restarted"
    REDIALLED = "redialled"
    PROTOCOL_ERROR = "protocol_error"
    ENDED_BY_PEER = "ended_by_peer"
    OVERLOADED = "overloaded"
    FORGOTTEN = "forgotten"


class Down(Record):
    """The connection is over: end its session, and deliver nothing more of it."""

    name: str
    incarnation: int
    reason: str
    kind: End = field(default=End.LOST, compare=False)


class ExpectRoad(Record):
    """Let the peer's half in at this node's local road if it shows this ticket."""

    source: bytes
    ticket: bytes


class OpenRoad(Record):
    """Ask the peer for a local road for our half; its listener has this number, if it is on this host."""

    channel: int
    number: int
    ticket: bytes


class TakeRoad(Record):
    """Send the further frames of our half on its local road."""

    channel: int


class FollowRoad(Record):
    """Take the further frames of the peer's half from its local road."""

    source: bytes


class Report(Record):
    """A log line for people, given once for each change. ``level`` is ``"info"`` or ``"warning"``.

    The number of lines of each ``kind`` is limited (`core.log_lines`). A kind is one of few words, and never
    a text of a peer.
    """

    level: str
    text: str
    kind: str = field(default="", compare=False)


RoadEffect = ExpectRoad | OpenRoad | TakeRoad | FollowRoad
Effect = Dial | Send | Reply | HangUp | Disconnect | Up | Down | RoadEffect | Report
