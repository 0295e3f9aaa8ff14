"""The rules of this code base, asserted; and the checkers themselves, on small bad sources."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.house_rules import (
    BESIDE,
    FUNCTION_LINES,
    INIT_LINES,
    MODULE_LINES,
    PRIVATE_PATHS,
    REGISTRIES,
    code_lines,
    cycle_complaints,
    forget_sources,
    handler_complaints,
    import_complaints,
    purity_complaints,
    room_of,
    size_complaints,
    sleep_complaints,
    task_complaints,
    unused_exceptions,
    word_complaints,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
TEXT_FILES = {".py", ".md", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".txt", ".sh", ".json", ""}
NOT_OURS = {"build", "dist", "__pycache__", "results"}
HIDDEN_BUT_OURS = {".ci", ".github"}

# ── the rules, on this code base ─────────────────────────────────────────────────────────────────


def sources(*folders: str) -> dict[str, str]:
    """Path relative to the repository → text, of every Python file in these folders."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {dotted(path): text for path, text in sources("fleetlm").items()}
PROGRAMS = sources("fleetlm", "examples", "benchmarks")
TESTS = sources("tests")


def texts(folder: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Path and text of every text file that belongs to the project."""
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".")
        if entry.is_dir():
            ours = entry.name not in NOT_OURS and (not hidden or entry.name in HIDDEN_BUT_OURS)
            if ours and not (entry / "pyvenv.cfg").exists():
                yield from texts(entry)
        elif entry.suffix in TEXT_FILES:
            path = entry.relative_to(ROOT).as_posix()
            yield path, entry.read_text(encoding="utf-8", errors="replace")


def complaints(check: Callable[[str, str], list[str]], files: Mapping[str, str]) -> list[str]:
    return [complaint for name, text in files.items() for complaint in check(name, text)]


@pytest.fixture(scope="module", autouse=True)
def _sources_forgotten() -> Iterator[None]:
    """The tests that run after these in the same process do not carry all trees along.

    A tree has no cycles but millions of nodes; with garbage collection, parsing takes four times as long.
    """
    gc.disable()
    yield
    forget_sources()
    gc.enable()


def test_there_is_something_to_check() -> None:
    assert "fleetlm" in MODULES
    assert len(MODULES) > 20


def test_imports_run_one_way() -> None:
    assert [line for module in MODULES for line in import_complaints(module, MODULES)] == []


def test_no_exception_is_listed_that_nothing_needs() -> None:
    assert unused_exceptions(MODULES) == set()


def test_pure_modules_know_neither_clock_nor_socket_nor_chance() -> None:
    assert complaints(purity_complaints, MODULES) == []


def test_no_import_cycle() -> None:
    assert cycle_complaints(MODULES) == []


def test_sizes() -> None:
    assert complaints(size_complaints, PROGRAMS) == []
    assert len(code_lines(MODULES["fleetlm"])) < INIT_LINES


def test_no_error_vanishes() -> None:
    assert complaints(handler_complaints, PROGRAMS | TESTS) == []


def test_every_task_is_held() -> None:
    assert complaints(task_complaints, PROGRAMS | TESTS) == []


def test_no_test_sleeps() -> None:
    assert complaints(sleep_complaints, TESTS) == []


def test_there_is_at_least_as_much_test_as_source() -> None:
    def lines(files: Mapping[str, str]) -> int:
        return sum(bool(line.strip()) for text in files.values() for line in text.splitlines())

    assert lines(TESTS) >= lines(MODULES)


def test_words() -> None:
    assert complaints(word_complaints, dict(texts())) == []


# ── the checkers, on bad sources ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("fleetlm", "public"),
        ("fleetlm.settings", "values"),
        ("fleetlm.core", "core"),
        ("fleetlm.core.kernel", "core"),
        ("fleetlm.node", "node"),
        ("fleetlm.cli.doctor.checks", "cli"),
    ],
)
def test_a_module_has_one_room(module: str, room: str) -> None:
    assert room_of(module) == room


def test_a_module_without_a_place_in_the_table_is_caught() -> None:
    modules = {"fleetlm": "", "fleetlm.attic": "import fleetlm.errors", "fleetlm.errors": ""}
    with pytest.raises(LookupError, match="attic"):
        import_complaints("fleetlm.attic", modules)


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("fleetlm.errors", "from fleetlm.core import kernel", True),
        ("fleetlm.errors", "from fleetlm import ids", False),
        ("fleetlm.core.kernel", "from fleetlm.node import Node", True),
        ("fleetlm.core.kernel", "if TYPE_CHECKING:\n    from fleetlm.node import Node", True),
        ("fleetlm.core.kernel", "def f():\n    import fleetlm.node", True),
        ("fleetlm.core.kernel", "from fleetlm import Node", True),
        ("fleetlm.core.kernel", "from . import codec", True),
        ("fleetlm.core.kernel", "from fleetlm.call import Call", True),  # of its own row
        ("fleetlm.core.kernel", "from fleetlm.blocking import pools", True),  # wire and values only
        ("fleetlm.core.kernel", "from fleetlm.wire import codec\nimport fleetlm.errors", False),
        ("fleetlm.discovery.poller", "from fleetlm.messaging import session", True),
        ("fleetlm.messaging.session", "from fleetlm.transport.interface import Transport", False),
        ("fleetlm.actors.handlers", "from fleetlm.actor import Actor", True),
        ("fleetlm.node", "from fleetlm.remote.server import RemoteServer", True),
        ("fleetlm.node", "from fleetlm.testing.dns_server import DnsServer", True),
        ("fleetlm.process", "from fleetlm.node import Node", False),  # a listed exception
        ("fleetlm.process", "from fleetlm.node_thread import node_in_thread", True),
        ("fleetlm.remote.client", "from fleetlm.node import Node", True),
        ("fleetlm.remote.server", "from fleetlm.node import Node", False),
        ("fleetlm.cli.demo.story", "from fleetlm.testing.loop import SimLoop", True),
        ("fleetlm.cli.demo.story", "from fleetlm.testing.dns_server import DnsServer", False),
        ("fleetlm.cli.doctor.gather", "from fleetlm.testing.loop import SimLoop", True),
        ("fleetlm.cli.main", "from fleetlm import Node", False),
    ],
)
def test_imports_that_lead_up_are_caught(module: str, source: str, caught: bool) -> None:
    modules = dict.fromkeys(["fleetlm", "fleetlm.errors", "fleetlm.ids", "fleetlm.wire.codec"], "")
    assert bool(import_complaints(module, modules | {module: source})) is caught


def test_an_exception_that_nothing_needs_is_caught() -> None:
    assert ("fleetlm.process", "fleetlm.node") in unused_exceptions({"fleetlm.process": ""})


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import time", True),
        ("from os import environ", True),
        ("def f():\n    import zmq.asyncio", True),
        ("from datetime import datetime\nx = datetime.now()", True),
        ("import random\nrandom.shuffle([])", True),
        ("import random\nx = random.Random()", True),
        ("from random import choice", True),
        ("if TYPE_CHECKING:\n    from random import Random", False),
        ("import random\ndef f(chance: random.Random) -> None: ...", False),
        ("import hashlib, struct, ipaddress, msgpack", False),
        ("from datetime import datetime\nx: datetime", False),
    ],
)
def test_impure_core_is_caught(source: str, caught: bool) -> None:
    assert bool(purity_complaints("fleetlm.core.kernel", source)) is caught
    assert purity_complaints("fleetlm.node", source) == []


def test_only_settings_may_know_the_environment() -> None:
    assert purity_complaints("fleetlm.settings", "import os") == []
    assert purity_complaints("fleetlm.names", "import os") == ["fleetlm.names:1 imports os"]


@pytest.mark.parametrize(
    "closing",
    [
        "from fleetlm.a import A",
        "if TYPE_CHECKING:\n    from fleetlm.a import A",
        "def f():\n    from fleetlm.a import A",
    ],
)
def test_a_circle_is_caught(closing: str) -> None:
    modules = {"fleetlm.a": "from fleetlm import b", "fleetlm.b": "import fleetlm.c"}
    assert cycle_complaints(modules | {"fleetlm.c": closing}) == [
        "fleetlm.a → fleetlm.b → fleetlm.c → fleetlm.a"
    ]
    assert cycle_complaints(modules | {"fleetlm.c": ""}) == []


def test_sizes_are_caught() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert size_complaints("m", "def f():\n" + body) == ["m:1 f() has 71 lines of code"]
    assert size_complaints("m", "async def f():\n" + body.removesuffix("    x = 1\n")) == []
    assert size_complaints("m", "x = 1\n" * (MODULE_LINES + 1)) == ["m has 501 lines of code"]


def test_documentation_is_no_reason_to_cut() -> None:
    prose = '"""Says\n\nmuch."""\n\n# and more\n'
    assert size_complaints("m", prose * MODULE_LINES) == []
    assert code_lines(prose + "x = 1  # a remark\n") == {6}


@pytest.mark.parametrize(
    ("handler", "caught"),
    [
        ("except:\n    raise", True),
        ("except Exception:\n    pass", True),
        ("except (ValueError, BaseException):\n    ...", True),
        ("except Exception as error:\n    log(error)", False),
        ("except ValueError:\n    pass", False),
    ],
)
def test_vanishing_errors_are_caught(handler: str, caught: bool) -> None:
    assert bool(handler_complaints("m", f"try:\n    f()\n{handler}\n")) is caught


def test_suppressing_everything_is_caught() -> None:
    assert handler_complaints("m", "with contextlib.suppress(Exception):\n    f()") != []
    assert handler_complaints("m", "with contextlib.suppress(OSError):\n    f()") == []


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("asyncio.create_task(f())", True),
        ("loop.create_task(f())", True),
        ("ensure_future(f())", True),
        ("_ = asyncio.create_task(f())", True),
        ("task = asyncio.create_task(f())", False),
        ("tasks.add(asyncio.create_task(f()))", False),
        ("async def g():\n async with asyncio.TaskGroup() as tg:\n  tg.create_task(f())", False),
    ],
)
def test_tasks_that_nobody_holds_are_caught(source: str, caught: bool) -> None:
    assert bool(task_complaints("m", source)) is caught


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("tests/test_node.py", "import time\ntime.sleep(0.1)", True),
        ("tests/test_node.py", "import asyncio\nasync def f():\n    await asyncio.sleep(1)", True),
        ("tests/test_node.py", "from asyncio import sleep\nsleep(1)", True),
        ("tests/test_node.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0)", False),
        ("tests/transport/test_node.py", "import time\ntime.sleep(0.1)", False),
        ("tests/test_sim.py", "from fleetlm.testing import SimLoop\nasyncio.sleep(9)", False),
        ("tests/test_sim.py", "from fleetlm.testing import SimLoop\ntime.sleep(9)", True),
        ("tests/test_dns.py", "from fleetlm.testing import DnsServer\nasyncio.sleep(9)", True),
    ],
)
def test_sleeps_are_caught(path: str, source: str, caught: bool) -> None:
    assert bool(sleep_complaints(path, source)) is caught


def test_words_are_caught() -> None:
    text = f"see {PRIVATE_PATHS[0]}main\nhttps://{REGISTRIES[0]}/simple\n{BESIDE}/tools\n"
    assert len(word_complaints("README.md", text)) == 3
    assert len(word_complaints(".ci/run", text)) == 2
    assert word_complaints("README.md", "a network\nroot of the tree\n") == []
