"""The tutorial, followed word for word in a container with a checkout, Python and little else.

The console blocks are taken from the page, and so is what each prints. What stands between the blocks is
obeyed as far as `Reader.obey` knows it: which workers are started and stopped.
"""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.containers.cluster import BASE_IMAGE, BUILD_S, HERE, docker, eventually
from tests.support.guides import ROOT, Block, blocks
from tests.support.patience import stretched

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

TUTORIAL = ROOT / "docs" / "tutorial.md"
ANSWER_S, INSTALL_S = 30.0, 60.0
READER_S = 2.0
"""What a reader needs at least between two commands: until the nodes have met again."""
NAME = re.compile(r"fleetlm@127\.0\.0\.1(?::\d+)?")
STAYS = re.compile(r"^(fleetlm start .*:worker|uvicorn .*)$")
"""The last command of a terminal that goes on until it is stopped."""
FLEETING = re.compile(r'^(?:curl: .*|\{"title":"Service Unavailable".*)?$')
"""What is said while a server starts, or does not know the workers yet."""


def blind(text: str) -> str:
    """A text with its nodes named by the order of their appearance: which of two is first does not matter."""
    seen: dict[str, str] = {}
    return NAME.sub(lambda found: seen.setdefault(found[0], f"node {len(seen) + 1}"), text).strip("\n")


def is_like(said: str, example: str) -> bool:
    """Whether a text begins as an example does, whichever of the nodes it names, but one for each session."""
    nodes: dict[str, set[str]] = {}
    for line in said.splitlines():
        nodes.setdefault(line.partition(":")[0], set()).update(NAME.findall(line))
    begin = NAME.sub("a node", said).startswith(NAME.sub("a node", example))
    return begin and all(len(names) == 1 for names in nodes.values())


def lies_in(words: str, said: str) -> bool:
    """Whether a program has said these words."""
    return words in said


class Terminal:
    """One shell in the container."""

    def __init__(self, container: str, commands: list[str], log: Path) -> None:
        self._container = container
        self._pid_file = f"/tmp/{log.stem}.pid"
        self._log = log
        *before, last = commands
        script = "\n".join([f"echo $$ >{self._pid_file}", *before, f"exec {last}"])
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ["docker", "exec", container, "bash", "-euc", script],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait(self, limit_s: float = ANSWER_S) -> str:
        """Wait until the last command has ended. Returns what was printed."""
        try:
            self._process.wait(stretched(limit_s))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done in time; it said: {self.said()}") from None
        return self.said()

    def press_ctrl_c(self) -> str:
        """Interrupt the last command. Returns all that was printed."""
        docker("exec", self._container, "bash", "-c", f"kill -INT $(cat {self._pid_file})")
        return self.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Reader:
    """Follows a page in one container."""

    def __init__(self, container: str, folder: Path) -> None:
        self._container = container
        self._folder = folder
        self._opened: list[Terminal] = []
        self._workers: list[tuple[Terminal, Block, str | None]] = []
        """Those that run, each with the block that has started it and the program in place of the block's."""
        self._server: Terminal | None = None
        self._begin: list[str] = []
        """What a new terminal needs, since the page says it once: the environment, and the folder."""
        self._worker_blocks: list[Block] = []

    def open(self, commands: list[str]) -> Terminal:
        log = self._folder / f"terminal{len(self._opened)}.log"
        self._opened.append(Terminal(self._container, [*self._begin, *commands], log))
        return self._opened[-1]

    def close(self) -> None:
        for each in self._opened:
            each.close()

    def install(self, block: Block) -> None:
        """Run the first block, and remember what other terminals have to repeat of it."""
        self.open([*block.commands, "true"]).wait(INSTALL_S)
        self._begin = [line for line in block.commands if line.startswith((". ", "cd "))]

    def start_worker(self, block: Block, program: str | None = None) -> None:
        commands = block.commands
        if program is not None:
            commands = [re.sub(r"step\w+:worker$", program, line) for line in commands]
        worker = self.open(commands)
        said = eventually(worker.said, lambda text: "has a model" in text, within_s=stretched(ANSWER_S))
        if program is None:
            self._worker_blocks.append(block)
            assert said == block.output
        self._workers.append((worker, block, program))

    def stop_workers(self) -> None:
        while self._workers:
            self._workers.pop()[0].press_ctrl_c()

    def deploy(self) -> None:
        """Stop each worker and start it again, one after the other."""
        for _ in range(len(self._workers)):
            worker, block, program = self._workers.pop(0)
            worker.press_ctrl_c()
            self.start_worker(block, program)
            time.sleep(stretched(READER_S))

    def obey(self, prose: str) -> None:
        """Start or stop the workers that a paragraph is about, and look for what it says that they say."""
        told = " ".join(prose.split())
        for words in re.findall(r"(?:[Tt]he worker|It) says `([^`]+)`", told):
            for worker, *_ in self._workers[:1]:
                eventually(worker.said, partial(lies_in, words), within_s=stretched(ANSWER_S))
        if re.search(r"\b[Ss]top the workers?\b", told):
            self.stop_workers()
        if "stop the first worker with Ctrl-C and start it again" in told:
            self.deploy()
        for pattern, count in (
            (r"[Tt]wo workers (?:of|with) `(step\w+:worker)`", 2),
            (r"[Ww]ith `(step\w+:worker)` in one terminal", 1),
        ):
            for program in re.findall(pattern, told):
                self.stop_workers()
                for block in self._worker_blocks[:count]:
                    self.start_worker(block, program)

    def run(self, block: Block, shown: str, meanwhile: str) -> None:
        """Run a block, and compare what it prints with what the page shows."""
        export = self._worker_blocks[0].commands[:-1] if self._worker_blocks else []
        if STAYS.match(block.commands[-1]):
            if block.commands[-1].startswith("fleetlm"):
                self.start_worker(block)
            else:
                if self._server is not None:
                    self._server.press_ctrl_c()  # It has the port.
                self._server = self.open(block.commands)
            return
        if "Stop one of the workers" in meanwhile:
            asking = self.open([*export, *block.commands])
            eventually(asking.said, lambda said: "is complete" in said)
            leaving = self._workers.pop(0)[0].press_ctrl_c()
            assert "has finished its answers, and leaves" in leaving
            said = asking.wait()
            assert {line.partition(": ")[2] for line in said.splitlines()} == {
                f"answer {number} is complete" for number in range(20)
            }
            assert {re.sub(r"\d+ is", "N is", line) for line in blind(said).splitlines()} >= {
                re.sub(r"\d+ is", "N is", line) for line in blind(shown).splitlines()
            }
            return
        deadline = time.monotonic() + stretched(ANSWER_S)
        while True:
            said = self.open([*export, *block.commands]).wait()
            is_shown = blind(said) == blind(shown) or (not block.output and is_like(said, shown))
            if is_shown or not FLEETING.match(said.strip()) or time.monotonic() > deadline:
                break
        assert is_shown, f"{block}: {said}\nand not: {shown}"

    def follow(self, page: Path) -> int:
        """Go through a page. Returns how many blocks were run."""
        ran = 0
        first, *steps = (each for each in blocks(page) if each.language in ("console", "text"))
        self.install(first)
        lines = page.read_text(encoding="utf-8").splitlines()
        place = first.line
        for number, block in enumerate(steps):
            if block.language != "console":
                continue
            following = steps[number + 1] if number + 1 < len(steps) else None
            end = following.line if following else len(lines)
            after = "\n".join(lines[block.line + block.text.count("\n") + 1 : end])
            self.obey(prose_of("\n".join(lines[place : block.line - 1])))
            shown = block.output
            if not shown and following is not None and following.language == "text":
                shown = following.text
            self.run(block, shown, prose_of(after))
            place = block.line + block.text.count("\n") + 1
            ran += 1
        return ran


def prose_of(text: str) -> str:
    """The paragraphs of a text, without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(engine: None) -> Iterator[str]:
    """The image of a reader."""
    tag = f"fleetlm-reader:{uuid.uuid4().hex[:10]}"
    where = ("--file", str(HERE / "reader" / "Dockerfile"), "--build-arg", f"BASE_IMAGE={BASE_IMAGE}")
    docker("build", "--quiet", *where, "--tag", tag, str(ROOT), limit_s=BUILD_S)
    yield tag
    docker("image", "rm", "--force", tag, check=False)


def test_the_tutorial_prints_what_it_says_without_a_network(checkout: str, tmp_path: Path) -> None:
    offline = ("--network", "none", "--env", "PIP_NO_INDEX=1", "--env", "PIP_FIND_LINKS=/wheels")
    container = docker("run", "--detach", "--init", *offline, checkout).stdout.strip()
    reader = Reader(container, tmp_path)
    try:
        assert reader.follow(TUTORIAL) == 13
    finally:
        reader.close()
        docker("rm", "--force", container, check=False)
