"""Where `fleetlm top` gets its overviews: from a node of this machine, again and again.

A `Source` holds at most one connection to the console of the node (`remote.protocol`). When the node is lost,
it says so and looks for it at the next `look`: by its name, since it has another process id after a restart.
It blocks, so the live view uses it in a thread of its own; `close` may be called from another one.
"""

from __future__ import annotations

import contextlib
import os
import time

from fleetlm.cli.top.history import Overview
from fleetlm.escapes import escape
from fleetlm.records import Record
from fleetlm.remote import client
from fleetlm.remote.client import NodeGone, RemoteConnection
from fleetlm.remote.finder import NO_NODE, TIMEOUT, RemoteFailure, choose, discover
from fleetlm.remote.protocol import BadMessage

NODES_S = 0.5
"""Seconds that other nodes have to tell their part. One that needs longer is shown as silent, and delays each
look by so much."""


class Look(Record):
    """The outcome of one look at the cluster: an overview, or why there is none."""

    overview: Overview | None
    failure: str = ""
    code: int = 0
    """The exit code that fits the failure."""


class Source:
    """Looks at the cluster through one node of this machine.

    Args:
        wanted: the node, as `fleetlm remote --node` takes it; None: the only one.
    """

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self._connection: RemoteConnection | None = None
        self._number = 0
        self._is_closed = False

    @property
    def node(self) -> str:
        """The name of the node that is asked, or what the user has said; may be empty."""
        return self._wanted or ""

    def look(self) -> Look:
        """Ask for an overview, and connect first if need be. Never raises for a node that is not there."""
        try:
            connection = self._connect()
            self._number += 1
            return Look(client.ask_overview(connection, self._number, NODES_S))
        except RemoteFailure as failure:
            self._drop()
            first = failure.text.partition("\n")[0].removesuffix(" These do:")  # A list follows.
            return Look(None, escape(first), failure.code)
        except TimeoutError:
            self._drop()
            silence = client.describe_silence(self.node, NODES_S + client.GREETING_S)
            return Look(None, escape(silence), TIMEOUT)
        except (NodeGone, BadMessage, OSError) as error:
            self._drop()
            return Look(None, escape(str(error)), NO_NODE)

    def connect(self) -> None:
        """Connect now.

        Raises:
            RemoteFailure: the node cannot be found, or does not let this user in; for people as it is.
        """
        self._connect()

    def close(self) -> None:
        """Disconnect. A `look` in another thread ends soon."""
        self._is_closed = True
        self._drop()

    def _connect(self) -> RemoteConnection:
        connection = self._connection
        if connection is None:
            found = choose(discover(os.environ, os.getuid()), self._wanted)
            connection = client.connect(found)
            self._wanted = connection.node
            self._connection = connection
            if self._is_closed:
                self._drop()
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()


def look_twice(source: Source, interval_s: float) -> tuple[Look, Look]:
    """Look, and once more after ``interval_s`` seconds, so that rates are known."""
    first = source.look()
    if first.overview is None:
        return first, first
    time.sleep(interval_s)
    return first, source.look()
