"""The run of an actor: takes requests, runs handlers, cancels those whose callers have gone, ends in order.

Tasks. An actor is a process, so it has one task, the *main task*. It takes one message after the other
from the mailbox and runs plain handlers itself. A handler marked as concurrent gets a task of its own; at
most `Settings.concurrent_handlers` of them run at a time, and at that bound the main task waits for one
to end before it takes the next message.

Calls. A call that is being served is in ``_open``, with the task that serves it. It leaves ``_open`` in one
of three ways, and the first one decides: its handler is done (`_settle_call`); its caller has gone
(`_interrupt`); or the actor ends (`_finish` empties ``_open``, and the process answers the calls later). A
handler that raises anything, ``sys.exit`` included, fails its call and the actor goes on, and this node logs
the exception (`FailureLog`). In a cast there is no caller to be told, so the actor ends. `ProcessExit`, or a
group of nothing else, ends the actor from anywhere. `_ends_actor` is the one place that decides.

Context variables. The main task has the actor's own, which `init` may set. Every request, and every message
for `handle_info`, runs in a copy of them (`isolation`), so nothing that a handler sets is seen by the next.

Handlers that must finish (``cancel=False``). Their calls are in ``_open`` without a task, so nothing
interrupts them when the caller goes. While one runs in the main task, ``RunningProcess._must_finish`` keeps
an exit signal from cancelling it: the signal is noted, and `_serve` obeys it afterwards. Concurrent ones have
`Settings.terminate_s` seconds in `_finish` before they are cancelled. A kill interrupts all of them.

Cancellation. In asyncio one exception, `CancelledError`, says five different things. Each has its own
source, and this module must tell them apart, because only some of them end the actor:

1. *An exit signal* (`RunningProcess._end_with`) sets ``_is_ending`` and cancels the main task once. The actor
   ends: the handler that runs there is interrupted and its call is not answered here (`ProcessDown`).
2. *A kill* does the same, and removes the process at once: ``_is_gone`` is true. Nothing is awaited any more:
   neither `terminate` nor concurrent handlers, which `run` cancels in its ``finally``.
3. *The caller has gone*: time-out, cancellation, loss of its node, a consumer that stops reading. The call
   is abandoned, the process tells `_notice_answered`, and `_interrupt` cancels the task that serves it,
   once. The handler ends and the actor goes on, so this cancellation must not be left on the main task:
   `_settle_call` takes it back with `Task.uncancel`.
4. *What the handler awaits was cancelled*, such as a task or a future that other code cancels. The serving
   task itself was not: its ``cancelling()`` is 0. That is a failure of the handler, told to its caller like
   any exception; in a cast it is a crash.
5. *The end of the actor* (`_finish`) cancels its concurrent handlers. ``_open`` is empty by then, so none
   of them is taken for case 3, and none answers its call.

Several cases may come together before the handler's next step. ``Task.cancelling()`` counts them:

* 3, then 1: the count is 2. After ``uncancel`` it is 1, so the actor ends.
* 1, then 3: `_interrupt` sees ``_is_ending`` and does not cancel the main task again, since a second
  cancellation would cut the clean-up of the handler short. The count is 1, and ``uncancel`` makes it 0;
  therefore `_settle_call` looks at ``_is_ending`` as well. A concurrent task is cancelled nevertheless,
  since an exit signal cancels the main task only.
* A TaskGroup whose task fails while the group waits for it at its end cancels the task that serves the call
  and never takes that back, in Python before 3.13. So the count may be above 0 with no cancellation under
  way. `_interrupt` therefore remembers what it was before, `_settle_call` compares with that, and
  `_drop_stale` takes the rest back when a handler has raised.
* The handler swallows the cancellation of 3 and returns: `_settle_call` takes the cancellation back, and
  the result goes nowhere.
* The handler swallows the cancellation of 1 and returns: `_serve` sees ``_is_ending`` after each message
  and raises `CancelledError` itself.
* The process sends itself an exit signal and raises or returns without another ``await``: the cancellation
  is still to be delivered, and would hit `terminate`. `_finish` lets it arrive in a ``sleep(0)`` first.
* Case 3 is noticed while the handler itself is the cause, such as one that stops its own caller.
  `_interrupt` therefore runs in the next turn of the loop; if the handler is done by then, the call is not
  in ``_open`` any more, and nothing is cancelled.
* A generator of stream items whose consumer has stopped reading: `_send_items` takes the call out of
  ``_open`` before it closes the generator, so that the clean-up in the generator is not cancelled. What
  closing raises is logged and harms nobody: a TaskGroup around a ``yield`` raises a group whenever its
  generator is closed (cpython#135736).
* A cancellation while `_send_items` waits for the consumer, not in the generator itself: it is thrown into
  the generator at its ``yield``, so that a time-out or a TaskGroup around the ``yield`` sees its own
  cancellation and takes it back.

Anything else that cancels the main task (a program that finds the task, the end of the loop) is a crash of
the actor, after `terminate`. Other code that cancels the task of a concurrent handler fails that call.

Source: asyncio.timeout for taking back one's own cancellation; differs: the cause is a caller that has
gone, not a timer, and the task goes on with its next message. OTP gen_server cannot interrupt a handler.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fleetlm.actors.between import BetweenHandlers
from fleetlm.actors.handlers import ActorObject, Handler, Handlers
from fleetlm.actors.isolation import run_in
from fleetlm.call import Call
from fleetlm.errors import FleetError, NotAllowed, ProcessExit
from fleetlm.messaging.carrying import CARRYING
from fleetlm.messaging.deadline import SERVING
from fleetlm.messaging.own_loop import check_loop
from fleetlm.processes.boundary import exit_in, is_from_signal
from fleetlm.processes.drain_listeners import DrainNotice
from fleetlm.processes.running import RunningProcess, exit_reason
from fleetlm.taps import outcome_of
from fleetlm.texts import SHORT, loggable, text_of, type_name
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from fleetlm.actors.failure_log import FailureLog
    from fleetlm.settings import Settings
    from fleetlm.taps import Taps

log: logging.Logger = logging.getLogger("fleetlm")

ProcessT = TypeVar("ProcessT", bound=RunningProcess)

_WAKE = object()
"""Put into the mailbox by `ActorRun.stop`, so that an actor that waits for a message goes on."""
_MAX_COMPLAINTS = 100
"""Different complaints of one actor that are logged, each once, so that peers cannot fill the log."""


class ActorRun(Generic[ProcessT]):
    """One run of an actor, in its main task except for concurrent handlers."""

    __slots__ = (
        "_actor", "_complaints", "_concurrent", "_failures", "_free_slot", "_handlers", "_interrupted",
        "_is_stopping", "_loop", "_main_task", "_max_concurrent", "_open", "_stop_reason", "_taps",
        "_terminate_s", "process",
    )  # fmt: skip

    def __init__(
        self,
        actor: ActorObject,
        handlers: Handlers,
        process: ProcessT,
        settings: Settings,
        failures: FailureLog,
        taps: Taps,
    ) -> None:
        self.process: ProcessT = process
        self._actor = actor
        self._handlers = handlers.by_name
        self._loop = asyncio.get_running_loop()
        self._main_task: asyncio.Task[Any] | None = asyncio.current_task()
        self._is_stopping = False
        self._stop_reason: Any = None
        self._failures = failures
        self._taps = taps
        self._open: dict[Call, asyncio.Task[Any] | None] = {}
        """Calls being served, each with the task that serves it; None if it must not be interrupted."""
        self._interrupted: dict[Call, int] = {}
        """Calls whose handlers were cancelled, and the count of their tasks before that."""
        self._concurrent: dict[asyncio.Task[None], Handler] = {}
        """The tasks of concurrent handlers."""
        self._max_concurrent = settings.concurrent_handlers
        self._terminate_s = settings.terminate_s
        self._free_slot: asyncio.Future[None] | None = None
        """What the main task waits for while ``_max_concurrent`` handlers run."""
        self._complaints: set[str] = set()

    async def run(self, ready: asyncio.Future[bool] | None) -> None:
        """Run from init to terminate.

        Raises:
            ProcessExit, CancelledError, BaseException: always, since an actor ends only by `stop`, by a
                handler that exits, by a cancellation, or by an exception of init, a cast or `handle_info`.
        """
        process = self.process
        process._on_answered = self._notice_answered
        process._is_starting = True
        process._beside = self._concurrent
        await process.mailbox.turns.pause()  # Many actors may start in one round of the loop.
        await self._actor.init()
        process._is_starting = False
        if ready is not None and not ready.done():
            ready.set_result(True)
        try:
            await self._serve()
        except BaseException as error:
            if not (process._is_gone or is_from_signal(error) or self._is_closed(error)):
                await self._finish(exit_reason(process, error))
            raise
        finally:
            for task in self._concurrent:  # Of a killed actor, or ignoring their first cancellation.
                task.cancel()

    def stop(self, reason: Any) -> None:
        """See `Actor.stop`."""
        check_loop(self._loop, "Actor.stop")
        if not self._is_stopping:
            self._is_stopping = True
            self._stop_reason = reason
            self.process.mailbox.put(_WAKE)
            self._tell_free_slot()

    def refuse(self, call: Call, why: str) -> None:
        """Refuse a call: no handler has run for it."""
        call.no_handler(str(self.process.name or self.process.pid), why)

    def complain(self, about: str, text: str) -> None:
        """Log a message that this actor could not use; each ``about`` is logged once."""
        if about not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(about)
            process = self.process
            log.warning("actor %s (%s) %s", process.name or process.pid, process.runs, text)

    def _drop_cast(self, about: str, why: str, whose: str = "") -> None:
        """Log a cast that no handler gets, as `complain` does, and tell who wants to know."""
        self.complain(about, f"drops a cast{whose}: {why}")
        if self._taps.message_dropped is not None:
            self._taps.message_dropped("no_handler", 1, self.process.pid, "")

    # One message at a time.

    async def _serve(self) -> None:
        """Take messages until the actor is to end. Always raises."""
        process, get = self.process, self.process.mailbox.get
        while not (self._is_stopping or process._is_ending):
            message = await get()
            call = message if isinstance(message, Call) else None
            request = message if call is None else message.message
            if type(request) is Invoke:
                found = self._find(request, call)
                if found is None:
                    pass
                elif found.concurrent:
                    await self._start_concurrent(found, request, call)
                else:  # Here and not in a coroutine of its own, which every request would have to pay for.
                    process._must_finish = not found.cancel
                    try:
                        if call is None:
                            await self._run_cast(found, request)
                        else:
                            await self._run_call(found, request, call, self._main_task)
                    finally:
                        process._must_finish = False
            elif type(message) is DrainNotice:
                await self._hear_of_drain(message)
            elif isinstance(message, BetweenHandlers):
                await run_in(copy_context(), message.run())
            elif message is not _WAKE:
                await self._handle_info(message, call)
            message = call = request = None  # An actor that waits keeps no message alive.
        if process._is_ending:  # A handler swallowed the cancellation of an exit signal, or had to finish.
            raise asyncio.CancelledError
        raise ProcessExit(self._stop_reason)

    async def _handle_info(self, message: Any, call: Call | None) -> None:
        context = copy_context()
        running: Any = self._actor.handle_info(message)
        if call is not None:
            context.run(SERVING.set, call)
            if CARRYING.is_served:
                running = self._carrying(context, running, call.message, call, call.carrier)
        if self._taps.handlers is not None:
            running = self._told(running, "handle_info", call)
        await run_in(context, running)

    def _carrying(
        self, context: Context, work: Any, message: Any, call: Call | None, carrier: bytes | None
    ) -> Any:
        """See `Carrying.serve`."""
        process = self.process
        return CARRYING.serve(context, work, process.pid, process.name, process.runs, message, call, carrier)

    async def _hear_of_drain(self, notice: DrainNotice) -> None:
        """Run `Actor.on_drain` or `Actor.on_undrain`. What it raises is logged, and the actor goes on."""
        actor, until = self._actor, notice.until
        name = "on_undrain" if until is None else "on_drain"
        try:
            await run_in(copy_context(), actor.on_undrain() if until is None else actor.on_drain(until))
        except BaseException as error:
            if self._ends_actor(error):
                raise
            self._failures.report(self.process, name, error, "the actor goes on")

    def _begin(self, found: Handler, request: Invoke, call: Call | None) -> Any:
        """Return what a handler is to run; if the arguments do not fit, refuse them, and return None."""
        try:
            return found.function(self._actor, *request.args, **request.kwargs)
        except TypeError as error:  # Nothing has run.
            if call is not None:
                self.refuse(call, text_of(error))
            else:
                self._drop_cast(f"arguments {request.handler}", text_of(error))
            return None

    async def _run_cast(self, found: Handler, request: Invoke) -> None:
        """Run a handler without a caller. An exception ends the actor; the end of its process is logged."""
        running = self._begin(found, request, None)
        if running is not None:
            context = copy_context()
            if CARRYING.is_served:
                running = self._carrying(context, running, request, None, request.carrier)
            if self._taps.handlers is not None:
                running = self._told(running, request.handler, None)
            await run_in(context, running)

    async def _run_call(  # noqa: C901, PLR0912  # each helper would cost every call a coroutine
        self, found: Handler, request: Invoke, call: Call, task: Any
    ) -> None:
        """Run a handler in this task and answer its call, unless the caller has gone meanwhile."""
        running = self._begin(found, request, call)
        if running is None:
            return
        context = copy_context()
        context.run(SERVING.set, call)
        self._open[call] = task if found.cancel else None
        if not found.cancel:
            call.deadline = math.inf  # What it asks of others has a time-out of its own.
        work = self._send_items(call, running) if found.streams else running
        sampler = self._taps.handlers
        try:
            if sampler is not None:
                sampler.nth = nth = sampler.nth + 1  # `Sampler.pick` inline.
                if not nth & sampler.mask:
                    work = self._measured(work, request.handler, call, sampler.weigh())
            if CARRYING.is_served:
                work = self._carrying(context, work, request, call, call.carrier)
            result = await run_in(context, work)
        except asyncio.CancelledError as error:
            if self._settle_call(call, task):
                if self._ends_actor(error):
                    raise
                self._fail(call, request, error)  # What it awaited was cancelled, or its own task beside.
        except BaseException as error:
            if self._ends_actor(error):
                self._open.pop(call, None)
                raise
            self._drop_stale(task)
            if self._settle_call(call, task):  # The caller is told and decides.
                self._fail(call, request, error)
            else:
                log.info(
                    "%s failed after its caller had gone", self._describe(request), exc_info=loggable(error)
                )
        else:
            if self._settle_call(call, task):
                self._reply(call, request, result)
        finally:
            call.message = None  # A task that the handler left behind has this call in its context.

    def _told(self, running: Any, handler: str, call: Call | None) -> Any:
        """Return a handler, or one that says how it ends where that is wanted of this run."""
        sampler = self._taps.handlers
        if sampler is None:
            return running
        weight = sampler.pick()
        return self._measured(running, handler, call, weight) if weight else running

    def _measured(self, running: Any, handler: str, call: Call | None, weight: int) -> Any:
        """Return a handler that says how it ends, and stands for so many."""
        telling: Any = self._tell_of(running, handler, call, weight)
        telling.__name__ = handler  # For what shows which coroutines run (`actors.serving`).
        return telling

    async def _tell_of(self, running: Awaitable[Any], handler: str, call: Call | None, weight: int) -> Any:
        """Run a handler, and say how long it took and how it ended. Returns and raises what it does."""
        began, outcome = self._loop.time(), "ok"
        queued_s = None if call is None or math.isinf(call.began) else began - call.began
        try:
            return await running
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            told = self._taps.handler_ended
            if told is not None:
                told(self.process.runs, handler, outcome, self._loop.time() - began, queued_s, weight)

    def _ends_actor(self, error: BaseException) -> bool:
        """Whether an exception of a handler ends the actor, or the program, and not just the request."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or self.process._is_ending:
                return True
            return task is self._main_task and task.cancelling() > 0
        return exit_in(error) is not None or is_from_signal(error) or self._is_closed(error)

    def _is_closed(self, error: BaseException) -> bool:
        """Whether the coroutine of the task is being closed from outside, after the end of its loop."""
        return isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is None

    async def _send_items(self, call: Call, items: AsyncGenerator[Any, None]) -> None:
        """Send what a handler yields until it ends or its consumer has gone; then close it.

        What sending raises, such as a cancellation, is raised in the handler at its ``yield``.
        """
        try:
            item = await anext(items)
            while True:
                try:
                    is_wanted = await call.put(item)
                except BaseException as error:
                    if not call.open:
                        await self._close_items(call, items)
                        raise
                    item = await items.athrow(error)
                    if not self.process._is_ending:
                        continue
                    is_wanted = False  # It swallowed the cancellation of an actor that ends.
                if not is_wanted:
                    self._open.pop(call, None)  # So that `_interrupt` does not cancel the clean-up.
                    await self._close_items(call, items)
                    return
                item = await anext(items)
        except StopAsyncIteration:
            return

    async def _close_items(self, call: Call, items: AsyncGenerator[Any, None]) -> None:
        """Close a handler whose consumer has gone. What it raises then is logged and goes nowhere."""
        name = getattr(call.message, "handler", "a stream")
        try:
            await items.aclose()
        except BaseException as error:
            if self._ends_actor(error):
                raise
            rest = error.split(GeneratorExit)[1] if isinstance(error, BaseExceptionGroup) else error
            if rest is not None:  # Else a TaskGroup around the `yield` reports that it was closed.
                self._failures.report(self.process, name, rest, "its consumer had gone, and it was closed")

    def _fail(self, call: Call, request: Invoke, error: BaseException) -> None:
        """Give the caller an exception of its handler, and say so in the log of this node."""
        self._failures.report(self.process, request.handler, error, "its caller was told")
        call.fail(error)

    def _reply(self, call: Call, request: Invoke, result: Any) -> None:
        try:
            call.reply(result)
        except FleetError as error:  # The caller has been told.
            self.complain(f"reply {request.handler}", f"cannot send what {request.handler} returned: {error}")

    def _find(self, request: Invoke, call: Call | None) -> Handler | None:
        """Return the handler for a request; refuse or log a request that has none, and return None."""
        try:
            found = self._handlers.get(request.handler)
        except TypeError:  # A peer sent a value that cannot be a key, and so is not a name.
            found = None
        streaming = call is not None and call.streaming
        if found is not None and found.local and request.is_from_peer:
            self._refuse_peer(request, call)
            return None
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
            self._drop_cast(why, why)
        return None

    def _refuse_peer(self, request: Invoke, call: Call | None) -> None:
        """Refuse a request of another node for a handler that is for this node only."""
        why = f"{self._describe(request)} is for its own node only (@handler(local=True))"
        if call is not None:
            call.refuse(NotAllowed(self.process.pid.node, why))
        else:
            self._drop_cast(why, why, " of another node")

    # Callers that have gone.

    def _notice_answered(self, call: Call) -> None:
        """Note that a call needs no answer any more; one that is still open here has lost its caller."""
        if self._open.get(call) is not None:
            self._loop.call_soon(self._interrupt, call)  # Later: the handler itself may be the cause.

    def _interrupt(self, call: Call) -> None:
        """Cancel the task that serves a call whose caller has gone, if it still serves it."""
        task = self._open.pop(call, None)
        if task is self._main_task and self.process._is_ending:
            return  # It has been cancelled already; a second time would cut its clean-up short.
        if task is not None:
            if _awaits_a_shield(task):
                self.complain(
                    f"shield {task.get_name()}",
                    "has a handler that awaits asyncio.shield, and its caller has gone: the handler ends "
                    "now, and what it shields goes on beside the next handlers. For what must finish use "
                    "@handler(cancel=False)",
                )
            self._interrupted[call] = task.cancelling() - _is_being_cancelled(task)
            task.cancel()

    def _settle_call(self, call: Call, task: asyncio.Task[Any]) -> bool:
        """Take a call whose handler is done out of ``_open``, and take back the cancellation by `_interrupt`.

        Returns:
            Whether its caller still waits for the answer.

        Raises:
            CancelledError: the task was cancelled for another reason as well, so the actor ends.
        """
        if call in self._open:
            del self._open[call]
            return True
        if call.open:
            return False  # The actor ends; the process answers its calls.
        before = self._interrupted.pop(call, 0)
        if task.cancelling() and (task.uncancel() > before or self.process._is_ending):
            raise asyncio.CancelledError
        return False

    def _drop_stale(self, task: asyncio.Task[Any]) -> None:
        """Take back what a handler that has raised leaves behind in the count of its task."""
        if self._interrupted or self.process._is_ending or _is_being_cancelled(task):
            return
        while task.cancelling():
            task.uncancel()

    # Concurrent handlers.

    async def _start_concurrent(self, found: Handler, request: Invoke, call: Call | None) -> None:
        """Start a handler in a task of its own; at the bound, wait until one of them has ended."""
        name = f"{self._describe(request)} of {self.process.pid.number}"
        task = self._loop.create_task(self._run_concurrent(found, request, call), name=name)
        self._concurrent[task] = found
        task.add_done_callback(self._forget_task)
        while len(self._concurrent) >= self._max_concurrent and not self._is_stopping:
            self._free_slot = self._loop.create_future()
            await self._free_slot

    async def _run_concurrent(self, found: Handler, request: Invoke, call: Call | None) -> None:
        """Run a handler in this task; an exception that must end the actor ends its process."""
        process = self.process
        await process.mailbox.turns.pause()  # So may many handlers.
        try:
            if call is None:
                await self._run_cast(found, request)
            elif call.wanted:
                await self._run_call(found, request, call, asyncio.current_task())
            else:
                call.abandon()
        except asyncio.CancelledError as error:
            if call is not None or process._is_ending or process._is_closing or process._is_gone:
                raise
            process._crash(error, f"a cast to {request.handler}")
        except BaseException as error:
            leaving = exit_in(error)
            if leaving is not None:
                process._end_with(leaving.reason)
            elif is_from_signal(error) or self._is_closed(error):
                raise
            else:
                process._crash(error, f"a cast to {request.handler}")

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._concurrent.pop(task, None)
        self._tell_free_slot()

    def _tell_free_slot(self) -> None:
        """Let the main task go on if it waits for a concurrent handler to end."""
        slot, self._free_slot = self._free_slot, None
        if slot is not None and not slot.done():
            slot.set_result(None)

    # The end.

    async def _finish(self, reason: Any) -> None:
        """End concurrent handlers, then tasks, then call `terminate`; each within `Settings.terminate_s`."""
        process, limit_s = self.process, self._terminate_s
        process._is_closing = True
        must_finish = {call: task for call, task in self._open.items() if task is None}
        self._open.clear()
        self._open.update(must_finish)
        if process._is_ending:
            try:  # The cancellation of an actor that ended itself may still come; not in `terminate`.
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if process._is_gone:
                    raise
        if self._concurrent:
            await self._end_concurrent()
        if process._owned is not None:
            await process._owned.end_tasks(limit_s)
        timeout = asyncio.timeout(limit_s)
        try:
            async with timeout:
                await self._actor.terminate(reason)
        except asyncio.CancelledError:
            if process._is_gone:
                raise
            log.warning("terminate of %s was cancelled by what it awaited", process.pid)
        except BaseException as error:
            if is_from_signal(error) or self._is_closed(error):
                raise
            late = (
                f"was not done within {limit_s:g} s (Settings.terminate_s)" if timeout.expired() else "raised"
            )
            log.exception("terminate of %s (%s) %s", process.pid, process.runs, late)

    async def _end_concurrent(self) -> None:
        """Let concurrent handlers that must finish finish, cancel all others, and wait."""
        for task, found in self._concurrent.items():
            if found.cancel:
                task.cancel()
        _, stuck = await asyncio.wait(self._concurrent, timeout=self._terminate_s)
        for task in stuck:
            task.cancel()
        if stuck:
            log.warning(
                "%d handler(s) of %s ignore their cancellation, or must finish and did not, for %g s",
                len(stuck), self.process.name or self.process.pid, self._terminate_s,
            )  # fmt: skip

    def _describe(self, request: Invoke) -> str:
        return f"{self.process.runs}.{request.handler}"


def describe(message: Any) -> str:
    """Return what a message is, in a few words for a log."""
    return f"{type_name(type(message))} {SHORT.repr(message)}"


def _is_being_cancelled(task: asyncio.Task[Any]) -> bool:
    """Whether a cancellation is to reach a task with its next step, as far as asyncio's attributes tell."""
    waiter: Any = getattr(task, "_fut_waiter", None)
    return bool(getattr(task, "_must_cancel", False) or (waiter is not None and waiter.cancelled()))


def _awaits_a_shield(task: asyncio.Task[Any]) -> bool:
    """Whether a task waits in `asyncio.shield`, as far as the attributes of asyncio's futures tell."""
    waiter: Any = getattr(task, "_fut_waiter", None)
    callbacks: Any = getattr(waiter, "_callbacks", None) or ()
    return any("shield" in getattr(each[0], "__qualname__", "") for each in callbacks)
