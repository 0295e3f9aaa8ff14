"""The rules of this code base: the table of imports, and the checkers.

Every checker is a function from source text to a list of complaints, so that the checkers can be
tested themselves on small bad sources. test_house_rules.py applies them and tests them.
"""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# ── the table ────────────────────────────────────────────────────────────────────────────────────

VALUES = (
    *("cookies", "errors", "escapes", "ids", "names", "messages", "records", "setting_parsers", "settings"),
    *("ops_token", "seconds", "taps", "telemetry", "texts"),
)
ROWS: tuple[tuple[str, ...], ...] = (
    # A room is a package of fleetlm, or a module that stands beside the packages. A room may import
    # itself and the rooms of the rows above its own; never one of its own row, never one of a row below.
    # Imports for types count: who names a type depends on it.
    ("values",),
    ("wire", "blocking", "stores"),
    ("core", "call", "stream", "transport", "process_pool"),
    ("messaging", "discovery"),
    ("processes",),
    ("actors",),
    ("directory", "process"),
    ("entities",),
    ("runtime", "actor"),
    ("threads", "entity"),
    ("sync", "supervisor", "leaders"),
    ("node",),
    ("public",),  # fleetlm/__init__: imports by name, at the first use of a name
    ("node_thread", "remote", "testing", "metrics", "tracing", "logs", "llm"),
    ("ops", "asgi"),
    ("cli",),
    ("program",),
    ("__main__",),
)
ONLY: dict[str, frozenset[str]] = {  # stricter than the row: the rooms that these may import
    "fleetlm.transport": frozenset({"values", "wire"}),
    "fleetlm.core": frozenset({"values", "wire"}),
    "fleetlm.remote.protocol": frozenset({"values"}),  # `fleetlm remote` must start fast
    "fleetlm.remote.client": frozenset({"values"}),
    "fleetlm.remote.shell": frozenset({"values"}),
}
DEMO_DNS = ("fleetlm.cli.demo.story", "fleetlm.testing.dns_server")  # the demo brings its own DNS server
EXCEPTIONS = {
    # Types of public attributes: `process.node`, `actor.process.node`, `node.sync`.
    ("fleetlm.process", "fleetlm.node"),
    ("fleetlm.actor", "fleetlm.node"),
    ("fleetlm.sync", "fleetlm.node"),
}

PURE = {"values", "wire", "core"}
# What no pure module may know: clocks, sockets, threads, the process it runs in.
IMPURE = {
    "asyncio", "concurrent", "dns", "logging", "multiprocessing", "os", "random", "secrets",
    "selectors", "signal", "socket", "subprocess", "threading", "time", "uvloop", "zmq",
}  # fmt: skip
IMPURE_EXCEPTIONS = {
    ("fleetlm.settings", "os"),  # from_env() reads the mapping that it is given
    ("fleetlm.cookies", "os"),  # whose a file with a cookie is
}
CLOCK_READS = {"now", "utcnow", "today", "uuid1", "uuid4"}  # of datetime, date and uuid

MODULE_LINES = 500
FUNCTION_LINES = 70
INIT_LINES = 100

REAL_TIME = ("tests/transport", "tests/system", "tests/containers", "tests/long", "tests/browser")
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


def room_of(module: str) -> str:
    """The room of a module of fleetlm: its package, or itself where it stands beside the packages."""
    top = module.partition(".")[2].partition(".")[0]
    return "public" if not top else "values" if top in VALUES else top


def row_of(room: str) -> int:
    """The row of a room. Raises: LookupError for a room that the table does not have."""
    for number, rooms in enumerate(ROWS):
        if room in rooms:
            return number
    raise LookupError(f"fleetlm.{room} has no place in ROWS of tests/house_rules.py")


def may_import(module: str, aim: str) -> bool:
    """Whether a module of fleetlm may import another one, by the table."""
    room, aimed = room_of(module), room_of(aim)
    if room == aimed:
        return True
    for prefix, rooms in ONLY.items():
        if f"{module}.".startswith(f"{prefix}."):
            return aimed in rooms
    if room == "cli" and aimed == "testing":
        return (module, aim) == DEMO_DNS
    return row_of(aimed) < row_of(room)


@functools.cache
def parsed(source: str) -> ast.Module:
    """The syntax tree of a source text, which several rules read; none of them changes it."""
    return ast.parse(source)


LOOKED_AT = (
    *(ast.Assign, ast.AsyncFunctionDef, ast.AsyncWith, ast.Attribute, ast.Call, ast.ExceptHandler, ast.Expr),
    ast.FunctionDef,
)
STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)
LEAVES = (ast.Constant, ast.Name, ast.alias, ast.expr_context, ast.operator)


@functools.cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """The nodes of a syntax tree at which a rule looks.

    All rules together read a hundred thousand lines several times, and each `ast.walk` over them takes
    seconds. So each tree is walked once.
    """
    todo: list[ast.AST] = [parsed(source)]
    for node in todo:  # which grows meanwhile
        for field in node._fields:
            value = getattr(node, field)
            if isinstance(value, list):
                todo += [each for each in value if isinstance(each, ast.AST) and not isinstance(each, LEAVES)]
            elif isinstance(value, ast.AST) and not isinstance(value, LEAVES):
                todo.append(value)
    return tuple(node for node in todo if isinstance(node, LOOKED_AT))


def forget_sources() -> None:
    """Drop what is cached: the trees of all sources take hundreds of megabytes."""
    for cached in (parsed, nodes_of, imports_of, code_lines):
        cached.cache_clear()


def last_name(expression: ast.expr) -> str:
    """The name that is called or read: `sleep` of `time.sleep`; empty for what has none."""
    return getattr(expression, "attr", "") or getattr(expression, "id", "")


@functools.cache
def imports_of(source: str) -> tuple[Import, ...]:
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
            case ast.If(test=test, body=body, orelse=orelse) if last_name(test) == "TYPE_CHECKING":
                for statement in body:
                    yield from walk(statement, False, False)
                for statement in orelse:
                    yield from walk(statement, at_runtime, at_import)
            case _:
                lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, STATEMENTS):  # No expression holds an import.
                        yield from walk(child, at_runtime, at_import and not lazy)

    return tuple(walk(parsed(source), True, True))


def target(found: Import, modules: Mapping[str, str]) -> str:
    """The module that an import leads to: `from fleetlm import names` leads to fleetlm.names."""
    whole = f"{found.module}.{found.name}"
    return whole if whole in modules else found.module


def is_ours(module: str) -> bool:
    return module == "fleetlm" or module.startswith("fleetlm.")


def upward_imports(module: str, modules: Mapping[str, str]) -> list[tuple[int, str]]:
    """Line and aim of each import that the table does not allow, listed exceptions included."""
    found = []
    for one in imports_of(modules[module]):
        aim = target(one, modules)
        if is_ours(aim) and not may_import(module, aim):
            found.append((one.line, aim))
    return found


def import_complaints(module: str, modules: Mapping[str, str]) -> list[str]:
    """Imports against the table, and relative ones, which no reader and no tool finds by name."""
    complaints = [
        f"{module}:{one.line} imports {one.module} relatively"
        for one in imports_of(modules[module])
        if one.module.startswith(".")
    ]
    complaints += [
        f"{module}:{line} ({room_of(module)}) imports {aim} ({room_of(aim)})"
        for line, aim in upward_imports(module, modules)
        if (module, aim) not in EXCEPTIONS
    ]
    return complaints


def unused_exceptions(modules: Mapping[str, str]) -> set[tuple[str, str]]:
    """Exceptions that no import needs any more: the list may only shrink."""
    arrows = {
        (module, target(one, modules)) for module, source in modules.items() for one in imports_of(source)
    }
    return EXCEPTIONS - arrows


def purity_complaints(module: str, source: str) -> list[str]:
    """Clocks, sockets, chance and the like in pure rooms; `random.Random` is a type there, no more."""
    if room_of(module) not in PURE:
        return []
    complaints = []
    for found in imports_of(source):
        top = found.module.partition(".")[0]
        only_a_type = top == "random" and (not found.at_runtime or found.name in {None, "Random"})
        if top in IMPURE and not only_a_type and (module, top) not in IMPURE_EXCEPTIONS:
            complaints.append(f"{module}:{found.line} imports {top}")
    for node in nodes_of(source):
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
    """Circles of imports between modules, inside packages too; imports for types and late ones count."""
    edges: dict[str, set[str]] = {}
    for module, source in modules.items():
        aims = {target(one, modules) for one in imports_of(source)} & modules.keys()
        edges[module] = {aim for aim in aims if (module, aim) not in EXCEPTIONS} - {module}
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


@functools.cache
def code_lines(source: str) -> frozenset[int]:
    """The numbers of the lines that hold code: no blank line, no comment, no docstring."""
    prose = {
        number
        for node in nodes_of(source)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return frozenset(
        number
        for number, line in enumerate(source.splitlines(), 1)
        if number not in prose and line.strip() and not line.lstrip().startswith("#")
    )


def size_complaints(name: str, source: str) -> list[str]:
    """Modules and functions that are too long, in lines of code."""
    code = code_lines(source)
    complaints = [f"{name} has {len(code)} lines of code"] if len(code) > MODULE_LINES else []
    for node in nodes_of(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            lines = len(code.intersection(inside))
            if lines > FUNCTION_LINES:
                complaints.append(f"{name}:{node.lineno} {node.name}() has {lines} lines of code")
    return complaints


def handler_complaints(name: str, source: str) -> list[str]:
    """Errors that vanish: bare except, everything caught and passed over."""
    everything = {"Exception", "BaseException", "builtins.Exception", "builtins.BaseException"}
    complaints = []
    for node in nodes_of(source):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is not None and ast.unparse(kind) in everything for kind in kinds)
            if node.type is None:
                complaints.append(f"{name}:{node.lineno} bare except")
            elif broad and all(is_nothing(statement) for statement in node.body):
                complaints.append(f"{name}:{node.lineno} catches everything and does nothing")
        elif (
            isinstance(node, ast.Call)
            and last_name(node.func).endswith("suppress")
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
    groups = {  # a TaskGroup holds its tasks
        ast.unparse(item.optional_vars)
        for node in nodes_of(source)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if item.optional_vars is not None and "TaskGroup" in ast.unparse(item.context_expr)
    }
    complaints = []
    for node in nodes_of(source):
        match node:
            case ast.Expr(value=ast.Call(func=func)):
                pass
            case ast.Assign(targets=[ast.Name(id="_")], value=ast.Call(func=func)):
                pass
            case _:
                continue
        called = last_name(func)
        if called not in {"create_task", "ensure_future"}:
            continue
        owner = ast.unparse(func).rpartition(".")[0]
        held = groups | {"process", "self"} if called == "create_task" else groups  # a process holds its own
        if owner not in held:
            complaints.append(f"{name}:{node.lineno} starts a task that nobody holds")
    return complaints


def sleep_complaints(path: str, source: str) -> list[str]:
    """Tests that sleep: slow when the number is large, wrong now and then when it is small."""
    if path.startswith(REAL_TIME):
        return []
    virtual = any(
        found.module.startswith("fleetlm.testing")
        and VIRTUAL_TIME & {found.name, found.module.rpartition(".")[2]}
        for found in imports_of(source)
    )
    names = {
        found.module: "sleep"
        for found in imports_of(source)
        if found.module in {"time", "asyncio"} and found.name == "sleep"
    }
    complaints = []
    for node in nodes_of(source):
        match node:
            case ast.Call(func=func, args=[ast.Constant(value=int() | float() as seconds)]) if (
                last_name(func) == "sleep"
            ):
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
