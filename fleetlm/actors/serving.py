"""Which handler runs in the task of an actor, found in the coroutines that the task awaits.

A call that is being served holds its request. A cast leaves no trace but the coroutine that runs: that of the
handler hangs at the end of the chain of coroutines that the task awaits. Locals of frames are not read, since
before Python 3.13 that leaves a copy of them in the frame, which would keep a message alive.
"""

from __future__ import annotations

import gc
from types import CoroutineType, GeneratorType
from typing import Any

from fleetlm.actors.isolation import run_in

_LEVELS = 16
"""Coroutines between the task of an actor and its handler that are looked at; there are about five."""
_RUN_IN = run_in.__code__


def handler_in(awaited: Any) -> str:
    """Return the name of the function that `run_in` runs at the end of a chain of coroutines; or nothing."""
    for _ in range(_LEVELS):
        if type(awaited) is CoroutineType:
            awaited = awaited.cr_await
        elif type(awaited) is GeneratorType and awaited.gi_code is _RUN_IN:
            inside = gc.get_referents(awaited)
            return next((each.__name__ for each in inside if type(each) is CoroutineType), "")
        else:
            break
    return ""
