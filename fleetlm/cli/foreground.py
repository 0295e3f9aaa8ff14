"""One node in the foreground of a process, with a program: signals, the end, the exit code.

`fleetlm start` and `fleetlm.run` use it. The program is a function that takes the node. An ``async def`` runs
as a task beside the node, and the node stops when it returns. A plain ``def`` sets things up, for example
spawns processes. It runs on the event loop, so it must not block. The node then runs until a signal.

The first of these events ends a run:

- The program returns: the node stops, exit code 0. It raises an exception: the node stops with the reason
  "crashed", exit code 1. It calls ``sys.exit``: that exit code.
- The first SIGTERM or SIGINT (Ctrl-C): the node stops in order. It first finishes what it has begun, for
  `Settings.drain_s` seconds at most. Then the program's task is cancelled. The exit code is 0 only if nothing
  was cut, else 75 (EX_CUT); the last line of the log is the report of the drain.
- This machine has lost the node's address: the node stops, exit code 1, so that the platform starts it anew.
- A root supervisor gives up, or an essential process fails (`Node.failure`): the node stops, exit code 1.
- The node stops for another reason, for example ``node.stop()`` in a remote shell: likewise 0 or 75.
- A second signal of the same kind, or a third one (`runtime.stop_signals`): `os._exit` in the signal handler,
  exit code 128 + the signal's number. It works even if the program blocks the event loop.

A node that decided its address before DNS named this machine, and that no peer has ever met, stops, and
another one is started at the right address; the program is cancelled and called again (`MAX_RESTARTS` times).

A setting that cannot be used ends it with 78 (EX_CONFIG), a node that cannot start with 1.

The handlers are set with `signal.signal` rather than ``loop.add_signal_handler``, since the last signal
must not need the loop. The first handler only sets an event through ``call_soon_threadsafe``, and `_serve`
waits for that event beside the start, the node and the program. A signal during the start thus cancels
the start. Handlers are restored at the end, so tests and other programs may use this.

Before the loop runs, `cli.early` handles SIGTERM. Where a service manager started the process (systemd, with
``Type=notify``), `cli.service_manager` tells it when the node is ready, and that it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from fleetlm.cli.exit_codes import EX_CONFIG, EX_CUT, FAILED, OK
from fleetlm.errors import FleetError, SettingsError
from fleetlm.escapes import escape_lines
from fleetlm.node import Node, parts_of
from fleetlm.runtime.stop_signals import FIRST, OTHER, StopSignals, Verdict
from fleetlm.settings import Settings

if TYPE_CHECKING:
    from fleetlm.cli.service_manager import ServiceManager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PROGRAM_END_S = 2.0
"""Seconds that the program has to end after its node has stopped and its task was cancelled."""
MAX_RESTARTS = 3
"""Times that a node is started again for a wrong address. Where DNS is right, one is enough."""
STOP_SLACK_S = 30.0
"""Seconds that a stop may take beyond draining: hooks, trees and processes that ignore their end have five
each, and a stop usually takes less than two."""

log: logging.Logger = logging.getLogger("fleetlm")

Program = Callable[[Node], Any]


class Foreground:
    """One run of a node with its program.

    Args:
        settings: of the node.
        program: called with the node; None: the node runs alone.
        say: prints an error that ends the run, as one text.
        on_start: called with the node when it has started.
        **options: the further arguments of `Node.start`.

    Attributes:
        error: what the program raised, if it raised anything but SystemExit.
        result: what the program returned, if it returned before the run ended.
    """

    def __init__(
        self,
        settings: Settings,
        program: Program | None,
        say: Callable[[str], None],
        on_start: Callable[[Node], None],
        **options: Any,
    ) -> None:
        self.error: BaseException | None = None
        self.result: Any = None
        self._settings = settings
        self._program = program
        self._say = say
        self._on_start = on_start
        self._options = options
        self._signal = asyncio.Event()
        self._signals = StopSignals()
        self._manager = _find_service_manager()
        self._notices: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve with signal handlers in place. Returns the exit code."""
        loop = asyncio.get_running_loop()
        try:
            with _handling(functools.partial(self._handle_signal, loop)):
                for _ in range(MAX_RESTARTS):
                    code, is_over = await self._serve(may_restart=True)
                    if is_over:
                        return code
                return (await self._serve(may_restart=False))[0]
        except SettingsError as error:
            self._say(str(error))
            return EX_CONFIG
        except FleetError as error:
            self._say(str(error))
            return FAILED

    def _handle_signal(self, loop: asyncio.AbstractEventLoop, number: int, _: FrameType | None) -> None:
        """Ask the node to stop at the first signal; end the process at once where that is impatience."""
        verdict = self._signals.take(number)
        if verdict is Verdict.END:
            os._exit(128 + number)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run has ended already
            if verdict is Verdict.LEAVE:
                loop.call_soon_threadsafe(self._signal.set)
            else:
                loop.call_soon_threadsafe(log.info, OTHER, self._signals.names[-1])

    async def _serve(self, *, may_restart: bool) -> tuple[int, bool]:
        """Start the node, run the program, and stop the node.

        Returns:
            The exit code, and whether the run is over; False where another node must be started.
        """
        signalled = asyncio.create_task(self._signal.wait())
        starting = asyncio.create_task(_start_node(self._settings, self._options))
        await asyncio.wait({signalled, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            if starting.cancelled():
                return OK, True
        node = starting.result()
        self._on_start(node)
        parts = parts_of(node)
        parts.essential.guards_roots = True
        parts.may_restart = may_restart
        stopped = asyncio.create_task(node.wait_stopped())
        program = asyncio.create_task(self._run_program(node), name="the program")
        self._notify(node)
        limit_s = self._settings.drain_s + STOP_SLACK_S
        try:
            await asyncio.wait({signalled, stopped, program}, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                log.info(FIRST, self._signals.names[0])
            code = program.result() if program.done() else OK
            if code or node.failure or self._signals.taken or not parts.restart_because:
                self._notify(node, stops_within_s=limit_s)
            async with asyncio.timeout(limit_s):
                reason = "shutdown" if code == OK else "crashed"
                await node.stop(reason, source="signal" if signalled.done() else "api")
        except TimeoutError:
            self._say(f"{node.name} did not stop within {limit_s:g} s")
            return FAILED, True
        finally:
            waiting = {signalled, stopped, program, *self._notices}
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting, timeout=PROGRAM_END_S)
        is_over = bool(code or node.failure or self._signals.taken or not parts.restart_because)
        report = node.drain_report
        if is_over and report is not None:
            log.info("%s", report)
        code = code or (FAILED if node.failure else EX_CUT if report is not None and report.cut else OK)
        return code, is_over

    def _notify(self, node: Node, *, stops_within_s: float | None = None) -> None:
        """Tell the service manager, if there is one, in a task: that the node is ready, or that it stops."""
        if self._manager is None:
            return
        for earlier in self._notices:
            earlier.cancel()  # A node that stops is not ready any more.
        if stops_within_s is None:
            notice = asyncio.create_task(self._manager.tell_when_ready(node))
        else:
            notice = asyncio.create_task(self._manager.tell_that_it_stops(node, stops_within_s))
        self._notices.add(notice)

    async def _run_program(self, node: Node) -> int:
        """Call the program. Returns its exit code; after a plain ``def``, only when the node has stopped."""
        try:
            if self._program is not None:
                result = self._program(node)
                if inspect.isawaitable(result):
                    self.result = await result
                    return OK
        except SystemExit as exiting:
            if exiting.code is None or isinstance(exiting.code, int):
                return exiting.code or OK
            self._say(str(exiting.code))
            return FAILED
        except Exception as error:  # noqa: BLE001  the program may raise anything
            if node.failure:
                return FAILED  # Such as NodeStopped: it follows from the failure, which has been logged.
            self.error = error
            return FAILED
        await node.wait_stopped()
        return OK


def _find_service_manager() -> ServiceManager | None:
    """Return the service manager that started this process; None where none wants to be told."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    from fleetlm.cli import service_manager  # noqa: PLC0415  # most processes have none

    return service_manager.find(os.environ)


async def _start_node(settings: Settings, options: dict[str, Any]) -> Node:
    return await Node.start(settings, **options)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals in this block; only the main thread of a program can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's constructor of event loops if it is installed, else None for asyncio's."""
    try:
        import uvloop  # noqa: PLC0415  an optional dependency
    except ImportError:
        return None
    return uvloop.new_event_loop


def log_settings(settings: Settings) -> None:
    """Log the effective configuration, once."""
    log.info("%s", " ".join(f"{name}={value}" for name, value in settings.effective().items()))


def say_on_stderr(text: str) -> None:
    """Print an error where no log of the command line is set up."""
    sys.stderr.write(f"{escape_lines(text)}\n")
