"""README and the documentation show only what exists and what a test runs.

Every Python block stands word for word in an example or a test that the suite runs.
`tests/system/test_quickstart.py` runs the programs and commands of the first pages,
`tests/sim/test_quickstart_tests.py` their tests, `tests/system/test_examples.py` the examples, and
`tests/sim/test_pytest_plugin.py` the testing project.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from fleetlm import ActorRef, Pid, Process, Settings
from fleetlm.cli.arguments import parser
from fleetlm.cli.logs import JsonFormatter
from fleetlm.testing import Fleet
from fleetlm.testing.fleet import NotReached
from tests.support.guides import (
    CONFIGURATION,
    FENCE,
    OPERATE,
    PAGES,
    QUICKSTART,
    README,
    ROOT,
    Block,
    all_blocks,
    blocks,
    quickstart,
    shown_part,
)

RUN_BY_TESTS = {
    path: path.read_text(encoding="utf-8")
    for path in (*(ROOT / "examples").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py"))
}
LANGUAGES = {
    "python": "stands in a file that a test runs",
    "console": "commands that exist, with their output",
    "text": "what a program prints; nothing to run",
    "yaml": "needs a Kubernetes cluster; its facts are checked here and in test_leaving_guide.py",
    "toml": "likewise",
    "ini": "likewise",
    "json": "likewise",
    "hcl": "likewise",
}
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
CALL = re.compile(r"\b(node|fleet|process|ref)((?:\.\w+)+)\(")
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def test_each_page_has_blocks_and_each_block_a_language_that_is_checked() -> None:
    names = {page.name for page in PAGES}
    assert names >= {"README.md", "from-erlang.md", "from-ray-celery.md", "testing.md"}
    found = {str(block): block.language for page in PAGES for block in blocks(page)}
    assert {where: word for where, word in found.items() if word not in LANGUAGES} == {}
    for page in PAGES:
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page)), page


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_every_python_block_stands_word_for_word_in_what_a_test_runs(block: Block) -> None:
    assert [path for path, source in RUN_BY_TESTS.items() if block.text in source] != []


def test_readme_begins_with_a_whole_program() -> None:
    first, install, *_ = blocks(README)
    assert first.text == shown_part(QUICKSTART / "hello.py")
    assert install.commands[-1] == "python hello.py"


def test_the_first_pages_show_whole_programs() -> None:
    programs = quickstart()
    assert {"hello.py", "cluster.py", "outcomes.py", "actors.py"} <= programs.keys()
    for name, block in programs.items():
        assert ast.parse(block.text).body, name


@pytest.mark.parametrize("block", all_blocks("console"), ids=str)
def test_every_command_exists(block: Block) -> None:
    assert block.commands != []
    for command in block.commands:
        check_command(command, block.page.parent)


def check_command(command: str, folder: Path) -> None:
    """Fail if this line of a shell names a target, a subcommand, an option or a file that does not exist."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        assert words.pop(0).partition("=")[0] in known_variables()
    program, *arguments = words
    check = {
        "docker": check_docker,
        "export": check_export,
        "fleetlm": check_fleetlm,
        "make": check_make,
        "pip": check_pip,
        "pytest": lambda _: None,  # Its arguments are tests of an example that some seed breaks.
        "python": lambda arguments: check_python(arguments, folder),
        ".": check_activate,
        "cd": lambda arguments: check_folder(arguments, folder),
        "curl": lambda _: None,  # Those of the tutorial are run by tests/system/test_tutorial.py.
        "python3": check_venv,
        "uvicorn": lambda _: None,  # likewise
    }[program]
    check(arguments)


def check_fleetlm(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)  # It exits, and so fails the test, if the arguments are wrong.
    if getattr(options, "source", None) is not None:
        compile(options.source, "EXPR", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def check_make(arguments: Sequence[str]) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    assert set(arguments) <= targets


def check_docker(arguments: Sequence[str]) -> None:
    assert arguments[:2] == ["compose", "-f"]
    assert (ROOT / arguments[2]).exists()
    if "exec" in arguments:
        service, program, *rest = arguments[arguments.index("exec") + 1 :]
        assert (service, program) == ("worker", "fleetlm")
        check_fleetlm(rest)


def check_export(arguments: Sequence[str]) -> None:
    assert {argument.partition("=")[0] for argument in arguments} <= known_variables()


def check_pip(arguments: Sequence[str]) -> None:
    """A package index does not have fleetlm yet: a checkout is what can be installed."""
    assert arguments[0] == "install"
    others = {word for word in arguments[1:] if not word.startswith(("-", "."))}
    assert others <= {"fastapi", "uvicorn"}


def check_python(arguments: Sequence[str], folder: Path) -> None:
    name, *_ = arguments
    places = (folder, ROOT / "examples" / "tutorial")  # the tutorial has gone there before
    assert name in quickstart() or any((place / name).exists() for place in places)


def check_activate(arguments: Sequence[str]) -> None:
    assert list(arguments) == [".venv/bin/activate"]


def check_folder(arguments: Sequence[str], folder: Path) -> None:
    [name] = arguments
    assert (ROOT / name).is_dir() or (folder / name).is_dir()


def check_venv(arguments: Sequence[str]) -> None:
    assert list(arguments) == ["-m", "venv", ".venv"]


def known_variables() -> set[str]:
    return Settings().effective().keys() | {"FLEETLM_COOKIE_FILE", "FLEETLM_OPS_TOKEN_FILE", "PYTHON"}


def test_commands_that_do_not_exist_are_caught() -> None:
    for command in (
        "make everything",
        "pip install fleetlm",
        "python nothing.py",
        "FLEETLM_NODE_IPP=127.0.0.1 fleetlm start",
        'fleetlm remote "Node.list("',
        "wget https://example.org",
        "cd nowhere",
        "python3 -m nothing",
    ):
        with pytest.raises((AssertionError, KeyError, SyntaxError)):
            check_command(command, ROOT)
    with pytest.raises(SystemExit):
        check_command("fleetlm begin", ROOT)


def test_the_table_of_settings_has_every_variable_and_its_default() -> None:
    rows = [line.split(" | ") for line in CONFIGURATION.read_text(encoding="utf-8").splitlines()]
    shown = {
        name: row[2].strip(" |`")
        for row in rows
        if len(row) == 3
        for name in re.findall(r"`((?:DNS|FLEETLM)_\w+)`", row[0])
    }
    defaults = Settings().effective()
    assert shown.keys() == known_variables() - {"PYTHON"}
    numbers = {name: text for name, text in shown.items() if text.isdigit()}
    assert numbers == {name: defaults[name] for name in numbers}
    assert len(numbers) >= 3


async def test_the_tables_name_methods_that_exist(fleet: Fleet) -> None:
    holders = {"node": await fleet.node(), "fleet": fleet, "process": Process, "ref": ActorRef}
    spans = [span for page in PAGES for span in SPAN.findall(page.read_text(encoding="utf-8"))]
    calls = {found for span in spans for found in CALL.findall(span)}
    assert {holder for holder, _ in calls} == holders.keys()
    assert len(calls) > 45
    for holder, path in calls:
        aim: object = holders[holder]
        for name in path.removeprefix(".").split("."):
            aim = getattr(aim, name)
        assert callable(aim), (holder, path)


def test_the_kubernetes_manifest_fits_the_defaults() -> None:
    (block,) = [each for each in blocks(OPERATE) if each.language == "yaml"]
    defaults = Settings()
    port = re.search(r"containerPort: (\d+)", block.text)
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", block.text)
    assert port is not None
    assert grace is not None
    assert int(port[1]) == defaults.base_port
    assert int(grace[1]) >= defaults.drain_s + defaults.terminate_s
    assert "clusterIP: None" in block.text
    assert set(re.findall(r"name: ([A-Z_]+)", block.text)) <= known_variables() | {"POD_IP"}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page, those of repeated headings left out."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    sorted({*PAGES, *ROOT.glob("docs/reference/*.md"), *ROOT.glob("*.md"), *ROOT.glob(".github/*.md")}),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_to_a_file_or_heading_leads_somewhere(page: Path) -> None:
    dead = []
    for path, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        aim = page.parent / path if path else page
        if "://" in path or path.startswith("mailto:"):
            continue
        if not aim.exists() or (anchor and aim.suffix == ".md" and anchor not in anchors(aim)):
            dead.append(f"{path}#{anchor}")
    assert dead == []


def test_the_list_of_examples_has_every_program() -> None:
    page = ROOT / "examples" / "README.md"
    listed = {path for path, _ in LINK.findall(page.read_text(encoding="utf-8"))}
    assert listed == {path.name for path in page.parent.iterdir() if path.name[0] not in "._"} - {page.name}


def test_what_troubleshooting_quotes_is_what_nodes_say() -> None:
    """Texts of errors and logs that the section quotes."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "fleetlm").rglob("*.py"))
    text = OPERATE.read_text(encoding="utf-8")
    for quoted in (
        "answers but does not dial back", "authentication failed", "wrong_cluster", "wrong_name",
        "connection closed", "left: ",
    ):  # fmt: skip
        assert quoted in text
        assert quoted in sources


def test_the_lines_that_the_page_about_logs_quotes_are_what_nodes_write() -> None:
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "fleetlm").rglob("*.py"))
    for quoted, written in {
        "the event loop has stood still for": "the event loop has stood still for %.1f s",
        "waits for room at": '"%s waits for %s: %s%s"',
        "; connected nodes stay connected, and lookups continue": "; connected nodes stay connected, and lo",
        "nodedown ...: ...": '"nodedown %s: %s"',
        "12 more lines like this in the last 10 s: ...": '"%s more %s like this in the last %.0f s: %s"',
    }.items():
        assert quoted in page
        assert written in sources
    [shown] = [block.text for block in blocks(ROOT / "docs" / "logs.md") if block.language == "json"]
    record = logging.LogRecord("chat.model", logging.WARNING, "", 0, "the cache is cold", (), None)
    formatter = JsonFormatter()
    formatter.node = "fleetlm@10.0.0.7"
    formatter.find_context = lambda: {"process": str(Pid(formatter.node, 1, 3)), "handler": "Model.answer"}
    written_fields = json.loads(formatter.format(record))
    assert [*json.loads(shown)] == [*written_fields]
    assert json.loads(shown)["level"] == written_fields["level"]


def test_the_error_that_testing_quotes_is_what_until_raises() -> None:
    error = NotReached("one.list() == names", 15, "it was False; names = ['fleetlm@10.0.0.2']")
    quoted = [block.text for block in all_blocks("text") if block.text.startswith("NotReached")]
    assert quoted == [f"NotReached: {error}\n"]
