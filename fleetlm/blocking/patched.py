"""Whether gevent or eventlet has replaced the threads of this program.

After ``gevent.monkey.patch_all()`` a "thread" is a greenlet of the thread that starts it. The event loop of a
node in a thread would then run on the very thread that waits for it, and a blocking function on the event
loop. Nothing here imports gevent or eventlet.
"""

from __future__ import annotations

import sys


def patched_by() -> str:
    """Return what has replaced the threads of this program, as a call; empty where they are real threads."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent.monkey.patch_all()"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet.monkey_patch()"
    return ""


def why_no_threads(patch: str) -> str:
    """Return what a patch means for a node, and what to do, as two sentences.

    Args:
        patch: what `patched_by` returned.
    """
    without = patch.replace("()", "(thread=False)")
    return (
        f"{patch} has replaced this program's threads by greenlets, so what should run beside the event loop "
        f"would run on its thread. Call {without} instead, or run this program with real threads (gunicorn: "
        "--worker-class gthread)"
    )
