"""The manifest, what the tables themselves refuse, history, size, and the typed access, on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from ledger_scene import (
    Scene,
    span,
)
from meshgate.db import Database, json, queries
from meshgate.errors import ConfigError, LedgerError, LedgerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def events(scene: Scene) -> list[str]:
    """The kinds of all events, oldest first."""
    return [row["kind"] for row in reversed(scene.ledger.events())]


# -- the manifest


def test_a_version_is_registered_once_whoever_asks(ledger: Ledger) -> None:
    """Eight threads meet a version at the same time; it has one key."""
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Scene(ledger).version("new"), range(8)))
    assert len(keys) == 1


def test_a_promotion_gives_the_new_version_its_own_revision(scene: Scene) -> None:
    """Whoever read the old version before reads anew: the build's own revision would hide it."""
    run = scene.run()
    scene.version("p")
    scene.promote({"p": "1"})
    new = scene.version("p", version="2")
    built = scene.record(run, new, span(0, 4))
    scene.record(run, scene.version("reader"), span(0, 1))
    assert scene.promote({"p": "2"}) == ["p"]
    assert scene.revisions(new) == dict.fromkeys(range(4), scene.ledger.revision())
    assert scene.ledger.revision() > built + 1


def test_a_promotion_of_the_same_versions_changes_nothing(scene: Scene) -> None:
    """Looking again makes nobody stale."""
    run, version = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    revision = scene.record(run, version, span(0, 4))
    assert scene.promote({"p": "1"}) == []
    assert scene.revisions(version) == dict.fromkeys(range(4), revision)


def test_a_new_version_that_read_before_the_old_one_was_made_again_is_suspect(scene: Scene) -> None:
    """It holds older data under a newer number: only the range that was made again since."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.record(run, old, span(1, 2))
    scene.promote({"p": "2"})
    assert scene.marks(new) == {("suspect", 1)}


@pytest.mark.parametrize(("home", "stands_in"), [("prod", False), ("dev", True), ("dev", False)])
def test_only_where_its_own_project_keeps_it_up_a_version_is_in_no_doubt(
    scene: Scene, home: str, stands_in: bool
) -> None:
    """It was built in dev, and production's was made again since: dev is nobody's home because something else is at home there.

    Nor because a project was deployed there first, and stands in for where it has not been yet.
    """
    run, old, new = scene.run(), scene.version("p"), scene.version("p", version="2")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    scene.record(run, new, span(0, 4))
    scene.promote({"p": "2"}, environment="dev")
    for project, where in (("up", home), ("down", "dev")):
        elsewhere = "dev" if where == "dev" and (project == "down" or stands_in) else None
        scene.ledger.save_manifest(
            project, {"environment": where}, sqlmesh="0", sqlglot="0", environment=elsewhere
        )
    scene.record(run, old, span(1, 2))
    scene.promote({"p": "2"})
    at_home = home == "dev" and not stands_in
    assert scene.marks(new) == (set() if at_home else {("suspect", 1)})


@pytest.mark.parametrize(
    ("kind", "carried"), [("requested", "requested"), ("lookback", "lookback"), ("failed", "suspect")]
)
def test_a_mark_goes_over_to_the_version_that_had_read_before_it(
    scene: Scene, kind: str, carried: str
) -> None:
    """Marks belong to the model: a deploy between request and work does not answer the request."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.mark(old, span(2, 3), kind)
    scene.promote({"p": "2"})
    assert scene.marks(new) == {(carried, 2)}


def test_a_mark_does_not_go_over_to_a_version_that_was_built_after_it(scene: Scene) -> None:
    """The build has done what the mark asks for."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    scene.mark(old, span(2, 3))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.promote({"p": "2"})
    assert scene.marks(new) == set()


def test_a_model_that_is_not_promoted_any_more_leaves_the_manifest(scene: Scene) -> None:
    """The picture of an environment is what SQLMesh promotes there, no more."""
    scene.version("p")
    scene.version("q")
    scene.promote({"p": "1", "q": "1"})
    scene.promote({"p": "1"})
    assert set(scene.ledger.manifest("prod").version_ids) == {"p"}


def test_the_models_of_a_project_with_another_state_are_left_alone(scene: Scene) -> None:
    """One SQLMesh state says nothing about what another one promotes."""
    scene.version("p", project="up")
    scene.version("q", project="down")
    scene.promote({"p": "1"}, project="up")
    scene.promote({"q": "1"}, project="down")
    assert set(scene.ledger.manifest("prod").version_ids) == {"p", "q"}


# -- what the tables themselves refuse


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        (
            ("INSERT INTO meshgate.claim (run_id, version_id, span, opened_revision, opened_at)"
            " VALUES (1, 1, '[2026-01-05 01:00Z,2026-01-05 03:00Z)', 0, now())"),
            "two live claims never overlap",
        ),
        (
            ("INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 05:00Z,2026-01-05 06:00Z)', 9, 0, 'passed', now())"),
            "coverage never overlaps",
        ),
        (
            ("INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 06:00Z,2026-01-05 07:00Z)', 9, 9, 'passed', now())"),
            "data is read before it is made",
        ),
        (
            ("INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 06:00Z,2026-01-05 07:00Z]', 9, 0, 'passed', now())"),
            "coverage is half-open and bounded",
        ),
        (
            "INSERT INTO meshgate.mark (version_id, span, kind, revision, made_at) VALUES (1, 'empty', 'failed', 1, now())",
            "a mark is about some time",
        ),
        ("UPDATE meshgate.run SET state = 'done'", "a run that ended says when"),
        ("INSERT INTO meshgate.ledger (schema_version) VALUES (1)", "ledger_pkey"),
        ("INSERT INTO meshgate.ledger (schema_version, singleton) VALUES (1, false)", "there is one ledger"),
    ],
)  # fmt: skip
def test_the_tables_refuse_what_no_function_should_ask_for(
    scene: Scene, statement: str, constraint: str
) -> None:
    """Whatever the code does, a constraint holds, and its name is the reason."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(5, 6))
    scene.open(run, version, span(0, 2))
    connection = scene.database.connect()
    with connection.cursor() as cursor, pytest.raises(psycopg2.IntegrityError) as refused:
        cursor.execute(statement)
    connection.close()
    assert refused.value.diag.constraint_name == constraint


# -- history, size, speed


def test_the_history_tells_what_happened_in_order(scene: Scene) -> None:
    """Every change that a person may ask about is an event."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.work(run, version, span(1, 2))
    scene.ledger.fail(run, version, span(1, 2), {})
    scene.ledger.finish(run, "failed", {})
    assert events(scene) == ["interval.committed", "interval.failed", "run.finished"]


def test_pruning_forgets_what_nothing_needs(scene: Scene) -> None:
    """Ended claims, events and runs that recorded nothing go after their time."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    scene.ledger.fail(run, version, span(0, 1), {})
    scene.ledger.finish(run, "failed", {})
    scene.record(scene.run("down"), version, span(0, 1))
    scene.pass_time(3600)
    scene.ledger.prune(timedelta(minutes=30))
    assert events(scene) == []
    assert [row["project"] for row in scene.ledger.runs()] == ["down"]


def test_pruning_keeps_what_is_young(scene: Scene) -> None:
    """Nothing goes before its time."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.finish(run, "done", {})
    scene.pass_time(60)
    scene.ledger.prune(timedelta(minutes=30))
    assert events(scene) == ["interval.committed", "run.finished"]


def test_pruning_keeps_a_quarantine(scene: Scene) -> None:
    """A range that may still be written to stays closed, however old the claim is."""
    version, run = scene.version(), scene.run("down", grace=timedelta(hours=2))
    scene.work(run, version, span(0, 1))
    scene.pass_time(3600)
    scene.run("other")
    scene.ledger.prune(timedelta(seconds=-1))
    assert scene.open(scene.run("up"), version, span(0, 1)) == [run]


def many_rows(scene: Scene) -> int:
    """A ledger with 40 versions of 20 days each, and a run that lives; the run."""
    versions = [
        scene.version(f"m{n}", kind="full" if n == 3 else "incremental_by_time_range") for n in range(40)
    ]
    run = scene.run()
    hours = "generate_series('2020-01-01Z'::timestamptz, '2020-01-21Z', '1h') t"
    for statement in (
        (
            "INSERT INTO meshgate.claim (run_id, version_id, span, state, opened_revision, opened_at, read_revision, ended_at)"
            f" SELECT {run}, v, tstzrange(t, t + '1h'), 'committed', 0, t, 0, t FROM unnest(%(v)s) v, {hours}"
        ),
        (
            "INSERT INTO meshgate.coverage (run_id, version_id, span, revision, read_revision, verdict, committed_at, mirrored_at)"
            f" SELECT {run}, v, tstzrange(t, t + '1h'), 1, 0, 'passed', t, t FROM unnest(%(v)s) v, {hours}"
        ),
        (
            "INSERT INTO meshgate.mark (version_id, span, revision, kind, made_at)"
            f" SELECT v, tstzrange(t, t + '1h'), 1, 'failed', t FROM unnest(%(v)s) v, {hours}"
        ),
        (
            "INSERT INTO meshgate.run (project_id, environment, purpose, holder, started_at, expires_at, ttl, grace, state, ended_at)"
            f" SELECT project_id, environment, purpose, holder, t, t, ttl, grace, 'done', t FROM meshgate.run, {hours}"
        ),
        "UPDATE meshgate.ledger SET revision = 5",
        "ANALYZE",
    ):
        scene.database.execute(statement, {"v": versions})
    return run


def test_no_hot_statement_reads_a_table_from_end_to_end(scene: Scene) -> None:
    """On a ledger with many rows every function and query of a tick finds what it needs through an index."""
    run = many_rows(scene)
    hour, past = (
        "'[2026-01-01 00:00Z,2026-01-01 01:00Z)'::tstzrange",
        "'[2020-01-11 00:00Z,2020-01-11 01:00Z)'::tstzrange",
    )
    some = {"versions": [3, 7], "version_id": 3, "revision": 7, "span": "[2020-01-11,2020-01-12)"}
    calls: list[tuple[str, dict[str, Any]]] = [
        (f"SELECT meshgate.open_claims({run}, 2, ARRAY[{hour}], false)", {}),
        (f"SELECT meshgate.open_claims({run}, 4, ARRAY[{hour}], false)", {}),
        (f"SELECT meshgate.open_claims({run}, 2, ARRAY[{hour}], false)", {}),
        (f"SELECT meshgate.begin_claim({run}, 2, {hour}, '{{5}}', ARRAY[{past}], '{{6}}', NULL, 9, 9)", {}),
        (f"SELECT meshgate.begin_claim({run}, 2, {hour}, '{{}}', '{{}}', '{{}}', NULL, 9, 9)", {}),
        (f"SELECT meshgate.begin_claim({run}, 4, {hour}, '{{}}', '{{}}', '{{}}', NULL, 9, 9)", {}),
        (f"SELECT meshgate.commit_claim({run}, 2, {hour}, 'passed', NULL, NULL, NULL, {past}, NULL)", {}),
        (f"SELECT meshgate.commit_claim({run}, 2, {hour}, 'passed', NULL, NULL, NULL, NULL, NULL)", {}),
        (f"SELECT meshgate.commit_claim({run}, 4, {hour}, 'passed', NULL, NULL, NULL, NULL, NULL)", {}),
        (f"SELECT meshgate.note_mirrored({run}, 2, {hour})", {}),
        (f"SELECT meshgate.begin_claim({run}, 4, {hour}, '{{}}', '{{}}', '{{}}', NULL, 9, 9)", {}),
        (f"SELECT meshgate.fail_claim({run}, 4, {hour}, NULL)", {}),
        (f"SELECT meshgate.reconcile_version(9, ARRAY[{past}], '{{}}', true, '2020-01-01Z')", {}),
        (f"SELECT meshgate.abandon_claims({run}, NULL, NULL)", {}),
        ("SELECT meshgate.prune(meshgate.clock() - '2020-01-03Z')", {}),
        (f"SELECT meshgate.open_claims({run}, 12, ARRAY[{hour}], true)", {}),
        (f"SELECT meshgate.pause_models({run}, '{{m1,m3}}')", {}),
        (f"SELECT meshgate.retry_marks('{{2,3}}', {past})", {}),
        ("SELECT meshgate.take_over()", {}),
        (
            "SELECT meshgate.acquire_run('q', 'prod', 'run', '{}', '1m', '1m', NULL, false, 'w', '1m', '1h')",
            {},
        ),
        ("SELECT meshgate.break_run(max(run_id), 'somebody') FROM meshgate.run WHERE state = 'running'", {}),
        *(
            (queries()[name], some)
            for name in ("covered", "coverage_rows", "marks", "live_claims", "watched", "live_runs")
        ),
        (queries()["runs"], {"project": None, "environment": None, "limit": 5}),
        (f"SELECT meshgate.finish_run({run}, 'done', '{{}}', NULL)", {}),
    ]  # fmt: skip
    read_whole: list[Any] = []
    counted = (
        "SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables"
        " WHERE schemaname = 'meshgate' AND relname IN ('claim', 'coverage', 'mark')"
    )
    connection = scene.database.connect()
    connection.autocommit = False
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('meshgate.now', %s, false)", [scene.now.isoformat()])
        for statement, parameters in calls:
            cursor.execute(counted)
            before = dict(cursor.fetchall())
            cursor.execute(statement, parameters)
            cursor.execute(counted)
            read_whole += [(statement, table) for table, rows in cursor.fetchall() if rows > before[table]]
    connection.rollback()
    connection.close()
    assert read_whole == []


# -- typed access


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda ledger: ledger.begin(1, 1, span(0, 1), needs=[], loaded=[], environment=None), LedgerError),
        (lambda ledger: ledger.abandon(99), None),
    ],
)
def test_refusals_are_typed(
    ledger: Ledger, call: Callable[[Ledger], Any], error: type[Exception] | None
) -> None:
    """No driver's error leaves the ledger."""
    if error is None:
        call(ledger)
    else:
        with pytest.raises(error):
            call(ledger)


def test_a_role_without_rights_is_told_so(ledger: Ledger) -> None:
    """Missing rights are a matter of setup, not a refusal of the ledger."""
    ledger.database.execute("DROP ROLE IF EXISTS meshgate_nobody")
    ledger.database.execute("CREATE ROLE meshgate_nobody")
    ledger.database.execute("SET ROLE meshgate_nobody")
    with pytest.raises(ConfigError):
        ledger.revision()
    ledger.database.execute("RESET ROLE")
    ledger.database.execute("DROP ROLE meshgate_nobody")


def test_no_error_shows_the_password() -> None:
    """What cannot be reached is named without its secret."""
    database = Database("postgresql://me:secret-word@127.0.0.1:1/none")
    with pytest.raises(LedgerUnreachableError) as unreachable:
        database.execute("SELECT 1")
    assert "secret-word" not in str(unreachable.value) + repr(database)


def test_a_manifest_comes_back_as_it_was_saved(scene: Scene) -> None:
    """What a project declared is what the others read."""
    scene.database.rows(
        "save_manifest",
        project="up",
        manifest=json({"edges": []}),
        sqlmesh="1",
        sqlglot="2",
        environment=None,
    )
    assert scene.ledger.projects()["up"]["manifest"] == {"edges": []}
