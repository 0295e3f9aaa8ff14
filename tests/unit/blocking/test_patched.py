"""Programs whose threads are greenlets: how that is noticed, and what a program is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm import node_in_thread
from fleetlm.blocking.patched import patched_by

GEVENT = ("gevent.monkey", SimpleNamespace(is_module_patched=lambda name: name == "threading"))
EVENTLET = ("eventlet.patcher", SimpleNamespace(is_monkey_patched=lambda name: name == "thread"))


@pytest.mark.parametrize(
    ("module", "patch"),
    [(GEVENT, "gevent.monkey.patch_all()"), (EVENTLET, "eventlet.monkey_patch()")],
    ids=["gevent", "eventlet"],
)
def test_a_node_in_a_thread_is_refused_where_threads_are_greenlets(
    module: tuple[str, Any], patch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, *module)
    assert patched_by() == patch
    with pytest.raises(RuntimeError) as caught:
        node_in_thread()
    assert str(caught.value).startswith(f"{patch} has replaced this program's threads by greenlets")
    assert f"Call {patch[:-1]}thread=False)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gevent.monkey", SimpleNamespace(is_module_patched=lambda _: False)),
        ("eventlet.patcher", SimpleNamespace(is_monkey_patched=lambda _: False)),
    ],
)
def test_a_library_that_is_there_and_has_patched_nothing_does_no_harm(
    name: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    assert patched_by() == ""
