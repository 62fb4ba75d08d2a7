"""Connections to the ledger's database, its named queries, its migrations, and what its errors mean.

The only room that imports psycopg2. Every call is one statement in a transaction of its own (autocommit), so that
no connection is ever left inside a transaction, whatever happens to the process.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from meshgate.errors import (
    ConfigError,
    LeaseLostError,
    LedgerError,
    LedgerUnreachableError,
    RunInProgressError,
    SchemaVersionError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_VERSION = 3
"""The version of `sql/schema.sql`; a ledger of any other version is refused."""

# A server that is gone without a word is noticed within half a minute, not after the system's two hours.
_KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
_MIGRATION_LOCK = 0x6D657368  # "mesh": one advisory lock, held for the transaction of a migration
# Up to the last @ of a word: a password that was not percent-encoded may hold one itself.
_PASSWORD_IN_URL = re.compile(r"(://[^:/@\s]*:)\S*@")
# Keyword strings, Python's and JSON's mappings, SQL options: `password=x`, `"token": "x"`, `PASSWORD 'x'`.
_SECRET = re.compile(
    r"""((?:password|passwd|token|secret)["']?(?:\s*[=:]\s*|\s+(?=['"])))('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,;)}]+)""",
    re.IGNORECASE,
)


DriverError = psycopg2.Error
"""What a broken connection raises, for those that hold one themselves."""


def redact(text: str) -> str:
    """The text without the passwords of the connection strings in it."""
    return _SECRET.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1***@", text))


@cache
def queries() -> dict[str, str]:
    """The statements of `sql/queries.sql` by name."""
    text = resources.files("meshgate.sql").joinpath("queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def quoted(name: str) -> str:
    """A name as a part of a statement."""
    return '"' + name.replace('"', '""') + '"'


def json(value: Any) -> Any:
    """A value as a parameter of type jsonb."""
    return psycopg2.extras.Json(value)


def timestamp_range(start: Any, end: Any) -> Any:
    """A half-open range of instants as a parameter; None is an open end."""
    return psycopg2.extras.DateTimeTZRange(start, end, "[)")


def _password_of(url: str) -> str:
    try:
        return str(psycopg2.extensions.parse_dsn(url).get("password") or "")
    except psycopg2.Error:
        return ""


class Database:
    """One ledger's database; hands each thread a connection of its own.

    Args:
        url: A Postgres URL or keyword string. Never shown: errors and logs carry it without its password.
        name: What `pg_stat_activity` shows as the application's name.
    """

    def __init__(self, url: str, *, name: str = "meshgate") -> None:
        self._url = url
        self._password = _password_of(url)
        self._name = name
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[Any] = set()

    def __repr__(self) -> str:
        return f"Database({self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The connection string without its password."""
        return self._masked(self._url)

    def _masked(self, text: str) -> str:
        """The text without this ledger's password, in whatever form it stands there."""
        for form in {self._password, quote(self._password, safe="")} - {""}:
            text = text.replace(form, "***")
        return redact(text)

    def connect(self) -> Any:
        """A new connection that is not shared with anybody, in autocommit mode.

        Raises:
            LedgerUnreachableError: No answer, or wrong credentials.
        """
        try:
            connection = psycopg2.connect(
                self._url, application_name=self._name, connect_timeout=10, **_KEEPALIVE
            )
        except psycopg2.OperationalError as error:
            reason = self._masked(str(error).strip().splitlines()[0] if str(error).strip() else "no answer")
            raise LedgerUnreachableError(
                f"the ledger at {self.shown_url} cannot be reached: {reason}",
                hint="check that the server runs and that `ledger.url` in meshgate.yaml names it with the right user",
            ) from None
        except psycopg2.Error as error:  # the string itself is malformed
            raise ConfigError(
                f"`ledger.url` is not a Postgres connection string: {self._masked(str(error).strip())}",
                hint="write it as postgresql://user:password@host:5432/database",
            ) from None
        connection.autocommit = True
        return connection

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self.connect()
            self._local.connection = connection
            with self._lock:
                self._open = {c for c in self._open if not c.closed} | {connection}
        return connection

    def rows(
        self, query: str, /, *, again: bool = False, schema: str | None = None, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Run one named query; its rows as dictionaries.

        Args:
            query: A name in `queries.sql`.
            again: Saying it twice is harmless, so a connection that broke meanwhile is replaced once.
            schema: Put in for `{schema}`, quoted: for a statement on tables that are not the ledger's own.
            parameters: The query's parameters.

        Raises:
            LedgerUnreachableError: The connection broke.
            SchemaVersionError: There is no ledger in this database, or it is another version's.
            LedgerError: The ledger refused.
        """
        sql = queries()[query]
        if schema is not None:
            sql = sql.replace("{schema}", quoted(schema))
        return self.execute(sql, parameters, again=again)

    def execute(
        self, sql: str, parameters: dict[str, Any] | None = None, *, again: bool = False
    ) -> list[dict[str, Any]]:
        """Run one statement; its rows as dictionaries. See `rows`."""
        try:
            with (
                translated(self.shown_url),
                self._connection().cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor,
            ):
                cursor.execute(sql, parameters)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        except LedgerUnreachableError:
            self._forget()
            if again:
                return self.execute(sql, parameters)
            raise

    def one(self, query: str, /, *, again: bool = False, **parameters: Any) -> dict[str, Any]:
        """The single row of a named query. See `rows`."""
        found = self.rows(query, again=again, **parameters)
        if len(found) != 1:
            raise LedgerError(f"the query {query!r} answered with {len(found)} rows instead of one")
        return found[0]

    def _forget(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            connection.close()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open = set()
        self._local = threading.local()

    @contextmanager
    def still(self) -> Iterator[Database]:
        """This database as it is at one instant, for reading only: its statements all see the same."""
        found = _Still(self._url, name=self._name)
        try:
            yield found
        finally:
            found.close()

    def cut(self) -> None:
        """End every conversation under way: whoever waits for an answer gets an error instead. From any thread."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)

    def check_schema(self) -> None:
        """Refuse a ledger whose schema is missing, older or newer than this code.

        Raises:
            SchemaVersionError: With the command to type.
        """
        found = self.one("schema_version", again=True)["schema_version"]
        if found < SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the ledger at {self.shown_url} has schema {found}, this meshgate needs {SCHEMA_VERSION}",
                hint="run `meshgate migrate`",
            )
        if found > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the ledger at {self.shown_url} has schema {found}, newer than this meshgate's {SCHEMA_VERSION}",
                hint="run `pip install --upgrade meshgate`",
            )


class _Still(Database):
    """One transaction, in one thread."""

    def connect(self) -> Any:
        connection = super().connect()
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        return connection

    def execute(
        self,
        sql: str,
        parameters: dict[str, Any] | None = None,
        *,
        again: bool = False,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """As ever, but for `again`: a new connection would see another instant."""
        return super().execute(sql, parameters)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn the driver's errors into meshgate's own; SQLSTATEs are the interface, never message texts."""
    try:
        yield
    except psycopg2.Error as error:
        state = error.pgcode or ""
        message = redact((error.diag.message_primary if error.diag else None) or str(error).strip())
        if state == "MG001":
            raise LeaseLostError(message) from None
        if state.startswith("MG"):
            raise LedgerError(message, hint=error.diag.message_hint) from None
        if state in {"3F000", "42P01", "42883"}:
            raise SchemaVersionError(
                f"there is no complete ledger at {where}", hint="run `meshgate migrate`"
            ) from None
        if state == "42501":
            raise ConfigError(
                f"the ledger at {where} denies this role what it needs: {message}",
                hint="grant it the rights that docs/reference/ledger.md names, or use another role",
            ) from None
        if (
            not state
            or state[:2] in {"08", "57"}
            or isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
        ):
            raise LedgerUnreachableError(
                f"the connection to the ledger at {where} broke: {message}"
            ) from None
        raise LedgerError(f"the ledger at {where} answered {state}: {message}") from error


def schema_sql() -> str:
    """The statements that make a new ledger of the present version."""
    return resources.files("meshgate.sql").joinpath("schema.sql").read_text(encoding="utf-8")


_DROP_FUNCTIONS = """
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'meshgate'::regnamespace LOOP
        EXECUTE 'DROP FUNCTION ' || f;
    END LOOP;
END $$"""


def functions_sql() -> str:
    """The functions of `schema.sql` alone: a migration changes tables, and gets the present functions whole."""
    found = re.findall(r"^CREATE FUNCTION .*?\$\$;$", schema_sql(), flags=re.DOTALL | re.MULTILINE)
    return "\n\n".join(found)


def pending_migrations(version: int) -> list[tuple[int, str]]:
    """The migrations that lead a ledger of `version` to the present one: (number, SQL), in order."""
    folder = resources.files("meshgate.sql").joinpath("migrations")
    numbered = sorted(
        (int(entry.name.split("_", 1)[0]), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )
    return [(number, sql) for number, sql in numbered if version < number <= SCHEMA_VERSION]


def migrate(database: Database, *, test_clock: bool = False) -> tuple[int, int]:
    """Create the ledger, or bring it to the present version, in one transaction under a lock.

    Args:
        database: Where.
        test_clock: Let sessions set the clock of a new ledger. For tests only; it cannot be switched on later.

    Returns:
        The version before (0: there was none) and the version now.

    Raises:
        SchemaVersionError: The ledger is newer than this code.
        LedgerUnreachableError: No connection.
    """
    connection = database.connect()
    connection.autocommit = False
    try:
        with translated(database.shown_url), connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
            cursor.execute("SHOW server_version_num")
            if int(cursor.fetchone()[0]) < 140000:
                raise SchemaVersionError(
                    f"the ledger at {database.shown_url} is on a Postgres older than 14",
                    hint="use Postgres 14 or later",
                )
            cursor.execute("SELECT to_regclass('meshgate.ledger') IS NOT NULL")
            if not cursor.fetchone()[0]:
                cursor.execute(schema_sql())
                cursor.execute(
                    "INSERT INTO meshgate.ledger (schema_version, test_clock) VALUES (%s, %s)",
                    [SCHEMA_VERSION, test_clock],
                )
                return 0, SCHEMA_VERSION
            cursor.execute("SELECT schema_version FROM meshgate.ledger FOR UPDATE")
            before = int(cursor.fetchone()[0])
            if before > SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"the ledger at {database.shown_url} has schema {before}, newer than this meshgate's {SCHEMA_VERSION}",
                    hint="run `pip install --upgrade meshgate`",
                )
            if before < SCHEMA_VERSION:
                _refuse_while_runs_live(cursor, database.shown_url)
                cursor.execute(_DROP_FUNCTIONS)
                for _, sql in pending_migrations(before):
                    cursor.execute(sql)
                cursor.execute(functions_sql())
                cursor.execute("UPDATE meshgate.ledger SET schema_version = %s", [SCHEMA_VERSION])
            return before, SCHEMA_VERSION
    finally:
        connection.close()


def _refuse_while_runs_live(cursor: Any, where: str) -> None:
    """Runs decide with the functions that are about to change. The row of the ledger is locked: none can start."""
    cursor.execute(
        "SELECT r.run_id, p.name, r.expires_at FROM meshgate.run r JOIN meshgate.project p USING (project_id)"
        " WHERE r.state = 'running' AND r.expires_at > clock_timestamp() ORDER BY r.run_id"
    )
    live = cursor.fetchall()
    if live:
        told = ", ".join(f"run {run_id} of {project!r}" for run_id, project, _ in live)
        latest = max(expires for *_, expires in live)
        raise RunInProgressError(
            f"the ledger at {where} is not migrated while runs live: {told}",
            hint=f"wait for them and migrate again; their leases last until {latest:%H:%M:%SZ} unless they renew them",
        )
