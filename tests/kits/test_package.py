"""What a release would publish: the files in wheel and sdist, what they say about themselves, and their use.

Everything is installed from the wheel into environments of its own, away from the checkout.
"""

from __future__ import annotations

import email.message
import email.parser
import os
import subprocess
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kits.conftest import find_tool
from tests.support.guides import ROOT
from tests.support.patience import stretched

pytestmark = [pytest.mark.kits, pytest.mark.deadline(60)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_WORK = {"dev", "browser", "kits", "site", "fuzz"}
"""Extras of those who work on fleetlm; the others are for its users."""
EXTRAS = sorted(PROJECT["optional-dependencies"].keys() - FOR_WORK)
NOT_SHIPPED = (".ci/", ".git", ".dockerignore", ".pre-commit-config.yaml")
"""Of the repository and its services, not of the project: an sdist has no hidden files."""
STEP_S = 50.0


class Built(NamedTuple):
    """The two files of a release."""

    wheel: Path
    sdist: Path


def tracked(*folders: str) -> set[str]:
    """The files of the repository, but those that are not committed."""
    command = ["git", "ls-files", "-z", "--", *folders]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return {path for path in done.stdout.split("\0") if path and (ROOT / path).exists()}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tool: Callable[..., str]) -> Built:
    """Build the sdist, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    tool("uv", "build", "--quiet", "--out-dir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="session")
def metadata(built: Built) -> email.message.Message:
    with zipfile.ZipFile(built.wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(path).decode())


# ── the files ────────────────────────────────────────────────────────────────────────────────────


def test_the_wheel_has_the_package_its_command_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if name.startswith("fleetlm/")}
    assert package == tracked("fleetlm")
    assert {"fleetlm/py.typed", "fleetlm/__init__.pyi", "fleetlm/ops/static/index.html"} <= package
    folder = f"fleetlm-{PROJECT['version']}"
    assert names - package == {
        f"{folder}.data/scripts/fleetlm",
        *(f"{folder}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
        f"{folder}.dist-info/licenses/LICENSE",
    }


def test_the_sdist_has_all_that_its_users_need_to_test_it(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path for path in tracked() if not path.startswith(NOT_SHIPPED)}
    assert wanted <= names, sorted(wanted - names)
    assert names - wanted <= {"PKG-INFO", ".gitignore"}


def test_the_wheel_of_the_checkout_is_that_of_the_sdist(
    built: Built, tmp_path: Path, tool: Callable[..., str]
) -> None:
    tool("pyproject-build", "--wheel", "--outdir", tmp_path, ROOT)
    (again,) = tmp_path.glob("*.whl")
    assert again.read_bytes() == built.wheel.read_bytes()


# ── what they say about themselves ───────────────────────────────────────────────────────────────


def test_an_index_would_accept_the_files(built: Built, tool: Callable[..., str]) -> None:
    tool("twine", "check", "--strict", *built)


def test_the_metadata_is_that_of_the_project(metadata: email.message.Message) -> None:
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra", [])) == PROJECT["optional-dependencies"].keys()
    assert len(metadata.get_all("Requires-Dist", [])) >= len(PROJECT["dependencies"])


@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_the_extras_of_users_can_be_installed_together(
    python: str, built: Built, tmp_path: Path, tool: Callable[..., str]
) -> None:
    wanted = tmp_path / "wanted.in"
    wanted.write_text(f"fleetlm[{','.join(EXTRAS)}] @ {built.wheel.as_uri()}\n", encoding="utf-8")
    said = tool("uv", "pip", "compile", "--quiet", "--universal", "--python-version", python, wanted)
    for name in ("pyzmq", "msgpack", "dnspython", "uvloop", "textual", "starlette", "uvicorn"):
        assert f"\n{name}==" in f"\n{said}"


# ── that they work ───────────────────────────────────────────────────────────────────────────────


class Place:
    """An environment with the wheel, in which commands run away from the checkout."""

    def __init__(self, folder: Path, wheel: Path, extra: str = "") -> None:
        self.folder = folder
        uv = find_tool("uv")
        wanted = f"fleetlm[{extra}] @ {wheel.as_uri()}" if extra else f"fleetlm @ {wheel.as_uri()}"
        for command in (
            [uv, "venv", "--quiet", str(folder / "env")],
            [uv, "pip", "install", "--quiet", "--python", str(folder / "env"), wanted],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
            assert done.returncode == 0, done.stderr
        self.bin = folder / "env" / "bin"
        kept = ("HOME", "LANG", "TMPDIR", "OPENBLAS_CORETYPE")
        self.env = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "XDG_RUNTIME_DIR": str(folder),
            "FLEETLM_NODE_PORT": "14370",
        }

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder, env=self.env | env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=stretched(STEP_S), check=False,
        )  # fmt: skip

    def python(self, text: str) -> str:
        """What a program prints, or the last line of its error."""
        done = self.run("python", "-c", text)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def bare(built: Built) -> Iterator[Place]:
    """The wheel without extras."""
    with tempfile.TemporaryDirectory(prefix="fleetlm-wheel-") as folder:
        yield Place(Path(folder), built.wheel)


NODE = """
async def main(node):
    print("runs", flush=True)
    await node.wait_stopped()
"""


@pytest.fixture
def node(bare: Place) -> Iterator[str]:
    """A node that runs from the wheel alone; its name."""
    ip = f"127.{180 + os.getpid() // 251 % 40}.{os.getpid() % 251}.1"
    (bare.folder / "worker.py").write_text(NODE, encoding="utf-8")
    bare.env |= {"FLEETLM_NODE_IP": ip, "DNS_CLUSTER_QUERY": ip}
    command = [str(bare.bin / "fleetlm"), "start", "--log-level", "warning", "worker:main"]
    with subprocess.Popen(
        command, cwd=bare.folder, env=bare.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "runs\n"
            yield f"fleetlm@{ip}"
        finally:
            running.terminate()
            running.wait(stretched(STEP_S))


def test_the_commands_work_without_any_extra(bare: Place, node: str) -> None:
    deadline = time.monotonic() + stretched(STEP_S)
    while (health := bare.run("fleetlm", "health", "--ready")).returncode:
        assert time.monotonic() < deadline, health.stderr
    assert bare.run("fleetlm", "remote", "node.name").stdout.strip() == repr(node)
    doctor = bare.run("fleetlm", "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    top = bare.run("fleetlm", "top", "--once")
    assert node in top.stdout, top.stderr
    assert bare.run("fleetlm", "--version").stdout.startswith(f"fleetlm {PROJECT['version']} ")


NUMPY = """
import numpy
from fleetlm.wire.codec import Codec
codec = Codec()
print(*codec.unpack(codec.pack_value(numpy.arange(3))))
"""
UVLOOP = """
import asyncio, fleetlm
async def main(node):
    print(asyncio.get_running_loop())
fleetlm.run(main, log_level="warning")
"""
CRON = """
from fleetlm.leaders.schedule import slots_of
print(slots_of("*/5 * * * *", None))
"""
POSTGRES = """
from fleetlm.stores.postgres import PostgresStore
print(PostgresStore("host=/nowhere"))
"""
USES = {
    "asgi": "from fleetlm import asgi; print(asgi.sse)",
    "cron": CRON,
    "metrics": "from fleetlm.metrics import NodeMetrics; print(NodeMetrics)",
    "numpy": NUMPY,
    "postgres": POSTGRES,
    "ops": "from fleetlm.ops import application, listener, questions; print(listener.Listener)",
    "shell": "from fleetlm.remote.shell import ToolkitEditor; import prompt_toolkit; print(ToolkitEditor)",
    "top": "from fleetlm.cli.top.app import TopApp; print(TopApp)",
    "tracing": "from fleetlm import tracing; print(tracing.instrument)",
    "uvloop": UVLOOP,
}
"""What each extra is for, as a program that prints something."""
SAID_WITHOUT = {
    "asgi": "fleetlm.asgi needs Starlette: pip install 'fleetlm[asgi]'",
    "cron": "needs the package cronsim: pip install 'fleetlm[cron]'",
    "metrics": "fleetlm.metrics needs prometheus-client: pip install 'fleetlm[metrics]'",
    "postgres": "PostgresStore needs psycopg: install fleetlm[postgres]",
    "tracing": "fleetlm.tracing needs opentelemetry-api: pip install 'fleetlm[tracing]'",
}
"""What a program is told that imports a module without its extra."""


def test_every_extra_of_users_is_tried() -> None:
    assert sorted(USES) == EXTRAS


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_alone_brings_what_it_promises(extra: str, built: Built) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetlm-extra-") as folder:
        place = Place(Path(folder), built.wheel, extra)
        done = place.run("python", "-W", "error", "-c", USES[extra])
        assert (done.returncode, done.stderr) == (0, "")
        assert extra != "uvloop" or "uvloop" in done.stdout
        for other, said in SAID_WITHOUT.items():
            if extra not in (other, "ops"):  # which brings those of metrics and asgi
                assert said in place.python(USES[other])


def test_without_extras_the_error_says_what_to_install(bare: Place) -> None:
    for extra, said in SAID_WITHOUT.items():
        assert said in bare.python(USES[extra])
    ops = bare.run("fleetlm", "start", "worker:main", FLEETLM_OPS="127.0.0.1:0")
    assert ops.returncode == 78
    assert "pip install 'fleetlm[ops]'" in ops.stderr
    assert "Traceback" not in ops.stderr
