"""The views of `fleetlm top`: which rows and columns an overview has for people. Pure.

A view makes `Row`s of a `History`. A cell holds the value by which rows are sorted, and the text that is
shown, escaped. The *tone* of a row says how it is coloured; what it means stands in the row as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from fleetlm.cli.top.history import History, Part
from fleetlm.escapes import escape
from fleetlm.records import Record

Tone = Literal["", "good", "warn", "bad", "dim"]

NONE = "–"
"""The text of what is not known."""
_LAG_WARNS_MS = 200
"""A loop that is late by so much is shown as a warning."""
_MAILBOX_WARNS = 100
_SERVING_WARNS_S = 5.0
"""A mailbox of this length, and a handler that runs for so long, are shown as a warning."""
_STATE_TONES: dict[str, Tone] = {
    "up": "good", "busy": "warn", "draining": "warn", "connecting": "warn", "leaving": "warn",
    "silent": "bad", "down": "bad",
}  # fmt: skip


class Cell(Record):
    """One value of a row, and its text."""

    value: Any
    """A text or a number, by which rows are sorted; of one kind in each column."""
    text: str


class Row(Record):
    """A row; ``key`` is the same in each overview."""

    key: str
    cells: tuple[Cell, ...]
    tone: Tone = ""
    depth: int = 0
    """How deep it stands in a tree."""


class Column(Record):
    """A column. Numbers stand to the right and are sorted with the largest first."""

    title: str
    is_number: bool = False


class View(Record):
    """One view."""

    name: str
    columns: tuple[Column, ...]
    make: Callable[[History], list[Row]]
    sorted_by: int | None = 0
    """The column by which rows are sorted at first; None: they keep their order."""
    is_tree: bool = False


def text(value: object) -> Cell:
    """A cell with a text."""
    shown = escape(str(value))
    return Cell(shown.lower(), shown)


def count(value: float | None) -> Cell:
    """A cell with a number: ``12,345``."""
    return Cell(-1, NONE) if value is None else Cell(value, f"{value:,.0f}")


def rate(value: float | None, unit: str = "") -> Cell:
    """A cell with a number of things in a second, in at most four digits: ``0.4``, ``12``, ``1.2k``."""
    if value is None:
        return Cell(-1, NONE)
    shown = value
    for factor in ("", "k", "M", "G"):
        if shown < 1_000 or factor == "G":
            digits = 1 if 0 < shown < 10 else 0
            return Cell(value, f"{shown:.{digits}f}{factor}{unit}")
        shown /= 1_000
    raise AssertionError("the loop returns")


def span(seconds: float | None) -> Cell:
    """A cell with a time: ``0.4 s``, ``90 s``, ``5 min``, ``7 h``, ``12 d``."""
    if seconds is None:
        return Cell(-1, NONE)
    for limit, divisor, unit in ((10, 1, "s"), (120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return Cell(seconds, f"{seconds / divisor:.{1 if limit == 10 else 0}f} {unit}")
    return Cell(seconds, f"{seconds / 86_400:.0f} d")


def short_pid(pid: str) -> str:
    """Return the number of a pid with its node: ``12 at fleetlm@10.0.0.7``; any other text as it is."""
    node, _, rest = pid.removeprefix("<").removesuffix(">").partition(" ")
    number = rest.partition(" ")[2]
    return f"{number} at {node}" if number.isdecimal() else pid


def _number_of(pid: str) -> str:
    return short_pid(pid).partition(" at ")[0]


def _node_of(pid: str) -> str:
    return short_pid(pid).partition(" at ")[2]


# The nodes.


def state_of(history: History, name: str) -> str:
    """Return the state of a node: what it says itself, unless the node that was asked knows better."""
    part = history.parts[name]
    if "error" in part:
        seen = part.get("state", "down")
        return "silent" if seen == "up" else str(seen)
    asked = history.parts.get(history.asked, {})
    seen = next((row["state"] for row in asked.get("peers", ()) if row["name"] == name), "up")
    return str(seen if part["state"] == "up" else part["state"])


def _nodes(history: History) -> list[Row]:
    rows = []
    for name, part in history.parts.items():
        state = state_of(history, name)
        tone = _STATE_TONES.get(state, "")
        if "error" in part:
            rest = (Cell(-1, NONE),) * 10
            rows.append(Row(name, (text(name), text(state), *rest, text(part["error"])), tone))
            continue
        rates = [
            history.rate(name, "counters", what)
            for what in ("messages_received", "messages_sent", "bytes_received", "bytes_sent")
        ]
        if tone == "good" and part["lag_ms"] >= _LAG_WARNS_MS:
            tone = "warn"
        rows.append(
            Row(
                name,
                (
                    text(name), text(state), count(part["lag_ms"]), span(part["uptime_s"]),
                    count(part["processes"]["count"]), count(part["tables"].get("sessions", 0)),
                    count(part["tables"].get("open_calls", 0)), rate(rates[0]), rate(rates[1]),
                    rate(rates[2], "B"), rate(rates[3], "B"), text(part["version"]), text(_notes(part)),
                ),
                tone,
            )
        )  # fmt: skip
    return rows


def _notes(part: Part) -> str:
    notes = [] if not part["stalled"] else [f"{len(part['stalled'])} stalled: {part['stalled'][0]}"]
    if part["counters"].get("undelivered"):
        notes.append(f"{part['counters']['undelivered']:,} undelivered")
    if part["exposure_warning"]:
        notes.append("no cookie, and others may reach it")
    return "; ".join(notes)


# Sessions.


def _sessions(history: History) -> list[Row]:
    rows = []
    for name, part in history.parts.items():
        for peer in part.get("peers", ()):
            whole = ("peers", peer["name"])
            rows.append(
                Row(
                    f"{name} {peer['name']}",
                    (
                        text(name), text(peer["name"]), text(peer["state"]), text(peer["road"] or NONE),
                        span(peer["up_s"]), count(peer["ups"]), count(peer["lag_ms"]),
                        count(peer["outstanding"]), rate(history.rate(name, *whole, "messages_received")),
                        rate(history.rate(name, *whole, "messages_sent")),
                        rate(history.rate(name, *whole, "bytes_received"), "B"),
                        rate(history.rate(name, *whole, "bytes_sent"), "B"), text(peer["last_error"]),
                    ),
                    _STATE_TONES.get(peer["state"], ""),
                )
            )  # fmt: skip
    return rows


# Processes.


def _processes(history: History) -> list[Row]:
    rows = []
    for name, part in history.parts.items():
        for each in part.get("processes", {}).get("shown", ()):
            slow = each["serving_s"] >= _SERVING_WARNS_S and (each["serving"] or each["open_calls"])
            tone: Tone = "warn" if slow or each["mailbox"] >= _MAILBOX_WARNS else ""
            rows.append(
                Row(
                    each["pid"],
                    (
                        text(name), Cell(_sortable(each["pid"]), _number_of(each["pid"])),
                        text(each["name"]), text(each["runs"]), count(each["mailbox"]),
                        rate(history.rate(name, "processes", each["pid"])), count(each["open_calls"]),
                        text(each["state"]), text(each["serving"]),
                        span(each["serving_s"]) if each["serving_s"] else Cell(0, ""),
                        text(each["waits_for"]),
                    ),
                    tone,
                )
            )  # fmt: skip
    return rows


def _sortable(pid: str) -> float:
    number = _number_of(pid)
    return int(number[:15]) if number.isdecimal() else -1


# Trees.


def _trees(history: History) -> list[Row]:
    rows: list[Row] = []
    for name, part in history.parts.items():
        for nth, tree in enumerate(part.get("trees", ())):
            rows += _branches(name, tree, f"{name} {nth}", "", 0)
    return rows


def _branches(node: str, branch: Part, key: str, lead: str, depth: int) -> Iterator[Row]:
    """Yield the rows of a tree. The key is the place, since the pid changes at a restart."""
    label = branch["name"] or f"<{_number_of(branch['pid'])}>"
    down = branch["state"] in ("not running", "restarting", "queued")
    tone: Tone = "bad" if down else "warn" if branch["restarts"] or branch["restarted"] else ""
    cells = (
        text(node), text(f"{lead}{label}"), text(branch["runs"]), text(_number_of(branch["pid"]) or NONE),
        text(branch["state"]), text(branch["restart"]), count(branch["restarts"]),
        count(branch["restarted"]) if branch["children"] else Cell(-1, ""),
    )  # fmt: skip
    yield Row(key, cells, tone, depth)
    below = lead.replace("├─ ", "│  ").replace("└─ ", "   ")
    for nth, child in enumerate(branch["children"]):
        last = nth == len(branch["children"]) - 1
        place = f"{key}/{child['name']}/{nth}"
        yield from _branches(node, child, place, f"{below}{'└─ ' if last else '├─ '}", depth + 1)


# Keyed entities.


def _entities(history: History) -> list[Row]:
    """A row for each kind and each node that hosts it; and one for a kind that no node that answers hosts."""
    rows: list[Row] = []
    hosted: set[str] = set()
    seen: dict[str, Part] = {}
    for name in _asked_first(history):
        for kind, found in history.parts[name].get("kinds", {}).items():
            seen.setdefault(kind, found)
            if found["is_hosted"]:
                hosted.add(kind)
                rows.append(_host_row(history, name, kind, found))
    for kind, found in seen.items():
        if kind not in hosted:
            cells = (text(kind), text(NONE), Cell(-1, NONE), count(found["shards"]), *(Cell(-1, NONE),) * 6)
            rows.append(Row(kind, (*cells, text(_notes_of_kind(found))), "warn"))
    return rows


def _host_row(history: History, name: str, kind: str, found: Part) -> Row:
    quorum, notes = found["quorum"], _notes_of_kind(found)
    is_lost = quorum is not None and not quorum["holds"]
    is_bad = is_lost or found["differing"] or (found.get("store") or {}).get("fails")
    tone: Tone = "bad" if is_bad else "warn" if notes else ""
    return Row(
        f"{kind} {name}",
        (
            text(kind), text(name), count(found["owned"]), count(found["shards"]), count(found["moving"]),
            count(found["alive"]), rate(history.rate(name, "kinds", kind, "activated")),
            count(found["handed_over"]), count(found["taken"]), count(found["fenced"]), text(notes),
        ),
        tone,
    )  # fmt: skip


def _notes_of_kind(found: Part) -> str:
    """Say what is wrong with a kind, as one node sees it."""
    notes, quorum = [], found["quorum"]
    if found["differing"]:
        others = ", ".join(f"{node}: {shards:,}" for node, shards in found["differing"].items())
        notes.append(f"others cut it into another number of shards ({others})")
    if quorum is not None and not quorum["holds"]:
        notes.append(f"no quorum: {quorum['seen']} of {quorum['expected']} hosts are seen")
    elif quorum is not None and found["hosts"] > quorum["expected"]:
        notes.append(f"{found['hosts']} hosts, and its quorum expects {quorum['expected']}")
    store = found.get("store")
    if store is not None and store["fails"]:
        notes.append(f"its store fails, {store['failures']:,} operations up to now")
    if found["unowned"]:
        notes.append(f"{found['unowned']:,} shards have no owner")
    if found["is_hosted"] and found["alive"] >= found["live"] > 1:  # A singleton is a kind with one entity.
        notes.append("as many live as may")
    if found["is_hosted"] and found["kept_bytes"] >= found["max_kept_bytes"]:
        notes.append("its states take all bytes that they may")
    return "; ".join(notes)


# Groups and names, as the node that was asked knows them; the others may know more.


def _groups(history: History) -> list[Row]:
    seen: dict[str, dict[str, Any]] = {}
    for name in _asked_first(history):
        for group, found in history.parts[name].get("groups", {}).items():
            seen.setdefault(group, {})[name] = found
    rows = []
    for group, views in seen.items():
        first = next(iter(views.values()))
        nodes = sorted({_node_of(pid) for pid in first["members"]})
        differs = sum(found["count"] != first["count"] for found in views.values())
        note = f"{differs} of {len(views)} nodes see another number" if differs else ""
        shown = ", ".join(short_pid(pid) for pid in first["members"])
        cells = (text(group), count(first["count"]), count(len(nodes)), text(note), text(shown))
        rows.append(Row(group, cells, "warn" if differs else ""))
    return rows


def _names(history: History) -> list[Row]:
    seen: dict[str, dict[str, str]] = {}
    for name in _asked_first(history):
        for known, pid in history.parts[name].get("names", {}).items():
            seen.setdefault(known, {})[name] = pid
    rows = []
    for known, views in seen.items():
        pid = next(iter(views.values()))
        differs = sum(other != pid for other in views.values())
        note = f"{differs} of {len(views)} nodes see another holder" if differs else ""
        cells = (text(known), text(_node_of(pid)), text(_number_of(pid)), text(note))
        rows.append(Row(known, cells, "warn" if differs else ""))
    return rows


def _asked_first(history: History) -> Iterable[str]:
    return sorted(history.parts, key=lambda name: name != history.asked)


# Events.


def _events(history: History) -> list[Row]:
    found = [
        (event["wall_ms"], name, nth, event)
        for name, part in history.parts.items()
        for nth, event in enumerate(part.get("events", ()))
    ]
    found.sort(key=lambda each: each[:3], reverse=True)
    tones: dict[str, Tone] = {"NodeDown": "bad", "NodeDraining": "warn", "NodeUp": "good"}
    rows = []
    for at_ms, name, nth, event in found:
        age = max(0.0, (history.overview["wall_ms"] - at_ms) / 1000)
        cells = (
            Cell(-age, f"{span(age).text} ago"), text(name), text(event["kind"]), text(event["text"]),
        )  # fmt: skip
        rows.append(Row(f"{name} {at_ms} {nth}", cells, tones.get(event["kind"], "")))
    return rows


def _columns(titles: str, numbers: str) -> tuple[Column, ...]:
    right = {each.strip() for each in numbers.split(",")}
    return tuple(Column(each.strip(), each.strip() in right) for each in titles.split(","))


VIEWS: tuple[View, ...] = (
    View(
        "nodes",
        _columns(
            "node, state, lag ms, up, processes, sessions, calls, in/s, out/s, B in/s, B out/s, version,"
            "notes",
            "lag ms, up, processes, sessions, calls, in/s, out/s, B in/s, B out/s",
        ),
        _nodes,
    ),
    View(
        "processes",
        _columns(
            "node, pid, name, runs, mailbox, taken/s, calls, state, serving, for, waits for",
            "pid, mailbox, taken/s, calls, for",
        ),
        _processes,
        4,
    ),
    View(
        "trees",
        _columns("node, child, runs, pid, state, restart, restarts, of its own", "restarts, of its own"),
        _trees,
        None,
        True,
    ),
    View("groups", _columns("group, members, nodes, notes, who", "members, nodes"), _groups),
    View("names", _columns("name, node, pid, notes", ""), _names),
    View(
        "entities",
        _columns(
            "kind, node, owned, shards, moving, alive, made/s, given, taken, fenced, notes",
            "owned, shards, moving, alive, made/s, given, taken, fenced",
        ),
        _entities,
    ),
    View(
        "sessions",
        _columns(
            "node, peer, state, road, up, ups, lag ms, open, in/s, out/s, B in/s, B out/s, last error",
            "up, ups, lag ms, open, in/s, out/s, B in/s, B out/s",
        ),
        _sessions,
    ),
    View("events", _columns("when, seen by, event, text", "when"), _events),
)
"""All views in their order; the keys 1 to 8 choose one."""


def summary(history: History) -> str:
    """Return one line about the whole cluster."""
    states = [state_of(history, name) for name in history.parts]
    told = [part for part in history.parts.values() if "error" not in part]
    counts = [f"{len(states)} node{'s' if len(states) != 1 else ''}"]
    counts += [f"{states.count(each)} {each}" for each in _STATE_TONES if each in states]
    rates = [history.rate(name, "counters", "messages_received") for name in history.parts]
    known = [each for each in rates if each is not None]
    processes = sum(part["processes"]["count"] for part in told)
    line = f"{', '.join(counts)} · {processes:,} processes"
    if known:
        line += f" · {rate(sum(known)).text} messages/s"
    asked = history.parts.get(history.asked, {})
    if asked.get("dns", {}).get("verdict"):
        line += f" · DNS {escape(asked['dns']['verdict'])}"
    return line


def left_out(history: History, name: str) -> str:
    """Return how many rows the limits of an overview have left out of a view; empty if none."""
    what = {"sessions": "peers", "entities": "kinds"}.get(name, name)
    parts = [part.get("left_out", {}).get(what, 0) for part in history.parts.values()]
    missing = max(parts, default=0) if name in ("groups", "names", "entities") else sum(parts)
    return f"{missing:,} more are not shown" if missing else ""
