"""Whatever bytes a peer or stranger sends, a kernel raises nothing and other peers are not affected."""

from __future__ import annotations

import random

from hypothesis import given, strategies as st

from fleetlm.core.effects import Dial, Down, Effect, HangUp, Up
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Kind, Refusal, Refused
from tests.support.kernel_fakes import (
    TELLER,
    Meeting,
    T,
    goodbye_frame,
    hello_frame,
    hello_of,
    name,
    ready_frame,
)

VALID = [
    hello_frame(hello_of(2), 77),
    hello_frame(hello_of(3, aliases=("fd00::3",)), 78),
    hello_frame(hello_of(2, 201), 79),
    hello_frame(hello_of(1, 100), 80),
    ready_frame(77, 1, 1, hello_of(2)),
    ready_frame(77, 2, 1, hello_of(2)),
    ready_frame(77, 1, 2, hello_of(2, 201)),
    hello_frame(hello_of(2, is_check=True), 81),
    goodbye_frame(77, 1, "bye"),
    goodbye_frame(77, 2, "bye"),
    frames.probe(),
    frames.header(Kind.BATCH, 77, 2) + b"\x93",
    frames.refused(Refused(Refusal.SELF, "why", name(2))),
    frames.refused(Refused(Refusal.WRONG_NAME, "why", "fleetlm@10.0.0.77")),
    frames.refused(Refused(Refusal.CONNECTED, "why", name(2))),
    frames.iam(IAm(name(2), "", 0)),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid frame with some bytes changed, cut off or put in."""
    frame = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(frame) - 1)))
        match draw(st.sampled_from(["change", "cut", "insert"])):
            case "change" if frame:
                frame[at] = draw(st.integers(0, 255))
            case "cut":
                del frame[at:]
            case _:
                frame[at:at] = draw(st.binary(max_size=9))
    return bytes(frame)


@st.composite
def headed(draw: st.DrawFn) -> bytes:
    """A header of small or any numbers, and any body."""
    kind = draw(st.integers(0, 12) | st.integers(0, 255))
    epoch = draw(st.sampled_from([0, 1, 77, 78]) | st.integers(0, 2**32 - 1))
    seq = draw(st.integers(0, 3) | st.integers(0, 2**64 - 1))
    return frames.header(kind, epoch, seq) + draw(st.binary(max_size=40))


garbage = st.binary(max_size=60) | mutated() | headed()


class Books:
    """Check what must hold of all effects of a kernel, whatever the facts were."""

    def __init__(self, m: Meeting) -> None:
        self.m = m
        self.open = set(m.kernel._channels)
        self.up = {peer.connection.name for peer in m.kernel.topology.up()}

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Dial(channel):
                    assert channel not in self.open
                    self.open.add(channel)
                case HangUp(channel):
                    self.open.discard(channel)
                case Up(who):
                    assert who not in self.up
                    self.up.add(who)
                case Down(who):
                    self.up.remove(who)
        kernel = self.m.kernel
        assert self.open == kernel._channels.keys()
        assert self.up == {peer.connection.name for peer in kernel.topology.up()}


@given(st.lists(garbage, max_size=8))
def test_garbage_of_a_stranger_disturbs_no_peer(parts: list[bytes]) -> None:
    m = Meeting()
    m.up(2)
    m.up(4)
    stranger, books = m.met(9), Books(m)
    for frame in parts:
        books.take(m.kernel.control_frame(T, stranger, frame))
    assert m.status(2) == m.status(4) == "up"


@given(st.lists(garbage, max_size=8))
def test_garbage_of_a_peer_costs_at_most_its_own_connection(parts: list[bytes]) -> None:
    m = Meeting()
    half = m.up(2)
    m.up(3)
    books = Books(m)
    for frame in parts:
        books.take(m.kernel.control_frame(T, half, frame))
    assert m.status(3) == "up"


@given(st.lists(garbage, max_size=8), st.booleans())
def test_garbage_in_the_midst_of_a_handshake_raises_nothing(parts: list[bytes], opened: bool) -> None:
    m = Meeting()
    half, _ = m.hello(2, 77)
    if opened:
        m.kernel.opened(T, 1)
    books = Books(m)
    for frame in parts:
        books.take(m.kernel.control_frame(T, half, frame))
        books.take(m.kernel.tick(T))


@given(st.lists(garbage, max_size=8))
def test_garbage_as_an_answer_raises_nothing(parts: list[bytes]) -> None:
    m = Meeting()
    m.up(2)
    m.kernel.asked_for(T, name(3))
    m.hello(2, 88, 201)  # a check is under way
    books = Books(m)
    for frame in parts:
        for channel in (*books.open, 99):
            books.take(m.kernel.answered(T, channel, frame))


def test_a_storm_of_all_facts_keeps_the_books_and_stays_bounded() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        m = Meeting()
        books, now = Books(m), T
        for _ in range(150):
            now += rng.choice((0, 0, 0.01, 1.0, 6.0))
            half = b"%d.%d" % (rng.randint(2, 4), rng.randint(1, 2))
            channel = rng.choice([*books.open, 1, 2, 3])
            match rng.randrange(9):
                case 0:
                    m.kernel.source_met(half, "10.0.0.9")
                case 1:
                    books.take(m.kernel.source_lost(now, half, "lost"))
                case 2:
                    books.open.discard(channel)
                    books.take(m.kernel.channel_lost(now, channel, "lost"))
                case 3 | 4:
                    if channel in m.kernel._channels:
                        books.take(m.kernel.opened(now, channel))
                case 5:
                    books.take(m.kernel.tick(now))
                case 6:
                    books.take(m.kernel.answered(now, channel, rng.choice(VALID)))
                case 7:
                    books.take(m.kernel.heard_of(now, [name(rng.randint(1, 5))], TELLER))
                case _:
                    hellos = [
                        hello_frame(hello_of(n, n * 100 + rng.randint(0, 1)), 70 + n) for n in (2, 3, 4)
                    ]
                    epoch = rng.randint(1, 6)
                    readies = [ready_frame(70 + n, 1, epoch, hello_of(n)) for n in (2, 3, 4)]
                    books.take(m.kernel.control_frame(now, half, rng.choice(hellos + readies)))
        assert len(m.kernel._sources) <= 6
        assert len(m.kernel._due) < 200
