"""Four routers and eight inference workers in virtual time: what each rule that picks makes of them.

The routers are the real parts of four nodes, `ReplicatedMembers` and `Picker`, with a clock and a network of
their own: what one tells is with the others a millisecond later, and loads are told every 200 ms. The workers
are simulated: each serves one request at a time, and a block of a prompt that it has in its cache costs a
tenth. Each router sends requests one by one, as they come, and knows only of its own when they have ended.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import Settings
from fleetlm.core.group_members import Members
from fleetlm.core.picking import ANY, Picker, Wanted
from fleetlm.core.sticky_keys import StickyKeys
from fleetlm.directory.members import ReplicatedMembers
from fleetlm.ids import Pid
from fleetlm.llm import PrefixIndex
from fleetlm.processes.context import NodeContext

ROUTERS = [f"fleetlm@10.0.1.{number}" for number in range(1, 5)]
WORKERS = [Pid(f"fleetlm@10.0.0.{number}", number, 1) for number in range(1, 9)]
GROUP = "models"
FRAME_S = 0.2
HOP_S = 0.001
REQUESTS = 2_000
SETTINGS = Settings(dns_query="routers", gauge_s=FRAME_S)
OWN, TOLD, PREFIX = "own least loaded", "told least loaded", "prefix"
"""Two rules that are not the library's: what a proxy without the loads of the others does, and what one does
that looks at nothing but these. And the score of `fleetlm.llm`."""


class Clock:
    """A loop without tasks, in virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        def run() -> object:
            return function(*args)

        heapq.heappush(self._due, (self.now + delay_s, next(self._numbers), run))

    def run_until(self, at: float) -> None:
        while self._due and self._due[0][0] <= at:
            self.now, _, function = heapq.heappop(self._due)
            function()
        self.now = at


class Worker:
    """Serves so many requests at a time; the blocks of prompts that it used last are in its cache."""

    def __init__(self, blocks: int, slots: int) -> None:
        self.cache: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.blocks = blocks
        self.free_at = [0.0] * slots
        self.queue = 0

    def serve(self, talk: int, length: int, now: float) -> tuple[float, int]:
        """Begin a request as soon as possible. Returns when it ends, and how many blocks were there."""
        hits = 0
        for at in range(length):
            block = (talk, at)
            hits += block in self.cache
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.blocks:
            self.cache.popitem(last=False)
        return self.take_slot(0.01 * (length - hits) + 0.001 * hits + 0.02, now), hits

    def take_slot(self, seconds: float, now: float) -> float:
        """Serve for so long as soon as a slot is free. Returns when it ends."""
        done_at = max(now, self.free_at[0]) + seconds
        heapq.heapreplace(self.free_at, done_at)
        return done_at


class Session:
    """What a router knows of its own requests to the node of a worker; stands for `messaging.session`."""

    def __init__(self) -> None:
        self.open_calls: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.peer = self
        self.is_busy = False

    def load(self, number: int) -> int:
        return self.open_calls.get(number, 0)


class Router:
    """One node that sends requests to the workers."""

    def __init__(self, name: str, number: int, clock: Any, rng: random.Random, peers: list[Router]) -> None:
        self.sessions = {pid.node: Session() for pid in WORKERS}
        self.peers = peers
        self.clock = clock
        self.rng = rng
        sessions: Any = self.sessions
        self.context = NodeContext(name, number, SETTINGS, sessions, lambda _: 0, loop=clock)
        self.group = Members(WORKERS)
        parts: Any = self
        self.members = ReplicatedMembers(self.context, parts, parts, parts, lambda _: self.group)
        sticky = StickyKeys(limit=1_000, idle_s=60.0)
        self.picker = Picker(rng, self.members.outstanding, self.members, lambda _: 0, sticky, clock.time)
        self.index = PrefixIndex(block_tokens=1)

    # `replication.Replication`.

    def add(self, table: Any) -> None:
        pass

    def before_change(self, topic: str, key: Any) -> None:
        pass

    def tell(self, _topic: str, fact: Any) -> None:
        own = self.context
        for peer in self.peers:
            if peer is not self:
                self.clock.call_later(HOP_S, peer.members.told, own.name, own.incarnation, fact)

    # Requests.

    def pick(self, rule: Any, prompt: list[int]) -> Pid:
        if rule in (OWN, TOLD):
            self.members.is_plain(GROUP)  # So that it tells its loads.
            loads = self._own() if rule == OWN else [self.members.facts.outstanding(pid) for pid in WORKERS]
            least = min(loads)
            return self.rng.choice([pid for pid, load in zip(WORKERS, loads, strict=True) if load == least])
        if rule == PREFIX:
            wanted, rule = Wanted(None, self.index.route(prompt)), "random"
        else:
            wanted = ANY
        return self.picker.pick(GROUP, self.group, rule, None, None, wanted)

    def _own(self) -> list[int]:
        return [self.sessions[pid.node].load(pid.number) for pid in WORKERS]

    def begin(self, pid: Pid) -> None:
        calls = self.sessions[pid.node].open_calls
        calls[pid.number] = calls.get(pid.number, 0) + 1

    def end(self, pid: Pid) -> None:
        calls = self.sessions[pid.node].open_calls
        calls[pid.number] -= 1
        if not calls[pid.number]:
            del calls[pid.number]


class Figures:
    """What a play has shown.

    Attributes:
        hits: the share of blocks that were found in caches.
        p99_s: the time within which 99 of 100 requests ended.
        spread: the longest queue, divided by the mean queue, as requests found it on average.
        herd: the largest share of the requests of one frame that one worker got, on average.
    """

    def __init__(self) -> None:
        self.blocks = self.found = 0
        self.times: list[float] = []
        self.spreads: list[float] = []
        self.frames: dict[int, Counter[Pid]] = defaultdict(Counter)

    @property
    def hits(self) -> float:
        return self.found / self.blocks

    @property
    def p99_s(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)]

    @property
    def spread(self) -> float:
        return sum(self.spreads) / len(self.spreads)

    @property
    def herd(self) -> float:
        shares = [max(picks.values()) / picks.total() for picks in self.frames.values()]
        return sum(shares) / len(shares)

    def __repr__(self) -> str:
        return f"hits {self.hits:.2f}, p99 {self.p99_s:.2f} s, spread {self.spread:.2f}, herd {self.herd:.2f}"


@functools.cache
def play(rule: str, *, is_busy: bool = False, seed: int = 1) -> Figures:
    """Send requests to the routers by chance; two of them get most.

    Args:
        rule: that picks.
        is_busy: requests last a second on average, whatever was cached, and each worker serves 16 at a time:
            so there are 22 in a frame, and the workers are nearly full. Else conversations come, and grow,
            and a worker serves one request at a time.
        seed: of all chance.
    """
    clock, rng = Clock(), random.Random(seed)
    routers: list[Router] = []
    for number, name in enumerate(ROUTERS, 1):
        routers.append(Router(name, number, clock, random.Random(seed + number), routers))
    workers = {pid: Worker(blocks=400, slots=16 if is_busy else 1) for pid in WORKERS}
    lengths: Counter[int] = Counter()
    figures = Figures()

    def end(router: Router, pid: Pid) -> None:
        router.end(pid)
        workers[pid].queue -= 1

    for _ in range(REQUESTS):
        clock.run_until(clock.now + rng.expovariate(110.0 if is_busy else 34.0))
        now, talk, seconds = clock.now, rng.randrange(120), rng.expovariate(1.0)
        (router,) = rng.choices(routers, (5, 3, 1, 1))
        lengths[talk] = min(lengths[talk] + 2, 30) if rng.random() < 0.97 else 2
        length = lengths[talk]
        pid = router.pick(rule, [talk * 1_000 + at for at in range(length)])
        router.begin(pid)
        worker = workers[pid]
        worker.queue += 1
        done_at, found = (worker.take_slot(seconds, now), 0) if is_busy else worker.serve(talk, length, now)
        clock.call_later(done_at - now, end, router, pid)
        queues = [worker.queue for worker in workers.values()]
        figures.spreads.append(max(queues) * len(queues) / sum(queues))
        figures.frames[int(now / FRAME_S)][pid] += 1
        figures.blocks, figures.found = figures.blocks + length, figures.found + found
        figures.times.append(done_at - now)
    return figures


RULES = ("random", "round_robin", OWN, "least_loaded", "two_choices")


def test_prefixes_find_more_in_caches_and_reply_sooner_than_any_other_rule() -> None:
    prefix = play(PREFIX)
    others = {rule: play(rule) for rule in RULES}
    print(prefix, others)
    assert all(prefix.hits > 1.4 * each.hits for each in others.values())
    assert all(prefix.p99_s < 0.9 * each.p99_s for each in others.values())
    assert prefix.spread < others["random"].spread


@pytest.mark.parametrize("rule", ["least_loaded", "two_choices"])
def test_loads_of_the_whole_fleet_spread_better_than_what_a_router_knows_by_itself(rule: str) -> None:
    ours, own, chance = play(rule), play(OWN), play("random")
    print(rule, ours, own, chance)
    assert ours.p99_s < min(own.p99_s, chance.p99_s / 2)
    assert ours.spread < 0.95 * own.spread
    busy, busy_chance = play(rule, is_busy=True), play("random", is_busy=True)
    print(rule, busy, busy_chance)
    assert busy.spread - 1 < (busy_chance.spread - 1) / 3
    assert busy.spread < play("round_robin", is_busy=True).spread


@pytest.mark.parametrize("rule", ["least_loaded", "two_choices", PREFIX])
def test_loads_that_are_a_frame_old_make_no_herd(rule: str) -> None:
    herd, ours = play(TOLD, is_busy=True), play(rule, is_busy=True)
    print(rule, ours, "told alone:", herd)
    assert herd.spread > 3, "the trap is there"
    assert ours.spread < 1.5
    assert ours.herd < 0.3
    assert ours.p99_s < herd.p99_s / 2
