"""Unpacks large messages in a thread beside the event loop, which goes on meanwhile.

What else comes from the same peer waits in the `Backlog` until the message has been delivered, so that
messages keep their order. Other peers do not wait, except for large messages of their own: a node has one
thread for them.

Python's collector of cyclic garbage looks again and again at all that has been unpacked so far, and holds up
the loop each time, for a second in the end. It is switched off meanwhile.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

from fleetlm.messaging.windows import check_units
from fleetlm.wire import operations
from fleetlm.wire.extensions import BadData

if TYPE_CHECKING:
    from fleetlm.messaging.chunks import Whole
    from fleetlm.wire.codec import Codec

BESIDE_BYTES = 1024 * 1024
"""From this size on a message is unpacked beside the loop: a smaller one takes some 10 ms, if it consists of
small values. A thread costs 0.1 ms, and delays what comes behind the message."""

Unpacked = tuple[Any, int]
"""A message, and how many values in it could not be rebuilt."""


def unpack(codec: Codec, whole: Whole, limit: int) -> Unpacked:
    """Unpack a message that came in chunks, in any thread.

    Args:
        codec: the node's codec.
        whole: the message.
        limit: units of a whole window.

    Raises:
        BadData: the bytes are no message, or it counts less than its weight demands.
    """
    decoder = codec.large_decoder(_let_others_run)
    with _NO_COLLECTION:
        message = decoder.unpack(whole.envelope, whole.blobs)
    message = operations.with_units(message, whole.units)
    try:
        check_units([message], [whole.total_bytes + decoder.extra_bytes], limit)
    except ValueError as error:
        raise BadData(str(error)) from None
    return message, decoder.failures


def _let_others_run() -> None:
    time.sleep(0)


class _NoCollection:
    """Switches the collector off while a thread is in the block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._was_on = gc.isenabled()
                gc.disable()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0 and self._was_on:
                gc.enable()


_NO_COLLECTION = _NoCollection()
