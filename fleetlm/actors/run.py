"""The life of an actor: takes requests, runs handlers, hears who has given up, ends in order."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from fleetlm.actors.handlers import Handler, Handlers
from fleetlm.call import Call
from fleetlm.errors import FleetError, ProcessExit
from fleetlm.messaging.deadline import SERVING
from fleetlm.processes.running import exit_reason
from fleetlm.texts import SHORT, type_name
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fleetlm.actor import Actor
    from fleetlm.process import Process

log = logging.getLogger("fleetlm")

_WAKE = object()
_MAX_COMPLAINTS = 100
"""Of one actor, each logged once: what a peer sends must not fill the log."""


class ActorRun:
    """One run of an actor. All of it happens in the actor's own task, but for concurrent handlers."""

    __slots__ = (
        "_actor", "_beside", "_complaints", "_handlers", "_loop", "_most", "_open", "_slot",
        "_stop_reason", "_stopping", "_task", "process",
    )  # fmt: skip

    def __init__(self, actor: Actor, handlers: Handlers, process: Process) -> None:
        self.process = process
        self._actor = actor
        self._handlers = handlers.by_name
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._stopping = False
        self._stop_reason: Any = None
        self._open: dict[Call, asyncio.Task[Any]] = {}
        """Calls being served, and the task that does."""
        self._beside: set[asyncio.Task[None]] = set()
        """Concurrent handlers."""
        self._most = process.node.settings.concurrent_handlers
        self._slot: asyncio.Future[None] | None = None
        self._complaints: set[str] = set()

    async def run(self, ready: asyncio.Future[bool] | None) -> None:
        """From init to terminate. Always raises: what ended it."""
        process = self.process
        process.on_answered = self._answered
        await self._actor.init()
        if ready is not None and not ready.done():
            ready.set_result(True)
        try:
            await self._serve()
        except (Exception, asyncio.CancelledError) as error:
            if not process.gone:
                await self._finish(exit_reason(process, isinstance(error, asyncio.CancelledError), error))
            raise
        finally:
            for task in self._beside:  # Those of a killed actor, and those that would not end.
                task.cancel()

    def stop(self, reason: Any) -> None:
        """See `Actor.stop`."""
        if not self._stopping:
            self._stopping = True
            self._stop_reason = reason
            self.process.mailbox.put(_WAKE)
            self._room()

    def refuse(self, call: Call, why: str) -> None:
        """Nothing runs for this call."""
        call.no_handler(str(self.process.name or self.process.pid), why)

    def complain(self, about: str, text: str) -> None:
        """Log once what this actor could not do anything with."""
        if about not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(about)
            process = self.process
            log.warning("actor %s (%s) %s", process.name or process.pid, process.runs, text)

    # One at a time.

    async def _serve(self) -> None:
        process, get, actor = self.process, self.process.mailbox.get, self._actor
        while not (self._stopping or process.ending):
            message = await get()
            if isinstance(message, Call):
                if type(message.message) is Invoke:
                    await self._called(message, message.message)
                else:
                    SERVING.set(message)
                    await actor.handle_info(message)
                    SERVING.set(None)
            elif type(message) is Invoke:
                await self._cast(message)
            elif message is not _WAKE:
                await actor.handle_info(message)
            message = None  # An actor that waits holds on to nothing.
        if process.ending:  # An exit signal came, and a handler swallowed the cancellation.
            raise asyncio.CancelledError
        raise ProcessExit(self._stop_reason)

    async def _called(self, call: Call, request: Invoke) -> None:
        found = self._find(request, call)
        if found is None:
            return
        if found.concurrent:
            await self._start_beside(found, request, call)
        else:
            await self._answer(found, request, call, self._task)

    async def _cast(self, request: Invoke) -> None:
        found = self._find(request, None)
        if found is None:
            return
        if found.concurrent:
            await self._start_beside(found, request, None)
        else:
            await self._do(found, request)

    async def _do(self, found: Handler, request: Invoke) -> None:
        """Run a handler for nobody: what it raises ends the actor, since nobody else would hear of it."""
        try:
            running = found.function(self._actor, *request.args, **request.kwargs)
        except TypeError as error:  # The arguments do not fit, and nothing has run.
            self.complain(f"arguments {request.handler}", f"drops a cast: {error}")
            return
        await running

    async def _answer(self, found: Handler, request: Invoke, call: Call, task: Any) -> None:
        self._open[call] = task
        SERVING.set(call)
        try:
            running = found.function(self._actor, *request.args, **request.kwargs)
            result = await (self._pump(call, running) if found.streams else running)
        except asyncio.CancelledError as error:
            if self._wanted(call, task):
                if self.process.ending or task.cancelling():
                    raise
                call.fail(error)  # It awaited something that somebody else cancelled.
        except ProcessExit:
            self._open.pop(call, None)
            raise
        except Exception as error:  # It is the caller's to judge.
            if self._wanted(call, task):
                call.fail(error)
            else:
                log.info("%s failed after its caller had gone", self._shown(request), exc_info=error)
        else:
            if self._wanted(call, task):
                self._reply(call, request, result)
        finally:
            SERVING.set(None)
            call.message = None  # A task that the handler left behind has this call in its context.

    async def _pump(self, call: Call, items: AsyncGenerator[Any, None]) -> None:
        try:
            async for item in items:
                if not await call.put(item):
                    self._open.pop(call, None)  # So that the clean-up is not cancelled.
                    return
        finally:
            await items.aclose()

    def _reply(self, call: Call, request: Invoke, result: Any) -> None:
        try:
            call.reply(result)
        except FleetError as error:  # The caller has been told.
            self.complain(f"reply {request.handler}", f"cannot send what {request.handler} returned: {error}")

    def _find(self, request: Invoke, call: Call | None) -> Handler | None:
        try:
            found = self._handlers.get(request.handler)
        except TypeError:  # From a peer that sends something else than a name.
            found = None
        streaming = call is not None and call.streaming
        if found is not None and found.streams == streaming:
            return found
        name = SHORT.repr(request.handler)
        if found is None:
            why = f"{self.process.runs} has no handler {name}"
        elif found.streams:
            why = f"{name} of {self.process.runs} yields: use stream()"
        else:
            why = f"{name} of {self.process.runs} returns one result: use call() or cast()"
        if call is not None:
            self.refuse(call, why)
        else:
            self.complain(why, f"drops a cast: {why}")
        return None

    # Who gives up.

    def _answered(self, call: Call) -> None:
        if call in self._open:  # Not answered here, so its caller has gone.
            self._loop.call_soon(self._interrupt, call)  # It may be the handler itself that causes it.

    def _interrupt(self, call: Call) -> None:
        task = self._open.pop(call, None)
        if task is self._task and self.process.ending:
            return  # It has been cancelled, and a second time would cut its clean-up short.
        if task is not None:
            task.cancel()

    def _wanted(self, call: Call, task: asyncio.Task[Any]) -> bool:
        """The handler is done: whether its caller still waits. If not, it has been cancelled, once.

        Source: asyncio.timeout, which takes back the cancellation that it asked for; differs: no timer.

        Raises:
            CancelledError: somebody else cancelled it as well, so the actor ends.
        """
        if self._open.pop(call, None) is not None:
            return True
        if call.open:
            return False  # The actor ends, and answers its calls then.
        if task.cancelling() and (task.uncancel() or self.process.ending):
            raise asyncio.CancelledError
        return False

    # Beside one another.

    async def _start_beside(self, found: Handler, request: Invoke, call: Call | None) -> None:
        name = f"{self._shown(request)} of {self.process.pid.number}"
        task = self._loop.create_task(self._run_beside(found, request, call), name=name)
        self._beside.add(task)
        task.add_done_callback(self._left)
        while len(self._beside) >= self._most and not self._stopping:
            self._slot = self._loop.create_future()
            await self._slot

    async def _run_beside(self, found: Handler, request: Invoke, call: Call | None) -> None:
        process = self.process
        try:
            if call is None:
                await self._do(found, request)
            elif call.wanted:
                await self._answer(found, request, call, asyncio.current_task())
            else:
                call.abandon()
        except ProcessExit as error:
            process.end_with(error.reason)
        except Exception as error:
            log.exception("actor %s (%s) crashed", process.name or process.pid, process.runs)
            process.end_with(exit_reason(process, False, error))

    def _left(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        self._room()

    def _room(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None and not slot.done():
            slot.set_result(None)

    # The end.

    async def _finish(self, reason: Any) -> None:
        process, most_s = self.process, self.process.node.settings.terminate_s
        process.closing = True
        self._open.clear()
        SERVING.set(None)
        if process.ending:
            try:  # One that ended itself meets its cancellation only now: it is not for the clean-up.
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if process.gone:
                    raise
        if self._beside:
            for task in self._beside:
                task.cancel()
            _, stuck = await asyncio.wait(self._beside, timeout=most_s)
            if stuck:
                log.warning("%d handler(s) of %s ignore their cancellation", len(stuck), process.pid)
        limit = asyncio.timeout(most_s)
        try:
            async with limit:
                await self._actor.terminate(reason)
        except asyncio.CancelledError:
            if process.gone:
                raise
            log.warning("terminate of %s was cancelled by what it awaited", process.pid)
        except Exception:
            late = f"was not done within {most_s:g} s (Settings.terminate_s)" if limit.expired() else "raised"
            log.exception("terminate of %s (%s) %s", process.pid, process.runs, late)

    def _shown(self, request: Invoke) -> str:
        return f"{self.process.runs}.{request.handler}"


def described(message: Any) -> str:
    """What a message is, in a few words for a log."""
    return f"{type_name(type(message))} {SHORT.repr(message)}"
