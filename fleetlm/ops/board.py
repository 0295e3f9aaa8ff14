"""What watchers are shown: the last overview in pieces of JSON, each of which knows when it changed.

The overview of a large cluster has megabytes, most of which stay the same from second to second. So each
node's part is divided into sections, each is written as JSON once for all watchers, and a watcher that has
seen number N gets the sections that changed after N. A watcher that is slow misses numbers and gets the
latest sections all the same: nothing is queued for it. Sections are written one by one, since writing one
large text would hold the interpreter's lock for that long, and the node's event loop would wait.

Other nodes of the cluster have made what is shown. Whatever is no JSON, or is too large, becomes an error of
that node's part.

The board also keeps the rates of the last minutes, so that a page that is opened now has charts at once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fleetlm.texts import SHORT

SECTIONS = ("peers", "processes", "trees", "groups", "names", "kinds", "events")
"""The parts of a node that are sent by themselves. All else changes in each second, and is the head."""
PEER = (
    *("name", "state", "road", "up_s", "ups", "last_error", "lag_ms"),
    *("messages_sent", "messages_received", "bytes_sent", "bytes_received", "outstanding"),
)
"""What is shown of a peer, as columns: their names would be most of the text."""
RATES = ("messages_sent", "messages_received", "bytes_sent", "lag_ms")
"""What is charted of a node: per second, but for the lag."""
MAX_SECTION_BYTES = 512 * 1024
"""A larger section is not shown. Nodes keep far below it by their own limits."""
HISTORY = 240
"""Samples that are kept: four minutes, one a second."""

Samples = dict[str, list[float | None]]
Counts = tuple[Any, float, list[float]]
"""The incarnation of a node, the milliseconds of its clock, and its totals behind the first of `RATES`."""


class Board:
    """The last overview, and the rates of the last minutes."""

    def __init__(self) -> None:
        self.number: int = 0
        """Grows with each update."""
        self._asked = ""
        self._wall_ms = 0
        self._names: tuple[int, list[str]] = (0, [])
        self._sections: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._stalled: tuple[int, str] = (0, "")
        self._counts: dict[str, Counts] = {}
        self._samples: Samples = {}
        self._history: deque[tuple[int, Samples]] = deque(maxlen=HISTORY)

    def update(self, overview: Mapping[str, Any]) -> None:
        """Take over an overview; see `Node.overview` for its form."""
        self.number += 1
        nodes = overview.get("nodes")
        nodes = nodes if isinstance(nodes, Mapping) else {}
        self._asked = str(overview.get("asked", ""))
        self._wall_ms = int(number(overview.get("wall_ms")) or 0)
        names = [str(name) for name in nodes]
        if names != self._names[1]:
            self._names = (self.number, names)
            self._sections = {name: self._sections[name] for name in names if name in self._sections}
        for name, facts in nodes.items():
            self._set(str(name), divide(facts))
        self._sample({str(name): facts for name, facts in nodes.items() if isinstance(facts, Mapping)})
        if self._stalled[1]:
            self._stalled = (self.number, "")

    def stall(self, why: str, wall_ms: int) -> None:
        """Say that there is no newer overview, and why."""
        self.number += 1
        self._wall_ms = wall_ms
        self._stalled = (self.number, why)

    def changes(self, since: int) -> list[bytes]:
        """Return what changed after a number, as the pieces of one server-sent event.

        Args:
            since: the number that the watcher has seen; 0: none, so that everything is returned.
        """
        head: dict[str, Any] = {"number": self.number, "asked": self._asked, "wall_ms": self._wall_ms}
        if self._names[0] > since:
            head["nodes"] = self._names[1]
        if self._stalled[0] > since:
            head["stalled"] = self._stalled[1]
        if not self._stalled[1]:
            head["rates"] = self._samples
        pieces = [b"event: cluster\ndata: " + dumps(head)[:-1] + b',"set":{']
        comma = b""
        for name, sections in self._sections.items():
            changed = [(key, text) for key, (at, text) in sections.items() if at > since]
            if changed:
                fields = b",".join(b'"%s":%s' % (key.encode(), text) for key, text in changed)
                pieces.append(b"%s%s:{%s}" % (comma, dumps(name), fields))
                comma = b","
        pieces.append(b"}}\n\n")
        return pieces

    def history(self) -> list[bytes]:
        """Return the samples of the last minutes, oldest first, as the pieces of one server-sent event."""
        head = {"columns": RATES, "wall_ms": [at for at, _ in self._history]}
        pieces = [b"event: history\ndata: " + dumps(head)[:-1] + b',"nodes":{']
        comma = b""
        for name in {name: None for _, samples in self._history for name in samples}:
            rows = [samples.get(name) for _, samples in self._history]
            pieces.append(b"%s%s:%s" % (comma, dumps(name), dumps(rows)))
            comma = b","
        pieces.append(b"}}\n\n")
        return pieces

    def _set(self, name: str, sections: Mapping[str, bytes]) -> None:
        known = self._sections.setdefault(name, {})
        for key, text in sections.items():
            if key not in known or known[key][1] != text:
                known[key] = (self.number, text)

    def _sample(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Work out the rates since the last overview. A node that did not answer, or is new, has none."""
        counts: dict[str, Counts] = {}
        self._samples = {}
        for name, facts in nodes.items():
            at, totals = number(facts.get("wall_ms")), count(facts)
            if at is None or totals is None:
                continue
            counts[name] = now = (facts.get("incarnation"), at, totals)
            rates = rates_between(self._counts.get(name), now)
            self._samples[name] = [*rates, number(facts.get("lag_ms"))]
        self._counts = counts
        self._history.append((self._wall_ms, self._samples))


def divide(facts: Any) -> dict[str, bytes]:
    """Write the part of one node as JSON, in sections; what cannot be written is an error in the head."""
    if not isinstance(facts, Mapping):
        return {"head": dumps({"error": f"its answer is {SHORT.repr(facts)}"})}
    texts: dict[str, bytes] = {}
    errors = [str(facts["error"])] if facts.get("error") else []
    values = {key: facts[key] for key in SECTIONS if key in facts}
    values["head"] = {str(key): value for key, value in facts.items() if key not in SECTIONS}
    for key, value in values.items():
        try:
            text = dumps(list(columns(value)) if key == "peers" else value)
        except (TypeError, ValueError, RecursionError) as error:
            errors.append(f"its {key} cannot be shown: {error}")
            continue
        if len(text) > MAX_SECTION_BYTES:
            errors.append(f"its {key} are too large to be shown: {len(text):,} bytes")
            continue
        texts[key] = text
    if "head" not in texts:
        texts["head"] = dumps({"error": "; ".join(errors)})
    elif errors:
        texts["head"] = dumps({**values["head"], "error": "; ".join(errors)})
    return texts


def columns(peers: Any) -> Iterator[list[Any]]:
    """Return a row of `PEER` for each peer."""
    for peer in peers if isinstance(peers, Sequence) else ():
        if isinstance(peer, Mapping):
            yield [peer.get(key) for key in PEER]


def count(facts: Mapping[str, Any]) -> list[float] | None:
    """Return the totals behind the first three of `RATES`; None where a node gave no numbers."""
    counters = facts.get("counters")
    if not isinstance(counters, Mapping):
        return None
    totals = [number(counters.get(key)) for key in RATES[:-1]]
    return None if None in totals else [each for each in totals if each is not None]


def rates_between(before: Counts | None, now: Counts) -> list[float | None]:
    """Return what grew, per second; None where it was not counted before by the same incarnation."""
    if before is None or before[0] != now[0] or now[1] <= before[1]:
        return [None] * len(now[2])
    seconds = (now[1] - before[1]) / 1000
    return [round(max(0.0, b - a) / seconds, 1) for a, b in zip(before[2], now[2], strict=True)]


def number(value: object) -> float | None:
    """Return a number; None for what is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def dumps(value: Any) -> bytes:
    """Write a value as JSON on one line. Raises: TypeError, ValueError, RecursionError: it is none."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
