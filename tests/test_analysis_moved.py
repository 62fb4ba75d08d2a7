"""Worlds that move between an analysis and its deploys, and environments that several projects share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from analysis_cases import CASES, CUSTOMERS, HISTORY, NOW, ORDERS, REVENUE
from diamond_mesh import DiamondMesh, edit, named, opened, remove, write
from meshgate.errors import ConfigError, EvaluationError, OutdatedError, ProjectError
from meshgate.report.pull_request import markdown
from tiny_mesh import at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshgate.coordinator.progress import Progress
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.analysis, pytest.mark.xdist_group("analysis-moved")]

GOES = "three projects: a column goes, and nobody reads it any more"
COLUMN = ("AS score", "AS score, 7::INT AS region")
READ = ("AS amount", "AS amount, region::INT AS region")
COUNTED = ("SUM(c.score)", "COUNT(c.id)")
OTHER = ("score::BIGINT AS amount", "(score + 1)::BIGINT AS amount")
FOURTH = ("(id % 3)", "(id % 4)")

LOG = (
    "MODEL (name finance.log, kind INCREMENTAL_UNMANAGED, cron '@hourly');\n"
    "SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, score::BIGINT AS score FROM crm.customers WHERE ts >= @start_dt AND ts < @end_dt\n"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None) -> DiamondMesh:
    """One state for all; everything is evaluated up to minute 125."""
    return DiamondMesh(tmp_path_factory.mktemp("moved") / "mesh", postgres).build()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None) -> DiamondMesh:
    """The same, and finance has a state of its own."""
    return DiamondMesh(tmp_path_factory.mktemp("apart") / "mesh", postgres, separate=True).build()


def copied(mesh: DiamondMesh, folder: Path) -> DiamondMesh:
    """A mesh of its own, to be changed."""
    return mesh.clone(folder / "twin", mesh.copy(folder / "files"))


def after(mesh: Mesh, project: str, then: Callable[[], object]) -> None:
    """Let somebody come in between: as soon as a project is deployed."""

    def tell(progress: Progress) -> None:
        if (getattr(progress, "project", None), getattr(progress, "what", None)) == (project, "deployed"):
            then()

    mesh._bench = mesh._bench.__class__(mesh.config, mesh.ledger, mesh._open_project, mesh.stop, tell)


def configure(folder: Path, project: str, statement: str) -> None:
    """Let a project run a statement before each plan and run."""
    file = folder / project / "config.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "before_all": [statement]}))


def deploy(folder: Path, project: str) -> None:
    """Somebody else's deploy."""
    with opened(folder) as mesh:
        mesh.deploy(project, now=at(NOW))


def test_a_project_that_is_not_named_has_moved(apart: DiamondMesh, tmp_path: Path) -> None:
    """It has a state of its own, and was deployed with other files than those that were analysed: they may read what goes."""
    twin = copied(apart, tmp_path)
    edit(twin.folder, CUSTOMERS, COLUMN)
    edit(twin.folder, REVENUE, ("owner clara", "owner dora"))
    with twin.mesh() as mesh:
        found = mesh.analyze(named(twin.folder, ("crm", "finance")), now=at(NOW))
        edit(twin.folder, REVENUE, COUNTED)
        mesh.deploy("finance", now=at(NOW))
        with pytest.raises(OutdatedError, match="project finance was deployed with other files"):
            mesh.deploy_analysed(found, {"crm": None}, now=at(NOW))
        assert "region" in {
            d.name for c in mesh.analyze({"crm": None}, now=at(NOW)).changes for d in c.differences
        }


def test_another_state_that_moves_between_two_deploys(apart: DiamondMesh, tmp_path: Path) -> None:
    """Nobody looks at it, and the ledger tells: under each lease, not only before the first deploy."""
    twin = copied(apart, tmp_path)
    edit(twin.folder, CUSTOMERS, COLUMN)
    edit(twin.folder, ORDERS, READ)
    with twin.mesh() as mesh:
        found = mesh.analyze(named(twin.folder, ("crm", "sales")), now=at(NOW))
        edit(twin.folder, REVENUE, COUNTED)
        after(mesh, "crm", lambda: deploy(twin.folder, "finance"))
        with pytest.raises(OutdatedError, match=r"lake.finance.revenue of finance is another one") as refused:
            mesh.deploy_analysed(found, now=at(NOW))
        assert (refused.value.fields["project"], refused.value.fields["deployed"]) == ("sales", ["crm"])


def test_what_has_to_come_first_is_taken_back_in_between(apart: DiamondMesh, tmp_path: Path) -> None:
    """Somebody deploys the old files of who has stopped reading: the column that it reads again does not go."""
    twin = copied(apart, tmp_path)
    old = twin.copy(tmp_path / "old")
    next(case for case in CASES if case.name == GOES).change(twin.folder)
    with twin.mesh() as mesh:
        found = mesh.analyze(named(twin.folder, ("crm", "sales", "finance")), now=at(NOW))
        assert found.order.projects == ("sales", "finance", "crm")
        after(mesh, "finance", lambda: deploy(old, "finance"))
        with pytest.raises(ConfigError, match="finance has to be deployed before crm"):
            mesh.deploy_analysed(found, now=at(NOW))
        mesh._bench = mesh._bench.__class__(mesh.config, mesh.ledger, mesh._open_project)
        assert [one.what for one in mesh.deploy_analysed(found, now=at(NOW)).projects] == [
            "there", "deployed", "deployed",
        ]  # fmt: skip


def test_what_plain_sqlmesh_planned_before_the_analysis_is_no_movement(
    whole: DiamondMesh, tmp_path: Path
) -> None:
    """The ledger holds what the last deploy left there, and the analysis what is promoted: the plan came between."""
    twin = copied(whole, tmp_path)
    edit(twin.folder, CUSTOMERS, ("owner anna", "owner anton"))
    with twin.plain("crm", load=True) as context:
        context.plan("prod", auto_apply=True, no_prompts=True, skip_tests=True)
    edit(twin.folder, HISTORY, ("amount::BIGINT AS", "(amount + 1)::BIGINT AS"))
    with twin.mesh() as mesh:
        mesh.run("crm", now=at(NOW))
        found = mesh.analyze({"sales": None}, now=at(NOW))
        assert mesh.deploy_analysed(found, now=at(NOW)).done
        assert len(mesh.leftovers(found, apply=True).made) == 1
        edit(twin.folder, CUSTOMERS, ("owner anton", "owner berta"))
        mesh.deploy("crm", now=at(NOW))
        with pytest.raises(OutdatedError, match="project crm was deployed with other files"):
            mesh.leftovers(found)


def test_production_that_moves_under_another_environment(whole: DiamondMesh, tmp_path: Path) -> None:
    """SQLMesh takes the other projects' models from there: a deploy would bring what nobody has analysed."""
    twin = copied(whole, tmp_path)
    with twin.mesh() as mesh:
        edit(twin.folder, ORDERS, OTHER)
        mesh.deploy("sales", environment="dev", now=at(NOW))
        edit(twin.folder, ORDERS, ("+ 1)", "+ 2)"))
        found = mesh.analyze({"sales": None}, environment="dev", now=at(NOW))
        before = dict(mesh.ledger.manifest("dev").version_ids)
        edit(twin.folder, CUSTOMERS, FOURTH)
        mesh.deploy("crm", now=at(NOW))
        with pytest.raises(OutdatedError, match=r"lake.crm.customers of crm is another one"):
            mesh.deploy_analysed(found, now=at(NOW))
        assert mesh.ledger.manifest("dev").version_ids == before
        again = mesh.analyze({"sales": None}, environment="dev", now=at(NOW))
        assert mesh.deploy_analysed(again, now=at(NOW)).done


def test_a_deploy_to_an_environment_takes_back_no_other_projects_changes(
    whole: DiamondMesh, tmp_path: Path
) -> None:
    """Plain SQLMesh goes back to production's models without a word. What is merely an older copy of production is followed."""
    twin = copied(whole, tmp_path)
    customers = '"lake"."crm"."customers"'
    with twin.mesh() as mesh:
        edit(twin.folder, CUSTOMERS, FOURTH)
        mesh.deploy("crm", environment="dev", now=at(NOW))
        mine = mesh.ledger.manifest("dev").version_ids[customers]
        with pytest.raises(ProjectError, match="the files of 'sales' say what prod has"):
            mesh.deploy("sales", environment="old", now=at(NOW))
        edit(twin.folder, ORDERS, OTHER)
        mesh.deploy("sales", environment="old", now=at(NOW))
        found = mesh.analyze({"sales": None}, environment="dev", now=at(NOW))
        assert [(r.what, r.project) for r in found.refusals] == [("foreign_changes", "crm")]
        with pytest.raises(ProjectError) as refused:
            mesh.deploy("sales", environment="dev", now=at(NOW))
        assert refused.value.message == found.refusals[0].message
        assert refused.value.message.startswith(
            "the plan of sales drops the changes of project crm that were deployed"
        )
        assert mesh.ledger.manifest("dev").version_ids[customers] == mine
        mesh.deploy("crm", now=at(NOW))  # production has them too, and nothing is lost
        mesh.deploy("sales", environment="dev", now=at(NOW))
        assert mesh.ledger.manifest("dev").version_ids[customers] == mine
        mesh.deploy("sales", environment="old", now=at(NOW))
        assert mesh.ledger.manifest("old").version_ids[customers] == mine
        edit(twin.folder, CUSTOMERS, ("(id % 4)", "(id % 5)"))
        with pytest.raises(ProjectError, match="drops the changes of project sales"):
            mesh.deploy("crm", environment="dev", now=at(NOW))
        mesh.deploy("crm", environment="dev", now=at(NOW), dropping=True)
        assert mesh.ledger.manifest("dev").version_ids[customers] != mine


def test_statements_are_deployed_with_their_project(whole: DiamondMesh, tmp_path: Path) -> None:
    """Nothing that is computed changes, and still it is not deployed before its deploy; other ones are other files."""
    twin = copied(whole, tmp_path)
    with twin.mesh() as mesh:
        for project in ("crm", "sales"):
            configure(twin.folder, project, "SELECT 1")
            found = mesh.analyze({project: None}, now=at(NOW))
            assert found.changes == ()
            assert [one.what for one in mesh.deploy_analysed(found, now=at(NOW)).projects] == ["deployed"]
            assert [one.what for one in mesh.deploy_analysed(found, now=at(NOW)).projects] == ["there"]
        configure(twin.folder, "sales", "SELECT 2")
        with twin.mesh() as other:
            found = other.analyze({"sales": None}, now=at(NOW))
        configure(twin.folder, "sales", "SELECT 3")
        with pytest.raises(OutdatedError, match="analysed: before_all and after_all of sales is another one"):
            mesh.deploy_analysed(found, now=at(NOW))


def test_a_forward_only_model_goes_back(whole: DiamondMesh, tmp_path: Path) -> None:
    """SQLMesh gives it a stamp that no file has: still it is what was analysed, and is deployed once."""
    twin = copied(whole, tmp_path)
    text = (twin.folder / HISTORY).read_text()
    with twin.mesh() as mesh:
        edit(twin.folder, HISTORY, ("amount::BIGINT AS", "(amount + 1)::BIGINT AS"))
        mesh.deploy("sales", now=at(NOW))
        (twin.folder / HISTORY).write_text(text)
        found = mesh.analyze({"sales": None}, now=at(NOW))
        for what in ("deployed", "there"):
            assert [one.what for one in mesh.deploy_analysed(found, now=at(NOW)).projects] == [what]
        assert len(mesh.leftovers(found, apply=True).made) == 1
        assert mesh.analyze({"sales": None}, now=at(NOW)).base.definitions == tuple(
            evolve(one, before=one.after) for one in found.base.definitions
        )


def test_what_must_not_be_computed_again_is_left_for_good(whole: DiamondMesh, tmp_path: Path) -> None:
    """SQLMesh changes an append-only table forward-only: nobody is told to ask for what no restatement would touch."""
    twin = copied(whole, tmp_path)
    write(twin.folder, "finance/models/log.sql", LOG)
    with twin.mesh() as mesh:
        mesh.deploy("finance", now=at(NOW))
        edit(twin.folder, "finance/models/log.sql", ("score::BIGINT AS", "(score + 1)::BIGINT AS"))
        found = mesh.analyze({"finance": None}, now=at(NOW))
        (left,) = found.left
        assert (left.reason, left.final, left.can_be_asked) == ("forward_only", True, False)
        assert "meshgate restate" not in markdown(found)
        assert mesh.deploy_analysed(found, now=at(NOW)).left == 0
        assert mesh.leftovers(found, apply=True).made == ()


@pytest.mark.parametrize("what", ["model", "column"])
def test_a_new_environment_begins_as_production(whole: DiamondMesh, tmp_path: Path, what: str) -> None:
    """What is removed there and still read is refused before anything is tried, as it is in production."""
    twin = copied(whole, tmp_path)
    if what == "model":
        remove(twin.folder, CUSTOMERS)
    else:
        edit(twin.folder, CUSTOMERS, (" (id % 3)::INT AS country_id,", ""))
    with twin.mesh() as mesh:
        new, prod = (
            mesh.analyze({"crm": None}, environment=environment, now=at(NOW))
            for environment in ("new", "prod")
        )
        assert {r.what for r in new.refusals} == {f"removed_{what}"}
        assert (new.refusals, new.warnings) == (prod.refusals, prod.warnings)
        assert [(c.model, c.how, c.project) for c in new.changes] == [
            (c.model, c.how, c.project) for c in prod.changes
        ]
        assert new.flags == tuple(flag for flag in prod.flags if flag != "restatement")
        with pytest.raises(ConfigError, match="this must not be deployed"):
            mesh.deploy_analysed(new, now=at(NOW))
        with pytest.raises((ProjectError, EvaluationError)):
            mesh.deploy("crm", environment="new", now=at(NOW))
