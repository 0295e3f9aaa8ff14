"""What can be done by a node that is connected: an honest node of which some messages are made by hand.

An attack gets an open connection, prepares, and returns a function that does it once. That is called again
and again, until the attack is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgpack

from fleetlm import FleetError, Node, Pid, Ref, Settings
from fleetlm.node import parts_of
from fleetlm.wire import operations
from fleetlm.wire.extensions import Ext
from fleetlm.wire.frames import Kind
from tests.long.attacks.strangers import MIB, Target

BATCH: Final = 2_000
"""Messages in one frame."""
PRIME: Final = (1 << 61) - 1
"""Python's hash of an integer is its remainder by this."""
PAUSE_S: Final = 0.02
JOIN_S: Final = 10.0
UNANSWERED_MS: Final = 86_400_000


class Member:
    """A connected node that says what it is told to."""

    def __init__(self, node: Node, target: Target) -> None:
        self.node = node
        self.target = target
        self.count = 0
        self._parts = parts_of(node)

    @property
    def session(self) -> Any:
        """The session with the victim; None if there is none."""
        return self._parts.driver.sessions.get(self.target.victim)

    def number(self) -> int:
        """Return a new number, for a ref, a process, an act."""
        self.count += 1
        return self.count

    def pid(self) -> Pid:
        """Return the pid of a process that this node could have."""
        return Pid(self.node.name, self.node.incarnation, self.number())

    def frame(self, body: bytes) -> None:
        """Send the body of a BATCH."""
        session = self.session
        if session is not None:
            head = session.outgoing.header(Kind.BATCH)
            self._parts.transport.send(session.outgoing.channel, head + body)

    def batch(self, messages: list[Any]) -> None:
        """Send a frame of these messages, whatever they are."""
        packed = [self._parts.codec.pack_value(each) for each in messages]
        self.frame(b"\xdd" + len(packed).to_bytes(4, "big") + b"".join(packed))

    def hand_made(self, payload: bytes) -> None:
        """Send a frame with one message to a process that there is not, with a payload of any bytes."""
        self.frame(b"\xdd\0\0\0\x01\x92" + msgpack.packb("nobody") + payload)


Step = Callable[[], Awaitable[None]]
Prepare = Callable[[Member], Step]


def batches(member: Member, make: Callable[[], Any], pause_s: float = PAUSE_S) -> Step:
    """Return a step that sends a frame of messages that are all made alike."""

    async def step() -> None:
        member.batch([make() for _ in range(BATCH)])
        await asyncio.sleep(pause_s)

    return step


def hand_made(member: Member, payload: bytes, pause_s: float) -> Step:
    """Return a step that sends these bytes in a message."""

    async def step() -> None:
        member.hand_made(payload)
        await asyncio.sleep(pause_s)

    return step


def array(items: list[bytes]) -> bytes:
    """Pack a list of packed items."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def extension(code: int, data: bytes) -> bytes:
    """Pack an extension value."""
    return b"\xc7" + bytes((len(data), code)) + data


# ── values that cost time or memory ──────────────────────────────────────────────────────────────


def equal_hashes(member: Member) -> Step:
    """Keys of a map that have one hash."""
    count = 100_000
    keys = [
        b"\xd8" + bytes((Ext.UUID,)) + (n * PRIME + 5).to_bytes(16, "big") + b"\xc0" for n in range(count)
    ]
    return hand_made(member, b"\xdf" + count.to_bytes(4, "big") + b"".join(keys), 0.2)


def zones(member: Member) -> Step:
    """Times in zones that there are not: each might be looked for on disk."""

    async def step() -> None:
        numbers = [member.number() for _ in range(10_000)]
        times = [
            extension(Ext.DATETIME, msgpack.packb([2020, 1, 1, 0, 0, 0, 0, 0, f"A/{n:x}"])) for n in numbers
        ]
        member.hand_made(array(times))
        await asyncio.sleep(0.2)

    return step


def nested(member: Member) -> Step:
    """Tuples in tuples around large bytes: each level might copy all that is in it."""
    value: Any = os.urandom(8 * MIB)
    for _ in range(30):
        value = (value,)
    return calls(member, "nobody", value)


def calls(member: Member, name: str, value: Any) -> Step:
    """Return a step that sends an honest message."""

    async def step() -> None:
        await member.node.send((name, member.target.victim), value, 5.0)

    return step


def empty_lists(member: Member) -> Step:
    """Messages of empty lists until the mailbox of a process is full: what may it take?"""
    return calls(member, "stuck", [[] for _ in range(30_000)])


def short_lists(member: Member) -> Step:
    """The same in short messages, which count one unit whatever they hold."""
    return calls(member, "stuck", [[] for _ in range(230)])


def pairs(member: Member) -> Step:
    """The same with maps of small numbers."""
    return calls(member, "stuck", {number: number for number in range(8_000)})


def large_values(member: Member) -> Step:
    """Messages of the largest size, one after the other."""
    return calls(member, "nobody", bytes(60 * MIB))


# ── what a node can be made to keep ──────────────────────────────────────────────────────────────


def monitors(member: Member) -> Step:
    """Monitors without end."""
    node = member.node

    def make() -> Any:
        return operations.signal(["monitor", Ref(node.name, node.incarnation, member.number()), "stuck"])

    return batches(member, make)


def links(member: Member) -> Step:
    """Links without end, with a process that nobody asks: it ends with them."""
    found: list[int] = []

    async def step() -> None:
        if not found:
            pid = await member.node.whereis("stuck", member.target.victim)
            assert pid is not None
            found.append(pid.number)
        pids = [member.pid() for _ in range(BATCH)]
        member.batch([operations.signal(["link", pid, found[0], member.number()]) for pid in pids])
        await asyncio.sleep(PAUSE_S)

    return step


def groups(member: Member) -> Step:
    """Memberships in ever new groups."""

    def make() -> Any:
        number = member.number()
        return operations.table("groups", ["join", {f"{'g' * 200}{number}": [number]}])

    return batches(member, make)


def gauges(member: Member) -> Step:
    """Reports of ever new members of groups."""

    def make() -> Any:
        number = member.number()
        return operations.table("members", ["gauges", [[f"{'g' * 60}{number}", number, {"load": 1}]]])

    return batches(member, make)


def registered(member: Member) -> Step:
    """Cluster-wide names without end."""

    def make() -> Any:
        number = member.number()
        return operations.table("names", ["has", [[f"{'n' * 60}{number}", number, b"\xc0", 0]]])

    return batches(member, make)


def theft(member: Member) -> Step:
    """Claims of the victim's cluster-wide name that say that they are the oldest."""

    async def step() -> None:
        member.batch([operations.table("names", ["has", [["leader", member.number(), b"\xc0", 0]]])])
        await asyncio.sleep(PAUSE_S)

    return step


def open_calls(member: Member) -> Step:
    """Calls that are never answered."""
    return batches(member, lambda: operations.call("stuck", None, member.number(), UNANSWERED_MS))


def questions(member: Member) -> Step:
    """Questions to the node itself, with long answers."""
    return batches(member, lambda: operations.request("registered", None, member.number()))


def spawns(member: Member) -> Step:
    """Processes without end."""

    def make() -> Any:
        owner = Pid(member.node.name, member.node.incarnation, 0)
        return operations.request("spawn", ["idle", (), None, owner, None, None, False], member.number())

    return batches(member, make)


def hearsay(member: Member) -> Step:
    """Names of nodes that there are not, which the victim might dial."""

    async def step() -> None:
        numbers = [member.number() for _ in range(1_000)]
        ips = [f"127.{200 + n // 62_500}.{n // 250 % 250}.{1 + n % 250}" for n in numbers]
        member.batch([operations.peers([f"fleetlm@{ip}" for ip in ips])])
        await asyncio.sleep(PAUSE_S)

    return step


def broken(member: Member) -> Step:
    """Frames behind one that breaks the protocol, over a connection that is dialled again at once."""

    async def step() -> None:
        member.frame(b"\xc1garbage")
        for _ in range(50):
            member.frame(b"\xc1" + b"x" * 30)
        await asyncio.sleep(PAUSE_S)

    return step


def honest_flood(member: Member) -> Step:
    """Calls as fast as the windows allow: no attack, and the measure of the others."""

    async def step() -> None:
        to = ("busy", member.target.victim)
        await asyncio.gather(*(member.node.call(to, number, 5.0) for number in range(500)))

    return step


HOLDERS: Final[tuple[Prepare, ...]] = (
    *(equal_hashes, zones, nested, empty_lists, short_lists, pairs, large_values),
    *(
        monitors,
        links,
        groups,
        gauges,
        registered,
        theft,
        open_calls,
        questions,
        spawns,
        hearsay,
        broken,
        honest_flood,
    ),
)


async def attack(prepare: Prepare, target: Target, ready: Callable[[], Awaitable[None]]) -> str:
    """Join as a node does, and attack until it is over. Returns what was done in a few words."""
    settings = Settings.from_env().replace(backoff_min_s=0.02, backoff_max_s=0.05, max_peers=4_096)
    node = await Node.start(settings)
    try:
        await node.ready(1, JOIN_S)
        return await _go_on(Member(node, target), prepare, ready)
    finally:
        await node.stop(drain_s=0)


async def _go_on(member: Member, prepare: Prepare, ready: Callable[[], Awaitable[None]]) -> str:
    """Attack over an open connection, and again whenever it has been opened anew."""
    step, target = prepare(member), member.target
    await ready()
    steps = ended = 0
    while not target.is_over:
        if member.session is None:
            ended += 1
            while member.session is None and not target.is_over:
                await asyncio.sleep(0.05)
            continue
        with contextlib.suppress(FleetError, TimeoutError):
            async with asyncio.timeout(max(0.1, target.until - asyncio.get_running_loop().time())):
                await step()
        steps += 1
    return f"{steps:,} steps, {member.count:,} numbers, {ended} times disconnected"
