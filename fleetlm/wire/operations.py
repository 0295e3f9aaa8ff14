"""Everything that two connected nodes say to each other: the operations inside a batch.

A BATCH frame, and a large message put together from CHUNK frames, hold *messages*: msgpack arrays. An
array of two items, ``[to, payload]``, is a one-way message to a process. In every other array the first
item is the number of an operation (`Op`), and its fields follow. An operation therefore never has
exactly one field; where it needs only one, ``None`` fills the second place.

This module is the schema: for each operation there is one function that builds the list to pack and one
that takes a received list apart. `SCHEMAS` lists them all.

==  =========  =====================================  ========================================================
    operation  fields                                 sent when
==  =========  =====================================  ========================================================
    (none)     to, payload                            `Node.send`, `Node.broadcast`
11  HEAVY      to, payload, units                     the same, for a message of more than one unit
17  CAST       to, request, units                     `ActorRef.cast`, `ActorRefs.broadcast`
 1  CALL       to, payload, ref, timeout_ms,          `Node.call`, `Node.multicall`
               in_flight[, units]
16  HANDLE     to, request, ref, timeout_ms,          `ActorRef.call`
               in_flight[, units]
13  STREAM     to, payload, ref, timeout_ms, window,  `Node.stream`
               idle_ms, in_flight, units
18  YIELD      to, request, ref, timeout_ms, window,  `ActorRef.stream`
               idle_ms, in_flight, units
 2  REPLY      ref, value                             a call or request has a result; a stream is complete
14  ITEM       ref, value[, units]                    a stream has one more item
 3  FAILURE    ref, kind, texts                       a call, stream or request failed (`wire.failures`)
 4  CANCEL     ref, None                              the caller gave up: a deadline passed, a task was
                                                      cancelled, a consumer stopped
15  MORE       ref, units                             the consumer of a stream took items
12  TAKEN      to, units                              messages left the mailbox of a process
21  MARK       mark, at_once                          behind every eighth of a window, and with a tick
 6  CREDIT     mark, None                             everything before that MARK was decoded
 7  TICK       lag_ms, None                           every tick interval: this node's loop is alive
19  DRAIN      number, [step, left_ms, source]        the sender drains, refuses new work, or undoes it
20  HEARD      number, count                          a DRAIN was taken: one behind each request that waits
22  SETTLED    refs, left                             the sender ends the session: it has taken these requests
                                                      and does not answer them; it took no other open one.
                                                      So many more such messages belong to it
 8  PEERS      names, None                            every gossip interval: the nodes connected to the sender
 5  REQUEST    verb, argument, ref                    a node asks the other node itself (see `request`)
 9  SIGNAL     signal, None                           links, monitors and exits (see `signal`)
10  TABLE      topic, fact                            process groups, cluster-wide names (see `table`)
==  =========  =====================================  ========================================================

Types of the fields:

- *to*: a process of the receiving node, by number (int) or by name (str).
- *payload*, *value*: a message value, as `wire.codec` packs it.
- *request*: ``[handler, arguments, keywords[, carrier]]``, the parts of a `wire.invocation.Invoke`. The
  carrier is what travels of the caller's context (`wire.carriers`); only nodes with the feature ``carriers``
  get one. A plain message that has one travels as ``["", [payload], {}, carrier]`` in a HANDLE or YIELD.
- *ref*: a number that the sender of a request chose. Answers name it. Each node counts its own refs, and
  two open requests of one node never have the same. An answer to an unknown ref is passed over: its
  caller has given up.
- *units*: what a message counts in the window of its destination, 1 to the window's limit. A call, a
  one-way message or an item of one unit leaves the field out. For a message that came in chunks their heads
  tell it, and the receiver sets the field (`with_units`).
- *window*: units of items that a producer may send before the consumer allows more.
- *in_flight*: 1 if the request is made on behalf of work that began before its sender knew of a drain, so
  that a node which refuses new work serves it; else 0.
- *mark*: a random number of the sender, which nobody knows who has not decoded the MARK.
- *at_once*: 1 if the CREDIT should follow at once; 0 if it may wait for the next tick.
- *idle_ms*: how long a producer waits for that permission before it ends the stream; 0: without limit.
- counts, bytes and milliseconds: 0 to 2**64 - 1.

A reader checks what it returns and raises one of `NONSENSE`; the receiver then ends the session. A
reader never checks a payload, which may be any value. A number of `Op` is never given a second meaning,
and a node that receives an operation that it does not know ends the session: the handshake settles the
protocol version before.

The most frequent messages do not pass through these functions: `Outbound.send` and `Outbound.send_nowait`
build a one-way message inline, `Inbound._deliver` and `Inbound._perform` take one-way messages and answers
apart inline. Those places are marked, and tests/unit/wire/test_operations.py compares them with this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from fleetlm.names import MAX_PROCESS_NAME_LENGTH
from fleetlm.records import Row
from fleetlm.texts import SHORT
from fleetlm.wire.frames import MAX_TEXT_CHARS
from fleetlm.wire.invocation import Invoke

Destination = int | str
"""A process of the receiving node: its number, or the name under which it is registered there."""

MAX_TIMEOUT_MS: Final = 86_400_000
"""One day. A longer deadline from a peer is cut to this, so that a call cannot stay open for ever."""
MAX_STREAM_WINDOW: Final = 65_536
"""Units of items that a consumer may let a producer send ahead: bounds what waits for one consumer."""
MAX_UNANSWERED: Final = 4_096
"""Requests that one SETTLED names, so that it fits a frame; further ones follow in others."""
COUNT_END: Final = 1 << 64
"""Counts are below this: msgpack writes integers of at most 64 bits."""
NONSENSE: Final = (TypeError, ValueError, LookupError, ArithmeticError)
"""What Python raises on values of the wrong type or size: a signalling NaN raises when it is compared."""


class Op:
    """The first item of a message that is not one-way. The module's docstring lists the fields.

    Plain integers: comparing one with a member of an ``IntEnum`` costs three times as much.
    """

    CALL: Final = 1
    REPLY: Final = 2
    FAILURE: Final = 3
    CANCEL: Final = 4
    REQUEST: Final = 5
    CREDIT: Final = 6
    TICK: Final = 7
    PEERS: Final = 8
    SIGNAL: Final = 9
    TABLE: Final = 10
    HEAVY: Final = 11
    TAKEN: Final = 12
    STREAM: Final = 13
    ITEM: Final = 14
    MORE: Final = 15
    HANDLE: Final = 16
    CAST: Final = 17
    YIELD: Final = 18
    DRAIN: Final = 19
    HEARD: Final = 20
    MARK: Final = 21
    SETTLED: Final = 22


_pack: Callable[[int], bytes] = msgpack.Packer().pack
_ARRAY: Final = 0x90
"""msgpack: the first byte of an array of up to fifteen items is this plus their number."""
_PAIR: Final = _ARRAY + 2
"""The first byte of a one-way message."""
_HEAD_OF_PAIR: Final = bytes((_PAIR,))
_HEAD_OF_HEAVY: Final = bytes((_ARRAY + 4,)) + _pack(Op.HEAVY)
_HEAD_OF_CALL: Final = bytes((_ARRAY + 6,)) + _pack(Op.CALL)
_HEAD_OF_CAST: Final = bytes((_ARRAY + 4,)) + _pack(Op.CAST)
_HEAD_OF_HANDLE: Final = bytes((_ARRAY + 6,)) + _pack(Op.HANDLE)


# ── messages to a process ────────────────────────────────────────────────────────────────────────


def one_way(to: Destination, payload: Any) -> list[Any]:
    """Build a one-way message of one unit. `Outbound.send` has this inline."""
    return [to, payload]


def read_one_way(message: list[Any]) -> tuple[Any, Any]:
    """Return *to*, unchecked, and the payload. `Inbound._deliver` has this inline."""
    to, payload = message
    return to, payload


def packed_one_way(packed_to: bytes, packed_payload: bytes) -> bytes:
    """Pack a one-way message from packed parts, since a broadcast packs its payload only once."""
    return _HEAD_OF_PAIR + packed_to + packed_payload


def heavy(to: Destination, payload: Any, units: int) -> list[Any]:
    """Build a one-way message that says how many units it counts."""
    return [Op.HEAVY, to, payload, units]


def cast(to: Destination, parts: list[Any], units: int) -> list[Any]:
    """Build a one-way request to an actor; ``parts`` are those of an `Invoke`."""
    return [Op.CAST, to, parts, units]


def packed_cast(packed_to: bytes, packed_parts: bytes) -> bytes:
    """Pack a CAST of one unit from packed parts, as `packed_one_way`."""
    return _HEAD_OF_CAST + packed_to + packed_parts + _pack(1)


def read_heavy(message: list[Any], limit: int) -> tuple[Destination, Any, int]:
    """Take a HEAVY or CAST apart.

    Args:
        message: the list that came.
        limit: units of the receiving window; a message may not count more.

    Returns:
        *to*, the payload (an `Invoke` for CAST), and the units.
    """
    operation, to, payload, units = message
    if operation == Op.CAST:
        payload = Invoke.of(payload)
    return checked_destination(to), payload, checked_units(units, limit)


def call(to: Destination, payload: Any, ref: int, timeout_ms: int, in_flight: int = 0) -> list[Any]:
    """Build a call of one unit to a process."""
    return [Op.CALL, to, payload, ref, timeout_ms, in_flight]


def packed_call(
    packed_to: bytes,
    packed_payload: bytes,
    ref: int,
    timeout_ms: int,
    in_flight: int = 0,
    *,
    to_actor: bool = False,
) -> bytes:
    """Pack a CALL, or a HANDLE, from packed parts, since a multicall packs its payload only once."""
    return (
        (_HEAD_OF_HANDLE if to_actor else _HEAD_OF_CALL)
        + packed_to
        + packed_payload
        + _pack(ref)
        + _pack(timeout_ms)
        + _pack(in_flight)
    )


def handle(to: Destination, parts: list[Any], ref: int, timeout_ms: int, in_flight: int = 0) -> list[Any]:
    """Build a call of one unit to an actor; ``parts`` are those of an `Invoke`."""
    return [Op.HANDLE, to, parts, ref, timeout_ms, in_flight]


def read_call(message: list[Any], limit: int) -> tuple[Destination, Any, int, int, bool, int]:
    """Take a CALL or HANDLE apart.

    Args:
        message: the list that came.
        limit: units of the receiving window; a message may not count more.

    Returns:
        *to*, the payload (an `Invoke` for HANDLE), the ref, the timeout in milliseconds, whether it is made
        on behalf of work in flight, and the units.
    """
    if len(message) == 6:
        operation, to, payload, ref, timeout_ms, in_flight = message
        units = 1
    else:
        operation, to, payload, ref, timeout_ms, in_flight, units = message
        checked_units(units, limit)
    if operation == Op.HANDLE:
        payload = Invoke.of(payload)
    return (
        checked_destination(to), payload, checked_count(ref), checked_count(timeout_ms),
        checked_count(in_flight) != 0, units,
    )  # fmt: skip


def stream(
    to: Destination, payload: Any, ref: int, timeout_ms: int, window: int, idle_ms: int, in_flight: int,
    units: int,
) -> list[Any]:  # fmt: skip
    """Build a request for a stream from a process.

    ``timeout_ms`` and ``idle_ms`` are 0 where the stream has no such limit.
    """
    return [Op.STREAM, to, payload, ref, timeout_ms, window, idle_ms, in_flight, units]


def yield_(
    to: Destination, parts: list[Any], ref: int, timeout_ms: int, window: int, idle_ms: int, in_flight: int,
    units: int,
) -> list[Any]:  # fmt: skip
    """Build a request for a stream from a handler of an actor; ``parts`` are those of an `Invoke`."""
    return [Op.YIELD, to, parts, ref, timeout_ms, window, idle_ms, in_flight, units]


class StreamRequest(Row):
    """What `read_stream` found in a STREAM or YIELD."""

    to: Destination
    payload: Any
    """An `Invoke` for YIELD."""
    ref: int
    timeout_ms: int
    window: int
    idle_ms: int
    in_flight: bool
    units: int


def read_stream(message: list[Any], limit: int) -> StreamRequest:
    """Take a STREAM or YIELD apart.

    Args:
        message: the list that came.
        limit: units of the receiving window; a message may not count more.
    """
    operation, to, payload, ref, timeout_ms, window, idle_ms, in_flight, units = message
    if not 1 <= checked_count(window) <= MAX_STREAM_WINDOW:
        raise ValueError(f"a stream with a window of {SHORT.repr(window)}")
    if operation == Op.YIELD:
        payload = Invoke.of(payload)
    checked_units(units, limit)
    return StreamRequest(
        checked_destination(to), payload, checked_count(ref), checked_count(timeout_ms), window,
        checked_count(idle_ms), checked_count(in_flight) != 0, units,
    )  # fmt: skip


def set_units(packed: bytes, units: int) -> bytes:
    """Set the units of a packed message of one unit, without packing its payload again.

    Args:
        packed: ``[to, payload]``, which becomes a HEAVY; a CALL, HANDLE or ITEM, which gets one more field;
            or a CAST, STREAM or YIELD of one unit, whose last field is replaced.
        units: what the message counts.
    """
    if packed[0] == _PAIR:
        return _HEAD_OF_HEAVY + packed[1:] + _pack(units)
    if packed[1] in (Op.CAST, Op.STREAM, Op.YIELD):
        return packed[:-1] + _pack(units)
    return bytes((packed[0] + 1,)) + packed[1:] + _pack(units)


def set_in_flight(packed: bytes) -> bytes:
    """Mark a packed CALL, HANDLE, STREAM or YIELD of one unit as made on behalf of work in flight."""
    at = -2 if packed[1] in (Op.STREAM, Op.YIELD) else -1
    return packed[:at] + _pack(1) + packed[len(packed) + at + 1 :]


def with_units(message: Any, units: int) -> Any:
    """Return a message that came in chunks with its units set to what their heads tell.

    Other messages, and those of the wrong length, are returned as they are.
    """
    match message:
        case [to, payload]:
            return [Op.HEAVY, to, payload, units]
        case [Op.CALL | Op.HANDLE, _, _, _, _, _] | [Op.ITEM, _, _]:
            return [*message, units]
        case [Op.STREAM | Op.YIELD | Op.CAST, *fields, _]:
            return [message[0], *fields, units]
    return message


def declared_units(message: Any) -> int | None:
    """Return what a message of a batch says that it counts; None if its kind counts in no window."""
    match message:
        case [_, _] | [Op.CALL | Op.HANDLE, _, _, _, _, _] | [Op.ITEM, _, _]:
            return 1
        case [Op.HEAVY, _, _, int(units)] | [Op.CALL | Op.HANDLE, _, _, _, _, _, int(units)]:
            return units
        case [Op.ITEM, _, _, int(units)] | [Op.STREAM | Op.YIELD | Op.CAST, *_, int(units)]:
            return units
    return None


# ── answers, and later messages about the same request ──────────────────────────────────────────


def reply(ref: int, value: Any) -> list[Any]:
    """Build the result of a call or request. A stream ends with a reply of None."""
    return [Op.REPLY, ref, value]


def read_answer(message: list[Any]) -> tuple[Any, Any]:
    """Return the ref of a REPLY, unchecked, and the value. `Inbound._perform` has this inline."""
    _, ref, value = message
    return ref, value


def item(ref: int, value: Any) -> list[Any]:
    """Build one item of a stream, of one unit."""
    return [Op.ITEM, ref, value]


def read_item(message: list[Any]) -> tuple[Any, Any, int]:
    """Return the ref of an ITEM, unchecked, the value, and its units."""
    if len(message) == 3:
        _, ref, value = message
        return ref, value, 1
    _, ref, value, units = message
    return ref, value, checked_units(units, COUNT_END)


def failure(ref: int, kind: int, texts: list[str]) -> list[Any]:
    """Build the failure of a call, stream or request; see `wire.failures` for the texts of each kind."""
    return [Op.FAILURE, ref, int(kind), texts]


def read_failure(message: list[Any]) -> tuple[Any, Any, Any]:
    """Return ref, kind and texts, unchecked: `wire.failures.error_of_failure` checks them."""
    _, ref, kind, texts = message
    return ref, kind, texts


def cancel(ref: int) -> list[Any]:
    """Build the message that the caller of a request wants no answer any more."""
    return [Op.CANCEL, ref, None]


def read_cancel(message: list[Any]) -> Any:
    """Return the ref, unchecked."""
    return message[1]


def more(ref: int, units: int) -> list[Any]:
    """Build the permission to send ``units`` more units of items of a stream."""
    return [Op.MORE, ref, units]


def read_more(message: list[Any]) -> tuple[Any, int]:
    """Return the ref, unchecked, and the units."""
    _, ref, units = message
    return ref, checked_count(units)


# ── flow control ────────────────────────────────────────────────────────────────────────────────


def taken(to: Destination, units: int) -> list[Any]:
    """Build the message that ``units`` of the sender's messages have left the mailbox of ``to``."""
    return [Op.TAKEN, to, units]


def read_taken(message: list[Any]) -> tuple[Any, int]:
    """Return *to*, unchecked (`SendWindows.taken` refuses unknown ones), and the units."""
    _, to, units = message
    return to, checked_count(units)


def mark(number: int, at_once: int) -> list[Any]:
    """Build a mark behind what was sent until now; see `messaging.byte_windows`."""
    return [Op.MARK, number, at_once]


def read_mark(message: list[Any]) -> tuple[int, bool]:
    """Return the number, and whether the credit should follow at once."""
    _, number, at_once = message
    return checked_count(number), checked_count(at_once) != 0


def credit(number: int) -> list[Any]:
    """Build the proof that everything was decoded that stands before the peer's mark ``number``."""
    return [Op.CREDIT, number, None]


def read_credit(message: list[Any]) -> int:
    """Return the number of the mark; `Session.credited` looks whether there is such a mark."""
    _, number, _ = message
    return checked_count(number)


# ── node to node ────────────────────────────────────────────────────────────────────────────────


def tick(lag_ms: int) -> list[Any]:
    """Build a tick: how late this node's loop runs."""
    return [Op.TICK, lag_ms, None]


def read_tick(message: list[Any]) -> int:
    """Return the lag in milliseconds."""
    _, lag_ms, _ = message
    return checked_count(lag_ms)


class DrainNotice(Row):
    """What `read_drain` found in a DRAIN."""

    number: int
    """Counts the notices of the sender; its HEARD names it."""
    step: int
    """See `core.draining.Step`."""
    left_ms: int
    """Milliseconds until the sender's time for finishing is over."""
    source: str
    """Who asked for it: see `core.draining.SOURCES`."""


def drain(number: int, step: int, left_ms: int, source: str) -> list[Any]:
    """Build the notice that this node has come to another step of draining; see `core.draining`."""
    return [Op.DRAIN, number, [step, left_ms, source]]


def read_drain(message: list[Any]) -> DrainNotice:
    """Return what the sender says of its drain; step and source are checked by `core.draining`."""
    _, number, (step, left_ms, source) = message
    if type(source) is not str or len(source) > MAX_TEXT_CHARS:
        raise TypeError("DRAIN without its source")
    return DrainNotice(checked_count(number), checked_count(step), checked_count(left_ms), source)


def heard(number: int, count: int) -> list[Any]:
    """Build the acknowledgement of a DRAIN: one of ``count``, each behind what waited to be sent."""
    return [Op.HEARD, number, count]


def read_heard(message: list[Any]) -> tuple[int, int]:
    """Return the number of the DRAIN, and how many such messages acknowledge it."""
    _, number, count = message
    return checked_count(number), checked_count(count)


def settled(refs: list[int], left: int) -> list[Any]:
    """Build a last message of a session: open requests of the receiver that were taken.

    Args:
        refs: at most `MAX_UNANSWERED` of them.
        left: how many such messages follow; what they say counts with the last one.
    """
    return [Op.SETTLED, refs, left]


def read_settled(message: list[Any]) -> tuple[list[int], int]:
    """Return refs of requests that were taken and will not be answered, and how many such messages follow."""
    _, refs, left = message
    if type(refs) is not list or len(refs) > MAX_UNANSWERED:
        raise ValueError("SETTLED without its refs, or with too many")
    return [checked_count(ref) for ref in refs], checked_count(left)


def peers(names: list[str]) -> list[Any]:
    """Build the names of the nodes that are connected to this one."""
    return [Op.PEERS, names, None]


def read_peers(message: list[Any], limit: int) -> list[str]:
    """Return those of the first ``limit`` items that are texts of a sensible length.

    Whether they are names, and in canonical form, is looked at for those alone that are not known yet
    (`Kernel.heard_of`): it takes 20 us for each.
    """
    items = message[1]
    if not isinstance(items, list):
        raise TypeError("PEERS without a list of names")
    return [entry for entry in items[:limit] if type(entry) is str and len(entry) <= MAX_TEXT_CHARS]


def request(verb: str, argument: Any, ref: int) -> list[Any]:
    """Build a question to the other node itself, which `runtime.requests.PeerRequests` answers.

    ==============  ======================================  ===============================================
    verb            argument                                reply
    ==============  ======================================  ===============================================
    ``ping``        anything                                ``"pong"``
    ``whereis``     name                                    pid or None
    ``registered``  anything                                ``{name: pid}`` of that node
    ``overview``    how many nodes are asked                a part: `core.overview_shape`
    ``register``    [name, pid]                             True; the pid is one of the asked node
    ``unregister``  name                                    whether the name had an owner
    ``claim``       [name, pid, packed meta, on_loss]       of a cluster-wide name: `directory.registry`
    ``disclaim``    [name, pid]                             of a cluster-wide name: `directory.registry`
    ``spawn``       (factory, args, name, owner, act, ref)  the pid: `processes.remote_spawn.SpawnRequest`
    ==============  ======================================  ===============================================

    A request that is refused or not known is answered with a FAILURE.
    """
    return [Op.REQUEST, verb, argument, ref]


def read_request(message: list[Any]) -> tuple[Any, Any, int]:
    """Return verb and argument, unchecked, and the ref."""
    _, verb, argument, ref = message
    return verb, argument, checked_count(ref)


def signal(fields: list[Any]) -> list[Any]:
    """Build a signal between two processes; `core.links` builds the fields, reads and checks them.

    ==============  ========================  =============================================================
    signal          fields                    meaning
    ==============  ========================  =============================================================
    ``link``        pid, number, act          process ``pid`` of the sender links with ``number``
    ``unlink``      pid, number, [act, ...]   ``pid`` unlinks ``number``: ends these acts of linking
    ``exit``        pid, number, reason       ``pid`` has ended, and ``number`` was linked with it
    ``exit2``       pid, number, reason       ``pid`` sends an exit signal to ``number``
    ``monitor``     ref, number or name       the sender monitors that process
    ``demonitor``   ref, None                 the sender ends that monitor
    ``down``        ref, reason               the monitored process has ended
    ==============  ========================  =============================================================
    """
    return [Op.SIGNAL, fields, None]


def read_signal(message: list[Any]) -> Any:
    """Return the signal, unchecked."""
    _, fields, _ = message
    return fields


def table(topic: str, fact: Any) -> list[Any]:
    """Build a fact about the sender's own processes, for one of the replicated tables.

    ==========  ================================================  =========================================
    topic       facts                                             read by
    ==========  ================================================  =========================================
    ``groups``  [join, {group: [number, ...]}], [leave, {…}],     `core.group_table`
                [exit, number]
    ``names``   [has, [[name, number, meta, since_ms], ...]],     `core.name_table`
                [gone, name, why]
    ``members``  see there                                        `core.member_facts`
    ``rows``    see there                                         `core.row_table`
    ``shards``  see there                                         `core.shard_table`
    ==========  ================================================  =========================================
    """
    return [Op.TABLE, topic, fact]


def read_table(message: list[Any]) -> tuple[Any, Any]:
    """Return topic and fact, unchecked."""
    _, topic, fact = message
    return topic, fact


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def checked_destination(to: Any) -> Destination:
    """Return ``to``. Raises: ValueError if it is neither a number nor a text that could be a name."""
    if type(to) is str:
        if len(to) <= MAX_PROCESS_NAME_LENGTH:
            return to
    elif type(to) is int and 0 <= to < COUNT_END:
        return to
    raise ValueError(f"{SHORT.repr(to)} is not the number or name of a process")


def checked_count(count: Any) -> int:
    """Return ``count``. Raises: ValueError if it is not an integer from 0 to 2**64 - 1."""
    if type(count) is not int or not 0 <= count < COUNT_END:
        raise ValueError(f"{SHORT.repr(count)} is not a count")
    return count


def checked_units(units: Any, limit: int) -> int:
    """Return ``units``. Raises: ValueError if they are not 1 to ``limit``, the whole window."""
    count = checked_count(units)
    if not 1 <= count <= limit:
        raise ValueError(f"a message counts 1 to {limit:,} units, not {count}")
    return count


class Schema(Row):
    """How one operation is built and taken apart."""

    build: Callable[..., list[Any]]
    read: Callable[..., Any]
    has_limit: bool = False
    """Whether ``read`` needs the receiver's limit besides the message."""


SCHEMAS: Final[dict[int, Schema]] = {
    Op.CALL: Schema(call, read_call, has_limit=True),
    Op.REPLY: Schema(reply, read_answer),
    Op.FAILURE: Schema(failure, read_failure),
    Op.CANCEL: Schema(cancel, read_cancel),
    Op.REQUEST: Schema(request, read_request),
    Op.CREDIT: Schema(credit, read_credit),
    Op.TICK: Schema(tick, read_tick),
    Op.PEERS: Schema(peers, read_peers, has_limit=True),
    Op.SIGNAL: Schema(signal, read_signal),
    Op.TABLE: Schema(table, read_table),
    Op.HEAVY: Schema(heavy, read_heavy, has_limit=True),
    Op.TAKEN: Schema(taken, read_taken),
    Op.STREAM: Schema(stream, read_stream, has_limit=True),
    Op.ITEM: Schema(item, read_item),
    Op.MORE: Schema(more, read_more),
    Op.HANDLE: Schema(handle, read_call, has_limit=True),
    Op.CAST: Schema(cast, read_heavy, has_limit=True),
    Op.YIELD: Schema(yield_, read_stream, has_limit=True),
    Op.DRAIN: Schema(drain, read_drain),
    Op.HEARD: Schema(heard, read_heard),
    Op.MARK: Schema(mark, read_mark),
    Op.SETTLED: Schema(settled, read_settled),
}
"""The operations, each with its two functions. A test checks that no operation is missing."""
