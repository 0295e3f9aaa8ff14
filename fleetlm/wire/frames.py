"""Frames: the header of every frame between nodes, and the bodies of the handshake.

A frame is a 17-byte header (kind, epoch, sequence number) and a body. Each ZeroMQ message holds one frame,
in a single part; only a CHUNK of a connection that is up may have a second part, its *tail*, which goes on
where the first one ends, so that large bytes are sent without a copy. A receiver does not see a message
before it has all of its parts, and their number has no limit; so any other part ends the connection
(`transport.router`), and `transport.bounds` ends one whose message never ends.

=======  ====================================================  ===========================================
kind     body                                                  sent when
=======  ====================================================  ===========================================
HELLO    `Hello`                                               the channel has opened; frame 0 of its epoch
READY    `Ready`                                               the peer's HELLO has come, perhaps forged
BATCH    messages: see `wire.operations`                       the connection is up
CHUNK    a `Chunk`: a piece of a large message                 the connection is up
GOODBYE  a reason                                              the sender ends the connection
MOVED    nothing                                               what follows comes over the local road
PROBE    protocol versions                                     instead of a HELLO: who is at this address?
REFUSED  `Refused`                                             the answer to a HELLO that is not accepted
IAM      `IAm`                                                 the answer to a PROBE
=======  ====================================================  ===========================================

The node that dialled sends the first seven. The node that was dialled sends only REFUSED and IAM, over the
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
from enum import IntEnum
from typing import Any, Final

import msgpack

from fleetlm.errors import InvalidName
from fleetlm.names import canonical_ip, canonical_node
from fleetlm.records import Record, Row
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
BATCH_HEAD: Final = struct.Struct(">BQQBI")
"""What stands before the messages of a BATCH: the header, `ARRAY32`, and the number of messages."""
ARRAY32: Final = 0xDD
"""msgpack: the first byte of an array whose length is in the next four."""
TICKET: Final = struct.Struct(">QQ")
"""The epochs of a half and of the other half."""
CHUNK_HEAD: Final = struct.Struct(">IIQQB")
"""What follows the header of a CHUNK; see `Chunk`."""
BLOB_SIZE_BYTES: Final = 8
"""Of the size of a blob in the first chunk of a message."""

MAX_HANDSHAKE_BYTES: Final = 16 * 1024
"""Bodies of a handshake are not larger; a HELLO usually has a few hundred bytes."""
MAX_LIST_ITEMS: Final = 16
"""Items of one list in a HELLO: the addresses of one machine, or the features."""
MAX_TEXT_CHARS: Final = 512
"""Characters of a text in a handshake: names, cluster ids, reasons."""


class Kind:
    """The first byte of a frame. A number is never given a second meaning."""

    HELLO: Final = 1
    READY: Final = 2
    BATCH: Final = 3
    CHUNK: Final = 4
    GOODBYE: Final = 5
    PROBE: Final = 6
    REFUSED: Final = 7
    IAM: Final = 8
    MOVED: Final = 9


class Refusal(IntEnum):
    """Why a node refuses another. People read these names in `fleetlm doctor` and in logs."""

    WRONG_CLUSTER = 1
    WRONG_NAME = 2
    SELF = 3
    INCOMPATIBLE = 4
    DUPLICATE_NAME = 6  # 5 was `stale`.
    DRAINING = 7
    TOO_MANY = 8
    OTHER_BASE_PORT = 9
    OTHER_BASENAME = 10
    CONNECTED = 11
    NOT_ALLOWED = 12

    @property
    def word(self) -> str:
        """The name as written in logs: ``wrong_cluster``."""
        return self.name.lower()


class BadFrame(ValueError):
    """A peer broke the protocol, or a frame was lost. The frame that raised it changed nothing."""


class Hello(Record):
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
    is_check: bool
    """Whether the dialler is connected to the dialled node, and checks whether that node dialled it anew. A
    node that did not, and is connected, refuses it: ``connected``."""
    features: tuple[str, ...] = ()
    mailbox_limit: int = 4_096
    """Units that a peer may send to one process before the process has taken some."""
    base_port: int = 4_370
    """The port that names without a port mean to this node. Two nodes that differ in it name the same nodes
    differently, so they refuse each other."""
    road: int = 0
    """The number of the dialler's listener for nodes of its own host (`transport.local_roads`); 0: none."""
    max_frame_bytes: int = 0
    """The largest frame that it takes; 0: it is of a version that does not say so."""


class Ready(Record):
    """Confirms a HELLO: its epoch, and once more the sender's own HELLO.

    Only the node at the address that was dialled knows that epoch. So the sender of a READY is that node, and
    the half on which it comes is its own, whatever HELLOs others have sent in its name.
    """

    epoch: int
    hello: Hello


class Refused(Record):
    """The answer to a HELLO that is not accepted; ``name`` is that of the answering node."""

    refusal: Refusal
    detail: str
    name: str


class IAm(Record):
    """The answer to a PROBE: which node is at this address. Everybody who asks gets it."""

    name: str
    cluster: str
    connected: int
    """How many nodes the answering node is connected to."""
    base_port: int = 4_370
    """As in a HELLO."""


class Chunk(Row):
    """A piece of a large message.

    The content of a large message is its envelope, a msgpack array as in a batch, and then its *blobs*: bytes
    that are not in the envelope but beside it (`wire.blobs`). It is cut into pieces at any point.
    """

    number: int
    """Of the transfer: which message this is a piece of."""
    units: int
    """What the message counts in the window of its process (`messaging.windows`)."""
    mark: int
    """The MARK behind this frame (`messaging.byte_windows`); 0 for none. A frame of its own would be dear."""
    total_bytes: int
    """Of the whole content."""
    blob_sizes: tuple[int, ...]
    """In the first chunk of a message, the bytes of each of its blobs; else empty."""
    piece: memoryview
    """What follows in the content. It may go on in the second part of the frame."""

    @property
    def overhead_bytes(self) -> int:
        """The bytes of the frame that are not content."""
        return HEADER_BYTES + CHUNK_HEAD.size + BLOB_SIZE_BYTES * len(self.blob_sizes)

    def pack(self, header: bytes) -> bytes:
        """Build the first part of the frame."""
        head = CHUNK_HEAD.pack(self.number, self.units, self.mark, self.total_bytes, len(self.blob_sizes))
        sizes = (size.to_bytes(BLOB_SIZE_BYTES, "big") for size in self.blob_sizes)
        return b"".join((header, head, *sizes, self.piece))


def read_chunk(body: memoryview) -> Chunk:
    """Read the body of a CHUNK. Raises: BadFrame."""
    start = CHUNK_HEAD.size
    if len(body) < start:
        raise BadFrame("a chunk without its head")
    number, units, mark, total_bytes, blobs = CHUNK_HEAD.unpack_from(body)
    if not blobs:
        return Chunk(number, units, mark, total_bytes, (), body[start:])
    end = start + BLOB_SIZE_BYTES * blobs
    if len(body) < end:
        raise BadFrame("a chunk without the sizes of its blobs")
    sizes = struct.unpack_from(f">{blobs}Q", body, start)
    return Chunk(number, units, mark, total_bytes, sizes, body[end:])


def ticket(own_epoch: int, other_epoch: int) -> bytes:
    """Build what a half shows at the local road of its peer: both epochs, which only these two nodes know.

    Args:
        own_epoch: of the half.
        other_epoch: of the other half of the connection.
    """
    return TICKET.pack(own_epoch, other_epoch)


def header(kind: int, epoch: int, seq: int) -> bytes:
    """Build the first 17 bytes of a frame."""
    return HEADER.pack(kind, epoch, seq)


def read_header(frame: bytes | memoryview) -> tuple[int, int, int]:
    """Return kind, epoch and sequence number. Raises: BadFrame."""
    if len(frame) < HEADER_BYTES:
        raise BadFrame(f"{len(frame)} bytes are too few for a frame")
    return HEADER.unpack_from(frame)


def pack_hello(hello: Hello) -> bytes:
    """Build the body of a HELLO."""
    return _pack(_hello_fields(hello))


def read_hello(body: bytes) -> Hello:
    """Read the body of a HELLO. Raises: BadFrame."""
    return _hello_of(_unpack(body, at_least=_HELLO_FIELDS))


_HELLO_FIELDS: Final = 15
"""The fields that every HELLO has. Nodes of older versions send no further ones, and ignore them."""


def _hello_fields(hello: Hello) -> list[object]:
    return [
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
        int(hello.is_check),
        list(hello.features),
        hello.mailbox_limit,
        hello.base_port,
        hello.road,
        hello.max_frame_bytes,
    ]


def _hello_of(items: list[Any]) -> Hello:
    """Check the fields of a HELLO. Raises: BadFrame."""
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
        is_check=_number(items[10], EPOCH_BITS) == 1,
        features=_texts(items[11]),
        mailbox_limit=max(1, _number(items[12], 32)),
        base_port=base_port,
        road=_number(items[14], 64),
        max_frame_bytes=_number(items[15], 48) if len(items) > _HELLO_FIELDS else 0,
    )


def pack_ready(ready: Ready) -> bytes:
    """Build the body of a READY."""
    return _pack([ready.epoch, _hello_fields(ready.hello)])


def read_ready(body: bytes) -> Ready:
    """Read the body of a READY. Raises: BadFrame."""
    epoch, fields = _unpack(body, at_least=2)[:2]
    if not isinstance(fields, list) or len(fields) < _HELLO_FIELDS:
        raise BadFrame("a READY without the fields of a HELLO")
    return Ready(_number(epoch, EPOCH_BITS), _hello_of(fields))


def refused(answer: Refused) -> bytes:
    """Build a whole REFUSED frame. Answers have no epoch and are not numbered."""
    body = _pack([int(answer.refusal), answer.detail[:MAX_TEXT_CHARS], answer.name])
    return header(Kind.REFUSED, 0, 0) + body


def iam(answer: IAm) -> bytes:
    """Build a whole IAM frame."""
    body = _pack([answer.name, answer.cluster, answer.connected, answer.base_port])
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
    items = _unpack(frame[HEADER_BYTES:], at_least=3)
    if kind == Kind.REFUSED:
        try:
            refusal = Refusal(_number(items[0], 8))
        except ValueError:
            raise BadFrame(f"refusal {items[0]!r} is not known to this version") from None
        return Refused(refusal, _for_logs(items[1]), _node(items[2]))
    if kind == Kind.IAM:
        if len(items) < 4:
            raise BadFrame("not the fields of an IAM")
        base_port = _number(items[3], 16)
        return IAm(_node(items[0], base_port), _text(items[1]), _number(items[2], 32), base_port)
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
