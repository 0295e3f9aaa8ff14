"""Asks an address which node is there, without joining the cluster. For `fleetlm doctor`."""

from __future__ import annotations

import asyncio
from typing import Final

import zmq

from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import CurveKeys, derive_keys
from fleetlm.transport.dealer import DealerChannel
from fleetlm.transport.sockets import Context
from fleetlm.wire import frames
from fleetlm.wire.frames import BadFrame, IAm

CHANNEL: Final = 0
"""The number of the only channel."""


async def probe(
    ip: str, port: int, settings: Settings, timeout_s: float, padding_bytes: int = 0
) -> IAm | str:
    """Ask which node listens on ``ip:port``.

    Args:
        ip: the address, in canonical text.
        port: the port of the node.
        settings: the cookie and the limits. The cookie must be the cluster's.
        timeout_s: the longest wait, in seconds.
        padding_bytes: the question is larger by so much, to try whether the path carries large packets.

    Returns:
        The node's identity, or a sentence that names the address and why there is no answer.
    """
    answer: IAm | str = ""
    for keys in await derive_keys(settings) or (None,):
        answer, is_refused = await _probe_with(keys, ip, port, settings, timeout_s, padding_bytes)
        if not is_refused:
            break
    return answer


async def _probe_with(
    keys: CurveKeys | None, ip: str, port: int, settings: Settings, timeout_s: float, padding_bytes: int
) -> tuple[IAm | str, bool]:
    """Ask with one key pair. Returns the answer, and whether the handshake was refused."""
    loop = asyncio.get_running_loop()
    asker = _Asker(ip, port, loop.create_future(), frames.probe(padding_bytes))
    limits = settings.replace(connect_timeout_s=min(settings.connect_timeout_s, timeout_s))
    context: Context = zmq.Context()
    try:
        channel = asker.channel = DealerChannel(
            context, loop, asker, CHANNEL, (ip, port), own_ip=None, settings=limits, keys=keys
        )
        try:
            return await asyncio.wait_for(asker.verdict, timeout_s), asker.is_refused
        except TimeoutError:
            so_far = "it accepted the connection, but there was " if channel.is_open else ""
            return f"{endpoint(ip, port)}: {so_far}no answer within {timeout_s:g} s", False
        finally:
            channel.hang_up(0)
    except (zmq.ZMQError, OSError) as error:
        return f"{endpoint(ip, port)}: {error.strerror or error}", False
    finally:
        context.term()  # returns at once, since nothing lingers


class _Asker:
    """A `ChannelOwner` that asks one question. ``verdict`` gets the answer, or why there is none."""

    watcher = None

    def __init__(self, ip: str, port: int, verdict: asyncio.Future[IAm | str], question: bytes) -> None:
        self._where = endpoint(ip, port)
        self._question = question
        self.verdict = verdict
        self.channel: DealerChannel | None = None
        self.is_refused = False

    def channel_opened(self, channel: int) -> None:
        """Send the question."""
        if self.channel is not None and not self.channel.send(self._question):
            self.channel_lost(channel, f"{self._where}: it closed the connection at once")

    def channel_lost(
        self,
        channel: int,  # noqa: ARG002
        reason: str,
        *,
        is_foreign: bool = False,  # noqa: ARG002
        is_refused: bool = False,
    ) -> None:
        """Store the reason, since no answer will come."""
        self.is_refused = is_refused
        if not self.verdict.done():
            self.verdict.set_result(reason)

    def channel_answered(self, channel: int, frame: bytes) -> None:  # noqa: ARG002
        """Store the answer."""
        if self.verdict.done():
            return
        try:
            answer = frames.read_answer(frame)
        except BadFrame as error:
            self.verdict.set_result(f"{self._where}: it answers, but not as a fleetlm node does: {error}")
            return
        if isinstance(answer, IAm):
            self.verdict.set_result(answer)
        else:
            word = answer.refusal.word
            self.verdict.set_result(f"{self._where}: {answer.name} refused: {word}: {answer.detail}")
