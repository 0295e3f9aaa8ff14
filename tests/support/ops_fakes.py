"""What stands for a node where the ops listener is tested: it answers at once, or as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetlm.ops.questions import NoAnswer
from fleetlm.runtime.readiness import Readiness

NAME = "fleetlm@10.0.0.1"
BEGAN_MS = 1_750_000_000_000


def node_name(number: int) -> str:
    return f"fleetlm@10.0.{number // 256}.{number % 256}"


def peer(name: str, state: str = "up", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "state": state, "road": "zmq" if state == "up" else None,
        "up_s": 3_725.0 if state in ("up", "busy", "draining") else None,
        "ups": 1, "last_error": "", "lag_ms": 1,
        "messages_sent": 100, "messages_received": 90, "bytes_sent": 10_000, "bytes_received": 9_000,
        "outstanding": 0, **more,
    }  # fmt: skip


def process(name: str, at: str, number: int, mailbox: int = 0, serving: str = "") -> dict[str, Any]:
    return {
        "pid": f"<{at}.{number}>", "name": name, "runs": "app.workers:Embedder",
        "mailbox": mailbox, "taken": 1_000, "open_calls": 0, "state": "waiting",
        "serving": serving, "serving_s": 0.8 if serving else 0.0, "waits_for": "", "local": False,
    }  # fmt: skip


def branch(name: str, at: str, number: int, *children: dict[str, Any], restarts: int = 0) -> dict[str, Any]:
    return {
        "pid": f"<{at}.{number}>", "name": name, "runs": "app.workers:Embedder", "state": "running",
        "restart": "permanent", "restarts": restarts, "restarted": 0, "local": False, "children": [*children],
    }  # fmt: skip


def kind(owned: int = 86, **more: Any) -> dict[str, Any]:
    return {
        "shards": 256, "unowned": 0, "hosts": 3, "differing": {}, "is_hosted": True,
        "runs": "app.chat:Session", "owned": owned, "moving": 0, "alive": 1_204, "live": 100_000,
        "kept_bytes": 50_000, "max_kept_bytes": 268_435_456, "activated": 2_000, "fenced": 0,
        "handed_over": 3, "taken": 7, "stayed": 0, "quorum": None, **more,
    }  # fmt: skip


def part(name: str, peers: list[dict[str, Any]], tick: int = 0, **more: Any) -> dict[str, Any]:
    """What a node tells of itself; its counters grow with ``tick``, in seconds."""
    trees = [branch("workers", name, 1, branch("embedder", name, 2), branch("ranker", name, 3, restarts=2))]
    return {
        "name": name, "incarnation": 7_532_804_316_914_123_403, "version": "0.1.0", "pid": 4_711,
        "host": name.partition("@")[2], "uptime_s": 3_725.0 + tick, "wall_ms": BEGAN_MS + 1_000 * tick,
        "state": "up", "lag_ms": 1, "cookie": True, "exposure_warning": None,
        "dns": {"query": "workers.internal", "verdict": "addresses: 3 addresses", "age_s": 1.0, "polls": 12},
        "peers": peers,
        "processes": {"count": 3, "shown": [process("ranker", name, 3, 12, "rank"), process("", name, 4)]},
        "trees": trees,
        "groups": {"rankers": {"members": [f"<{name}.3>"], "count": 1}},
        "names": {"leader": f"<{name}.4>"},
        "kinds": {"sessions": kind()},
        "counters": {
            "messages_sent": 100 * tick, "messages_received": 90 * tick, "undelivered": 0, "unreadable": 0,
            "bytes_sent": 10_000 * tick, "bytes_received": 9_000 * tick, "polls": 12,
        },
        "tables": {
            "processes": 3, "links": 2, "monitors": 1, "names": 1, "groups": 1, "sessions": len(peers),
            "peers": len(peers), "open_calls": 4, "served_calls": 0,
        },
        "events": [{"wall_ms": BEGAN_MS, "kind": "NodeUp", "text": each["name"]} for each in peers[:5]],
        "stalled": [], "left_out": {}, **more,
    }  # fmt: skip


def overview_of(count: int, tick: int = 0) -> dict[str, Any]:
    """What the first of ``count`` nodes knows, all of which are connected with each other."""
    names = [node_name(number) for number in range(1, count + 1)]
    nodes = {name: part(name, [peer(each) for each in names if each != name], tick) for name in names}
    return {"asked": names[0], "wall_ms": BEGAN_MS + 1_000 * tick, "nodes": nodes}


class FakeQuestions:
    """Implements `Questions`. ``why`` says why there is no answer; empty: there is one."""

    def __init__(self, count: int = 3) -> None:
        self.name = NAME
        self.count = count
        self.why = ""
        self.asked = 0
        self.reasons: tuple[str, ...] = ()
        self.overview_now: Mapping[str, Any] | None = None
        self.is_closed = False

    def _check(self) -> None:
        self.asked += 1
        if self.why:
            raise NoAnswer(self.why)

    async def readiness(self) -> Readiness:
        self._check()
        return Readiness(self.name, not self.reasons, self.count - 1, self.reasons)

    async def overview(self) -> Mapping[str, Any]:
        self._check()
        return overview_of(self.count, self.asked) if self.overview_now is None else self.overview_now

    async def metrics(self) -> bytes:
        self._check()
        return b"# HELP fleetlm_up Whether it is up.\n# TYPE fleetlm_up gauge\nfleetlm_up 1\n"

    def close(self) -> None:
        self.is_closed = True
