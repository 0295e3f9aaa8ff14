"""Says what blocks the event loop: which process, in which function, while it does.

A handler that calls ``time.sleep`` or a driver that blocks stops everything on its node. Peers only see that
the node is busy. So a timer on the loop beats, a thread looks at it about once in `Settings.blocked_after_s`,
and if there was no beat for that time, the thread logs the task that runs and the innermost function of the
program. Each blockage is logged once, and each place at most `MAX_LINES` times, since the same handler
blocks again.

A function that holds the interpreter's lock, such as some C extensions, stops this thread as well. It then
looks late, when something else may run already, and says "perhaps". The same happens when the whole process
was stopped, or got no CPU.

Source: asyncio's ``slow_callback_duration``, which tells afterwards, in debug mode only, and not where.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from types import FrameType
from weakref import WeakKeyDictionary

log: logging.Logger = logging.getLogger("fleetlm")

MAX_LINES = 3
"""Lines about one place."""
MAX_PLACES = 1_000
_EARLY = 0.1
"""The part of a pause by which the timer may be early without a second beat at the same moment."""
_PARTS = 4
"""The fraction of `Settings.blocked_after_s` by which a blockage is logged late; two beats are twice as far
apart."""
_OURS = __file__.rpartition("/runtime/")[0]
_STANDARD = os.__file__.rpartition("/")[0]
_INSTALLED = ("site-packages", "dist-packages")

_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWatch] = WeakKeyDictionary()


class LoopWatch:
    """Watches one event loop from a thread; nodes on the same loop share it (`of`).

    Args:
        blocked_after_s: seconds after which a loop that stands still is logged, up to half as much later.
    """

    def __init__(self, blocked_after_s: float) -> None:
        self._limit_s = blocked_after_s
        self._look_s = blocked_after_s / _PARTS
        self._lines: dict[str, int] = {}
        self._users = 0
        self._beat_at = 0.0
        self._is_logged = False
        self._stop: threading.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, blocked_after_s: float) -> LoopWatch:
        """Return the watch of this loop."""
        watch = _of_loops.get(loop)
        if watch is None:
            watch = _of_loops[loop] = cls(blocked_after_s)
        return watch

    def start(self) -> None:
        """Begin to watch the loop that runs in this thread. Each start needs a `stop`."""
        self._users += 1
        if self._users == 1:
            loop, thread = asyncio.get_running_loop(), threading.get_ident()
            self._beat(loop)
            self._stop = threading.Event()
            threading.Thread(
                target=self._run, args=(self._stop, loop, thread), name="fleetlm loop watch", daemon=True
            ).start()

    def stop(self) -> None:
        """Stop watching, when each node on this loop has stopped."""
        self._users -= 1
        if self._users == 0 and self._stop is not None:
            self._stop.set()
            if self._timer is not None:
                self._timer.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        self._is_logged = False
        # At a moment at which the node ticks, where there is one: one wake-up of the loop for both.
        pause_s, now = self._look_s * 2, loop.time()
        due = (math.floor(now / pause_s + _EARLY) + 1) * pause_s
        self._timer = loop.call_at(due, self._beat, loop)

    def _run(self, stop: threading.Event, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        before, pause_s = time.monotonic(), self._limit_s
        while not stop.wait(pause_s):
            now = time.monotonic()
            is_late = now - before > pause_s + self._limit_s / 2
            if loop.is_closed():
                return
            still_s = now - self._beat_at
            # The next look is when the last beat is too old: a beat in between costs no wake-up here.
            before, pause_s = now, self._limit_s + self._look_s - still_s
            if pause_s > 0:
                continue
            pause_s = self._limit_s
            if loop.is_running() and not self._is_logged:
                self._is_logged = True
                self._tell(still_s, sys._current_frames().get(thread), loop, is_late)  # noqa: SLF001

    def _tell(
        self, still_s: float, frame: FrameType | None, loop: asyncio.AbstractEventLoop, is_late: bool
    ) -> None:
        place = "an unknown function" if frame is None else describe(frame)
        lines = self._lines.get(place, 0)
        if lines >= MAX_LINES or len(self._lines) >= MAX_PLACES:
            return
        self._lines[place] = lines + 1
        task = asyncio.current_task(loop)
        who = "a callback" if task is None else repr(task.get_name())
        found = f"{who} is in {place}"
        if is_late:
            found = f"perhaps because {found}, or because this whole process was stopped or got no CPU"
        log.warning(
            "the event loop has stood still for %.1f s: %s; nothing else on this node runs meanwhile. A "
            "function that blocks belongs in run_blocking or run_in_process",
            still_s,
            found,
        )


def describe(frame: FrameType) -> str:
    """Return the innermost function of the program on this stack: ``Gpu.infer (model.py:31)``."""
    each: FrameType | None = frame
    while each is not None:
        name = each.f_code.co_filename
        if not name.startswith((_OURS, _STANDARD, "<")) and not any(part in name for part in _INSTALLED):
            break
        each = each.f_back
    inner = frame if each is None else each
    shown = f"{inner.f_code.co_qualname} ({inner.f_code.co_filename.rpartition('/')[2]}:{inner.f_lineno})"
    if inner is frame:
        return shown
    return f"{shown}, which calls {frame.f_code.co_qualname}"
