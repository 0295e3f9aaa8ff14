"""Writes the pages of docs/reference/ that repeat the source: settings, errors, command line, wire format.

`make reference` runs it. tests/unit/test_reference.py fails where a page is not what this module would write.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fleetlm
from fleetlm import errors
from fleetlm.cli import exit_codes
from fleetlm.cli.arguments import parser
from fleetlm.settings import _VARIABLES, Settings
from fleetlm.wire import frames, operations

API = {
    "Programs and nodes": [
        "run", "Node", "NodeInfo", "PeerInfo", "NodeName", "Readiness", "DrainReport", "Settings",
    ],
    "Processes": ["Process", "Call", "Stream", "Pid", "Ref", "Address", "Crash", "ProcessInfo", "Timer"],
    "Actors": ["Actor", "handler", "ActorRef", "ActorRefs", "GroupRef", "retry"],
    "Entities": [
        *("Entity", "EntityRef", "EntityRefs", "Quorum", "fleetlm.entities.kinds.Entities"),
        *("KindInfo", "HostedInfo", "QuorumInfo", "StoreInfo"),
    ],
    "Stores": ["Store", "Fence", "Stored", "SQLiteStore", "PostgresStore", "MemoryStore"],
    "Singletons and cron jobs": [
        "fleetlm.leaders.offers.OffersLeaders", "fleetlm.leaders.singletons.Singletons", "CronSlot",
    ],
    "Supervision": ["Supervisor", "Child", "ChildInfo"],
    "Groups and names": [
        "fleetlm.directory.groups.Groups", "Member", "MemberInfo",
        "fleetlm.directory.registry.Registry", "Claim", "SharedTable", "fleetlm.llm.PrefixIndex",
    ],
    "Messages and events": [
        "message", "register_type", "Down", "Exit", "NodeUp", "NodeDown", "NodeDraining", "NodeUndrained",
        "Joined", "Left", "RowPut", "RowDropped", "Registered", "Unregistered", "NameLost",
    ],
    "Telemetry": [
        "Telemetry", "Attachment", "CallStarted", "CallEnded", "HandlerEnded", "MessageDropped", "WindowFull",
        "WindowOpened", "ChildRestarted", "SupervisorGaveUp", "SessionUp", "SessionDown", "carry", "carried",
        "fleetlm.metrics.NodeMetrics", "fleetlm.tracing.instrument",
    ],
    "Threads and processes": ["SyncNode", "SyncStream", "node_in_thread", "ProcessPool"],
    "Discovery": ["Discovery", "DnsDiscovery", "StaticDiscovery", "Answer", "Outcome"],
    "Tests": [
        "fleetlm.testing.fleet.Fleet", "fleetlm.testing.cluster.SimCluster",
        "fleetlm.testing.dns_server.DnsServer",
    ],
}  # fmt: skip
"""Where each public name stands; a name with dots is reached through another one."""

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
COOKIES = {"cookie": "FLEETLM_COOKIE`, `FLEETLM_COOKIE_FILE", "other_cookies": "FLEETLM_COOKIE_OLD"}


def plain(text: str) -> str:
    """One paragraph of a docstring as Markdown on one line, safe in a table."""
    joined = re.sub(r"\s+", " ", text).strip()
    return joined.replace("``", "`").replace("|", "\\|")


def commented_sections(source: str) -> Iterator[tuple[int, str]]:
    """The comments that divide the fields of `Settings`: line and text."""
    for number, line in enumerate(source.splitlines(), 1):
        found = re.match(r"    # ([A-Z].*?)(?: \(.*\))?\.(?: .*)?$", line)
        if found:
            yield number, found[1]


def settings_page() -> str:
    """Every field of `Settings`, with its default, its variable and its reason."""
    source = inspect.getsource(Settings)
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    variables = {name: variable for variable, name, _ in _VARIABLES} | COOKIES
    sections = list(commented_sections(source))
    defaults = {each.name: each.default for each in dataclasses.fields(Settings)}
    lines = [
        "# Settings",
        "",
        "Every number of a node is a field of `fleetlm.Settings`: sizes in bytes, times in seconds. The",
        "environment sets those that name a variable ([how](../configuration.md)); a program sets any of",
        "them, and passes the result to `Node.start(settings)`:",
        "",
        "```text",
        "settings = dataclasses.replace(Settings.from_env(), mailbox_limit=1_024)",
        "```",
    ]
    shown = ""
    for statement, value in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        assert isinstance(value, ast.Expr), statement.target.id
        assert isinstance(value.value, ast.Constant), statement.target.id
        section = [text for line, text in sections if line < statement.lineno][-1]
        if section != shown:
            lines += ["", f"## {section}"]
            shown = section
        name = statement.target.id
        heading = f"### {name}"
        type_text = ast.unparse(statement.annotation)
        facts = [f"`{type_text}`", f"default `{format_default(defaults[name])}`"]
        if name in variables:
            facts.append(f"`{variables[name]}`")
        lines += ["", heading, "", " · ".join(facts), "", plain(str(value.value.value))]
    return "\n".join(lines) + "\n"


def format_default(value: object) -> str:
    """A default as a reader writes it."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(map(str, value))) or "none"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return repr(value)


def errors_page() -> str:
    """The tree of errors, and for each what happened, what it holds, and what the caller may do."""
    module = inspect.getdoc(errors) or ""
    tree = re.search(r"::\n\n(.*?)\n\n(?=\S)", module, re.DOTALL)
    assert tree is not None
    lines = [
        "# Errors",
        "",
        "Errors are sorted by what the caller may do. The sentence that an error shows says what happened,",
        "to which node or process, and what to do; its attributes hold the same facts.",
        "",
        "```text",
        inspect.cleandoc(tree[1]),
        "```",
    ]
    classes = [each for each in vars(errors).values() if inspect.isclass(each)]
    for each in sorted(classes, key=lambda cls: inspect.getsourcelines(cls)[1]):
        if each.__name__.startswith("_") or each.__module__ != errors.__name__:
            continue
        text, _, attributes = (inspect.getdoc(each) or "").partition("\nAttributes:\n")
        bases = ", ".join(f"`{base.__name__}`" for base in each.__bases__)
        lines += ["", f"## {each.__name__}", "", f"Base: {bases}.", ""]
        lines += [plain(paragraph) + "\n" for paragraph in text.strip().split("\n\n")]
        lines += list_attributes(attributes)
        while not lines[-1]:
            lines.pop()
        lines[-1] = lines[-1].rstrip("\n")
    return "\n".join(lines) + "\n"


def list_attributes(section: str) -> list[str]:
    """The attributes of an error as a list."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return [f"- `{name}`: {plain(text)}" for name, text in found]


def commands_page() -> str:
    """Each command with its arguments, as `fleetlm COMMAND --help` describes them."""
    top = parser()
    commands = next(each for each in top._actions if isinstance(each, argparse._SubParsersAction))
    briefs = {each.dest: each.help or "" for each in commands._choices_actions}
    lines = ["# Command line", "", "| command | |", "|---|---|"]
    lines += [f"| [`fleetlm {name}`](#fleetlm-{name}) | {plain(brief)} |" for name, brief in briefs.items()]
    for name, command in commands.choices.items():
        lines += ["", f"## fleetlm {name}", "", "```text", (command.description or "").strip(), "```", ""]
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [row for each in command._actions if (row := argument_row(each))]
        if command.epilog:
            lines += ["", "```text", command.epilog.strip(), "```"]
    lines += [
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        f"| {exit_codes.OK} | done; a node left and cut nothing |",
        f"| {exit_codes.FAILED} | the program, the expression or the check failed |",
        f"| {exit_codes.USAGE} | the arguments cannot be used |",
        f"| {exit_codes.EX_CUT} | a node left, and something that it had begun was cut |",
        f"| {exit_codes.EX_CONFIG} | a setting cannot be used: starting again does not help |",
        "| 130, 143 | ended at once by Ctrl-C or SIGTERM: the same signal came twice, or a third one |",
    ]
    return "\n".join(lines) + "\n"


def argument_row(action: argparse.Action) -> str:
    """One row of a table of arguments; empty for `--help`."""
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return ""
    value = action.metavar or (None if action.nargs == 0 else action.dest.upper())
    shown = ", ".join(action.option_strings)
    text = f"{shown} {value}" if shown and value else shown or str(value)
    described = (action.help or "") % {"default": action.default, "prog": "fleetlm"}
    return f"| `{text}` | {plain(described)} |"


def wire_page() -> str:
    """The schemas that the modules of `fleetlm/wire` document."""
    lines = [
        "# Wire format",
        "",
        "What two nodes say to each other, as the modules that read and write it document it. The",
        f"protocol versions are {frames.PROTOCOL_MIN} to {frames.PROTOCOL_MAX}. The transport below is ZMTP",
        "3.1 over TCP (a ROUTER for each node, a DEALER for each dial), with CURVE where a cookie is set;",
        "between nodes of one host it is a Unix socket.",
    ]
    for title, module in (("Frames", frames), ("Operations", operations)):
        lines += ["", f"## {title}", "", "```text", inspect.getdoc(module) or "", "```"]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Every public name, and the nouns that hang on a node; `mkdocstrings` fills in their documentation."""
    lines = ["# API", "", "Every public name of fleetlm, and what `node.groups` and the like are."]
    modules = {name: module for module, names in vars(fleetlm)["_NAMES_OF"].items() for name in names.split()}
    listed: set[str] = set()
    for title, names in API.items():
        lines += ["", f"## {title}"]
        for name in names:
            module, _, attribute = name.rpartition(".")
            listed.add(attribute)
            lines += ["", f"::: {module or modules[attribute]}.{attribute}"]
    missing = sorted(modules.keys() - listed - set(vars(errors)))
    if missing:
        raise SystemExit(f"scripts/write_reference.py: API does not say where these belong: {missing}")
    lines += [
        "",
        "The errors have [a page of their own](errors.md), and so have the [settings](settings.md).",
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "commands.md": commands_page,
    "wire.md": wire_page,
    "api.md": api_page,
}


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
