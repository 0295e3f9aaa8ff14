"""`fleetlm start`: one node in the foreground, from the environment to the exit code.

An ``async def`` is the program: it gets the node, and when it returns the node stops. A plain
``def`` sets things up (it runs on the event loop, so it must not block) and the node serves on.
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
from fleetlm.node import Node
from fleetlm.settings import Settings

OK, FAILED, USAGE = 0, 1, 2
EX_CONFIG = 78
"""Source: sysexits.h."""
PROGRAM_END_S = 2.0
"""For the program to end after its node has stopped and it was cancelled."""
STOP_SLACK_S = 10.0
"""For a stop beyond draining: it ends in two seconds, or something is badly wrong."""

log = logging.getLogger("fleetlm")

Program = Callable[[Node], Any]


class NoSuchProgram(Exception):
    """MODULE:FUNCTION leads nowhere; the text says why and what to write instead."""


def load(target: str) -> Program:
    """The function that ``module:function`` names, looked for from the current folder on.

    Raises:
        NoSuchProgram: there is none, or it does not take one argument.
        Exception: what the module raised while it was imported.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        guess = f"{module_name or 'module'}:main"
        raise NoSuchProgram(f"{target!r} is not MODULE:FUNCTION; write for example {guess}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = " (write the module's name, not its file)" if module_name.endswith(".py") else ""
        raise NoSuchProgram(f"there is no module {error.name!r} in {here} or on PYTHONPATH{hint}") from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise NoSuchProgram(f"{target!r}: there is no {name!r} in it{hint}") from None
    if not callable(found):
        raise NoSuchProgram(f"{target!r} is a {type(found).__name__}, not a function")
    _check_arguments(target, found)
    program: Program = found
    return program


def _check_arguments(target: str, found: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # of a builtin, say
    try:
        signature.bind(object())
    except TypeError:
        raise NoSuchProgram(
            f"{target}{signature} must take the node and nothing else: async def main(node): ..."
        ) from None


def run(target: str | None, level: str = "info") -> int:
    """Run until a signal, the program's end or the node's. Returns the exit code.

    Args:
        target: ``module:function``; None to serve only.
        level: of the log, one of `logs.LEVELS`.
    """
    formatter = logs.set_up(level)
    try:
        settings = Settings.from_env()
        program = None if target is None else load(target)
    except SettingsError as error:
        return _said(str(error), EX_CONFIG)
    except NoSuchProgram as error:
        return _said(str(error), USAGE)
    except Exception:  # noqa: BLE001  the user's module may raise anything
        _show_traceback()
        return _said(f"importing {target} failed", FAILED)
    log.info("%s", " ".join(f"{name}={value}" for name, value in settings.effective().items()))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Foreground(settings, program, formatter).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def _said(text: str, code: int) -> int:
    sys.stderr.write(f"fleetlm start: {text}\n")
    return code


class _Foreground:
    """One run."""

    def __init__(self, settings: Settings, program: Program | None, formatter: logs.LineFormatter) -> None:
        self._settings = settings
        self._program = program
        self._formatter = formatter
        self._signal = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        before = {
            number: signal.signal(number, functools.partial(self._signalled, loop))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return await self._serve()
        except SettingsError as error:
            return _said(str(error), EX_CONFIG)
        except (StartFailed, FleetError) as error:
            return _said(str(error), FAILED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, loop: asyncio.AbstractEventLoop, number: int, _: FrameType | None) -> None:
        """The first signal leaves in order; the second ends the process, whatever it does."""
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._signal.set)

    async def _serve(self) -> int:
        signalled = asyncio.create_task(self._signal.wait())
        starting = asyncio.create_task(_started(self._settings))
        await asyncio.wait({signalled, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            if starting.cancelled():
                return OK
        node = starting.result()
        self._formatter.node = node.name
        stopped = asyncio.create_task(node.wait_stopped())
        program = asyncio.create_task(self._run_program(node))
        try:
            await asyncio.wait({signalled, stopped, program}, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                log.info("leaving, since told to by a signal; a second one ends the process at once")
            code = program.result() if program.done() else OK
            async with asyncio.timeout(self._settings.drain_s + STOP_SLACK_S):
                await node.stop("shutdown" if code == OK else "crashed")
        except TimeoutError:
            return _said(f"{node.name} did not stop in time", FAILED)
        finally:
            waiting = {signalled, stopped, program}
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting, timeout=PROGRAM_END_S)
        return code

    async def _run_program(self, node: Node) -> int:
        """The exit code that the program ends with; does not end where there is only set-up."""
        try:
            if self._program is not None:
                result = self._program(node)
                if inspect.isawaitable(result):
                    await result
                    return OK
        except SystemExit as leaving:
            if leaving.code is None or isinstance(leaving.code, int):
                return leaving.code or OK
            return _said(str(leaving.code), FAILED)
        except Exception:  # noqa: BLE001  the program may raise anything
            _show_traceback()
            return FAILED
        await node.wait_stopped()
        return OK


async def _started(settings: Settings) -> Node:
    return await Node.start(settings)


def _show_traceback() -> None:
    """The exception being handled, from the first frame on that is not ours or importlib's."""
    kind, error, frames = sys.exc_info()
    ours = (__file__, importlib.__file__)
    while frames is not None and (
        frames.tb_frame.f_code.co_filename in ours
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    sys.stderr.write("".join(traceback.format_exception(kind, error, frames)))
