"""Packs what `messaging.outbound` sends: requests to actors, payloads for many, copies for this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.errors import NotSerializable, Undecodable
from fleetlm.messaging.targets import Payload
from fleetlm.wire.blobs import Packed, Parcel
from fleetlm.wire.codec import unreadable_in
from fleetlm.wire.extensions import SCALARS
from fleetlm.wire.invocation import Invoke, explained
from fleetlm.wire.operations import Op

if TYPE_CHECKING:
    from fleetlm.messaging.mailbox import Key
    from fleetlm.messaging.targets import Target
    from fleetlm.wire.codec import Codec

_FEW = 8
"""Arguments of a request that are looked at before it is packed."""
_SMALL = 64
"""Bytes or characters of one of them: with more, packing costs so much that a walk makes no difference."""
_HANDLE = Op.HANDLE


def pack_handle(
    codec: Codec, light_bytes: int, key: Key, request: Invoke, ref: int, timeout_ms: int, in_flight: int
) -> Packed:
    """Pack a call of an actor.

    Args:
        codec: packs it, and has weighed it afterwards unless it is light (`Codec.extra_bytes`).
        light_bytes: what is shorter need not be weighed (`Session.light_bytes`).
        key: the actor on its node.
        request: what it is asked.
        ref: of the call.
        timeout_ms: milliseconds that the call has left.
        in_flight: the mark of what work in flight asks for, or 0 (`messaging.in_flight`).

    Raises:
        NotSerializable: with the argument in its path.
    """
    parts = request.parts()
    envelope = [_HANDLE, key, parts, ref, timeout_ms, in_flight]  # `operations.handle` inline.
    args = parts[1]
    try:
        if len(args) <= _FEW and not request.kwargs and all(map(_is_small, args)):
            try:
                packed = codec.pack(envelope, None)  # A few small scalars need no walk.
            except NotSerializable:
                pass  # The walk finds which of them it is.
            else:
                if len(packed) < light_bytes:
                    return packed
        return codec.pack(envelope, parts)
    except NotSerializable as error:
        raise request.explain(error) from None


def _is_small(value: Any) -> bool:
    kind = type(value)
    return len(value) <= _SMALL if kind is bytes or kind is str else kind in SCALARS


def pack_payload(codec: Codec, message: Any) -> Payload:
    """Pack once what many processes get: a message, or the parts of a request to actors.

    Raises:
        NotSerializable: with the argument in its path, if it is a request.
    """
    try:
        packed = codec.pack_part(message.parts() if type(message) is Invoke else message)
    except NotSerializable as error:
        raise explained(error, message) from None
    if isinstance(packed, Parcel):
        return Payload(packed.envelope, codec.extra_bytes, packed.blobs)
    return Payload(packed, codec.extra_bytes)


def copy_of(codec: Codec, to: Target, message: Any) -> Any:
    """Return a message as it arrives on another node.

    A request that is for this node only, such as ``("start_child", Child(...))``, is returned as it is.

    Raises:
        NotSerializable, Undecodable: as another node would.
    """
    if type(message) is tuple and any(hasattr(part, "__fleetlm_local__") for part in message):
        return message
    if type(message) is Invoke and message.carrier is not None and not message.handler:  # A plain message.
        return Invoke.carrying(copy_of(codec, to, *message.args), message.carrier)
    try:
        copy = codec.unpack(codec.pack_value(message.parts() if type(message) is Invoke else message))
    except NotSerializable as error:
        raise explained(error, message) from None
    if (found := unreadable_in(copy)) is not None:
        raise Undecodable(to, found.why)
    if type(message) is not Invoke:
        return copy
    again = Invoke(copy[0], tuple(copy[1]), copy[2], carrier=message.carrier)
    if message.carrier is not None:
        again.came = message.came
    return again
