"""The rules of this code base: the table of layers, and the checkers.

Every checker is a function from source text to a list of complaints, so that the checkers can be
tested themselves on small bad sources. test_house_rules.py applies them and tests them.
"""

from __future__ import annotations

import ast
import fnmatch
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# ── the table ────────────────────────────────────────────────────────────────────────────────────

LAYERS = (  # the first pattern that fits a module decides
    ("public", "fleetlm"),
    ("vocabulary", "fleetlm.errors"),
    ("vocabulary", "fleetlm.names"),
    ("vocabulary", "fleetlm.ids"),
    ("vocabulary", "fleetlm.messages"),
    ("vocabulary", "fleetlm.settings"),
    ("core", "fleetlm.core"),
    ("core", "fleetlm.core.*"),
    ("testing", "fleetlm.testing"),
    ("testing", "fleetlm.testing.*"),
    ("surface", "fleetlm.__main__"),
    ("surface", "fleetlm.cli"),
    ("surface", "fleetlm.demo*"),
    ("surface", "fleetlm.doctor*"),
    ("surface", "fleetlm.remote*"),
    ("surface", "fleetlm.shell_*"),
    ("shell", "fleetlm.*"),
)
MAY_IMPORT = {
    "vocabulary": {"vocabulary"},
    "core": {"vocabulary", "core"},
    "shell": {"vocabulary", "core", "shell"},
    "public": {"vocabulary", "core", "shell"},
    "testing": {"vocabulary", "core", "shell", "public", "testing"},
    "surface": {"vocabulary", "core", "shell", "public", "surface"},
}
EXCEPTIONS = {("fleetlm.demo", "fleetlm.testing.dns")}  # the demo brings its own DNS server

# What no pure module may know: clocks, sockets, threads, the process it runs in.
IMPURE = {
    "asyncio", "concurrent", "dns", "logging", "multiprocessing", "os", "random", "secrets",
    "selectors", "signal", "socket", "subprocess", "threading", "time", "uvloop", "zmq",
}  # fmt: skip
IMPURE_EXCEPTIONS = {("fleetlm.settings", "os")}  # from_env() reads the mapping that it is given
CLOCK_READS = {"now", "utcnow", "today", "uuid1", "uuid4"}  # of datetime, date and uuid

MODULE_LINES = 500
FUNCTION_LINES = 70
INIT_LINES = 100

REAL_TIME = ("tests/zmq", "tests/system", "tests/containers", "tests/long")
VIRTUAL_TIME = {"Fleet", "SimLoop", "SimNetwork", "SimCluster", "loop", "network", "cluster"}

# Put together here, so that this file does not contain them.
PRIVATE_PATHS = tuple("/" + path for path in ("work/", "root/", "tmp/w/", "var/tmp/dk"))
REGISTRIES = tuple(f"{name}.org" for name in ("pypi", "pythonhosted"))
BESIDE = "../" + "shared"


# ── checkers ─────────────────────────────────────────────────────────────────────────────────────


class Import(NamedTuple):
    """One imported name: ``module`` as far as it is known, and when the import happens."""

    module: str
    name: str | None  # of `from module import name`
    line: int
    at_runtime: bool  # not under TYPE_CHECKING
    at_import: bool  # neither that nor inside a function


def layer_of(module: str) -> str:
    return next(layer for layer, pattern in LAYERS if fnmatch.fnmatchcase(module, pattern))


def imports_of(tree: ast.AST) -> Iterator[Import]:
    """Every import, wherever it stands."""

    def walk(node: ast.AST, at_runtime: bool, at_import: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, None, node.lineno, at_runtime, at_import)
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    origin = "." * level + (module or "")
                    yield Import(origin, alias.name, node.lineno, at_runtime, at_import)
            case ast.If(body=body, orelse=orelse) if "TYPE_CHECKING" in ast.unparse(node.test):
                for statement in body:
                    yield from walk(statement, False, False)
                for statement in orelse:
                    yield from walk(statement, at_runtime, at_import)
            case _:
                lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, at_runtime, at_import and not lazy)

    return walk(tree, True, True)


def target(found: Import, modules: Mapping[str, str]) -> str:
    """The module that an import leads to: `from fleetlm import names` leads to fleetlm.names."""
    whole = f"{found.module}.{found.name}"
    return whole if whole in modules else found.module


def is_ours(module: str) -> bool:
    return module == "fleetlm" or module.startswith("fleetlm.")


def layer_complaints(module: str, modules: Mapping[str, str]) -> list[str]:
    """Imports that lead up; imports for types count as well, since knowing is depending."""
    layer = layer_of(module)
    complaints = []
    for found in imports_of(ast.parse(modules[module])):
        where = f"{module}:{found.line}"
        aim = target(found, modules)
        if found.module.startswith("."):
            complaints.append(f"{where} imports {found.module} relatively")
        elif is_ours(aim):
            aimed = layer_of(aim)
            if aimed not in MAY_IMPORT[layer] and (module, aim) not in EXCEPTIONS:
                complaints.append(f"{where} ({layer}) imports {aim} ({aimed})")
    return complaints


def purity_complaints(module: str, source: str) -> list[str]:
    """Clocks, sockets, chance and the like in vocabulary and core; random.Random is but a type."""
    if layer_of(module) not in {"vocabulary", "core"}:
        return []
    tree = ast.parse(source)
    complaints = []
    for found in imports_of(tree):
        top = found.module.partition(".")[0]
        only_a_type = top == "random" and (not found.at_runtime or found.name in {None, "Random"})
        if top in IMPURE and not only_a_type and (module, top) not in IMPURE_EXCEPTIONS:
            complaints.append(f"{module}:{found.line} imports {top}")
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr != "Random":
                complaints.append(f"{module}:{node.lineno} uses random.{attr}")
            case ast.Call(func=ast.Attribute(attr="Random") | ast.Name(id="Random")):
                complaints.append(f"{module}:{node.lineno} makes a generator of its own")
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CLOCK_READS:
                if ast.unparse(value).rpartition(".")[2] in {"datetime", "date", "uuid"}:
                    complaints.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}")
    return complaints


def cycle_complaints(modules: Mapping[str, str]) -> list[str]:
    """Cycles among what the modules import while they are being imported themselves."""
    edges: dict[str, set[str]] = {}
    for module, source in modules.items():
        found = [found for found in imports_of(ast.parse(source)) if found.at_import]
        edges[module] = {target(one, modules) for one in found} & modules.keys()
    done: set[str] = set()
    cycles: list[str] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycles.append(" → ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for aim in sorted(edges[module]):
                visit(aim, [*path, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return cycles


def size_complaints(name: str, source: str) -> list[str]:
    lines = len(source.splitlines())
    complaints = [f"{name} has {lines} lines"] if lines > MODULE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                complaints.append(f"{name}:{node.lineno} {node.name}() has {lines} lines")
    return complaints


def handler_complaints(name: str, source: str) -> list[str]:
    """Errors that vanish: bare except, everything caught and passed over."""
    everything = {"Exception", "BaseException", "builtins.Exception", "builtins.BaseException"}
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is not None and ast.unparse(kind) in everything for kind in kinds)
            if node.type is None:
                complaints.append(f"{name}:{node.lineno} bare except")
            elif broad and all(is_nothing(statement) for statement in node.body):
                complaints.append(f"{name}:{node.lineno} catches everything and does nothing")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("suppress")
            and any(ast.unparse(kind) in everything for kind in node.args)
        ):
            complaints.append(f"{name}:{node.lineno} suppresses everything")
    return complaints


def is_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def task_complaints(name: str, source: str) -> list[str]:
    """Tasks that nobody holds: they may vanish half-way, and their errors are never seen."""
    tree = ast.parse(source)
    groups = {  # a TaskGroup holds its tasks
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if item.optional_vars is not None and "TaskGroup" in ast.unparse(item.context_expr)
    }
    complaints = []
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Call(func=func)):
                pass
            case ast.Assign(targets=[ast.Name(id="_")], value=ast.Call(func=func)):
                pass
            case _:
                continue
        owner, _, called = ast.unparse(func).rpartition(".")
        if called in {"create_task", "ensure_future"} and owner not in groups:
            complaints.append(f"{name}:{node.lineno} starts a task that nobody holds")
    return complaints


def sleep_complaints(path: str, source: str) -> list[str]:
    """Tests that sleep: slow when the number is large, wrong now and then when it is small."""
    if path.startswith(REAL_TIME):
        return []
    tree = ast.parse(source)
    virtual = any(
        found.module.startswith("fleetlm.testing")
        and VIRTUAL_TIME & {found.name, found.module.rpartition(".")[2]}
        for found in imports_of(tree)
    )
    names = {
        found.module: "sleep"
        for found in imports_of(tree)
        if found.module in {"time", "asyncio"} and found.name == "sleep"
    }
    complaints = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=func, args=[ast.Constant(value=int() | float() as seconds)]):
                called = ast.unparse(func)
                in_real_time = {"time.sleep"} if virtual else {"time.sleep", "asyncio.sleep"}
                in_real_time |= {n for m, n in names.items() if f"{m}.sleep" in in_real_time}
                if seconds > 0 and called in in_real_time:
                    complaints.append(f"{path}:{node.lineno} {called}({seconds})")
    return complaints


def word_complaints(path: str, text: str) -> list[str]:
    """Paths of one machine, and hosts that a reader may not use."""
    banned = [*PRIVATE_PATHS, *REGISTRIES]
    if path != ".ci/run":  # it may find an engine's tool there
        banned.append(BESIDE)
    return [
        f"{path}:{number} says {word!r}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in banned
        if word in line
    ]
