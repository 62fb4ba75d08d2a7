"""Making a ledger and bringing it up to date: once, whole or not at all, whoever else does it at the same time."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ledger_scene import locked, meanwhile, wait_until_blocked
from meshgate import db
from meshgate.db import SCHEMA_VERSION, Database, migrate, pending_migrations, schema_sql
from meshgate.errors import LeaseLostError, LedgerError, RunInProgressError, SchemaVersionError
from meshgate.interval import Interval
from meshgate.ledger import WHOLE, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_SCHEMA = Path(__file__).with_name("schema_1.sql")
"""Version 1 of `schema.sql`, as it was."""
HOUR = "'[2026-01-05 00:00Z,2026-01-05 01:00Z)'::tstzrange"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database."""
    found = Database(database_url)
    yield found
    found.close()


def version(database: Database) -> int:
    """The version that the ledger says it has."""
    return int(database.one("schema_version")["schema_version"])


def catalogue(database: Database) -> list[tuple[str, str]]:
    """Everything in the schema, as Postgres would write it down."""
    database.execute("SET search_path = pg_catalog")  # so that every name is written in full
    rows = database.execute(
        """
        SELECT p.oid::regprocedure::text AS thing, pg_get_functiondef(p.oid) AS said
        FROM pg_proc p WHERE p.pronamespace = 'meshgate'::regnamespace
        UNION ALL
        SELECT t.oid::regclass::text, t.relkind::text FROM pg_class t WHERE t.relnamespace = 'meshgate'::regnamespace
        UNION ALL
        SELECT c.conrelid::regclass || '.' || c.conname, pg_get_constraintdef(c.oid)
        FROM pg_constraint c WHERE c.connamespace = 'meshgate'::regnamespace
        UNION ALL
        SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
        FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE t.relnamespace = 'meshgate'::regnamespace
        UNION ALL
        SELECT a.attrelid::regclass || '.' || a.attname,
               concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                         pg_get_expr(d.adbin, d.adrelid))
        FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid AND t.relkind = 'r'
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE t.relnamespace = 'meshgate'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
        """
    )
    return sorted((row["thing"], row["said"]) for row in rows)


# -- making one


def test_an_empty_database_gets_a_ledger(database: Database) -> None:
    """The first `migrate` makes the present version."""
    assert migrate(database) == (0, SCHEMA_VERSION)
    database.check_schema()


def test_migrating_again_is_harmless(database: Database) -> None:
    """Nothing changes, and what is recorded stays."""
    migrate(database)
    Ledger(database).acquire("up", "prod", "run", {}, ttl=timedelta(minutes=1), grace=timedelta(0))
    before = catalogue(database)
    assert migrate(database) == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert catalogue(database) == before
    assert len(Ledger(database).runs()) == 1


def test_many_that_migrate_at_once_make_one_ledger(database: Database) -> None:
    """One of eight threads makes it, the others find it made."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: migrate(database), range(8)))
    assert sorted(answers) == [(0, SCHEMA_VERSION), *[(SCHEMA_VERSION, SCHEMA_VERSION)] * 7]


def test_processes_that_migrate_at_once_make_one_ledger(database: Database) -> None:
    """The lock is the database's, so it holds between machines."""
    code = f"from meshgate.db import *; print(migrate(Database({database._url!r}))[0])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert sorted(p.communicate()[0].strip() for p in processes) == [
        "0",
        str(SCHEMA_VERSION),
        str(SCHEMA_VERSION),
    ]


def test_who_comes_second_waits_and_finds_it_made(database: Database) -> None:
    """A migration under way is waited for, not repeated."""
    second = Database(database._url, name="other")
    with (
        locked(Ledger(database), f"SELECT pg_advisory_xact_lock({db._MIGRATION_LOCK})") as first,
        meanwhile(lambda: migrate(second)) as answer,
    ):
        wait_until_blocked(Ledger(database))
        with first.cursor() as cursor:
            cursor.execute(schema_sql())
            cursor.execute(f"INSERT INTO meshgate.ledger (schema_version) VALUES ({SCHEMA_VERSION})")
        first.commit()
        assert answer.result() == (SCHEMA_VERSION, SCHEMA_VERSION)


def test_a_ledger_that_could_not_be_made_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails at the very end undoes the beginning."""
    monkeypatch.setattr(db, "SCHEMA_VERSION", None)  # refused by the very last statement
    with pytest.raises(LedgerError):
        migrate(database)
    assert database.execute("SELECT to_regnamespace('meshgate') IS NULL AS nothing") == [{"nothing": True}]


# -- bringing one up to date


def test_a_migration_that_fails_leaves_the_version_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the steps before it nor its own first half remain."""
    migrate(database)
    before = catalogue(database)
    steps = [(SCHEMA_VERSION + 1, "CREATE TABLE meshgate.half ()"), (SCHEMA_VERSION + 2, "SELECT 1 / 0")]
    monkeypatch.setattr(db, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    monkeypatch.setattr(db, "pending_migrations", lambda _version: steps)
    with pytest.raises(LedgerError):
        migrate(database)
    assert catalogue(database) == before
    assert version(database) == SCHEMA_VERSION


def test_an_older_ledger_is_led_to_the_present_version(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its migrations are applied in order, and the version is told before and after."""
    migrate(database)
    asked: list[int] = []

    def steps(found: int) -> list[tuple[int, str]]:
        asked.append(found)
        return [
            (SCHEMA_VERSION + 1, "CREATE TABLE meshgate.thing ()"),
            (SCHEMA_VERSION + 2, "ALTER TABLE meshgate.thing ADD COLUMN part integer"),
        ]

    monkeypatch.setattr(db, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    monkeypatch.setattr(db, "pending_migrations", steps)
    assert migrate(database) == (SCHEMA_VERSION, SCHEMA_VERSION + 2)
    assert asked == [SCHEMA_VERSION]
    assert "meshgate.thing.part" in dict(catalogue(database))


@pytest.mark.parametrize("since", range(1, SCHEMA_VERSION))
def test_the_migrations_lead_each_version_to_the_schema(
    database: Database, postgres: object, since: int
) -> None:
    """A ledger that grew is the same as one that was made today, thing by thing."""
    database.execute(FIRST_SCHEMA.with_name(f"schema_{since}.sql").read_text(encoding="utf-8"))
    database.execute("INSERT INTO meshgate.ledger (schema_version) VALUES (%(since)s)", {"since": since})
    assert migrate(database) == (since, SCHEMA_VERSION)
    fresh = Database(postgres.ensure_database(f"{database.shown_url.rsplit('/', 1)[1]}_fresh"))  # type: ignore[attr-defined]
    migrate(fresh)
    assert catalogue(database) == catalogue(fresh)
    fresh.close()


@pytest.fixture
def old(database: Database) -> Database:
    """A ledger of version 1 in which a run of an hour has begun an hour of one table by time and one by key."""
    database.execute(FIRST_SCHEMA.read_text(encoding="utf-8"))
    database.execute("INSERT INTO meshgate.ledger (schema_version) VALUES (1)")
    database.execute("SELECT meshgate.acquire_run('up', 'prod', 'run', '{}', '1h', '0s', NULL)")
    for key, kind in enumerate(("incremental_by_time_range", "incremental_by_unique_key"), start=1):
        as_of = kind != "incremental_by_time_range"
        database.execute(f"SELECT meshgate.register_version('up', 'm{key}', '1', '{kind}', {as_of})")
        database.execute(f"SELECT * FROM meshgate.open_claims(1, {key}, ARRAY[{HOUR}])")
        database.execute(f"SELECT meshgate.begin_claim(1, {key}, {HOUR}, '{{}}', '{{}}', '{{}}', NULL)")
    return database


def expire(database: Database) -> None:
    """Let all leases have ended."""
    database.execute("UPDATE meshgate.run SET expires_at = clock_timestamp()")


def test_a_ledger_is_not_migrated_while_a_run_lives(old: Database) -> None:
    """The run decides with the functions that would change: it is named, and nothing has changed."""
    before = catalogue(old)
    with pytest.raises(RunInProgressError) as refused:
        migrate(old)
    assert "run 1 of 'up'" in str(refused.value)
    assert (version(old), catalogue(old)) == (1, before)


@pytest.mark.parametrize("how", ["expired", "ended"])
def test_a_ledger_is_migrated_once_no_run_lives(old: Database, how: str) -> None:
    """A run that has ended, or whose lease has, is in nobody's way."""
    if how == "expired":
        expire(old)
    else:
        old.execute("SELECT meshgate.finish_run(1, 'done', '{}', NULL)")
    assert migrate(old) == (1, SCHEMA_VERSION)


def test_a_run_of_an_older_version_that_waited_for_a_migration_claims_nothing(old: Database) -> None:
    """It may have been about to start: it is told to migrate before it has reserved anything."""
    expire(old)
    with (
        locked(Ledger(old)) as blocker,
        meanwhile(lambda: migrate(Database(old._url, name="migration"))) as migration,
    ):
        wait_until_blocked(Ledger(old), "migration")
        with meanwhile(lambda: work_as_before(Database(old._url, name="other"))) as work:
            wait_until_blocked(Ledger(old), "other")
            blocker.commit()
            assert migration.result() == (1, SCHEMA_VERSION)
            with pytest.raises(SchemaVersionError):
                work.result()
    assert old.execute("SELECT FROM meshgate.claim WHERE run_id > 1") == []


def work_as_before(database: Database) -> None:
    """Start a run and reserve an hour as meshgate did when the ledger had version 1."""
    database.execute("SELECT meshgate.acquire_run('down', 'prod', 'run', '{}', '1h', '0s', NULL)")
    database.execute(f"SELECT * FROM meshgate.open_claims(2, 1, ARRAY[{HOUR}])")


def test_a_migration_makes_every_function_anew(database: Database) -> None:
    """Also those that the older version had by another signature, which would answer beside the new ones."""
    database.execute(FIRST_SCHEMA.read_text(encoding="utf-8"))
    database.execute("INSERT INTO meshgate.ledger (schema_version) VALUES (1)")
    names = "SELECT proname AS name, oid FROM pg_proc WHERE pronamespace = 'meshgate'::regnamespace"
    before = {row["oid"] for row in database.execute(names)}
    migrate(database)
    after = database.execute(names)
    assert not before & {row["oid"] for row in after}
    assert len({row["name"] for row in after}) == len(after)


def test_what_a_run_of_an_older_version_had_begun_is_taken_over(old: Database) -> None:
    """What is in doubt of its batches is known of tables by time; of the others nobody knows the batch."""
    expire(old)
    migrate(old)
    ledger = Ledger(old)
    assert ledger.take_over() == (1,)
    marks = [mark for state in ledger.states([1, 2]).values() for mark in state.marks]
    assert [(m.kind, m.interval, m.attempts, m.retry_at) for m in marks] == [
        ("suspect", Interval.parse("2026-01-05T00:00/2026-01-05T01:00"), 1, None),
        ("suspect", WHOLE, 1, None),
    ]


def test_the_late_commit_of_a_run_of_an_older_version_is_refused(old: Database) -> None:
    """Its fence is in the row that the migration kept."""
    expire(old)
    migrate(old)
    with pytest.raises(LeaseLostError):
        Ledger(old).commit(1, 1, Interval.parse("2026-01-05T00:00/2026-01-05T01:00"), verdict="passed")


def test_every_version_after_the_first_has_its_migration() -> None:
    """The numbers of the files are 2, 3, … up to the version of the code."""
    assert [number for number, _ in pending_migrations(0)] == list(range(2, SCHEMA_VERSION + 1))


def test_a_migration_that_was_applied_is_not_pending() -> None:
    """Only what is newer than the ledger, and not newer than the code."""
    assert pending_migrations(SCHEMA_VERSION) == []


# -- refusing


@pytest.mark.parametrize(
    ("apart", "command"), [(1, "pip install --upgrade meshgate"), (-1, "meshgate migrate")]
)
def test_a_ledger_of_another_version_is_refused_with_the_command_to_type(
    database: Database, apart: int, command: str
) -> None:
    """Too new or too old: one error that says what to do."""
    migrate(database)
    database.execute(f"UPDATE meshgate.ledger SET schema_version = {SCHEMA_VERSION + apart}")
    with pytest.raises(SchemaVersionError) as refused:
        database.check_schema()
    assert command in str(refused.value)


def test_a_database_without_a_ledger_is_refused_with_the_command_to_type(database: Database) -> None:
    """Whatever is asked of it, the answer is how to make one."""
    with pytest.raises(SchemaVersionError) as refused:
        database.check_schema()
    assert "meshgate migrate" in str(refused.value)
    with pytest.raises(SchemaVersionError):
        Ledger(database).acquire("up", "prod", "run", {}, ttl=timedelta(minutes=1), grace=timedelta(0))


def test_a_newer_ledger_is_not_taken_back(database: Database) -> None:
    """`migrate` of an older meshgate refuses and changes nothing."""
    migrate(database)
    database.execute(f"UPDATE meshgate.ledger SET schema_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(SchemaVersionError) as refused:
        migrate(database)
    assert "pip install --upgrade meshgate" in str(refused.value)
    assert version(database) == SCHEMA_VERSION + 1


# -- the clock


def test_a_production_ledger_ignores_a_sessions_clock(database: Database) -> None:
    """`SET meshgate.now` has no effect where the ledger was not made for tests."""
    migrate(database)
    database.execute("SET meshgate.now = '2001-01-01 00:00Z'")
    assert Ledger(database).clock() > datetime(2020, 1, 1, tzinfo=UTC)


def test_the_test_clock_cannot_be_switched_on_later(database: Database) -> None:
    """A production ledger stays one, whoever migrates it."""
    migrate(database)
    migrate(database, test_clock=True)
    assert not database.one("schema_version")["test_clock"]


def test_a_ledger_for_tests_follows_a_sessions_clock(database: Database) -> None:
    """`migrate --test-clock` lets a session say what time it is, and others keep theirs."""
    migrate(database, test_clock=True)
    database.execute("SET meshgate.now = '2001-01-01 00:00Z'")
    assert Ledger(database).clock() == datetime(2001, 1, 1, tzinfo=UTC)
    with ThreadPoolExecutor(1) as pool:  # a thread of its own has a session of its own
        assert pool.submit(Ledger(database).clock).result() > datetime(2020, 1, 1, tzinfo=UTC)
