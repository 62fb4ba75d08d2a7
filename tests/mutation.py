"""What can be taken away, and the test that must then fail. `mutations.py` does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SMOKE = "test_ledger.py::test_a_batch_is_committed_in_parts_and_one_part_fails"
SCHEMA = "sql/schema.sql"
G = "test_guarantees.py::test_"
L = "test_ledger.py::test_"


@dataclass(frozen=True)
class Edit:
    """Text of one file and what takes its place, `at` the which one of several."""

    file: str
    old: str
    new: str = ""
    at: int = 0

    def apply(self, package: Path) -> None:
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        parts = text.split(self.old)
        if len(parts) < self.at + 2:
            raise LookupError(f"{self.file} does not contain (or not so often): {self.old!r}")
        head = self.old.join(parts[: self.at + 1])
        path.write_text(head + self.new + self.old.join(parts[self.at + 1 :]), encoding="utf-8")


@dataclass(frozen=True)
class Mutation:
    """What is taken away, and the tests of which each must fail."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    smoke: str = SMOKE


def sql(name: str, test: str | tuple[str, ...], *edits: tuple[str, str] | tuple[str, str, int]) -> Mutation:
    tests = (test,) if isinstance(test, str) else test
    return Mutation(name, tuple(Edit(SCHEMA, *edit) for edit in edits), tests)


def python(name: str, test: str | tuple[str, ...], file: str, *edits: tuple[str, str]) -> Mutation:
    tests = (test,) if isinstance(test, str) else test
    return Mutation(name, tuple(Edit(file, *edit) for edit in edits), tests)


def located(test: str) -> str:
    """A test, written as `test_ledger.py::test_x`, in whichever of the `test_ledger*.py` it stands now."""
    file, _, name = test.partition("::")
    if not name:
        return test
    start = f"def {name.split('[')[0]}("
    for found in sorted((REPOSITORY / "tests").glob(f"{file[:-3]}*.py")):
        if start in found.read_text(encoding="utf-8"):
            return f"{found.name}::{name}"
    raise LookupError(f"no test is called {test}")
