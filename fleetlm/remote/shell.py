"""The interactive shell of `fleetlm remote`.

Two threads share the work. The main thread reads lines from the user, sends each complete input as one
evaluation and waits for its reply. The thread "fleetlm-remote" receives everything that the node sends: it
prints output at once, also while the user types, and puts replies into a queue for the main thread. When
the connection ends, it sets ``gone`` and ends a line that is being read (`Editor.leave`); that is the only
way out of a blocking read. `Shell._lock` guards ``gone`` against a read that starts at the same moment.

Lines are edited with prompt_toolkit if it is installed (``fleetlm[shell]``), else with the standard
library's readline.
"""

from __future__ import annotations

import ast
import codeop
import contextlib
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from fleetlm.remote import client, finder
from fleetlm.remote.client import NodeGone, RemoteConnection
from fleetlm.remote.protocol import BadMessage, Message

COMPLETION_S = 1.0
"""Seconds to wait for the node's completions, before there are none."""
THREAD_END_S = 1.0
"""Seconds that the receiving thread has to notice that the shell is closed."""
LEAVE_AGAIN_S = 0.1
"""Seconds until an editor that still reads is asked again to stop."""
HISTORY_LINES = 10_000
"""Lines that are kept in the history file."""
EXIT_COMMANDS = {"exit", "exit()", "quit", "quit()"}
BANNER = """\
Connected to {node}. Your Python runs inside that node, so a blocking call blocks it; `await` works.
Try Node.list(), Node.info() or Process.list(); `node` is the node, `_` the last result. Ctrl-C cancels an
evaluation, Ctrl-D leaves the shell."""

_COMPILE = codeop.CommandCompiler()
_COMPILE.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def needs_more(source: str) -> bool:
    """Whether the input is incomplete: a bracket is open, or a block needs the empty line that ends it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the node shows warnings when it evaluates
        try:
            if _COMPILE(source, "<input>", "exec") is None:
                return True
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
            tree = compile(source, "<input>", "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError):
            return False  # the node shows the error when it evaluates
    last = tree.body[-1] if tree.body else None
    return isinstance(getattr(last, "body", None), list) and bool(source.rpartition("\n")[2].strip())


def history_path(env: dict[str, str] | os._Environ[str]) -> Path | None:
    """Return the history file, after creating its folder; None if there is no place for it."""
    state = env.get("XDG_STATE_HOME") or (env["HOME"] + "/.local/state" if env.get("HOME") else "")
    if not state.startswith("/"):
        return None
    path = Path(state, "fleetlm", "history")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return None
    return path


class Editor(Protocol):
    """Reads lines from the user."""

    def read(self, prompt: str) -> str:
        """Read one line, or several lines that are pasted. Raises: EOFError, KeyboardInterrupt."""

    def leave(self) -> bool:
        """End a `read` in progress, by EOFError or KeyboardInterrupt. Called from another thread.

        Returns:
            False if the caller must try again while the `read` continues.
        """

    def close(self) -> None:
        """Save the history."""


Complete = Callable[[str], list[str]]


class ToolkitEditor:
    """An editor with prompt_toolkit. Creating it raises ImportError if that is not installed."""

    def __init__(self, complete: Complete, history: Path | None) -> None:
        from prompt_toolkit import PromptSession  # noqa: PLC0415  optional
        from prompt_toolkit.completion import Completer, Completion  # noqa: PLC0415
        from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415
        from prompt_toolkit.patch_stdout import patch_stdout  # noqa: PLC0415

        class NodeCompleter(Completer):
            def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
                del complete_event
                text = document.current_line_before_cursor
                for word in complete(text):
                    tail = _count_typed(text, word)
                    yield Completion(word.rpartition(".")[2], start_position=-tail)

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            completer=NodeCompleter(),
            complete_in_thread=True,
            complete_while_typing=False,
        )
        self._patched = patch_stdout

    def read(self, prompt: str) -> str:
        """See `Editor`."""
        with self._patched(raw=True):
            return self._session.prompt(prompt)

    def leave(self) -> bool:
        """See `Editor`."""
        app = self._session.app
        if app.loop is None or not app.is_running:
            return False
        app.loop.call_soon_threadsafe(self._exit_app, app)
        return True

    def _exit_app(self, app: Any) -> None:
        if app.is_running and not app.future.done():
            app.exit(exception=EOFError())

    def close(self) -> None:
        """Do nothing: each line is saved when it is entered."""


def _count_typed(text: str, word: str) -> int:
    """Return how many characters of the last part of ``word`` the user has typed already."""
    last = word.rpartition(".")[2]
    return next(size for size in range(len(last), -1, -1) if text.endswith(last[:size]))


class ReadlineEditor:
    """An editor with the standard library: readline if Python has it, else plain lines."""

    def __init__(self, complete: Complete, history: Path | None) -> None:
        self._complete = complete
        self._history = history
        self._words: list[str] = []
        try:
            import readline  # noqa: PLC0415  not on every build of Python
        except ImportError:
            self._readline: Any = None
            return
        self._readline = readline
        readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
        readline.set_completer(self._next_completion)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        readline.set_history_length(HISTORY_LINES)
        if history is not None:
            with contextlib.suppress(OSError):
                readline.read_history_file(history)

    def _next_completion(self, text: str, state: int) -> str | None:
        if state == 0:
            self._words = self._complete(text) if text else ["    "]
        return self._words[state] if state < len(self._words) else None

    def read(self, prompt: str) -> str:
        """See `Editor`."""
        return input(prompt)

    def leave(self) -> bool:
        """See `Editor`."""
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGINT)  # nothing else ends a blocking read
        return False  # it has no effect if it arrives just before the read begins

    def close(self) -> None:
        """See `Editor`."""
        if self._readline is not None and self._history is not None:
            with contextlib.suppress(OSError):
                self._readline.write_history_file(self._history)


class Shell:
    """An interactive shell in one node.

    Args:
        connection: connected and greeted.
        timeout_s: time limit in seconds for each evaluation; None for no limit.
    """

    def __init__(self, connection: RemoteConnection, timeout_s: float | None) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._number = 0
        self._replies: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._reading = False
        self.gone: Exception | None = None
        history = history_path(os.environ)
        self._editor: Editor
        self.prompt: str = f"{connection.node}> "
        try:
            if os.environ.get("TERM", "dumb") == "dumb":
                raise ImportError  # noqa: TRY301  nothing to edit lines with
            self._editor = ToolkitEditor(self._complete, history)
        except ImportError:
            self._editor = ReadlineEditor(self._complete, history)
        self._leaving = False
        self._receiver = threading.Thread(target=self._receive_all, name="fleetlm-remote", daemon=True)
        self._receiver.start()

    def close(self) -> None:
        """Disconnect and wait for the thread: one that prints while Python exits would abort the exit."""
        self._leaving = True
        self._connection.close()
        self._receiver.join(THREAD_END_S)

    def run(self) -> int:
        """Read and evaluate until Ctrl-D or until the node is gone. Returns the exit code."""
        try:
            while self.gone is None:
                try:
                    source = self._read()
                except KeyboardInterrupt:
                    if self.gone is None:
                        print("(Ctrl-D leaves the shell)")
                    continue
                except EOFError:
                    break
                if source.strip() in EXIT_COMMANDS:
                    break
                if source.strip():
                    self._evaluate(source)
        except KeyboardInterrupt:
            if self.gone is None:  # else it is the signal of `Editor.leave`, which came late
                raise
        finally:
            self._editor.close()
        if self.gone is None:
            return finder.OK
        return finder.NO_NODE

    def _read(self) -> str:
        """Read lines until the input is complete."""
        lines = [self._read_line(self.prompt)]
        while needs_more("\n".join(lines)):
            lines.append(self._read_line("." * (len(self.prompt) - 1) + " "))
        return "\n".join(lines)

    def _read_line(self, prompt: str) -> str:
        with self._lock:
            if self.gone is not None:
                raise EOFError
            self._reading = True
        try:
            return self._editor.read(prompt)
        finally:
            self._reading = False

    def _evaluate(self, source: str) -> None:
        """Evaluate once. Ctrl-C and the time limit cancel the evaluation in the node, not the shell."""
        width = client.terminal_width()
        limit = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        try:
            number = self._request({"op": "eval", "source": source, "width": width})
            done: Message | None = None
            while done is None:
                try:
                    done = self._await_reply(number, limit)
                except (KeyboardInterrupt, TimeoutError) as error:
                    if isinstance(error, TimeoutError):
                        print(
                            f"no result within {self._timeout_s:g} s; cancelling the evaluation",
                            file=sys.stderr,
                        )
                    limit = None
                    self._connection.send({"op": "cancel"})
        except (NodeGone, BadMessage) as error:
            if self.gone is None:
                client.put(f"*** {error}\n", sys.stderr)
            return
        self._show(done)

    def _show(self, done: Message) -> None:
        match done["done"]:
            case "ok":
                if done["repr"] != "None":
                    client.put(f"{done['repr']}\n", sys.stdout)
            case "error":
                client.put(f"{str(done['traceback']).rstrip()}\n", sys.stderr)
            case other:
                client.put(f"({other})\n", sys.stderr)

    def _request(self, message: Message) -> int:
        """Send a request with a new number, and return that number."""
        with self._lock:
            self._number += 1
            number = self._number
        self._connection.send({**message, "id": number})
        return number

    def _await_reply(self, number: int, limit: float | None) -> Message:
        """Wait for the reply to request ``number``, until ``limit`` of `time.monotonic`.

        Raises: TimeoutError; NodeGone.
        """
        while True:
            if self.gone is not None:
                raise NodeGone(self._connection.node, "no result")
            left = 0.5 if limit is None else min(0.5, limit - time.monotonic())
            try:
                message = self._replies.get(timeout=max(0.0, left))
            except queue.Empty:
                if limit is not None and time.monotonic() >= limit:
                    raise TimeoutError from None
                continue
            if message.get("id") == number:
                return message

    def _complete(self, text: str) -> list[str]:
        """Ask the node for completions. There are none if it does not answer within `COMPLETION_S`."""
        try:
            number = self._request({"op": "complete", "text": text})
            words = self._await_reply(number, time.monotonic() + COMPLETION_S).get("words")
        except (NodeGone, BadMessage, TimeoutError):
            return []
        return [str(word) for word in words] if isinstance(words, list) else []

    def _receive_all(self) -> None:
        """Print output and queue replies until the connection ends. Runs in the receiving thread."""
        try:
            while True:
                message = self._connection.receive()
                if "stream" in message:
                    target = sys.stderr if message["stream"] == "stderr" else sys.stdout
                    client.put(str(message.get("text", "")), target)
                else:
                    self._replies.put(message)
        except (NodeGone, BadMessage, OSError, ValueError) as error:
            if self._leaving:
                return
            with self._lock:
                self.gone = error
            client.put(f"\n*** {error}. Leaving the shell.\n", sys.stderr)
            self._replies.put({})
            while self._reading and not self._editor.leave():
                time.sleep(LEAVE_AGAIN_S)


def run(*, node: str | None, timeout_s: float | None) -> int:
    """Run `fleetlm remote` without an expression: a shell in one node. Returns the exit code."""
    try:
        found = finder.discover(os.environ, os.getuid())
        connection = client.connect(finder.choose(found, node))
    except finder.RemoteFailure as failure:
        client.put(f"{failure.text}\n", sys.stderr)
        return failure.code
    client.put(f"{BANNER.format(node=connection.node)}\n", sys.stdout)
    shell = Shell(connection, timeout_s)
    try:
        return shell.run()
    finally:
        shell.close()
