"""The carrier: the few named values of a caller's context that travel with a request.

A carrier is a map from names to texts, integers or bytes, such as ``traceparent`` or a request id. It
travels as the bytes of a msgpack map, the fourth part of a request (`wire.invocation.Invoke`), and only to
nodes that say in their HELLO that they know it (`FEATURE`). A node that uses no values of a carrier never
unpacks it.

A carrier never makes a request fail. What a caller cannot send is left out, and what a peer sends against
these rules counts as an empty carrier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack

FEATURE: Final = "carriers"
"""The feature in the HELLO of a node that takes requests with carriers."""
MAX_VALUES: Final = 24
"""Names in one carrier: the variables that a program may name, and what propagators of traces add."""
MAX_NAME_CHARS: Final = 64
"""Characters of a name."""
MAX_VALUE_BYTES: Final = 2_048
"""Bytes of one value: the W3C's ``baggage`` in sensible use is far below its own limit of 8 KiB."""
MAX_CARRIER_BYTES: Final = 4_096
"""Bytes of a packed carrier, so that it never dominates what a request costs."""
EMPTY: Final = b""
"""A carrier without values."""

Value = str | int | bytes

_pack = msgpack.Packer(use_bin_type=True).pack
_MAP16: Final = 0xDE
_INTS: Final = range(-(1 << 63), 1 << 64)


def pack_carrier(values: Mapping[str, Value]) -> bytes:
    """Pack values, in their order, without those that do not fit. Returns `EMPTY` if none is left."""
    pairs: list[bytes] = []
    left_bytes = MAX_CARRIER_BYTES - 3
    for name, value in values.items():
        if len(pairs) < MAX_VALUES and may_travel(name, value):
            pair = _pack(name) + _pack(value)
            if len(pair) <= left_bytes:
                pairs.append(pair)
                left_bytes -= len(pair)
    return b"".join((bytes((_MAP16, 0, len(pairs))), *pairs)) if pairs else EMPTY


def unpack_carrier(packed: bytes) -> dict[str, Value]:
    """Unpack what a node has sent. Returns nothing if any of it breaks the rules."""
    if not packed or len(packed) > MAX_CARRIER_BYTES:
        return {}
    try:
        values = msgpack.unpackb(
            packed, raw=False, max_map_len=MAX_VALUES, max_array_len=0, max_ext_len=0,
            max_str_len=MAX_VALUE_BYTES, max_bin_len=MAX_VALUE_BYTES,
        )  # fmt: skip
    except (ValueError, msgpack.exceptions.UnpackException):
        return {}
    if type(values) is not dict or not all(may_travel(*pair) for pair in values.items()):
        return {}
    found: dict[str, Value] = values
    return found


def checked_carrier(carrier: Any) -> bytes:
    """Return what a peer has sent as a carrier, still packed; `EMPTY` if it cannot be one."""
    return carrier if type(carrier) is bytes and len(carrier) <= MAX_CARRIER_BYTES else EMPTY


def may_travel(name: object, value: object) -> bool:
    """Whether a carrier takes this value under this name."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME_CHARS or not name.isascii():
        return False
    if type(value) is int:
        return value in _INTS
    return size_of(value) <= MAX_VALUE_BYTES


def size_of(value: object) -> int:
    """Return the bytes that a text or bytes take in a carrier; a number beyond all limits for others."""
    if type(value) is bytes:
        return len(value)
    if type(value) is not str:
        return MAX_CARRIER_BYTES + 1
    if len(value) > MAX_CARRIER_BYTES:
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:  # A lone surrogate, which cannot travel.
        return MAX_CARRIER_BYTES + 1


def is_known_to(features: Iterable[str]) -> bool:
    """Whether the node with these features in its HELLO takes requests with carriers."""
    return FEATURE in features
