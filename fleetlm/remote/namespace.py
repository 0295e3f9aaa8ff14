"""The nouns of the remote shell, such as `Node` and `Process`, bound to the node that it runs in.

They read as in Elixir, and return what the methods of `fleetlm.Node` return. What talks to another
node is awaitable: `fleetlm remote` awaits a result by itself, inside an expression write ``await``.
"""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetlm.ids import Pid
from fleetlm.processes.info import ChildInfo, ProcessInfo

if TYPE_CHECKING:
    from fleetlm.node import Node

_PING_TIMEOUT_S = 5.0
_CELL_CHARS = 48
"""Of a name in a table; ``Process.info`` shows it whole."""


class NodeNoun:
    """``Node``: this node and those that it knows."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self, *selectors: str) -> list[str]:
        """Connected nodes without this one, sorted; or by selector, several make a union.

        Selectors: visible, hidden, connected, this, known, dns, busy, draining.
        """
        return self._node.list(*selectors)

    def self(self) -> str:
        """This node's name."""
        return self._node.name

    def info(self, name: str | None = None) -> object:
        """This node with its connection table; or one row of it."""
        return self._node.info() if name is None else self._node.info(name)

    def ping(self, name: str, timeout: float = _PING_TIMEOUT_S) -> Awaitable[object]:
        """Connect if need be. Awaitable: "pong", or "pang" after ``timeout`` seconds at most."""
        return self._node.ping(name, timeout=timeout)

    def connect(self, name: str, timeout: float = _PING_TIMEOUT_S) -> Awaitable[bool]:
        """Connect. Awaitable: whether the node is connected after ``timeout`` seconds at most."""
        return self._node.connect(name, timeout=timeout)

    def disconnect(self, name: str) -> object:
        """Disconnect, and stay so until asked again. Whether it was connected."""
        return self._node.disconnect(name)

    def __repr__(self) -> str:
        return (
            f"<Node {self._node.name}: Node.list(), Node.list('known'), Node.self(), Node.info(), "
            "Node.ping(name), Node.connect(name), Node.disconnect(name); `node` is the Node itself>"
        )


class ProcessNoun:
    """``Process``: the processes of this node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self) -> Processes:
        """This node's processes, oldest first: a list of `ProcessInfo` that shows itself as a table."""
        return Processes(sorted(self._node.processes(), key=lambda info: info.pid.number))

    def info(self, process: Pid | int | str) -> object:
        """What is known of a process, given as pid, as its number or by name; None when it is gone."""
        pid = _resolve_pid(self._node, process)
        return None if pid is None else self._node.process_info(pid)

    def whereis(self, name: str) -> Pid | None:
        """The pid that has this name on this node, or None. Other nodes: ``await node.whereis``."""
        return self._node.registered().get(name)

    def registered(self) -> dict[str, Pid]:
        """Name → pid of this node's named processes."""
        return dict(self._node.registered())

    def __repr__(self) -> str:
        return (
            f"<Process of {self._node.name}: Process.list(), Process.info(pid | number | name), "
            "Process.whereis(name), Process.registered()>"
        )


class RegistryNoun:
    """``Registry``: the cluster-wide names, as this node sees them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self) -> dict[str, Pid]:
        """Name → the process that holds it, sorted by name."""
        return self._node.registry.list()

    def whereis(self, name: str) -> Pid | None:
        """The process that holds this name, on whichever node, or None."""
        return self._node.registry.whereis(name)

    def lookup(self, name: str) -> object:
        """The same with its meta, and since when; or None."""
        return self._node.registry.lookup(name)

    def __repr__(self) -> str:
        return (
            f"<Registry of {self._node.name}: Registry.list(), Registry.whereis(name), Registry.lookup(name)>"
        )


class GroupNoun:
    """``Group``: the process groups of the cluster, as this node knows them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self) -> list[str]:
        """Groups that have a member, sorted."""
        return self._node.groups.list()

    def members(self, name: str) -> builtins.list[Pid]:
        """The pids of a group's members on all connected nodes and this one."""
        return self._node.groups.members(name)

    def local_members(self, name: str) -> builtins.list[Pid]:
        """The pids of its members on this node."""
        return self._node.groups.local_members(name)

    def __repr__(self) -> str:
        return (
            f"<Group as {self._node.name} knows them: Group.list(), Group.members(name), "
            "Group.local_members(name)>"
        )


class SupervisorNoun:
    """``Supervisor``: the supervisors of this node. To make one: ``fleetlm.Supervisor(...)``."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def tree(self, supervisor: Pid | int | str | None = None) -> Trees:
        """Supervisors with their children, and theirs: all, or one by pid, number or name.

        What they are doing does not matter: they are looked at, not asked.

        Raises:
            ValueError: no supervisor of this node.
        """
        every = self._node.supervisors()
        if supervisor is None:
            children = {child.pid for rows in every.values() for child in rows}
            return Trees(self._root(pid, every) for pid in every if pid not in children)
        pid = _resolve_pid(self._node, supervisor)
        if pid is None or pid not in every:
            raise ValueError(f"{supervisor} is no supervisor of {self._node.name}; Supervisor.tree() has all")
        return Trees([self._root(pid, every)])

    def _root(self, pid: Pid, every: Mapping[Pid, Sequence[ChildInfo]]) -> Branch:
        info = self._node.process_info(pid)
        name, runs, state = (None, "", "") if info is None else (info.name, info.runs, info.state)
        return Branch(name, pid, runs, None, state, _build_branches(every[pid], every))

    def __repr__(self) -> str:
        return (
            f"<Supervisor of {self._node.name}: Supervisor.tree(), Supervisor.tree(pid | number | name); "
            "to make one: fleetlm.Supervisor>"
        )


class Processes(list[ProcessInfo]):
    """`ProcessInfo` rows that read as a table; the first column is a pid's number on this node."""

    def __repr__(self) -> str:
        if not self:
            return "(no processes)"
        head = ("pid", "name", "runs", "mailbox", "taken", "calls", "state")
        rows = [
            (p.pid.number, p.name or "-", p.runs, p.mailbox, p.taken, p.open_calls, p.state) for p in self
        ]
        return _format_table(head, rows)


@dataclass(frozen=True, slots=True)
class Branch:
    """A supervisor or one of its children, and what is below it.

    ``id`` is the name among the children of its supervisor, or the registered one of a root, which
    has no ``restart``.
    """

    id: str | None
    pid: Pid | None
    runs: str
    restart: str | None
    state: str
    children: tuple[Branch, ...] = ()


class Trees(list[Branch]):
    """Roots that read as indented trees; in angles a pid's number on this node."""

    def __repr__(self) -> str:
        return "\n".join(line for root in self for line in _draw_branch(root)) or "(no supervisors)"


def _build_branches(
    children: Sequence[ChildInfo], every: Mapping[Pid, Sequence[ChildInfo]]
) -> tuple[Branch, ...]:
    return tuple(
        Branch(
            child.id, child.pid, child.runs, child.restart, child.state,
            () if child.pid is None else _build_branches(every.get(child.pid, ()), every),
        )
        for child in children
    )  # fmt: skip


def _draw_branch(branch: Branch) -> Iterator[str]:
    told = ["-" if branch.id is None else _format_cell(branch.id)]
    if branch.pid is not None:
        told.append(f"<{branch.pid.number}>")
    told += [_format_cell(branch.runs), *([branch.restart] if branch.restart else []), branch.state]
    yield "  ".join(told)
    for child in branch.children:
        last = child is branch.children[-1]
        for number, line in enumerate(_draw_branch(child)):
            lead = ("└─ " if last else "├─ ") if number == 0 else ("   " if last else "│  ")
            yield lead + line


def _format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers stand to the right."""
    cells = [list(head), *([_format_cell(each) for each in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(each, int) for each in rows[0]]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def _format_cell(value: object) -> str:
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"


def _resolve_pid(node: Node, process: Pid | int | str) -> Pid | None:
    if isinstance(process, Pid):
        return process
    if isinstance(process, int):
        return Pid(node.name, node.incarnation, process)
    return node.registered().get(process)


def make_namespace(node: Node) -> dict[str, Any]:
    """The names that an expression sees, fresh for each session."""
    return {
        "__builtins__": builtins,
        "__name__": "__remote__",
        "Node": NodeNoun(node),
        "Process": ProcessNoun(node),
        "Group": GroupNoun(node),
        "Registry": RegistryNoun(node),
        "Supervisor": SupervisorNoun(node),
        "asyncio": asyncio,
        "fleetlm": sys.modules["fleetlm"],  # by now it is there; importing it here would be a cycle
        "node": node,
    }
