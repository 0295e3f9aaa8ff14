from __future__ import annotations

import gc
import weakref
from typing import Any

from fleetlm.core.one_by_one import one_by_one


class Key:
    pass


def test_keys_come_in_order_as_they_were_at_first_and_each_is_let_go() -> None:
    table: dict[Any, None] = {Key(): None for _ in range(3)}
    refs = [weakref.ref(key) for key in table]
    gc.disable()  # Each goes since nothing refers to it any more, not since a collection finds it.
    try:
        found = []
        for key in one_by_one(table):
            found.append(refs.index(weakref.ref(key)))
            del table[key]
            table["another"] = None
            del key
            assert sum(ref() is not None for ref in refs) == 3 - len(found)
    finally:
        gc.enable()
    assert found == [0, 1, 2]
