"""docs/tutorial.md, followed word for word: its commands, and what they print. Takes a minute."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetlm.cli.demo.replicas import free_port
from tests.support.guides import ROOT, Block, blocks
from tests.support.patience import stretched
from tests.system.servers import BIN, environment

pytestmark = pytest.mark.long
PAGE = ROOT / "docs" / "tutorial.md"
FOLDER = ROOT / "examples" / "tutorial"
INSTALL, *STEPS = (block for block in blocks(PAGE) if block.language == "console")
ANSWER_S = 20.0


class Terminals:
    """Shells in the folder of the tutorial. The addresses and the port of the page are replaced."""

    def __init__(self, folder: Path) -> None:
        self.ip = f"127.{100 + os.getpid() // 251 % 40}.{os.getpid() % 251}.1"
        self.port = str(free_port(["127.0.0.1"]))
        kept = {"FLEETLM_NODE_PORT", "FLEETLM_REMOTE", "PYTHONPATH"}
        every = environment(self.ip, 14_370)
        self.env = {name: text for name, text in every.items() if name in kept or "FLEETLM" not in name}
        self.env["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.env["PYTHONUNBUFFERED"] = "1"
        self.env.pop("DNS_CLUSTER_QUERY", None)
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def moved(self, text: str) -> str:
        text = text.replace("http://127.0.0.1:8000", f"http://localhost:{self.port}")
        text = text.replace("127.0.0.1:4371", f"{self.ip}:14371").replace("127.0.0.1", self.ip)
        text = text.replace("localhost", "127.0.0.1")
        return text.replace("uvicorn ", f"uvicorn --port {self.port} ")

    def start(self, block: Block, step: str = "") -> tuple[subprocess.Popen[bytes], Path]:
        """Run a block's commands; ``step`` replaces the program that they start. Returns where they print."""
        log = self._folder / f"terminal{len(self._started)}.log"
        commands = self.moved("\n".join(block.commands))
        if step:
            commands = re.sub(r"step\w+:\w+$", step, commands)
        commands = re.sub(r"^(fleetlm|uvicorn|python|curl)", r"exec \1", commands, flags=re.MULTILINE)
        with log.open("wb") as out:
            started = subprocess.Popen(
                ["bash", "-euc", commands],
                cwd=FOLDER, env=self.env, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started.append(started)
        return started, log

    def run(self, block: Block) -> str:
        """Run a block's commands to their end, in the environment that the page has set before."""
        export = "export DNS_CLUSTER_QUERY=127.0.0.1 FLEETLM_NODE_IP=127.0.0.1"
        commands = [export, *block.commands]
        moved = Block(block.page, block.line, block.language, "".join(f"$ {line}\n" for line in commands))
        started, log = self.start(moved)
        started.wait(stretched(ANSWER_S))
        assert started.returncode == 0, log.read_text(encoding="utf-8")
        return log.read_text(encoding="utf-8")

    def stop_all(self) -> None:
        for each in self._started:
            each.terminate()
        for each in self._started:
            each.wait(stretched(ANSWER_S))
        self._started.clear()

    def end(self) -> None:
        for each in self._started:
            each.kill()
            each.wait()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    opened = Terminals(tmp_path)
    yield opened
    opened.end()


def until(log: Path, text: str) -> str:
    """Wait until a program has printed a text."""
    deadline = time.monotonic() + stretched(ANSWER_S)
    while text not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.02)
    return log.read_text(encoding="utf-8")


def two_workers(terminals: Terminals, step: str) -> list[tuple[subprocess.Popen[bytes], Path]]:
    started = []
    for block in (FIRST, SECOND):
        started.append(terminals.start(block, step))
        until(started[-1][1], "has a model")
    return started


ONE, FIRST, SECOND, ASK_2, ASK_3, ASK_4, ASK_5, WEB, CURL, CURL_503, WEB_7, TURN_1, TURN_2 = STEPS


def test_the_installation_is_the_one_that_the_folder_needs() -> None:
    assert INSTALL.commands[-1] == "cd examples/tutorial"
    assert "fastapi uvicorn" in INSTALL.commands[-2]


def test_1(terminals: Terminals) -> None:
    assert terminals.run(ONE) == ONE.output


def test_2(terminals: Terminals) -> None:
    for block, (_, log) in zip((FIRST, SECOND), two_workers(terminals, ""), strict=True):
        assert log.read_text(encoding="utf-8") == terminals.moved(block.output)
    shown = terminals.moved(ASK_2.output).splitlines()
    said = terminals.run(ASK_2).splitlines()
    assert said in (shown, swapped(shown))


def swapped(lines: list[str]) -> list[str]:
    """The same with the other worker first."""
    names = [line.partition(" ")[0] for line in lines]
    texts = [line.partition(" ")[2] for line in lines]
    return [f"{name} {text}" for name, text in zip(names[1:] + names[:1], texts, strict=True)]


def test_3(terminals: Terminals) -> None:
    _, log = terminals.start(FIRST, "step3_stream:worker")
    until(log, "has a model")
    assert terminals.run(ASK_3) == ASK_3.output
    said = until(log, "any more")
    assert said.splitlines()[1] in PAGE.read_text(encoding="utf-8")


def test_4(terminals: Terminals) -> None:
    (first, log), _ = two_workers(terminals, "step4_drain:worker")
    asking, answers = terminals.start(
        Block(PAGE, 0, "console", f"{FIRST.text.splitlines()[0]}\n{ASK_4.text}")
    )
    until(answers, "is complete")
    first.terminate()
    asking.wait(stretched(ANSWER_S))
    lines = answers.read_text(encoding="utf-8").splitlines()
    assert {line.partition("answer ")[2] for line in lines} == {f"{n} is complete" for n in range(20)}
    until(log, "has finished its answers, and leaves")
    first.wait(stretched(ANSWER_S))
    assert first.returncode == 0


def test_5(terminals: Terminals) -> None:
    two_workers(terminals, "step5_sessions:worker")
    said = terminals.run(ASK_5)
    (shown,) = (block for block in blocks(PAGE) if block.text.startswith("ada: "))
    pattern = re.escape(shown.text.splitlines()[2]).replace(re.escape("fleetlm@127.0.0.1:4371"), r"\S+")
    assert re.search(pattern, said)
    assert len(said.splitlines()) == 6


def test_6(terminals: Terminals) -> None:
    worker, log = terminals.start(FIRST, "step6_web:worker")
    until(log, "has a model")
    terminals.start(WEB)
    deadline = time.monotonic() + stretched(ANSWER_S)
    command = terminals.moved(CURL.commands[0])
    said = ""
    while said != terminals.moved(CURL.output):
        assert time.monotonic() < deadline, said
        said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False).stdout
        if said.startswith("{"):
            continue  # it does not know the worker yet
        said = re.sub(r"knew \d of", "knew 0 of", said)
    worker.terminate()
    worker.wait(stretched(ANSWER_S))
    gone = terminals.run(CURL_503)
    assert gone == CURL_503.output.removesuffix("\n")


def asked(terminals: Terminals, block: Block) -> None:
    """Ask until the front end answers as the page shows; which worker has the conversation is not told."""
    deadline = time.monotonic() + stretched(ANSWER_S)
    command, said, shown = terminals.moved(block.commands[0]), "", anywhere(block.output)
    while anywhere(said) != shown:
        assert time.monotonic() < deadline, said
        said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False).stdout
        assert said.startswith("{") or anywhere(said) in ("", shown), said  # 503: it knows no worker yet


def anywhere(said: str) -> str:
    return re.sub(r"kept by \S+:", "kept by a worker:", said)


def test_7(terminals: Terminals) -> None:
    started = two_workers(terminals, "step7_entities:worker")
    terminals.start(WEB_7)
    asked(terminals, TURN_1)
    for block, (worker, _) in zip((FIRST, SECOND), started, strict=True):
        worker.terminate()
        worker.wait(stretched(ANSWER_S))
        assert worker.returncode == 0
        _, log = terminals.start(block, "step7_entities:worker")
        until(log, "has a model")
        time.sleep(stretched(2.0))  # A reader needs longer for that: until the new worker is known.
    asked(terminals, TURN_2)
