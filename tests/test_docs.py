"""What the documentation says is so: its links, keys, commands, names and worked examples, checked against the code."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from meshgate import config
from meshgate.cli import cli
from meshgate.db import schema_sql
from meshgate.graph import Kind, ModelNode, Window, readers_of, window_of
from meshgate.interval import Interval, IntervalSet, IntervalUnit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
CONFIGURATION = DOCS / "reference" / "configuration.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def find(pattern: str, text: str) -> list[Any]:
    """All matches, where ^ and $ are the ends of a line and a dot is anything."""
    return re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of one language."""
    return find(rf"^```{language}\n(.*?)^```", text_of(page))


def section(page: Path, heading: str) -> str:
    """What stands under a heading of the second level."""
    (found,) = find(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text_of(page))
    return str(found)


def table(text: str) -> list[list[str]]:
    """The rows of the tables of a text, without head and rule."""
    bodies = find(r"^\|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)*)", text)
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for b in bodies for line in b.splitlines()
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    heads = find(r"^#+ ([^\n]+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A relative link names a file that is there, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_found_from_the_index() -> None:
    """The index links each page of the documentation."""
    index = text_of(DOCS / "README.md")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index)}
    assert set(DOCS.rglob("*.md")) - linked == {DOCS / "README.md"}


def test_the_code_names_only_pages_that_are_there() -> None:
    """A message or comment that names a page of the documentation is right."""
    for file in (ROOT / "src").rglob("*"):
        if file.suffix in {".py", ".sql", ".md"}:
            for path in re.findall(r"docs/[\w/.-]+\.md", text_of(file)):
                assert (ROOT / path).is_file(), f"{file}: {path}"


def test_the_reference_lists_every_environment_variable() -> None:
    """Each variable that the code reads or sets is told, and no other."""
    pattern = re.compile(r"\bMESHGATE_[A-Z_]*[A-Z]\b")
    sources = "".join(text_of(f) for f in (ROOT / "src").rglob("*.py"))
    told = set(pattern.findall(section(CONFIGURATION, "Environment variables")))
    # A ledger's URL is the user's own variable, in examples only.
    assert told == set(pattern.findall(sources)) - {"MESHGATE_LEDGER_URL"}


@pytest.mark.parametrize("page", [README, CONFIGURATION], ids=name_of)
def test_every_example_of_meshgate_yaml_loads(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that the pages show are accepted as they stand."""
    monkeypatch.setenv("MESHGATE_LEDGER_URL", "postgresql://user:pass word#1@host/db")
    examples = [text for text in blocks(page, "yaml") if text.startswith("ledger:")]
    assert examples
    for text in examples:
        (tmp_path / "meshgate.yaml").write_text(text)
        assert config.load(tmp_path).projects


def test_the_readme_names_the_projects_that_its_file_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the README are about projects of its own example."""
    monkeypatch.setenv("MESHGATE_LEDGER_URL", "local")
    (tmp_path / "meshgate.yaml").write_text(blocks(README, "yaml")[0])
    listed = {project.name for project in config.load(tmp_path).projects}
    assert set(re.findall(r"meshgate (?:run|deploy) ([a-z]\w*)", text_of(README))) == listed


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_named_exists(page: Path) -> None:
    """`meshgate VERB` in a page is a command, and its options are that command's."""
    text = text_of(page)
    for line in find(r"(?:`|^\$ |&& )(meshgate [^`\n]+)", text):
        words = line.split()[1:]
        verb = next((word for word in words if not word.startswith("-")), None)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        owner = cli if verb is None else cli.commands.get(verb)
        assert owner is not None, f"there is no `meshgate {verb}`"
        known = {name for parameter in owner.params for name in parameter.opts} | {"--help"}
        assert options <= known, line


def test_the_reference_lists_exactly_the_inputs_and_outputs_of_the_action() -> None:
    """In the order of action.yml, with the defaults that it has."""
    action = YAML(typ="safe").load(ROOT / "actions" / "analyze" / "action.yml")
    page = DOCS / "reference" / "action.md"
    told = [(row[0].strip("`"), row[1].strip("`")) for row in table(section(page, "Inputs"))]
    assert [name for name, _ in told] == list(action["inputs"])
    for name, default in told:
        real = str(action["inputs"][name]["default"])
        assert default == real or "${{" in real or not real, name
    assert [row[0].strip("`") for row in table(section(page, "Outputs"))] == list(action["outputs"])


def test_every_make_target_that_is_named_exists() -> None:
    """`make TARGET` in a page is a target of the Makefile."""
    targets = set(find(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile")))
    named = {t for page in PAGES for t in re.findall(r"`make ([\w-]+)", text_of(page))}
    assert {"demo", "test"} <= named <= targets


def test_decisions_are_numbered_without_a_gap_and_built_alike() -> None:
    """0001, 0002, ...: number and title in file and heading, then context, decision, consequences."""
    for number, page in enumerate(DECISIONS, 1):
        text = text_of(page)
        assert re.fullmatch(rf"{number:04}(-[a-z0-9]+)+\.md", page.name), page.name
        assert text.startswith(f"# {number}. "), page.name
        parts = find(r"^\*\*(Context|Decision|Consequences)\.\*\*", text)
        assert parts == ["Context", "Decision", "Consequences"], page.name


def test_the_index_tells_the_titles_of_the_decisions() -> None:
    """Number and title in the index are those of the page."""
    found = find(r"^(\d+)\. \[([^\n]+)\]\(decisions/([^\n]+)\)$", text_of(DOCS / "README.md"))
    pages = [(page, text_of(page).splitlines()[0]) for page in DECISIONS]
    assert [(f"# {number}. {title}", name) for number, title, name in found] == [
        (h, p.name) for p, h in pages
    ]


def test_the_reference_lists_exactly_the_sqlstates_of_the_schema() -> None:
    """Each SQLSTATE that a function raises has its row, and none is invented."""
    told = {row[0].strip("`") for row in table(section(DOCS / "reference" / "ledger.md", "SQLSTATEs"))}
    assert told == set(re.findall(r"ERRCODE = '(MG\d+)'", schema_sql()))


def test_names_of_the_schema_are_right() -> None:
    """A function, table or constraint of the ledger that a page names is in the schema."""
    sql = schema_sql()
    names = set(re.findall(r"CREATE (?:TABLE|FUNCTION) meshgate\.(\w+)", sql))
    constraints = set(re.findall(r'CONSTRAINT "([^"]+)"', sql))
    python = {"cli", "yaml", "jobs", "Mesh", "config", "enforced", "signals"}
    for page in PAGES:
        text = prose(page)
        for name in re.findall(r"`meshgate\.(\w+)", text):
            assert name in names | python, f"{name_of(page)}: meshgate.{name}"
        for quoted in re.findall(r'the constraint "([^"]+)"', text):
            assert quoted in constraints, f"{name_of(page)}: {quoted}"


def test_the_ledger_page_lists_exactly_the_kinds_of_marks() -> None:
    """Marks are explained one by one."""
    told = {row[0].strip("`") for row in table(section(DOCS / "explanation" / "ledger.md", "Marks"))}
    allowed = re.search(r"\"a mark has a known kind\"\s+CHECK \(kind IN \(([^)]+)\)", schema_sql())
    assert allowed
    assert told == set(re.findall(r"'(\w+)'", allowed[1]))


def test_the_job_is_an_entry_point() -> None:
    """The entry point that the README tells to name exists, and is the function that it says."""
    points = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["entry-points"]
    assert points["meshgate.jobs"]["run"] == "meshgate.cli:job"
    assert "`meshgate.cli:job`" in text_of(README)


# The worked examples of windows. Without a row in either table there would be no test of it: `pytest` skips.

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
HALVES = section(DOCS / "explanation" / "gate.md", "Windows").split("the other way round")
assert [len(table(half)) > 3 for half in HALVES] == [True, True]


def example(row: list[str]) -> tuple[ModelNode, ModelNode, Window, Interval, Interval]:
    child, parent = (
        ModelNode(
            name=f'"{name}"', project="p", version="1", kind=Kind.INCREMENTAL_BY_TIME_RANGE,
            unit=IntervalUnit(unit), cron="@daily", start=BEGINNING,
        )
        for name, unit in zip(("child", "parent"), row, strict=False)
    )  # fmt: skip
    written = row[2].strip("`")
    if written.startswith("{"):
        ends = dict(re.findall(r"(from|to): (-?\w+)", written))
        window = Window("interval", *(config.parse_duration(ends.get(key, "0")) for key in ("from", "to")))
    else:
        window = Window() if written == "default" else Window(written)  # type: ignore[arg-type]
    return child, parent, window, Interval.parse(row[3]), Interval.parse(row[4])


@pytest.mark.parametrize("row", table(HALVES[0]), ids=lambda row: f"{row[0]} reads {row[1]} {row[2]}")
def test_a_window_reads_what_the_page_says(row: list[str]) -> None:
    """The parent's time that an interval reads is as in the example."""
    child, parent, window, interval, reads = example(row)
    assert window_of(child, parent, window, interval) == IntervalSet([reads])


@pytest.mark.parametrize("row", table(HALVES[1]), ids=lambda row: f"{row[0]} reads {row[1]} {row[2]}")
def test_a_lack_blocks_what_the_page_says(row: list[str]) -> None:
    """The child's intervals that wait for a part of the parent are as in the example."""
    child, parent, window, lacking, waiting = example(row)
    everything = IntervalSet([Interval(BEGINNING, datetime(2026, 2, 1, tzinfo=UTC))])
    assert readers_of(child, parent, window, IntervalSet([lacking]), everything) == IntervalSet([waiting])
