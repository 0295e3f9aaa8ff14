"""Targets for what a node keeps about others: the replicated tables, links and monitors, and the kernel."""

from __future__ import annotations

import contextlib
import json
from functools import partial

from fleetlm.core.dns_answers import Outcome
from fleetlm.core.effects import Dial, Down, Effect, HangUp, Reply, Report, Send, Up
from fleetlm.core.group_table import GroupTable
from fleetlm.core.links import Links
from fleetlm.core.name_table import NameTable
from fleetlm.core.overview_shape import cut, read_part
from fleetlm.ids import Pid, Ref
from fleetlm.processes.remote_spawn import asked_to_spawn
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.codec import BadData
from fleetlm.wire.frames import Hello, IAm, Refusal, Refused
from fleetlm.wire.operations import NONSENSE
from tests.fuzz.inputs import Inputs
from tests.fuzz.wire_targets import CODEC, in_time
from tests.support.kernel_fakes import (
    SETTINGS,
    T,
    addresses,
    goodbye_frame,
    hello_frame,
    hello_of,
    ip,
    kernel,
    name,
    outcome,
    ready_frame,
)

HERE, THERE = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"
FEW = Settings(max_memberships=50, max_cluster_names=50)
OWN = Pid(HERE, 1, 1)
LIVING = (1, 2, 3)
MAX_PART_CHARS = 32 * 1024 * 1024
"""Longer ones do not fit into a frame of the remote shell."""


class _Peer:
    """What `asked_to_spawn` needs of a session."""

    name, incarnation = THERE, 2


def fuzz_tables(data: bytes) -> None:
    """Facts of a peer: they are refused or entered, this node's rows stay, and the end takes them all."""
    try:
        facts = CODEC.unpack(data)
    except BadData:
        return
    groups = GroupTable(HERE, 1, FEW.max_memberships, lambda _: True)
    groups.joined("mine", [OWN])
    names = NameTable(HERE, 1, FEW, CODEC.unpack, connected=lambda node: node == THERE)
    names.claimed("mine", 1, b"\xc0", 5)
    for fact in facts if isinstance(facts, list) else [facts]:
        for table in (groups, names):
            with contextlib.suppress(*NONSENSE):
                in_time(table.told, THERE, 2, fact)
        with contextlib.suppress(*NONSENSE):
            in_time(asked_to_spawn, _Peer, fact)
        in_time(names.pulsed)
        assert names.counts()[1] <= FEW.max_cluster_names
        assert sum(len(groups.members(each)) for each in groups.groups()) <= FEW.max_memberships + 1
    for _ in groups.node_down(THERE):
        pass
    for _ in names.node_down(THERE):
        pass
    assert (groups.groups(), list(groups.members("mine"))) == (["mine"], [OWN])
    own, others = names.counts()
    assert (own <= 1, others) == (True, 0)  # An older claim of the peer takes the name; see `older`.
    holder = names.holder("mine")
    assert (holder is None) == (own == 0)
    assert holder is None or holder.pid == OWN


def fuzz_overview(data: bytes) -> None:
    """What a peer tells of itself is refused, or becomes a part that every reader of JSON can hold."""
    try:
        told = CODEC.unpack(data)
    except BadData:
        return
    try:
        part = in_time(read_part, told, THERE)
    except ValueError:
        return
    assert len(json.dumps(part, allow_nan=False)) < MAX_PART_CHARS
    assert json.dumps(part, ensure_ascii=False).isprintable()
    assert read_part(part, THERE) == part
    in_time(partial(cut, for_peer=True), part, 100)


def fuzz_links(data: bytes) -> None:
    """Signals of a peer: they are refused or taken, and the end of the connection takes all of its ends."""
    try:
        signals = CODEC.unpack(data)
    except BadData:
        return
    links = Links(HERE, 1, LIVING.__contains__, {THERE: 2}.get)
    links.linked(1, Pid(THERE, 2, 9))
    links.monitored(2, Ref(HERE, 1, 7), Pid(THERE, 2, 9), None)
    links.monitored(2, Ref(HERE, 1, 8), Pid(HERE, 1, 3), None)
    before = links.counts()
    for signal in signals if isinstance(signals, list) else [signals]:
        if isinstance(signal, list):
            with contextlib.suppress(*NONSENSE):
                in_time(links.told, THERE, 2, signal, {"echo": 1}.get)
    for _ in links.node_down(THERE):
        pass
    assert links.counts() <= before
    assert links.holds_monitor(Ref(HERE, 1, 8))
    for number in LIVING:
        for _ in links.exited(number, "normal"):
            pass
    assert links.counts() == (0, 0)


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────

NODES = (2, 3, 4, 5, 6, 1)
"""Numbers of nodes that a fuzzed HELLO may be of. 1 is this node."""
SOURCES = (b"a", b"b", b"c", b"d")


class Rig:
    """A kernel with a transport that notes what is open, and checks what must always hold.

    Args:
        data: where the course of events is taken from.
    """

    def __init__(self, data: bytes, settings: Settings) -> None:
        self.source = Inputs(data)
        self.settings = settings
        self.kernel = kernel(1, settings)
        self.now = T
        self.open: dict[int, str] = {}
        """Channels that were dialled and not closed → the address."""
        self.epochs = 0
        self.up: dict[str, int] = {}
        for number, source in enumerate(SOURCES):
            self.kernel.source_met(source, ip(20 + number % 2))

    def perform(self, effects: list[Effect]) -> None:
        """Note what the kernel orders."""
        for effect in effects:
            match effect:
                case Dial(channel, to, _):
                    assert channel not in self.open
                    self.open[channel] = to
                case HangUp(channel):
                    self.open.pop(channel, None)
                case Up(node, incarnation):
                    assert node not in self.up
                    self.up[node] = incarnation
                case Down(node, incarnation):
                    assert self.up.pop(node) == incarnation
                case Report(level, text):
                    assert level in ("info", "warning")
                    assert text.isprintable()
                    assert len(text) < 4 * frames.MAX_TEXT_CHARS
                case Send() | Reply():
                    pass
        assert len(self.kernel.topology.peers) <= self.settings.max_peers + 1
        assert len(self.open) <= 4 * self.settings.max_peers + 64
        deadline = self.kernel.deadline()
        assert deadline is None or deadline >= 0

    def frame(self) -> bytes:
        """A handshake frame: of sensible fields, or any bytes."""
        source = self.source
        epoch, seq = source.number(4), source.number(4)
        match source.number(6):
            case 0 | 1:
                return hello_frame(self.hello(), epoch, seq if seq == 3 else 0)
            case 2 | 3:
                return ready_frame(epoch, seq, source.number(8), self.hello())
            case 4:
                return goodbye_frame(epoch, seq, source.choice(("bye", "protocol error: x", "\x1b[2J")))
        return source.choice((b"", frames.header(source.number(10), epoch, seq))) + source.block()

    def hello(self) -> Hello:
        """An introduction in some node's name."""
        source = self.source
        return hello_of(
            source.choice(NODES),
            source.number(3) * 100,
            to=source.choice((1, 1, 1, 2)),
            is_check=source.number(4) == 0,
            aliases=source.choice(((), (), (ip(1),), (ip(3), ip(4)), ("127.0.0.1",))),
            cluster=source.choice(("", "", "", "other")),
        )

    def answer(self) -> bytes:
        """What comes back over a channel that this node dialled."""
        source = self.source
        node = name(source.choice(NODES))
        match source.number(3):
            case 0:
                refusal = source.choice(list(Refusal))
                return frames.refused(Refused(refusal, "why", node))
            case 1:
                return frames.iam(IAm(node, "", 0))
        return source.block()

    def step(self) -> None:
        """Let one thing happen."""
        source, node = self.source, self.kernel
        self.now += source.choice((0.0, 0.0, 0.1, 1.0, 10.0))
        channel = source.choice(sorted(self.open)) if self.open else 0
        match source.number(16):
            case 0 | 1 | 2 | 3 | 4:
                effects = node.control_frame(self.now, source.choice(SOURCES), self.frame())
            case 5 | 6:
                effects = node.opened(self.now, channel)
            case 7:
                effects = node.answered(self.now, channel, self.answer())
            case 8:
                self.open.pop(channel, None)
                effects = node.channel_lost(self.now, channel, "refused", is_foreign=bool(source.number(2)))
            case 9:
                effects = node.tick(self.now)
            case 10:
                effects = node.pulse(self.now)
            case 11:
                effects = node.heard_of(self.now, [name(source.choice(NODES))], name(2))
            case 12:
                numbers = [source.choice(NODES) for _ in range(source.number(4))]
                effects = node.looked_up(self.now, addresses(*numbers) if numbers else outcome(Outcome.EMPTY))
            case 13:
                who = source.choice(SOURCES)
                effects = node.source_lost(self.now, who, "closed")
                node.source_met(who, ip(20))
            case 14:
                effects = node.disconnected(self.now, name(source.choice(NODES)), "asked")
            case _:
                effects = node.stranger_refused(self.now, ip(source.choice(NODES)), "closed early")
        self.perform(effects)


def fuzz_kernel(data: bytes) -> None:
    """Any course of events: nothing is raised, tables stay bounded, ups and downs alternate."""
    rig = Rig(data, SETTINGS.replace(max_peers=5))
    for _ in range(40):
        if not rig.source:
            break
        rig.step()
    rig.perform(rig.kernel.left(rig.now, "shutdown"))
    assert rig.up == {}
