"""How programs that are nodes end, as real processes: signals, what is finished before, exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.patience import stretched
from tests.system.test_cli_system import Place

PROGRAM = """
import asyncio, signal, sys
import fleetlm
from fleetlm import Actor, Child, Node, Process, Settings, Supervisor, handler
from fleetlm.runtime import leftovers

ALONE = Settings(node_ip="127.0.0.1", node_ports=(int(sys.argv[2]), int(sys.argv[2])), remote=False)

class Slow(Actor):
    async def terminate(self, reason):
        print("terminate", reason, flush=True)
    @handler
    async def work(self):
        print("ready", flush=True)
        await asyncio.sleep(1.0)
        return "finished"

class Broken(Actor):
    async def init(self):
        raise RuntimeError("no memory")

async def crash(process):
    await asyncio.sleep(0.1)
    raise RuntimeError("lost")

async def call(node):
    node.spawn(Slow, name="slow")
    print(await node.ref(Slow, "slow").call(Slow.work), flush=True)

async def main(node):
    calling = asyncio.create_task(call(node))
    try:
        await asyncio.Event().wait()
    finally:
        await calling
        print("cleaned up", flush=True)

async def raises(node):
    raise LookupError("nothing there")

async def answers(node):
    return 42

async def leaves(node):
    sys.exit(7)

async def stubborn(node):
    import time
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

async def leaves_a_task(node):
    leftovers.LEFTOVERS_END_S = 0.1
    globals()["kept"] = asyncio.create_task(ignore_cancellation(), name="refiner")
    await asyncio.sleep(0)

async def ignore_cancellation():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

def sets_up(node):
    node.spawn(crash, name="crash", essential=True)

async def embedded():
    async with Node.start(ALONE) as node:
        await main(node)

async def own_handler():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node.start(ALONE):
        print("ready", flush=True)
        await stop.wait()
    print("own", flush=True)

if __name__ == "__main__":
    tree = Supervisor([Child("broken", Broken)])
    match sys.argv[1]:
        case "run": fleetlm.run(main, ALONE)
        case "result": print(fleetlm.run(answers, ALONE, log_level=None))
        case "embedded": asyncio.run(embedded())
        case "own": asyncio.run(own_handler())
        case "tree": fleetlm.run(tree, ALONE)
        case "env": fleetlm.run(answers)
        case name: fleetlm.run(globals()[name], ALONE)
"""
SLOW_IMPORT = """
import time
print("importing", flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    try:
        yield made
    finally:
        made.end()


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(place: Place) -> Start:
    def popen(what: str, **env: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, "program.py", what, str(place.port)],
            cwd=place.folder, env=place.env | env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        place.started.append(started)
        return started

    return popen


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=stretched(10))
    return process.returncode, out, error


def after_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_run_finishes_a_call_before_it_leaves(start: Start, number: signal.Signals, code: int) -> None:
    program = start("run")
    after_line(program, "ready")
    program.send_signal(number)
    assert ended(program)[:2] == (code, "finished\nterminate shutdown\ncleaned up\n")


@pytest.mark.parametrize(
    ("what", "numbers", "codes", "out"),
    [
        ("run", (signal.SIGINT, signal.SIGTERM), (0,), "finished\nterminate shutdown\ncleaned up\n"),
        ("run", (signal.SIGTERM, signal.SIGINT), (0,), "finished\nterminate shutdown\ncleaned up\n"),
        # asyncio.run raises KeyboardInterrupt at its end, and Python then ends as by SIGINT.
        (
            "embedded",
            (signal.SIGINT, signal.SIGTERM),
            (-2, 130),
            "finished\ncleaned up\nterminate shutdown\n",
        ),
        ("embedded", (signal.SIGTERM, signal.SIGINT), (143,), "finished\ncleaned up\nterminate shutdown\n"),
    ],
)
def test_a_second_signal_of_the_other_kind_cuts_nothing(
    start: Start, what: str, numbers: tuple[signal.Signals, ...], codes: tuple[int, ...], out: str
) -> None:
    """Fly.io sends SIGINT, and SIGTERM five seconds later."""
    program = start(what)
    after_line(program, "ready")
    assert program.stderr is not None
    for number in numbers:
        program.send_signal(number)
        if what == "run":
            while f"received {number.name}" not in program.stderr.readline():
                pass
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.1)
    code, printed, _ = ended(program)
    assert code in codes
    assert printed == out


def test_a_second_signal_of_the_same_kind_ends_a_block_of_node_start_at_once(start: Start) -> None:
    program = start("embedded")
    after_line(program, "ready")
    program.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.1)
    program.send_signal(signal.SIGTERM)
    assert ended(program)[:2] == (143, "")


def test_a_second_signal_ends_run_at_once(start: Start) -> None:
    program = start("stubborn")
    after_line(program, "ready")
    program.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.2)
    program.send_signal(signal.SIGTERM)
    assert ended(program)[0] == 143


@pytest.mark.parametrize(
    ("what", "code", "out", "error"),
    [
        ("result", 0, "42\n", ""),
        ("raises", 1, "", "LookupError: nothing there"),
        ("leaves", 7, "", ""),
        ("leaves_a_task", 0, "", "ends without them: refiner in ignore_cancellation\n"),
        ("sets_up", 1, "", "stops: essential process crash (crash) ended: RuntimeError: lost"),
        ("tree", 1, "", "stops: supervisor root gave up\n"),
    ],
)
def test_the_exit_code_of_run_says_how_it_ended(
    start: Start, what: str, code: int, out: str, error: str
) -> None:
    ended_with = ended(start(what))
    assert ended_with[:2] == (code, out), ended_with
    assert error in ended_with[2]


def test_run_ends_with_78_where_a_setting_cannot_be_used(start: Start) -> None:
    code, _, error = ended(start("env", FLEETLM_DRAIN_MS="ten"))
    assert code == 78
    assert error.startswith("fleetlm: FLEETLM_DRAIN_MS is 'ten'; allowed: ")
    assert error.count("\n") == 1


def test_sigterm_in_a_block_of_node_start_finishes_a_call_and_every_block(start: Start) -> None:
    program = start("embedded")
    after_line(program, "ready")
    program.send_signal(signal.SIGTERM)
    code, out, error = ended(program)
    assert (code, out) == (143, "finished\ncleaned up\nterminate shutdown\n")
    assert "Traceback" not in error


def test_a_program_that_handles_sigterm_is_left_alone(start: Start) -> None:
    program = start("own")
    after_line(program, "ready")
    program.send_signal(signal.SIGTERM)
    assert ended(program)[:2] == (0, "own\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_modules_are_imported_ends_the_command(
    place: Place, number: signal.Signals, code: int
) -> None:
    program = place.popen("start", "slow_import:main")
    after_line(program, "importing")
    program.send_signal(number)
    assert ended(program)[0] == code


def test_the_first_process_of_a_container_ends_on_sigterm_while_it_imports(place: Place) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.getuid() != 0:
        pytest.skip("needs root and unshare")
    if subprocess.run([unshare, "-pf", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no further process namespaces")
    outer = subprocess.Popen(
        [unshare, "-pf", "--kill-child", sys.executable, "-m", "fleetlm", "start", "slow_import:main"],
        cwd=place.folder, env=place.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    place.started.append(outer)
    after_line(outer, "importing")
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    assert ended(outer)[0] == 143


def test_start_ends_although_a_task_ignores_its_cancellation(place: Place) -> None:
    (place.folder / "app.py").write_text(
        "import sys; sys.argv = ['', '', '4370']\nfrom program import leaves_a_task as main\n"
    )
    done = place.run("start", "app:main", "--log-level", "warning", FLEETLM_REMOTE="off")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith("ends without them: refiner in ignore_cancellation")


def test_start_ends_with_1_when_its_root_supervisor_gives_up(place: Place) -> None:
    (place.folder / "app.py").write_text(
        "import sys; sys.argv = ['', '', '4370']\n"
        "from program import Broken\n"
        "from fleetlm import Child, Supervisor\n"
        "async def main(node):\n"
        "    node.spawn(Supervisor([Child('model', Broken)]), name='root')\n"
        "    await node.wait_stopped()\n"
    )
    done = place.run("start", "app:main", "--log-level", "error", FLEETLM_REMOTE="off")
    assert done.returncode == 1
    gave_up, stops = done.stderr.splitlines()[-2:]
    assert "supervisor root gave up: more than 3 restarts in 5 s, the last of model (RuntimeError" in gave_up
    assert stops.endswith("stops: supervisor root gave up")
