"""An application without asyncio (Django, Flask) in gunicorn's sync workers, each of them a node.

Start it in this folder, with the two hooks in ``gunicorn_sync.py``:

    gunicorn --config gunicorn_sync.py --workers 4 wsgi:app

The node runs in a thread of each worker (`fleetlm.node_in_thread`). It starts after the fork, since a node
does not survive one: never start a node when this module is imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import fleetlm
from fleetlm import Actor, handler
from fleetlm.sync import SyncNode

_node: SyncNode | None = None


class Model(Actor):
    """Stand in for what a worker has loaded."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def who(self) -> tuple[str, int]:
        return self.node.name, os.getpid()


def start_node() -> None:
    """Start the node of this worker; gunicorn's ``post_fork`` calls it."""
    global _node  # noqa: PLW0603  # one for each process
    _node = fleetlm.node_in_thread()
    _node.spawn(Model)


def stop_node() -> None:
    """Stop it; gunicorn's ``worker_exit`` calls it, sometimes in its main process, which has no node."""
    if _node is not None:
        _node.stop()


def app(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Serve one request."""
    assert _node is not None, "gunicorn needs --config gunicorn_sync.py"
    told = _node.groups.refs(Model, "models").multicall(Model.who)
    everyone = [each for each in told if isinstance(each, tuple)]
    body = json.dumps({"node": _node.name, "pid": os.getpid(), "everyone": sorted(everyone)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
