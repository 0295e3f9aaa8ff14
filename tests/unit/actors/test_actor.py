"""One actor on one node, on virtual time: hooks, requests, errors, and every way in which it ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fleetlm import (
    Actor,
    AlreadyRegistered,
    Child,
    Crash,
    Down,
    Exit,
    InitFailed,
    Node,
    NoHandler,
    NoProcess,
    NotDelivered,
    Pid,
    Process,
    ProcessDown,
    ProcessExit,
    RemoteError,
    Supervisor,
    handler,
)
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated


class Sessions(Actor):
    """Notes what is done with it."""

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log: list[Any] = [] if log is None else log
        self.lines: dict[str, list[str]] = {}

    async def init(self) -> None:
        self.log.append("init")

    async def terminate(self, reason: Any) -> None:
        self.log.append(("terminate", reason))

    async def handle_info(self, message: Any) -> None:
        if message == "crash":
            raise ValueError("info")
        self.log.append(message)

    @handler
    async def append(self, session: str, line: str, *, twice: bool = False) -> int:
        self.lines.setdefault(session, []).extend([line] * (1 + twice))
        return len(self.lines[session])

    @handler
    async def read(self, session: str) -> list[str]:
        return self.lines[session]

    @handler
    async def work(self, name: str, seconds: float) -> str:
        self.log.append(f"+{name}")
        await asyncio.sleep(seconds)
        self.log.append(f"-{name}")
        return name

    @handler
    async def fail(self, error: BaseException) -> None:
        raise error

    @handler
    async def leave(self, reason: Any) -> str:
        self.stop(reason)
        self.stop("another")
        await asyncio.sleep(1)
        return "left"

    @handler
    async def unsendable(self) -> object:
        return object()

    async def helper(self) -> int:
        return 1


async def watched(node: Node, pid: Pid) -> asyncio.Future[Any]:
    """Where the reason will be for which a process ends."""
    reason = SimLoop.current().create_future()

    async def watch(process: Process) -> None:
        process.monitor(pid)
        down = await process.receive()
        assert isinstance(down, Down)
        reason.set_result(down.reason)

    node.spawn(watch)
    await asyncio.sleep(0)
    return reason


# Serving.


@simulated
async def test_it_serves_calls_and_casts_with_its_own_state(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions, name="sessions")
    assert await ref.call(Sessions.append, "s1", "hello") == 1
    await ref.cast(Sessions.append, "s1", line="again", twice=True)
    assert await ref.call(Sessions.append, session="s1", line="last") == 4
    assert await ref.within(1).call(Sessions.read, "s1") == ["hello", "again", "again", "last"]


@simulated
async def test_handlers_run_one_at_a_time_in_the_order_of_their_requests(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    log: list[Any] = []
    ref = await node.start_actor(Sessions(log))
    await asyncio.gather(*(ref.call(Sessions.work, name, 0.1) for name in "abc"))
    assert log == ["init", "+a", "-a", "+b", "-b", "+c", "-c"]


@simulated
async def test_who_it_is_is_known_from_init_on(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    seen: list[Any] = []

    class Known(Actor):
        async def init(self) -> None:
            seen.extend([self.process.pid, self.node, self.pid])

    pid = node.spawn(Known)
    await asyncio.sleep(0)
    assert seen == [pid, node, pid]
    early = Known()
    for ask in (lambda: early.process, lambda: early.node, lambda: early.pid, early.stop):
        with pytest.raises(RuntimeError, match=r"Known has no process yet.*init\(\)"):
            ask()


@simulated
async def test_it_shows_as_its_class(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions)
    pids = [node.spawn(Sessions), node.spawn(Sessions()), ref.pid]
    assert {info.runs for pid in pids if (info := node.process_info(pid))} == {"Sessions"}


@simulated
async def test_its_clean_up_sees_neither_requests_nor_a_call_of_its_own(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions)
    process = node._local.process(ref.pid)
    assert process is not None
    await ref.call(Sessions.append, "s1", "hello")
    assert process.info().open_calls == 0
    asking = asyncio.ensure_future(ref.call(Sessions.work, "a", 1))
    await asyncio.sleep(0.5)
    assert process.info().open_calls == 1
    await asking
    assert process.info().open_calls == 0


# What it cannot run.


@simulated
async def test_what_it_has_no_handler_for_has_not_run(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    pid = node.spawn(Sessions, name="sessions")
    for request, why in [
        (Invoke("nothing", (), {}), "Sessions has no handler 'nothing'"),
        (Invoke("helper", (), {}), "Sessions has no handler 'helper'"),
        (Invoke("__init__", (), {}), "has no handler"),
        (Invoke(["odd"], (), {}), "has no handler"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(NoHandler, match=why) as caught:
            await node.call("sessions", request)
        assert isinstance(caught.value, NotDelivered)
        assert caught.value.target == "sessions"
        await node.send(pid, request)
    assert node.process_info(pid) is not None


@simulated
async def test_a_process_that_is_no_actor_runs_no_handler(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    got: list[Any] = []

    async def plain(process: Process) -> None:
        async for message in process.mailbox:
            got.append(message)  # noqa: PERF401  # it never ends

    pid = node.spawn(plain)
    with pytest.raises(NoHandler, match=r"plain is not an actor"):
        await node.ref(Sessions, pid).call(Sessions.append, "s1", "hello")
    assert got == []


@simulated
async def test_arguments_that_do_not_fit_are_the_callers_error(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions)
    for args in [("s1",), ("s1", "a", "b")]:
        with pytest.raises(NoHandler, match="argument"):  # Nothing has run.
            await ref.call(Sessions.append, *args)
        await ref.cast(Sessions.append, *args)
    for odd in (Invoke("append", 5, {}), Invoke("append", (), {1: 2})):  # type: ignore[arg-type,dict-item]
        await ref.send(odd)
        with pytest.raises(NoHandler):
            await node.call(ref.pid, odd)
    assert await ref.call(Sessions.append, "s1", "hello") == 1


def test_what_it_drops_is_logged_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Actor):
        @handler
        async def known(self) -> None: ...

    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        ref = await node.start_actor(Mute, name="mute")
        for message in (1, 2, "text", "more"):
            await ref.send(message)
        for name in ("gone", "gone", "known"):
            await ref.send(Invoke(name, (1,), {}))
        await asyncio.sleep(0.1)
        with pytest.raises(NoHandler, match="takes calls for its handlers only"):
            await node.call("mute", "raw")
        assert node.process_info(ref.pid) is not None

    with caplog.at_level(logging.WARNING):
        story()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("actor mute")]
    assert len(said) == 4
    assert "has no handle_info for int 1" in said[0]
    assert "has no handle_info for str 'text'" in said[1]
    assert "drops a cast" in said[2]
    assert "no handler 'gone'" in said[2]
    assert "positional argument" in said[3]


def test_the_log_is_not_filled_by_what_peers_invent(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        ref = await node.start_actor(Sessions)
        for number in range(300):
            await ref.send(Invoke(f"h{number}", (), {}))
        await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING):
        story()
    assert sum("drops a cast" in record.getMessage() for record in caplog.records) == 100


# Exceptions.


@simulated
async def test_an_exception_in_a_call_is_the_callers_and_the_actor_lives_on(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions)
    with pytest.raises(RemoteError) as caught:
        await ref.call(Sessions.fail, ValueError("no"))
    assert (caught.value.type_name, caught.value.text) == ("ValueError", "no")
    assert "in fail" in caught.value.traceback_text
    with pytest.raises(RemoteError, match="KeyError"):
        await ref.call(Sessions.read, "unknown")
    assert await ref.call(Sessions.append, "s1", "hello") == 1


@simulated
async def test_a_cancellation_of_something_that_it_awaits_is_an_exception_like_others(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Sessions)
    with pytest.raises(RemoteError, match="CancelledError"):
        await ref.call(Sessions.fail, asyncio.CancelledError())
    assert await ref.call(Sessions.append, "s1", "hello") == 1


@simulated
async def test_an_exception_that_nobody_would_hear_ends_it(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    (node,) = await fleet.mesh(1)
    for how in ("cast", "info"):
        log: list[Any] = []
        ref = await node.start_actor(Sessions, log)
        ended = await watched(node, ref.pid)
        await (ref.cast(Sessions.fail, ValueError("cast")) if how == "cast" else ref.send("crash"))
        reason = await ended
        assert isinstance(reason, Crash)
        assert (reason.type_name, reason.text) == ("ValueError", how)
        (_, (_, told)) = log
        assert (told.type_name, told.text) == ("ValueError", how)


@simulated
async def test_process_exit_ends_it_with_that_reason_wherever_it_is_raised(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    log: list[Any] = []
    ref = await node.start_actor(Sessions, log)
    ended = await watched(node, ref.pid)
    later = asyncio.ensure_future(ref.call(Sessions.work, "later", 1))
    await asyncio.sleep(0)
    with pytest.raises(ProcessDown) as caught:
        await ref.call(Sessions.fail, ProcessExit("shutdown"))
    assert caught.value.reason == "shutdown"
    assert await ended == "shutdown"
    assert log == ["init", "+later", "-later", ("terminate", "shutdown")]
    assert await later == "later"

    ref = await node.start_actor(Sessions, log := [])
    ended = await watched(node, ref.pid)
    await ref.cast(Sessions.fail, ProcessExit(("quota", 3)))
    assert await ended == ("quota", 3)
    assert log == ["init", ("terminate", ("quota", 3))]


@simulated
async def test_a_result_that_cannot_travel_is_an_error_and_the_actor_lives_on(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1, debug=True)
    ref = await node.start_actor(Sessions)
    with pytest.raises(RemoteError, match="object"):
        await ref.call(Sessions.unsendable)
    assert await ref.call(Sessions.append, "s1", "hello") == 1


# Messages.


@simulated
async def test_handle_info_gets_what_is_no_request(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    got: list[Any] = []

    class Parent(Actor):
        async def init(self) -> None:
            self.process.trap_exit = True
            self.child = self.process.spawn_link(Sessions)
            _, self.ref = self.process.spawn_monitor(Sessions, name="watched")

        async def handle_info(self, message: Any) -> None:
            got.append(message)

    ref = await node.start_actor(Parent)
    await node.send(ref.pid, {"raw": 1})
    child = next(info.pid for info in node.processes() if info.runs == "Sessions" and info.name is None)
    node.exit(child, "bye")
    node.exit(node.registered()["watched"], "bye too")
    await asyncio.sleep(0.1)
    raw, exited, down = got
    assert raw == {"raw": 1}
    assert exited == Exit(child, "bye")
    assert isinstance(down, Down)
    assert down.reason == "bye too"


@simulated
async def test_handle_info_may_answer_a_raw_call(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    class Raw(Actor):
        async def handle_info(self, message: Any) -> None:
            if message.message == "crash":
                raise ValueError
            message.reply(message.message * 2)
            await asyncio.sleep(1)  # A reply is not the end of it, and cancels nothing.
            self.slept = True

        @handler
        async def has_slept(self) -> bool:
            return self.slept

    ref = await node.start_actor(Raw)
    assert await node.call(ref.pid, 21) == 42
    assert await ref.call(Raw.has_slept)
    logging.disable(logging.CRITICAL)
    with pytest.raises(ProcessDown, match="ValueError"):
        await node.call(ref.pid, "crash")


# Start.


class Failing(Actor):
    """Its start fails as it is told."""

    ended: list[Any]

    def __init__(self, how: str, error: BaseException | None = None, ended: Any = None) -> None:
        self.how = how
        self.error = error
        self.ended = [] if ended is None else ended
        if how == "constructor":
            assert error is not None
            raise error

    async def init(self) -> None:
        if self.error is not None:
            raise self.error
        if self.how == "kill":
            self.process.exit(self.pid, "kill")
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.append("init")

    async def terminate(self, reason: Any) -> None:
        self.ended.append(reason)


@simulated
async def test_a_failed_start_says_why_and_leaves_nothing(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    (node,) = await fleet.mesh(1)
    for how in ("constructor", "init"):
        with pytest.raises(InitFailed, match="Failing did not start: ValueError: no") as caught:
            await node.start_actor(Failing, how, ValueError("no"), name="failing")
        reason = caught.value.reason
        assert caught.value.actor == "Failing"
        assert isinstance(reason, Crash)
        assert "ValueError: no" in reason.traceback_text
    with pytest.raises(InitFailed, match="quota") as caught:
        await node.start_actor(Failing, "exit", ProcessExit("quota"), name="failing")
    assert caught.value.reason == "quota"
    with pytest.raises(InitFailed, match="killed"):
        await node.start_actor(Failing, "kill", name="failing")
    await asyncio.sleep(0)
    assert node.processes() == []


@simulated
async def test_a_start_that_takes_too_long_is_ended_without_terminate(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ended: list[Any] = []
    with pytest.raises(InitFailed, match=r"init was not done within 2 s"):
        await node.start_actor(Failing("slow", ended=ended), name="failing", timeout=2)
    assert node.processes() == []
    await asyncio.sleep(0)
    assert ended == ["init"]
    with pytest.raises(InitFailed, match="within 5 s"):
        await node.start_actor(Failing, "slow")
    asking = asyncio.ensure_future(node.start_actor(Failing("slow", ended=ended)))
    await asyncio.sleep(1)
    asking.cancel()
    await asyncio.wait([asking])
    assert node.processes() == []


@simulated
async def test_a_start_waits_for_init_and_requests_wait_with_it(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    class Slow(Actor):
        ready = False

        async def init(self) -> None:
            await asyncio.sleep(1)
            self.ready = True

        @handler
        async def is_ready(self) -> bool:
            return self.ready

    starting = asyncio.ensure_future(node.start_actor(Slow, name="slow"))
    await asyncio.sleep(0.1)
    assert not starting.done()
    assert await node.ref(Slow, "slow").call(Slow.is_ready)
    assert (await starting).pid == node.registered()["slow"]
    with pytest.raises(AlreadyRegistered):
        await node.start_actor(Slow, name="slow")
    with pytest.raises(TypeError, match="not an Actor class"):
        await node.start_actor(watched)  # type: ignore[call-arg, type-var, arg-type]


@simulated
async def test_an_object_runs_once(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    sessions = Sessions()
    node.spawn(sessions)
    with pytest.raises(AlreadyRegistered):
        node.spawn(other := Sessions(), name=node.name_of(node.spawn(Sessions, name="taken")))
    node.spawn(other)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"this Sessions object has been run.*node.spawn\(Sessions"):
        node.spawn(sessions)
    with pytest.raises(RuntimeError, match="has been run"):
        await node.start_actor(sessions)
    twice = Sessions()
    logging.disable(logging.CRITICAL)
    node.spawn(twice)
    second = await watched(node, node.spawn(twice))
    assert "has been run" in (await second).text
    with pytest.raises(TypeError, match=r"an actor object runs once: Child\('s', Sessions, args"):
        Child("s", Sessions())


@simulated
async def test_a_link_is_there_once_it_is_ready(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    (node,) = await fleet.mesh(1)
    got: list[Any] = []

    async def parent(process: Process) -> None:
        process.trap_exit = True
        ref = await process.start_actor_link(Sessions, name="child")
        with pytest.raises(InitFailed):
            await process.start_actor_link(Failing, "init", ValueError("no"))
        await ref.cast(Sessions.fail, ProcessExit("bye"))
        got.append((ref.pid, await process.receive()))

    await node.join(node.spawn(parent))
    ((pid, message),) = got
    assert message == Exit(pid, "bye")


@simulated
async def test_a_supervisor_starts_a_fresh_object_each_time(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    (node,) = await fleet.mesh(1)
    log: list[Any] = []
    tree = Supervisor([Child("s", Sessions, args=(log,), register="s")])
    top = node.spawn(tree)
    await asyncio.sleep(0)
    ref = node.ref(Sessions, "s")
    assert await ref.call(Sessions.append, "s1", "hello") == 1
    await ref.cast(Sessions.fail, ValueError("cast"))
    await asyncio.sleep(0.1)
    assert await ref.call(Sessions.append, "s1", "hello") == 1
    node.exit(top)
    await node.join(top)
    assert [each if each == "init" else each[0] for each in log] == ["init", "terminate"] * 2
    assert log[-1] == ("terminate", "shutdown")


# The end.


@simulated
async def test_stop_ends_it_after_the_handler_that_runs(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    for reason in ("normal", "shutdown", {"any": "value"}):
        log: list[Any] = []
        ref = await node.start_actor(Sessions, log)
        ended = await watched(node, ref.pid)
        leaving = asyncio.ensure_future(ref.call(Sessions.leave, reason))
        await asyncio.sleep(0)
        with pytest.raises(NoProcess):
            await ref.call(Sessions.work, "later", 1)
        assert await leaving == "left"
        assert await ended == reason
        assert log == ["init", ("terminate", reason)]


@simulated
async def test_stop_wakes_an_actor_that_waits_and_may_come_in_init(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    sessions = Sessions()
    ref = await node.start_actor(sessions)
    sessions.stop()
    await asyncio.wait_for(node.join(ref.pid), 1)
    assert sessions.log == ["init", ("terminate", "normal")]

    class Brief(Sessions):
        async def init(self) -> None:
            self.stop("enough")

    brief = Brief()
    await node.join((await node.start_actor(brief)).pid)
    assert brief.log == [("terminate", "enough")]


@simulated
async def test_an_exit_signal_ends_it_and_terminate_runs(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    log: list[Any] = []
    ref = await node.start_actor(Sessions, log)
    asking = asyncio.ensure_future(ref.call(Sessions.work, "a", 10))
    waiting = asyncio.ensure_future(ref.call(Sessions.work, "b", 10))
    await asyncio.sleep(1)
    node.exit(ref.pid, "enough")
    down, gone = await asyncio.gather(asking, waiting, return_exceptions=True)
    assert isinstance(down, ProcessDown)
    assert isinstance(gone, NoProcess)
    assert down.reason == "enough"
    assert log == ["init", "+a", ("terminate", "enough")]


@simulated
async def test_a_handler_that_swallows_an_exit_signal_only_puts_it_off(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    log: list[Any] = []

    class Stubborn(Sessions):
        @handler
        async def resist(self) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return "resisted"

    ref = await node.start_actor(Stubborn, log)
    asking = asyncio.ensure_future(ref.within(60).call(Stubborn.resist))
    await asyncio.sleep(1)
    node.exit(ref.pid)
    assert await asking == "resisted"
    await node.join(ref.pid)
    assert log == ["init", ("terminate", "shutdown")]


@simulated
async def test_kill_runs_no_terminate(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    for seconds in (0.0, 10.0):
        log: list[Any] = []
        ref = await node.start_actor(Sessions, log)
        ended = await watched(node, ref.pid)
        asking = asyncio.ensure_future(ref.call(Sessions.work, "a", seconds))
        await asyncio.sleep(1)
        node.exit(ref.pid, "kill")
        assert await ended == "killed"
        await asyncio.sleep(1)
        assert log == (["init", "+a"] if seconds else ["init", "+a", "-a"])
        await asyncio.wait([asking])
        asking.exception()


class Leaving(Actor):
    """Takes its time to end."""

    def __init__(self, seconds: float, error: BaseException | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.log: list[Any] = []

    async def terminate(self, reason: Any) -> None:
        self.log.append(reason)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.log.append("done")

    @handler
    async def crash(self) -> None:
        raise ValueError("first")


def test_what_terminate_raises_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        for error in (KeyError("late"), ProcessExit("other"), asyncio.CancelledError()):
            ref = await node.start_actor(Leaving(0, error))
            ended = await watched(node, ref.pid)
            await ref.cast(Leaving.crash)
            assert (await ended).text == "first"

    with caplog.at_level(logging.WARNING):
        story()
    assert caplog.text.count("(Leaving) raised") == 2
    assert "KeyError: 'late'" in caplog.text
    assert caplog.text.count("(Leaving) crashed") == 3
    assert "was cancelled by what it awaited" in caplog.text


def test_terminate_has_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1, terminate_s=2.0)
        leaving = Leaving(60)
        ref = await node.start_actor(leaving)
        ended = await watched(node, ref.pid)
        started = fleet.loop.time()
        node.exit(ref.pid, "enough")
        assert await ended == "enough"
        assert fleet.loop.time() - started == pytest.approx(2.0)
        assert leaving.log == ["enough"]

    with caplog.at_level(logging.WARNING):
        story()
    assert "was not done within 2 s (Settings.terminate_s)" in caplog.text


@simulated
async def test_only_kill_cuts_terminate_short(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    leaving = Leaving(3)
    ref = await node.start_actor(leaving)
    ended = await watched(node, ref.pid)
    node.exit(ref.pid, "first")
    for _ in range(2):
        await asyncio.sleep(1)
        node.exit(ref.pid, "second")
    assert await ended == "first"
    assert leaving.log == ["first", "done"]

    leaving = Leaving(3)
    ref = await node.start_actor(leaving)
    ended = await watched(node, ref.pid)
    node.exit(ref.pid, "first")
    await asyncio.sleep(1)
    node.exit(ref.pid, "kill")
    assert await ended == "killed"
    await asyncio.sleep(5)
    assert leaving.log == ["first"]


@simulated
async def test_a_supervisor_kills_what_takes_longer_than_it_may(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    made: list[Leaving] = []

    class Noted(Leaving):
        def __init__(self, seconds: float) -> None:
            super().__init__(seconds)
            made.append(self)

    top = node.spawn(Supervisor([Child("quick", Noted, (1,)), Child("slow", Noted, (4,), shutdown_s=2.0)]))
    await asyncio.sleep(0.1)
    node.exit(top)
    await node.join(top)
    assert [leaving.log for leaving in made] == [["shutdown", "done"], ["shutdown"]]


@simulated
async def test_a_node_that_stops_lets_its_actors_end_in_order(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    alone, supervised = Leaving(3), []

    class Noted(Leaving):
        def __init__(self) -> None:
            super().__init__(4)
            supervised.append(self)

    node.spawn(alone)
    node.spawn(Supervisor([Child("s", Noted, shutdown_s=5)]))
    await asyncio.sleep(0.1)
    started = fleet.loop.time()
    await node.stop(drain_s=0)
    assert alone.log == ["shutdown", "done"]
    assert [leaving.log for leaving in supervised] == [["shutdown", "done"]]
    assert fleet.loop.time() - started == pytest.approx(4.0)


@simulated
async def test_an_actor_may_start_others_in_its_turn_and_blocking_code_goes_to_the_node(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    class Blocking(Actor):
        @handler
        async def total(self, *numbers: int) -> int:
            return await self.run_blocking(lambda *args, extra: sum(args) + extra, *numbers, extra=1)

    async def run_blocking(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    node.run_blocking = run_blocking  # type: ignore[assignment,attr-defined,unused-ignore]
    ref = await node.start_actor(Blocking)
    assert await ref.call(Blocking.total, 1, 2) == 4
