"""What a store promises to those who keep states in it.

A store holds for each *kind* and *key* at most one state, as bytes. Several nodes use it at the same time,
and some of them are wrong about what they own: they were cut off, or frozen, and others have taken over. Two
numbers protect what is stored from them:

* The **epoch** (`Fence`): every operation names the epoch under which its node owns the shard of the key. A
  store remembers the highest one of each shard. It refuses everything under a lower one (`Fenced`), also
  where the later owner has only loaded. So from the moment at which an owner has loaded, no former owner
  changes anything.
* The **version**: it grows with each write of a key, and a write names the one that it is to replace. So of
  two owners that have the same epoch, which both sides of a partition may have, the later one is refused
  (`VersionConflict`); and so is a write that was given up and arrives late.

An operation either takes effect as a whole or not at all. When `save` or `drop` returns, its effect is
durable to the degree that the store promises. When it raises `Fenced` or `VersionConflict`, it has no effect.
When it raises anything else, or is cancelled, nobody knows.

What is dropped leaves a row without a state, which keeps its version, for `DROPPED_S` at least: so a write
that has been on its way since before cannot bring it back.

`fleetlm.testing.check_store` tells whether a store keeps all this.

Source: the conditional writes of Chubby's and ZooKeeper's clients (sequencers, versions); differs: a load
raises the fence, too, so that what was read cannot change behind the back of its reader.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from fleetlm.errors import Fenced, InvalidName, MessageTooLarge, VersionConflict
from fleetlm.texts import SHORT

MAX_NAME_CHARS = 255
"""Characters of a kind, and of a key."""
MAX_STATE_BYTES = 64 * 1024 * 1024
"""Bytes of one state. A database takes more, but a write of that size holds up all others."""
MAX_NUMBER = (1 << 63) - 1
"""Epochs and versions fit into the integers of databases."""
DROPPED_S = 3600.0
"""Seconds for which a store remembers what was dropped. Nothing that is late is as late as that."""


class Fence(NamedTuple):
    """Under what a node owns a key.

    Attributes:
        shard: of the key. The keys of a kind and shard have one owner, so one number fences them all.
        epoch: of the ownership, 1 or more. It grows with every change of the owner.
    """

    shard: int
    epoch: int


class Stored(NamedTuple):
    """What a store has of a key.

    Attributes:
        version: what the next `Store.save` is to expect; 0 if nothing was ever stored, as far as it is known.
        state: what was saved last, or None if there is nothing, or it was dropped.
        epoch: under which it was written; 0 if nothing was.
    """

    version: int
    state: bytes | None
    epoch: int


class Store(Protocol):
    """Keeps the states of entities; given to `Entities.host` as ``store=``. See `docs/stores.md`.

    All nodes that host a kind use the same data. The methods are called on the event loop of a node, many at
    a time; one entity has at most one operation under way at each of its owners. A store has a bound for what
    waits in it. Its ``repr`` names it in errors and logs. It may have a text ``place`` that says where the
    data is: `fleetlm doctor` names hosts whose stores have other ones.
    """

    async def load(self, kind: str, key: str, fence: Fence) -> Stored:
        """Return what is stored, and keep former owners from writing from now on.

        Args:
            kind: 1 to 255 characters.
            key: 1 to 255 characters.
            fence: of the node that loads.

        Raises:
            Fenced: a later owner has loaded or written in this shard.
            StoreFailed: the store cannot be asked.
        """
        ...

    async def save(self, kind: str, key: str, fence: Fence, state: bytes, *, expected: int) -> int:
        """Store a state in place of the one with a version.

        Args:
            kind: as in `load`.
            key: as in `load`.
            fence: of the node that writes.
            state: at most 64 MiB.
            expected: the version that `load` or the last `save` has returned.

        Returns:
            The version of what is stored now, above all former ones.

        Raises:
            Fenced: a later owner has loaded or written in this shard; nothing was stored.
            VersionConflict: another version is stored; nothing was stored.
            MessageTooLarge: the state is too large; nothing was stored.
            StoreFailed: it may have been stored, or may still be.
        """
        ...

    async def drop(self, kind: str, key: str, fence: Fence, *, expected: int) -> int:
        """Remove a state. Arguments, result and errors as with `save`."""
        ...


def check_place(kind: str, key: str) -> str:
    """Return how errors name a key. Raises: InvalidName: no database would take it as text."""
    for name in (kind, key):
        if not 0 < len(name) <= MAX_NAME_CHARS or "\0" in name or not _is_unicode(name):
            raise InvalidName(
                SHORT.repr(name),
                f"a store takes kinds and keys of 1 to {MAX_NAME_CHARS} characters of Unicode without NUL",
            )
    return f"{kind}/{key}"


def check_state(state: bytes) -> None:
    """Raise MessageTooLarge for a state that no store takes."""
    if len(state) > MAX_STATE_BYTES:
        raise MessageTooLarge(len(state), MAX_STATE_BYTES, "the limit of a store")


def check_fence(target: str, fence: Fence, highest: int) -> None:
    """Raise Fenced if a later owner has come. Raises: ValueError: not an epoch."""
    if not 0 < fence.epoch <= MAX_NUMBER:
        raise ValueError(f"an epoch is from 1 to 2^63 - 1, not {fence.epoch}")
    if fence.epoch < highest:
        raise Fenced(target, fence.epoch, highest)


def check_version(target: str, expected: int, found: int) -> None:
    """Raise VersionConflict if another version is stored than the one that is expected."""
    if expected != found:
        raise VersionConflict(target, expected, found)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Half of a surrogate pair.
        return False
    return True
