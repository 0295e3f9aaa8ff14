"""Blocking functions on virtual time, and the protocol of a worker process. Real threads: tests/system."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self

import pytest

from fleetlm import (
    Actor,
    Call,
    NodeStopped,
    Process,
    RemoteError,
    Settings,
    SettingsError,
    WorkerNotStarted,
    handler,
)
from fleetlm.blocking import pools as module
from fleetlm.blocking.function_call import FunctionCall, catch_result, run_packed, unpack_result
from fleetlm.blocking.pool import Job, Pool
from fleetlm.blocking.pools import Blocking
from fleetlm.blocking.worker_process import WorkerProcess
from fleetlm.process_pool import ProcessPool
from fleetlm.testing.loop import SimLoop, run
from tests.sim.fleet import A, B, Fleet, simulated

NODE = "fleetlm@10.0.0.1"


def virtual(test: Callable[[Blocking], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test with pools of one slot each; no thread and no process may be started."""

    async def main() -> None:
        await test(Blocking(NODE, Settings(blocking_threads=1, blocking_processes=1)))

    def start() -> None:
        threads = threading.active_count()
        run(main())
        assert threading.active_count() == threads

    start.__name__ = test.__name__
    return start


def divide(dividend: int, divisor: int = 1) -> float:
    return dividend / divisor


class Odd(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Unloadable:
    """Can be pickled; loading it raises an ImportError."""

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return unloadable, ()


def unloadable() -> Any:
    raise ImportError("no such module here")


def raise_it(error: BaseException | type[BaseException]) -> None:
    raise error


def raise_odd() -> None:
    raise Odd("one", "two")


def raise_locked() -> None:
    raise Locked


def stop_iteration() -> Any:
    return next(iter(()))


def give_lock() -> Any:
    return threading.Lock()


def give_unloadable() -> Any:
    return Unloadable()


def append(to: list[int], number: int) -> list[int]:
    to.append(number)
    return to


# ── in a thread ──────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_function_runs_and_no_virtual_time_passes(blocking: Blocking) -> None:
    before = SimLoop.current().time()
    assert await blocking.in_thread(divide, 7, divisor=2) == 3.5
    assert SimLoop.current().time() == before
    assert blocking.running == 0


@virtual
async def test_an_exception_arrives_as_it_was_raised(blocking: Blocking) -> None:
    error = Odd("one", "two")
    with pytest.raises(Odd) as caught:
        await blocking.in_thread(raise_it, error)
    assert caught.value is error
    with pytest.raises(ZeroDivisionError):
        await blocking.in_thread(divide, 1, 0)
    assert await blocking.in_thread(divide, 1) == 1


@virtual
async def test_a_stop_iteration_becomes_a_runtime_error(blocking: Blocking) -> None:
    with pytest.raises(RuntimeError, match=r"raised StopIteration\(\)") as caught:
        await blocking.in_thread(stop_iteration)
    assert isinstance(caught.value.__cause__, StopIteration)
    with pytest.raises(RuntimeError, match=r"raised StopIteration\(\)"):
        await blocking.in_process(stop_iteration)


@virtual
async def test_context_variables_go_in_and_do_not_come_out(blocking: Blocking) -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")

    def change() -> str:
        before = tenant.get()
        tenant.set("changed")
        return before

    tenant.set("somebody")
    assert await blocking.in_thread(change) == "somebody"
    assert tenant.get() == "somebody"


@virtual
async def test_what_cannot_be_run_is_refused_before_it_waits(blocking: Blocking) -> None:
    async def coroutine() -> None:
        """A coroutine function, which no thread can run."""

    for verb, method in (("run_blocking", blocking.in_thread), ("run_in_process", blocking.in_process)):
        with pytest.raises(TypeError, match=rf"{verb}\(\) takes a function, not 3"):
            await method(3)  # type: ignore[arg-type]
        with pytest.raises(
            TypeError,
            match=rf"{verb}\(\) takes a plain function, and .*coroutine is a coroutine function: "
            r"use await .*coroutine\(\.\.\.\)",
        ):
            await method(coroutine)  # type: ignore[unused-coroutine]


@virtual
async def test_callers_wait_in_order_and_a_cancelled_one_is_passed_over(blocking: Blocking) -> None:
    ran: list[int] = []
    tasks = [asyncio.create_task(blocking.in_thread(append, ran, number)) for number in range(6)]
    await asyncio.sleep(0)
    assert (blocking.running, ran) == (1, [])
    tasks[2].cancel()
    tasks[4].cancel()
    await asyncio.wait(tasks)
    assert ran == [0, 1, 3, 5]
    assert [task.cancelled() for task in tasks] == [False, False, True, False, True, False]
    assert blocking.running == 0
    assert await blocking.in_thread(divide, 4) == 4


@virtual
async def test_a_function_that_has_not_begun_when_its_caller_is_cancelled_never_runs(
    blocking: Blocking,
) -> None:
    ran: list[int] = []
    for method in (blocking.in_thread, blocking.in_process):
        task = asyncio.create_task(method(append, ran, 1))
        await asyncio.sleep(0)
        assert blocking.running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert (blocking.running, ran) == (0, [])


@virtual
async def test_a_slot_is_not_lost_with_a_caller_that_is_cancelled_when_it_gets_one(
    blocking: Blocking,
) -> None:
    first, second, third = (asyncio.create_task(blocking.in_thread(divide, number)) for number in (1, 2, 3))
    await first
    second.cancel()
    assert await third == 3
    assert await asyncio.gather(second, return_exceptions=True) != [2]


@virtual
async def test_a_slot_is_freed_if_no_thread_can_be_started(blocking: Blocking) -> None:
    loop = SimLoop.current()
    real, loop.run_in_executor = loop.run_in_executor, raise_full  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await blocking.in_thread(divide, 1)
    loop.run_in_executor = real
    assert await blocking.in_thread(divide, 1) == 1


def raise_full(*_: object) -> Any:
    raise RuntimeError("can't start new thread")


@virtual
async def test_a_stop_raises_in_waiting_callers_and_in_later_ones(blocking: Blocking) -> None:
    ran: list[int] = []
    tasks = [asyncio.create_task(blocking.in_thread(append, ran, number)) for number in range(4)]
    tasks.append(asyncio.create_task(blocking.in_process(divide, 4)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await blocking.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [NodeStopped] * 5
    assert "has been stopped before append ended" in str(outcomes[0])
    assert ran == []
    with pytest.raises(NodeStopped, match="has been stopped"):
        await blocking.in_thread(divide, 1)
    await blocking.close()
    assert blocking.running == 0


@virtual
async def test_a_forked_child_cannot_run_functions(blocking: Blocking) -> None:
    for pool in (blocking._threads, blocking._processes):
        pool.after_fork()
    for method in (blocking.in_thread, blocking.in_process):
        with pytest.raises(NodeStopped, match="forked"):
            await method(divide, 1)


def test_by_default_there_is_a_process_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpus", lambda: 3)

    async def size(settings: Settings) -> int:
        return Blocking(NODE, settings)._processes.size

    assert run(size(Settings())) == 3
    assert run(size(Settings(blocking_processes=5))) == 5


# ── in a process ─────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_in_a_simulation_a_process_is_a_copy(blocking: Blocking) -> None:
    mine = [1]
    assert await blocking.in_process(append, mine, 2) == [1, 2]
    assert mine == [1]
    assert await blocking.in_process(divide, 7, divisor=2) == 3.5


@virtual
async def test_in_a_simulation_as_elsewhere_all_must_be_picklable(blocking: Blocking) -> None:
    with pytest.raises(TypeError, match=r"<lambda> cannot be sent to a worker process.*run_blocking"):
        await blocking.in_process(lambda: 1)
    with pytest.raises(TypeError, match="append cannot be sent to a worker process"):
        await blocking.in_process(append, [], threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match="give_lock has run, but its result cannot be sent back from the worker process"
    ):
        await blocking.in_process(give_lock)
    with pytest.raises(ZeroDivisionError) as caught:
        await blocking.in_process(divide, 1, 0)
    assert "In the worker process:\nTraceback" in caught.value.__notes__[0]
    assert "return dividend / divisor" in caught.value.__notes__[0]


def asked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return unpack_result(run_packed(FunctionCall(function, args, kwargs).pack()))


def test_a_call_is_packed_and_its_result_is_unpacked() -> None:
    assert asked(divide, 7, divisor=2) == 3.5
    assert asked(append, [], 1) == [1]


def test_an_exception_that_pickles_comes_back_as_itself() -> None:
    with pytest.raises(KeyError, match="'k'") as caught:
        asked(raise_it, KeyError("k"))
    assert "in raise_it" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
def test_what_would_end_the_event_loop_becomes_an_error_of_the_call(error: BaseException) -> None:
    for run_it in (
        asked,
        lambda function, it: unpack_result(pickle.dumps((*catch_result(lambda: function(it)), ""))),
    ):
        with pytest.raises(RuntimeError) as caught:
            run_it(raise_it, error)
        assert str(caught.value).endswith(f"raised {error!r}")


@pytest.mark.parametrize(
    ("function", "said"), [(raise_odd, "Odd: one and two"), (raise_locked, "Locked: locked")]
)
def test_an_exception_that_does_not_pickle_comes_back_as_its_text(
    function: Callable[[], None], said: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"{said} \(the exception itself cannot be pickled\)") as caught:
        asked(function)
    assert f"in {function.__name__}" in caught.value.__notes__[0]


def test_an_error_of_unpickling_names_the_process_where_it_happened() -> None:
    with pytest.raises(TypeError, match=r"could not load .*: ImportError: no such module here"):
        asked(divide, Unloadable())
    with pytest.raises(
        TypeError,
        match="function has run, but its result cannot be loaded in this process: no such module here",
    ):
        asked(give_unloadable)
    with pytest.raises(TypeError, match="worker process could not load"):
        unpack_result(run_packed(b"nonsense"))


def test_a_result_holds_any_exception() -> None:
    assert catch_result(lambda: 3) == (3, None)
    for error in (ValueError("x"), ExceptionGroup("two", [ValueError("x"), KeyError("y")])):
        assert catch_result(lambda error=error: raise_it(error)) == (None, error)  # type: ignore[misc]


def test_a_process_that_does_not_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerProcess("worker")
    failure = OSError("no more processes")
    monkeypatch.setattr(worker, "_start", lambda _: raise_it(failure))
    value, error = worker.perform(FunctionCall(divide, (1,), {}))
    assert value is None
    assert isinstance(error, WorkerNotStarted)
    assert str(error) == (
        "there is no worker process for divide: it did not start (no more processes); "
        "the function has not run"
    )
    worker.kill()
    _, error = worker.perform(FunctionCall(divide, (1,), {}))
    assert isinstance(error, WorkerNotStarted)
    assert "its node has stopped" in str(error)
    worker.end(0.1)


def test_only_the_function_and_its_arguments_are_pickled() -> None:
    assert pickle.loads(FunctionCall(divide, (1,), {}).pack()) == (divide, (1,), {})


# ── pools of one's own ──

LOADED: dict[str, int] = {}


def load(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"no model {name}")
    LOADED[name] = LOADED.get(name, 0) + value


def loaded(name: str) -> int | None:
    return LOADED.get(name)


@virtual
async def test_an_initializer_runs_once_before_the_first_function(blocking: Blocking) -> None:
    LOADED.clear()
    async with ProcessPool(blocking, load, ("llama", 7), 1) as pool:
        assert await pool.run(loaded, "llama") == 7
        assert await pool.run(loaded, "llama") == 7
    with pytest.raises(WorkerNotStarted, match="its pool has been closed; the function has not run"):
        await pool.run(loaded, "llama")
    await pool.close()


@virtual
async def test_an_initializer_that_raises_is_told_to_every_caller(blocking: Blocking) -> None:
    pool = ProcessPool(blocking, load, ("llama", -1), 1)
    uses: list[Callable[[], Coroutine[Any, Any, Any]]] = [pool.start, lambda: pool.run(loaded, "llama")]
    for use in uses:
        with pytest.raises(
            WorkerNotStarted, match="its initializer load raised ValueError: no model llama"
        ) as caught:
            await use()
        assert isinstance(caught.value.__cause__, ValueError)


@virtual
async def test_a_pool_that_cannot_be_made_says_why(blocking: Blocking) -> None:
    with pytest.raises(ValueError, match="processes is 0; a pool has at least one"):
        ProcessPool(blocking, None, (), 0)
    with pytest.raises(TypeError, match=r"<lambda> cannot be sent to a worker process"):
        ProcessPool(blocking, lambda: None, (), 1)
    with pytest.raises(TypeError, match=r"process_pool\(\) takes a function, not 3"):
        ProcessPool(blocking, 3, (), 1)  # type: ignore[arg-type]
    await blocking.close()
    with pytest.raises(NodeStopped):
        ProcessPool(blocking, None, (), 1)


class Methods:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def work(self) -> None:
        """Cannot be sent, since its object cannot."""


@virtual
async def test_a_bound_method_is_told_to_take_its_object_along(blocking: Blocking) -> None:
    with pytest.raises(
        TypeError, match=r"Methods\.work cannot be sent .* A bound method takes its whole object along"
    ):
        await blocking.in_process(Methods().work)


@virtual
async def test_a_function_of_a_notebook_is_told_to_move_into_a_module(blocking: Blocking) -> None:
    main = types.ModuleType("__main__")
    exec("def cell(): return 1", vars(main))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)
        with pytest.raises(
            TypeError, match=r"cell cannot be sent .*in a notebook, a shell .* Move it into a module"
        ):
            await blocking.in_process(main.cell)


async def never_ends(pool: Pool, name: str) -> asyncio.Future[Any]:
    """Let a function hold a slot for ever."""
    loop = SimLoop.current()
    future: asyncio.Future[Any] = loop.create_future()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_in_executor", lambda *_: future)
        job = Job(divide, lambda: None)
        job.name = name
        task = asyncio.create_task(pool.run(job))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    return future


@virtual
async def test_callers_that_wait_because_functions_hang_are_told_which(blocking: Blocking) -> None:
    logger = logging.getLogger("fleetlm")
    texts: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(listener)
    try:
        hanging = await never_ends(blocking._threads, "stuck_query")
        callers = [asyncio.create_task(blocking.in_thread(divide, number)) for number in range(3)]
        await asyncio.sleep(30)
    finally:
        logger.removeHandler(listener)
    (text,) = texts
    assert text == (
        f"a call of run_blocking on node {NODE} has waited for 10 s: all its threads (1) are taken, by "
        "stuck_query, the first of them for 10 s. Raise Settings.blocking_threads, and give functions that "
        "may hang a time limit of their own"
    )
    hanging.set_result((None, None))
    assert await asyncio.gather(*callers) == [0, 1, 2]


# ── on a node ────────────────────────────────────────────────────────────────────────────────────


def model(prompt: str) -> str:
    if not prompt:
        raise ValueError("an empty prompt")
    return prompt.upper()


async def server(process: Process, *, in_process: bool = False) -> None:
    node = process.node
    async for message in process.mailbox:
        if not isinstance(message, Call):
            return
        try:
            run_it = node.run_in_process if in_process else node.run_blocking
            message.reply(await run_it(model, message.message))
        except ValueError as error:
            message.fail(error)


@simulated
async def test_an_actor_that_blocks_works_on_the_simulation(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.spawn(server, name="model")
    b.spawn(lambda process: server(process, in_process=True), name="far")
    for name in ("model", "far"):
        assert await a.call((name, b.name), "hello") == "HELLO"
        with pytest.raises(RemoteError, match="an empty prompt"):
            await a.call((name, b.name), "")


@simulated
async def test_a_node_that_stops_refuses_further_functions(fleet: Fleet) -> None:
    a = await fleet.start(A)
    assert await a.run_blocking(model, "x") == "X"
    await a.stop()
    for method in (a.run_blocking, a.run_in_process):
        with pytest.raises(NodeStopped, match="has been stopped"):
            await method(model, "x")


@simulated
async def test_while_a_node_drains_its_calls_may_still_block(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    later = asyncio.Event()

    async def slow(process: Process) -> None:
        call = await process.receive()
        await later.wait()
        call.reply(await process.node.run_blocking(model, call.message))
        await process.receive()

    b.spawn(slow, name="slow")
    calling = asyncio.create_task(a.call(("slow", b.name), "last"))
    await asyncio.sleep(1)
    stopping = asyncio.create_task(b.stop())
    await asyncio.sleep(1)
    later.set()
    assert await calling == "LAST"
    await stopping


@simulated
async def test_pools_have_the_bounds_of_the_settings(fleet: Fleet) -> None:
    a = await fleet.start(A, blocking_threads=3, blocking_processes=2)
    assert a._parts.blocking._threads._slots._value == 3
    assert a._parts.blocking._processes._slots._value == 2
    with pytest.raises(SettingsError, match=r"Settings\.blocking_threads is 0; allowed: a whole"):
        await fleet.start(B, blocking_threads=0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


class Busy(Actor):
    """`thread` is also a good name for a handler."""

    @handler
    async def thread(self) -> str:  # type: ignore[override]
        return await self.run_blocking(model, "x")


@simulated
async def test_a_handler_may_be_named_thread(fleet: Fleet) -> None:
    a = await fleet.start(A)
    assert await a.ref(Busy, a.spawn(Busy)).call(Busy.thread) == "X"
    assert a._parts.blocking._own_threads == {}


@virtual
async def test_a_function_whose_caller_has_gone_holds_up_nobodys_leaving(blocking: Blocking) -> None:
    hanging = await never_ends(blocking._threads, "abandoned")
    assert (blocking.running, blocking.open_jobs()) == (1, [])
    hanging.set_result((None, None))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(blocking.in_thread(divide, 1))
    await asyncio.sleep(0)
    assert [name for _, name in blocking.open_jobs()] == ["divide"]
    await waiting
    assert blocking.open_jobs() == []


@simulated
async def test_a_node_that_has_stopped_runs_no_function_though_it_ran_none_before(fleet: Fleet) -> None:
    """Its pools are made at their first use, which may be this one."""
    a = await fleet.start(A)
    assert "blocking" not in vars(a._parts)
    await a.stop()
    for runs in (a.run_blocking, a.run_in_process):
        with pytest.raises(NodeStopped):
            await runs(abs, -1)
    with pytest.raises(NodeStopped):
        await anext(a.stream_blocking(lambda: iter("ab")))
    with pytest.raises(NodeStopped):
        a.process_pool()
    assert not a._parts.blocking.running
