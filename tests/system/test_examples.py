"""Every example runs by itself, as its docstring says, and shows what it promises."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.echo import echo
from examples.embed import BATCH, Frontend, pool
from examples.fanout import cache
from fleetlm import Node, Settings
from fleetlm.cli.demo.replicas import free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 5)]


def environment(**more: str) -> dict[str, str]:
    env = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}
    return {**env, "PYTHONPATH": str(ROOT), "EXAMPLE_PORT": str(free_port(ADDRESSES)), **more}


def run(name: str, logged: str = "") -> str:
    """Run an example. Returns what it printed. ``logged``: what its log must contain, if it logs anything."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        cwd=FOLDER,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stderr != "") == (logged != "")
    assert logged in done.stderr
    return done.stdout


def test_no_example_is_forgotten_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in EXAMPLES if f'run("{name}"' not in source] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_says_what_it_is_and_how_to_run_it_and_is_short(name: str) -> None:
    source = (FOLDER / name).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert f"python {name}" in docstring
    assert len(source.splitlines()) <= 150


def test_echo() -> None:
    said = run("echo.py")
    assert "fleetlm@127.0.0.1 is connected with ['fleetlm@127.0.0.2']" in said
    assert "reply: {'prompt': 'hello', 'tokens': (1, 2)}" in said


def test_fanout() -> None:
    said = run("fanout.py")
    assert "broadcast to 4 nodes" in said
    assert said.count("multicall to 4 nodes") == 2
    assert said.count("'llama-3'") == 7
    assert "fleetlm@127.0.0.4: NoConnection" in said


def test_batching() -> None:
    said = run("batching.py")
    assert "joined: fleetlm@127.0.0.2" in said
    assert "16 answers, the last one 'PROMPT 15'" in said
    (sizes,) = re.findall(r"sizes of the batches: \[([\d, ]+)\]", said)
    assert sum(map(int, sizes.split(", "))) == 16


def test_leaving() -> None:
    said = run("leaving.py")
    assert said.splitlines() == [
        "is two ready? True",
        "  two tells the load balancer; it still takes work",
        "  1 session(s) live on at fleetlm@127.0.0.1",
        "drained: True - is two ready? False",
        "lines of s1: 2",
        "  two closes its files",
        "  one tells the load balancer; it still takes work",
        "  one closes its files",
    ]


def test_test_worker() -> None:
    assert run("test_worker.py") == "2 passed\n"


def test_names() -> None:
    said = run("names.py").splitlines()
    assert said[:2] == ["fleetlm@127.0.0.2 in zone b leads", "first job, done in zone b"]
    assert "fleetlm@127.0.0.1 in zone a leads" in said
    assert "second job, done in zone a" in said
    gone = [line for line in said if "leads no more" in line]
    assert [line.partition(" ")[0] for line in gone] == ["fleetlm@127.0.0.2", "fleetlm@127.0.0.1"]


def test_supervised() -> None:
    said = run("supervised.py").splitlines()
    assert said[:2] == ["llama: hello", "ProcessDown: it may have run, and did"]
    assert "down: model (ValueError: llama cannot take that)" in said
    assert "llama: hello again" in said
    assert "{'specs': 1, 'active': 1, 'supervisors': 0, 'workers': 1}" in said
    assert said[-1] == "down: model (noconnection)"


def test_metrics() -> None:
    assert run("metrics.py").splitlines() == [
        "tokens_total 5.0",
        'fleetlm_call_seconds_count{outcome="ok"} 2.0',
        'fleetlm_handler_seconds_count{actor="Model",handler="infer"} 2.0',
        "fleetlm_processes 1.0",
    ]


def test_telemetry() -> None:
    assert run("telemetry.py").splitlines() == [
        "Model.infer ended: ok",
        "Model.infer ended: ok, after a wait",
        "Model.infer ended: cancelled",
        "Model.load ended: other",
        "dropped 1 message(s): no_process",
        "Model.load ended: other",
        "tree restarts model: MemoryError: out of memory",
        "{'CallTimeout': 1, 'NoProcess': 1, 'RemoteError': 1, 'ok': 2}",
    ]


def test_groups() -> None:
    said = run("groups.py").splitlines()
    assert said[:4] == [
        "6 workers on 3 nodes",
        "sent the model to 6 workers",
        "llama-3: line 1 of session 7",
        "llama-3: line 2 of session 7",
    ]
    assert said[4] == "fleetlm@127.0.0.3 has lost a worker: exited"
    assert re.fullmatch(r"\d+ of 12 sessions moved, only those of that node: True", said[5])
    assert said[6] == "4 workers left, each had 2 turns"


def test_entities() -> None:
    assert run("entities.py").splitlines() == [
        "30 sessions have 30 lines",
        "both hosts have some: True",
        "left behind: []",
        "all are on the other host: True",
        "each has 2 lines",
    ]


def test_leaders() -> None:
    assert run("leaders.py").splitlines() == [
        "it runs on one of the nodes: True",
        "all nodes know where: True",
        "left behind: []",
        "it has moved, and its epoch has grown: True",
        "slots of the cron job, each once: True",
    ]


def test_threads() -> None:
    said = run("threads.py").splitlines()
    assert re.fullmatch(r"200 calls from 8 threads in \d+ ms", said[0])
    assert said[1:] == ["llama: 100", "llama: never ran (NoConnection)"]


def test_blocking() -> None:
    said = run("blocking.py").splitlines()
    assert said[:3] == [
        "8 queries of 200 ms took less than a second",
        "meanwhile the node was alive",
        "primes: 9592",
    ]
    assert said[3] == "('primes', -1) → ValueError: primes are positive"
    assert said[4].startswith(
        "('crash', 0) → WorkerDied: the worker process for out_of_memory failed: it ended"
    )
    assert said[5] == "('primes', 10) → 4"


def test_from_erlang() -> None:
    assert run("from_erlang.py").splitlines() == [
        "15", "2 members", "handle_info: raw", "True", "down: killed", "10",
    ]  # fmt: skip


def test_from_celery() -> None:
    assert run("from_celery.py").splitlines() == [
        "sent to ada@example.org", "sent to alan@example.org", "2 workers are left",
    ]  # fmt: skip


def test_from_ray() -> None:
    said = run("from_ray.py").splitlines()
    assert said == ["['a', 'b', 'c']", "d", "e", "f", "[['g', 'h'], ['g', 'h']]"]


def test_remote_spawn() -> None:
    said = run("remote_spawn.py").splitlines()
    assert said[:2] == ["ann runs on fleetlm@127.0.0.2: True", "1 2 ['hello', 'again']"]
    assert said[2:4] == ["down: ann (normal)", "down: bob (ValueError: an empty line from bob)"]
    assert said[4].startswith("down: wrong arguments (TypeError: session() takes 2 positional arguments")
    assert said[5].startswith("never ran: fleetlm@127.0.0.2 has no factory 'sesion'")
    assert said[6:] == ["down: last (shutdown)"]


def test_embed() -> None:
    said = run("embed.py")
    assert re.search(r"PROMPT 0 \(on fleetlm@127\.0\.0\.\d, in a batch of \d\)", said)
    assert "on 3 nodes" in said
    assert "exit codes: [0, 0, 0]" in said


def test_sessions() -> None:
    said = run("sessions.py", logged="handler append of sessions (Sessions) raised ValueError")
    assert "never ran (NoProcess)" in said
    assert "then it ran, once: 1 line" in said
    assert "the session: ['hello', 'again']" in said
    assert "it ran and raised ValueError: an empty line for s1" in said
    assert "it may have run: CallTimeout" in said
    assert "archive('s1') was cancelled: its caller has given up" in said
    assert "sessions end (shutdown) with 1 session" in said
    assert said.count("never ran (NoConnection)") == 3
    assert "given up: not connected to fleetlm@127.0.0.2" in said


@pytest.mark.deadline(40)
def test_echo_is_what_the_image_runs() -> None:
    command = [sys.executable, "-m", "fleetlm", "start", "echo:main"]
    env = environment(PYTHONPATH=f"{ROOT}{os.pathsep}{FOLDER}", FLEETLM_REMOTE="off")
    env["FLEETLM_NODE_PORT"] = env["EXAMPLE_PORT"]
    worker = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert worker.stderr is not None
        lines = iter(worker.stderr.readline, "")
        assert any("listens on" in line for line in lines), "it ended before it listened"
        worker.terminate()
        worker.communicate(timeout=15)
        assert worker.returncode == 0
    finally:
        worker.kill()
        worker.wait()


# ── their processes, on a node without peers ─────────────────────────────────────────────────────


def lone_node() -> Settings:
    port = free_port(["127.0.0.1"])
    return Settings(node_ip="127.0.0.1", node_ports=(port, port), remote=False)


async def test_echo_survives_what_it_cannot_answer() -> None:
    async with Node.start(lone_node().replace(debug=True)) as node:
        node.spawn(echo, name="echo")
        await node.send("echo", "nothing to answer")
        assert await node.call("echo", [1, {"two": (3,)}]) == [1, {"two": (3,)}]


async def test_a_cache_answers_only_what_it_understands() -> None:
    async with Node.start(lone_node()) as node:
        node.spawn(cache, name="cache")
        await node.send("cache", ("put", "k", "v"))
        await node.send("cache", "nonsense")
        replies = await node.multicall(["cache", "cache"], ("get", "k"))
        assert replies == ["v", "v"]
        (failure,) = await node.multicall(["cache"], "nonsense")
        assert "not understood" in str(failure)


async def test_a_pool_batches_and_its_frontend_waits_for_one() -> None:
    async with Node.start(lone_node()) as node:
        frontend = Frontend(node)
        early = asyncio.create_task(frontend.infer("early"))
        await asyncio.sleep(0.02)
        node.spawn(pool, name="pool")
        assert await early == ("EARLY", node.name, 1)
        replies = await asyncio.gather(*(frontend.infer(f"p{n}") for n in range(2 * BATCH)))
        assert [text for text, _, _ in replies] == [f"P{n}" for n in range(2 * BATCH)]
        assert max(size for _, _, size in replies) == BATCH


def test_tracing() -> None:
    assert run("tracing.py").splitlines() == [
        "(r-17) all nodes are here",
        "GET /answer (internal)",
        "  Front/answer (client) on fleetlm@127.0.0.1",
        "    Front/answer (server) on fleetlm@127.0.0.2",
        "      Model/complete (client) on fleetlm@127.0.0.2 with 5 items",
        "        Model/complete (server) on fleetlm@127.0.0.3 with 5 items",
        "          look into the cache (internal)",
    ]
