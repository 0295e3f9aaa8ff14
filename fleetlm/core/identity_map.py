"""A map from pids, or refs, to values that Python's garbage collector does not visit.

The collector visits every object that may refer to others, and the loop stands still meanwhile. A peer may
have 262,144 links to processes here: as keys of a dict their pids alone take 0.1 s in each full pass. So keys
are kept here as plain numbers, in a dict for each node and incarnation. The collector leaves a dict of
numbers out, as long as its values are numbers or None too; others may be stored as well.

A map of few keys takes more memory so than a dict does, so a dict becomes one when it has `MANY`.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Final, TypeVar

from fleetlm.core.one_by_one import one_by_one
from fleetlm.ids import Pid, Ref

K = TypeVar("K", Pid, Ref)
V = TypeVar("V")

MANY: Final = 32
"""With more keys, a dict becomes an `IdentityMap`."""
_NONE: Final[dict[int, Any]] = {}


class IdentityMap(MutableMapping[K, V]):
    """Does what a dict does, in the order of insertion for each node.

    Args:
        kind: the class of the keys.
    """

    __slots__ = ("_count", "_kind", "_numbers")

    def __init__(self, kind: type[K]) -> None:
        self._kind: type[K] = kind
        self._numbers: dict[tuple[str, int], dict[int, Any]] = {}
        """Node and incarnation → number → what `_pack` made of the value."""
        self._count = 0

    def __getitem__(self, key: K) -> V:
        try:
            return self._unpack(self._numbers[key.node, key.incarnation][key.number])
        except KeyError:
            raise KeyError(key) from None

    def __setitem__(self, key: K, value: V) -> None:
        numbers = self._numbers.setdefault((key.node, key.incarnation), {})
        before = len(numbers)
        numbers[key.number] = self._pack(value)
        self._count += len(numbers) - before

    def __delitem__(self, key: K) -> None:
        place = key.node, key.incarnation
        numbers = self._numbers.get(place, _NONE)
        if key.number not in numbers:
            raise KeyError(key)
        del numbers[key.number]
        self._count -= 1
        if not numbers:
            del self._numbers[place]

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, self._kind):
            return False
        return key.number in self._numbers.get((key.node, key.incarnation), _NONE)

    def __iter__(self) -> Iterator[K]:
        for (node, incarnation), numbers in self._numbers.items():
            for number in numbers:
                yield self._kind(node, incarnation, number)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"

    def one_by_one(self) -> Iterator[K]:
        """Yield the keys as they are at the first step, each of them made when its turn comes."""
        every = [(place, one_by_one(numbers)) for place, numbers in self._numbers.items()]
        for (node, incarnation), numbers in every:
            for number in numbers:
                yield self._kind(node, incarnation, number)

    def _pack(self, value: V) -> Any:
        return value

    def _unpack(self, packed: Any) -> V:
        return packed  # type: ignore[no-any-return]  # what `_pack` got


class ActsMap(IdentityMap[Pid, tuple[int, ...]]):
    """Linked process → the acts that made the link; one act, the usual case, is kept as a number."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Pid)

    def _pack(self, value: tuple[int, ...]) -> Any:
        return value[0] if len(value) == 1 else value

    def _unpack(self, packed: Any) -> tuple[int, ...]:
        return packed if type(packed) is tuple else (packed,)


def keys_one_by_one(of: MutableMapping[K, Any]) -> Iterator[K]:
    """Yield the keys of a dict or an `IdentityMap` as they are at the first step."""
    return of.one_by_one() if isinstance(of, IdentityMap) else one_by_one(of)
