"""Effects that the core gives: data, performed by the driver in the order given.

The core never performs anything; the driver never decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleetlm.core.halves import Incoming, Outgoing


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a channel to ``ip:port``."""

    channel: int
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Send:
    """Put a handshake frame on a channel."""

    channel: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Send a frame back to a dialler."""

    source: bytes
    frame: bytes


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close a channel; what was sent may leave for ``flush_s`` seconds more."""

    channel: int
    flush_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Up:
    """Both halves work: open a session over them. Messages may flow until the matching `Down`.

    The driver takes over the numbering of both halves, which goes on from the handshake.
    """

    name: str
    incarnation: int
    outgoing: Outgoing
    incoming: Incoming


@dataclass(frozen=True, slots=True)
class Down:
    """The connection is over: nothing of it is delivered any more."""

    name: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Something that people should know, said once for each change: a log line."""

    level: str
    text: str


Effect = Dial | Send | Reply | HangUp | Up | Down | Report
