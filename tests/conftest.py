"""What all tests share: `async def test_*` runs by itself, and no test runs for ever.

An async test runs in its own event loop, by `asyncio.run`, without asyncio's debug mode. It fails
also for exceptions that nobody retrieved. Each test has a limit: 30 s, another one by
`@pytest.mark.deadline(seconds)`, minutes where it is marked `long` or `containers`. Limits are those of a
quiet machine, and are stretched where the machine is busy (`tests.support.patience`). An async test past
its limit is cancelled and shows where it waited; a test that blocks the thread (or will not be cancelled)
is interrupted by an alarm a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import inspect
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.support.patience import stretched
from tests.support.workers import in_order, module_names, share_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

DEADLINE_S = 30.0
DEADLINE_MAX_S = 60.0  # for what `make test` runs
DEADLINE_LONG_S = 900.0  # for tests marked `long` or `containers`
ALARM_AFTER_S = 3.0  # how long after its limit a test that still runs is interrupted
ALARM_AGAIN_S = 5.0

hypothesis.settings.register_profile(
    "fleetlm",
    deadline=None,  # a slow machine is no failure
    derandomize=bool(os.environ.get("CI")),  # a gate gives the same answer twice
    print_blob=True,
)
hypothesis.settings.load_profile("fleetlm")


def pytest_configure() -> None:
    """Give SIGINT back its default handler where this run was started with SIGINT ignored.

    A shell starts background jobs, and `nohup` its command, with SIGINT ignored. Programs that a test starts
    would inherit that, and Python then raises no KeyboardInterrupt: a test that interrupts one would wait.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


TESTS = Path(__file__).resolve().parent


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without garbage collection, which would look a hundred times at all that has been imported.

    Then freeze it all: a million objects that live as long as the run. A test that collects garbage would
    look at them for a quarter of a second, and so would each of the collections that Python begins itself.
    """
    gc.disable()
    try:
        import_own_share(session)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def import_own_share(session: pytest.Session) -> None:
    """Let each of several workers compile a share of the test modules before all import all of them."""
    worker = getattr(session.config, "workerinput", None)
    everything = all(Path(arg).resolve() == TESTS for arg in session.config.args)
    if worker is None or not everything:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    for module in share_of(module_names(TESTS.parent, TESTS), number, count):
        try:
            importlib.import_module(module)
        except (Exception, pytest.skip.Exception) as error:  # noqa: BLE001  # the collection will report it
            logging.getLogger(__name__).debug("%s cannot be imported: %r", module, error)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let several workers begin with the long files; `--no-loadscope-reorder` keeps this order."""
    if hasattr(config, "workerinput"):
        files = dict.fromkeys(item.nodeid.partition("::")[0] for item in items)
        place = {file: number for number, file in enumerate(in_order(list(files)))}
        items.sort(key=lambda item: place[item.nodeid.partition("::")[0]])


class TestBlockedError(KeyboardInterrupt):
    """A test did not end; a KeyboardInterrupt, since no event loop and no test swallows that."""

    __test__ = False


def deadline_s(item: pytest.Item) -> float:
    """The limit of a test in seconds."""
    marker = item.get_closest_marker("deadline")
    lengthy = any(item.get_closest_marker(name) for name in ("long", "containers"))
    if marker is None:
        return DEADLINE_LONG_S if lengthy else DEADLINE_S
    seconds = float(marker.args[0])
    if seconds > DEADLINE_MAX_S and not lengthy:
        raise pytest.UsageError(
            f"{item.nodeid}: deadline({seconds:g}) is over {DEADLINE_MAX_S:g} s; mark it `long`"
        )
    return seconds


async def within(seconds: float, test: Awaitable[None]) -> None:
    """Run a test's coroutine; fail, telling where it waits, when it is not done in time.

    An exception that nobody retrieved, or that a callback raised, fails the test as well.
    """
    unseen: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, facts: unseen.append(explained(facts)))
    task = asyncio.ensure_future(test)
    try:
        began_at, limit_s, done = time.monotonic(), seconds, set[Any]()
        while not done and (left_s := began_at + limit_s - time.monotonic()) > 0:
            done, _ = await asyncio.wait({task}, timeout=left_s)
            limit_s = stretched(seconds)
    finally:
        where = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in task.get_stack()]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not done:
        pytest.fail(f"not done in {limit_s:.0f} s; it waits at {', '.join(where)}", pytrace=False)
    task.result()
    if unseen:
        pytest.fail("the event loop was told of: " + "; ".join(unseen), pytrace=False)


def explained(facts: dict[str, Any]) -> str:
    """What a loop's exception handler is told, in one sentence."""
    return f"{facts['message']} ({facts.get('exception')!r})"


def synchronous(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., None]:
    """A plain function that runs the async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(within(seconds, test(*args, **kwargs)), debug=False)

    return run


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt the main thread after that time, and again and again until the block is left.

    Where the machine is busy by then, the thread is left alone for as long as that stretches the limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    began_at = time.monotonic()

    def interrupt(_signal: int, _frame: object) -> None:
        if time.monotonic() - began_at >= stretched(seconds):
            raise TestBlockedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, ALARM_AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Make an async test callable; pytest itself then calls it, with its fixtures."""
    property_test = getattr(pyfuncitem.obj, "hypothesis", None)
    if property_test is not None and inspect.iscoroutinefunction(property_test.inner_test):
        property_test.inner_test = synchronous(property_test.inner_test, deadline_s(pyfuncitem))
    elif inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = synchronous(pyfuncitem.obj, deadline_s(pyfuncitem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Stop what an event loop cannot stop: a blocked thread, a task that will not be cancelled."""
    seconds = deadline_s(item) + ALARM_AFTER_S  # Both are stretched, so an async test can say where it waits.
    try:
        with alarm(seconds):
            return (yield)
    except TestBlockedError:
        pytest.fail(f"blocked: not done in {stretched(seconds):.0f} s")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Programs that are tested in this process set up logging; the next test starts as this one did."""
    root, ours = logging.getLogger(), logging.getLogger("fleetlm")
    handlers, levels, disabled = root.handlers[:], (root.level, ours.level), root.manager.disable
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.disable(disabled)
