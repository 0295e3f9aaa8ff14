"""Blocking functions in real threads and processes: limits, processes that die, and how pools stop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fleetlm import (
    Actor,
    Child,
    Node,
    NodeStopped,
    NotDelivered,
    Process,
    ProcessExit,
    RemoteError,
    Settings,
    Supervisor,
    WorkerDied,
    WorkerNotStarted,
    handler,
)
from fleetlm.blocking.pools import Blocking
from fleetlm.cli.demo.replicas import free_port
from fleetlm.process_pool import ProcessPool
from tests.support.patience import allowed_s

ROOT = Path(__file__).resolve().parents[2]
NODE = "fleetlm@127.0.0.1"


@contextlib.asynccontextmanager
async def pools(threads: int = 2, processes: int = 2) -> AsyncIterator[Blocking]:
    """Run a test with both pools, and check afterwards that their idle threads have ended."""
    before = set(threading.enumerate())
    blocking = Blocking(NODE, Settings(blocking_threads=threads, blocking_processes=processes))
    try:
        yield blocking
    finally:
        await blocking.close()
        assert set(threading.enumerate()) <= before
        assert multiprocessing.active_children() == []


async def until(fact: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not fact():
            await asyncio.sleep(0.005)


# Threads.


async def test_the_loop_goes_on_while_a_thread_waits() -> None:
    async with pools() as blocking:
        go = threading.Event()
        waiting = asyncio.create_task(blocking.in_thread(go.wait, 10))
        await until(lambda: blocking.running)
        assert await blocking.in_thread(threading.get_ident) != threading.get_ident()
        go.set()  # Reached only if the loop runs meanwhile.
        assert await waiting is True


async def test_the_number_of_threads_is_limited_and_threads_are_used_again() -> None:
    async with pools(threads=3) as blocking:
        lock, seen, order = threading.Lock(), [0, 0], []

        def work(number: int) -> int:
            with lock:
                order.append(number)
                seen[0] += 1
                seen[1] = max(seen)
            time.sleep(0.01)
            with lock:
                seen[0] -= 1
            return threading.get_ident()

        threads = await asyncio.gather(*(blocking.in_thread(work, number) for number in range(24)))
        assert seen == [0, 3]
        assert len(set(threads)) == 3
        assert sorted(order) == list(range(24))
        assert set(order[:3]) == {0, 1, 2}
        one_by_one = {await blocking.in_thread(threading.get_ident) for _ in range(50)}
        assert len(one_by_one) == 1  # the thread that ran the last function


async def test_a_function_that_runs_goes_on_without_its_caller_and_keeps_its_slot() -> None:
    async with pools(threads=1) as blocking:
        go, ended = threading.Event(), threading.Event()

        def work() -> None:
            go.wait(10)
            ended.set()

        first = asyncio.create_task(blocking.in_thread(work))
        await until(lambda: any(each.is_busy for each in blocking._threads._executor._threads))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(blocking.in_thread(ended.is_set))
        third = asyncio.create_task(blocking.in_thread(ended.clear))
        await asyncio.sleep(0.05)
        third.cancel()
        assert (blocking.running, second.done(), ended.is_set()) == (1, False, False)
        go.set()
        assert await second is True
        assert ended.is_set(), "the third one ran although it was cancelled before it began"


async def test_context_variables_go_into_the_thread() -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")
    async with pools(threads=1) as blocking:
        tenant.set("somebody")
        assert await blocking.in_thread(tenant.get) == "somebody"
        assert await blocking.in_thread(lambda: tenant.set("changed") and tenant.get()) == "changed"
        assert (
            await contextvars.Context().run(asyncio.create_task, blocking.in_thread(tenant.get)) == "nobody"
        )


async def test_an_exception_with_its_traceback() -> None:
    def fail() -> None:
        raise ValueError("as raised")

    async with pools() as blocking:
        with pytest.raises(ValueError, match="as raised") as caught:
            await blocking.in_thread(fail)
        assert caught.traceback[-1].name == "fail"
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await blocking.in_thread(next, iter(()))
        with pytest.raises(RuntimeError, match=r"raises_keyboard_interrupt raised KeyboardInterrupt\(\)"):
            await blocking.in_thread(raises_keyboard_interrupt)


def raises_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


async def test_what_a_function_returned_is_not_kept() -> None:
    class Large:
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    async with pools() as blocking:
        assert isinstance(await blocking.in_thread(Large), Large)
        await until(lambda: Large.alive == 0, 2)


# Actors with a thread of their own.


class Database(Actor):
    """An actor whose connection works only in the thread that has opened it."""

    thread = True

    async def init(self) -> None:
        self.database = await self.run_blocking(sqlite3.connect, ":memory:")
        self.ident = await self.run_blocking(threading.get_ident)

    async def terminate(self, reason: object) -> None:
        assert await self.run_blocking(threading.get_ident) == self.ident
        await self.run_blocking(self.database.close)

    @handler(concurrent=True)
    async def query(self, number: int) -> int:
        row = await self.run_blocking(lambda: self.database.execute("select ?", (number,)).fetchone())
        return int(row[0])

    @handler(concurrent=True)
    async def thread_of(self) -> tuple[int, bool]:
        return self.ident, self.ident in {each.ident for each in threading.enumerate()}

    @handler
    async def hold(self, event: str) -> None:
        await self.run_blocking(HELD[event].wait, 20)

    @handler
    async def crash(self) -> None:
        raise ProcessExit("asked to")


HELD: dict[str, threading.Event] = {}


def own_threads() -> set[int | None]:
    return {each.ident for each in threading.enumerate() if "blocking" in each.name}


async def test_the_functions_of_an_actor_with_a_thread_all_run_in_that_thread() -> None:
    async with Node.start(lone(blocking_threads=8)) as node:
        one, two = await node.start_actor(Database), await node.start_actor(Database)
        assert await asyncio.gather(*(one.call(Database.query, n) for n in range(40))) == list(range(40))
        first, second = (await one.call(Database.thread_of))[0], (await two.call(Database.thread_of))[0]
        assert first != second
        node.exit(one.pid)
        await node.join(one.pid)
        await until(lambda: first not in own_threads())
        assert (await two.call(Database.thread_of)) == (second, True)
    await until(lambda: second not in own_threads())


async def test_an_actor_whose_objects_belong_to_a_thread_is_told_of_its_own_thread() -> None:
    class Roaming(Database):
        thread = False

        async def terminate(self, reason: object) -> None:
            """The connection belongs to no thread that could be found."""

    async with Node.start(lone(blocking_threads=8)) as node:
        roaming = await node.start_actor(Roaming)
        go = threading.Event()
        holding = asyncio.create_task(node.run_blocking(go.wait, 20))  # In the thread that ran last.
        await until(lambda: node._parts.blocking.running)
        with pytest.raises(RemoteError, match="same thread") as caught:
            await roaming.call(Database.query, 1)
        assert "With `thread = True` on " in caught.value.traceback_text
        go.set()
        await holding


async def test_a_restarted_actor_gets_another_thread() -> None:
    async with Node.start(lone()) as node:
        node.spawn(Supervisor([Child("db", Database, register="db")]))
        database = node.ref(Database, "db")
        await until(lambda: node.registered().get("db"))
        pid = node.registered()["db"]
        await database.cast(Database.crash)
        await until(lambda: node.registered().get("db") not in (None, pid))
        after, _ = await database.call(Database.thread_of)
        assert await database.call(Database.query, 7) == 7
        await until(lambda: own_threads() == {after})


async def test_a_killed_actor_leaves_its_thread_to_the_function_that_runs_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    HELD["go"] = threading.Event()
    async with Node.start(lone()) as node:
        database = await node.start_actor(Database)
        ident, _ = await database.call(Database.thread_of)
        await database.cast(Database.hold, "go")
        pools = node._parts.blocking._own_threads
        await until(lambda: pools[database.pid].running)
        node.exit(database.pid, "kill")
        await until(lambda: database.pid not in pools)
        assert ident in own_threads()
        HELD["go"].set()
        await until(lambda: ident not in own_threads())
    assert (
        f"actor {database.pid} stopped while 1 blocking function(s) were running; left running" in caplog.text
    )


async def test_a_task_that_outlives_its_actor_is_refused_its_thread() -> None:
    late: list[asyncio.Task[int]] = []

    class Leaves(Actor):
        thread = True

        async def init(self) -> None:
            late.append(asyncio.create_task(self.later()))

        async def later(self) -> int:
            await asyncio.sleep(0.1)
            return await self.run_blocking(threading.get_ident)

    async with Node.start(lone()) as node:
        ref = await node.start_actor(Leaves)
        node.exit(ref.pid, "kill")
        with pytest.raises(RuntimeError, match=rf"the actor {ref.pid} has ended, and its thread with it"):
            await late[0]


# The end of a node.


def lone(**more: object) -> Settings:
    port = free_port(["127.0.0.1"])
    settings = Settings(node_ip="127.0.0.1", node_ports=(port, port), remote=False)
    return settings.replace(**more)


async def test_a_stop_waits_for_functions_that_run() -> None:
    node = await Node.start(lone())
    go = threading.Event()

    async def worker(process: Process) -> None:
        await process.node.run_blocking(go.wait, 10)

    node.spawn(worker)
    await until(lambda: node._parts.blocking.running)
    stopping = asyncio.create_task(node.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    go.set()
    began = time.monotonic()
    await stopping
    assert time.monotonic() - began < allowed_s(2.0)


async def test_a_stuck_thread_is_left_running_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    node = await Node.start(lone(blocking_threads=1))
    never = threading.Event()

    def stuck() -> None:
        never.wait(20)

    waiting = asyncio.create_task(node.run_blocking(stuck))
    behind = [asyncio.create_task(node.run_blocking(pytest.fail)) for _ in range(3)]
    await until(lambda: node._parts.blocking.running)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "fleetlm"):
        await node.stop(drain_s=0.1)
    assert time.monotonic() - began < allowed_s(2.0)
    assert (
        f"node {node.name} stopped while 1 blocking function(s) were running; left running: " in caplog.text
    )
    assert "stuck" in caplog.text
    with pytest.raises(NodeStopped, match="stuck ended; start a new one"):
        await waiting
    async with asyncio.timeout(5):
        assert {type(each) for each in await asyncio.gather(*behind, return_exceptions=True)} == {NodeStopped}
    never.set()
    await until(lambda: "blocking" not in " ".join(thread.name for thread in threading.enumerate()), 2)


PROGRAM = """
import asyncio, sys, time
from fleetlm.blocking.pools import Blocking
from fleetlm import Settings

async def main(how):
    blocking = Blocking("fleetlm@127.0.0.1", Settings(blocking_processes=1))
    run = blocking.in_thread if "thread" in how else blocking.in_process
    stuck = asyncio.create_task(run(time.sleep, 100))
    while not any(t.is_busy for p in (blocking._threads, blocking._processes) for t in p._executor._threads):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    if "stop" in how:
        await blocking.close()
        try:
            await stuck
        except Exception as error:
            print(type(error).__name__)
    print("end")

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["thread", "process", "thread-stop", "process-stop"])
def test_a_stuck_function_does_not_keep_the_program_alive(how: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["NodeStopped", "end"] if "stop" in how else ["end"])
    fate = "left running" if "thread" in how else "killed"
    line = f"node fleetlm@127.0.0.1 stopped while 1 blocking function(s) were running; {fate}: sleep\n"
    said = line if "stop" in how else ""
    assert done.stderr == said


# Processes.


def pid_and_type() -> tuple[int, str]:
    return os.getpid(), type(multiprocessing.current_process()).__name__


def add(left: int, right: int) -> int:
    return left + right


def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)
    time.sleep(10)


def touch_and_wait(path: str, seconds: float) -> str:
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(seconds)
    return path


def blob(size_bytes: int) -> bytes:
    return b"x" * size_bytes


def children_of_its_own() -> int:
    done = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    child = multiprocessing.get_context("spawn").Process(target=add, args=(1, 2))
    child.start()
    child.join(10)
    return int(done.stdout) + (child.exitcode or 0)


@pytest.mark.deadline(60)
async def test_processes_are_spawned_bounded_and_used_again() -> None:
    async with pools(processes=2) as blocking:
        first = await blocking.in_process(pid_and_type)
        assert first[0] != os.getpid()
        assert first[1] == "_MainProcess"  # So a function may have children of its own.
        assert await blocking.in_process(pid_and_type) == first
        many = await asyncio.gather(*(blocking.in_process(pid_and_type) for _ in range(12)))
        assert 1 <= len(set(many)) <= 2
        assert await blocking.in_process(add, 1, right=2) == 3


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "exit code 3"),
        ("kill", "killed by SIGKILL, perhaps because memory ran out"),
        pytest.param("term", "killed by SIGTERM", marks=pytest.mark.long),
    ],
)
async def test_a_process_that_dies_fails_only_its_own_caller(how: str, said: str, tmp_path: Path) -> None:
    async with pools(processes=2) as blocking:
        path = str(tmp_path / "busy")
        neighbour = asyncio.create_task(blocking.in_process(touch_and_wait, path, 0.5))
        await until(Path(path).exists)
        with pytest.raises(WorkerDied) as caught:
            await blocking.in_process(die, how)
        assert str(caught.value) == (
            f"the worker process for die failed: it ended ({said}); the function may have run"
        )
        assert await neighbour == path
        assert await asyncio.gather(*(blocking.in_process(add, 1, n) for n in range(4))) == [1, 2, 3, 4]


@pytest.mark.deadline(60)
async def test_an_idle_process_that_dies_is_replaced_silently() -> None:
    async with pools(processes=1) as blocking:
        pid, _ = await blocking.in_process(pid_and_type)
        os.kill(pid, signal.SIGINT)  # Ctrl-C reaches the worker process too, which ignores it.
        assert (await blocking.in_process(pid_and_type))[0] == pid
        os.kill(pid, signal.SIGKILL)
        process = blocking._processes._executor._threads[0]._process._process  # type: ignore[attr-defined]
        await until(lambda: process.poll() is not None)
        assert (await blocking.in_process(pid_and_type))[0] != pid


@pytest.mark.deadline(60)
async def test_large_results_and_children_of_its_own() -> None:
    async with pools(processes=1) as blocking:
        assert len(await blocking.in_process(blob, 64 << 20)) == 64 << 20
        assert await blocking.in_process(len, b"x" * (32 << 20)) == 32 << 20
        assert await blocking.in_process(children_of_its_own) == 42


@pytest.mark.deadline(60)
async def test_errors_come_back_and_the_process_lives_on() -> None:
    async with pools(processes=1) as blocking:
        pid, _ = await blocking.in_process(pid_and_type)
        with pytest.raises(TypeError, match="unsupported operand") as caught:
            await blocking.in_process(add, 1, "2")  # type: ignore[arg-type]
        assert "in add" in caught.value.__notes__[0]
        with pytest.raises(TypeError, match="lambda> cannot be sent to a worker process"):
            await blocking.in_process(lambda: 1)
        with pytest.raises(
            TypeError, match="lock has run, but its result cannot be sent back from the worker process"
        ):
            await blocking.in_process(threading.Lock)
        assert (await blocking.in_process(pid_and_type))[0] == pid


@pytest.mark.deadline(60)
async def test_a_node_that_stops_kills_what_does_not_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = await Node.start(lone(blocking_processes=1))
    path = tmp_path / "busy"
    waiting = asyncio.create_task(node.run_in_process(touch_and_wait, str(path), 100))
    await until(lambda: path.exists() and path.read_text("utf-8"), 20)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "fleetlm"):
        await node.stop(drain_s=0.1)
    assert time.monotonic() - began < allowed_s(2.0)
    assert "were running; killed: touch_and_wait" in caplog.text
    with pytest.raises(NodeStopped):
        await waiting
    await until(lambda: not alive(int(path.read_text("utf-8"))), 2)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"


ORPHANS = """
import asyncio, os, sys
from fleetlm.blocking.pools import Blocking
from fleetlm import Settings
from tests.system.test_real_blocking import touch_and_wait

if __name__ == "__main__":
    blocking = Blocking("fleetlm@127.0.0.1", Settings(blocking_processes=1))
    asyncio.run(blocking.in_process(touch_and_wait, sys.argv[1], 100))
"""


@pytest.mark.deadline(60)
def test_a_function_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    program, path = tmp_path / "program.py", tmp_path / "busy"
    program.write_text(ORPHANS, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(program), str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        waited_until = time.monotonic() + 30
        while not (path.exists() and path.read_text("utf-8")) and time.monotonic() < waited_until:
            time.sleep(0.02)
        pid = int(path.read_text("utf-8"))
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait()
    waited_until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < waited_until:
        time.sleep(0.02)
    assert not alive(pid)


UNGUARDED = """
import asyncio, sys
from fleetlm.blocking.pools import Blocking
from fleetlm import Settings, WorkerNotStarted

async def main():
    blocking = Blocking("fleetlm@127.0.0.1", Settings(blocking_processes=1))
    try:
        await blocking.in_process(print, "never")
    except WorkerNotStarted as error:
        print(error)
        sys.exit(7)

asyncio.run(main())
"""


@pytest.mark.deadline(60)
def test_a_program_without_a_main_guard_gets_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(UNGUARDED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 7
    assert "it did not start (the program's main module raised" in done.stdout
    assert "must stand under if __name__ == '__main__':" in done.stdout
    assert "never\n" not in done.stdout


# Pools of one's own.

LOADED: list[str] = []


def load(path: str, how: str = "") -> None:
    if how == "die":
        os._exit(4)
    if Path(path).exists():
        raise FileExistsError(path)
    LOADED.append(path)


def loaded() -> tuple[int, list[str]]:
    time.sleep(0.02)  # So that another process gets the next call.
    return os.getpid(), LOADED


@pytest.mark.deadline(60)
async def test_each_process_of_a_pool_runs_the_initializer_first_and_a_new_one_too(tmp_path: Path) -> None:
    path = tmp_path / "failing"
    async with pools() as blocking, ProcessPool(blocking, load, (str(path),), 2) as pool:
        found = await asyncio.gather(*(pool.run(loaded) for _ in range(12)))
        assert len({pid for pid, _ in found}) == 2
        assert {tuple(each) for _, each in found} == {(str(path),)}
        for pid, _ in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(WorkerDied):  # A process whose end has not been seen yet.
            await pool.run(loaded)
        assert (await pool.run(loaded))[1] == [str(path)]


@pytest.mark.deadline(60)
async def test_an_initializer_that_fails_is_told_and_the_pool_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "failing"
    path.touch()
    async with pools() as blocking:
        pool = ProcessPool(blocking, load, (str(path),), 1)
        with pytest.raises(WorkerNotStarted, match="initializer load raised FileExistsError: ") as caught:
            await pool.run(loaded)
        assert isinstance(caught.value.__cause__, FileExistsError)
        assert isinstance(caught.value, NotDelivered)
        path.unlink()
        assert (await pool.run(loaded))[1] == [str(path)]
        await pool.close()
        dying = ProcessPool(blocking, load, ("x", "die"), 1)
        with pytest.raises(WorkerNotStarted, match=r"its initializer load failed: it ended \(exit code 4\)"):
            await dying.start()


class Model(Actor):
    """An actor that keeps something loaded in a process of its own."""

    async def init(self) -> None:
        self.pool = self.process_pool(load, "/nowhere/model")
        await self.pool.start()

    @handler
    async def where(self) -> tuple[int, list[str]]:
        return await self.pool.run(loaded)


@pytest.mark.deadline(60)
async def test_the_pool_of_an_actor_ends_with_the_actor() -> None:
    async with Node.start(lone()) as node:
        model = await node.start_actor(Model, timeout=30)
        pid, names = await model.within(30).call(Model.where)
        assert names == ["/nowhere/model"]
        node.exit(model.pid, "kill")
        await until(lambda: not alive(pid))
        pool = node.process_pool()
        assert (await pool.run(pid_and_type))[0] != pid


# What a function in a process may do.


def exit_program(how: str) -> None:
    if how == "sys.exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "generator":
        raise GeneratorExit


@pytest.mark.deadline(60)
async def test_an_order_to_end_is_an_error_of_the_call_and_neither_process_nor_node_end() -> None:
    async with Node.start(lone(blocking_processes=1)) as node:
        pid, _ = await node.run_in_process(pid_and_type)
        for how, said in (
            ("sys.exit", "SystemExit(3)"),
            ("interrupt", "KeyboardInterrupt()"),
            ("generator", "GeneratorExit()"),
        ):
            for run in (node.run_in_process, node.run_blocking):
                with pytest.raises(RuntimeError) as caught:
                    await run(exit_program, how)
                assert str(caught.value) == f"exit_program raised {said}"
        assert (await node.run_in_process(pid_and_type))[0] == pid


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


@pytest.mark.deadline(60)
async def test_a_crash_in_native_code_names_its_signal() -> None:
    async with pools(processes=1) as blocking:
        with pytest.raises(WorkerDied, match=r"it ended \(killed by SIGSEGV\); the function may have run"):
            await blocking.in_process(segfault)


IN_A_DAEMON = """
import asyncio, multiprocessing, os, sys
from fleetlm.blocking.pools import Blocking
from fleetlm import Settings

def square(number):
    return number * number, os.getpid() != os.getppid()

async def main():
    blocking = Blocking("fleetlm@127.0.0.1", Settings(blocking_processes=2))
    print(await asyncio.gather(*(blocking.in_process(square, n) for n in range(3))), flush=True)
    await blocking.close()

def child():
    asyncio.run(main())

if __name__ == "__main__":
    daemon = multiprocessing.get_context(sys.argv[1]).Process(target=child, daemon=True)
    daemon.start()
    daemon.join(50)
    print(daemon.exitcode)
"""


@pytest.mark.deadline(60)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_daemonic_process_may_have_workers(method: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(IN_A_DAEMON, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path), method],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[(0, True), (1, True), (4, True)]\n0\n", "")
