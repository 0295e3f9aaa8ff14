"""The pytest plugin as users have it: small test suites, each run by its own pytest."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "examples" / "testing_project"
PLUGIN = ["-p", "fleetlm.testing.pytest_plugin"]
INSTALLED = ["-p", "fleetlm"]  # by the name of its entry point
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\s+(?:test_\w+\.py::)?(\S+)", re.MULTILINE)


class Outcome(NamedTuple):
    """The result and the output of a run of pytest."""

    status: int
    text: str

    @property
    def tests(self) -> dict[str, str]:
        """Test → outcome; ERROR for a test that failed and also had an error at its end."""
        return {name: word for word, name in OUTCOME.findall(self.text)}

    def report(self, test: str) -> str:
        """Return the report of one failure."""
        found = re.search(
            rf"^_+ (?:ERROR at \w+ of )?{re.escape(test)} _+$(.*?)^[_=]{{3}}",
            self.text,
            re.MULTILINE | re.DOTALL,
        )
        assert found is not None, self.text
        return found[1]


def pytest_in(folder: Path, *args: str, plugins: list[str] = PLUGIN) -> Outcome:
    """Run pytest in a folder, with these plugins and no others."""
    env = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("PYTEST_", "FLEETLM_", "DNS_"))
        and name not in ("CI", "BUILD_NUMBER")  # with these pytest says more
    }
    env["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *plugins, *args],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=25,
        check=False,
    )
    return Outcome(done.returncode, done.stdout)


def suite(folder: Path, source: str, name: str = "test_it.py") -> None:
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    (folder / name).write_text(dedent(source))


# Outcomes.


def test_what_passes_and_what_does_not(tmp_path: Path) -> None:
    suite(
        tmp_path,
        """
        import asyncio, time
        import pytest
        from fleetlm import Call
        import fleetlm.testing

        async def echo(process):
            async for message in process.mailbox:
                match message:
                    case Call(message=text): message.reply(text)

        async def test_passes(fleet: fleetlm.testing.Fleet) -> None:
            one, two, three = await fleet.start(3)
            two.spawn(echo, name="echo")
            assert await one.call(("echo", two.name), 1) == 1
            await fleet.crash(two)
            await fleet.until(lambda: one.list() == [three.name])
            await fleet.sleep(600)

        async def test_fails(fleet):
            one, two = await fleet.start(2)
            assert one.list() == []

        async def test_deadlock(fleet):
            await asyncio.Event().wait()

        @pytest.mark.fleet(limit_s=60)
        async def test_waits(fleet):
            await fleet.start(2)
            await asyncio.Event().wait()

        async def test_sleeps(fleet):
            time.sleep(60)

        async def test_dials(fleet):
            await asyncio.open_connection("127.0.0.1", 1)

        async def test_leaves_a_task(fleet):
            fleet.task = asyncio.create_task(asyncio.sleep(1000))

        async def test_forgets(fleet):
            async def bad(): raise ValueError("bad")
            task = asyncio.create_task(bad())
            await fleet.sleep(1)
            del task

        async def test_leaks(fleet):
            one, two = await fleet.start(2)
            link = one._driver.sessions[two.name]
            await fleet.stop(one)
            one._driver.sessions["fleetlm@10.0.0.9"] = link

        async def test_until(fleet):
            one, two = await fleet.start(2)
            await fleet.until(lambda: one.list() == [], timeout=3)

        async def test_skips(fleet):
            await fleet.start(1)
            pytest.skip("not today")

        @pytest.mark.xfail(strict=True)
        async def test_xfails(fleet):
            assert False

        def test_sync(fleet):
            pass
        """,
    )
    done = pytest_in(tmp_path)
    failing = {"fails", "deadlock", "waits", "sleeps", "dials", "leaves_a_task", "forgets", "leaks", "until"}
    assert done.status == 1
    assert done.tests == {
        "test_passes": "PASSED",
        "[1]": "SKIPPED",  # pytest counts them, and does not name them
        "test_xfails": "XFAIL",
        "test_sync": "ERROR",
        **{f"test_{name}": "FAILED" for name in failing},
    }
    for name in failing:
        report = done.report(f"test_{name}")
        assert "seed 0; the same run again:" in report
        assert f"pytest test_it.py::test_{name} --fleet-seed 0" in report
        assert "run_until_complete" not in report, "the way through the loop says nothing"
    assert "E       AssertionError: assert ['fleetlm@10.0.0.2'] == []" in done.report("test_fails")
    lines = (tmp_path / "test_it.py").read_text().splitlines()
    waits = [number for number, line in enumerate(lines, 1) if "asyncio.Event().wait()" in line]
    assert re.search(r"test_it.py:\d+: AssertionError", done.report("test_fails"))
    assert (
        f"test_it.py:{waits[0]}\n" in done.report("test_deadlock").partition("\ntest_deadlock waits at ")[2]
    )
    assert done.report("test_deadlock").lstrip().startswith("Deadlock: deadlock at 0 s")
    assert f"test_it.py:{waits[1]}\n" in done.report("test_waits").partition("\ntest_waits waits at ")[2]
    assert done.report("test_waits").lstrip().startswith("LimitReached: not done after 60 virtual seconds")
    assert re.search(r">\s+time.sleep\(60\)\nE.*RealSleep", done.report("test_sleeps"))
    assert "loop.create_connection() needs the outside world" in done.report("test_dials")
    assert "\nLeftOver: " in done.report("test_leaves_a_task")
    assert re.search(r"E\s+ValueError: bad\nE\s+Unhandled: 1 unhandled", done.report("test_forgets"))
    assert "Leaked: left behind: fleetlm@10.0.0.1: session with" in done.report("test_leaks")
    assert re.search(
        r">\s+await fleet.until\(.*\nE.*NotReached: not within 3 s: one.list\(\) == \[\]; it was False",
        done.report("test_until"),
    )
    assert "make the test `async def`" in done.report("test_sync")


def test_every_kind_of_fixture(tmp_path: Path) -> None:
    suite(
        tmp_path,
        """
        import asyncio
        import pytest

        SAID = []

        @pytest.fixture
        def sync(fleet):
            yield fleet
            SAID.append("sync")

        @pytest.fixture
        async def nodes(sync):
            async with asyncio.TaskGroup() as group:
                yield await sync.start(2)
            SAID.append("nodes")

        @pytest.fixture
        async def first(nodes):
            return nodes[0]

        @pytest.fixture
        async def independent():
            loop = asyncio.get_running_loop()
            yield loop
            assert asyncio.get_running_loop() is loop
            SAID.append("independent")

        @pytest.fixture
        async def bad(fleet):
            yield 1
            raise ValueError("at the end")

        @pytest.fixture
        async def worse(fleet):
            raise ValueError("at once")

        class TestMethods:
            @pytest.fixture
            async def mine(self, nodes):
                self.number = len(nodes)
                yield

            async def test_method(self, mine):
                assert self.number == 2

        async def test_by_way_of_fixtures(independent, nodes, first, tmp_path):
            SAID.clear()
            assert first is nodes[0]
            assert first.list() == [nodes[1].name]
            assert asyncio.get_running_loop() is independent
            await asyncio.sleep(1000)

        def test_they_have_ended_in_order():
            assert SAID == ["nodes", "independent", "sync"]

        @pytest.mark.fleet(seeds=2)
        @pytest.mark.parametrize("letter", ["a", "b"])
        async def test_parameters(first, letter):
            pass

        async def test_bad(bad):
            pass

        async def test_worse(worse):
            pass
        """,
    )
    done = pytest_in(tmp_path)
    assert done.tests == {
        "TestMethods::test_method": "PASSED",
        "test_by_way_of_fixtures": "PASSED",
        "test_they_have_ended_in_order": "PASSED",
        **{f"test_parameters[{letter}-seed={seed}]": "PASSED" for letter in "ab" for seed in (0, 1)},
        "test_bad": "FAILED",
        "test_worse": "ERROR",
    }
    assert "ValueError: at the end" in done.report("test_bad")
    assert "ValueError: at once" in done.report("test_worse")
    assert "--fleet-seed 0" in done.report("test_worse")


# Seeds.

SEEDS = """
    import pytest

    pytestmark = pytest.mark.fleet(settings={"call_timeout_s": 3}, seeds=2)

    async def test_module(fleet):
        [one] = await fleet.start()
        assert one.settings.call_timeout_s == 3

    @pytest.mark.fleet(seeds=[3, 7])
    async def test_own(fleet):
        [one] = await fleet.start()
        assert one.settings.call_timeout_s == 3
        assert fleet.seed != 7
"""


def test_seeds_make_tests(tmp_path: Path) -> None:
    suite(tmp_path, SEEDS)
    done = pytest_in(tmp_path)
    assert done.tests == {
        "test_module[seed=0]": "PASSED",
        "test_module[seed=1]": "PASSED",
        "test_own[seed=3]": "PASSED",
        "test_own[seed=7]": "FAILED",
    }
    assert "pytest 'test_it.py::test_own[seed=7]' --fleet-seed 7" in done.report("test_own[seed=7]")


def test_one_seed_for_all(tmp_path: Path) -> None:
    suite(tmp_path, SEEDS + "\n    async def test_plain(fleet):\n        assert fleet.seed == 9\n")
    (tmp_path / "test_it.py").write_text((tmp_path / "test_it.py").read_text().replace(", seeds=2", ""))
    done = pytest_in(tmp_path, "--fleet-seed", "9")
    assert done.tests == {"test_module": "PASSED", "test_own[seed=9]": "PASSED", "test_plain": "PASSED"}


def test_the_command_is_for_where_pytest_was_started(tmp_path: Path) -> None:
    suite(tmp_path, "")
    (tmp_path / "deep").mkdir()
    suite(tmp_path / "deep", "async def test_x(fleet):\n    assert False\n", "test_deep.py")
    (tmp_path / "deep" / "pytest.ini").unlink()
    assert "pytest deep/test_deep.py::test_x --fleet" in pytest_in(tmp_path).text
    assert "pytest test_deep.py::test_x --fleet" in pytest_in(tmp_path / "deep").text


def test_a_bad_mark_says_so(tmp_path: Path) -> None:
    marks = ["seeds=0", "seeds='all'", "seeds=[]", "seeds=[1, 'x']", "20", "seed=3"]
    for number, mark in enumerate(marks):
        source = f"import pytest\n@pytest.mark.fleet({mark})\nasync def test_it(fleet):\n    pass\n"
        suite(tmp_path, source, f"test_{number}.py")
    text = pytest_in(tmp_path).text
    assert text.count("must be a positive int (how many) or a list of ints") == 4
    assert "takes seeds=, settings=, latency_s=, limit_s=, not 20" in text
    assert "takes seeds=, settings=, latency_s=, limit_s=, not seed" in text
    assert "passed" not in text.splitlines()[-1]


def test_workers_of_xdist(tmp_path: Path) -> None:
    suite(tmp_path, SEEDS)
    done = pytest_in(tmp_path, "-p", "xdist", "-n", "2")
    assert sorted(done.tests.values()) == ["FAILED", "PASSED", "PASSED", "PASSED"]
    assert "pytest 'test_it.py::test_own[seed=7]' --fleet-seed 7" in done.text


# Others are left alone.

GREEDY = """
    import inspect
    import pytest

    # What pytest-asyncio and anyio do in their automatic modes: whatever is async is theirs.

    def is_async(function):
        return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)

    @pytest.hookimpl(wrapper=True)
    def pytest_pycollect_makeitem():
        found = yield
        for item in found if isinstance(found, list) else [found]:
            if isinstance(item, pytest.Function) and is_async(item.obj):
                item.add_marker("greedy")
        return found

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(fixturedef, request):
        assert not is_async(fixturedef.func), f"{fixturedef.argname} is mine"
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem):
        if is_async(pyfuncitem.obj):
            assert pyfuncitem.get_closest_marker("greedy")
            return True

    def pytest_configure(config):
        config.addinivalue_line("markers", "greedy")
"""


def test_other_plugins_for_async_tests_see_a_plain_one(tmp_path: Path) -> None:
    suite(tmp_path, GREEDY, "conftest.py")
    suite(
        tmp_path,
        """
        import pytest

        @pytest.fixture
        async def nodes(fleet):
            yield await fleet.start(2)

        @pytest.fixture
        async def theirs():
            yield

        async def test_ours(request, nodes, fleet):
            assert request.node.get_closest_marker("greedy") is None
            assert fleet.now > 0

        async def test_theirs():
            assert False, "is never run"

        async def test_their_fixture(theirs):
            pass
        """,
    )
    done = pytest_in(tmp_path)
    assert done.tests == {"test_ours": "PASSED", "test_theirs": "PASSED", "test_their_fixture": "ERROR"}
    assert "theirs is mine" in done.text


def test_another_fixture_named_fleet_is_left_alone(tmp_path: Path) -> None:
    suite(
        tmp_path,
        """
        import pytest

        @pytest.fixture
        def fleet():
            return ["a ship"]

        def test_sync(fleet):
            assert fleet == ["a ship"]

        async def test_async(fleet):
            assert fleet == ["a ship"]
        """,
        "test_theirs.py",
    )
    suite(
        tmp_path,
        """
        import pytest

        @pytest.fixture
        async def fleet(fleet):
            await fleet.start(2)
            return fleet

        @pytest.mark.fleet(seeds=[5])
        async def test_built_on_ours(fleet):
            assert len(fleet.nodes) == 2
            assert fleet.seed == 5
        """,
        "test_ours.py",
    )
    suite(
        tmp_path,
        """
        import asyncio, inspect

        def pytest_pyfunc_call(pyfuncitem):
            if inspect.iscoroutinefunction(pyfuncitem.obj):
                asyncio.run(pyfuncitem.obj(**pyfuncitem.funcargs))
                return True
        """,
        "conftest.py",
    )
    done = pytest_in(tmp_path)
    passed = ["test_built_on_ours[seed=5]", "test_sync", "test_async"]
    assert done.tests == dict.fromkeys(passed, "PASSED")


def test_nothing_is_imported_before_a_test_asks(tmp_path: Path) -> None:
    suite(
        tmp_path,
        """
        import sys

        def pytest_unconfigure(config):
            print("there:", sorted(name for name in sys.modules if name.partition(".")[0] in HEAVY))

        HEAVY = {"fleetlm", "zmq", "msgpack", "dns"}
        """,
        "conftest.py",
    )
    suite(tmp_path, "def test_plain():\n    pass\n")
    assert (
        "there: ['fleetlm', 'fleetlm.testing', 'fleetlm.testing.pytest_plugin']" in pytest_in(tmp_path).text
    )


# The example project, with the plugin found as an installed one is.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the example, with the entry point that an installation would write."""
    copy = tmp_path / "project"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    said = copy / "fleetlm-0.0.0.dist-info"
    said.mkdir()
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: fleetlm\nVersion: 0.0.0\n")
    lines = [f"{name} = {aim}" for name, aim in entry_points["pytest11"].items()]
    (said / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    return copy


def test_the_example_project_passes(project: Path) -> None:
    done = pytest_in(project, plugins=INSTALLED)
    assert done.status == 0, done.text
    assert len(done.tests) == 28


def test_a_broken_copy_fails_for_some_seeds_and_is_replayed_by_the_command(project: Path) -> None:
    source = (project / "counter.py").read_text()
    lines = re.search(r"( +if standby_at is not None:\n.*\n)( +message.reply\(value\)\n)", source)
    assert lines is not None
    (project / "counter.py").write_text(source.replace(lines[0], lines[2] + lines[1]))

    name = "test_no_crash_loses_what_was_acknowledged"
    done = pytest_in(project, "-k", name, plugins=INSTALLED)
    failed = {test for test, word in done.tests.items() if word == "FAILED"}
    assert 0 < len(failed) < 20, "it is a matter of luck, and the seed is the luck"
    test = min(failed)
    report = done.report(test.rpartition("::")[2])
    seen = re.search(r"where .* = (Tally\(.*\))", report)
    command = re.search(r"^    pytest (.*)$", report, re.MULTILINE)
    assert seen is not None
    assert command is not None
    again = pytest_in(project, *shlex.split(command[1]), plugins=INSTALLED)
    assert list(again.tests.items()) == [(test, "FAILED")]
    assert seen[1] in again.text, "the same run, to the last number"
