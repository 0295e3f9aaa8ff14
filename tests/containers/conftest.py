"""The engine and the image that the container tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.containers.cluster import Cluster, docker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def why_no_engine() -> str | None:
    """Return why no container can be started here; None if one can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    for what, args in (
        ("Docker Compose v2", ["compose", "version"]),
        ("a Docker engine", ["version", "--format", "{{.Server.Version}}"]),
    ):
        try:
            done = docker(*args, check=False, limit_s=20)
        except subprocess.TimeoutExpired:
            return f"{what} does not answer within 20 s"
        if done.returncode != 0:
            return f"{what} does not answer: {(done.stderr or done.stdout).strip()}"
    return None


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip the tests without an engine; fail instead if ``REQUIRE_DOCKER`` is set."""
    reason = why_no_engine()
    if reason is not None:
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail(f"REQUIRE_DOCKER=1, but {reason}", pytrace=False)
        pytest.skip(f"{reason}; set DOCKER_HOST or start Docker")


@pytest.fixture(scope="session")
def image(engine: None) -> Iterator[str]:
    """Build the image of docker/Dockerfile with a tag of this run, and remove it afterwards."""
    tag = f"fleetlm-test:{uuid.uuid4().hex[:10]}"
    Cluster(tag).build()
    yield tag
    docker("image", "rm", "--force", tag, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder into which nodes in containers write."""
    found = tmp_path / "records"
    found.mkdir()
    found.chmod(0o777)  # the node in the container runs as another user
    return found
