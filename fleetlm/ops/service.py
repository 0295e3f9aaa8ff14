"""The ops listener as a service of a node: started last, stopped before the node closes its transport."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from fleetlm.blocking import forks
from fleetlm.errors import SettingsError, StartFailed
from fleetlm.names import endpoint
from fleetlm.ops import INSTALL, app
from fleetlm.setting_parsers import split_ops

if TYPE_CHECKING:
    from fleetlm.node import Node
    from fleetlm.ops.listener import Listener

STOP_S = 2.0
"""Seconds that a node which stops waits for the thread; it needs half a second at most."""

log: logging.Logger = logging.getLogger("fleetlm.ops")


class OpsService:
    """Implements `runtime.bootstrap.Service`.

    Args:
        node: the node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._listener: Listener | None = None
        self.port: int | None = None
        """The port that was taken; None: it does not listen."""

    async def start(self) -> None:
        """Listen as `Settings.ops` says.

        Raises:
            SettingsError: the extra ``fleetlm[ops]`` is not installed.
            StartFailed: no port is free, or the address is none of this machine.
        """
        place = self._node.settings.ops
        if place is None:
            return
        try:
            application = app(self._node)
            from fleetlm.ops.listener import Listener, listen  # noqa: PLC0415  # needs the extra
        except ImportError as missing:
            raise SettingsError(
                "FLEETLM_OPS", place, "only where fleetlm[ops] is installed", INSTALL
            ) from missing
        application.watching.ends_with_node = False
        ip, ports = split_ops(place)
        try:
            sockets = listen(ip, ports)
        except OSError as error:
            hint = "FLEETLM_OPS may have a range of ports, such as 127.0.0.1:4380-4395"
            raise StartFailed(place, f"{error.strerror or error}. {hint}") from error
        self.port = sockets[0].getsockname()[1]
        self._listener = Listener(application, sockets, f"{self._node.name} ops listener")
        forks.guard(self)
        self._listener.start()
        shown = "*" if ip == "*" else ip
        log.info("the ops listener of %s is at http://%s/", self._node.name, endpoint(shown, self.port))

    async def stop(self, reason: str = "shutdown", asked_by: asyncio.Task[Any] | None = None) -> None:
        """Stop to listen, and end the thread. May be called more than once."""
        del reason, asked_by
        listener, self._listener, self.port = self._listener, None, None
        if listener is None:
            return
        listener.stop()
        # Not `wait_for`, which would cancel the future that the thread sets when it has ended.
        ended, _ = await asyncio.wait({asyncio.wrap_future(listener.ended)}, timeout=STOP_S)
        if not ended:
            log.warning("the ops listener of %s has not ended within %g s", self._node.name, STOP_S)
            return
        listener.thread.join()

    def after_fork(self) -> None:
        """Implements `forks.Guarded`: the child has no thread that serves, and must not keep the port."""
        if self._listener is not None:
            self._listener.close_sockets()
