"""Runs `fleetlm top`: the live view, the tables of ``--once``, or the JSON of ``--json``.

`textual` is imported only for the live view.
"""

from __future__ import annotations

import importlib.util
import json
import sys

from fleetlm.cli.top.source import Source, look_twice
from fleetlm.remote.client import put
from fleetlm.remote.finder import OK, USAGE, RemoteFailure

NOT_INSTALLED = (
    "the live view needs the package textual: pip install 'fleetlm[top]'\n"
    "Without it, `fleetlm top --once` prints tables, and `fleetlm top --json` all there is."
)
NO_TERMINAL = "the live view needs a terminal; `fleetlm top --once` and `fleetlm top --json` need none."


def run(*, node: str | None, interval_s: float, once: bool, as_json: bool) -> int:
    """Run the command. Returns the exit code, with the meanings of those of `fleetlm remote`."""
    is_live = not (once or as_json)
    if is_live and not all(each.isatty() for each in (sys.stdin, sys.stdout, sys.stderr)):
        return _fail(NO_TERMINAL, USAGE)
    if is_live and importlib.util.find_spec("textual") is None:
        return _fail(NOT_INSTALLED, USAGE)
    source = Source(node)
    try:
        source.connect()
        if as_json:
            return _print_json(source)
        if once:
            return _print_tables(source, interval_s)
        from fleetlm.cli.top.app import TopApp  # noqa: PLC0415  # textual takes a while

        TopApp(source, interval_s).run()
    except RemoteFailure as failure:
        return _fail(failure.text, failure.code)
    finally:
        source.close()
    return OK


def _print_json(source: Source) -> int:
    look = source.look()
    if look.overview is None:
        return _fail(look.failure, look.code)
    print(json.dumps(look.overview))
    return OK


def _print_tables(source: Source, interval_s: float) -> int:
    from fleetlm.cli.top.history import History  # noqa: PLC0415  # --json does without
    from fleetlm.cli.top.tables import render  # noqa: PLC0415

    history = History()
    for look in look_twice(source, interval_s):
        if look.overview is None:
            return _fail(look.failure, look.code)
        history.add(look.overview)
    put(render(history), sys.stdout)
    return OK


def _fail(why: str, code: int) -> int:
    put(f"fleetlm top: {why}\n", sys.stderr)
    return code
