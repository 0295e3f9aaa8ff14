"""The names that an expression in `fleetlm remote` can use: ``Node``, ``Process``, ``Registry`` and others.

They are named as in Elixir, are bound to the node that evaluates, and return what the methods of
`fleetlm.Node` return. Methods that contact another node return an awaitable: `fleetlm remote` awaits the
result of an expression by itself; inside an expression, write ``await``.
"""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.entities.info import KindInfo
from fleetlm.ids import Pid
from fleetlm.processes.info import ChildInfo, ProcessInfo
from fleetlm.records import Record
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.entities.entity_ref import EntityRefs
    from fleetlm.node import Node
    from fleetlm.runtime.info import DrainReport

_PING_TIMEOUT_S = 5.0
_OVERVIEW_TIMEOUT_S = 1.0
_LOOK_S = 0.02
"""Seconds between two looks whether a drain has been announced."""
_PROGRESS_S = 1.0
"""Seconds between two lines about a drain that goes on."""
_MAX_CELL_CHARS = 48
"""Longer names are cut in tables. ``Process.info`` shows them in full."""


class NodeNoun:
    """``Node``: this node and the nodes that it knows."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self, *selectors: str) -> list[str]:
        """Return connected nodes without this one, sorted; or those that match any of the selectors.

        Selectors: visible, hidden, connected, this, known, dns, host, busy, draining.
        """
        return self._node.list(*selectors)

    def self(self) -> str:
        """Return this node's name."""
        return self._node.name

    def info(self, name: str | None = None) -> object:
        """Return this node with its connection table, or the row of one peer."""
        return self._node.info() if name is None else self._node.info(name)

    def overview(self, timeout: float = _OVERVIEW_TIMEOUT_S) -> Awaitable[object]:
        """Look at all nodes, as `fleetlm top` does. Awaitable: a dict, after at most ``timeout`` seconds."""
        return self._node.overview(timeout)

    def ping(self, name: str, timeout: float = _PING_TIMEOUT_S) -> Awaitable[object]:
        """Connect if necessary. Awaitable: "pong", or "pang" after at most ``timeout`` seconds."""
        return self._node.ping(name, timeout=timeout)

    def connect(self, name: str, timeout: float = _PING_TIMEOUT_S) -> Awaitable[bool]:
        """Connect. Awaitable: whether the node is connected after at most ``timeout`` seconds."""
        return self._node.connect(name, timeout=timeout)

    def disconnect(self, name: str) -> object:
        """Disconnect until `connect` is called or that node restarts. Returns whether it was connected."""
        return self._node.disconnect(name)

    async def drain(self, timeout: float | None = None, reason: str = "", *, wait: bool = True) -> object:
        """Let this node drain, and print what it waits for.

        Args:
            timeout: seconds for what it has begun; None: as its settings say.
            reason: for the log.
            wait: whether to wait until it has drained.

        Returns:
            With ``wait`` its `DrainReport`, else None.
        """
        from fleetlm.node import parts_of  # noqa: PLC0415

        node = self._node
        drain = asyncio.get_running_loop().create_task(node.drain(timeout, reason, source="remote"))
        limit_s = node.settings.drain_s if timeout is None else timeout
        if not wait:
            while not (node.is_draining or drain.done()):  # Hooks may run before it is announced.
                await asyncio.wait({drain}, timeout=_LOOK_S)
            drain.add_done_callback(_forget_error)
            if drain.done() and drain.exception() is not None:
                await drain  # It raises.
            print(f"{node.name} drains, for at most {limit_s:g} s; take it back with: fleetlm undrain")
            return None
        print(f"{node.name} drains, for at most {limit_s:g} s")
        shown = ""
        while not drain.done():
            await asyncio.wait({drain}, timeout=_PROGRESS_S)
            left = "" if drain.done() else str(await parts_of(node).draining.look())
            if left != shown and left:
                print(f"  still open: {left}")
            shown = left
        report = await drain
        print(report)
        return report

    def undrain(self) -> bool:
        """Take the drain of this node back. Returns whether it takes work now; False: it stops already."""
        was_draining = self._node.undrain()
        takes_work = not self._node.is_draining
        state = "takes work again" if was_draining else "does not drain" if takes_work else "stops already"
        print(f"{self._node.name} {state}")
        return takes_work

    def __repr__(self) -> str:
        return (
            f"<Node {self._node.name}: Node.list(), Node.list('known'), Node.self(), Node.info(), "
            "Node.overview(), Node.ping(name), Node.connect(name), Node.disconnect(name), Node.drain(), "
            "Node.undrain(); `node` is the Node itself>"
        )


class ProcessNoun:
    """``Process``: the processes of this node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self) -> Processes:
        """Return this node's processes, oldest first: a list of `ProcessInfo` that prints as a table."""
        return Processes(sorted(self._node.processes(), key=lambda info: info.pid.number))

    def info(self, process: Pid | int | str) -> object:
        """Return the state of a process, given as pid, number or name; None if it does not run."""
        pid = _resolve_pid(self._node, process)
        return None if pid is None else self._node.process_info(pid)

    def whereis(self, name: str) -> Pid | None:
        """Return the pid with this name on this node, or None. For other nodes: ``await node.whereis``."""
        return self._node.registered().get(name)

    def registered(self) -> dict[str, Pid]:
        """Return the named processes of this node: name → pid."""
        return dict(self._node.registered())

    def __repr__(self) -> str:
        return (
            f"<Process of {self._node.name}: Process.list(), Process.info(pid | number | name), "
            "Process.whereis(name), Process.registered()>"
        )


class RegistryNoun:
    """``Registry``: the cluster-wide names, as this node knows them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def list(self) -> dict[str, Pid]:
        """Return name → pid of the process that holds it, sorted by name."""
        return self._node.registry.list()

    def whereis(self, name: str) -> Pid | None:
        """Return the process that holds this name on any node, or None."""
        return self._node.registry.whereis(name)

    def lookup(self, name: str) -> object:
        """Return the holder with its meta and the time of registration, or None."""
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
        """Return the groups that have members, sorted."""
        return self._node.groups.list()

    def members(self, name: str) -> builtins.list[Pid]:
        """Return the pids of a group's members on this node and all connected nodes."""
        return self._node.groups.members(name)

    def local_members(self, name: str) -> builtins.list[Pid]:
        """Return the pids of a group's members on this node."""
        return self._node.groups.local_members(name)

    def __repr__(self) -> str:
        return f"<Group of {self._node.name}: Group.list(), Group.members(name), Group.local_members(name)>"


class EntitiesNoun:
    """``Entities``: the keyed entities of the cluster, as this node knows them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def kinds(self) -> Kinds:
        """Return the kinds that any node hosts: a list of `KindInfo` that prints as a table."""
        return Kinds(self._node.entities.info())

    def hosts(self, kind: str) -> dict[str, int]:
        """Return the nodes that own shards of a kind, each with how many. Raises: ValueError."""
        return dict(Counter(self._refs(kind).shards().values()))

    def shards(self, kind: str) -> dict[int, str]:
        """Return the shards of a kind that have an owner, each with its node. Raises: ValueError."""
        return self._refs(kind).shards()

    def shard(self, kind: str, key: str) -> int:
        """Return the shard of a key. Raises: ValueError."""
        return self._refs(kind).shard(key)

    def where(self, kind: str, key: str) -> str | None:
        """Return the node that owns a key, or None; the entity need not live. Raises: ValueError."""
        return self._refs(kind).where(key)

    def list(self, kind: str, *, local: bool = False) -> Awaitable[builtins.list[str]]:
        """Ask the hosts for the keys that live there, or whose states they keep. Awaitable: the keys, sorted.

        Args:
            kind: its name.
            local: only those of this node.

        Raises:
            ValueError: no node hosts the kind.
        """
        return self._refs(kind).list(local=local)

    async def move(self, kind: str, shard: int, to: str) -> str | None:
        """Have the owner of a shard hand it over to another host, and wait for that. See `EntityRefs.move`.

        Returns:
            The node that owns it then, as this node sees it.

        Raises:
            ValueError: no node hosts the kind; or the shard stays where it is, and the text says why.
            NotOwner: nobody owns the shard.
        """
        refs = self._refs(kind)
        await refs.move(shard, to)
        return refs.shards().get(shard)

    def _refs(self, kind: str) -> EntityRefs[Any]:
        from fleetlm.entity import Entity  # noqa: PLC0415  # only where it is used

        kinds = self._node.entities.kinds()
        if kind not in kinds:
            known = f"these are known: {', '.join(kinds)}" if kinds else "no kind is known"
            raise ValueError(f"no connected node hosts {kind!r}; {known}")
        return self._node.entities.ref(Entity, kind)

    def __repr__(self) -> str:
        return (
            f"<Entities as {self._node.name} knows them: Entities.kinds(), Entities.hosts(kind), "
            "Entities.where(kind, key), Entities.shard(kind, key), Entities.list(kind), "
            "Entities.list(kind, local=True), Entities.shards(kind), Entities.move(kind, shard, node)>"
        )


class SupervisorNoun:
    """``Supervisor``: the supervisors of this node. ``fleetlm.Supervisor(...)`` creates one."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def tree(self, supervisor: Pid | int | str | None = None) -> Trees:
        """Return the supervisors of this node with their children, as trees.

        The trees are read from the node's tables. No supervisor is called, so busy ones are shown, too.

        Args:
            supervisor: one supervisor, as pid, number or name; None for all.

        Raises:
            ValueError: it is not a supervisor of this node.
        """
        every = self._node.supervisors()
        if supervisor is None:
            children = {child.pid for rows in every.values() for child in rows}
            return Trees(self._build_root(pid, every) for pid in every if pid not in children)
        pid = _resolve_pid(self._node, supervisor)
        if pid is None or pid not in every:
            raise ValueError(
                f"{supervisor} is not a supervisor of {self._node.name}; Supervisor.tree() shows all"
            )
        return Trees([self._build_root(pid, every)])

    def _build_root(self, pid: Pid, every: Mapping[Pid, Sequence[ChildInfo]]) -> Branch:
        info = self._node.process_info(pid)
        name, runs, state = (None, "", "") if info is None else (info.name, info.runs, info.state)
        return Branch(name, pid, runs, None, state, _build_branches(every[pid], every))

    def __repr__(self) -> str:
        return (
            f"<Supervisor of {self._node.name}: Supervisor.tree(), Supervisor.tree(pid | number | name); "
            "fleetlm.Supervisor creates one>"
        )


class Processes(list[ProcessInfo]):
    """`ProcessInfo` rows that print as a table. The first column is the pid's number on this node."""

    def __repr__(self) -> str:
        if not self:
            return "(no processes)"
        head = ("pid", "name", "runs", "mailbox", "taken", "calls", "state")
        rows = [
            (p.pid.number, p.name or "-", p.runs, p.mailbox, p.taken, p.open_calls, p.state) for p in self
        ]
        if not any(p.waits_for for p in self):
            return _format_table(head, rows)
        waits = [p.waits_for or "-" for p in self]
        return _format_table((*head, "waits for"), [(*row, it) for row, it in zip(rows, waits, strict=True)])


class Kinds(list[KindInfo]):
    """`KindInfo` rows that print as a table. The columns after ``hosts`` tell of this node alone."""

    def __repr__(self) -> str:
        if not self:
            return "(no kinds of entities)"
        head = (
            "kind",
            "shards",
            "no owner",
            "hosts",
            "owned here",
            "moving",
            "alive",
            "kept bytes",
            "safety",
            "stored",
        )
        return _format_table(head, [_kind_row(each) for each in self])


def _kind_row(info: KindInfo) -> tuple[object, ...]:
    own = info.hosted
    if own is None:
        return (info.kind, info.shards, info.unowned, info.hosts, 0, 0, 0, 0, "-", "-")
    safety = "available"
    if own.quorum is not None:
        holds = "" if own.quorum.holds else ", lost"
        safety = f"quorum: {own.quorum.seen} of {own.quorum.expected}{holds}"
    stored = "-" if own.store is None else own.store.durable + (", fails" if own.store.fails else "")
    return (
        info.kind, info.shards, info.unowned, info.hosts, own.owned, own.moving, own.alive, own.kept_bytes,
        safety, stored,
    )  # fmt: skip


class Branch(Record):
    """A supervisor or one of its children, with everything below it.

    ``id`` is the child's name within its supervisor. A root has its registered name as ``id``, or None, and
    no ``restart``.
    """

    id: str | None
    pid: Pid | None
    runs: str
    restart: str | None
    state: str
    children: tuple[Branch, ...] = ()


class Trees(list[Branch]):
    """Roots that print as indented trees. Numbers in angle brackets are those of pids on this node."""

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
    """Yield the lines of a tree."""
    parts = ["-" if branch.id is None else _format_cell(branch.id)]
    if branch.pid is not None:
        parts.append(f"<{branch.pid.number}>")
    parts += [_format_cell(branch.runs), *([branch.restart] if branch.restart else []), branch.state]
    yield "  ".join(parts)
    for child in branch.children:
        last = child is branch.children[-1]
        for number, line in enumerate(_draw_branch(child)):
            lead = ("└─ " if last else "├─ ") if number == 0 else ("   " if last else "│  ")
            yield lead + line


def _format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table. Columns are as wide as their widest cell; numbers are aligned to the right."""
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
    text = text_of(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[: _MAX_CELL_CHARS - 1]}…"


def _resolve_pid(node: Node, process: Pid | int | str) -> Pid | None:
    if isinstance(process, Pid):
        return process
    if isinstance(process, int):
        return Pid(node.name, node.incarnation, process)
    return node.registered().get(process)


def _forget_error(task: asyncio.Task[DrainReport]) -> None:
    """Take the error of a drain that nothing waits for; the node has logged what matters."""
    if not task.cancelled():
        task.exception()


def make_namespace(node: Node) -> dict[str, Any]:
    """Return the names that expressions can use. Each client gets a dict of its own."""
    return {
        "__builtins__": builtins,
        "__name__": "__remote__",
        "Node": NodeNoun(node),
        "Process": ProcessNoun(node),
        "Group": GroupNoun(node),
        "Registry": RegistryNoun(node),
        "Entities": EntitiesNoun(node),
        "Supervisor": SupervisorNoun(node),
        "asyncio": asyncio,
        "fleetlm": sys.modules["fleetlm"],  # loaded already; an import here would be circular
        "node": node,
    }
