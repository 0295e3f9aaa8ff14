"""Starting an actor and waiting until it is ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fleetlm.errors import InitFailed
from fleetlm.local import exit_reason

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.ids import Pid
    from fleetlm.local import LocalProcesses
    from fleetlm.process import Process


class _Starting:
    """A process function: an actor that tells when its init is done."""

    def __init__(self, actor: type[Actor] | Actor, ready: asyncio.Future[None]) -> None:
        self._actor = actor
        self._ready = ready
        self.__qualname__ = (actor if isinstance(actor, type) else type(actor)).__qualname__

    async def __call__(self, process: Process, *args: Any) -> None:
        actor, ready = self._actor, self._ready
        if isinstance(actor, type):
            actor = actor(*args)
        await actor(process, ready)


async def start(
    local: LocalProcesses,
    actor: type[Actor] | Actor,
    args: tuple[Any, ...],
    name: str | None,
    timeout_s: float,
) -> Pid:
    """Spawn an actor and return when its init is done. See `Node.start_actor`."""
    ready = asyncio.get_running_loop().create_future()
    starting = _Starting(actor, ready)
    pid = local.spawn(starting, args, name)
    process, task = local.process(pid), local.task_of(pid)
    assert process is not None and task is not None, "it has just been spawned"  # noqa: PT018  # no test
    try:
        await asyncio.wait({task, ready}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return pid
        ended = task.done()
    finally:
        if not ready.done():  # It failed or takes too long, or who asked was cancelled.
            ready.cancel()
            local.stop_process(pid.number, "killed", at_once=True)
    if not ended:
        raise InitFailed(starting.__qualname__, f"init was not done within {timeout_s:g} s")
    error = None if task.cancelled() else task.exception()
    raise InitFailed(starting.__qualname__, exit_reason(process, task.cancelled(), error))
