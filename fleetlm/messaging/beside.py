"""Unpacks large messages and batches in a thread beside the event loop, which goes on meanwhile.

What else comes from the same peer waits in the `Backlog` until the message has been delivered, so that
messages keep their order. Other peers do not wait, except for large messages of their own: a node has one
thread for them.

A peer chooses what its bytes consist of: a mebibyte of empty sets, or of keys that collide, takes half a
second to unpack. What is unpacked on the loop is therefore small (`ON_LOOP_BYTES`), or has few values, and
little of what travels beside it must be copied. Batches are mostly small messages, of which no size tells how
long they take. So a batch is begun on the loop, and where it takes too long (`MOST_STEPS_ON_LOOP`), it is
unpacked there in slices (`wire.sliced_batch`); what cannot be cut comes here, with all that follows it.

Python's collector of cyclic garbage looks again and again at all that has been unpacked so far, and holds up
the loop each time, for a second in the end. It is switched off meanwhile.

The two threads share one interpreter. A thread that wants it while another one computes waits for 5 ms by
default, and the loop wants it again after each call of the system, several times for each message. So the
turns of threads are shorter meanwhile (`TURN_S`), or a small call would take tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from fleetlm.messaging.windows import LEAST_WEIGHED_BYTES, check_units
from fleetlm.settings import MAX_BATCH_MESSAGES
from fleetlm.wire import operations
from fleetlm.wire.decoder import TooManySteps
from fleetlm.wire.extensions import BadData
from fleetlm.wire.frames import ARRAY32
from fleetlm.wire.large import copied_bytes, has_few_values
from fleetlm.wire.sliced_batch import FEW_VALUES, WHOLE_BYTES
from fleetlm.wire.weights import Scale

if TYPE_CHECKING:
    from fleetlm.messaging.chunks import Whole
    from fleetlm.wire.codec import Codec

ON_LOOP_BYTES = WHOLE_BYTES
"""A larger message is unpacked and weighed beside the loop, if it consists of many values: at worst, 16 KiB
take 6 ms. A thread costs 0.1 ms, and delays what comes behind."""
MOST_STEPS_ON_LOOP = 2_048
"""As long as a batch may take in one go (`Decoder.unpack_batch`): a millisecond or so. Nothing is counted of
plain messages."""
BATCH_ON_LOOP_BYTES = 96 * 1024
"""The same of a batch. Batches of honest peers are smaller, or have few values: they hold
`Settings.batch_bytes` and one message, which is mostly text or bytes where it is larger than that."""
COLLECTED_BYTES = 32 * 1024
"""While a larger batch is unpacked, the collector of cyclic garbage is off."""
BESIDE_BYTES = 1024 * 1024
"""From this size on also a message of few values is unpacked beside the loop; and from this many bytes on
that must be copied to unpack it."""
TURN_S = 0.0001
"""Seconds for which the loop waits for the interpreter while a message is unpacked beside it. A switch takes
some 10 us, and there are no more of them than calls of the system."""

Unpacked = tuple[list[Any], int]
"""Messages, and how many values in them could not be rebuilt."""


def takes_long(whole: Whole) -> bool:
    """Whether a message that came in chunks should be unpacked beside the loop."""
    envelope = whole.envelope
    is_large = len(envelope) > ON_LOOP_BYTES
    if is_large and is_much(memoryview(envelope)):
        return True
    sizes = [blob.size_bytes for blob in whole.blobs]
    if sum(sizes) < BESIDE_BYTES:
        return False
    return is_large or copied_bytes(envelope, sizes) >= BESIDE_BYTES


def is_much(data: memoryview) -> bool:
    """Whether something packed is very large, or consists of many values."""
    return len(data) >= BESIDE_BYTES or not has_few_values(data, FEW_VALUES, inside=True)


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
    with NO_COLLECTION, SHORT_TURNS:
        message = decoder.unpack(whole.envelope, whole.blobs)
    message = operations.with_units(message, whole.units)
    try:
        check_units([message], [whole.total_bytes + decoder.extra_bytes], limit)
    except ValueError as error:
        raise BadData(str(error)) from None
    return [message], decoder.failures


def unpack_batch(codec: Codec, body: memoryview, limit: int) -> Unpacked:
    """Unpack a batch, in any thread.

    Args:
        codec: the node's codec.
        body: of the BATCH.
        limit: units of a whole window.

    Raises:
        BadData: the bytes are no batch, or would take too much memory, or a message counts too little.
    """
    decoder = codec.large_decoder(_let_others_run)
    with NO_COLLECTION, SHORT_TURNS:
        messages = decoder.unpack_batch(body)
        if len(messages) > MAX_BATCH_MESSAGES:
            raise BadData(f"a batch of {len(messages):,} messages")
        try:
            check_units(messages, Scale().weights(body, LEAST_WEIGHED_BYTES), limit)
        except ValueError as error:
            raise BadData(str(error)) from None
    return messages, decoder.failures


def unpack_long_batch(codec: Codec, body: memoryview) -> list[Any]:
    """Unpack a batch that may hold too many messages, or take long, in one go on the loop.

    Raises:
        TooManySteps: it should be unpacked in slices.
        BadData: the bytes are no batch, or hold too many messages.
    """
    size = len(body)
    if body[0] == ARRAY32 and int.from_bytes(body[1:5], "big") > MAX_BATCH_MESSAGES:
        raise BadData(f"a batch of more than {MAX_BATCH_MESSAGES:,} messages")
    if size > BATCH_ON_LOOP_BYTES and is_much(body):
        raise TooManySteps
    with NO_COLLECTION if size > COLLECTED_BYTES else contextlib.nullcontext():
        messages = codec.unpack_batch(body, MOST_STEPS_ON_LOOP)
    if len(messages) > MAX_BATCH_MESSAGES:
        raise BadData(f"a batch of {len(messages):,} messages")
    return messages


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


NO_COLLECTION = _NoCollection()


class _ShortTurns:
    """Lets threads take turns more often while one of them is in the block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._before_s = 0.0
        self._set_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(min(TURN_S, self._before_s))
                self._set_s = sys.getswitchinterval()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0 and sys.getswitchinterval() == self._set_s:  # Else the program has set it.
                sys.setswitchinterval(self._before_s)


SHORT_TURNS = _ShortTurns()
"""Shortens the turns of threads while large messages are unpacked."""
