"""The pytest plugin: ``async def test_x(fleet)`` runs on a simulated cluster, on virtual time.

    @pytest.mark.fleet(seeds=20)
    async def test_counts_survive_a_crash(fleet: fleetlm.testing.Fleet) -> None:
        one, two = await fleet.start(2)
        ...

pytest loads the plugin once fleetlm is installed. It does not touch tests that do not ask for ``fleet``,
or that ask for another fixture of that name; it imports nothing else of fleetlm until a test uses the
fixture.

Theory of operation. The plugin works at four points of a test:

* Collection: an async test that asks for ``fleet`` is replaced by a synchronous function at once, so that
  pytest-asyncio and anyio, also in their automatic modes, see a plain test. ``fleet`` becomes its
  first fixture, because async fixtures that do not depend on it run on its loop too.
* Parametrization: one test for each seed of the mark; ``--fleet-seed`` replaces all of them by one.
* Fixtures: ``fleet`` makes a `FleetRun` and stores it in the item's stash. Async fixtures of function scope
  are replaced by synchronous functions that run on that loop. This is the outermost wrapper of
  ``pytest_fixture_setup``, before those of pytest-asyncio and anyio.
* Report: a failure gets a section with the seed and the command that runs the same course again.
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
"""The arguments of the mark ``fleet``."""

_IS_OURS: pytest.StashKey[bool] = pytest.StashKey()
"""Set on the items that this plugin runs."""
_RUN: pytest.StashKey[FleetRun] = pytest.StashKey()
_SEED: pytest.StashKey[int] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--fleet-seed``."""
    parser.getgroup("fleetlm").addoption(
        "--fleet-seed",
        type=int,
        metavar="N",
        help="run the tests that ask for `fleet` with this seed only; a failure shows its seed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark ``fleet``."""
    config.addinivalue_line(
        "markers",
        "fleet(seeds=20 | [3, 7], settings={...}, latency_s=(low, high), limit_s=3600): options of the"
        " simulated cluster of a test that asks for `fleet`",
    )


# Collection.


@pytest.hookimpl(wrapper=True, trylast=True)  # the innermost wrapper: before pytest-asyncio's
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Make the async tests that ask for ``fleet`` synchronous."""
    found = yield
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, pytest.Function) and _uses_fleet(item) and inspect.iscoroutinefunction(item.obj):
            _make_synchronous(item)
    return found


@pytest.hookimpl(trylast=True)  # the seed comes last in a test's id
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each seed if the mark has seeds."""
    if not _uses_fleet(metafunc.definition):
        return
    options = _read_marks(metafunc.definition)
    if "seeds" not in options:
        return
    seeds = _parse_seeds(metafunc.definition.nodeid, options["seeds"])
    only: int | None = metafunc.config.getoption("fleet_seed")
    chosen = seeds if only is None else [only]
    metafunc.parametrize("fleet", chosen, indirect=True, ids=[f"seed={seed}" for seed in chosen])


def _uses_fleet(item: pytest.Function) -> bool:
    """Whether the test uses this plugin's fixture, directly or through another fixture ``fleet``."""
    if "fleet" not in item.fixturenames:
        return False
    for definition in reversed(item._fixtureinfo.name2fixturedefs.get("fleet", ())):  # noqa: SLF001
        if definition.func.__module__ == __name__:
            return True
        if "fleet" not in definition.argnames:  # it replaces ours
            return False
    return False


def _make_synchronous(item: pytest.Function) -> None:
    test = item.obj

    def synchronous(**arguments: Any) -> Any:
        __tracebackhide__ = True
        with _shorten_report():
            return item.stash[_RUN].test(test(**arguments), item.name)

    functools.update_wrapper(synchronous, test, updated=())
    item.obj = synchronous
    item.stash[_IS_OURS] = True
    # Async fixtures that do not depend on `fleet` run on its loop too, so `fleet` comes first.
    item.fixturenames.remove("fleet")
    item.fixturenames.insert(0, "fleet")


# The mark.


def _read_marks(item: pytest.Function) -> dict[str, Any]:
    """Return the arguments of a test's marks; for each argument the closest mark counts."""
    options: dict[str, Any] = {}
    for mark in item.iter_markers("fleet"):
        unknown = [repr(each) for each in mark.args] + sorted(mark.kwargs.keys() - set(OPTIONS))
        if unknown:
            pytest.fail(
                f"{item.nodeid}: the mark `fleet` takes {', '.join(f'{name}=' for name in OPTIONS)},"
                f" not {', '.join(unknown)}",
                pytrace=False,
            )
        options = {**mark.kwargs, **options}
    return options


def _parse_seeds(test: str, given: object) -> Sequence[int]:
    seeds: Sequence[Any] = ()
    if isinstance(given, int):
        seeds = range(given)
    elif isinstance(given, Iterable):
        seeds = list(given)
    if not seeds or not all(isinstance(seed, int) for seed in seeds):
        pytest.fail(
            f"{test}: seeds={given!r} must be a positive int (how many) or a list of ints", pytrace=False
        )
    return seeds


# The fixtures.


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A simulated cluster on virtual time, for this test alone; see `fleetlm.testing.Fleet`."""
    from fleetlm.testing.runner import FleetRun  # noqa: PLC0415  # importing it costs time

    item = request.node
    if _IS_OURS not in item.stash:
        pytest.fail(
            f"{item.name} uses `fleet`, whose nodes run on their own event loop: make the test"
            " `async def`, and let it (or one of its fixtures) have an argument `fleet`",
            pytrace=False,
        )
    options = _read_marks(item)
    options.pop("seeds", None)
    seed = getattr(request, "param", request.config.getoption("fleet_seed") or 0)
    item.stash[_SEED] = seed
    run = item.stash[_RUN] = FleetRun(seed, **options)
    yield run.fleet
    with _shorten_report():
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
        with _shorten_report():
            return run.set_up(function, arguments, fixturedef.argname)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", synchronous)
        return (yield)


# The report.


@contextlib.contextmanager
def _shorten_report() -> Iterator[None]:
    """Show errors of the loop without their traceback, which only leads through the loop itself."""
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
    """Add the seed of a failed test and the command that runs it again to the report."""
    report = yield
    if report.failed and (seed := item.stash.get(_SEED, None)) is not None:
        said = f"seed {seed}; the same run again:\n    pytest {_command_argument(item)} --fleet-seed {seed}"
        addsection = getattr(report.longrepr, "addsection", None)
        if addsection is None:  # the failure is only text
            report.sections.append(("fleet", said))
        else:
            addsection("fleet", said)
    return report


def _command_argument(item: pytest.Item) -> str:
    """Return a test's id quoted for a shell, relative to the directory where pytest was started."""
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    return shlex.quote(path + item.nodeid[item.nodeid.index("::") :])
