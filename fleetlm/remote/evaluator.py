"""Evaluation of Python inside a running node, for `fleetlm remote`.

Expressions and statements alike, ``await`` at the top level, what is awaitable is awaited. What the
evaluation prints goes to its own client, from whatever task or thread it started; what anything else
prints stays at the node.
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
from dataclasses import dataclass
from typing import Any, TextIO

from fleetlm.remote.facts import plain
from fleetlm.remote.protocol import MAX_REPR_CHARS, MAX_VALUE_BYTES

Sink = Callable[[str, str], None]
"""Takes ("stdout" or "stderr", text), on the event loop's thread."""

MAX_SOURCES_KEPT = 64
"""Sources of one session that tracebacks can show."""
MAX_COMPLETIONS = 500

_sink: contextvars.ContextVar[Sink | None] = contextvars.ContextVar("fleetlm_remote", default=None)
_serial = itertools.count(1)
_DOTTED = re.compile(r"(?:^|[^\w.])((?:[A-Za-z_]\w*\.)*)([A-Za-z_]\w*)?$")


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluation came to. ``traceback`` is None where it did not raise."""

    value: Any = None
    error: BaseException | None = None
    traceback: str | None = None

    @property
    def text(self) -> str:
        """The error's message; never raises."""
        try:
            return shorten(str(self.error))
        except Exception:  # noqa: BLE001  a broken __str__ is the error's own affair
            return "(its str() raised)"


class Evaluator:
    """One client's evaluations: its names persist, ``_`` is the last result."""

    def __init__(self, names: dict[str, Any], sink: Sink) -> None:
        self.names = names
        self._sink = sink
        self._files: list[str] = []

    async def run(self, source: str) -> Result:
        """Evaluate ``source``. Raises nothing but CancelledError, when this task is cancelled.

        SystemExit and KeyboardInterrupt of the source end the evaluation, never the node.
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
        except BaseException as error:  # noqa: BLE001  whatever it is, it is the client's, not the node's
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
        """What the last word of ``text`` may become, as whole dotted words, sorted."""
        match = _DOTTED.search(text)
        if match is None:
            return []
        path, start = match.group(1), match.group(2) or ""
        try:
            found = self._words(path)
        except Exception:  # noqa: BLE001  a property that raises has no completions
            return []
        fitting = sorted(
            word
            for word in found
            if word.startswith(start) and (start.startswith("_") or not word.startswith("_"))
        )
        return [path + word for word in fitting[:MAX_COMPLETIONS]]

    def _words(self, path: str) -> set[str]:
        if not path:
            import keyword  # noqa: PLC0415  only a shell asks

            return {*self.names, *dir(builtins), *keyword.kwlist}
        first, *rest = path.removesuffix(".").split(".")
        value = self.names[first] if first in self.names else getattr(builtins, first)
        for attribute in rest:
            value = getattr(value, attribute)
        return set(dir(value))

    def close(self) -> None:
        """Forget the sources; what was printed by tasks left behind stays at the node from now on."""
        for filename in self._files:
            linecache.cache.pop(filename, None)
        self._files.clear()
        self.names.clear()

    def _remember(self, source: str) -> str:
        """Let tracebacks show the lines of ``source``, which is in no file."""
        filename = f"<remote-{next(_serial)}>"
        lines = [f"{line}\n" for line in source.splitlines()]  # carets count on the line's end
        linecache.cache[filename] = (len(source), None, lines, filename)
        self._files.append(filename)
        if len(self._files) > MAX_SOURCES_KEPT:
            linecache.cache.pop(self._files.pop(0), None)
        return filename


def _compile(source: str, filename: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """The statements, and the expression behind them whose value is the result."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    parsed = compile(source, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(parsed, ast.Module)
    last: ast.Expr | None = None
    if parsed.body and isinstance(parsed.body[-1], ast.Expr):
        last = parsed.body.pop()  # type: ignore[assignment]  # just seen to be one
    body = compile(parsed, filename, "exec", flags, dont_inherit=True) if parsed.body else None
    if last is None:
        return body, None
    expression = ast.Expression(last.value)
    return body, compile(expression, filename, "eval", flags, dont_inherit=True)


def _format_traceback(error: BaseException, filename: str) -> str:
    """The traceback from the user's first frame on: ours would only be in the way."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != filename:
        frames = frames.tb_next
    told = traceback.TracebackException(type(error), error, frames, compact=True)
    text = "".join(told.format())
    if isinstance(error, SystemExit):
        text += "(The node goes on. To stop it: await node.stop())\n"
    return shorten(text)


def shorten(text: str) -> str:
    """At most `MAX_REPR_CHARS`, and a remark on the rest."""
    if len(text) <= MAX_REPR_CHARS:
        return text
    return f"{text[:MAX_REPR_CHARS]}… ({len(text) - MAX_REPR_CHARS:,} characters more)"


def format_value(value: Any, width: int) -> str:
    """``repr(value)``, laid out over lines of ``width`` characters where width is not 0.

    Never raises, and never returns more than `MAX_REPR_CHARS` and a remark on the rest.
    """
    try:
        text = pprint.pformat(value, width=width, sort_dicts=False) if width else repr(value)
    except Exception as error:  # noqa: BLE001  a broken __repr__ is the value's own affair
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return shorten(text)


def as_json(value: Any) -> Any:
    """The value as JSON can carry it, dataclasses as objects; None where it cannot."""

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
    """Stands in for ``sys.stdout`` or ``sys.stderr`` while sessions are open; else it is the stream."""

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
    """Puts the dispatchers in place for as long as there are sessions, of any node of this program."""

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
                if getattr(sys, name) is dispatcher:  # else somebody put another in its place
                    setattr(sys, name, dispatcher.stream)
            self._placed.clear()


CAPTURE = _OutputCapture()
"""``sys.stdout`` belongs to the program, so there is one of these, not one for each node."""
