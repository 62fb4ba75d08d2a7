"""What an analysis says of a table of changes, in a mesh of three projects; that it writes nothing; and how it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from analysis_cases import CASES, CUSTOMERS, HISTORY, NOW, ORDERS, REVENUE, Case, told
from diamond_mesh import DiamondMesh, by_time, edit, named, remove, rows_of, write
from meshgate.errors import ConfigError, ProjectError
from meshgate.interval import IntervalSet
from meshgate.report import data
from meshgate.report.pull_request import markdown, marker
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.analysis import Analysis
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis")]


@pytest.fixture(scope="module")
def meshes(
    tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None
) -> dict[bool, DiamondMesh]:
    """With one state for all, and with one of its own for finance; everything is evaluated up to minute 125."""
    return {
        separate: DiamondMesh(
            tmp_path_factory.mktemp("analysis") / "mesh", postgres, separate=separate
        ).build()
        for separate in (False, True)
    }


@pytest.fixture(scope="module")
def twin(meshes: dict[bool, DiamondMesh], tmp_path_factory: pytest.TempPathFactory) -> DiamondMesh:
    """One with a state for all, in which a test may deploy."""
    folder = tmp_path_factory.mktemp("twin")
    return meshes[False].clone(folder / "mesh", meshes[False].copy(folder / "files"))


@pytest.fixture(scope="module")
def opened(meshes: dict[bool, DiamondMesh], twin: DiamondMesh) -> Iterator[dict[bool, Mesh]]:
    """Both of them, open; nobody may clone them any more."""
    with meshes[False].mesh() as shared, meshes[True].mesh() as separate:
        yield {False: shared, True: separate}


SEPARATE = (
    "breaking, far upstream", "a seed", "a removed column that another project reads",
    "three projects: a column goes, and nobody reads it any more",
)  # fmt: skip
"""Where a state of its own makes the greatest difference; the others are left to `make test-analysis`."""


def every_case() -> Iterator[Any]:
    """Each change with either sort of state."""
    for case in CASES:
        yield pytest.param(case, False, id=f"{case.name}-shared")
        marks = () if case.name in SEPARATE else pytest.mark.analysis
        yield pytest.param(case, True, id=f"{case.name}-separate", marks=marks)


@pytest.mark.parametrize(("case", "separate"), list(every_case()))
def test_models_ranges_projects_and_order(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], case: Case, separate: bool, tmp_path: Path
) -> None:
    """Each change is told as `analysis_cases.txt` has it, and what may not be deployed is refused."""
    root = meshes[separate].copy(tmp_path / "files")
    case.change(root)
    found = opened[separate].analyze(named(root, case.projects), now=at(NOW))
    assert told(found) == case.expected(separate=separate)
    assert found.refused is not case.deploys
    assert markdown(found) == markdown(found)
    assert json.loads(data.dumped(data.analyze(found)))["schema"] == "meshgate.analysis"


@pytest.mark.parametrize("separate", [False, True], ids=["shared state", "separate state"])
def test_an_analysis_writes_nothing(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], separate: bool, tmp_path: Path
) -> None:
    """Every row of every table of states, ledger, catalog and source, and every file of the lake, is as it was."""
    mesh = meshes[separate]
    root = mesh.copy(tmp_path / "files")
    for case in CASES:
        if case.name in ("breaking, far upstream", "a seed", "forward-only"):
            case.change(root)
    before = [rows_of(url) for url in mesh.databases]
    files = sorted(str(f) for f in mesh.data.rglob("*"))
    for environment in ("prod", "dev"):
        found = opened[separate].analyze(
            named(root, ("crm", "sales", "finance")), now=at(NOW), environment=environment
        )
        assert found.work
    assert [rows_of(url) for url in mesh.databases] == before
    assert sorted(str(f) for f in mesh.data.rglob("*")) == files


def breaking(mesh: DiamondMesh, opened: Mesh, root: Path, **more: Any) -> Analysis:
    """The analysis of a change far upstream."""
    if not root.exists():
        mesh.copy(root)
        edit(root, "crm/models/customers.sql", ("(id % 3)", "(id % 4)"))
    return opened.analyze(named(root, ["crm"]), **{"now": at(NOW), **more})


def test_the_same_change_gives_the_same_bytes(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """So that a comment is updated only where something is different; the marker is its first line."""
    first, second = (breaking(meshes[False], opened[False], tmp_path / "files") for _ in range(2))
    assert markdown(first) == markdown(second)
    assert data.dumped(data.analyze(first)) == data.dumped(data.analyze(second))
    assert markdown(first).splitlines()[0] == marker("prod")


def test_the_comment_is_the_one_of_the_picture(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """`analysis_comment.md`, of which docs/explanation/analysis-comment.png is made, is what is said today."""
    (case,) = [c for c in CASES if c.name.startswith("three projects")]
    root = meshes[False].copy(tmp_path / "files")
    case.change(root)
    said = markdown(opened[False].analyze(named(root, case.projects), now=at(NOW)))
    for changing, fixed in (
        (r"\b[\d.]+s\b", "1.5s"),
        (r"revision \d+", "revision 9"),
        (r"plan \w+ on \w+", "plan 1 on 0"),
    ):
        said = re.sub(changing, fixed, said)
    kept = Path(__file__).parent / "analysis_comment.md"
    assert said == kept.read_text(encoding="utf-8")


def test_work_that_its_own_runs_do_waits_for_their_ticks(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """A deploy does its part at once; finance, with a state of its own, goes on at ten past."""
    found = breaking(meshes[True], opened[True], tmp_path / "files")
    first = {w.model.split('"')[-2]: w.first_at for w in found.work}
    assert first["customers"] == first["orders"] == at(NOW)
    assert first["history"] == at(135)  # a quarter past is a tick of sales
    assert first["revenue"] == first["summary"] == first["trail"] == at(190)


def test_what_is_held_keeps_the_rest_until_somebody_releases_it(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """The hindrance is named with its parent and its range, and no instant is promised."""
    mesh = opened[False]
    root = meshes[False].copy(tmp_path / "files")
    edit(root, ORDERS, ("score::BIGINT AS amount", "(score + 1)::BIGINT AS amount"))
    mesh.hold("crm.customers", span(60, 65), reason="wrong", by="test")
    try:
        found = mesh.analyze(named(root, ["sales"]), now=at(NOW))
    finally:
        mesh.release("crm.customers", by="test")
    works = {w.model.split('"')[-2]: w for w in found.work if w.by == "deploy"}
    orders = works["orders"]
    assert IntervalSet([span(60, 75)]) & orders.ready == IntervalSet()
    (held,) = [h for h in orders.hindrances if h.reason == "held"]
    assert (held.range, held.until) == (IntervalSet([span(60, 75)]), None)
    assert orders.complete_at is None
    assert IntervalSet([span(60, 120)]) & works["by_country"].ready == IntervalSet()


def test_open_requests_and_live_deploys_are_met(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """What somebody asked for already, where the change computes it anyway, is named by its number."""
    mesh = opened[False]
    mesh.restate("sales.orders", span(30, 45), reason="why", by="test", apply=True)
    (request,) = [r for r in mesh.requests() if r.state == "open"]
    try:
        found = breaking(meshes[False], mesh, tmp_path / "files")
    finally:
        mesh.cancel_request(request.request_id, "test")
    (met,) = found.collisions
    assert (met.what, met.number, met.range) == ("request", request.request_id, IntervalSet([span(30, 45)]))
    assert "collision" in found.flags


SUMMARY = "finance/models/summary.sql"
EXTRA = "MODEL (name finance.extra, kind FULL, cron '@hourly');\nSELECT 1::INT AS one\n"
SCORES = by_time(
    "finance.scores", "@hourly", "SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts FROM crm.customers WHERE ts >= @start_dt AND ts < @end_dt"
)  # fmt: skip


def _renamed(root: Path) -> None:
    text = (root / SUMMARY).read_text()
    remove(root, SUMMARY)
    write(root, "finance/models/sums.sql", text.replace("finance.summary", "finance.sums"))


FLAGGED = {
    "breaking": ("crm", lambda root: edit(root, CUSTOMERS, ("(id % 3)", "(id % 4)")), "breaking cross-project restatement"),
    "that nobody reads": ("finance", lambda root: edit(root, SUMMARY, ("SUM(amount)", "MAX(amount)")), "breaking"),
    "forward-only": ("sales", lambda root: edit(root, HISTORY, ("amount::BIGINT AS", "(amount + 1)::BIGINT AS")), "breaking cross-project restatement"),
    "a seed": ("crm", lambda root: edit(root, "crm/seeds/countries.csv", ("DE,19", "DE,16")), "breaking cross-project"),
    "removed": ("finance", lambda root: remove(root, SUMMARY), "breaking"),
    "removed, and reads across": ("finance", lambda root: remove(root, "finance/models/trail.sql"), "breaking"),
    "renamed": ("finance", _renamed, "breaking"),
    "reads less across": ("finance", lambda root: edit(root, REVENUE, ("SUM(c.score)", "COUNT(c.id)")), "breaking"),
    "added": ("finance", lambda root: write(root, "finance/models/extra.sql", EXTRA), ""),
    "added, and reads across": ("finance", lambda root: write(root, "finance/models/scores.sql", SCORES), "cross-project"),
    "a column more": ("crm", lambda root: edit(root, CUSTOMERS, ("AS score", "AS score, 7::INT AS region")), ""),
    "an audit": ("finance", lambda root: edit(root, REVENUE, ("not_null", "positive, not_null")), ""),
    "an owner": ("sales", lambda root: edit(root, ORDERS, ("owner bert", "owner dora")), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGGED)
def test_what_ci_can_fail_on(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], name: str, tmp_path: Path
) -> None:
    """As the help of `--fail-on` says it, of each sort of change."""
    project, change, flags = FLAGGED[name]
    root = meshes[False].copy(tmp_path / "files")
    change(root)
    found = opened[False].analyze(named(root, [project]), now=at(NOW))
    assert (" ".join(found.flags), found.refused) == (flags, False)


def test_a_plan_that_drops_what_only_dev_has_of_another_project_is_refused(twin: DiamondMesh) -> None:
    """SQLMesh takes the other projects' models from prod: what only dev has of them would be gone."""
    write(
        twin.folder,
        "finance/models/extra.sql",
        "MODEL (name finance.extra, kind FULL, cron '@hourly');\nSELECT 1::INT AS one\n",
    )
    with twin.mesh() as mesh:
        mesh.deploy("finance", environment="dev", now=at(NOW))
        edit(twin.folder, ORDERS, ("score::BIGINT AS amount", "(score + 1)::BIGINT AS amount"))
        found = mesh.analyze({"sales": None}, environment="dev", now=at(NOW))
        both = mesh.analyze({"sales": None, "finance": None}, environment="dev", now=at(NOW))
    assert [(r.what, r.project) for r in found.refusals] == [("foreign_model", "finance")]
    assert not both.refusals


def test_wrong_checkouts_are_named(
    meshes: dict[bool, DiamondMesh], opened: dict[bool, Mesh], tmp_path: Path
) -> None:
    """A folder that is not there, one of another project, and one without a key, which would drop everything else."""
    mesh, root = opened[False], meshes[False].copy(tmp_path / "files")
    with pytest.raises(ConfigError, match="no folder"):
        mesh.analyze({"crm": tmp_path / "nowhere"})
    with pytest.raises(ProjectError, match="has `project: sales`"):
        mesh.analyze({"crm": root / "sales"})
    config = json.loads((root / "crm/config.yaml").read_text())
    del config["project"]
    (root / "crm/config.yaml").write_text(json.dumps(config))
    with pytest.raises(ProjectError, match="would drop all other projects"):
        mesh.analyze({"crm": root / "crm"})


def test_the_command(meshes: dict[bool, DiamondMesh], tmp_path: Path) -> None:
    """Text, JSON and Markdown; 1 where a flag is met, 2 where the change must not be deployed."""
    mesh = meshes[False]
    root = mesh.copy(tmp_path / "files")
    edit(root, "crm/models/customers.sql", ("(id % 3)", "(id % 4)"))
    said = ("analyze", f"crm={root / 'crm'}", "--now", f"{at(NOW):%Y-%m-%dT%H:%M}")
    text = mesh.cli(*said)
    assert "crm.customers changed, breaking" in text.stdout
    assert "deploy crm" in text.stdout
    failed = mesh.cli(
        *said, "--markdown", "--fail-on", "collision", "--fail-on", "cross-project", check=False
    )
    assert failed.returncode == 1
    assert failed.stdout.startswith(marker("prod"))
    assert "failed on: cross-project" in failed.stderr
    (root / "crm/models/customers.sql").unlink()
    refused = mesh.cli(*said, "--json", check=False)
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["refused"] is True
    assert mesh.cli("analyze", "crm=", check=False).returncode == 2
