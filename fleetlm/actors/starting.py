"""Starting an actor and waiting until it is ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fleetlm.errors import InitFailed
from fleetlm.processes.running import exit_reason

if TYPE_CHECKING:
    from fleetlm.actor import Actor
    from fleetlm.ids import Pid
    from fleetlm.process import Process
    from fleetlm.processes.local import LocalProcesses


class Starting:
    """A process function: an actor that tells when its init is done, or when there is none to wait for.

    Args:
        actor: its class, or an object of it.
        ready: gets True when init is done, False when the actor has ended before.
    """

    def __init__(self, actor: type[Actor] | Actor, ready: asyncio.Future[bool]) -> None:
        self._actor = actor
        self._ready = ready
        self.__qualname__ = (actor if isinstance(actor, type) else type(actor)).__qualname__

    async def __call__(self, process: Process, *args: Any) -> None:
        """Run as this process."""
        actor, ready = self._actor, self._ready
        try:
            if isinstance(actor, type):
                actor = actor(*args)
            await actor(process, ready)
        finally:
            if not ready.done():
                ready.set_result(False)


async def start(
    local: LocalProcesses,
    actor: type[Actor] | Actor,
    args: tuple[Any, ...],
    name: str | None,
    timeout_s: float,
) -> Pid:
    """Spawn an actor and return when its init is done. See `Node.start_actor`."""
    ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    starting = Starting(actor, ready)
    pid = local.spawn(starting, args, name)
    process, task = local.process(pid), local.task_of(pid)
    assert process is not None and task is not None, "it has just been spawned"  # noqa: PT018  # no test
    try:
        either: set[asyncio.Future[Any]] = {task, ready}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and ready.result():
            return pid
        if not ready.done() and not task.done():
            raise InitFailed(starting.__qualname__, f"init was not done within {timeout_s:g} s")
        await asyncio.wait({task})
    finally:
        if not ready.done():  # It takes too long, or who asked was cancelled.
            ready.cancel()
            local.stop_process(pid.number, "killed", at_once=True)
    error = None if task.cancelled() else task.exception()
    raise InitFailed(starting.__qualname__, exit_reason(process, task.cancelled(), error))
