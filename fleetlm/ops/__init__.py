"""The ops listener: health, metrics, the whole cluster as JSON, and a page about it, over HTTP. Read-only.

`Settings.ops` switches it on: then `service` runs `application` on a thread of its own (`listener`). A
program that has an ASGI server mounts the same application: ``Mount("/ops", fleetlm.ops.app(node))``.

`access` says who may read, `questions` asks the node's event loop, `board` keeps what watchers are shown, and
`watching` shares it among them. Importing fleetlm does not import this package. It needs the extra
``fleetlm[ops]``; importing the package itself needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleetlm.node import Node
    from fleetlm.ops.application import OpsApp

INSTALL = "Install it: pip install 'fleetlm[ops]'"
"""What to do where the libraries behind the listener are missing."""


def app(node: Node, *, token: str | None = None, hosts: Iterable[str] = ()) -> OpsApp:
    """Make the ASGI application of a node, for a program's own server.

    Call this on the node's event loop. The application may run there, or on a loop in another thread.

    Args:
        node: a running node.
        token: the secret that readers must show; default `Settings.ops_token`. Without one, only requests
            to a loopback address are answered, unless ``hosts`` allows others: whatever stands before the
            application has to decide who may read.
        hosts: names or addresses in the ``Host`` header that are answered without a token, besides loopback
            ones; ``"*"``: any.

    Raises:
        RuntimeError: this is not the node's event loop.
        ImportError: the extra ``fleetlm[ops]`` is not installed.
    """
    try:
        from fleetlm.ops.application import OpsApp  # noqa: PLC0415  # needs the extra
        from fleetlm.ops.questions import NodeQuestions  # noqa: PLC0415
        from fleetlm.runtime.log_guard import GUARD  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise ImportError(f"fleetlm.ops needs {missing.name}. {INSTALL}", name=missing.name) from missing
    GUARD.cover_new()  # Their logger is guarded from the first line on, and not from the next tick.
    return OpsApp(NodeQuestions(node), token or node.settings.ops_token, hosts)


__all__ = ["INSTALL", "app"]
