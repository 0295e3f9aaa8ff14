"""Inputs to begin with, one function for each target: what an honest peer, file or server would send."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import random
import uuid
from collections.abc import Callable
from typing import Any

import dns.flags
import dns.message
import dns.rrset

import fleetlm
from fleetlm.ids import Pid, Ref
from fleetlm.wire import frames, operations
from fleetlm.wire.carriers import pack_carrier
from fleetlm.wire.codec import Codec
from fleetlm.wire.frames import IAm, Refusal, Refused
from tests.fuzz.inputs import block
from tests.support.kernel_fakes import hello_frame, hello_of

HERE, THERE = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"
CODEC = Codec()
_OURS, _THEIRS = Pid(HERE, 1, 1), Pid(THERE, 2, 9)
_UTC = dt.UTC


def _frames() -> list[bytes]:
    hello = frames.pack_hello(hello_of(2, aliases=("fd00::3",)))
    return [
        hello,
        hello_frame(hello_of(2), 77),
        frames.pack_ready(frames.Ready(5, hello_of(2))),
        frames.pack_goodbye("shutdown"),
        frames.probe(),
        frames.refused(Refused(Refusal.CONNECTED, "why", THERE)),
        frames.iam(IAm(THERE, "", 3)),
    ]


def _values() -> list[Any]:
    return [
        {(1, 2): {3, 4}, "x": dt.datetime(2020, 1, 1, 12, tzinfo=_UTC)},
        [uuid.UUID(int=5), decimal.Decimal("1.5"), 1 << 80, frozenset({1}), ("a",)],
        [dt.date(2020, 1, 1), dt.time(1, 2, 3, tzinfo=_UTC), dt.timedelta(1, 2, 3)],
        [_OURS, Ref(HERE, 1, 7), fleetlm.Address("echo", THERE), bytearray(b"ab"), b"", None, True, 0.5],
        fleetlm.Crash("a", "b", "c"),
        [[[[[[{"a": [{}]}]]]]]],
    ]


def _signals() -> list[Any]:
    return [
        ["link", _THEIRS, 1, 5],
        ["unlink", _THEIRS, 1, [5]],
        ["exit", _THEIRS, 1, "normal"],
        ["exit2", _THEIRS, 1, "kill"],
        ["monitor", Ref(THERE, 2, 1), "echo"],
        ["monitor", Ref(THERE, 2, 2), 3],
        ["demonitor", Ref(THERE, 2, 1), None],
        ["down", Ref(HERE, 1, 7), "normal"],
    ]


def _facts() -> list[Any]:
    return [
        ["join", {"g": [1, 2], "mine": [4]}],
        ["leave", {"g": [1]}],
        ["exit", 2],
        ["has", [["n", 1, b"\xc0", 5], ["mine", 3, b"\xc0", 9]]],
        ["gone", "n", "unregistered"],
        ["outdone", "fleetlm@10.0.0.3", 3, ["mine", 3, b"\xc0", 1]],
        ["cleared", "mine", "exited"],
        ["f", (), None, _THEIRS, 1, None, False],
    ]


def _rows() -> list[Any]:
    return [
        ["put", "t", [["a", b"\x01"], ["b", CODEC.pack_value({"x": [1]})]]],
        ["put", "t", [["a", b"\xc0"]]],
        ["put", "mine", [["key", b"\x02"]]],
        ["drop", "t", ["a"]],
        ["drop", "t", ["b"]],
    ]


def _members() -> list[Any]:
    return [
        ["metas", [["g", 1, b"\x01"], ["mine", 2, None]]],
        ["gauges", [["g", 1, {"free": 1.5, "busy": 2}]]],
        ["members", [["g", 2, b"\xa1x"]], [["g", 2, {"free": 0}, 1_500]]],
        ["loads", {HERE: [1, {1: 3, 2: 1}], "fleetlm@10.0.0.3": [3, {7: 1}]}],
        ["loads", {}],
        ["metas", [["g", 1, None]]],
    ]


def _shards() -> list[Any]:
    return [
        ["hosts", [["mine", 9, 16, [[1, 6, 5], [7, 1, 1]]], ["other", 10, 4, []]]],
        ["claim", "mine", [[2, 9, 4], [8, 1, 1]]],
        ["passed", "mine", [[7, 2, HERE], [8, 5, "fleetlm@10.0.0.3"]]],
        ["dropped", "mine", [2]],
        ["claim", "mine", [[3, (1 << 63) - 1, 1]]],
        ["unhost", "other"],
        ["unhost", "mine"],
    ]


def _messages() -> list[Any]:
    invoke = ["echo", [1], {}]
    carrier = pack_carrier({"traceparent": "00-1-2-01", "request-id": 7})
    return [
        operations.one_way("echo", {"a": 1}),
        operations.heavy("echo", "x", 3),
        operations.cast("echo", invoke, 1),
        operations.call("echo", 1, 1, 5_000),
        operations.handle("echo", invoke, 2, 5_000),
        operations.stream("echo", 1, 3, 0, 64, 0, 0, 1),
        operations.yield_("echo", invoke, 4, 0, 64, 0, 0, 1),
        operations.cast("echo", [*invoke, carrier], 1),
        operations.handle("echo", [*invoke, b"\xc1"], 12, 5_000),
        operations.handle("echo", ["", [1], {}, carrier], 13, 5_000),
        operations.yield_("echo", ["", [1], {}, carrier], 14, 0, 64, 0, 0, 1),
        operations.reply(5, 1),
        operations.item(5, 1),
        operations.failure(5, 2, ["a", "b"]),
        operations.failure(5, 3, ["a", "b", "c", "NodeLost", "1", "x"]),
        operations.cancel(1),
        operations.more(3, 5),
        operations.taken("echo", 1),
        operations.mark(1 << 63, 1),
        operations.credit(1 << 63),
        operations.tick(3),
        operations.peers(["fleetlm@10.0.0.3", "x@fd00::1"]),
        operations.drain(1, 1, 5_000, "stop"),
        operations.heard(1, 1),
        operations.request("ping", None, 6),
        operations.request("register", ["x", _OURS], 7),
        *(operations.signal(each) for each in _signals()),
        *(operations.table("rows", each) for each in _rows()),
        *(operations.table("members", each) for each in _members()),
        *(operations.table("shards", each) for each in _shards()),
        *(operations.table("groups" if each[0] in ("join", "leave") else "names", each) for each in _facts()),
    ]


def _carriers() -> list[bytes]:
    values: list[dict[str, Any]] = [
        {},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"},
        {"request-id": b"\x00\xff", "tenant": -1, "n": (1 << 64) - 1},
        {f"name {number}": number for number in range(30)},
    ]
    return [*map(pack_carrier, values), *(CODEC.pack_value(each) for each in values), b"\xde\x00\x01"]


def _codec_seeds() -> list[bytes]:
    return [CODEC.pack_value(value) for value in (*_values(), *_messages())]


def _batches() -> list[bytes]:
    packed = [CODEC.pack_value(message) for message in _messages()]
    return [b"\0" + block(each) for each in packed] + [
        b"".join(b"\2" + b"".join(map(block, packed[at : at + 3])) for at in range(0, len(packed) - 3, 3))
    ]


def _courses() -> list[bytes]:
    rng = random.Random(1)
    return [rng.randbytes(size) for size in (40, 200, 400, 400)]


def _settings() -> list[bytes]:
    from tests.fuzz.text_targets import VARIABLES

    texts = ["10.0.0.7", "4370-4379", "text", "3", "a.test,b.test", "[fd00::7]:53", "on", "15000", "x" * 32]
    return [
        bytes((at,)) + bytes((len(text),)) + text.encode() for at in range(len(VARIABLES)) for text in texts
    ]


def _answers() -> list[bytes]:
    found = []
    for number, (kind, texts) in enumerate(
        [("A", ["10.0.0.1", "10.0.0.2"]), ("AAAA", ["fd00::1"]), ("SRV", ["0 0 4370 a.fleet.test."])]
    ):
        for changes in range(4):
            query = dns.message.make_query("fleet.test.", kind)
            response = dns.message.make_response(query)
            name = query.question[0].name
            if changes == 1:
                alias = dns.rrset.from_text(name, 5, "IN", "CNAME", "x.test.")
                response.answer.append(alias)
                name = alias[0].target
            if changes < 3:
                response.answer.append(dns.rrset.from_text(name, 5, "IN", kind, *texts))
            if kind == "SRV":
                response.additional.append(dns.rrset.from_text("a.fleet.test.", 5, "IN", "A", "10.0.0.1"))
            if changes == 2:
                response.flags |= dns.flags.TC
            found.append(bytes((number,)) + response.to_wire())
    return found


def _parts() -> list[bytes]:
    counts = dict.fromkeys(("messages_sent", "messages_received", "bytes_sent", "bytes_received"), 5)
    process = {
        "pid": "<a 1 2>",
        "name": "a",
        "runs": "Model",
        "mailbox": 3,
        "state": "running",
        "serving_s": 1.5,
    }
    peer = {"name": "a@10.0.0.1", "road": None, **counts}
    branch = {"pid": "", "name": "b", "state": "restarting", "restarts": 2, "children": []}
    part = {
        "incarnation": 1 << 63, "version": "0.1.0", "pid": 7, "uptime_s": 1.5, "state": "up", "cookie": True,
        "dns": {"query": "fleet.test", "age_s": None}, "peers": [peer],
        "processes": {"count": 1, "shown": [process]}, "trees": [{**branch, "children": [branch]}],
        "groups": {"g": {"members": ["<a 1 2>"], "count": 1}}, "names": {"n": "<a 1 2>"}, "counters": counts,
        "events": [{"wall_ms": 1, "kind": "NodeUp", "text": "\x1b[2J"}], "left_out": {"names": 1},
    }  # fmt: skip
    return [CODEC.pack_value(part), CODEC.pack_value({"incarnation": 1, "trees": [[]], "peers": [5]})]


def _requests() -> list[bytes]:
    asked = [
        {"op": "eval", "id": 1, "source": "1 + 1", "width": 80},
        {"op": "eval", "id": 2, "source": "await x\nfor a in b:\n  print(a)"},
        {"op": "complete", "id": 3, "text": "node.na"},
        {"op": "facts", "id": 4},
        {"op": "overview", "id": 5, "timeout": 1.0},
        {"op": "cancel"},
    ]
    packed = [len(body).to_bytes(4, "big") + body for body in (json.dumps(each).encode() for each in asked)]
    return [*packed, b"".join(packed)]


def _votes() -> list[Any]:
    """What a member says to another one; see `vote_targets`."""
    me, owner = ["fleetlm@10.0.0.2", 2, 9], ["fleetlm@10.0.0.1", 1, 1]
    return [
        ["beat", *me, 1, [[3, 6]], []], ["grant", *me, 2, [[3, 7, 0, None], [2, 9, 0, None]]], 11_000,
        ["beat", *me, 3, [[3, 7]], [2]], ["grant", *me, 4, [[0, 6, 5, owner]]], ["answer", []],
        ["answer", [[0, 9], [1, 4]]], ["answer", None], ["beat", "fleetlm@10.0.0.3", 3, 7, 1 << 40, [], []],
        ["beat", *me, 5, [[0, 6], [9, 1]], []], 60_000, ["grant", *me, 6, [[1, 8, 0, None]]],
    ]  # fmt: skip


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "frames": _frames,
    "codec": _codec_seeds,
    "operations": lambda: [CODEC.pack_value(message[1:]) for message in _messages()],
    "carriers": _carriers,
    "chunks": lambda: [b"\0\1\x14" + b"x" * 20, b"\1\2\x1e" + b"y" * 30, *_courses()],
    "messages": _batches,
    "tables": lambda: [CODEC.pack_value(facts) for facts in (_facts(), *_facts())],
    "rows": lambda: [CODEC.pack_value(facts) for facts in (_rows(), *([one] for one in _rows()))],
    "members": lambda: [CODEC.pack_value(facts) for facts in (_members(), *([one] for one in _members()))],
    "votes": lambda: [CODEC.pack_value(each) for each in (_votes(), *([one] for one in _votes()))],
    "shards": lambda: [CODEC.pack_value(facts) for facts in (_shards(), *([one] for one in _shards()))],
    "links": lambda: [CODEC.pack_value(signals) for signals in (_signals(), *([one] for one in _signals()))],
    "overview": _parts,
    "kernel": _courses,
    "pair": _courses,
    "names": lambda: [b"fleetlm@10.0.0.7", b"a@[fd00::7]:4373", b"::ffff:10.0.0.1", b"fe80::1%eth0"],
    "settings": _settings,
    "files": lambda: [
        b"nameserver 10.0.0.1\nsearch a.test b.test\noptions ndots:2 timeout:1 rotate\n",
        b"127.0.0.1 localhost fleet\nfd00::1 fleet.test a # x\n",
        b"hosts: files mdns4 [NOTFOUND=return] dns\n",
    ],
    "dns": _answers,
    "console": _requests,
}
"""Target → a function that makes its seeds."""
