"""Process groups: performs what `core.groups` decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.node import Node
    from fleetlm.tables import Tables


class Groups:
    """`node.groups`."""

    topic = "groups"

    def __init__(self, node: Node, tables: Tables) -> None:
        self._node = node
        self._tables = tables

    def own_facts(self) -> Iterable[Any]:
        """`tables.Table`."""
        return ()

    def node_down(self, node: str) -> None:
        """`tables.Table`."""

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """`tables.Table`."""

    def exited(self, pid: Pid) -> None:
        """`tables.Table`."""

    def close(self) -> None:
        """`tables.Table`."""
