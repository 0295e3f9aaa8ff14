"""Answers the requests of peers on a node that does not let them do everything (`Settings.peers_may`).

`wire.rights` has the table. A node that allows everything has `PeerRequests` itself and pays nothing for
this. Messages to processes do not come by here: where peers may not call, `messaging.inbound` knows no
process.

Honest peers know from the HELLO what is denied and do not ask. So what is denied here is written to the audit
log; a request is answered with `NotAllowed`, a link and a monitor as if there were no such process.

A peer that may spawn, and not end processes, may end those that it has spawned itself: its node kills a child
whose spawn was given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.runtime import audit
from fleetlm.runtime.requests import PeerRequests
from fleetlm.wire.rights import SIGNALS, TABLES, VERBS, denial

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.messaging.session import Session
    from fleetlm.setting_parsers import Right


class LimitedRequests(PeerRequests):
    """`PeerRequests` for a node whose ``peers_may`` does not have every right.

    Args:
        *parts: those of `PeerRequests`.
        peers_may: the rights that peers have.
    """

    def __init__(self, *parts: Any, peers_may: frozenset[Right]) -> None:
        super().__init__(*parts)
        self._peers_may = peers_may

    def not_reached(self, to: int | str, call: Call) -> None:
        """Refuse a call, since peers may not call, or there is no such process."""
        if "call" in self._peers_may:
            super().not_reached(to, call)
        else:
            call.refuse(denial(self._local.table.node, "call"))

    def signalled(self, session: Session, signal: Any) -> None:
        """Take a signal of the peer; where it may not send it, there is no process for it."""
        kind = signal[0] if isinstance(signal, list) and signal and isinstance(signal[0], str) else ""
        right = SIGNALS.get(kind)
        if right is None or right in self._peers_may or self._is_child(session, signal):
            super().signalled(session, signal)
        else:
            audit.denied(session.name, right, signal)
            self._signals.told(session, signal, lambda _: False)

    def told_table(self, session: Session, topic: Any, fact: Any) -> bool | None:
        """Take what the peer says of its processes; pass over what it may not say."""
        right = TABLES.get(topic) if isinstance(topic, str) else None
        if right is None or right in self._peers_may:
            return super().told_table(session, topic, fact)
        return None

    def _answer(self, session: Session, verb: str, argument: Any) -> Any:
        right = VERBS.get(verb) if type(verb) is str else None
        if right is not None and right not in self._peers_may:
            audit.denied(session.name, right, [verb, argument])
            raise denial(self._local.table.node, right)
        return super()._answer(session, verb, argument)

    def _is_child(self, session: Session, signal: list[Any]) -> bool:
        """Whether a signal is for a process that its sender has spawned."""
        number = signal[2] if len(signal) > 2 and isinstance(signal[2], int) else 0
        return self._remote_spawn.has_spawned(session.name, number)
