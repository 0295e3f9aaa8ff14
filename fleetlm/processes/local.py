"""The processes of this node: their tasks, mailboxes and names, and the steps of their end.

`LocalProcesses` owns every process of the node. It alone makes one (`spawn`) and removes one (`_remove`);
`running` describes the states between. A process ends in one of these ways, and each of them leads to
`_remove` exactly once:

* Its task ends: the function returned or raised, or its cancellation has run through.
  `_handle_task_end`, the task's callback, has `_reap` work out the reason and remove the process.
* It is killed (`stop_process` with ``at_once``): it is removed first, so that its clean-up cannot delay
  the exit signals, and nothing that the clean-up does is the work of a live process. Its task is cancelled
  and ends later; `_reap` then finds the process gone and does nothing more.
* The node stops (`stop`): every process is told to end, as by an exit signal, and the first way follows.

`_remove` has a fixed order, so that processes that are told about the end find no trace of the ended one:

1. The tables here lose the number, the name and the mailbox, so later messages are not delivered.
2. Calls that the process leaves behind are answered (`RunningProcess._mark_gone`).
3. ``on_exited``, a function of the node's assembly, runs: the tables that are replicated to other nodes
   (groups and cluster-wide names) lose the process, then linked and monitoring processes are told.

Many at a time. When more than `_ENDS_PER_TURN` processes are told to end in one turn of the loop, those that
wait for a message are cancelled in the next turns (`_to_cancel`); until then no message wakes them. When many
processes end in one turn, `_REAP_S` bounds how long their removal takes; the others are removed in the next
turns (`_ended`), in the order of their ends. Until then they look like processes that still end. One that is
asked for before, by `settle`, is removed at once.

`task_of` returns the task of a killed process until its clean-up has ended, so `Node.join` and the stop of
the node wait for the clean-up, though the process is gone.

Source: OTP erl_process.c erts_continue_exit_process, which unregisters the name before it sends exit
signals; differs: a killed process here may run its ``finally`` blocks, since no coroutine can be ended
without them.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from inspect import CO_COROUTINE
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from fleetlm.call import Call
from fleetlm.core.process_table import ProcessTable
from fleetlm.errors import NotAllowed
from fleetlm.messages import Crash
from fleetlm.messaging.deadline import SERVING
from fleetlm.messaging.own_loop import check_loop
from fleetlm.processes.boundary import ORDERS, Contained, error_of, exit_in, is_from_signal, original
from fleetlm.processes.functions import check_awaitable, process_function
from fleetlm.processes.running import Attached, ProcessFunction, RunningProcess, exit_reason
from fleetlm.texts import loggable, text_of

if TYPE_CHECKING:
    from fleetlm.ids import Pid
    from fleetlm.messaging.mailbox import Mailbox
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.info import ChildInfo, ProcessInfo

log: logging.Logger = logging.getLogger("fleetlm")

_NO_CONTEXT = contextvars.Context()
"""For callbacks that need no context variables: otherwise each would hold a copy of the caller's."""
_CRASHED = "process %s (%s) crashed%s"
_REAP_S = 0.005
"""Seconds in one turn of the loop for removing processes that have ended: about a hundred of them."""
_ENDS_PER_TURN = 64
"""Processes that are told to end in one turn of the loop. Each of them runs its clean-up in the next one."""
_STOP_ROUND_S = 1.0
"""Seconds that `LocalProcesses.stop` waits for cancelled processes; actors that clean up have more."""


class LocalProcesses:
    """Spawns, names and removes the processes of one node.

    Args:
        context: the node.
        make_process: makes a process from its pid and the name of its function. It returns a `Process`, a
            class that this package does not know.
        on_exited: called with a process that is gone, and the reason.
        send_exit: sends an exit signal with a reason to a pid, in the name of the node.
    """

    def __init__(
        self,
        context: NodeContext,
        make_process: Callable[[Pid, str], RunningProcess],
        on_exited: Callable[[RunningProcess, Any], None],
        send_exit: Callable[[Pid, Any], None],
    ) -> None:
        self.table: ProcessTable = ProcessTable(context.name, context.incarnation)
        self.boxes: dict[int | str, Mailbox] = {}
        """Number or name → mailbox, for what this node itself sends."""
        self.reachable: dict[int | str, Mailbox] = {}
        """The same without processes that are for this node only: one look-up for each message that arrives
        from another node."""
        self._make_process = make_process
        self._on_exited = on_exited
        self._send_exit = send_exit
        self._terminate_s = context.settings.terminate_s
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._processes: dict[int, RunningProcess] = {}
        """The processes that are not gone, by number, in the order in which they were spawned."""
        self._tasks: dict[asyncio.Task[Any], RunningProcess] = {}
        """The processes whose tasks have not ended or that are still to be removed, killed ones included."""
        self.of_task: Callable[[asyncio.Task[Any] | None], RunningProcess | None]
        """Returns the process whose function runs in this task, or None."""
        self.of_task = cast("Any", self._tasks.get)  # Each call asks.
        self._killed: dict[int, asyncio.Task[Any]] = {}
        """The tasks of killed processes that still clean up, by number."""
        self._ended: deque[asyncio.Task[Any]] = deque()
        """Tasks that have ended, of processes that are removed in the next turns of the loop."""
        self._to_cancel: deque[RunningProcess] = deque()
        """Processes that were told to end and are cancelled in the next turns of the loop."""
        self._told_to_end = 0
        """Processes that were told to end in this turn."""
        self._reap_until = 0.0
        """When removing processes has taken long enough in this turn."""
        self._counts_turn = False
        """Whether `_next_turn` will be called."""
        self._on_task_done = self._handle_task_end  # One bound method for all tasks.
        self._context = contextvars.copy_context()
        """What each process starts with: the context variables of the code that started the node."""
        self._context.run(SERVING.set, None)
        self._cancelled_together: set[asyncio.Task[Any]] = set()
        """The tasks that other code has cancelled all at once, and that have not ended yet."""

    def spawn(
        self, function: ProcessFunction, args: tuple[Any, ...], name: str | None, *, is_local: bool = False
    ) -> Pid:
        """Start a process, for this node only if ``is_local``.

        Raises:
            AlreadyRegistered, InvalidName, TypeError: nothing was started.
        """
        loop = self._loop
        check_loop(loop, "spawn")
        if type(function) is not FunctionType or not function.__code__.co_flags & CO_COROUTINE:
            function = process_function(function)
        pid = self.table.spawned(name)
        runs = getattr(function, "__qualname__", type(function).__qualname__)
        process = self._make_process(pid, runs)
        self._processes[pid.number] = process
        self.boxes[pid.number] = process.mailbox
        if name is not None:
            self.boxes[name] = process.mailbox
        if not is_local:
            self.reachable[pid.number] = process.mailbox
            if name is not None:
                self.reachable[name] = process.mailbox
        running = self._run(function, process, args)
        task = loop.create_task(running, name=name or runs, context=self._context.copy())
        self._tasks[task] = process
        task.add_done_callback(self._on_task_done, context=_NO_CONTEXT)
        process._task = task
        return pid

    def register(self, name: str, pid: Pid, *, is_local: bool = False) -> None:
        """Name a process, which is for this node only from now on if ``is_local``.

        Raises what `ProcessTable.register` raises; nothing changed.
        """
        self.table.register(name, pid)
        self.boxes[name] = self.boxes[pid.number]
        if is_local:
            self.reachable.pop(pid.number, None)
        elif pid.number in self.reachable:
            self.reachable[name] = self.boxes[name]

    def unregister(self, name: str) -> bool:
        """Take a name away. Returns False if no process had it."""
        self.boxes.pop(name, None)
        self.reachable.pop(name, None)
        return self.table.unregister(name)

    def is_local(self, key: int | str) -> bool:
        """Whether the process with this number or name is for this node only."""
        return key in self.boxes and key not in self.reachable

    def check_reachable(self, pid: Pid, what: str) -> None:
        """Raise NotAllowed for ``what`` would show other nodes of a process that is for this node only."""
        if self.process(pid) is not None and pid.number not in self.reachable:
            why = f"{pid} is for its own node only (local=True), so it cannot have {what}"
            raise NotAllowed(self.table.node, why)

    def is_alive(self, number: int) -> bool:
        """Whether a process of this node has that number and is not gone."""
        return number in self._processes

    def by_number(self, number: int) -> RunningProcess | None:
        """Return the process with that number, or None if it is gone."""
        return self._processes.get(number)

    def process(self, pid: Pid) -> RunningProcess | None:
        """Return the process with that pid, or None if it is gone or lives elsewhere."""
        known = self._processes.get(pid.number)
        return known if known is not None and (known.pid is pid or known.pid == pid) else None

    def task_of(self, pid: Pid) -> asyncio.Task[None] | None:
        """Return the task of a process of this node until it has ended, also of a killed process."""
        if pid.incarnation != self.table.incarnation or pid.node != self.table.node:
            return None
        process = self._processes.get(pid.number)
        if process is not None:
            return process._task
        return self._killed.get(pid.number)

    def info(self) -> list[ProcessInfo]:
        """Return a snapshot of every process, in the order in which they were spawned."""
        return [process.info() for process in self._processes.values()]

    def supervisors(self) -> dict[Pid, list[ChildInfo]]:
        """Return each supervisor with its children, in the order in which they were spawned."""
        every = self._processes.values()
        return {process.pid: process._children.infos() for process in every if process._children is not None}

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self._processes)

    def numbers(self) -> list[int]:
        """Return the numbers of all processes, in the order in which they were spawned."""
        return list(self._processes)

    def every(self) -> list[RunningProcess]:
        """Return the processes that are not gone, in the order in which they were spawned."""
        return list(self._processes.values())

    def unanswered(self, process: RunningProcess) -> list[Call]:
        """Return the calls that a process took and has not answered, and those that wait in its mailbox."""
        return [*(process._calls or ()), *(each for each in process.mailbox.queue if type(each) is Call)]

    def load_of(self, pid: Pid) -> int:
        """Return how many messages wait for a process and how many calls it has open; 0 if it is gone."""
        process = self.process(pid)
        return 0 if process is None else len(process.mailbox) + process._open_calls

    def stop_process(self, number: int, reason: Any, *, at_once: bool = False) -> None:
        """Tell a process to end with this reason, unless it is ending already.

        Its coroutine gets `asyncio.CancelledError` where it waits. ``at_once`` is the kill, which cannot
        be trapped: the process is gone when this returns, before its clean-up has run.
        """
        process = self._processes.get(number)
        if process is None:
            return
        task = process._task
        if task is not None and task.done():
            self.settle(task)  # It has ended for a reason of its own.
            return
        self._count_turn()
        self._told_to_end += 1
        if self._told_to_end > _ENDS_PER_TURN and not at_once and process._park(reason):
            self._to_cancel.append(process)
            return
        process._end_with(reason, again=at_once)
        if at_once:
            if task is not None:
                self._killed[number] = task
            self._remove(process, reason)

    def forget_all(self) -> None:
        """In a forked child: forget the processes, which are the parent's, without ending them."""
        self._processes.clear()
        self.boxes.clear()
        self.reachable.clear()

    async def stop(self, trees_s: float = 0.0) -> None:
        """End every process with reason ``"shutdown"`` and wait until their tasks have ended.

        Supervision trees end first, the last spawned tree before the others; each ends its children in
        order and within their deadlines. All trees together have ``trees_s`` seconds. Then all processes
        that are left are ended at once. Those that ignore their cancellation are logged and left behind.
        Source: OTP init:stop/0.
        """
        await self._stop_trees(trees_s)
        while self._tasks:
            tasks = list(self._tasks)
            for nth, task in enumerate(tasks):
                process = self._tasks.get(task)
                if process is None:
                    continue
                if process._is_gone:
                    task.cancel()  # It was killed, and its clean-up has not ended.
                else:
                    self.stop_process(process.pid.number, "shutdown")
                if nth % _ENDS_PER_TURN == _ENDS_PER_TURN - 1:
                    await asyncio.sleep(0)
            await asyncio.wait(tasks, timeout=_STOP_ROUND_S)
            if any(process._is_closing or process._must_finish for process in self._processes.values()):
                await asyncio.wait(tasks, timeout=self._terminate_s)
            while self._ended:  # noqa: ASYNC110  # each turn removes some of them
                await asyncio.sleep(0)
            if self._interrupt_unfinished():
                continue
            stuck = [task for task in tasks if not task.done()]
            if stuck:
                log.warning("%d process(es) ignore their cancellation and are left behind", len(stuck))
                return

    def _interrupt_unfinished(self) -> bool:
        """Interrupt handlers that must finish and have not, since the node stops. False: there is none."""
        late = [process for process in self._processes.values() if process._must_finish]
        for process in late:
            log.warning(
                "process %s (%s) is interrupted in a handler with cancel=False: the node stops, and it was "
                "not done after %g s", process.name or process.pid, process.runs, self._terminate_s,
            )  # fmt: skip
            process._must_finish = False
            process._end_with("shutdown", again=True)
        return bool(late)

    async def _stop_trees(self, limit_s: float) -> None:
        """Tell each supervisor without a parent to end, and wait for it, until the time is used up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        every = reversed(self._processes.values())
        for root in [process for process in every if process._children and process.parent is None]:
            if root._task is not None and loop.time() < until:
                self._send_exit(root.pid, "shutdown")
                await asyncio.wait({root._task}, timeout=until - loop.time())

    def settle(self, task: asyncio.Task[Any]) -> None:
        """Remove the process of a task that has ended, if that is still to be done."""
        if task in self._tasks and task.done():
            self._reap(task)

    async def join(self, pid: Pid, timeout_s: float | None) -> bool:
        """See `Node.join`."""
        check_loop(self._loop, "Node.join")
        task = self.task_of(pid)
        if task is None:
            return True
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        self.settle(task)
        return bool(done)

    async def _run(self, function: ProcessFunction, process: RunningProcess, args: tuple[Any, ...]) -> None:
        """Run a process function as the task of its process; contain what it raises (`boundary`)."""
        if process._task is None:  # An eager task factory runs this within `spawn`.
            await asyncio.sleep(0)
        try:
            made = function(*args)(process) if isinstance(function, type) else function(process, *args)
            check_awaitable(made, function)
            await made
        except BaseException as error:
            if is_from_signal(error) or isinstance(error, GeneratorExit):
                raise  # The program ends, or the loop has: nothing can be awaited any more.
            if process._owned is not None:
                await self._end_tasks(process, process._owned)
            if isinstance(error, ORDERS):
                raise Contained(error) from error
            raise
        else:
            if process._owned is not None:
                await self._end_tasks(process, process._owned)

    async def _end_tasks(self, process: RunningProcess, owned: Attached) -> None:
        """End the tasks of a process whose function has ended; see `Process.create_task`."""
        if not process._is_gone:
            process._is_closing = True
            await owned.end_tasks(self._terminate_s)

    def _handle_task_end(self, task: asyncio.Task[Any]) -> None:
        """Remove the process of a task that has ended; if many end in this turn, in one of the next ones."""
        self._count_turn()
        if self._ended or self._time() > self._reap_until:
            self._ended.append(task)
        else:
            self._reap(task)

    def _count_turn(self) -> None:
        """Have `_next_turn` called in the next turn of the loop."""
        if not self._counts_turn:
            self._counts_turn = True
            self._reap_until = self._time() + _REAP_S
            self._loop.call_soon(self._next_turn, context=_NO_CONTEXT)

    def _next_turn(self) -> None:
        """Cancel and remove some of the processes that are left from the turns before."""
        self._counts_turn = False
        self._told_to_end = min(len(self._to_cancel), _ENDS_PER_TURN)
        for _ in range(self._told_to_end):
            self._to_cancel.popleft()._cancel_parked()
        until = self._time() + _REAP_S
        while self._ended:
            self._reap(self._ended.popleft())
            if self._time() > until:
                break
        if self._ended or self._to_cancel:
            self._count_turn()

    def _reap(self, task: asyncio.Task[Any]) -> None:
        """Remove the process of a task that has ended, unless it was killed, and log a crash."""
        process = self._tasks.pop(task, None)
        if process is None:
            return  # `settle` was faster.
        # A cancelled task lets go of its error here, and of the frames in its traceback: they refer to the
        # process and to what it held, such as a stream that must end.
        error = error_of(task)
        if process.pid.number not in self._processes:
            self._killed.pop(process.pid.number, None)
            return  # It was killed, so it has been removed already.
        try:
            reason = self._find_reason(process, task, error)
        except Exception as failed:  # noqa: BLE001  # the program's exception is broken, or its logging
            why = f"its exception cannot be looked at: that raises {type(failed).__name__}"
            who = process.name or process.pid
            reason = Crash(type(error).__name__, why, "")
            try:
                log.error(_CRASHED, who, process.runs, f": {why}")  # noqa: TRY400  # nor can its traceback be made
            finally:  # A logging handler may raise.
                self._remove(process, reason)
            return
        error = None
        self._remove(process, reason)

    def _find_reason(
        self, process: RunningProcess, task: asyncio.Task[Any], error: BaseException | None
    ) -> Any:
        """Return the exit reason of a process, and log a crash."""
        reason = exit_reason(process, error)
        if error is None or exit_in(error) is not None:
            return reason
        who = process.name or process.pid
        if not isinstance(error, asyncio.CancelledError):
            log.error(_CRASHED, who, process.runs, "", exc_info=loggable(original(error)))
        elif not process._is_ending and not self._is_cancelled_with_all(task):
            log.error(_CRASHED, who, process.runs, f": {text_of(reason)}", exc_info=loggable(error))
        return reason

    def _is_cancelled_with_all(self, task: asyncio.Task[Any]) -> bool:
        """Whether every process was cancelled at once, as `asyncio.run` does at its end; logged once."""
        if task in self._cancelled_together:
            self._cancelled_together.discard(task)
            return True
        if not (task.cancelling() and self._tasks and all(each.cancelling() for each in self._tasks)):
            return False
        self._cancelled_together = set(self._tasks)
        log.warning(
            "all %d processes of this node were cancelled at once, as at the end of an event loop. Stop the "
            "node before that: `async with Node.start()` or `await node.stop()`", len(self._tasks) + 1,
        )  # fmt: skip
        return True

    def _remove(self, process: RunningProcess, reason: Any) -> None:
        """Take a process out of the tables, answer its calls and call ``on_exited``: see the module."""
        number = process.pid.number
        process._exit_reason = reason
        name = self.table.exited(number)
        del self._processes[number]
        self.boxes.pop(number, None)
        self.reachable.pop(number, None)
        if name is not None:
            self.boxes.pop(name, None)
            self.reachable.pop(name, None)
        process._mark_gone(reason)
        self._on_exited(process, reason)
