"""The parts of the command line that need no node: arguments, exit codes, help, loading, logging, input."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fleetlm
from fleetlm.cli import arguments as texts, logs, main, start
from fleetlm.cli.start import NoSuchProgram
from fleetlm.remote import client, shell

NEWS = "worker_of_this_test"


def arguments(*argv: str) -> Any:
    return texts.parser().parse_args(argv)


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


def test_every_command_is_parsed() -> None:
    assert arguments("start").program is None
    assert arguments("start", "a:b", "--log-level", "debug").log_level == "debug"
    options = arguments("remote", "--json", "--node", "a@10.0.0.1", "--timeout", "2.5", "Node.list()")
    assert (options.source, options.json, options.node, options.timeout) == (
        "Node.list()", True, "a@10.0.0.1", 2.5,
    )  # fmt: skip
    assert arguments("start", "--drain", "0").drain == 0
    assert arguments("drain", "--timeout", "0.0").timeout == 0
    assert arguments("start", "--drain", "2.5").drain == 2.5
    assert arguments("remote").source is None
    assert arguments("doctor", "--json").json
    assert arguments("demo").command == "demo"


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["remote", "a", "b"],
        ["remote", "--timeout", "0", "1"],
        ["remote", "--timeout", "-1", "1"],
        ["remote", "--timeout", "inf", "1"],
        ["remote", "--timeout", "nan", "1"],
        ["remote", "--timeout", "soon", "1"],
        ["drain", "--timeout", "-1"],
        ["drain", "--timeout", "nan"],
        ["drain", "--timeout", "soon"],
        ["start", "--log-level", "loud"],
        ["start", "--drain", "-1"],
        ["doctor", "extra"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main.main(argv)
    assert leaving.value.code == 2
    assert "usage: fleetlm" in capsys.readouterr().err


def test_no_command_is_help_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert "fleetlm doctor" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"fleetlm {fleetlm.__version__} (Python 3.")


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ("start", ["fleetlm start worker:main", "78 ", "SIGTERM"]),
        (
            "remote",
            ['fleetlm remote "Node.list()"', "--json", "blocks", "exit codes:\n  0 ", "5  permission denied"],
        ),
        ("doctor", ["docker compose exec", "exit codes:\n  0 "]),
        ("demo", ["127.0.0.N"]),
    ],
)
def test_help_has_examples_and_exit_codes(
    command: str, taught: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main.main([command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in taught)
    assert max(map(len, text.splitlines())) <= 110


def test_every_variable_of_the_settings_is_in_the_help() -> None:
    for variable in fleetlm.Settings().effective():
        assert variable in texts.VARIABLES or variable == "FLEETLM_DEBUG"


@pytest.mark.parametrize("given", ["", "  \n"])
@pytest.mark.parametrize("argv", [["remote"], ["remote", "-"]])
def test_remote_without_an_expression_or_a_terminal_is_2(
    argv: list[str], given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert main.main(argv) == 2
    assert "docker exec -it" in capsys.readouterr().err


def test_remote_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(client, "run", lambda source, **options: told.append((source, options)) or 4)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 + 1"))
    assert main.main(["remote", "-"]) == 4
    assert main.main(["remote", "--timeout", "3", "--node", "a@10.0.0.1", "--json", "x"]) == 4
    assert told == [
        ("1 + 1", {"node": None, "timeout_s": 10.0, "as_json": False}),
        ("x", {"node": "a@10.0.0.1", "timeout_s": 3.0, "as_json": True}),
    ]


SLOW = ("zmq", "dns", "msgpack", "asyncio", "uvloop", "fleetlm.node", "fleetlm.core", "fleetlm.wire")


def loaded_by(*modules: str) -> set[str]:
    """Every module that is loaded after these were imported in a fresh interpreter."""
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, timeout=20,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["fleetlm.cli.main", "fleetlm.remote.client", "fleetlm.remote.protocol", "fleetlm.remote.shell"],
)
def test_fleetlm_remote_loads_neither_the_network_nor_the_event_loop(module: str) -> None:
    loaded = loaded_by(module)
    assert module in loaded
    assert [slow for slow in SLOW if slow in loaded] == []


def test_a_node_loads_dnspython_and_zeromq_only_when_it_needs_them() -> None:
    loaded = loaded_by("fleetlm.node", "fleetlm.actor", "fleetlm.program")
    assert {"dns", "zmq"} & loaded == set()


def test_importing_the_packages_imports_none_of_their_modules() -> None:
    loaded = loaded_by("fleetlm.cli", "fleetlm.remote", "fleetlm.cli.doctor", "fleetlm.cli.demo")
    assert {name for name in loaded if name.startswith("fleetlm")} == {
        "fleetlm", "fleetlm.cli", "fleetlm.remote", "fleetlm.cli.doctor", "fleetlm.cli.demo",
    }  # fmt: skip


# ── what `fleetlm start` runs ────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, NEWS, raising=False)
    (tmp_path / f"{NEWS}.py").write_text(
        "async def main(node): ...\n"
        "def setup(node, *, extra=1): ...\n"
        "def nothing(): ...\n"
        "def two(node, other): ...\n"
        "class Place:\n    @staticmethod\n    def inner(node): ...\n"
        "value = 3\n"
    )
    return tmp_path


@pytest.mark.parametrize("path", ["main", "setup", "Place.inner"])
def test_a_function_is_found_from_the_current_folder(folder: Path, path: str) -> None:
    assert callable(start.load(f"{NEWS}:{path}"))
    sys.modules.pop(NEWS, None)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (NEWS, f"write for example {NEWS}:main"),
        (":main", "MODULE:FUNCTION"),
        (f"{NEWS}:", "MODULE:FUNCTION"),
        ("no_such_module_here:main", "no module 'no_such_module_here'"),
        (f"{NEWS}.py:main", "not of its file"),
        (f"{NEWS}:mian", "did you mean main?"),
        (f"{NEWS}:value", "is of type int, not a function"),
        (f"{NEWS}:nothing", "must take the node"),
        (f"{NEWS}:two", "must take the node"),
    ],
)
def test_a_program_that_cannot_be_used_is_explained(folder: Path, target: str, said: str) -> None:
    with pytest.raises(NoSuchProgram) as caught:
        start.load(target)
    assert said in str(caught.value)
    sys.modules.pop(NEWS, None)


def test_a_module_that_misses_another_module_is_not_a_missing_module(folder: Path) -> None:
    (folder / f"{NEWS}.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        start.load(f"{NEWS}:main")


@pytest.fixture
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Any:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("DNS_POLL_INTERVAL_MS", "5s"), ("FLEETLM_NODE_PORT", "0"), ("FLEETLM_COOKY", "secret")],
)
def test_a_setting_that_cannot_be_used_is_78(
    root_logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert main.main(["start"]) == 78
    error = capsys.readouterr().err
    assert error.startswith(f"fleetlm start: {name} is ")
    assert "secret" not in error


# ── logging ──────────────────────────────────────────────────────────────────────────────────────


def record(text: str, *args: object, exc_info: Any = None) -> logging.LogRecord:
    made = logging.LogRecord("fleetlm", logging.INFO, "f.py", 1, text, args, exc_info)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def test_a_record_is_one_line_with_time_level_and_node() -> None:
    formatter = logs.LineFormatter()
    formatter.node = "fleetlm@10.0.0.7"
    line = formatter.format(record("%d nodes", 3))
    assert line == "2023-11-14T22:13:20.250Z INFO    fleetlm@10.0.0.7 fleetlm: 3 nodes"


def test_what_came_from_the_network_cannot_forge_a_line() -> None:
    line = logs.LineFormatter().format(record("from %s", "x\n2023 INFO all is well\x1b[2J\r"))
    assert "\n" not in line
    assert line.endswith(r"from x\n2023 INFO all is well\x1b[2J\r")


def test_a_traceback_follows_indented() -> None:
    try:
        int("wrong")
    except ValueError:
        lines = logs.LineFormatter().format(record("failed", exc_info=sys.exc_info())).splitlines()
    assert lines[0].endswith("failed")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "ValueError" in lines[-1]


def test_set_up_replaces_what_was_there(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    logs.set_up("info", stream).close()
    log = logs.set_up("warning", stream)
    log.node = "n"
    logging.getLogger("fleetlm.x").warning("once")
    logging.getLogger("fleetlm.x").info("not at all")
    log.close()
    assert stream.getvalue().count("\n") == 1
    assert " n fleetlm.x: once" in stream.getvalue()


# ── the shell's input ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("1 + 1", False),
        ("", False),
        ("x = [1,", True),
        ("x = [1,\n2]", False),
        ("for i in x:", True),
        ("for i in x:\n    print(i)", True),
        ("for i in x:\n    print(i)\n", False),
        ("for i in x: print(i)", True),
        ("async def f():\n    await g()", True),
        ("await f()", False),
        ("async with a:\n    pass\n", False),
        ("s = '''", True),
        ("1 +* 2", False),
        ("def f(", True),
        ("@decorator", True),
        ("if x:\n    pass\nelse:", True),
        ("a = 1\nb = 2", False),
        ("'\\x0'", False),
        ("lambda: 1", False),
    ],
)
def test_when_another_line_is_asked_for(source: str, more: bool) -> None:
    assert shell.needs_more(source) is more


@pytest.mark.parametrize(
    ("text", "word", "size"),
    [("Node.li", "Node.list", 2), ("x = Node.", "Node.list", 0), ("Pro", "Process", 3), ("", "x", 0)],
)
def test_how_much_of_a_completion_is_typed_already(text: str, word: str, size: int) -> None:
    assert shell._count_typed(text, word) == size


def test_the_history_is_the_users_alone(tmp_path: Path) -> None:
    path = shell.history_path({"XDG_STATE_HOME": str(tmp_path)})
    assert path == tmp_path / "fleetlm" / "history"
    assert path.stat().st_mode & 0o777 == 0o600
    assert shell.history_path({"HOME": str(tmp_path)}) is not None


def test_without_a_home_there_is_no_history(tmp_path: Path) -> None:
    assert shell.history_path({}) is None
    (tmp_path / "file").touch()
    assert shell.history_path({"XDG_STATE_HOME": str(tmp_path / "file")}) is None
