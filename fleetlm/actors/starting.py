"""Starts an actor and waits until its init is done.

`start` waits until the actor is ready, its process has ended, or the time is up. In the last case, and when
the waiting caller is cancelled, the process is killed, so that no half-started actor is left behind. An
actor that becomes ready in the same turn of the loop as the time-out counts as ready.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fleetlm.errors import InitFailed

if TYPE_CHECKING:
    from fleetlm.actors.handlers import ActorObject
    from fleetlm.ids import Pid
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import RunningProcess


class Starting:
    """A process function that runs an actor and reports when its init is done or has failed.

    Args:
        actor: its class, or an object of it.
        ready: gets True when init is done, False when the actor has ended before that.
    """

    def __init__(self, actor: type[ActorObject] | ActorObject, ready: asyncio.Future[bool]) -> None:
        self._actor = actor
        self._ready = ready
        self.__qualname__ = (actor if isinstance(actor, type) else type(actor)).__qualname__

    async def __call__(self, process: RunningProcess, *args: Any) -> None:
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
    actor: type[ActorObject] | ActorObject,
    args: tuple[Any, ...],
    name: str | None,
    timeout_s: float,
    *,
    is_local: bool = False,
) -> Pid:
    """Spawn an actor and return when its init is done; see `Node.start_actor`.

    Raises:
        InitFailed: the process has ended, or was killed because the time was up.
        AlreadyRegistered, InvalidName: nothing was started.
    """
    ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    starting = Starting(actor, ready)
    pid = local.spawn(starting, args, name, is_local=is_local)
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
        if not ready.done():  # It takes too long, or the caller was cancelled.
            ready.cancel()
            local.stop_process(pid.number, "killed", at_once=True)
    local.settle(task)  # Removing the process sets its reason.
    raise InitFailed(starting.__qualname__, process._exit_reason)
