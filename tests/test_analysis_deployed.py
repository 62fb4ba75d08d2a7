"""What an analysis says against what deploys and runs then do, and whether every table is a recomputation's.

Each change is deployed in the order that the analysis gives, on a copy of the mesh; then each project runs on its schedule. The
other side is a mesh that is built from the changed files from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from analysis_cases import CASES, NOW, Case
from diamond_mesh import DiamondMesh, named
from meshgate.graph import name_parts
from meshgate.interval import MIN_INSTANT, IntervalSet
from tiny_mesh import at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.coordinator.run import RunReport
    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-deployed")]

DEPLOYED = [case for case in CASES if case.deploys]
BOUNDED = ("breaking, far upstream",)
RUNS = (("crm", 185), ("sales", 186), ("finance", 190), ("crm", 245), ("sales", 246), ("finance", 250))
"""Two rounds: what the first makes stale, the second computes again."""
UPTO = 240


@pytest.fixture(scope="module", params=["shared", "separate"])
def mesh(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: LocalPostgres,
    extensions: None,
) -> DiamondMesh:
    """Everything evaluated up to minute 125."""
    folder = tmp_path_factory.mktemp(request.param) / "mesh"
    return DiamondMesh(folder, postgres, separate=request.param == "separate").build()


def cases() -> list[Any]:
    """All of them; `make test-slow` takes one."""
    return [
        pytest.param(case, id=case.name, marks=() if case.name in BOUNDED else pytest.mark.analysis)
        for case in DEPLOYED
    ]


@pytest.mark.parametrize("case", cases())
def test_deploys_and_runs_do_what_the_analysis_says(
    mesh: DiamondMesh, case: Case, tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Deploys commit exactly what it announces, runs at least that, and every table that is not left is right."""
    copy = mesh.copy(tmp_path / "files")
    case.change(copy)
    twin = mesh.clone(tmp_path / "twin", copy)
    with twin.mesh() as opened:
        found = opened.analyze(named(twin.folder, case.projects), now=at(NOW))
        assert not found.refused
        for project in found.order.projects:
            report = opened.deploy(project, now=at(NOW))
            announced(found, project, report, first=project == found.order.projects[0])
        done: dict[str, IntervalSet] = {}
        for project, minute in RUNS:
            for name, pieces in opened.run(project, now=at(minute)).committed.items():
                done[name] = done.get(name, IntervalSet()) | IntervalSet(pieces)
        graph = opened.ledger.manifest("prod").graph
        for work in found.work:
            if work.by == "run":
                again = done.get(work.model, IntervalSet())
                # A refresh makes the whole table anew, whatever time it is recorded for.
                assert again if graph[work.model].kind.reads_everything else work.range <= again, work
    whole = fresh(mesh, copy, tmp_path / "whole", postgres)
    left = {one.model for one in found.left}
    left |= {name for name in graph.order() if {e.parent for e in graph.parents(name)} & left}
    for name in graph.order():
        if graph[name].version and name not in left and graph[name].kind.recorded:
            table = ".".join(name_parts(name)[-2:])
            assert upto(twin.table(table)) == upto(whole.table(table)), table


def announced(found: Analysis, project: str, report: RunReport, *, first: bool) -> None:
    """A deploy evaluates what is ready of what it was to do; what was merely due is its own business.

    SQLMesh ends a plan where its models were recorded so far, unless none of them has got to the present: after a first
    deploy that has, the newest unit is left to the runs.
    """
    assert report.state in ("done", "nothing_to_do"), report
    for work in found.work:
        if work.by == "deploy" and work.doer == project:
            committed = IntervalSet(report.committed.get(work.model, ()))
            least = work.ready if first else work.ready.clip(MIN_INSTANT, at(120))
            assert least <= committed & work.range <= work.ready, (work, committed)


def fresh(mesh: DiamondMesh, files: Path, folder: Path, postgres: LocalPostgres) -> DiamondMesh:
    """A mesh that never was anything else than the changed files."""
    found = DiamondMesh.over(files, folder, postgres, separate=mesh.separate)
    found.feed(0, 300)
    with found.mesh() as opened:
        for project in ("crm", "sales", "finance"):
            opened.deploy(project, now=at(NOW))
        for project, minute in RUNS:
            opened.run(project, now=at(minute))
    return found


def upto(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows in an order that does not depend on when they were written."""
    end = span(0, UPTO).end.replace(tzinfo=None)
    return sorted((row for row in rows if not any(hasattr(v, "year") and v >= end for v in row)), key=str)
