"""What comes from others is pinned: actions by commit, packages by hash, the base image by digest."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.guides import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASE = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
LOCKS = [DOCKER / "requirements.txt", DOCKER / "build.txt", DOCKER / "web.txt"]
DIGEST = "sha256:" + "0123456789abcdef" * 4
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
INSTALLED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["uvloop"]]
WEB = [
    line.partition("  #")[0]
    for line in (DOCKER / "web.in").read_text(encoding="utf-8").splitlines()
    if line[:1] != "#"
]


def locked(path: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirements of a lock, by name, with their hashes."""
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for entry in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").replace("\\\n", " ")):
        text = "\n".join(line for line in entry.splitlines() if not line.strip().startswith("#"))
        if text.strip():
            wanted = Requirement(text.split(" --hash")[0])
            found[wanted.name] = wanted, re.findall(r"--hash=(\S+)", text)
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_commit(workflow: Path) -> None:
    uses = re.findall(r"uses: *(.+)", workflow.read_text(encoding="utf-8"))
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", one), one


def test_an_action_has_one_commit_in_all_workflows() -> None:
    pins: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for action, commit in re.findall(r"uses: *([\w./-]+)@(\S+)", workflow.read_text(encoding="utf-8")):
            pins.setdefault(action, set()).add(commit)
    assert {action for action, commits in pins.items() if len(commits) > 1} == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_requirement_has_hashes(lock: Path) -> None:
    found = locked(lock)
    assert len(found) >= 4
    for name, (wanted, hashes) in found.items():
        assert re.fullmatch(r"==[\w.]+", str(wanted.specifier)), name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name


@pytest.mark.parametrize(
    ("lock", "asked"),
    [
        (LOCKS[0], INSTALLED),
        (LOCKS[1], PYPROJECT["build-system"]["requires"]),
        (LOCKS[2], WEB),
    ],
    ids=["requirements", "build", "web"],
)
def test_the_lock_has_what_the_project_asks_for(lock: Path, asked: list[str]) -> None:
    found = locked(lock)
    for text in asked:
        wanted = Requirement(text)
        version = str(found[wanted.name][0].specifier).removeprefix("==")
        assert wanted.specifier.contains(Version(version)), f"{text}, locked {version}: run `make lock`"


def test_the_image_installs_what_is_locked_and_nothing_else() -> None:
    installs = re.findall(r"/pip (?:--python \S+ )?(?:install|wheel) ([^\n&]+)", DOCKERFILE)
    assert len(installs) == 5
    for options in installs:
        assert "--require-hashes" in options or "--no-deps" in options, options


def test_a_release_publishes_without_a_password_and_says_where_it_came_from() -> None:
    assert "secrets." not in RELEASE
    assert "password" not in RELEASE.partition("name: release")[2]
    build, publish = RELEASE.split("\n  publish:\n")
    assert "permissions: {}" in build
    assert "id-token: write" not in build
    assert "id-token: write" in publish
    assert "attest-build-provenance@" in publish
    assert "attestations: true" in publish
    assert "environment: release" in publish
    assert "run:" not in publish, "nothing of the repository runs where it could publish"


def test_a_release_takes_tools_and_the_base_image_as_they_are_pinned() -> None:
    assert "--require-hashes --requirement docker/build.txt" in RELEASE
    assert "docker/pin-base --check" in RELEASE


def test_a_release_is_made_from_main_and_its_wheel_was_run() -> None:
    build, publish = RELEASE.split("\n  publish:\n")
    assert 'git merge-base --is-ancestor "$GITHUB_SHA" origin/main' in build
    assert build.index("fetch-depth: 0") < build.index("merge-base") < build.index("hatchling build")
    assert (
        build.index("hatchling build")
        < build.index('bin/fleetlm" --version')
        < build.index("upload-artifact")
    )
    assert "needs: build" in publish


# ── docker/pin-base ──────────────────────────────────────────────────────────────────────────────


class Pinning:
    """A copy of docker/ and a `docker` that says which digest a tag has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "docker"
        self.folder.mkdir()
        shutil.copy(DOCKER / "pin-base", self.folder)
        tag = re.search(r"^ARG BASE_IMAGE=([^@\n]+)", DOCKERFILE, re.MULTILINE)
        assert tag is not None
        self.tag = tag[1]
        self.write(self.tag)
        self.bin = folder / "bin"
        self.bin.mkdir()

    def write(self, base: str) -> None:
        text = re.sub(r"^ARG BASE_IMAGE=.*$", f"ARG BASE_IMAGE={base}", DOCKERFILE, flags=re.MULTILINE)
        (self.folder / "Dockerfile").write_text(text, encoding="utf-8")

    def base(self) -> str:
        text = (self.folder / "Dockerfile").read_text(encoding="utf-8")
        (found,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", text, re.MULTILINE)
        return str(found)

    def run(self, *args: str, digest: str = DIGEST) -> subprocess.CompletedProcess[str]:
        fake = self.bin / "docker"
        asked = f"buildx imagetools inspect {self.tag} --format {{{{.Manifest.Digest}}}}"
        fake.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 9\necho "{digest}"\n', encoding="utf-8")
        fake.chmod(0o755)
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.folder / "pin-base", *args], env={"PATH": path}, capture_output=True, text=True, check=False
        )


def test_a_digest_is_written_and_checked(tmp_path: Path) -> None:
    pinning = Pinning(tmp_path)
    refused = pinning.run("--check")
    assert refused.returncode == 1
    assert "Run docker/pin-base" in refused.stderr
    assert pinning.run().returncode == 0
    assert pinning.base() == f"{pinning.tag}@{DIGEST}"
    assert sorted(path.name for path in pinning.folder.iterdir()) == ["Dockerfile", "pin-base"]
    checked = pinning.run("--check")
    assert (checked.returncode, checked.stdout) == (0, "")


def test_a_tag_that_has_moved_on_is_said_and_pinned_anew(tmp_path: Path) -> None:
    pinning = Pinning(tmp_path)
    pinning.write(f"{pinning.tag}@sha256:{'f' * 64}")
    said = pinning.run("--check")
    assert said.returncode == 0
    assert f"is {DIGEST} by now" in said.stdout
    assert pinning.run().returncode == 0
    assert pinning.base() == f"{pinning.tag}@{DIGEST}"


@pytest.mark.parametrize("answer", ["", "null", "sha256:1234", f"{DIGEST}0"])
def test_what_is_no_digest_is_not_written(tmp_path: Path, answer: str) -> None:
    pinning = Pinning(tmp_path)
    assert pinning.run(digest=answer).returncode == 1
    assert pinning.base() == pinning.tag
    assert pinning.run("--what").returncode == 2


def test_the_script_can_be_run() -> None:
    assert (DOCKER / "pin-base").stat().st_mode & stat.S_IXUSR
