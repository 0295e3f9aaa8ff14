"""`fleetlm start`: run one node in the foreground, with the program MODULE:FUNCTION.

`cli.foreground` describes what ends a run, and with which exit code. Here, the program is imported; one that
cannot be found ends the command with 2. If the program raises, its traceback is printed without the frames
of the command line.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleetlm.cli import foreground, logs
from fleetlm.cli.exit_codes import EX_CONFIG, FAILED, USAGE
from fleetlm.cli.foreground import (
    Foreground,
    Program,
    find_loop_factory,
    log_settings,
)
from fleetlm.errors import SettingsError
from fleetlm.logs import LogContext
from fleetlm.node import Node
from fleetlm.runtime.leftovers import run_to_end
from fleetlm.settings import Settings
from fleetlm.texts import format_error


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


def run(target: str | None, level: str = "info", drain_s: float | None = None) -> int:
    """Run a node until a signal arrives, the program ends or the node stops.

    Args:
        target: ``module:function``; None to run a node without a program.
        level: log level, one of `logs.LEVELS`.
        drain_s: seconds for what the node has begun, when it leaves; None: as the environment says.

    Returns:
        The exit code; see `cli.foreground` and the module's text.
    """
    try:
        from_env = Settings.from_env()
        settings: Settings | SettingsError = (
            from_env if drain_s is None else from_env.replace(drain_s=drain_s)
        )
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
    except Exception as error:  # noqa: BLE001  the user's module may raise anything
        _print_traceback(lines, error)
        return _report_error(lines, f"importing {target} failed with the exception above", FAILED)
    log_settings(settings)

    def on_start(node: Node) -> None:
        lines.node = node.name
        lines.attribute_to(lambda: LogContext(node).fields)

    async def serve() -> int:
        running = Foreground(settings, program, lambda text: lines.say(f"fleetlm start: {text}"), on_start)
        code = await running.run()
        if running.error is not None:
            _print_traceback(lines, running.error)
        return code

    with asyncio.Runner(loop_factory=find_loop_factory()) as runner:
        return run_to_end(runner, serve())


def _report_error(lines: logs.Log, text: str, code: int) -> int:
    """Print an error to stderr and return the exit code."""
    lines.say(f"fleetlm start: {text}")
    return code


def _print_traceback(lines: logs.Log, error: BaseException) -> None:
    """Print an exception's traceback without the leading frames of the command line and importlib."""
    frames = error.__traceback__
    skipped = (__file__, foreground.__file__, importlib.__file__)
    while frames is not None and (
        frames.tb_frame.f_code.co_filename in skipped
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    lines.say(format_error(error.with_traceback(frames)))
