"""The seam to SQLMesh: which versions it accepts, and how it translates what SQLMesh says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmesh.utils.concurrency import NodeExecutionFailedError
from sqlmesh.utils.errors import AuditError, NodeAuditsErrors, PythonModelEvalError, SQLMeshError

from duck_mesh import DuckMesh, copied, ranged
from meshgate.bridge import contract
from meshgate.bridge.failures import describe
from meshgate.bridge.settings import read_settings
from meshgate.bridge.translate import instant, interval, interval_set, milliseconds, pairs, promoted
from meshgate.errors import ProjectError
from meshgate.graph import Kind, ModelNode
from meshgate.interval import IntervalSet, IntervalUnit
from strategies import instants
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.translate import Promoted
    from meshgate.ledger import Manifest
    from meshgate.local_postgres import LocalPostgres

pytestmark = pytest.mark.xdist_group("bridge")


# Which SQLMesh


def installed(monkeypatch: pytest.MonkeyPatch, sqlmesh: str) -> None:
    real = metadata.version
    monkeypatch.setattr(
        contract.metadata, "version", lambda name: sqlmesh if name == "sqlmesh" else real(name)
    )


@pytest.mark.parametrize("version", ["0.224.9", "0.237.0", "0.237.0.dev3", "1.0.0", "0.100.1", "1"])
def test_a_sqlmesh_outside_the_tested_range_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The error names what is installed, the tested range, and the command that ends it."""
    installed(monkeypatch, version)
    with pytest.raises(ProjectError) as caught:
        contract.check_version()
    assert f"SQLMesh {version} " in caught.value.message
    assert contract.TESTED_RANGE in caught.value.message
    assert f'pip install "{contract.TESTED_RANGE}"' in str(caught.value.hint)


@pytest.mark.parametrize("version", ["0.225.0", "0.236.4", "0.236.99", "0.231.1.dev2"])
def test_a_sqlmesh_inside_the_tested_range_is_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The lowest, the highest, and a development version of one in between."""
    installed(monkeypatch, version)
    contract.check_version()


def test_a_project_is_not_even_looked_at_with_an_untested_sqlmesh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The version is the first thing that is checked: SQLMesh itself might fail in ways that do not name the cause."""
    installed(monkeypatch, "0.237.0")
    with pytest.raises(ProjectError, match="outside the range"):
        read_settings(tmp_path / "not there")


def test_the_tested_range_is_the_one_that_is_installed_with() -> None:
    """What the package requires and what the bridge checks are one range."""
    needs = [text for text in metadata.requires("meshgate") or () if text.startswith("sqlmesh")]
    assert [set(text.removeprefix("sqlmesh[databricks]").split(",")) for text in needs] == [
        set(contract.TESTED_RANGE.removeprefix("sqlmesh").split(","))
    ]


def test_the_installed_sqlmesh_has_every_hook() -> None:
    """What the bridge builds on is there, with the parameters that it uses."""
    contract.check_hooks()


@pytest.mark.parametrize(
    ("hook", "parameters", "named"),
    [
        ("sqlmesh.core.scheduler.Scheduler.gone", {"snapshot"}, "Scheduler.gone without snapshot"),
        (
            "sqlmesh.core.scheduler.Scheduler.evaluate",
            {"snapshot", "novel"},
            "Scheduler.evaluate without novel",
        ),
        ("sqlmesh.core.scheduler.Absent.evaluate", {"snapshot"}, "Absent.evaluate without snapshot"),
    ],
    ids=["method", "parameter", "class"],
)
def test_a_hook_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, hook: str, parameters: set[str], named: str
) -> None:
    """A SQLMesh in the range whose hooks have changed is refused, with the hook and what it lacks."""
    monkeypatch.setattr(contract, "_HOOKS", {hook: parameters})
    with pytest.raises(ProjectError, match=f"lacks what meshgate builds on: {named}"):
        contract.check_hooks()


# Failures as data


def test_a_failed_audit_is_told_with_its_count() -> None:
    """Each audit of a batch that failed several."""
    errors = [
        AuditError(audit_name=n, audit_args={}, count=c, query=None, model=None)
        for n, c in (("a", 2), ("b", 1))
    ]
    failed = NodeExecutionFailedError("node")
    failed.__cause__ = NodeAuditsErrors(errors)
    assert describe(failed) == {"audits": [{"audit": "a", "count": 2}, {"audit": "b", "count": 1}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no table\nLINE 1: SELECT", "no table"),
        ("running the statement:\n\nSELECT 1\n\nno table\nmore", "running the statement: SELECT 1 no table"),
        ("cannot reach postgresql://ann:s3cret@host/db", "cannot reach postgresql://ann:***@host/db"),
        ("ATTACH 'host=h password=s3cret' failed", "ATTACH 'host=h password=*** failed"),
        ("", "SQLMeshError"),
        ("x" * 2000, "x" * 500),
    ],
    ids=["first-line", "announcement", "url", "keywords", "empty", "long"],
)
def test_an_error_is_told_in_one_line_without_passwords(text: str, message: str) -> None:
    """Its first line; where that only announces a statement, the statement and the reason too."""
    assert describe(SQLMeshError(text)) == {"error": "SQLMeshError", "message": message}


def test_an_error_of_a_users_own_code_is_told_as_it_was_raised() -> None:
    """SQLMesh wraps it into a listing of the code; who reads the message wants what was raised."""
    error = PythonModelEvalError("File 'models/m.py' (or imported file), line 5, in execute\n  ...")
    error.__context__ = ZeroDivisionError("by zero, says the model")
    assert describe(error) == {"error": "ZeroDivisionError", "message": "by zero, says the model"}


# Instants


@given(instants())
def test_an_instant_survives_sqlmeshs_milliseconds(value: datetime) -> None:
    """Nothing that SQLMesh can name is changed on the way there and back."""
    whole = value.replace(microsecond=value.microsecond // 1000 * 1000)
    assert instant(milliseconds(whole)) == whole
    assert instant(milliseconds(whole)).tzinfo is UTC


@given(st.lists(st.tuples(st.integers(0, 10**13), st.integers(1, 10**9)), max_size=6))
def test_sqlmeshs_pairs_survive_the_set(found: list[tuple[int, int]]) -> None:
    """A list of half-open pairs becomes a set, and the set the same time again."""
    ranges = [(start, start + length) for start, length in found]
    as_set = interval_set(ranges)
    assert interval_set(pairs(as_set)) == as_set
    assert all(any(i.start <= instant(a) and instant(b) <= i.end for i in as_set) for a, b in ranges)


def test_what_sqlmesh_calls_time_is_utc() -> None:
    """A date without a zone, milliseconds and a datetime of another zone name the same interval."""
    named = interval("2026-01-05", "2026-01-05 01:00:00")
    assert (
        named
        == interval(milliseconds(at(0)), at(60).astimezone(datetime.now().astimezone().tzinfo))
        == span(0, 60)
    )


# Models

KINDS = {
    "ranged": copied(
        "lake.ranged", "raw.events", cron="*/5 * * * *", kind="lookback 3, batch_size 12",
        model="cron_tz 'Europe/Berlin', start '2026-01-05 00:00:00', end '2026-01-31', allow_partials TRUE",
    ),
    "half_hourly": copied("lake.half_hourly", "raw.events", cron="10 * * * *", model="interval_unit 'half_hour'"),
    "chained": ranged(
        "lake.chained", "SELECT @start_dt::TIMESTAMP AS ts, (SELECT COUNT(*) FROM lake.chained)::INT AS n",
        kind="batch_size 1", model="columns (ts TIMESTAMP, n INT)",
    ),
    "whole": "MODEL (name lake.whole, kind FULL, cron '@hourly'); SELECT id, value FROM lake.ranged",
    "viewed": "MODEL (name lake.viewed, kind VIEW, cron '@hourly'); SELECT id, value FROM lake.whole",
    "embedded": "MODEL (name lake.embedded, kind EMBEDDED); SELECT id, value FROM lake.whole",
    "by_time": "MODEL (name lake.by_time, kind SCD_TYPE_2_BY_TIME (unique_key id, updated_at_name ts), cron '@hourly');"
    "SELECT id, ts, value FROM raw.events",
    "by_column": "MODEL (name lake.by_column, kind SCD_TYPE_2_BY_COLUMN (unique_key id, columns [value]),"
    "cron '@hourly'); SELECT id, value FROM lake.embedded",
    "keyed": "MODEL (name lake.keyed, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key id, batch_size 2, lookback 1),"
    "cron '@hourly'); SELECT id, ts FROM lake.ranged WHERE ts BETWEEN @start_dt AND @end_dt",
    "partitioned": "MODEL (name lake.partitioned, kind INCREMENTAL_BY_PARTITION, partitioned_by value, cron '@hourly');"
    "SELECT id, value FROM lake.ranged",
    "unmanaged": "MODEL (name lake.unmanaged, kind INCREMENTAL_UNMANAGED, cron '@hourly');"
    "SELECT id FROM lake.ranged WHERE ts BETWEEN @start_dt AND @end_dt",
    "seeded": "MODEL (name lake.seeded, kind SEED (path '../colours.csv'), columns (id INT, colour TEXT), cron '@hourly')",
    "colours.csv": "id,colour\n1,red\n2,blue\n",
    "coloured": "MODEL (name lake.coloured, kind FULL, cron '@hourly');"
    "SELECT s.id, s.colour, u.id AS other FROM lake.seeded AS s LEFT JOIN raw.undeclared AS u ON s.id = u.id",
    "audits/alone.sql": "AUDIT (name alone, standalone TRUE, cron '@hourly'); SELECT * FROM lake.ranged WHERE value < 0",
    "external_models.yaml": "- name: raw.events\n  columns: {id: BIGINT, ts: TIMESTAMP, value: BIGINT}\n",
}  # fmt: skip


def fqn(name: str, schema: str = "lake") -> str:
    return f'"house"."{schema}"."{name}"'


@attrs.frozen
class Deployed:
    """A project with models of every kind: what SQLMesh promotes, and what the ledger keeps of it."""

    promoted: Promoted
    manifest: Manifest
    project: SqlmeshProject


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres) -> Iterator[Deployed]:
    duck = DuckMesh(tmp_path_factory.mktemp("kinds"), postgres, upstream=KINDS)
    duck.sql("CREATE TABLE raw.undeclared (id BIGINT)")
    duck.feed(0, 120)
    with duck.mesh() as mesh:
        assert mesh.deploy("upstream", now=at(120)).state == "done"
        project = mesh._open_project(mesh.config.project("upstream"), load=False)
        seen = project.promoted("prod", at(120))
        assert seen is not None
        yield Deployed(seen, mesh.ledger.manifest("prod"), project)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (fqn("ranged"), Kind.INCREMENTAL_BY_TIME_RANGE),
        (fqn("whole"), Kind.FULL),
        (fqn("viewed"), Kind.VIEW),
        (fqn("embedded"), Kind.EMBEDDED),
        (fqn("by_time"), Kind.SCD_TYPE_2),
        (fqn("by_column"), Kind.SCD_TYPE_2),
        (fqn("keyed"), Kind.INCREMENTAL_BY_UNIQUE_KEY),
        (fqn("partitioned"), Kind.INCREMENTAL_BY_PARTITION),
        (fqn("unmanaged"), Kind.INCREMENTAL_UNMANAGED),
        (fqn("seeded"), Kind.SEED),
        (fqn("events", "raw"), Kind.EXTERNAL),
        (fqn("undeclared", "raw"), Kind.EXTERNAL),
        ("alone", Kind.AUDIT),
    ],
)
def test_every_kind_of_model_is_told_apart(deployed: Deployed, name: str, kind: Kind) -> None:
    """Both sorts of slowly changing dimension are one; a table that only a query names is external."""
    assert deployed.promoted.nodes[name].kind is kind


def test_a_models_schedule_and_bounds_are_its_own(deployed: Deployed) -> None:
    """Cron, zone, unit, start, end, lookback, batch size and partials; an end that is a date includes that day."""
    found = deployed.promoted.nodes[fqn("ranged")]
    assert found == ModelNode(
        name=fqn("ranged"), project="upstream", version=found.version, kind=Kind.INCREMENTAL_BY_TIME_RANGE,
        unit=IntervalUnit.FIVE_MINUTE, cron="*/5 * * * *", cron_tz="Europe/Berlin", start=at(0),
        end=datetime(2026, 2, 1, tzinfo=UTC), lookback=3, batch_size=12, allow_partials=True,
    )  # fmt: skip
    assert found.version


def test_a_unit_that_a_model_declares_is_not_the_one_of_its_cron(deployed: Deployed) -> None:
    """The cron says when, the unit says what."""
    found = deployed.promoted.nodes[fqn("half_hourly")]
    assert (found.unit, found.cron, found.start) == (IntervalUnit.HALF_HOUR, "10 * * * *", at(0))


def test_only_a_model_that_reads_itself_depends_on_its_past(deployed: Deployed) -> None:
    """SQLMesh calls every full-history kind so; here it is the query that counts."""
    assert {n for n, node in deployed.promoted.nodes.items() if node.depends_on_past} == {fqn("chained")}


def test_a_keyed_model_keeps_its_batch_size_and_lookback(deployed: Deployed) -> None:
    """They are not only for time ranges."""
    found = deployed.promoted.nodes[fqn("keyed")]
    assert (found.batch_size, found.lookback) == (2, 1)


def test_parents_are_what_a_query_reads(deployed: Deployed) -> None:
    """Views and embedded models by their own name, external tables too; not the model itself."""
    parents = deployed.promoted.parents
    assert parents[fqn("by_column")] == (fqn("embedded"),)
    assert parents[fqn("embedded")] == (fqn("whole"),)
    assert parents[fqn("coloured")] == (fqn("seeded"), fqn("undeclared", "raw"))
    assert parents[fqn("chained")] == ()


def test_a_standalone_audit_reads_models_and_nobody_reads_it(deployed: Deployed) -> None:
    """It holds no data; its verdicts are recorded by time, by its own cron, since what it reads begins."""
    found = deployed.promoted.nodes["alone"]
    assert (found.project, found.cron, found.unit, found.start) == (
        "upstream",
        "@hourly",
        IntervalUnit.HOUR,
        at(0),
    )
    assert deployed.promoted.parents["alone"] == (fqn("ranged"),)
    assert not any("alone" in parents for parents in deployed.promoted.parents.values())


def test_a_table_that_only_a_query_names_belongs_to_nobody(deployed: Deployed) -> None:
    """It has no project and no version, and reads nothing."""
    found = deployed.promoted.nodes[fqn("undeclared", "raw")]
    assert (found.project, found.version, deployed.promoted.parents[found.name]) == ("", "", ())


def test_what_sqlmesh_recorded_comes_with_the_models(deployed: Deployed) -> None:
    """All of the first two hours, for everything that is recorded at all; at 02:00, one tick of `10 * * * *` less."""
    recorded = {n for n, node in deployed.promoted.nodes.items() if node.kind.recorded}
    assert {n: time for n, time in deployed.promoted.recorded.items() if time} == {
        name: IntervalSet([span(0, 60 if name == fqn("half_hourly") else 120)]) for name in recorded
    }


def test_the_ledgers_manifest_is_what_sqlmesh_promotes(deployed: Deployed) -> None:
    """Each model with every attribute, and each edge, after the way through the database."""
    assert dict(deployed.manifest.graph.nodes) == dict(deployed.promoted.nodes)
    edges = {
        (e.child, e.parent)
        for name in deployed.manifest.graph.nodes
        for e in deployed.manifest.graph.parents(name)
    }
    assert edges == {
        (child, parent) for child, parents in deployed.promoted.parents.items() for parent in parents
    }


def test_an_environment_that_was_never_planned_is_none(deployed: Deployed) -> None:
    """Asking for it is no error, and makes nothing."""
    assert deployed.project.promoted("nowhere", at(120)) is None


@pytest.mark.parametrize("days", [1, 30])
def test_a_relative_start_is_counted_from_the_instant_that_counts(deployed: Deployed, days: int) -> None:
    """`3 days ago` is three days before `now`, not before the machine's own clock."""
    environment: Any = deployed.project._environment("prod")
    snapshots = deployed.project._snapshots(environment)
    keyed = next(s for s in snapshots if s.name == fqn("keyed"))
    moved = keyed.copy(update={"node": keyed.node.copy(update={"start": "3 days ago"})})
    now = at(0) + timedelta(days=days, hours=5)
    found = promoted([moved], plan_id=None, finalized=True, now=now)
    assert found.nodes[fqn("keyed")].start == now.replace(hour=0) - timedelta(days=3)


def test_without_a_start_a_history_begins_with_its_parents(deployed: Deployed) -> None:
    """Or, where nothing says when, one tick before the instant that counts."""
    environment: Any = deployed.project._environment("prod")
    free = {
        s.name: s.copy(
            update={"node": s.node.copy(update={"start": at(30) if s.name == fqn("ranged") else None})}
        )
        for s in deployed.project._snapshots(environment)
        if s.name in {fqn("ranged"), fqn("whole"), fqn("half_hourly")}
    }
    found = promoted(list(free.values()), plan_id=None, finalized=True, now=at(125)).nodes
    assert [found[fqn(n)].start for n in ("ranged", "whole", "half_hourly")] == [at(30), at(30), at(10)]
