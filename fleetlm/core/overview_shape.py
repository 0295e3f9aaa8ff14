"""The shape of an overview: what it may hold at most, what of it a peer gets, and how a peer's is read.

An *overview* is what one node knows of the whole cluster, in JSON types (`Node.overview`). It holds a *part*
for each node, made by that node itself. Everything in a part has a bound, so that its size does not follow
the size of the node's tables:

* `LIMITS` says how many rows each list has at most; what is cut is counted in ``left_out``.
* `cut` makes the lists shorter where many nodes are asked (`WHOLE_FOR`), so that the sum stays the same.
* `bounded` cuts texts and escapes what a terminal would obey. Names of processes and functions come from
  programs, reasons and errors from other nodes.

`read_part` takes a part that a peer sent. A peer may be of another version, or hostile, so the part is built
anew from what has the expected type: what is missing is empty, what is not known is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from fleetlm.core.shard_table import MAX_DIFFERING
from fleetlm.escapes import escape

Part = dict[str, Any]
"""What one node tells of itself."""

LIMITS: Final[dict[str, int]] = {
    "peers": 1_024,
    "processes": 50,
    "trees": 200,
    "groups": 100,
    "names": 200,
    "kinds": 64,
    "stalled": 20,
    "events": 100,
}
"""Rows of each list in one part. ``trees`` counts the rows of all trees together."""
LEAST: Final[dict[str, int]] = {
    "peers": 32,
    "processes": 5,
    "trees": 10,
    "groups": 10,
    "names": 10,
    "kinds": 10,
    "stalled": 3,
    "events": 10,
}
"""Rows of each list in one part, however many nodes are asked."""
MEMBERS: Final = 50
"""Members of one group that are shown."""
LONGEST: Final = 30
"""Of the processes that are shown, so many have the longest mailboxes; the others are the busiest ones."""
TREE_DEPTH: Final = 16
"""Levels of a supervision tree that are shown. A message value may have 64 levels, and each takes two."""
WHOLE_FOR: Final = 16
"""Up to so many nodes are shown with full lists; 16 parts have some 2 MB at most. With more nodes the lists
are shorter in proportion."""
TEXT_CHARS: Final = 300
"""Longer texts are cut. The name of a process has at most 255 characters."""
COUNTS: Final = 64
"""Entries of ``counters``, ``tables`` and ``left_out``."""
_MOST: Final = 1 << 62
"""Larger numbers are no counts; every reader of JSON can hold this one."""

DOES_NOT_KNOW: Final = "it does not know this question (its version of fleetlm is older)"
UNREADABLE: Final = "its answer cannot be read"


def bounded(text: str) -> str:
    """Return a text that is short enough, on one line, and without anything that a terminal obeys."""
    escaped = escape(text[: TEXT_CHARS + 1])  # One more than is shown, to see whether there are more.
    return escaped if len(escaped) <= TEXT_CHARS else f"{escaped[: TEXT_CHARS - 1]}…"


def limit_of(what: str, nodes: int) -> int:
    """Return how many rows a list of one part has at most where ``nodes`` nodes are asked."""
    return max(LEAST[what], LIMITS[what] * WHOLE_FOR // max(nodes, WHOLE_FOR))


def peer_state(status: str, *, is_draining: bool) -> str:
    """Return the state of a peer: up, busy, draining, connecting or down.

    Args:
        status: `Peer.status`.
        is_draining: whether it is about to leave.
    """
    if status in ("up", "busy"):
        return "draining" if is_draining else status
    return "connecting" if status in ("dialling", "wanted") else "down"


Load = tuple[int, float, int]
"""A process as `pick_shown` sorts it: the length of its mailbox and for how many seconds it has been busy,
both negative, and its number."""


def pick_shown(loads: Iterable[Load], most: int) -> list[int]:
    """Return the numbers of the processes to show: those with the longest mailboxes, then the busiest others.

    Args:
        loads: of each process.
        most: how many are shown.
    """
    every = sorted(loads)
    longest = LONGEST if len(every) > most else most
    numbers = [load[2] for load in every[: min(longest, most)] if load[0]]
    rest = every[len(numbers) :]
    return numbers + [load[2] for load in sorted(rest, key=_BY_BUSY)[: most - len(numbers)]]


_BY_BUSY = itemgetter(1, 0, 2)


# What a peer gets.


def cut(part: Part, nodes: int, *, for_peer: bool) -> Part:
    """Return a part with shorter lists where many nodes are asked.

    Args:
        part: as `runtime.own_overview` makes it, with full lists; it is not changed.
        nodes: how many nodes are asked.
        for_peer: whether to leave out processes that are for their own node only: a peer knows of none.
    """
    left_out = dict(part["left_out"])
    found: Part = {**part, "left_out": left_out}
    processes, trees, groups = part["processes"], part["trees"], part["groups"]
    shown = processes["shown"]
    if for_peer:
        shown = [row for row in shown if not row["local"]]
        trees = _without_local(trees)
    found["peers"] = _shorten(sorted(part["peers"], key=_by_trouble), "peers", nodes, left_out)
    found["processes"] = {**processes, "shown": _shorten(shown, "processes", nodes, left_out)}
    rows = limit_of("trees", nodes)
    kept, dropped = trim_trees(trees, rows)
    found["trees"] = kept
    _count(left_out, "trees", dropped)
    for what, items in (("groups", groups), ("names", part["names"]), ("kinds", part["kinds"])):
        found[what] = dict(_shorten(list(items.items()), what, nodes, left_out))
    found["stalled"] = _shorten(part["stalled"], "stalled", nodes, left_out)
    found["events"] = part["events"][-limit_of("events", nodes) :]
    return found


def trim_trees(trees: list[Part], most: int) -> tuple[list[Part], int]:
    """Return the first ``most`` rows of trees, level by level, and how many rows were left out."""
    if most >= sum(1 for _ in rows_of(trees)):
        return trees, 0
    roots: list[Part] = []
    left, dropped = most, 0
    level = [(row, roots) for row in trees]
    while level:
        below: list[tuple[Part, list[Part]]] = []
        for row, siblings in level:
            if left <= 0:
                dropped += 1 + sum(1 for _ in rows_of(row["children"]))
                continue
            left -= 1
            copy: Part = {**row, "children": []}
            siblings.append(copy)
            below += [(child, copy["children"]) for child in row["children"]]
        level = below
    return roots, dropped


def rows_of(trees: Iterable[Part]) -> Iterable[Part]:
    """Yield each row of some trees, parents first."""
    for row in trees:
        yield row
        yield from rows_of(row["children"])


def _without_local(trees: list[Part]) -> list[Part]:
    return [{**row, "children": _without_local(row["children"])} for row in trees if not row["local"]]


def _shorten(rows: list[Any], what: str, nodes: int, left_out: dict[str, int]) -> list[Any]:
    most = limit_of(what, nodes)
    _count(left_out, what, len(rows) - most)
    return rows[:most]


def _count(left_out: dict[str, int], what: str, more: int) -> None:
    if more > 0:
        left_out[what] = left_out.get(what, 0) + more


def _by_trouble(peer: Part) -> int:
    """Sort peers that are not simply up before the others, which keep their order."""
    return 1 if peer["state"] == "up" else 0


# Reading what a peer sent.

Read = Callable[[Any], Any]


def _text(value: Any) -> str:
    return bounded(value) if type(value) is str else ""


def _number(value: Any) -> float:
    if type(value) is int:
        return value if -_MOST < value < _MOST else 0
    return value if type(value) is float and math.isfinite(value) else 0


def _count_of(value: Any) -> int:
    return value if type(value) is int and 0 <= value < _MOST else 0


def _incarnation(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 64 else 0


def _flag(value: Any) -> bool:
    return value is True


def _or_none(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


def _list(read: Read, most: int) -> Read:
    return lambda value: [read(each) for each in value[:most]] if type(value) is list else []


def _map(read: Read, most: int) -> Read:
    def read_map(value: Any) -> dict[str, Any]:
        items = islice(value.items(), most) if type(value) is dict else ()
        return {bounded(key): read(each) for key, each in items if type(key) is str}

    return read_map


def _row(**fields: Read) -> Read:
    items = list(fields.items())

    def read_row(value: Any) -> Part:
        given: Mapping[Any, Any] = value if type(value) is dict else {}
        return {name: read(given.get(name)) for name, read in items}

    return read_row


_COUNTS = _map(_count_of, COUNTS)
_PEER = _row(
    name=_text, state=_text, road=_or_none(_text), up_s=_or_none(_number), ups=_count_of, last_error=_text,
    lag_ms=_count_of, messages_sent=_count_of, messages_received=_count_of, bytes_sent=_count_of,
    bytes_received=_count_of, outstanding=_count_of,
)  # fmt: skip
_PROCESS = _row(
    pid=_text, name=_text, runs=_text, mailbox=_count_of, taken=_count_of, open_calls=_count_of, state=_text,
    serving=_text, serving_s=_number, waits_for=_text, local=_flag,
)  # fmt: skip
_BRANCH = _row(
    pid=_text, name=_text, runs=_text, state=_text, restart=_text, restarts=_count_of, restarted=_count_of,
    local=_flag,
)  # fmt: skip
_KIND = _row(
    shards=_count_of, unowned=_count_of, hosts=_count_of, differing=_map(_count_of, MAX_DIFFERING),
    is_hosted=_flag, runs=_text, owned=_count_of, moving=_count_of, alive=_count_of, live=_count_of,
    kept_bytes=_count_of, max_kept_bytes=_count_of, activated=_count_of, fenced=_count_of,
    handed_over=_count_of, taken=_count_of, stayed=_count_of,
    quorum=_or_none(_row(expected=_count_of, seen=_count_of, holds=_flag)),
    store=_or_none(_row(name=_text, durable=_text, failures=_count_of, fails=_flag)),
)  # fmt: skip


def _trees(value: Any) -> list[Part]:
    """Read trees, level by level; the rows beyond the limits are passed over."""
    roots: list[Part] = []
    left, level = LIMITS["trees"], [(value, roots)]
    for _ in range(TREE_DEPTH):
        below: list[tuple[Any, list[Part]]] = []
        for given, siblings in level:
            for each in given[:left] if type(given) is list else ():
                row: Part = {**_BRANCH(each), "children": []}
                siblings.append(row)
                left -= 1
                if type(each) is dict:
                    below.append((each.get("children"), row["children"]))
        level = below
    return roots


_PART = _row(
    name=_text, incarnation=_incarnation, version=_text, pid=_count_of, host=_text, uptime_s=_number,
    wall_ms=_count_of, state=_text, lag_ms=_count_of, cookie=_flag, exposure_warning=_or_none(_text),
    dns=_row(query=_text, verdict=_text, age_s=_or_none(_number), polls=_count_of),
    peers=_list(_PEER, LIMITS["peers"]),
    processes=_row(count=_count_of, shown=_list(_PROCESS, LIMITS["processes"])),
    trees=_trees,
    groups=_map(_row(members=_list(_text, MEMBERS), count=_count_of), LIMITS["groups"]),
    names=_map(_text, LIMITS["names"]),
    kinds=_map(_KIND, LIMITS["kinds"]),
    counters=_COUNTS, tables=_COUNTS,
    stalled=_list(_text, LIMITS["stalled"]),
    events=_list(_row(wall_ms=_count_of, kind=_text, text=_text), LIMITS["events"]),
    left_out=_COUNTS,
)  # fmt: skip


def read_part(value: Any, name: str) -> Part:
    """Build the part of the node ``name`` from what it sent; see the module.

    Raises:
        ValueError: it is no part at all.
    """
    if type(value) is not dict or "incarnation" not in value:
        raise ValueError(UNREADABLE)
    part: Part = _PART(value)
    part["name"] = name
    return part


def absent(name: str, error: str, **more: Any) -> Part:
    """Return what stands in an overview for a node that has not told its part."""
    return {"name": name, "error": bounded(error), **more}
