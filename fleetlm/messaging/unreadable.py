"""Messages with a value that this node cannot rebuild, such as a dataclass that is not registered here.

Such a value costs its message and nothing else: a caller gets `Undecodable`, a one-way message is counted.
The message counts as taken, so that the window of its sender opens again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fleetlm.errors import RemoteError
from fleetlm.taps import Taps
from fleetlm.texts import text_of
from fleetlm.wire import operations
from fleetlm.wire.codec import unreadable_in
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.frames import BadFrame
from fleetlm.wire.operations import NONSENSE, Op, checked_count, checked_destination, checked_units

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session

log: logging.Logger = logging.getLogger("fleetlm")


class UnreadableMessages:
    """Settles and counts them.

    Args:
        taps: told of each of them.

    Attributes:
        count: how many there were.
    """

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self.count: int = 0

    def drop(self, session: Session, messages: list[Any]) -> list[Any]:
        """Return the messages that could be read entirely; settle each of the others.

        Raises:
            BadFrame: one of them is no message at all.
        """
        try:
            return [message for message in messages if self._is_readable(session, message)]
        except NONSENSE as error:
            raise BadFrame(f"a malformed message: {text_of(error)}") from error

    def _is_readable(self, session: Session, message: Any) -> bool:
        """Whether a message could be read entirely. If not, answer its sender and count it as taken."""
        found = unreadable_in(message)
        if found is None:
            return True
        self.count += 1
        if self._taps.message_dropped is not None:
            self._taps.message_dropped("unreadable", 1, "", session.name)
        if self.count in (1, 10, 100) or self.count % 1000 == 0:
            log.warning(
                "a message from %s could not be read (%s); %d unreadable messages so far",
                session.name,
                found.why,
                self.count,
            )
        # Patterns instead of the readers of `operations`: the part that is unreadable may be any field.
        match message:
            case [Op.CALL | Op.HANDLE, to, _, ref, _, _, *rest]:
                self._count_unread(session, to, rest[0] if rest else 1)
                session.failed(checked_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.STREAM | Op.YIELD, to, _, ref, _, _, _, _, weight]:
                self._count_unread(session, to, weight)
                session.failed(checked_count(ref), FailureKind.UNDECODABLE, [str(to), found.why])
            case [Op.REQUEST, verb, _, ref]:
                session.failed(checked_count(ref), FailureKind.UNDECODABLE, [text_of(verb), found.why])
            case [Op.HEAVY | Op.CAST, to, _, weight]:
                self._count_unread(session, to, weight)
            case [to, _]:
                self._count_unread(session, to, 1)
            case [Op.ITEM | Op.REPLY as operation, int(ref), _, *_]:
                future = session.calls.pop(ref, None)
                if future is not None and operation == Op.ITEM:
                    session.control(operations.cancel(ref))  # Its producer would wait for ever.
                if future is not None and not future.done():
                    why = f"the reply of {session.name} could not be read: {found.why}"
                    future.set_exception(RemoteError("Undecodable", why))
        return False

    def _count_unread(self, session: Session, to: Any, weight: Any) -> None:
        """Count a message that no mailbox gets as received and taken: its sender counted it as sent."""
        session.arrivals.received(
            checked_destination(to), 1, None, checked_units(weight, session.arrivals.limit)
        )
