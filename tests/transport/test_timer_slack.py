"""The timers of libzmq's threads may be late; those of other threads are as punctual as before."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from fleetlm.settings import Settings
from fleetlm.transport.timer_slack import timer_slack
from tests.support.transport_rig import station

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has timer slack")


def slack_of(thread: int) -> int:
    return int(Path(f"/proc/{thread}/timerslack_ns").read_text("ascii"))


def slack_here() -> int:
    return slack_of(threading.get_native_id())


def slack_in_a_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(slack_here()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_are_started_meanwhile_have_the_slack_and_others_do_not() -> None:
    usual = slack_here()
    with timer_slack(0.125):
        assert slack_in_a_thread() == 125_000_000
    assert slack_here() == usual
    assert slack_in_a_thread() == usual


def test_a_thread_gets_back_the_slack_that_its_program_has_given_it() -> None:
    found: list[int] = []

    def run() -> None:
        with timer_slack(0.002):
            with timer_slack(0.125):
                pass
            found.append(slack_here())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [2_000_000]


def test_the_usual_slack_is_back_after_an_error() -> None:
    usual = slack_here()
    with pytest.raises(OSError, match="no socket"), timer_slack(0.125):
        raise OSError("no socket")
    assert slack_here() == usual


def test_where_it_cannot_be_set_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = slack_here()
    monkeypatch.setattr("fleetlm.transport.timer_slack.threading.get_native_id", lambda: 2**31)
    with timer_slack(0.125):
        monkeypatch.undo()
        assert slack_here() == usual


async def test_libzmqs_thread_has_the_slack_of_heartbeats_and_the_loop_has_not() -> None:
    usual = slack_here()
    before = {each.name for each in Path("/proc/self/task").iterdir()}
    async with station() as a:
        assert a.transport.road >= 0
        names = {
            each.name: (each / "comm").read_text("ascii").strip()
            for each in Path("/proc/self/task").iterdir()
            if each.name not in before
        }
        [io_thread] = [int(number) for number, name in names.items() if "IO" in name]
        try:
            found = slack_of(io_thread)
        except PermissionError:
            pytest.skip("another thread's slack is shown to root alone")
        assert found == round(Settings().heartbeat_slack_s * 1e9)
        assert slack_here() == usual
