"""What a program asks of a node about messages: send, call, and both to many."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.messaging.deadline import within_deadline

if TYPE_CHECKING:
    from fleetlm.messaging.outbound import Messenger
    from fleetlm.messaging.streams import Streams
    from fleetlm.messaging.targets import Target
    from fleetlm.settings import Settings
    from fleetlm.wire.invocation import Invoke


class MessageApi:
    """The part of `Node` that is about messages."""

    settings: Settings
    _messenger: Messenger
    _streams: Streams

    def send(self, to: Target, message: Any) -> Coroutine[Any, Any, None]:
        """Send one message: at most once, in order, never silently lost while the connection lives.

        Waits while a window is full (the connection's, or a local process's mailbox).

        Args:
            to: a pid, a name on this node, or ``(name, node)``.
            message: a value (README, "Embed"). It is packed before this returns.

        Raises:
            NotSerializable, MessageTooLarge: nothing was sent.
            NoConnection, NoProcess: nothing was sent. A name that nobody has on *another* node is
                not noticed: use `call` where that matters.
        """
        return self._messenger.send(to, message)  # One coroutine for each message, not two.

    def cast(self, to: Target, request: Invoke) -> Coroutine[Any, Any, None]:
        """As `send`, for a request to an actor; what `ActorRef.cast` uses."""
        return self._messenger.cast(to, request)

    def send_nowait(self, to: Target, message: Any) -> None:
        """As `send`, but raises `WouldBlock` where that would wait."""
        self._messenger.send_nowait(to, message)

    async def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """Ask a process and wait for its reply.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``; the process answers with `Call.reply`.
            timeout: seconds; default `Settings.call_timeout_s`. An expired request is not run. In a
                handler of an `Actor` it is at most what is left of the call being served.

        Raises:
            NotDelivered: it never ran (`NoProcess`, `NoConnection`, `NoHandler`, `Undecodable`,
                `WouldBlock`, `Expired`).
            OutcomeUnknown: it may have run (`NodeLost`, `ProcessDown`, `CallTimeout`).
            RemoteError: it ran and raised.
        """
        return await self._messenger.call(to, message, self._deadline_s(timeout))

    def stream(self, to: Target, message: Any, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """Ask a process for a stream of items.

        ::

            async for token in node.stream(("model", "fleetlm@10.0.0.7"), "prompt"): ...

        The producer waits while `Settings.stream_window` items have not been consumed. Leaving the loop
        cancels it; where the moment matters, use ``contextlib.aclosing``.

        Args:
            to: as `send`.
            message: arrives as ``Call(message)``, with `Call.put` for the items.
            timeout: seconds for the whole stream; default: as long as items come, with pauses of at most
                `Settings.stream_idle_s`.

        Raises:
            NotDelivered, OutcomeUnknown, RemoteError: as `call`, when it is iterated, after the items
                that came before.
        """
        within_s = within_deadline(math.inf if timeout is None else timeout)
        return self._streams.open(to, message, None if within_s == math.inf else within_s)

    async def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """One request to many, encoded once.

        Returns:
            For each target, in the order of the targets, its reply or the `FleetError` that `call`
            would have raised.
        """
        return await self._messenger.multicall(targets, message, self._deadline_s(timeout))

    async def broadcast(self, name: str, message: Any, nodes: Iterable[str] | None = None) -> int:
        """Send to the process ``name`` on every connected node and this one, encoded once.

        Waits for nodes whose windows are full, after it has sent to all others.

        Args:
            name: of the process on each node.
            message: as `send`.
            nodes: only these; those that are not connected are passed over.

        Returns:
            To how many nodes it was sent.
        """
        return await self._messenger.broadcast(name, message, nodes)

    def _deadline_s(self, timeout: float | None) -> float:
        return within_deadline(self.settings.call_timeout_s if timeout is None else timeout)
