"""Overviews for the tests of `fleetlm top`."""

from __future__ import annotations

from typing import Any

A, B, C = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2", "fleetlm@10.0.0.3"


def pid(number: int, node: str = A) -> str:
    return f"<{node} 5f {number}>"


def process(number: int, node: str = A, **changes: Any) -> dict[str, Any]:
    return {
        "pid": pid(number, node), "name": f"p{number}", "runs": "Model", "mailbox": 0, "taken": 10,
        "open_calls": 0, "state": "waiting", "serving": "", "serving_s": 0.0, "waits_for": "", "local": False,
    } | changes  # fmt: skip


def peer(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "state": "up", "road": "zmq", "up_s": 60.0, "ups": 1, "last_error": "", "lag_ms": 0,
        "messages_sent": 0, "messages_received": 0, "bytes_sent": 0, "bytes_received": 0, "outstanding": 0,
    } | changes  # fmt: skip


def branch(name: str, *children: dict[str, Any], number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "pid": pid(number), "name": name, "runs": "Worker", "state": "waiting", "restart": "permanent",
        "restarts": 0, "restarted": 0, "local": False, "children": list(children),
    } | changes  # fmt: skip


def part(name: str = A, wall_ms: int = 10_000, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "incarnation": 5, "version": "0.1.0", "pid": 7, "host": "10.0.0.1", "uptime_s": 300.0,
        "wall_ms": wall_ms, "state": "up", "lag_ms": 1, "cookie": True, "exposure_warning": None,
        "dns": {"query": "fleet", "verdict": "addresses: 3", "age_s": 1.0, "polls": 9}, "peers": [],
        "processes": {"count": 0, "shown": []}, "trees": [], "groups": {}, "names": {},
        "kinds": {},
        "counters": {"messages_sent": 0, "messages_received": 0, "bytes_sent": 0, "bytes_received": 0},
        "tables": {"sessions": 2, "open_calls": 3}, "stalled": [], "events": [], "left_out": {},
    } | changes  # fmt: skip


def kind(owned: int = 128, **changes: Any) -> dict[str, Any]:
    return {
        "shards": 256, "unowned": 0, "hosts": 2, "differing": {}, "is_hosted": True, "runs": "Session",
        "owned": owned, "moving": 0, "alive": 10, "live": 1_000, "kept_bytes": 0, "max_kept_bytes": 1_000,
        "activated": 30, "fenced": 0, "handed_over": 0, "taken": 0, "stayed": 0, "quorum": None,
    } | changes  # fmt: skip


def overview(*parts: dict[str, Any], wall_ms: int = 10_000) -> dict[str, Any]:
    return {"asked": parts[0]["name"], "wall_ms": wall_ms, "nodes": {each["name"]: each for each in parts}}


def gone(name: str, error: str = "it is not connected", state: str = "down") -> dict[str, Any]:
    return {"name": name, "error": error, "state": state}
