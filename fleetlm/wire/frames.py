"""Frames: the header of every frame between nodes, and the bodies of the handshake.

A frame is a 17-byte header (kind, epoch, sequence number) and a body. Each ZeroMQ message holds one frame
in a single part. A receiver does not see a message of several parts before it has all of them, and its
size has no limit; so a second part ends the connection (`transport.router`).

=======  ====================================================  ===========================================
kind     body                                                  sent when
=======  ====================================================  ===========================================
HELLO    `Hello`                                               the channel has opened; frame 0 of its epoch
READY    `Ready`                                               the peer's HELLO has come
BATCH    messages: see `wire.operations`                       the connection is up
CHUNK    `CHUNK_HEAD`, and a piece of a large message          the connection is up
GOODBYE  a reason                                              the sender ends the connection
PROBE    protocol versions                                     instead of a HELLO: who is at this address?
REFUSED  `Refused`                                             the answer to a HELLO that is not accepted
IAM      `IAm`                                                 the answer to a PROBE
=======  ====================================================  ===========================================

The node that dialled sends the first six. The node that was dialled sends only REFUSED and IAM, over the
dialler's own channel and outside of the numbering.

The dialler draws an epoch for each dial, which nobody can guess, and numbers its frames from the HELLO on.
Both are in every header because ZeroMQ hides a lost TCP connection: it reconnects and goes on, and only a gap
in the numbers shows that messages are missing (measured: 202 of 700 messages lost without an error).
`core.halves` checks them.

Bodies are msgpack arrays of fixed fields. A reader checks every field, ignores fields behind those that it
knows, and raises `BadFrame` for anything else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgpack

from fleetlm.errors import InvalidName
from fleetlm.names import canonical_ip, canonical_node
from fleetlm.texts import SHORT

PROTOCOL_MIN: Final = 3
PROTOCOL_MAX: Final = 3
"""The protocol versions of this node. Two nodes without a common one refuse each other: ``incompatible``."""

EPOCH_BITS: Final = 64
"""Bits of an epoch. A READY that names it proves that its sender saw the HELLO with it, so it must not be
guessed."""
HEADER: Final = struct.Struct(">BQQ")
"""Kind, epoch, sequence number."""
HEADER_BYTES: Final = HEADER.size
CHUNK_HEAD: Final = struct.Struct(">IQ")
"""What follows the header of a CHUNK: the number of the transfer, and the bytes of the whole message. The
rest of the frame is a piece of that message."""

MAX_HANDSHAKE_BYTES: Final = 16 * 1024
"""Bodies of a handshake are not larger; a HELLO usually has a few hundred bytes."""
MAX_LIST_ITEMS: Final = 16
"""Items of one list in a HELLO: the addresses of one machine, or the features."""
MAX_TEXT_CHARS: Final = 512
"""Characters of a text in a handshake: names, cluster ids, reasons."""


class Kind(IntEnum):
    """The first byte of a frame. A number is never given a second meaning."""

    HELLO = 1
    READY = 2
    BATCH = 3
    CHUNK = 4
    GOODBYE = 5
    PROBE = 6
    REFUSED = 7
    IAM = 8


class Refusal(IntEnum):
    """Why a node refuses another. People read these names in `fleetlm doctor` and in logs."""

    WRONG_CLUSTER = 1
    WRONG_NAME = 2
    SELF = 3
    INCOMPATIBLE = 4
    STALE = 5
    DUPLICATE_NAME = 6
    DRAINING = 7
    TOO_MANY = 8
    OTHER_BASE_PORT = 9
    OTHER_BASENAME = 10

    @property
    def word(self) -> str:
        """The name as written in logs: ``wrong_cluster``."""
        return self.name.lower()


class BadFrame(ValueError):
    """A peer broke the protocol, or a frame was lost. The frame that raised it changed nothing."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The introduction of a dialler: who it is, which node it means to dial, and its limits."""

    name: str
    incarnation: int
    dialled: str
    cluster: str
    port: int
    protocol_min: int
    protocol_max: int
    aliases: tuple[str, ...]
    window_bytes: int
    max_message_bytes: int
    dropped: int
    """Epoch of that half of the dialled node which the dialler gave up last; 0 for none."""
    features: tuple[str, ...] = ()
    mailbox_limit: int = 4_096
    """Units that a peer may send to one process before the process has taken some."""
    base_port: int = 4_370
    """The port that names without a port mean to this node. Two nodes that differ in it name the same nodes
    differently, so they refuse each other."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Confirms a HELLO: its epoch, and the incarnation that sent it."""

    epoch: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a HELLO that is not accepted; ``name`` and ``incarnation`` are of the answering node."""

    refusal: Refusal
    detail: str
    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class IAm:
    """The answer to a PROBE: which node is at this address."""

    name: str
    incarnation: int
    cluster: str
    connected: int
    """How many nodes the answering node is connected to."""
    base_port: int = 4_370
    """As in a HELLO."""


def header(kind: int, epoch: int, seq: int) -> bytes:
    """Build the first 17 bytes of a frame."""
    return HEADER.pack(kind, epoch, seq)


def read_header(frame: bytes) -> tuple[int, int, int]:
    """Return kind, epoch and sequence number. Raises: BadFrame."""
    if len(frame) < HEADER_BYTES:
        raise BadFrame(f"{len(frame)} bytes are too few for a frame")
    return HEADER.unpack_from(frame)


def pack_hello(hello: Hello) -> bytes:
    """Build the body of a HELLO."""
    return _pack(
        [
            hello.name,
            hello.incarnation,
            hello.dialled,
            hello.cluster,
            hello.port,
            hello.protocol_min,
            hello.protocol_max,
            list(hello.aliases),
            hello.window_bytes,
            hello.max_message_bytes,
            hello.dropped,
            list(hello.features),
            hello.mailbox_limit,
            hello.base_port,
        ]
    )


def read_hello(body: bytes) -> Hello:
    """Read the body of a HELLO. Raises: BadFrame."""
    items = _unpack(body, at_least=14)
    base_port = _number(items[13], 16)
    return Hello(
        name=_node(items[0], base_port),
        incarnation=_number(items[1], 64),
        dialled=_node(items[2], base_port),
        cluster=_text(items[3]),
        port=_number(items[4], 16),
        protocol_min=_number(items[5], 16),
        protocol_max=_number(items[6], 16),
        aliases=_ips(items[7]),
        window_bytes=_number(items[8], 48),
        max_message_bytes=_number(items[9], 48),
        dropped=_number(items[10], EPOCH_BITS),
        features=_texts(items[11]),
        mailbox_limit=max(1, _number(items[12], 32)),
        base_port=base_port,
    )


def pack_ready(ready: Ready) -> bytes:
    """Build the body of a READY."""
    return _pack([ready.epoch, ready.incarnation])


def read_ready(body: bytes) -> Ready:
    """Read the body of a READY. Raises: BadFrame."""
    items = _unpack(body, at_least=2)
    return Ready(_number(items[0], EPOCH_BITS), _number(items[1], 64))


def refused(answer: Refused) -> bytes:
    """Build a whole REFUSED frame. Answers have no epoch and are not numbered."""
    body = _pack([int(answer.refusal), answer.detail[:MAX_TEXT_CHARS], answer.name, answer.incarnation])
    return header(Kind.REFUSED, 0, 0) + body


def iam(answer: IAm) -> bytes:
    """Build a whole IAM frame."""
    body = _pack([answer.name, answer.incarnation, answer.cluster, answer.connected, answer.base_port])
    return header(Kind.IAM, 0, 0) + body


def probe(padding_bytes: int = 0) -> bytes:
    """Build a whole PROBE frame, which asks which node is there. The probed node changes nothing.

    Args:
        padding_bytes: zeros at the end of the frame, to try whether the path carries large packets.
    """
    fields: list[Any] = [PROTOCOL_MIN, PROTOCOL_MAX]
    return header(Kind.PROBE, 0, 0) + _pack([*fields, bytes(padding_bytes)] if padding_bytes else fields)


def read_answer(frame: bytes) -> Refused | IAm:
    """Read a frame that came back over a channel that this node dialled. Raises: BadFrame."""
    kind, _, _ = read_header(frame)
    items = _unpack(frame[HEADER_BYTES:], at_least=4)
    if kind == Kind.REFUSED:
        try:
            refusal = Refusal(_number(items[0], 8))
        except ValueError:
            raise BadFrame(f"refusal {items[0]!r} is not known to this version") from None
        return Refused(refusal, _for_logs(items[1]), _node(items[2]), _number(items[3], 64))
    if kind == Kind.IAM:
        if len(items) < 5:
            raise BadFrame("not the fields of an IAM")
        base_port = _number(items[4], 16)
        name = _node(items[0], base_port)
        return IAm(name, _number(items[1], 64), _text(items[2]), _number(items[3], 32), base_port)
    raise BadFrame(f"kind {kind} is not an answer")


def pack_goodbye(reason: str) -> bytes:
    """Build the body of a GOODBYE."""
    return _pack([reason[:MAX_TEXT_CHARS]])


def read_goodbye(body: bytes) -> str:
    """Return the reason in a GOODBYE, fit for a log. Raises: BadFrame."""
    return _for_logs(_unpack(body, at_least=1)[0])


def _pack(items: list[object]) -> bytes:
    packed: bytes = msgpack.packb(items, use_bin_type=True)
    return packed


def _unpack(body: bytes, at_least: int) -> list[Any]:
    """Return the fields of a body. Raises: BadFrame, also for fewer fields than ``at_least``."""
    if len(body) > MAX_HANDSHAKE_BYTES:
        raise BadFrame(f"{len(body)} bytes are too many for a handshake")
    try:
        items = msgpack.unpackb(body, raw=False, use_list=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise BadFrame(f"not msgpack: {error}") from None
    if not isinstance(items, list) or len(items) < at_least:
        raise BadFrame("not the fields of this frame")
    return items


def _text(item: Any) -> str:
    if not isinstance(item, str) or len(item) > MAX_TEXT_CHARS:
        raise BadFrame("a text is missing or too long")
    return item


def _for_logs(item: Any) -> str:
    """Return a peer's text fit for a log: on one line, and without escape sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in _text(item))


def _node(item: Any, base_port: int | None = None) -> str:
    try:
        return canonical_node(_text(item), base_port)
    except InvalidName as error:
        raise BadFrame(str(error)) from None


def _number(item: Any, bits: int) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << bits:
        raise BadFrame(f"{SHORT.repr(item)} is not an unsigned number of {bits} bits")
    return item


def _texts(item: Any) -> tuple[str, ...]:
    if not isinstance(item, list) or len(item) > MAX_LIST_ITEMS:
        raise BadFrame("a list is missing or too long")
    return tuple(_text(entry) for entry in item)


def _ips(item: Any) -> tuple[str, ...]:
    found = tuple(canonical_ip(text) for text in _texts(item))
    if not all(found):
        raise BadFrame("an alias is not an IP address")
    return tuple(ip for ip in found if ip)
