"""The pytest plugin: ``async def test_x(fleet)`` runs on a simulated cluster, on virtual time.

    @pytest.mark.fleet(seeds=20)
    async def test_counts_survive_a_crash(fleet: fleetlm.testing.Fleet) -> None:
        one, two = await fleet.start(2)
        ...

It is there once fleetlm is installed. Tests that do not ask for ``fleet``, and a fixture ``fleet``
of somebody's own, are left alone; nothing else of fleetlm is imported until a test uses the
fixture.

An async test that asks for it is made an ordinary function as soon as it is collected, so that it
is nobody else's: pytest-asyncio and anyio, also in their automatic modes, see a plain test.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shlex
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fleetlm.testing.fleet import Fleet
    from fleetlm.testing.runner import FleetRun

OPTIONS = ("seeds", "settings", "latency_s", "limit_s")
"""What the mark ``fleet`` takes."""

_RUNS: pytest.StashKey[bool] = pytest.StashKey()
"""Of an item that this plugin runs."""
_RUN: pytest.StashKey[FleetRun] = pytest.StashKey()
_SEED: pytest.StashKey[int] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--fleet-seed``."""
    parser.getgroup("fleetlm").addoption(
        "--fleet-seed",
        type=int,
        metavar="N",
        help="run tests that ask for `fleet` with this seed alone, as a failure's report says",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "fleet(seeds=20 | [3, 7], settings={...}, latency_s=(low, high), limit_s=3600): how the"
        " simulated cluster of a test that asks for `fleet` is made",
    )


# Collection.


@pytest.hookimpl(wrapper=True, trylast=True)  # the innermost wrapper: before pytest-asyncio's
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Take async tests that ask for ``fleet``."""
    found = yield
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, pytest.Function) and _asks(item) and inspect.iscoroutinefunction(item.obj):
            _take(item)
    return found


@pytest.hookimpl(trylast=True)  # the seed comes last in a test's id
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed, where the mark names seeds."""
    if not _asks(metafunc.definition):
        return
    told = _told(metafunc.definition)
    if "seeds" not in told:
        return
    seeds = _seeds(metafunc.definition.nodeid, told["seeds"])
    only: int | None = metafunc.config.getoption("fleet_seed")
    chosen = seeds if only is None else [only]
    metafunc.parametrize("fleet", chosen, indirect=True, ids=[f"seed={seed}" for seed in chosen])


def _asks(item: pytest.Function) -> bool:
    """Whether the test uses the fixture of this plugin, perhaps by way of another one."""
    if "fleet" not in item.fixturenames:
        return False
    for definition in reversed(item._fixtureinfo.name2fixturedefs.get("fleet", ())):  # noqa: SLF001
        if definition.func.__module__ == __name__:
            return True
        if "fleet" not in definition.argnames:  # it stands in the place of ours
            return False
    return False


def _take(item: pytest.Function) -> None:
    test = item.obj

    def synchronous(**arguments: Any) -> Any:
        __tracebackhide__ = True
        with _readable():
            return item.stash[_RUN].test(test(**arguments), item.name)

    functools.update_wrapper(synchronous, test, updated=())
    item.obj = synchronous
    item.stash[_RUNS] = True
    # Async fixtures that do not depend on it run on its loop as well, so it comes first.
    item.fixturenames.remove("fleet")
    item.fixturenames.insert(0, "fleet")


# The mark.


def _told(item: pytest.Function) -> dict[str, Any]:
    """What the marks of a test say; the closest one counts."""
    told: dict[str, Any] = {}
    for mark in item.iter_markers("fleet"):
        unknown = [repr(each) for each in mark.args] + sorted(mark.kwargs.keys() - set(OPTIONS))
        if unknown:
            pytest.fail(
                f"{item.nodeid}: the mark `fleet` takes {', '.join(f'{name}=' for name in OPTIONS)},"
                f" not {', '.join(unknown)}",
                pytrace=False,
            )
        told = {**mark.kwargs, **told}
    return told


def _seeds(test: str, told: object) -> Sequence[int]:
    seeds: Sequence[Any] = ()
    if isinstance(told, int):
        seeds = range(told)
    elif isinstance(told, Iterable):
        seeds = list(told)
    if not seeds or not all(isinstance(seed, int) for seed in seeds):
        pytest.fail(
            f"{test}: seeds={told!r} is neither how many (a positive int) nor some ints", pytrace=False
        )
    return seeds


# The fixtures.


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A simulated cluster on virtual time, for this test alone; see `fleetlm.testing.Fleet`."""
    from fleetlm.testing.runner import FleetRun  # noqa: PLC0415  # the first thing that costs time

    item = request.node
    if _RUNS not in item.stash:
        pytest.fail(
            f"{item.name} uses `fleet`, whose nodes live on an event loop of its own: make it"
            " `async def`, and let it (or one of its fixtures) name `fleet` as an argument",
            pytrace=False,
        )
    told = _told(item)
    told.pop("seeds", None)
    seed = getattr(request, "param", request.config.getoption("fleet_seed") or 0)
    item.stash[_SEED] = seed
    run = item.stash[_RUN] = FleetRun(seed, **told)
    yield run.fleet
    with _readable():
        run.end()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: before pytest-asyncio's and anyio's
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Run a test's async fixtures on the loop of its ``fleet``."""
    function = fixturedef.func
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    run = request.node.stash.get(_RUN, None) if asynchronous and fixturedef.scope == "function" else None
    if run is None:
        return (yield)
    if inspect.ismethod(function) and isinstance(request.instance, type(function.__self__)):
        function = function.__func__.__get__(request.instance)  # each test has an instance of its own

    def synchronous(**arguments: Any) -> Any:
        __tracebackhide__ = True
        with _readable():
            return run.set_up(function, arguments, fixturedef.argname)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", synchronous)
        return (yield)


# The report.


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Show what the loop says without a traceback: that would only lead through the loop itself."""
    from fleetlm.testing import Deadlock, Leaked, LeftOver, LimitReached, Unhandled  # noqa: PLC0415

    __tracebackhide__ = True
    try:
        yield
    except (Deadlock, Leaked, LeftOver, LimitReached, Unhandled) as error:
        said = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        if error.__cause__ is None:
            raise pytest.fail.Exception(said, pytrace=False) from None
        error.__cause__.add_note(said)
        raise error.__cause__ from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the seed of what failed, and how to see it again."""
    report = yield
    if report.failed and (seed := item.stash.get(_SEED, None)) is not None:
        said = f"seed {seed}; the same run again:\n    pytest {_address(item)} --fleet-seed {seed}"
        addsection = getattr(report.longrepr, "addsection", None)
        if addsection is None:  # the failure is a mere text
            report.sections.append(("fleet", said))
        else:
            addsection("fleet", said)
    return report


def _address(item: pytest.Item) -> str:
    """A test as a shell takes it where pytest was started, whatever pytest's root is."""
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    return shlex.quote(path + item.nodeid[item.nodeid.index("::") :])
