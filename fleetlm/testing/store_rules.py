"""What every store must keep: run `check_store`, or the single `STORE_RULES`, against one of your own.

    async def test_the_store_keeps_the_rules() -> None:
        async with RedisStore(url) as first, RedisStore(url) as second:
            await check_store(first, second)

``first`` and ``second`` are two objects with the same data, as two nodes have them. Each rule uses a kind of
its own, which the store must not have seen before, unless it is given one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from fleetlm.errors import Fenced, InvalidName, MessageTooLarge, StoreError, VersionConflict
from fleetlm.stores.interface import MAX_NUMBER, MAX_STATE_BYTES, Fence, Store, Stored

Rule = Callable[[Store, Store, str], Awaitable[None]]

ONE, TWO, THREE = Fence(7, 1), Fence(7, 2), Fence(7, 3)
"""Epochs of one shard."""


async def check_store(first: Store, second: Store) -> None:
    """Check a store against every rule.

    Args:
        first: a store.
        second: another object with the same data.

    Raises:
        AssertionError: it does not keep a rule, which the text names.
    """
    for rule in STORE_RULES:
        kind = f"check-{rule.__name__}-{secrets.token_hex(8)}"
        try:
            await rule(first, second, kind)
        except AssertionError as error:
            raise AssertionError(f"{first!r} does not keep the rule {rule.__name__!r}: {error}") from error


async def what_was_saved_is_loaded(first: Store, second: Store, kind: str) -> None:
    """A state comes back as it was saved, also from another node, with the version and the epoch."""
    _is(await first.load(kind, "a", ONE), Stored(0, None, 0), "of a key that was never stored")
    version = await first.save(kind, "a", ONE, b"\x00\xff state", expected=0)
    _is(await second.load(kind, "a", ONE), Stored(version, b"\x00\xff state", 1), "of a new state")
    assert version > 0, "a version is above 0, which stands for nothing"
    for state in (b"", b"x" * 100_000):
        former, version = version, await first.save(kind, "a", ONE, state, expected=version)
        assert version > former, f"the version {former} is followed by {version}, which is not above it"
        _is(await second.load(kind, "a", ONE), Stored(version, state, 1), "of the next state")


async def keys_and_kinds_are_apart(first: Store, second: Store, kind: str) -> None:
    """Keys are compared character by character, and the same key of two kinds is two states."""
    keys = ["a", "A", "ä", "a\u0308", "a ", " a", "a%", "a/b", "'; --", "\\", "日本", "🚲", "x" * 255]
    for number, key in enumerate(keys):
        await first.load(kind, key, ONE)
        await first.save(kind, key, ONE, f"state {number}".encode(), expected=0)
    other = f"{kind}/2"
    await first.load(other, "a", ONE)
    await first.save(other, "a", ONE, b"other", expected=0)
    for number, key in enumerate(keys):
        found = (await second.load(kind, key, ONE)).state
        _is(found, f"state {number}".encode(), f"of the key {key!r}")


async def a_name_that_no_database_takes_is_refused(first: Store, _second: Store, kind: str) -> None:
    """Empty, too long, with NUL or half a surrogate pair: `InvalidName`, and nothing happens."""
    for key in ("", "x" * 256, "a\0b", "\ud800"):
        await _refuses(InvalidName, first.load(kind, key, ONE), f"loading the key {key!r}")
        await _refuses(InvalidName, first.save(kind, key, ONE, b"", expected=0), f"saving {key!r}")
        await _refuses(InvalidName, first.drop(key, "a", ONE, expected=0), f"dropping of the kind {key!r}")


async def a_state_that_is_too_large_is_refused(first: Store, second: Store, kind: str) -> None:
    """Over 64 MiB: `MessageTooLarge`, and what was stored stays."""
    version = await first.save(kind, "a", ONE, b"small", expected=0)
    large = bytes(MAX_STATE_BYTES + 1)
    await _refuses(MessageTooLarge, first.save(kind, "a", ONE, large, expected=version), "a large state")
    _is(await second.load(kind, "a", ONE), Stored(version, b"small", 1), "after a state too large")


async def a_write_replaces_the_version_that_it_names(first: Store, second: Store, kind: str) -> None:
    """A write that expects another version is refused, and changes nothing."""
    await _refuses(VersionConflict, first.save(kind, "a", ONE, b"x", expected=1), "a version that never was")
    await _refuses(VersionConflict, first.drop(kind, "a", ONE, expected=1), "dropping what never was")
    one = await first.save(kind, "a", ONE, b"1", expected=0)
    await _refuses(VersionConflict, second.save(kind, "a", ONE, b"x", expected=0), "a second creation")
    two = await second.save(kind, "a", ONE, b"2", expected=one)
    await _refuses(VersionConflict, first.save(kind, "a", ONE, b"x", expected=one), "the former version")
    await _refuses(VersionConflict, first.drop(kind, "a", ONE, expected=one), "dropping the former version")
    await _refuses(VersionConflict, first.save(kind, "a", ONE, b"x", expected=two + 1), "a later version")
    _is(await first.load(kind, "a", ONE), Stored(two, b"2", 1), "after writes that were refused")


async def a_former_owner_writes_nothing(first: Store, second: Store, kind: str) -> None:
    """Once a later owner has written, everything under a lower epoch is refused."""
    version = await first.save(kind, "a", ONE, b"1", expected=0)
    version = await second.save(kind, "a", TWO, b"2", expected=version)
    await _refuses(Fenced, first.save(kind, "a", ONE, b"x", expected=version), "saving under a lower epoch")
    await _refuses(Fenced, first.drop(kind, "a", ONE, expected=version), "dropping under a lower epoch")
    await _refuses(Fenced, first.load(kind, "a", ONE), "loading under a lower epoch")
    _is(await second.load(kind, "a", TWO), Stored(version, b"2", 2), "after a former owner was refused")


async def who_loads_is_not_overtaken(first: Store, second: Store, kind: str) -> None:
    """A load is enough to keep former owners from writing, also of a key that has no state yet."""
    version = await first.save(kind, "a", ONE, b"1", expected=0)
    _is(await second.load(kind, "a", TWO), Stored(version, b"1", 1), "of a later owner")
    await _refuses(Fenced, first.save(kind, "a", ONE, b"x", expected=version), "what another has loaded")
    await _refuses(Fenced, first.drop(kind, "a", ONE, expected=version), "dropping what another has loaded")
    _is(await second.load(kind, "b", TWO), Stored(0, None, 0), "of a key that was never stored")
    await _refuses(Fenced, first.save(kind, "b", ONE, b"x", expected=0), "a key that another has loaded")
    _is(await second.load(kind, "a", TWO), Stored(version, b"1", 1), "after a former owner was refused")
    _is(await second.load(kind, "b", TWO), Stored(0, None, 0), "after a former owner was refused")


async def an_owner_may_come_back_with_a_higher_epoch(first: Store, second: Store, kind: str) -> None:
    """An epoch above all others is always taken, and one in between never again."""
    version = await first.save(kind, "a", ONE, b"1", expected=0)
    version = await first.save(kind, "a", THREE, b"3", expected=version)
    await _refuses(Fenced, second.load(kind, "a", TWO), "an epoch in between")
    high = Fence(7, MAX_NUMBER)
    _is(await second.load(kind, "a", high), Stored(version, b"3", 3), "under the highest epoch")
    await second.save(kind, "a", high, b"4", expected=version)
    await _refuses(Fenced, first.load(kind, "a", THREE), "an epoch below the highest")


async def shards_are_fenced_apart(first: Store, second: Store, kind: str) -> None:
    """The epoch of one shard, or of one kind, says nothing about another."""
    await first.load(kind, "a", Fence(1, 9))
    version = await second.save(kind, "b", Fence(2, 4), b"b", expected=0)
    _is(await first.load(kind, "b", Fence(2, 4)), Stored(version, b"b", 4), "of another shard")
    await first.save(f"{kind}/2", "a", Fence(1, 4), b"a", expected=0)


async def a_key_is_fenced_in_whatever_shard_it_lies(first: Store, second: Store, kind: str) -> None:
    """Where the number of shards was changed, a key keeps the epoch under which it was written."""
    version = await first.save(kind, "a", Fence(1, 9), b"9", expected=0)
    await _refuses(Fenced, second.save(kind, "a", Fence(2, 8), b"8", expected=version), "in another shard")
    await _refuses(Fenced, second.load(kind, "a", Fence(2, 8)), "loading in another shard")


async def what_was_dropped_is_gone(first: Store, second: Store, kind: str) -> None:
    """After a drop nothing is loaded, and a new state may be stored over it."""
    version = await first.save(kind, "a", ONE, b"1", expected=0)
    gone = await first.drop(kind, "a", ONE, expected=version)
    stored = await second.load(kind, "a", ONE)
    _is((stored.version, stored.state), (gone, None), "of what was dropped")
    version = await second.save(kind, "a", ONE, b"2", expected=gone)
    assert version > gone, "versions grow over a drop"
    _is(await first.load(kind, "a", ONE), Stored(version, b"2", 1), "of what was stored again")


async def what_was_dropped_does_not_come_back(first: Store, second: Store, kind: str) -> None:
    """A write that was on its way before the drop is refused after it, also one that creates."""
    version = await first.save(kind, "a", ONE, b"1", expected=0)
    await first.drop(kind, "a", ONE, expected=version)
    await _refuses(VersionConflict, second.save(kind, "a", ONE, b"x", expected=version), "a late write")
    await _refuses(VersionConflict, second.save(kind, "a", ONE, b"x", expected=0), "a late creation")
    _is((await first.load(kind, "a", ONE)).state, None, "after late writes")


async def of_many_writers_one_wins(first: Store, second: Store, kind: str) -> None:
    """Writers that expect the same version at the same time: one is taken, all others are refused."""
    version = 0
    for turn in range(5):
        states = [f"{turn} {number}".encode() for number in range(8)]
        writes = [
            (first, second)[number % 2].save(kind, "a", ONE, state, expected=version)
            for number, state in enumerate(states)
        ]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        taken = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
        refused = [each for each in outcomes if isinstance(each, VersionConflict)]
        assert (len(taken), len(refused)) == (1, 7), f"of eight writers at a time: {outcomes}"
        version = await _check(first, kind, "a", states[taken[0]])


async def epochs_that_race_leave_one_owner(first: Store, second: Store, kind: str) -> None:
    """Writes of a former owner while the later one loads: what it loads holds them, or they are refused."""
    version = 0
    for epoch in range(1, 40, 2):
        write = first.save(kind, "a", Fence(7, epoch), f"{epoch}".encode(), expected=version)
        load = second.load(kind, "a", Fence(7, epoch + 1))
        written, loaded = await asyncio.gather(write, load, return_exceptions=True)
        assert isinstance(loaded, Stored), f"the later owner cannot load: {loaded!r}"
        if isinstance(written, int):
            _is(loaded.version, written, "of a load after a write that was taken")
        else:
            assert isinstance(written, Fenced), f"a write that races with a later owner: {written!r}"
            _is(loaded.version, version, "of a load before a write that was refused")
        _is(await first.load(kind, "a", Fence(7, epoch + 1)), loaded, "of a second load")
        version = loaded.version


async def many_operations_at_once(first: Store, second: Store, kind: str) -> None:
    """Two hundred entities that write at the same time do not hinder each other."""
    keys = [f"k{number}" for number in range(200)]

    async def live(store: Store, key: str) -> None:
        version = (await store.load(kind, key, ONE)).version
        for state in (b"1", b"2"):
            version = await store.save(kind, key, ONE, key.encode() + state, expected=version)

    await asyncio.gather(*(live((first, second)[n % 2], key) for n, key in enumerate(keys)))
    for key in keys:
        await _check(first, kind, key, key.encode() + b"2")


async def a_write_that_is_given_up_harms_nobody(first: Store, second: Store, kind: str) -> None:
    """After a cancellation the state is the former or the new one, and the owner goes on from it."""
    version = await first.save(kind, "a", ONE, b"0", expected=0)
    for number in range(1, 6):
        write = asyncio.ensure_future(first.save(kind, "a", ONE, f"{number}".encode(), expected=version))
        for _ in range(number):
            await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait({write})
        stored = await first.load(kind, "a", ONE)
        assert stored.state is not None, "a write that was given up has removed the state"
        try:
            version = await first.save(kind, "a", ONE, b"next", expected=stored.version)
        except VersionConflict:  # It came late.
            version = (await first.load(kind, "a", ONE)).version
    assert (await second.load(kind, "a", ONE)).version >= version, "a version was lost"


STORE_RULES: tuple[Rule, ...] = (
    what_was_saved_is_loaded,
    keys_and_kinds_are_apart,
    a_name_that_no_database_takes_is_refused,
    a_state_that_is_too_large_is_refused,
    a_write_replaces_the_version_that_it_names,
    a_former_owner_writes_nothing,
    who_loads_is_not_overtaken,
    an_owner_may_come_back_with_a_higher_epoch,
    shards_are_fenced_apart,
    a_key_is_fenced_in_whatever_shard_it_lies,
    what_was_dropped_is_gone,
    what_was_dropped_does_not_come_back,
    of_many_writers_one_wins,
    epochs_that_race_leave_one_owner,
    many_operations_at_once,
    a_write_that_is_given_up_harms_nobody,
)
"""Each is called with two stores that have the same data, and the name of a kind that is new to them."""


def _is(found: Any, wanted: Any, what: str) -> None:
    assert found == wanted, f"{found!r} instead of {wanted!r} {what}"


async def _check(store: Store, kind: str, key: str, state: bytes) -> int:
    """Check what is stored. Returns its version."""
    stored = await store.load(kind, key, ONE)
    _is(stored.state, state, f"of {key}")
    return stored.version


async def _refuses(error: type[Exception], asked: Awaitable[Any], what: str) -> None:
    """Check that an operation raises this error, and not another one of a store."""
    try:
        outcome = await asked
    except error:
        return
    except StoreError as other:
        raise AssertionError(f"{what}: {other!r} instead of {error.__name__}") from other
    raise AssertionError(f"{what} was taken ({outcome!r}) instead of {error.__name__}")
