"""examples/chat for real: two front ends of uvicorn, inference workers, and clients that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.patience import stretched
from tests.system.cluster_tools import ROOT, clean_env
from tests.system.servers import Server, environment, served

CHAT = ROOT / "examples" / "chat"
FRONTS = "uvicorn --workers 2 --port {port} --log-level warning web:app"
TOKEN_S = "0.02"


@pytest.fixture
def ip() -> str:
    """An address of this test, so that its nodes find no others."""
    return f"127.{150 + os.getpid() // 251 % 40}.{os.getpid() % 251}.1"


class Workers:
    """Inference workers: nodes of `fleetlm start`."""

    def __init__(self, ip: str, folder: Path) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self._env = environment(ip, 14_370) | {"CHAT_TOKEN_S": TOKEN_S}
        self._folder = folder
        self._count = 0

    def start(self) -> None:
        self._count += 1
        with (self._folder / f"worker{self._count}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fleetlm", "start", "model:main"],
                    cwd=CHAT, env=self._env, stdout=log, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

    async def replace_oldest(self, client: httpx.AsyncClient) -> int:
        """Stop the oldest worker by SIGTERM when a new one is ready. Returns its exit code."""
        self.start()
        await until_known(client, len(self.running))
        oldest = self.running.pop(0)
        oldest.terminate()
        return await asyncio.to_thread(oldest.wait, stretched(20))

    def end(self) -> None:
        for worker in self.running:
            worker.kill()
            worker.wait()


@contextlib.contextmanager
def chat(ip: str, folder: Path, workers: int = 2) -> Iterator[tuple[Server, Workers]]:
    inference = Workers(ip, folder)
    with served(FRONTS, ip, folder, CHAT) as server:
        try:
            for _ in range(workers):
                inference.start()
            yield server, inference
        finally:
            inference.end()


@contextlib.asynccontextmanager
async def client_of(server: Server, workers: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client, as soon as both front ends know all workers."""
    limits = httpx.Limits(max_keepalive_connections=0)  # each request meets any of the two front ends
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=stretched(20)) as client:
        await until_known(client, workers)
        yield client


async def until_known(client: httpx.AsyncClient, workers: int, fronts: int = 2) -> None:
    complete: set[str] = set()
    async with asyncio.timeout(stretched(20)):
        while len(complete) < fronts:
            with contextlib.suppress(httpx.TransportError):
                answer = (await client.get("/workers")).json()
                if len(answer["workers"]) == workers:
                    complete.add(answer["front"])
            await asyncio.sleep(0.02)


def said(session: str, words: int) -> dict[str, Any]:
    return {"session": session, "content": "word " * words}


async def ask(client: httpx.AsyncClient, session: str, words: int) -> list[Any]:
    answer = await client.post("/chat", json=said(session, words))
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def states(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/workers")).json()["workers"]
    return found


@pytest.mark.deadline(60)
async def test_no_request_is_lost_while_workers_are_replaced_and_a_client_that_goes_is_noticed(
    ip: str, tmp_path: Path
) -> None:
    with chat(ip, tmp_path) as (server, workers):
        async with client_of(server, 2) as client:
            done: list[list[Any]] = []
            replaced = asyncio.Event()

            async def ask_on(number: int) -> None:
                while not replaced.is_set():
                    done.append(await ask(client, f"s{number}", 10))

            asking = [asyncio.create_task(ask_on(number)) for number in range(4)]
            while len(done) < 4:  # Sessions have no owner until their hosts know all others.
                await asyncio.sleep(0.01)
            codes = [await workers.replace_oldest(client) for _ in range(2)]
            replaced.set()
            await asyncio.gather(*asking)
            assert codes == [0, 0]  # nothing was cut
            assert len(done) > 8
            assert [answer for answer in done if answer[-1] is not None or len(answer) != 14] == []
            kept = [(await client.get(f"/sessions/s{number}")).json() for number in range(4)]
            assert sum(map(len, kept)) == 2 * len(done), "each answer is in its conversation once"

            await until_known(client, 2)
            async with client.stream("POST", "/chat", json=said("long", 1_000)) as answer:
                lines = answer.aiter_lines()  # held: httpx closes the response when its iterator is dropped
                async for line in lines:
                    if '"token"' in line:
                        break
                assert sum(each["running"] for each in await states(client)) == 1
            gone = asyncio.get_running_loop().time()
            while sum(each["running"] for each in await states(client)):
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - gone < stretched(1.0)
            assert sum(each["cancelled"] for each in await states(client)) == 1
        log = server.stop()
        assert server.process.returncode == 0, log
        assert "Traceback" not in log


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    "command",
    [
        "uvicorn --port {port} --log-level warning web:app",
        pytest.param(
            "gunicorn --worker-class asgi --log-level warning --bind 127.0.0.1:{port} web:app",
            marks=pytest.mark.long,
        ),
    ],
    ids=["uvicorn", "gunicorn"],
)
async def test_a_front_end_that_leaves_ends_its_streams_in_time_and_says_so(
    command: str, ip: str, tmp_path: Path
) -> None:
    workers = Workers(ip, tmp_path)
    with served(command, ip, tmp_path, CHAT, FLEETLM_DRAIN_MS="1000") as server:
        try:
            workers.start()
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url, timeout=stretched(20)) as client:
                await until_known(client, 1, fronts=1)
                lines: list[str] = []
                async with client.stream("POST", "/chat", json=said("s", 1_000)) as answer:
                    async for line in answer.aiter_lines():
                        if not lines:
                            server.process.send_signal(signal.SIGTERM)
                        lines.append(line)
            data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
            assert "event: error" in lines
            assert (data[-1]["kind"], data[-1]["retry"]) == ("draining", "if_idempotent")
            await asyncio.to_thread(server.process.wait, stretched(10))
            assert "Traceback" not in server.log()
        finally:
            workers.end()


@pytest.mark.deadline(60)
def test_its_own_tests_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=CHAT,
        env=clean_env() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
