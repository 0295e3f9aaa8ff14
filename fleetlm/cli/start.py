"""`fleetlm start`: run one node in the foreground.

The user's program is a function that takes the node. An ``async def`` runs as a task beside the node, and
the node stops when it returns. A plain ``def`` sets things up, for example spawns processes. It runs on the
event loop, so it must not block. The node then runs until a signal.

The first of these events ends a run:

- The program returns: the node stops, exit code 0. It raises an exception: the traceback is printed and
  the node stops with the reason "crashed", exit code 1. It calls ``sys.exit``: that exit code.
- The first SIGTERM or SIGINT (Ctrl-C): the node stops in order, exit code 0. It first finishes calls in
  progress, for `Settings.drain_s` seconds at most. Then the program's task is cancelled.
- The node stops for another reason, for example ``node.stop()`` in a remote shell: exit code 0.
- A second signal: `os._exit` in the signal handler, exit code 128 + the signal's number. It works even if
  the program blocks the event loop.

A setting that cannot be used ends it with 78 (EX_CONFIG), a program that cannot be found with 2, a node
that cannot start with 1.

The handlers are set with `signal.signal` rather than ``loop.add_signal_handler``, since the second signal
must not need the loop. The first handler only sets an event through ``call_soon_threadsafe``, and `_serve`
waits for that event beside the start, the node and the program. A signal during the start thus cancels
the start. Handlers are restored at the end, so tests and other programs may call `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fleetlm.cli import logs
from fleetlm.errors import FleetError, SettingsError, StartFailed
from fleetlm.node import Node, parts_of
from fleetlm.settings import Settings

OK, FAILED, USAGE = 0, 1, 2
EX_CONFIG = 78
"""Exit code for a setting that cannot be used. Source: sysexits.h."""
PROGRAM_END_S = 2.0
"""Seconds that the program has to end after its node has stopped and its task was cancelled."""
STOP_SLACK_S = 10.0
"""Seconds that a stop may take beyond draining. A stop usually takes less than two."""

log: logging.Logger = logging.getLogger("fleetlm")

Program = Callable[[Node], Any]


class NoSuchProgram(Exception):
    """MODULE:FUNCTION cannot be used; the text says why, and what to write instead."""


def load(target: str) -> Program:
    """Import a module from the current folder or PYTHONPATH and return a function of it.

    Args:
        target: ``module:function``. The function may be an attribute path, such as ``Class.method``.

    Raises:
        NoSuchProgram: the module or the function does not exist, or does not take exactly the node.
        Exception: what the module raised while it was imported.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        guess = f"{module_name or 'module'}:main"
        raise NoSuchProgram(f"{target!r} is not of the form MODULE:FUNCTION; write for example {guess}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = "; write the name of the module, not of its file" if module_name.endswith(".py") else ""
        raise NoSuchProgram(f"no module {error.name!r} in {here} or on PYTHONPATH{hint}") from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise NoSuchProgram(f"{target!r} does not exist: the module has no {name!r}{hint}") from None
    if not callable(found):
        raise NoSuchProgram(f"{target!r} is of type {type(found).__name__}, not a function")
    _check_arguments(target, found)
    program: Program = found
    return program


def _check_arguments(target: str, found: Callable[..., Any]) -> None:
    """Raise NoSuchProgram if a function cannot be called with the node alone."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # some built-in functions have no signature
    try:
        signature.bind(object())
    except TypeError:
        raise NoSuchProgram(
            f"{target}{signature} must take the node as its only argument, as in: async def main(node): ..."
        ) from None


def run(target: str | None, level: str = "info") -> int:
    """Run a node until a signal arrives, the program ends or the node stops.

    Args:
        target: ``module:function``; None to run a node without a program.
        level: log level, one of `logs.LEVELS`.

    Returns:
        The exit code, see the module's text.
    """
    try:
        settings: Settings | SettingsError = Settings.from_env()
    except SettingsError as error:
        settings = error
    form = "text" if isinstance(settings, SettingsError) else settings.log
    lines = logs.set_up(level, form=form)
    try:
        if isinstance(settings, SettingsError):
            return _report_error(lines, str(settings), EX_CONFIG)
        return _run(lines, settings, target)
    finally:
        lines.close()


def _run(lines: logs.Log, settings: Settings, target: str | None) -> int:
    """Load the program, and run it beside a node. Returns the exit code."""
    try:
        program = None if target is None else load(target)
    except NoSuchProgram as error:
        return _report_error(lines, str(error), USAGE)
    except Exception:  # noqa: BLE001  the user's module may raise anything
        _print_traceback(lines)
        return _report_error(lines, f"importing {target} failed with the exception above", FAILED)
    log.info("%s", " ".join(f"{name}={value}" for name, value in settings.effective().items()))
    with asyncio.Runner(loop_factory=_find_loop_factory()) as runner:
        return runner.run(_ForegroundNode(settings, program, lines).run())


def _find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's constructor of event loops if it is installed, else None for asyncio's."""
    try:
        import uvloop  # noqa: PLC0415  an optional dependency
    except ImportError:
        return None
    return uvloop.new_event_loop


def _report_error(lines: logs.Log, text: str, code: int) -> int:
    """Print an error to stderr and return the exit code."""
    lines.say(f"fleetlm start: {text}")
    return code


class _ForegroundNode:
    """One run of a node with its program."""

    def __init__(self, settings: Settings, program: Program | None, lines: logs.Log) -> None:
        self._settings = settings
        self._program = program
        self._lines = lines
        self._signal = asyncio.Event()
        self._signals = 0
        self._signal_name = ""

    async def run(self) -> int:
        """Serve with signal handlers in place. Returns the exit code."""
        loop = asyncio.get_running_loop()
        before = {
            number: signal.signal(number, functools.partial(self._handle_signal, loop))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return await self._serve()
        except SettingsError as error:
            return _report_error(self._lines, str(error), EX_CONFIG)
        except (StartFailed, FleetError) as error:
            return _report_error(self._lines, str(error), FAILED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle_signal(self, loop: asyncio.AbstractEventLoop, number: int, _: FrameType | None) -> None:
        """Ask the node to stop at the first signal; end the process at once at the second."""
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)
        self._signal_name = signal.Signals(number).name
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run has ended already
            loop.call_soon_threadsafe(self._signal.set)

    async def _serve(self) -> int:
        """Start the node, run the program, and stop the node. Returns the exit code."""
        signalled = asyncio.create_task(self._signal.wait())
        starting = asyncio.create_task(_start_node(self._settings))
        await asyncio.wait({signalled, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            if starting.cancelled():
                return OK
        node = starting.result()
        self._lines.node = node.name
        self._lines.attribute_to(functools.partial(_find_process, node))
        stopped = asyncio.create_task(node.wait_stopped())
        program = asyncio.create_task(self._run_program(node))
        try:
            await asyncio.wait({signalled, stopped, program}, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                log.info(
                    "received %s; shutting down (a second signal ends the process at once)", self._signal_name
                )
            code = program.result() if program.done() else OK
            async with asyncio.timeout(self._settings.drain_s + STOP_SLACK_S):
                await node.stop("shutdown" if code == OK else "crashed")
        except TimeoutError:
            limit_s = self._settings.drain_s + STOP_SLACK_S
            return _report_error(self._lines, f"{node.name} did not stop within {limit_s:g} s", FAILED)
        finally:
            waiting = {signalled, stopped, program}
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting, timeout=PROGRAM_END_S)
        return code

    async def _run_program(self, node: Node) -> int:
        """Call the program. Returns its exit code; after a plain ``def``, only when the node has stopped."""
        try:
            if self._program is not None:
                result = self._program(node)
                if inspect.isawaitable(result):
                    await result
                    return OK
        except SystemExit as exiting:
            if exiting.code is None or isinstance(exiting.code, int):
                return exiting.code or OK
            return _report_error(self._lines, str(exiting.code), FAILED)
        except Exception:  # noqa: BLE001  the program may raise anything
            _print_traceback(self._lines)
            return FAILED
        await node.wait_stopped()
        return OK


async def _start_node(settings: Settings) -> Node:
    return await Node.start(settings)


def _find_process(node: Node) -> str | None:
    """Return the pid of the process of this node whose task runs at the moment, as text."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None  # In another thread.
    process = None if task is None else parts_of(node).local.of_task(task)
    return None if process is None else str(process.pid)


def _print_traceback(lines: logs.Log) -> None:
    """Print the current exception's traceback without the leading frames of this module and importlib."""
    kind, error, frames = sys.exc_info()
    skipped = (__file__, importlib.__file__)
    while frames is not None and (
        frames.tb_frame.f_code.co_filename in skipped
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    lines.say("".join(traceback.format_exception(kind, error, frames)).rstrip("\n"))
