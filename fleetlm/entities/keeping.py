"""Entities and their store: loads states, and stores what has changed, within a time limit.

Theory of operation. A kind with a store has one `KindStore` on each node, and each live entity a `Keeper`.
The keeper knows which version is stored and what it was (a digest), so that nothing is written that has not
changed. It has one operation under way at a time, each in a task of its own:

* A handler that is cancelled does not cancel the write that it waits for. The write goes on, and the next
  operation of the entity waits for it. The next life of the same key on this node does, too.
* An operation that does not answer within `KindStore.limit_s` is cancelled. What it has done is not known
  then (`Keeper.is_sure`). Before the keeper writes again, it loads and compares: what is stored is either
  what it knew, or what it has tried to write, or another owner's, which is a conflict.

The epoch of an operation is that of this node's claim to the shard. Where the claim is gone, it is the last
one that this node had, never a later owner's.

A store that fails is told of once in the log, and once more when it works again. A full disk can still be
read, so a load does not end a trouble in which a write has failed last. It harms nothing but the entities
that need it: every wait has the time limit, and at most `MOST_AT_ONCE` operations of a kind are under way.

**What a whole cluster forgets.** Unless every change is stored at once, an owner that is lost may take
changes with it, and where all nodes were lost, none remembers that. So an owner leaves a mark for each shard
of which it loads something (`KindStore.was_left_open`), which the next one finds. The mark goes when
everything is stored and the last host leaves (`KindStore.release`).

**Epochs that the store knows better.** The store may have seen a higher epoch than this node's claim has:
after a restart of the whole cluster with a clock that went back, or since another node serves the shard on
the other side of a partition. In the first case this node takes a higher epoch at once. It knows the case by
a claim under which the store has never taken anything (`_proven`). Else it lets the later owner serve for
`OUTBID_S`, refuses requests meanwhile, and takes a higher epoch only then. So two sides that cannot see each
other take turns, and nothing that is stored is ever overwritten by who has not seen it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

from fleetlm.core.shard_table import EPOCH_END, Claim
from fleetlm.entities.info import StoreInfo
from fleetlm.errors import Fenced, StoreError, StoreFailed, VersionConflict
from fleetlm.records import Record
from fleetlm.stores.interface import Fence, Store, Stored
from fleetlm.texts import SHORT, text_of

if TYPE_CHECKING:
    from fleetlm.core.shard_table import ShardTable

log: logging.Logger = logging.getLogger("fleetlm")

T = TypeVar("T")

MOST_AT_ONCE = 1_000
"""Operations of one kind that are under way: enough for large transactions, and no burst fills a store."""
OUTBID_S = 5.0
"""Seconds for which the later owner of a shard serves it before this node takes it back; see the module."""
PAUSE_S = 1.0
"""Seconds after a failure of the store in which nothing is passivated: it would most likely fail, too."""

_MARKS = "\nshards"
"""Behind the name of a kind: where its marks are. No kind has such a name."""

Durable = Literal["write", "passivate"] | float
"""When a change is stored; see `Entities.host`."""


class StoreOptions(Record):
    """What a program has asked for; see `Entities.host`.

    Attributes:
        store: of the program.
        durable: when a change is stored.
        limit_s: seconds that an operation may take.
    """

    store: Store
    durable: Durable
    limit_s: float


class OwnShards(Protocol):
    """The shards of a kind that this node owns; `hosting.Hosting` implements it."""

    kind: str
    table: ShardTable

    @property
    def majority(self) -> object | None:
        """What a quorum needs, if the kind has one."""

    def serves(self, shard: int, *, is_inner: bool) -> bool:
        """Whether a shard of this node takes requests."""

    def renew(self, shard: int) -> None:
        """Take a higher epoch for a shard."""

    def load_anew(self, shard: int) -> None:
        """Let nothing go on that was loaded before another owner may have stored."""

    def review_soon(self) -> None:
        """Look what is to be done, such as higher epochs."""


class KindStore:
    """The store of one kind, as this node uses it.

    Args:
        options: of the program.
        shards: of this node.
        loop: of the node.
    """

    def __init__(self, options: StoreOptions, shards: OwnShards, loop: asyncio.AbstractEventLoop) -> None:
        self.kind: str = shards.kind
        self.store: Store = options.store
        self.is_write: bool = options.durable == "write"
        self.after_s: float | None = None if isinstance(options.durable, str) else options.durable
        """Seconds after which a change is stored at the latest; None: not by time."""
        self.limit_s: float = options.limit_s
        self.loop: asyncio.AbstractEventLoop = loop
        self.slots: asyncio.Semaphore = asyncio.Semaphore(MOST_AT_ONCE)
        self.under_way: dict[tuple[str, str], asyncio.Task[Any]] = {}
        """Kind and key → its operation, also where the entity has ended meanwhile."""
        self._shards = shards
        self._taken_over: dict[int, Claim] = {}
        """Shard → the first claim of this node under which `taken_over_at` was asked."""
        self._marking: dict[int, tuple[int, asyncio.Task[bool]]] = {}
        """Shard → since which epoch it is this node's, and what leaves the mark."""
        self._proven: dict[int, int] = {}
        """Shard → the epoch under which the store took something from this node last."""
        self._fenced_at: dict[int, float] = {}
        """Shard → when the store refused this node first, since a later owner has come."""
        self._failed_at: float | None = None
        self._write_failed = False
        """Whether the last failure was that of a write."""
        self._trouble_since: float | None = None
        self._failures = 0
        self._lost_casts = 0
        self._all_failures = 0
        """Those of former troubles included."""

    @property
    def name(self) -> str:
        """The store, for people."""
        return SHORT.repr(self.store)

    @property
    def is_in_trouble(self) -> bool:
        """Whether the store has just failed."""
        return self._failed_at is not None and self.loop.time() - self._failed_at < PAUSE_S

    def info(self) -> StoreInfo:
        """Return how the store does, for people."""
        durable = "write" if self.is_write else "passivate"
        if self.after_s is not None:
            durable = f"within {self.after_s:g} s"
        return StoreInfo(self.name, durable, self._all_failures, self._trouble_since is not None)

    def claim(self, shard: int) -> Claim | None:
        """Return the claim of this node to a shard."""
        own = self._shards.table.own(self.kind)
        return None if own is None else own.claims.get(shard)

    def taken_over_at(self, shard: int) -> int:
        """Return an epoch at which a shard was this node's or its predecessors', who have handed it on.

        What is stored under a lower one was written before the shard was taken over from a node that is lost.
        With a quorum a claim does not say when that was, so it is this node's first epoch.
        """
        claim = self.claim(shard)
        if claim is None:
            return EPOCH_END
        if self._shards.majority is None:
            return claim.term
        first = self._taken_over.get(shard, claim)
        if first.term != claim.term or first.epoch > claim.epoch:
            first = claim
        self._taken_over[shard] = first
        return first.epoch

    def close(self) -> None:
        """Cancel what is under way: the node hosts the kind no more."""
        for task in [*self.under_way.values(), *(task for _, task in self._marking.values())]:
            task.cancel()

    async def was_left_open(self, shard: int) -> bool:
        """Whether a former owner of a shard was lost, and perhaps changes with it. Raises: StoreError."""
        since = self.taken_over_at(shard)
        known_since, task = self._marking.get(shard, (0, None))
        if task is None or known_since != since or (task.done() and (task.cancelled() or task.exception())):
            task = self.loop.create_task(self._mark(shard, since), name=f"mark of {self.kind}")
            self._marking[shard] = since, task
        await asyncio.wait({task})
        if task.cancelled():
            raise StoreFailed(self.name, "the node hosts the kind no more")
        return task.result()

    async def _mark(self, shard: int, since: int) -> bool:
        mark = Keeper(self, str(shard), shard, f"{self.kind}{_MARKS}")
        stored = await mark.load()
        await mark.store(str(since).encode())
        return stored.state is not None and stored.epoch < since

    async def release(self, shards: Iterable[int], timeout_s: float) -> None:
        """Take the marks of shards away: everything of them is stored. What fails is left as it is."""
        if not self.is_write:
            tasks = [self.loop.create_task(self._release(shard)) for shard in shards]
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=max(0.0, timeout_s))
                for task in late:
                    task.cancel()

    async def _release(self, shard: int) -> None:
        _, task = self._marking.pop(shard, (0, None))
        if task is not None:
            await asyncio.wait({task})
        mark = Keeper(self, str(shard), shard, f"{self.kind}{_MARKS}")
        try:
            await mark.load()
            await mark.store(None)
        except StoreError:
            return  # The next owner believes that something may be missing.

    def succeeded(self, fence: Fence, *, is_write: bool) -> None:
        """Note that the store took something."""
        self._proven[fence.shard] = fence.epoch
        if self._fenced_at:
            self._fenced_at.pop(fence.shard, None)
        if self._trouble_since is None or self.is_in_trouble:
            return  # One that fails now and then writes a line a second at most.
        if is_write or not self._write_failed:
            log.warning(
                "the store %s of %s works again after %.1f s, in which %d operations have failed and what %d "
                "casts had changed was lost", self.name, self.kind, self.loop.time() - self._trouble_since,
                self._failures, self._lost_casts,
            )  # fmt: skip
            self._trouble_since = self._failed_at = None

    def failed(self, error: StoreFailed, *, is_write: bool) -> None:
        """Note that the store could not do something."""
        self._failed_at = self.loop.time()
        self._write_failed = is_write
        if self._trouble_since is None:
            self._trouble_since, self._failures, self._lost_casts = self._failed_at, 0, 0
            log.error("entities of %s cannot be stored or loaded: %s", self.kind, error)
        self._failures += 1
        self._all_failures += 1

    def lost_cast(self, target: str, why: str) -> None:
        """Note that what a cast has changed was not stored, with nobody to be told; one line per trouble."""
        self._lost_casts += 1
        if self._lost_casts == 1:
            log.error("what a cast to %s has changed is lost, since it was not stored: %s", target, why)

    def outbids(self, fence: Fence, error: Fenced) -> bool:
        """Take a higher epoch, where this node may, after the store has refused it. False: it has not."""
        shard, now = fence.shard, self.loop.time()
        if self._proven.get(shard) == fence.epoch:
            if shard not in self._fenced_at:
                self._fenced_at[shard] = now
                log.warning(
                    "the shard %d of %s is served by another node, as the store says (epoch %d, here %d): "
                    "requests to it are refused here for now", shard, self.kind, error.highest, fence.epoch,
                )  # fmt: skip
            if now - self._fenced_at[shard] < OUTBID_S:
                return False
        self._fenced_at.pop(shard, None)
        shards = self._shards
        shards.table.heard_of(self.kind, shard, error.highest)
        if self.claim(shard) is None or not shards.serves(shard, is_inner=False):
            return False
        if shards.majority is not None:
            shards.review_soon()
            return False
        shards.renew(shard)
        shards.load_anew(shard)
        return True


class Keeper:
    """Keeps the state of one live entity.

    Attributes:
        is_sure: whether it knows what is stored.
    """

    __slots__ = ("_digest", "_epoch", "_kind", "_place", "_shard", "_tried", "_version", "is_sure")

    def __init__(self, kind: KindStore, key: str, shard: int, stored_as: str = "") -> None:
        self._kind = kind
        self._place = (stored_as or kind.kind, key)
        self._shard = shard
        self._epoch = 0
        self._version = 0
        self._digest: bytes | None = None
        """Of the state that is stored; None: there is none."""
        self._tried: bytes | None = None
        """Digest of the state that may have been stored last."""
        self.is_sure: bool = True

    async def load(self) -> Stored:
        """Return what is stored. Raises: StoreError."""
        await self._wait()
        try:
            stored = await self._ask(self._load())
        except Fenced as error:
            if not self._kind.outbids(self._fence(), error):
                raise
            stored = await self._ask(self._load())
        self._version, self._digest, self.is_sure = stored.version, _digest(stored.state), True
        return stored

    async def store(self, packed: bytes | None) -> None:
        """Have this state stored, unless it is; None: have nothing stored.

        Raises:
            StoreError: it is not, or that is not known; `Fenced` and `VersionConflict`: another owner has
                written.
        """
        await self._wait()
        digest = _digest(packed)
        if not self.is_sure:
            await self._find_out()
        if digest == self._digest:
            return
        self._tried, self.is_sure = digest, False
        await self._ask(self._write(packed, digest), is_write=True)

    # Internals.

    def _fence(self) -> Fence:
        claim = self._kind.claim(self._shard)
        if claim is not None:
            self._epoch = claim.epoch
        return Fence(self._shard, self._epoch)

    async def _load(self) -> Stored:
        kind, fence = self._kind, self._fence()
        async with kind.slots:
            stored = await kind.store.load(*self._place, fence)
        kind.succeeded(fence, is_write=False)
        return stored

    async def _write(self, packed: bytes | None, digest: bytes | None) -> None:
        """Write in a task of its own, which notes the outcome whether somebody waits for it or not."""
        kind, fence, expected = self._kind, self._fence(), self._version
        try:
            async with kind.slots:
                if packed is None:
                    version = await kind.store.drop(*self._place, fence, expected=expected)
                else:
                    version = await kind.store.save(*self._place, fence, packed, expected=expected)
        except (Fenced, VersionConflict):
            self.is_sure = True  # That nothing was written.
            raise
        self._version, self._digest, self.is_sure = version, digest, True
        kind.succeeded(fence, is_write=True)

    async def _find_out(self) -> None:
        """Load, since it is not known whether the last write took effect. Raises: StoreError."""
        stored = await self._ask(self._load())
        digest = _digest(stored.state)
        is_own = stored.version == self._version or (
            stored.version == self._version + 1 and digest == self._tried
        )
        if not is_own:
            raise VersionConflict("/".join(self._place), self._version, stored.version)
        self._version, self._digest, self.is_sure = stored.version, digest, True

    async def _wait(self) -> None:
        """Wait for an operation of this key that was given up. Raises: StoreFailed: it does not end."""
        task = self._kind.under_way.get(self._place)
        if task is not None:
            await asyncio.wait({task}, timeout=self._kind.limit_s)
            if not task.done():
                raise self._late()

    async def _ask(self, work: Coroutine[Any, Any, T], *, is_write: bool = False) -> T:
        """Do something in a task of its own, within the time limit. Raises: StoreError."""
        kind, place = self._kind, self._place
        task = kind.loop.create_task(work, name=f"store of {kind.kind}")
        timer = kind.loop.call_later(kind.limit_s, task.cancel)
        kind.under_way[place] = task

        def ended(_: object) -> None:
            timer.cancel()
            if kind.under_way.get(place) is task:
                del kind.under_way[place]
            if not task.cancelled():
                task.exception()  # Noted, since there may be nobody who waits.

        task.add_done_callback(ended)
        await asyncio.wait({task}, timeout=kind.limit_s)
        try:
            return task.result() if task.done() and not task.cancelled() else self._give_up(task)
        except StoreFailed as error:
            kind.failed(error, is_write=is_write)
            raise
        except StoreError:
            raise
        except Exception as error:  # a program's own store may raise anything
            failure = StoreFailed(kind.name, f"{type(error).__name__}: {text_of(error)}")
            kind.failed(failure, is_write=is_write)
            raise failure from error

    def _give_up(self, task: asyncio.Task[Any]) -> NoReturn:
        """End an operation that has taken too long. Raises: StoreFailed."""
        task.cancel()
        raise self._late()

    def _late(self) -> StoreFailed:
        return StoreFailed(self._kind.name, f"it has not answered within {self._kind.limit_s:g} s")


def _digest(packed: bytes | None) -> bytes | None:
    """Return what a state is compared by: the state itself would take its memory twice."""
    return None if packed is None else hashlib.blake2b(packed, digest_size=32).digest()
