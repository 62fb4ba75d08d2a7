"""Which columns a change takes from whom: through stars, joins and other projects' views, and what SQLMesh calls it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from duck_mesh import DuckMesh, copied, ranged
from meshgate.analysis import parse
from meshgate.report import change as say
from meshgate.report import data
from tiny_mesh import at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-columns")]

NOW = 65
LIMITS = "ts >= @start_dt AND ts < @end_dt"
BOTH = "e.ts >= @start_dt AND e.ts < @end_dt AND c.ts >= @start_dt AND c.ts < @end_dt"
COUNTRY = " id % 3 AS country,"
CUSTOMERS = ranged(
    "up.customers", f"SELECT id, ts,{COUNTRY} value * 2 AS score FROM raw.events WHERE {LIMITS}",
)  # fmt: skip
READERS = {
    "a CTE of all columns": f"WITH c AS (SELECT * FROM up.customers WHERE {LIMITS}) SELECT id, ts, country FROM c",
    "all columns, inside": f"SELECT id, ts, country FROM (SELECT * FROM up.customers) WHERE {LIMITS}",
    "a join": f"SELECT e.id, e.ts, country FROM up.events AS e JOIN up.customers AS c ON e.id = c.id WHERE {BOTH}",
    "a join by name": f"SELECT id, e.ts, country FROM up.events AS e JOIN up.customers AS c USING (id) WHERE {BOTH}",
    "a union": "SELECT id, ts, country FROM (SELECT * FROM up.customers UNION ALL SELECT * FROM up.customers) "
    f"WHERE {LIMITS}",
    "a window": "SELECT id, ts FROM (SELECT *, row_number() OVER (PARTITION BY country ORDER BY ts) AS n FROM up.customers) "
    f"WHERE n = 1 AND {LIMITS}",
    "a query inside": "SELECT id, ts, (SELECT MAX(country) FROM up.customers AS c WHERE c.id = e.id) AS country "
    f"FROM up.events AS e WHERE {LIMITS}",
}
"""Queries that read a column in ways in which its name does not stand beside its table's."""
OTHERS = {
    "all columns": f"SELECT * FROM up.customers WHERE {LIMITS}",
    "all of both": f"SELECT * FROM up.customers WHERE {LIMITS} UNION ALL SELECT * FROM up.customers WHERE {LIMITS}",
    "another one": f"WITH c AS (SELECT * FROM up.customers WHERE {LIMITS}) SELECT id, ts, score FROM c",
    "different rows": f"WITH c AS (SELECT DISTINCT * FROM up.customers) SELECT id, ts, score FROM c WHERE {LIMITS}",
    "their number": f"SELECT ts, COUNT(*) AS n FROM (SELECT * FROM up.customers) WHERE {LIMITS} GROUP BY 1",
}
"""Queries to which it makes no difference whether the column is there."""
FORWARD = "forward_only TRUE"
EXTERNAL = "- name: raw.events\n  columns:\n    id: BIGINT\n    ts: TIMESTAMP\n    value: BIGINT\n"


def made(folder: Path, postgres: LocalPostgres, queries: Mapping[str, str], **more: Any) -> DuckMesh:
    """Each query as a model of downstream, all deployed; upstream has events and customers."""
    events = copied("up.events", "raw.events")
    models = {f"m{n}": ranged(f"down.m{n}", query) for n, query in enumerate(queries.values())}
    duck = DuckMesh(
        folder, postgres, upstream={"events": events, "customers": CUSTOMERS}, downstream=models, **more
    )
    duck.feed(0, 60)
    deploy(duck, *duck.projects)
    return duck


def deploy(duck: DuckMesh, *projects: str) -> None:
    with duck.mesh() as mesh:
        for project in projects:
            mesh.deploy(project, now=at(NOW))


def analysed(duck: DuckMesh, *projects: str) -> Analysis:
    with duck.mesh() as mesh:
        return mesh.analyze(dict.fromkeys(projects), now=at(NOW))


def change(found: Analysis, model: str) -> tuple[str, str | None]:
    (one,) = (c for c in found.changes if model in c.model)
    return one.how, one.category


def test_a_column_that_goes_is_missed_wherever_its_name_stands(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """By exactly those who name it, whether their files are there or not; in between they come before who removes it."""
    duck = made(tmp_path, postgres, READERS | OTHERS)
    duck.write("upstream", "customers", CUSTOMERS.replace(COUNTRY, ""))
    told = [
        f"column country of up.customers is removed, and down.m{n} of downstream reads it"
        for n in range(len(READERS))
    ]
    for projects in (("upstream",), ("upstream", "downstream")):
        found = analysed(duck, *projects)
        assert sorted(one.message for one in found.refusals) == told, projects
    for n in range(len(READERS)):
        (duck.folder / f"downstream/models/m{n}.sql").unlink()
    found = analysed(duck, "upstream", "downstream")
    assert not found.refused
    assert {(p.first, p.then) for p in found.order.precedences} == {("downstream", "upstream")}
    assert {p.child for p in found.order.precedences} == {
        f'"house"."down"."m{n}"' for n in range(len(READERS))
    }


def test_a_star_in_a_third_project_passes_the_order_on(tmp_path: Path, postgres: LocalPostgres) -> None:
    """A reader of a new column comes after the project that adds it, though a view of a third one is what it reads."""
    view = "MODEL (name mid.seen, kind VIEW, cron '@hourly');\nSELECT * FROM up.customers\n"
    top = ranged("a.top", f"SELECT id, ts, score FROM mid.seen WHERE {LIMITS}")
    duck = made(tmp_path, postgres, {}, more={"mid": {"seen": view}, "a": {"top": top}})
    duck.write("upstream", "customers", CUSTOMERS.replace("AS score", "AS score, 7 AS region"))
    duck.write("a", "top", top.replace("ts, score", "ts, score, region"))
    for projects in (("a", "upstream"), ("a", "mid", "upstream")):
        found = analysed(duck, *projects)
        assert [(p.first, p.then, p.columns) for p in found.order.precedences] == [
            ("upstream", "a", ("region",))
        ]
    with duck.mesh() as mesh:
        assert mesh.deploy_analysed(found, now=at(NOW)).done


def test_a_star_is_followed_by_the_deploy_that_it_reads(tmp_path: Path, postgres: LocalPostgres) -> None:
    """A file that says what it said is not changed itself, whether it is given or not; nor does it ask for an order."""
    duck = made(tmp_path, postgres, {"all": OTHERS["all columns"]})
    duck.write("upstream", "customers", CUSTOMERS.replace("AS score", "AS points"))
    for projects in (("upstream",), ("downstream", "upstream")):
        found = analysed(duck, *projects)
        assert change(found, "m0")[0] == "indirect"
        assert (found.order.state, found.refusals) == ("any", ())
        assert {(w.model, w.doer) for w in found.work} == {
            ('"house"."up"."customers"', "upstream"), ('"house"."down"."m0"', "upstream"),
        }  # fmt: skip


def test_a_version_that_comes_back_breaks_what_was_there_since(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """SQLMesh keeps what it called it when it was new: then it only had a new column."""
    duck = made(tmp_path, postgres, {"one": OTHERS["another one"]})
    back = CUSTOMERS.replace("AS score", "AS score, 7 AS region")
    duck.write("upstream", "customers", back)
    assert change(analysed(duck, "upstream"), "customers") == ("direct", "non_breaking")
    deploy(duck, "upstream")
    duck.write("upstream", "customers", back.replace("value * 2", "value * 3"))
    deploy(duck, "upstream")
    duck.write("upstream", "customers", back)
    found = analysed(duck, "upstream")
    assert change(found, "customers") == ("direct", "breaking")
    assert "breaking" in found.flags


def test_a_source_that_two_projects_declare_is_nobodys_change(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """SQLMesh gives it to whoever was deployed last; nothing is computed for that, and no deploy of another one is it."""
    duck = made(tmp_path, postgres, {"one": OTHERS["another one"]})
    for project in duck.projects:
        duck.write(project, "external_models.yaml", EXTERNAL)
        deploy(duck, project)
    assert analysed(duck, "upstream").flags == ()
    duck.write("upstream", "customers", CUSTOMERS.replace("value * 2", "value * 3"))
    found = parse(json.loads(data.dumped(data.analyze(analysed(duck, "upstream")))), "FILE")
    with duck.mesh() as mesh:
        assert mesh.deploy_analysed(found, now=at(NOW)).done
        assert mesh.leftovers(found).waiting == ()
        assert [one.what for one in mesh.deploy_analysed(found, now=at(NOW)).projects] == ["there"]


def test_columns_that_must_not_go_are_refused_by_name(tmp_path: Path, postgres: LocalPostgres) -> None:
    """SQLMesh refuses the whole plan, and says not of which model; what else there is to say is said."""
    typed = CUSTOMERS.replace("id, ts, id % 3 AS", "id::INT AS id, ts::TIMESTAMP AS ts, (id % 3)::INT AS").replace(
        "value * 2", "(value * 2)::INT"
    )  # fmt: skip
    kept = ranged("up.kept", f"SELECT * FROM up.customers WHERE {LIMITS}", kind=FORWARD)
    duck = made(tmp_path, postgres, {})
    duck.write("upstream", "customers", typed)
    duck.write("upstream", "kept", kept)
    deploy(duck, "upstream")
    duck.write("upstream", "customers", typed.replace(" (id % 3)::INT AS country,", ""))
    found = analysed(duck, "upstream")
    assert [(r.what, r.message) for r in found.refusals] == [
        ("forward_only", "SQLMesh refuses to plan up.kept: Plan requires a destructive change to a forward-only model."),
    ]  # fmt: skip
    assert change(found, "customers") == ("direct", "breaking")


def test_an_audit_that_is_removed_breaks_nothing(tmp_path: Path, postgres: LocalPostgres) -> None:
    """It holds no data."""
    duck = made(tmp_path, postgres, {})
    audit = "AUDIT (name odd, standalone true); SELECT * FROM up.events WHERE value < 0"
    duck.write("upstream", "audits/odd.sql", audit)
    deploy(duck, "upstream")
    (duck.folder / "upstream/audits/odd.sql").unlink()
    found = analysed(duck, "upstream")
    assert (change(found, "odd"), found.flags) == (("removed", "metadata"), ())


def test_whose_columns_are_not_known_is_said_to_read_perhaps(tmp_path: Path, postgres: LocalPostgres) -> None:
    """A Python model: nobody can tell whether it reads what goes, so it is neither refused nor called safe."""
    code = (
        "from sqlmesh import model\nfrom sqlmesh.core.model import ModelKindName\n\n\n"
        "@model('down.code', kind={'name': ModelKindName.FULL}, cron='@hourly', columns={'n': 'int'}, depends_on=['up.customers'])\n"
        "def execute(context, **_):\n"
        "    yield context.fetchdf(f\"SELECT 1 AS n FROM {context.resolve_table('up.customers')} LIMIT 1\")\n"
    )
    duck = made(tmp_path, postgres, {})
    duck.write("downstream", "models/code.py", code)
    deploy(duck, "downstream")
    duck.write("upstream", "customers", CUSTOMERS.replace(COUNTRY, ""))
    found = analysed(duck, "upstream")
    assert not found.refused
    assert found.warnings[-1] == (
        "column country of up.customers is removed, and which columns down.code of downstream reads is not known: look there, "
        "or give the checkout of downstream"
    )
    (boundary,) = found.boundaries
    assert "may read up.customers.country, which is removed" in say.boundary(boundary)
