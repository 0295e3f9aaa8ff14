"""The Compose kit with FastAPI: it starts as its first lines say, answers, scales and leaves in order."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, Self

import pytest

from tests.containers.cluster import BASE_IMAGE, BUILD_S, SHIPPED, docker, eventually, inspect

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

KIT = SHIPPED.parent / "compose.fastapi.yaml"
COOKIE = "k7Qm2vX9pLr4Tz8wNc3B"
UP_S = 120.0
ASK_S = 5.0
PREFIX = "fleetlm-fastapi"
BODY = {"turns": [{"role": "user", "content": "hello there"}]}


class Kit:
    """One project of the kit with its own name, image and port."""

    def __init__(self) -> None:
        self.project = f"{PREFIX}-{uuid.uuid4().hex[:10]}"
        self.image = f"{self.project}:test"
        self.env = {
            "NODE_IMAGE": self.image,
            "BASE_IMAGE": BASE_IMAGE,
            "FLEETLM_COOKIE": COOKIE,
            "HTTP_PORT": "127.0.0.1:0",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "3")
        docker("image", "rm", "--force", self.image, check=False)

    def compose(self, *args: str, limit_s: float = UP_S) -> str:
        command = ["compose", "--project-name", self.project, "--file", str(KIT), *args]
        return docker(*command, env=self.env, limit_s=limit_s).stdout

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def url(self, path: str) -> str:
        place = self.compose("port", "web", "8000").strip()
        return f"http://{place}{path}"


def ask(url: str, body: Any = None) -> Any:
    """Return the answer, or the status code if it is an error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ASK_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError as error:
        return str(error)


@pytest.fixture(scope="module")
def kit(engine: None) -> Iterator[Kit]:
    with Kit() as started:
        started.compose("build", "--quiet", limit_s=BUILD_S)
        started.compose("up", "--detach", "--wait", "--scale", "worker=2", "--scale", "web=1")
        yield started


def workers(kit: Kit) -> list[str]:
    """The workers that the front end reaches."""
    said = ask(kit.url("/workers"))
    return sorted(each["worker"] for each in said["workers"]) if isinstance(said, dict) else [str(said)]


def test_the_kit_answers_over_http_as_soon_as_it_is_up(kit: Kit) -> None:
    assert ask(kit.url("/ready")) == {"ready": True, "models": True}
    assert len(workers(kit)) == 2
    said = ask(kit.url("/title"), BODY)
    assert isinstance(said["title"], str)
    assert said["title"]


def test_its_containers_have_a_read_only_root_and_no_root_user(kit: Kit) -> None:
    for container in [*kit.containers("web"), *kit.containers("worker")]:
        assert inspect(container, ".HostConfig.ReadonlyRootfs") == "true"
        probe = "import os, pathlib; print(os.getuid()); pathlib.Path('/app/x').write_text('x')"
        done = docker("exec", container, "python", "-c", probe, check=False)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr
        assert done.stdout.strip() == "10001"
        assert docker("exec", container, "fleetlm", "remote", "Node.list()").returncode == 0


def test_doctor_finds_nothing_wrong(kit: Kit) -> None:
    (web,) = kit.containers("web")
    done = docker("exec", web, "fleetlm", "doctor", check=False)
    assert done.returncode == 0, done.stdout


def test_more_workers_are_found_and_fewer_fail_no_request(kit: Kit) -> None:
    kit.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "worker=4", "--scale", "web=1")
    assert len(eventually(lambda: workers(kit), lambda found: len(found) == 4)) == 4
    url = kit.url("/title")
    done = threading.Event()
    answers: list[Any] = []

    def load() -> None:
        while not done.is_set():
            answers.append(ask(url, BODY))

    clients = [threading.Thread(target=load) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        kit.compose("up", "--detach", "--no-recreate", "--scale", "worker=2", "--scale", "web=1")
        eventually(lambda: workers(kit), lambda found: len(found) == 2)
    finally:
        done.set()
        for client in clients:
            client.join()
    assert len(answers) > 2 * len(clients)
    assert [each for each in answers if not isinstance(each, dict) or "title" not in each] == []


def test_without_workers_a_request_is_refused_until_they_are_back(kit: Kit) -> None:
    kit.compose("stop", "worker")
    eventually(lambda: ask(kit.url("/title"), BODY), lambda said: said == 503)
    kit.compose("start", "worker")
    eventually(lambda: ask(kit.url("/title"), BODY), lambda said: isinstance(said, dict))


def test_a_front_end_that_is_stopped_leaves_in_order(kit: Kit) -> None:
    (web,) = kit.containers("web")
    kit.compose("stop", "web")
    assert inspect(web, ".State.ExitCode") == "143"  # uvicorn ends itself by the signal that it got
    said = docker("logs", web).stderr
    assert "Application shutdown complete" in said
    assert "Traceback" not in said
