"""Functions that a program registers for the moments of a node that leaves: `Node.on_leaving`.

The phases, in their order:

* ``before_drain``: before anything is announced. The node takes work as ever; a load balancer can be told.
* ``after_drain``: what the node has begun has ended, or the time for it is over. Its processes still run.
* ``before_stop``: its processes have ended. It is still connected, and can send and call.
* ``after_undrain``: a drain was taken back.

The hooks of one phase begin together, in the order in which they were registered, and the phase lasts until
the last one is done. Each has a time limit of its own. What a hook raises is logged and stops nothing.

Source: Akka CoordinatedShutdown, whose tasks of one phase also run at the same time; differs: a limit
belongs to a hook, not to its phase, and no hook can end the others.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Literal, get_args

from fleetlm.records import Row
from fleetlm.runtime.user_functions import Function, TookTooLong, UserFunctions
from fleetlm.seconds import check_timeout
from fleetlm.texts import name_of

if TYPE_CHECKING:
    from fleetlm.settings import Settings

Phase = Literal["before_drain", "after_drain", "before_stop", "after_undrain"]
PHASES: tuple[Phase, ...] = get_args(Phase)

log: logging.Logger = logging.getLogger("fleetlm")


class Hook(Row):
    """One hook: what to call, and the seconds that it has."""

    function: Function
    limit_s: float


class LeavingHooks:
    """The hooks of one node."""

    def __init__(self, node: str, settings: Settings, functions: UserFunctions) -> None:
        self._node = node
        self._settings = settings
        self._functions = functions
        self._hooks: dict[Phase, list[Hook]] = {phase: [] for phase in PHASES}

    def check(self, phase: str, limit_s: float | None) -> None:
        """Raise ValueError for a phase that there is not, and for a time limit that is none."""
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is no phase of leaving; use one of {', '.join(PHASES)}")
        check_timeout(limit_s, above=0, finite=True)

    def add(self, phase: Phase, function: Function, limit_s: float | None) -> None:
        """See `Node.on_leaving`."""
        self.check(phase, limit_s)
        if not callable(function):
            raise TypeError(
                f"a hook must be a function without arguments, not {function!r}; the phase is a keyword: "
                'node.on_leaving(function, phase="before_drain")'
            )
        if sum(map(len, self._hooks.values())) >= self._settings.max_hooks:
            raise ValueError(f"there are {self._settings.max_hooks} hooks already (Settings.max_hooks)")
        self._functions.prepare(function)
        self._hooks[phase].append(Hook(function, self._settings.hook_s if limit_s is None else limit_s))

    def has(self, phase: Phase) -> bool:
        """Whether there is anything to run in a phase."""
        return bool(self._hooks[phase])

    async def run(self, phase: Phase, until: float) -> None:
        """Run the hooks of a phase. Never raises, and returns soon after ``until`` on the loop's clock."""
        hooks = [*self._hooks[phase]]
        if hooks:
            left_s = until - asyncio.get_running_loop().time()
            await asyncio.gather(*(self._run(phase, hook, min(hook.limit_s, left_s)) for hook in hooks))

    async def _run(self, phase: Phase, hook: Hook, limit_s: float) -> None:
        function: Any = hook.function
        while isinstance(function, functools.partial):
            function = function.func
        what = f"the hook {name_of(function)} ({phase}) of node {self._node}"
        if limit_s <= 0:
            log.warning("%s was not called: the time for leaving is over", what)
            return
        try:
            await self._functions.run(hook.function, limit_s)
        except TookTooLong as error:
            log.warning("%s %s; the node goes on without it", what, error)
        except Exception:
            log.exception("%s raised; the node goes on", what)
