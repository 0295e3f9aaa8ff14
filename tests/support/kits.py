"""What the deployment kits contain, in one form for all platforms, for the tests of the kits.

A kit starts programs. `Program` is one of them, with what its platform does around it: `kit_files` and the
tests in `tests.kits` make them of Compose files, units, manifests and so on, and `complaints` judges all of
them by the same rules.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetlm import Settings
from fleetlm.cli.arguments import parser
from fleetlm.errors import SettingsError
from tests.support.guides import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker" / "compose.fastapi.yaml"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
PAGES = ROOT / "docs" / "deploy"
COOKIE = "k7Qm2vX9pLr4Tz8wNc3B"
UVICORN_GRACE = "--timeout-graceful-shutdown"
VARIABLE = re.compile(r"\b(?:FLEETLM|DNS)_[A-Z][A-Z_]*[A-Z]\b")
NOT_OURS = frozenset({"DNS_CLUSTER", "FLEETLM"})


def files() -> list[Path]:
    """Every file of a kit."""
    return [COMPOSE, *sorted(path for path in DEPLOY.rglob("*") if path.is_file())]


@dataclass(frozen=True)
class Program:
    """One program that a kit starts.

    Attributes:
        where: the file and the name, for messages.
        command: its words, the entry point included.
        image: the name of its image, without registry and tag; None for a program without one.
        env: its variables.
        grace_s: seconds between the first signal and SIGKILL, what comes before the signal included.
        pre_stop_s: the part of the grace that passes before the signal.
        probes: the commands by which the platform looks at it, by what they decide.
    """

    where: str
    command: Sequence[str]
    image: str | None
    env: Mapping[str, str]
    grace_s: float
    pre_stop_s: float = 0.0
    probes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def is_web(self) -> bool:
        return self.command[0] == "uvicorn"

    @property
    def settings(self) -> Settings:
        """The settings of its node. Raises: SettingsError."""
        return settings_of(self.env)


def settings_of(env: Mapping[str, str]) -> Settings:
    """Return the settings of a node with these variables; a file with a cookie becomes a cookie."""
    given = dict(env)
    for secret in ("FLEETLM_COOKIE", "FLEETLM_OPS_TOKEN"):
        if given.pop(f"{secret}_FILE", None) is not None:
            given[secret] = COOKIE
    return Settings.from_env(given)


def known_variables() -> set[str]:
    """The variables that `Settings.from_env` knows."""
    return {*Settings().effective(), "FLEETLM_COOKIE_FILE", "FLEETLM_OPS_TOKEN_FILE"}


def seconds(text: str | float) -> float:
    """Parse ``60``, ``60s``, ``2m``, ``500ms``."""
    matched = re.fullmatch(r"([0-9.]+) *(ms|s|m|min|)", str(text))
    assert matched is not None, text
    return float(matched[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "min": 60}[matched[2]]


# ── the image ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Image:
    """A target of docker/Dockerfile: the modules in it, and where it comes from."""

    modules: Mapping[str, Path]
    entry_point: Sequence[str]
    user: str
    stop_signal: str


@functools.cache
def images() -> dict[str, Image]:
    """The images that docker/Dockerfile says how to build, by the names that it gives them."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    lines = {}
    for stage in stages:
        first, *rest = stage.splitlines()
        base, _, name = first.split()
        lines[name] = [*lines.get(base, []), *rest]
    found = {}
    for name, options in re.findall(r"^#   docker build .*-t (\S+)(.*?) \.(?: |$)", DOCKERFILE, re.MULTILINE):
        target = re.search(r"--target (\S+)", options)
        found[name] = _image(lines[target[1] if target else [*lines][-1]])
    return found


def _image(lines: Sequence[str]) -> Image:
    modules = {}
    for line in lines:
        if line.startswith("COPY examples/"):
            *sources, _ = line.split()[1:]
            modules |= {Path(source).stem: ROOT / source for source in sources}
    said = dict(line.split(" ", 1) for line in lines if line.startswith(("ENTRYPOINT", "USER", "STOPSIGNAL")))
    return Image(modules, ast.literal_eval(said.get("ENTRYPOINT", "[]")), said["USER"], said["STOPSIGNAL"])


def image_name(reference: str) -> str:
    """Return the name in a reference such as ``registry/path/fleetlm-web:0.1.0``."""
    return reference.rpartition("/")[2].partition(":")[0]


# ── the rules ────────────────────────────────────────────────────────────────────────────────────


def complaints(program: Program) -> list[str]:
    """What is wrong with a program of a kit, by the rules that hold on every platform."""
    found = [*_about_settings(program), *_about_command(program)]
    for kind, probe in program.probes.items():
        if list(probe[:2]) != ["fleetlm", "health"]:
            found.append(f"the {kind} probe runs {probe[0]}")
        elif _exit_code(lambda probe=probe: parser().parse_args(probe[1:])):
            found.append(f"the {kind} probe cannot be parsed: {' '.join(probe)}")
        elif kind == "liveness" and "--live" not in probe:
            found.append("a liveness probe that asks whether the node is ready ends nodes that only wait")
    return [f"{program.where}: {each}" for each in found]


def _about_settings(program: Program) -> list[str]:
    try:
        settings = program.settings
    except SettingsError as error:
        return [str(error)]
    found = [f"warning: {each}" for each in settings.warnings]
    if not settings.clustering:
        found.append("clustering is off")
    if settings.cookie is None and not settings.require_cookie and program.env.get("FLEETLM_COOKIE") != "":
        found.append("a node may start without a cookie")
    if program.is_web and UVICORN_GRACE not in program.command:
        return [*found, f"uvicorn waits without limit for open connections: {UVICORN_GRACE} is missing"]
    needed_s = needed_grace_s(program)
    if program.grace_s < needed_s:
        found.append(f"the grace is {program.grace_s:g} s, and {needed_s:g} s are needed")
    return found


def needed_grace_s(program: Program) -> float:
    """Return the grace that a program needs: docs/leaving.md, with room for the hooks."""
    settings = program.settings
    server_s = 0.0
    if program.is_web:
        server_s = seconds(program.command[list(program.command).index(UVICORN_GRACE) + 1])
    return program.pre_stop_s + server_s + 2 * settings.drain_s + settings.terminate_s


def _about_command(program: Program) -> list[str]:
    name, *arguments = program.command
    modules: Mapping[str, Path] = {}
    if program.image is not None:
        if program.image not in images():
            return [f"docker/Dockerfile does not say how to build {program.image}"]
        modules = images()[program.image].modules
    if name == "fleetlm":
        if _exit_code(lambda: parser().parse_args(arguments)):
            return [f"cannot be parsed: fleetlm {' '.join(arguments)}"]
        target = parser().parse_args(arguments).program
    elif name == "uvicorn":
        from uvicorn.main import main  # only kits with a front end need it

        if _exit_code(lambda: main.make_context("uvicorn", list(arguments))):
            return [f"cannot be parsed: uvicorn {' '.join(arguments)}"]
        target = arguments[0]
    else:
        return [f"starts {name}"]
    return [] if program.image is None else _about_target(target, modules)


def _about_target(target: str, modules: Mapping[str, Path]) -> list[str]:
    """What is wrong with MODULE:NAME, given the modules of the image."""
    module, _, name = target.partition(":")
    if module not in modules:
        return [f"the image has no module {module}, only {', '.join(modules)}"]
    tree = ast.parse(modules[module].read_text(encoding="utf-8"))
    defined = {getattr(each, "name", "") for each in tree.body}
    for each in tree.body:
        if isinstance(each, ast.Assign):
            defined |= {one.id for one in each.targets if isinstance(one, ast.Name)}
    return [] if name in defined else [f"{modules[module].name} has no {name}"]


def _exit_code(parse: Any) -> bool:
    """Whether the parser of a command line refuses its arguments."""
    try:
        parse()
    except SystemExit:
        return True
    except Exception as error:
        if type(error).__module__.startswith("click"):
            return True
        raise
    return False
