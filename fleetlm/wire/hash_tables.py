"""Bounds the work of filling dicts and sets with keys that a peer chose.

Only texts and bytes have hashes that a peer cannot foresee (`PYTHONHASHSEED`). The hash of every other
message value can be computed in advance, so a peer can choose keys of which each meets all earlier ones: a
map of 640 KB then takes 9 seconds. There are two ways to do that:

- *Comparisons*: keys with one and the same hash, such as the integers ``n * (2**61 - 1)``, UUIDs of such
  integers, and tuples whose hashes were solved for. Each new key is compared with all earlier ones.
- *Steps*: keys with different hashes whose places in the table are taken by others. The table tries further
  places in an order that depends on the hash alone, and small integers can take thousands of these in a row.

So the keys are checked before the container is filled. Containers of few keys, and those of texts and bytes,
which are nearly all, are not looked at. Up to `_COUNTED_KEYS` keys only comparisons are counted, since a step
takes a nanosecond. For more keys a table is filled with their hashes in the way of CPython, and both are
counted. Honest keys stay far below the limits: random hashes take 1 or 2 steps for each key, and the worst
patterns, such as multiples of 1/1024 or of 2**40, less than 30.

Source: CPython, Objects/dictobject.c and Objects/setobject.c (3.11 to 3.14).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

UNCHECKED_KEYS = 16
"""Up to so many keys need no check: at worst 120 comparisons."""
_COUNTED_KEYS = 4_096
"""Up to so many keys may take steps as they like: at worst 2,048 for each, some microseconds."""
_STEPS_PER_KEY = 32
"""More steps for each key, on the average, come from keys that were made to collide."""
_COMPARISONS_PER_KEY = 20
"""More comparisons for each key, on the average, come from keys that were made to collide. The powers of two
that a float can have are the worst honest ones: 34 of them share each hash."""
_MOST_COMPARISONS = 90_000
"""More comparisons in one container, and `_FURTHER_COMPARISONS` for each key, come from such keys, too: there
are only 2,098 powers of two among floats. Each takes half a microsecond."""
_FURTHER_COMPARISONS = 2
_PERTURB_SHIFT = 5
_LINEAR_PROBES = 9
"""Places behind the one that was tried, which a set tries before it goes elsewhere."""
_UNSIGNED = (1 << 64) - 1
"""The tables take a hash as an unsigned number."""
_all_random: Callable[[Iterable[Any]], bool] = frozenset({str, bytes, type(None), bool}).issuperset


class CollidingKeys(ValueError):
    """The keys of a dict or the items of a set were made to collide. The text says which."""

    @classmethod
    def among(cls, count: int) -> CollidingKeys:
        """Make the error for keys whose hashes collide."""
        return cls(f"{count:,} keys of a dict or items of a set whose hashes collide")


def check_keys(keys: Sequence[Any]) -> None:
    """Check that a dict of these keys takes no more than an honest amount of work.

    Args:
        keys: in the order in which the dict will be filled. Some may be equal to each other.

    Raises:
        CollidingKeys: it takes more.
        TypeError: a key cannot be hashed.
        Exception: ``__hash__`` or ``__eq__`` of a program's class raised it.
    """
    count = len(keys)
    if count <= UNCHECKED_KEYS or _all_random(map(type, keys)):
        return
    hashes = [hash(key) & _UNSIGNED for key in keys]
    if count > _COUNTED_KEYS:
        _fill_dict(keys, hashes)
        return
    alike = Counter(hashes)
    if len(alike) < count:
        comparisons = sum(each * (each - 1) // 2 for each in alike.values())
        if comparisons > _COMPARISONS_PER_KEY * count:
            raise CollidingKeys.among(count)


def make_set(items: Sequence[Any]) -> set[Any]:
    """Return the set of these items. Raises as `check_keys`."""
    check_keys(items)
    if len(items) <= _COUNTED_KEYS or _all_random(map(type, items)):
        return set(items)
    # A set that is made of a dict has its final size from the start, and no items to compare.
    distinct = dict.fromkeys(items)
    _fill_set([hash(item) & _UNSIGNED for item in distinct])
    return set(distinct)


def _fill_dict(keys: Sequence[Any], hashes: list[int]) -> None:
    """Fill the table of a dict and count. Raises as `check_keys`."""
    steps_left = _STEPS_PER_KEY * len(keys)
    comparisons_left = _MOST_COMPARISONS + _FURTHER_COMPARISONS * len(keys)
    distinct: list[int] = []
    """The numbers of the keys in the table; keys that are equal to one of them are not."""
    room = 0
    table: list[int | None] = [None] * _COUNTED_KEYS
    mask = len(table) - 1
    for number, where in enumerate(hashes):
        if len(distinct) >= room:  # A dict that is two thirds full gets a table of twice the size.
            table, steps_left = _grow(2 * len(table), distinct, hashes, steps_left)
            mask, room = len(table) - 1, 2 * len(table) // 3
        place = where & mask
        other = table[place]
        perturb = where
        while other is not None:
            if hashes[other] == where:
                comparisons_left -= 1
                if keys[other] is keys[number] or keys[other] == keys[number]:
                    break
            steps_left -= 1
            perturb >>= _PERTURB_SHIFT
            place = (5 * place + perturb + 1) & mask
            other = table[place]
            if steps_left < 0 or comparisons_left < 0:
                raise CollidingKeys.among(len(keys))
        else:
            table[place] = number
            distinct.append(number)


def _grow(size: int, distinct: list[int], hashes: list[int], steps_left: int) -> tuple[list[int | None], int]:
    """Return a table of ``size`` places for the same keys, and the steps that are left."""
    table: list[int | None] = [None] * size
    mask = size - 1
    for number in distinct:
        perturb = hashes[number]
        place = perturb & mask
        while table[place] is not None:
            steps_left -= 1
            if steps_left < 0:
                raise CollidingKeys.among(len(hashes))
            perturb >>= _PERTURB_SHIFT
            place = (5 * place + perturb + 1) & mask
        table[place] = number
    return table, steps_left


def _fill_set(hashes: list[int]) -> None:
    """Fill the table of a set with distinct items of these hashes, and count."""
    size = 8
    while size <= 2 * len(hashes):
        size *= 2
    steps_left = _STEPS_PER_KEY * len(hashes)
    mask = size - 1
    table = bytearray(size)
    for where in hashes:
        place, perturb = where & mask, where
        while table[place]:
            end = place + 1 + _LINEAR_PROBES
            free = table.find(0, place, end) if end <= size else -1
            if free >= 0:
                place = free
                break
            steps_left -= 1
            if steps_left < 0:
                raise CollidingKeys.among(len(hashes))
            perturb >>= _PERTURB_SHIFT
            place = (5 * place + perturb + 1) & mask
        table[place] = 1
