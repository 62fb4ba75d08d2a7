"""What an analysis says against what deploys and runs then do, and whether every table is a recomputation's.

Each change is deployed by its analysis, as it comes back from its file, on a copy of the mesh; what it leaves is asked for; then
each project runs on its schedule. The other side is a mesh that is built from the changed files from the beginning.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from analysis_cases import CASES, NOW, Case
from diamond_mesh import DiamondMesh, named
from meshgate.analysis import parse
from meshgate.errors import EvaluationError
from meshgate.graph import name_parts
from meshgate.interval import MIN_INSTANT, IntervalSet
from meshgate.report import data
from tiny_mesh import at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.coordinator.deploys import Deployed
    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-deployed")]

STRANGER = "a model of a checkout that is missing"
"""The analysis warns: what it reads is not there, so it may be deployed, and cannot be evaluated."""
DEPLOYED = [case for case in CASES if case.deploys and case.name != STRANGER]
BOUNDED = ("breaking, far upstream",)
RUNS = (("crm", 185), ("sales", 186), ("finance", 190), ("crm", 245), ("sales", 246), ("finance", 250))
"""Two rounds: what the first makes stale, the second computes again."""
UPTO = 240


@pytest.fixture(scope="module", params=["shared", pytest.param("separate", marks=pytest.mark.analysis)])
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
    """Deploys commit exactly what it announces, runs at least that, and every table that may be computed again is right."""
    copy = mesh.copy(tmp_path / "files")
    case.change(copy)
    twin = mesh.clone(tmp_path / "twin", copy)
    with twin.mesh() as opened:
        found = opened.analyze(named(twin.folder, case.projects), now=at(NOW))
        assert not found.refused
        document = json.loads(data.dumped(data.analyze(found)))
        assert parse(document, "FILE") == found
        for place, one in enumerate(opened.deploy_analysed(parse(document, "FILE"), now=at(NOW)).projects):
            announced(found, one, first=place == 0)
        asked = opened.leftovers(found, apply=True)
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
    left = {one.left.model for one in asked.models if one.preview is None}
    left |= {name for name in graph.order() if {e.parent for e in graph.parents(name)} & left}
    for name in graph.order():
        if graph[name].version and name not in left and graph[name].kind.recorded:
            table = ".".join(name_parts(name)[-2:])
            assert upto(twin.table(table)) == upto(whole.table(table)), table


def test_what_reads_a_table_that_nobody_makes_fails_its_deploy(mesh: DiamondMesh, tmp_path: Path) -> None:
    """And leaves everything as it was: the next analysis says the same."""
    copy = mesh.copy(tmp_path / "files")
    next(case for case in CASES if case.name == STRANGER).change(copy)
    twin = mesh.clone(tmp_path / "twin", copy)
    with twin.mesh() as opened:
        found = opened.analyze(named(twin.folder, ["finance"]), now=at(NOW))
        with pytest.raises(EvaluationError, match="returns does not exist"):
            opened.deploy_analysed(found, now=at(NOW))
        assert (
            opened.analyze(named(twin.folder, ["finance"]), now=at(NOW)).base.promoted == found.base.promoted
        )


def announced(found: Analysis, deployed: Deployed, *, first: bool) -> None:
    """A deploy evaluates what is ready of what it was to do; what was merely due is its own business.

    SQLMesh ends a plan where its models were recorded so far, unless none of them has got to the present: after a first
    deploy that has, the newest unit is left to the runs.
    """
    report = deployed.report
    assert report is not None or deployed.what == "there", deployed
    for work in found.work:
        if report is not None and work.by == "deploy" and work.doer == deployed.project:
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
