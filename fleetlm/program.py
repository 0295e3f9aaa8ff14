"""`fleetlm.run`: a program that is a node, from its last line to its exit code.

    async def main(node: fleetlm.Node) -> None:
        node.spawn(printer, name="printer")
        await node.wait_stopped()

    fleetlm.run(main)

`cli.foreground` describes what ends a run, and with which exit code.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from fleetlm.actor import Actor
from fleetlm.cli import logs
from fleetlm.cli.early import end_on_sigterm, restore_sigterm
from fleetlm.cli.exit_codes import EX_CONFIG
from fleetlm.cli.foreground import (
    Foreground,
    Program,
    find_loop_factory,
    log_settings,
    say_on_stderr,
)
from fleetlm.errors import SettingsError
from fleetlm.logs import LogContext
from fleetlm.node import Node
from fleetlm.runtime.leftovers import run_to_end
from fleetlm.settings import Settings
from fleetlm.supervisor import Supervisor

T = TypeVar("T")

ROOT = "root"
"""The name of a supervisor or an actor that is given to `run`."""


@overload
def run(
    main: Callable[[Node], Awaitable[T]], settings: Settings | None = ..., *, log_level: str | None = ...,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = ..., **options: Any,
) -> T | None: ...  # fmt: skip
@overload
def run(
    main: Callable[[Node], None] | Supervisor | type[Actor] | None = ..., settings: Settings | None = ..., *,
    log_level: str | None = ..., loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = ...,
    **options: Any,
) -> None: ...  # fmt: skip


def run(
    main: Callable[[Node], Any] | Supervisor | type[Actor] | None = None,
    settings: Settings | None = None,
    *,
    log_level: str | None = "info",
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **options: Any,
) -> Any:
    """Start a node, run ``main(node)`` in it, and stop the node when it is done or a signal comes.

    SIGTERM and SIGINT (Ctrl-C) stop the node in order: it finishes what it has begun, for
    `Settings.drain_s` seconds at most, and tells its peers; then ``main`` is cancelled and this returns. The
    same signal once more ends the process at once, and so does a third one. uvloop is used where it is
    installed. systemd is told when the node is ready and that it stops (``Type=notify``).

    Args:
        main: ``async def main(node)``: the node stops when it returns. A plain function sets things up, and
            the node runs until a signal. A `Supervisor` or the class of an `Actor` is spawned under the name
            ``root``, and the node stops when it ends. None: a node without a program.
        settings: default `Settings.from_env()`.
        log_level: log messages of this level and above are written to stderr, as `fleetlm start` does,
            unless the program has set up logging itself. None: logging is left alone.
        loop_factory: makes the event loop; default uvloop's, where it is installed, else asyncio's.
        **options: the further arguments of `Node.start`.

    Returns:
        What ``main`` returned, or None if the run ended before.

    Raises:
        Exception: what ``main`` raised, after the node has stopped.
        SystemExit: with 78 if a setting cannot be used; with 75 if something was cut when the node left;
            with 1 if the node could not start, if a root supervisor gave up or an essential process failed,
            or if the node did not stop in time; with the code that ``main`` gave to ``sys.exit``. The reason
            has been printed.
        TypeError: ``main`` cannot be called with a node, or is a coroutine; nothing was started.
        RuntimeError: an event loop runs in this thread: use ``async with Node.start()`` there.
    """
    program = _check_program(main)
    _check_no_loop()
    end_on_sigterm()
    level = None if logging.getLogger().handlers else log_level
    try:
        settings = Settings.from_env() if settings is None else settings
    except SettingsError as error:
        say_on_stderr(f"fleetlm: {error}")
        sys.exit(EX_CONFIG)
    lines = None if level is None else logs.set_up(level, form=settings.log)

    def on_start(node: Node) -> None:
        if lines is not None:
            lines.node = node.name
            lines.attribute_to(lambda: LogContext(node).fields)

    def say(text: str) -> None:
        (say_on_stderr if lines is None else lines.say)(f"fleetlm: {text}")

    log_settings(settings)
    try:
        with asyncio.Runner(loop_factory=loop_factory or find_loop_factory()) as runner:
            code, foreground = run_to_end(runner, _serve(settings, program, say, on_start, options))
    finally:
        restore_sigterm()
        if lines is not None:
            lines.close()
    if foreground.error is not None:
        raise foreground.error
    if code:
        sys.exit(code)
    return foreground.result


async def _serve(
    settings: Settings,
    program: Program | None,
    say: Callable[[str], None],
    on_start: Callable[[Node], None],
    options: dict[str, Any],
) -> tuple[int, Foreground]:
    foreground = Foreground(settings, program, say, on_start, **options)
    return await foreground.run(), foreground


def _check_program(main: Any) -> Program | None:
    """Return the function that is called with the node. Raises: TypeError."""
    if main is None:
        return None
    if isinstance(main, Supervisor) or (isinstance(main, type) and issubclass(main, Actor)):

        def spawn(node: Node) -> None:
            node.spawn(main, name=ROOT, essential=True)

        return spawn
    if inspect.iscoroutine(main):
        main.close()
        raise TypeError(
            f"fleetlm.run() takes the function itself, since it calls it with the node: "
            f"fleetlm.run({main.__name__}), not fleetlm.run({main.__name__}())"
        )
    if not callable(main):
        raise TypeError(f"fleetlm.run() takes a function of the node, not {type(main).__name__}")
    name = getattr(main, "__qualname__", type(main).__qualname__)
    try:
        inspect.signature(main).bind(object())
    except ValueError:
        pass  # Some built-in functions have no signature.
    except TypeError:
        raise TypeError(
            f"{name}{inspect.signature(main)} must take the node as its only argument: "
            f"async def {name}(node): ..."
        ) from None
    program: Program = main
    return program


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "fleetlm.run() runs an event loop of its own, and one runs in this thread already: "
        "use async with fleetlm.Node.start() there"
    )
