"""Evaluation of Python inside a running node, for `fleetlm remote`.

`Evaluator.run` takes expressions and statements. ``await`` works at the top level; if the last expression
is awaitable, it is awaited. Nothing that the source raises reaches the node: SystemExit, KeyboardInterrupt
and CancelledError become the result as well. The one exception is the cancellation of the evaluating task
itself.

Output: ``sys.stdout`` and ``sys.stderr`` are replaced by `_OutputDispatcher` objects while clients are
connected (`CAPTURE`). A dispatcher looks at a context variable. Tasks and threads started with
`asyncio.to_thread` inherit the context of the evaluation, so their output goes to that client, even
after the result; after the client has disconnected, it is dropped. Everything else is written to the
original stream. When the last client disconnects, the original streams are restored, unless the program
has replaced them in the meantime.

Tracebacks: the source of each evaluation is kept in `linecache` under a name such as ``<remote-7>``, so
that tracebacks show its lines. They begin with the user's first frame.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextvars
import inspect
import itertools
import json
import linecache
import pprint
import re
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from fleetlm.records import Record
from fleetlm.remote.facts import plain
from fleetlm.remote.protocol import MAX_REPR_CHARS, MAX_VALUE_BYTES
from fleetlm.texts import LONG, is_short, loggable, text_of

Sink = Callable[[str, str], None]
"""Called with "stdout" or "stderr" and the text, on the thread that prints."""

MAX_SOURCES_KEPT = 64
"""Sources of one client that tracebacks can show. Older ones are forgotten, to bound memory."""
MAX_COMPLETIONS = 500
"""Completions of one word that are sent."""

_sink: contextvars.ContextVar[Sink | None] = contextvars.ContextVar("fleetlm_remote", default=None)
_serial = itertools.count(1)
_DOTTED = re.compile(r"(?:^|[^\w.])((?:[A-Za-z_]\w*\.)*)([A-Za-z_]\w*)?$")


class Result(Record):
    """The result of an evaluation: a value, or an error with its traceback."""

    value: Any = None
    error: BaseException | None = None
    traceback: str | None = None

    @property
    def text(self) -> str:
        """The error's message. Never raises."""
        return shorten(text_of(self.error))


class Evaluator:
    """Evaluates for one client. Its names persist between evaluations; ``_`` is the last result.

    Args:
        names: the namespace, which evaluations change.
        sink: receives what evaluations print.
    """

    def __init__(self, names: dict[str, Any], sink: Sink) -> None:
        self.names = names
        self._sink = sink
        self._files: list[str] = []

    async def run(self, source: str) -> Result:
        """Evaluate ``source`` in the current task.

        Raises:
            CancelledError: this task was cancelled. Everything that the source raises is returned.
        """
        _sink.set(self._sink)
        filename = self._remember(source)
        try:
            body, last = _compile(source, filename)
            if body is not None:
                await self._call(body)
            value = None if last is None else await self._call(last)
            if inspect.isawaitable(value):
                value = await value
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Result(error=error, traceback=_format_traceback(error, filename))
        except BaseException as error:  # noqa: BLE001  no error of a client may reach the node
            return Result(error=error, traceback=_format_traceback(error, filename))
        if value is not None:
            self.names["_"] = value
        return Result(value)

    async def _call(self, code: types.CodeType) -> Any:
        value = types.FunctionType(code, self.names)()
        if code.co_flags & inspect.CO_COROUTINE:
            return await value
        return value

    def complete(self, text: str) -> list[str]:
        """Return completions of the last word of ``text``, as whole dotted words, sorted."""
        match = _DOTTED.search(text)
        if match is None:
            return []
        path, start = match.group(1), match.group(2) or ""
        try:
            found = self._list_names(path)
        except Exception:  # noqa: BLE001  a property that raises has no completions
            return []
        fitting = sorted(
            word
            for word in found
            if word.startswith(start) and (start.startswith("_") or not word.startswith("_"))
        )
        return [path + word for word in fitting[:MAX_COMPLETIONS]]

    def _list_names(self, path: str) -> set[str]:
        """Return the names that may follow ``path``, such as ``node.settings.``."""
        if not path:
            import keyword  # noqa: PLC0415  used by shells only

            return {*self.names, *dir(builtins), *keyword.kwlist}
        first, *rest = path.removesuffix(".").split(".")
        value = self.names[first] if first in self.names else getattr(builtins, first)
        for attribute in rest:
            value = getattr(value, attribute)
        return set(dir(value))

    def close(self) -> None:
        """Forget the names and sources of this client."""
        for filename in self._files:
            linecache.cache.pop(filename, None)
        self._files.clear()
        self.names.clear()

    def _remember(self, source: str) -> str:
        """Store ``source`` for tracebacks, since it is in no file. Returns its made-up file name."""
        filename = f"<remote-{next(_serial)}>"
        lines = [f"{line}\n" for line in source.splitlines()]  # carets need the line ends
        linecache.cache[filename] = (len(source), None, lines, filename)
        self._files.append(filename)
        if len(self._files) > MAX_SOURCES_KEPT:
            linecache.cache.pop(self._files.pop(0), None)
        return filename


def _compile(source: str, filename: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """Compile ``source``. Returns its statements, and the last expression, whose value is the result."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    parsed = compile(source, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(parsed, ast.Module)
    last: ast.Expr | None = None
    if parsed.body and isinstance(parsed.body[-1], ast.Expr):
        last = parsed.body.pop()  # type: ignore[assignment]  # checked in the line above
    body = compile(parsed, filename, "exec", flags, dont_inherit=True) if parsed.body else None
    if last is None:
        return body, None
    expression = ast.Expression(last.value)
    return body, compile(expression, filename, "eval", flags, dont_inherit=True)


def _format_traceback(error: BaseException, filename: str) -> str:
    """Return the traceback without the frames of this module."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != filename:
        frames = frames.tb_next
    shown = loggable(error)
    formatter = traceback.TracebackException(type(shown), shown, frames, compact=True)
    text = "".join(formatter.format())
    if isinstance(error, SystemExit):
        text += "(The node continues to run. To stop it: await node.stop())\n"
    return shorten(text)


def shorten(text: str) -> str:
    """Cut a text after `MAX_REPR_CHARS` and say how much is missing."""
    if len(text) <= MAX_REPR_CHARS:
        return text
    return f"{text[:MAX_REPR_CHARS]}… ({len(text) - MAX_REPR_CHARS:,} characters more)"


def format_value(value: Any, width: int) -> str:
    """Return ``repr(value)``, broken into lines of ``width`` characters unless width is 0.

    Never raises. Longer texts than `MAX_REPR_CHARS` are cut.
    """
    if not is_short(value, MAX_REPR_CHARS):
        return LONG.repr(value)
    try:
        text = pprint.pformat(value, width=width, sort_dicts=False) if width else repr(value)
    except BaseException as error:  # noqa: BLE001  the __repr__ of a value may raise anything
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return shorten(text)


def as_json(value: Any) -> Any:
    """Return the value in JSON types; None if it cannot be converted or is too long."""

    def convert(each: Any) -> Any:
        if hasattr(each, "__dataclass_fields__") and not isinstance(each, type):
            return plain(each)
        raise TypeError

    try:
        text = json.dumps(value, default=convert, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return json.loads(text) if len(text) <= MAX_VALUE_BYTES else None


class _OutputDispatcher:
    """Replaces ``sys.stdout`` or ``sys.stderr`` while clients are connected."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self.stream = stream

    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None:
            return self.stream.write(text)
        sink(self._name, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _sink.get() is None:
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _OutputCapture:
    """Installs the dispatchers while any node of this program has a client. `hold` and `release` count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._placed: dict[str, _OutputDispatcher] = {}

    def hold(self) -> None:
        with self._lock:
            self._users += 1
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if stream is not None and not isinstance(stream, _OutputDispatcher):
                    self._placed[name] = _OutputDispatcher(name, stream)
                    setattr(sys, name, self._placed[name])

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            for name, dispatcher in self._placed.items():
                if getattr(sys, name) is dispatcher:  # else the program has replaced it
                    setattr(sys, name, dispatcher.stream)
            self._placed.clear()


CAPTURE = _OutputCapture()
"""One for the whole program, since ``sys.stdout`` exists once and not for each node."""
