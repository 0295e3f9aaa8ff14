"""Sessions without a network: two of them back to back, over transports that record what is sent."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
from collections.abc import Callable, Coroutine
from typing import Any

from fleetlm.call import Call
from fleetlm.core.connection import Connection, Identity
from fleetlm.core.halves import Incoming, Outgoing
from fleetlm.core.topology import Peer
from fleetlm.errors import Draining
from fleetlm.ids import Pid
from fleetlm.messaging.beside import Unpacked
from fleetlm.messaging.inbound import CHECK_BITS, Inbound
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.session import Session
from fleetlm.messaging.turns import FREE
from fleetlm.messaging.waits import Waits
from fleetlm.messaging.windows import weighed
from fleetlm.process import Process, ProcessServices
from fleetlm.processes.context import NodeContext
from fleetlm.processes.local import LocalProcesses
from fleetlm.processes.running import RunningProcess
from fleetlm.processes.signals import Signals
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire.codec import BadData, Codec
from fleetlm.wire.operations import DrainNotice

HERE, THERE = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"
EPOCH_HERE, EPOCH_THERE = 0xA, 0xB


class FakeTransport:
    """Notes what was sent; ``broken`` makes every send fail."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.answers: list[tuple[bytes, bytes]] = []
        self.dialled: list[tuple[int, str, int]] = []
        self.hung_up: list[int] = []
        self.admitted: list[bytes] = []
        self.disconnected: list[tuple[bytes, float]] = []
        self.let_in: set[bytes] = set()
        """Sources with a local road that is not followed."""
        self.noted_ticks: list[tuple[float, int]] = []
        self.shown_to: set[int] = set()
        """Channels whose peers see the ticks that this node notes."""
        self.seen_ticks: dict[bytes, tuple[float, int]] = {}
        """Source → what its node has noted."""
        self.followed: list[bytes] = []
        self.broken = False

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        if self.broken:
            return False
        self.frames.append((channel, frame if tail is None else b"".join((frame, tail))))
        return True

    def answer(self, source: bytes, frame: bytes) -> None:
        self.answers.append((source, frame))

    def dial(self, channel: int, ip: str, port: int) -> None:
        self.dialled.append((channel, ip, port))

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        self.hung_up.append(channel)

    def admit(self, source: bytes) -> None:
        self.admitted.append(source)

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        self.disconnected.append((source, after_s))

    def expect_road(self, source: bytes, ticket: bytes) -> None:
        self.let_in.add(source)

    def open_road(self, channel: int, number: int, ticket: bytes) -> None:
        """The peer lets nobody in."""

    def follow_road(self, source: bytes) -> bool:
        self.followed.append(source)
        return source in self.let_in

    def note_tick(self, at: float, lag_ms: int) -> None:
        self.noted_ticks.append((at, lag_ms))

    def shows_ticks(self, channel: int) -> bool:
        return channel in self.shown_to

    def read_tick(self, source: bytes) -> tuple[float, int] | None:
        return self.seen_ticks.pop(source, None)

    def take(self) -> list[bytes]:
        frames, self.frames = self.frames, []
        return [frame for _, frame in frames]


def waits_of(local: LocalProcesses | None = None) -> Waits:
    """Who waits for whom on a node, with turns that never end; nothing looks for circles."""
    process_of = (lambda task: None) if local is None else local.of_task
    return Waits(process_of, asyncio.get_running_loop(), FREE, lambda waits: None)


class Taker:
    """The owner of a mailbox, who notes the calls that it has taken."""

    def __init__(self, taken: list[Call] | None = None) -> None:
        self.calls: list[Call] = [] if taken is None else taken

    def _note_wait(self, call: Call, now: float) -> None:
        self.waited: list[tuple[Call, float]] = [*getattr(self, "waited", ()), (call, now)]

    def _accept_call(self, call: Call) -> bool:
        self.calls.append(call)
        return True

    def _has_task(self, task: asyncio.Task[Any] | None) -> bool:
        return False


class FakePeerService:
    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.named: list[str] = []
        self.questions: list[tuple[str, Any]] = []

    def ticked(self, session: Session, lag_ms: int) -> None:
        self.ticks.append(lag_ms)

    def told_drain(self, session: Session, notice: DrainNotice) -> None:
        self.questions.append(("drain", notice))

    def heard_drain(self, session: Session, number: int, count: int) -> None:
        self.questions.append(("heard", (number, count)))

    def refused(self, call: Call) -> None:
        call.refuse(Draining(HERE, 5.0))

    def not_reached(self, to: int | str, call: Call) -> None:
        call.no_process(str(to))

    def told_of(self, names: list[str], teller: str) -> None:
        self.named += names

    def told_table(self, session: Session, topic: Any, fact: Any) -> None:
        self.questions.append((topic, fact))

    def signalled(self, session: Session, signal: Any) -> None:
        self.questions.append(("signal", signal))

    def asked(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        self.questions.append((verb, argument))
        call.reply("answer")


def local_processes(node: Any, mailbox_limit: int) -> LocalProcesses:
    """The processes of a node without connections, which is all that it needs of `Node` for this."""
    return processes_and_signals(node, context(Settings(mailbox_limit=mailbox_limit)))[0]


def context(settings: Settings, sessions: dict[str, Session] | None = None) -> NodeContext:
    """A node that is not draining."""
    return NodeContext(HERE, 1, settings, {} if sessions is None else sessions, lambda _: 0)


def processes_and_signals(node: Any, context: NodeContext) -> tuple[LocalProcesses, Signals]:
    """The processes of a node, with their links; `node.remote_spawn` is used if there is one."""

    def make_process(pid: Pid, runs: str) -> Process:
        remote_spawn: Any = getattr(node, "remote_spawn", None)
        blocking: Any = None  # No process of these tests blocks.
        services = ProcessServices(signals, remote_spawn, context.settings.mailbox_limit, blocking, FREE)
        return Process(node, services, pid, runs)

    def tell_exit(process: RunningProcess, reason: Any) -> None:
        signals.exited(process, reason)

    def send_exit(pid: Pid, reason: Any) -> None:
        signals.exit(context.pid, pid, reason)

    local = LocalProcesses(context, make_process, tell_exit, send_exit)
    signals = Signals(context, Codec(), local)
    return local, signals


def identity(name: str, incarnation: int, settings: Settings, road: int = 0) -> Identity:
    return Identity(
        name=name,
        incarnation=incarnation,
        cluster="",
        port=4370,
        aliases=(),
        window_bytes=settings.window_bytes,
        mailbox_limit=settings.mailbox_limit,
        max_message_bytes=settings.max_message_bytes,
        road=road,
        max_frame_bytes=settings.max_frame_bytes,
    )


class Side:
    """One end: its session, what it flushes, and what it receives."""

    def __init__(self, name: str, peer: str, settings: Settings, theirs: Settings | None = None) -> None:
        theirs = theirs or settings
        loop = SimLoop.current()
        number, other = (1, 2) if name == HERE else (2, 1)
        epochs = (EPOCH_HERE, EPOCH_THERE) if name == HERE else (EPOCH_THERE, EPOCH_HERE)
        me = identity(name, number, settings)
        hello = identity(peer, other, theirs).hello(name)
        connection = Connection(peer, "10.0.0.9", me, settings, loop.rng, 0.0)
        connection.incarnation = other
        self.transport = FakeTransport()
        self.service = FakePeerService()
        self.boxes: dict[int | str, Mailbox] = {}
        self.codec = Codec(large_bytes=settings.large_bytes)
        self.dirty: list[Session] = []
        self.lost: list[str] = []
        outgoing = Outgoing(7, epochs[0])
        outgoing.seq = 1
        incoming = Incoming(b"source", epochs[1], hello, "10.0.0.9")
        self.session = Session(
            Peer(connection, 0.0),
            outgoing,
            incoming,
            settings,
            self.codec,
            self.transport,  # type: ignore[arg-type]
            self.dirty.append,
            lambda _session, reason: self.lost.append(reason),
        )
        drawn = random.Random(name).getrandbits
        self.session.byte_window.draw = lambda bits: 0 if bits == CHECK_BITS else drawn(bits)
        """Numbers of marks; and the units of every batch are checked."""
        self.inbound = Inbound(self.boxes, self.codec, self.service, loop.time, 8)
        self.inbound.unpack_beside = self.unpack_at_once

    def unpack_at_once(self, session: Session, unpack: Callable[[], Unpacked]) -> None:
        """Unpack and deliver what is large; the driver does this in a thread."""
        unpacked: concurrent.futures.Future[Unpacked] = concurrent.futures.Future()
        try:
            unpacked.set_result(unpack())
        except BadData as error:
            unpacked.set_exception(error)
        assert self.inbound.take_unpacked(session, unpacked) is None  # type: ignore[arg-type]

    def box(self, name: str, limit: int = 1_000_000) -> Mailbox:
        box = self.boxes[name] = Mailbox(limit, Taker())
        return box

    def send(self, to: str, message: Any, sender: Any = None) -> None:
        session, packed = self.session, self.codec.pack([to, message], message)
        limit = session.windows.limit
        packed, count = weighed(packed, self.codec.extra_bytes, limit, session.small_bytes)
        session.append(packed, sender, count)

    def flush(self) -> bool:
        """What the driver does at the end of a turn. Whether there was anything to do."""
        dirty, self.dirty[:] = list(self.dirty), []
        for session in dirty:
            session.flush()
        return bool(dirty)

    def receive(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.inbound.frame(self.session, frame)


class Pair:
    """Two sides that a test connects step by step, or until nothing moves."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self.here = Side(HERE, THERE, settings)
        self.there = Side(THERE, HERE, settings)

    def settle(self) -> None:
        moved = True
        while moved:
            moved = self.here.flush() | self.there.flush()
            for a, b in ((self.here, self.there), (self.there, self.here)):
                frames = a.transport.take()
                b.receive(frames)
                moved |= bool(frames)

    def credit(self) -> None:
        """Do what the next ticks do: the one side marks what it has sent, and the other tells the mark."""
        self.here.session.mark()
        self.settle()
        self.there.session.byte_credit.tell()
        self.settle()


MARK_BYTES = 40
"""At most so many bytes are in flight when everything has been credited: the frame of the last mark."""


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on virtual time; what would hang, or is left over, is an error there."""

    def start() -> None:
        run(test())

    start.__name__ = test.__name__
    return start
