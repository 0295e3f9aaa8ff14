"""The programs of README and the first pages run as they are pasted, and print what the pages say."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.quickstart.tests import test_leader, test_partition  # run by tests/sim
from fleetlm.cli.demo.replicas import free_port
from tests.support.guides import OPERATE, ROOT, START, Block, quickstart, section, shown_with

SHOWN_ADDRESSES = "127.0.0."
PROGRAMS = ("hello.py", "outcomes.py", "actors.py")
ANSWER_S = 20.0


class Terminal:
    """A shell in a fresh folder, with the environment of a reader who has just activated `.venv`.

    Addresses that no other test uses replace those of the pages, so that `fleetlm remote` finds these nodes.
    """

    def __init__(self, folder: Path, runtime: str) -> None:
        programs = folder / ".bin"
        programs.mkdir()
        for name, arguments in (("python", ""), ("fleetlm", "-m fleetlm")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            program.chmod(0o755)
        self.folder = folder
        self.addresses = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250}."
        port = free_port([f"{self.addresses}{number}" for number in (1, 2)] + ["127.0.0.1"])
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}
        self.env = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "XDG_RUNTIME_DIR": runtime,
            "FLEETLM_NODE_PORT": str(port),
        }
        self._started: list[subprocess.Popen[str]] = []

    def moved(self, text: str) -> str:
        return text.replace(SHOWN_ADDRESSES, self.addresses)

    def start(self, block: Block) -> subprocess.Popen[str]:
        """Run the block's commands; what they print is in ``stdout``, errors included."""
        started = subprocess.Popen(
            ["bash", "-euc", self.moved("\n".join(block.commands))],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(started)
        return started

    def run(self, command: str) -> str:
        """What one command prints. It must succeed, within `ANSWER_S`."""
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End whatever still runs."""
        for each in self._started:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
            each.communicate()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with tempfile.TemporaryDirectory(prefix="fleetlm-readme-") as runtime:  # A socket's path must be short.
        terminal = Terminal(tmp_path, runtime)
        try:
            yield terminal
        finally:
            terminal.close()


def line_of(program: subprocess.Popen[str]) -> str:
    """The next line that a program prints; a test that waits for ever is ended by its deadline."""
    assert program.stdout is not None
    return program.stdout.readline()


def interrupt(program: subprocess.Popen[str]) -> str:
    """Press Ctrl-C, which reaches every process of the terminal; what was printed after it."""
    os.killpg(program.pid, signal.SIGINT)
    rest, _ = program.communicate(timeout=ANSWER_S)
    assert program.returncode == 0, rest
    return rest


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_its_page_says(terminal: Terminal, name: str) -> None:
    (terminal.folder / name).write_text(quickstart()[name].text)
    assert terminal.run(f"python {name}") == shown_with(f"python {name}").output


@pytest.mark.deadline(60)
def test_two_terminals_are_one_cluster_as_their_page_says(terminal: Terminal) -> None:
    (terminal.folder / "cluster.py").write_text(quickstart()["cluster.py"].text)
    one, two, three = section(START, "Two terminals, one cluster")
    running, greeted, gone = terminal.moved(one.output).splitlines(keepends=True)

    first = terminal.start(one)
    assert line_of(first) == running
    second = terminal.start(two)
    assert line_of(first) == greeted
    before, after = terminal.moved(two.output).split("^C\n")
    assert [line_of(second) for _ in before.splitlines()] == before.splitlines(keepends=True)

    (look,) = three.commands
    assert terminal.run(terminal.moved(look)) == terminal.moved(three.output)
    check_operations(terminal)

    assert interrupt(second) == after
    assert line_of(first) == gone
    assert interrupt(first) == ""


def check_operations(terminal: Terminal) -> None:
    """Each expression of the section on looking inside works in the first node.

    The one for a key needs a kind, which this cluster has not; `sim/test_entities_seen` asks for one.
    """
    (block,) = section(OPERATE, "Look inside")
    commands = [shlex.split(command, comments=True) for command in block.commands]
    expressions = [words[2] for words in commands if words[:2] == ["fleetlm", "remote"] and len(words) > 2]
    expressions = [each for each in expressions if not each.startswith("Entities.where")]
    assert len(expressions) >= 6
    node = f"{terminal.addresses}1"
    for expression in expressions:
        assert terminal.run(f"fleetlm remote --node fleetlm@{node} {shlex.quote(expression)}") != ""


def test_every_program_of_the_first_pages_is_run() -> None:
    tests = {f"{module.__name__.rpartition('.')[2]}.py" for module in (test_leader, test_partition)}
    assert quickstart().keys() == {*PROGRAMS, "cluster.py", *tests}
