"""The fake source in examples/portfolio/source: deterministic, sound, restartable, and faulty exactly as asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.local_postgres import LocalPostgres

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
sys.path.insert(0, str(PORTFOLIO))

from source.faults import KINDS, Fault  # noqa: E402
from source.people_and_things import SLOT  # noqa: E402
from source.sales import Tills  # noqa: E402
from source.shop import Shop, slots  # noqa: E402
from source.tables import TABLES  # noqa: E402
from source.writer import BEGINNING, SourceError, generate  # noqa: E402

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RATE = 60.0


def fault(text: str) -> Fault:
    return Fault.parse(text)


def span(start: float, end: float) -> str:
    """A span of hours since the beginning, as a fault has it."""
    return f"@{BEGINNING + start * HOUR:%Y-%m-%dT%H:%M}/{BEGINNING + end * HOUR:%Y-%m-%dT%H:%M}"


@pytest.fixture
def database(postgres: LocalPostgres) -> Callable[[], str]:
    """Makes empty databases."""
    return lambda: postgres.ensure_database(f"shop_{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def sound(postgres: LocalPostgres) -> str:
    """Ten days without faults."""
    url = postgres.ensure_database(f"shop_{uuid.uuid4().hex[:12]}")
    generate(url, BEGINNING + 10 * DAY, rate=RATE)
    return url


def rows(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def number(url: str, sql: str, *parameters: Any) -> Any:
    return rows(url, sql, *parameters)[0][0]


def content(url: str) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and a digest of all of them."""
    return {
        table: rows(
            url, f"select count(*), md5(string_agg(t::text, '\n' order by t::text)) from shop.{table} t"
        )[0]
        for table in (*TABLES, "generator")
    }


# The same, whatever happens on the way


def test_equal_seeds_write_equal_rows_in_whatever_pieces(database: Callable[[], str]) -> None:
    """In one call and in five-minute steps and odd hours, with all faults on; another seed writes other rows."""
    faults = [fault(k) for k in KINDS if k not in ("burst", "outage")]
    faults += [fault(f"burst=3{span(5, 6)}"), fault(f"outage{span(8.25, 9.5)}")]
    whole, pieces, other = database(), database(), database()
    end = BEGINNING + 12 * HOUR
    generate(whole, end, rate=RATE, faults=faults)
    at = BEGINNING
    for step in (1, 1, 7, 20, 13, 31, 1, 2, 40, 100):
        at = min(at + step * SLOT, end)
        generate(pieces, at, rate=RATE, faults=faults)
    assert content(pieces) == content(whole)
    generate(other, end, rate=RATE, seed="2", faults=faults)
    assert all(content(other)[table] != content(whole)[table] for table in TABLES if table != "stores")


def test_written_twice_is_written_once(database: Callable[[], str]) -> None:
    """A second call finds nothing to do; what people added to the tables stays, and nothing is dropped."""
    url = database()
    first = generate(url, BEGINNING + 3 * HOUR, rate=RATE)
    rows(url, "alter table shop.customers add column note text; update shop.customers set note = 'kept'")
    rows(url, "create table shop.mine as select 1 as one")
    before = content(url)
    again = generate(url, BEGINNING + 3 * HOUR + timedelta(minutes=4), rate=RATE)
    assert (first.rows > 0, again.rows, again.until) == (True, 0, BEGINNING + 3 * HOUR)
    assert content(url) == before
    generate(url, BEGINNING + 5 * HOUR, rate=RATE)
    assert number(url, "select count(*) from shop.customers where note = 'kept'") == before["customers"][0]
    assert number(url, "select one from shop.mine") == 1


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "source", "--rate", str(RATE), *arguments]


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=PORTFOLIO, env={**os.environ, "SOURCE_URL": url}, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_a_killed_run_started_again_ends_as_one_that_was_left_alone(database: Callable[[], str]) -> None:
    """SIGKILL, each time after some more of it was committed."""
    killed, alone = database(), database()
    end = f"{BEGINNING + 2 * DAY:%Y-%m-%dT%H:%M}"
    generate(alone, BEGINNING + 2 * DAY, rate=RATE)
    generate(killed, BEGINNING, rate=RATE)
    kills = 0
    for hours in (3, 17, 40):
        process = subprocess.Popen(
            command("--until", end), cwd=PORTFOLIO, env={**os.environ, "SOURCE_URL": killed}, stdout=subprocess.DEVNULL
        )  # fmt: skip
        while process.poll() is None and far(killed) < BEGINNING + hours * HOUR:
            pass
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills > 0
    assert far(killed) < BEGINNING + 2 * DAY
    done = run(killed, "--until", end)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("written up to 2026-01-07T00:00Z\n")
    assert content(killed) == content(alone)


def far(url: str) -> datetime:
    found: datetime = number(url, "select written_until from shop.generator")
    return found.astimezone(UTC)


def test_two_at_once_take_turns(database: Callable[[], str]) -> None:
    """Each hour is written by one of them."""
    both, alone = database(), database()
    end = BEGINNING + 9 * HOUR
    generate(alone, end, rate=RATE)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: generate(both, end, rate=RATE), range(2)))
    assert content(both) == content(alone)
    assert sum(one.rows for one in done) == generated(alone)


def generated(url: str) -> int:
    """How many rows one run writes, changes of rows of earlier hours among them."""
    again = Shop("1", RATE, BEGINNING)
    count = 0
    for hour in range(9):
        start = BEGINNING + hour * HOUR
        found = [row for slot in slots(start, start + HOUR) for row in again.rows(slot)]
        count += len({(row.table, *(getattr(row, key) for key in row.key)) for row in found})
    return count


# Sound, and like a shop


def test_every_reference_is_to_something_that_was_there_in_time(sound: str) -> None:
    """Not only the foreign keys: a sale names customers, items and stores that were there when it happened."""
    for sql in (
        "select count(*) from shop.transactions t join shop.customers c using (customer_id) where c.created_at > t.occurred_at",
        "select count(*) from shop.transactions t join shop.stores s using (store_id) where s.created_at > t.occurred_at",
        "select count(*) from shop.line_items l join shop.items i using (item_id) where i.created_at > l.occurred_at",
        "select count(*) from shop.transactions t where not exists (select 1 from shop.line_items l where l.transaction_id = t.transaction_id)",
        "select count(*) from shop.refunds r join shop.line_items l using (transaction_id, line_no) where r.quantity > l.quantity",
        "select count(*) from shop.refunds r join shop.line_items l using (transaction_id, line_no) where r.refunded_at < l.occurred_at",
        "select count(*) from shop.refunds r join shop.line_items l using (transaction_id, line_no) where r.amount > l.amount",
        "select count(*) from shop.transactions where not occurred_at < created_at or updated_at < created_at",
        "select count(*) from shop.item_versions where loaded_at <> updated_at",
    ):
        assert number(sound, sql) == 0, sql


def test_what_a_line_costs_is_the_price_at_that_time(sound: str) -> None:
    """The unit price is that of the item's version that held when it was sold, and the amount follows from it."""
    wrong = """
        select count(*) from shop.line_items l where l.unit_price <> (
            select v.list_price from shop.item_versions v where v.item_id = l.item_id and v.updated_at <= l.occurred_at
            order by v.updated_at desc limit 1
        ) or l.amount <> round(l.unit_price * l.quantity * (1 - l.discount), 2)"""
    assert number(sound, wrong) == 0
    assert number(sound, "select count(*) from shop.item_versions") > 2 * number(
        sound, "select count(*) from shop.items"
    )


def test_the_present_is_the_newest_version(sound: str) -> None:
    """Of customers and items; and of both, things that stay (a name) and things that change (a town, a price, a description)."""
    for one, key, columns in (
        ("item", "item_id", "name, description, category, list_price, updated_at"),
        ("customer", "customer_id", "name, email, city, country, segment, updated_at"),
    ):
        newest = f"select distinct on ({key}) {key}, {columns} from shop.{one}_versions order by {key}, updated_at desc"
        present = f"select {key}, {columns} from shop.{one}s order by {key}"
        assert rows(sound, newest) == rows(sound, present)
        assert (
            number(
                sound,
                f"select max(n) from (select count(distinct name) n from shop.{one}_versions group by {key}) x",
            )
            == 1
        )
    changing = "select count(*) from (select 1 from shop.item_versions group by item_id having count(distinct description) > 1) x"
    assert number(sound, changing) > 10
    assert (
        number(
            sound,
            "select count(*) from (select 1 from shop.customer_versions group by customer_id having count(*) > 1) x",
        )
        > 10
    )


def test_days_and_weeks_have_their_shape_and_the_shop_grows(sound: str) -> None:
    """Evenings are busier than nights, Saturdays than Sundays; a year is busier than its first week; the rate is what was asked."""
    hours = dict(
        rows(sound, "select extract(hour from occurred_at)::int, count(*) from shop.transactions group by 1")
    )
    assert hours[18] > 8 * hours[3]
    days = dict(rows(sound, "select occurred_at::date::text, count(*) from shop.transactions group by 1"))
    assert days["2026-01-10"] > 1.4 * days["2026-01-11"]
    first_week = sum(n for day, n in days.items() if day < "2026-01-12")
    assert abs(first_week / (7 * 24) / RATE - 1) < 0.05
    tills = Tills(Shop("1", RATE, BEGINNING).world)
    week = 7 * 288
    assert sum(tills.volume(s) for s in range(52 * week, 53 * week)) > 2 * sum(
        tills.volume(s) for s in range(week)
    )


def test_customers_come_back_and_new_ones_come(sound: str) -> None:
    """Most named sales are by somebody who bought before; some go to their usual store."""
    counts = Counter(
        customer
        for (customer,) in rows(
            sound, "select customer_id from shop.transactions where customer_id is not null"
        )
    )
    assert sum(n - 1 for n in counts.values()) > 0.8 * counts.total()
    assert number(sound, "select count(*) from shop.customers") > 250
    favourite = """
        select avg(share) from (
            select max(n)::float / sum(n) as share from (
                select customer_id, store_id, count(*) as n from shop.transactions where customer_id is not null group by 1, 2
            ) x group by customer_id having sum(n) > 10) y"""
    assert number(sound, favourite) > 0.6


def test_sales_are_corrected_refunded_and_cancelled(sound: str) -> None:
    """In about the shares that are said, later, with `updated_at` moved on; the rest stays as it was."""
    total = number(sound, "select count(*) from shop.transactions")
    states = dict(rows(sound, "select status, count(*) from shop.transactions group by 1"))
    assert 0.005 < states["cancelled"] / total < 0.016
    assert 0.015 < states["refunded"] / total < 0.04
    assert states["refunded"] == number(sound, "select count(distinct transaction_id) from shop.refunds")
    corrected = number(sound, "select count(*) from shop.line_items where updated_at > created_at")
    assert 0.01 < corrected / total < 0.03
    assert number(sound, "select count(*) from shop.transactions where updated_at > created_at") == (
        states["cancelled"] + states["refunded"] + corrected
    )


# Faults

SYMPTOMS = {
    "late": "select count(*) from shop.transactions where created_at > occurred_at + interval '1 minute'",
    "duplicates": "select count(*) from (select 1 from shop.transactions group by receipt_no having count(*) > 1) x",
    "nulls": "select (select count(*) from shop.transactions where currency is null)"
    " + (select count(*) from shop.line_items where quantity is null)",
    "negative": "select count(*) from shop.line_items where amount < 0",
    "orphans": "select (select count(*) from shop.line_items l where not exists (select 1 from shop.items i where i.item_id = l.item_id))"
    " + (select count(*) from shop.transactions t where customer_id is not null"
    "    and not exists (select 1 from shop.customers c where c.customer_id = t.customer_id))",
    "late_items": "select count(*) from shop.item_versions where loaded_at > updated_at",
    "schema_change": "select count(*) from information_schema.columns where table_schema = 'shop' and column_name = 'loyalty_card'",
}


def test_a_sound_source_has_none_of_the_faults(sound: str) -> None:
    """What the next tests look for is not there by itself."""
    assert {kind: number(sound, sql) for kind, sql in SYMPTOMS.items()} == dict.fromkeys(SYMPTOMS, 0)


@pytest.mark.parametrize("kind", ["late", "duplicates", "nulls", "negative", "orphans"])
def test_faults_of_sales_come_as_often_as_asked_and_no_others(kind: str, database: Callable[[], str]) -> None:
    """In their span; every other symptom is absent, and outside of the span this one is too."""
    url = database()
    generate(url, BEGINNING + 12 * HOUR, rate=RATE * 4, faults=[fault(f"{kind}=0.2{span(4, 10)}")])
    found = {symptom: number(url, sql) for symptom, sql in SYMPTOMS.items()}
    sales = number(
        url, "select count(*) from shop.transactions where created_at >= %s and created_at < %s and transaction_id like 'T%%'"
        " and transaction_id not like '%%-again'", BEGINNING + 4 * HOUR, BEGINNING + 10 * HOUR,
    )  # fmt: skip
    assert 0.14 < found.pop(kind) / sales < 0.26
    assert found == dict.fromkeys(found, 0)
    quiet = database()
    generate(quiet, BEGINNING + 4 * HOUR, rate=RATE * 4)
    before = "select count(*), sum(amount), count(quantity), count(distinct item_id) from shop.line_items where created_at < %s"
    assert rows(url, before, BEGINNING + 3 * HOUR) == rows(quiet, before, BEGINNING + 3 * HOUR)


def test_late_items_held_before_they_were_entered(database: Callable[[], str]) -> None:
    """A version that is entered late does not replace a newer present, and no sale knew its price."""
    url = database()
    generate(url, BEGINNING + DAY, rate=RATE, faults=[fault("late_items=0.2")])
    late = number(url, SYMPTOMS["late_items"])
    assert 30 < late < 90
    newest = "select distinct on (item_id) item_id, list_price from shop.item_versions order by item_id, updated_at desc"
    assert rows(url, newest) == rows(url, "select item_id, list_price from shop.items order by item_id")
    unknown = """
        select count(*) from shop.line_items l where l.unit_price <> (
            select v.list_price from shop.item_versions v where v.item_id = l.item_id and v.updated_at <= l.occurred_at
            and v.loaded_at = v.updated_at order by v.updated_at desc limit 1)"""
    assert number(url, unknown) == 0


def test_a_schema_change_adds_a_column_from_then_on(database: Callable[[], str]) -> None:
    """Before, there is none; afterwards receipts have it, and older ones do not."""
    url = database()
    change = [fault(f"schema_change@{BEGINNING + 3 * HOUR:%Y-%m-%dT%H:%M}/")]
    generate(url, BEGINNING + 3 * HOUR, rate=RATE, faults=change)
    assert number(url, SYMPTOMS["schema_change"]) == 0
    generate(url, BEGINNING + 9 * HOUR, rate=RATE, faults=change)
    filled = "select count(*) filter (where loyalty_card is not null)::float / count(*) from shop.transactions where occurred_at"
    assert number(url, f"{filled} < %s", BEGINNING + 3 * HOUR) == 0
    assert number(url, f"{filled} >= %s", BEGINNING + 3 * HOUR) > 0.3


def test_a_burst_is_so_many_times_as_many_sales(database: Callable[[], str]) -> None:
    """In its hour; the sales that there would have been are among them."""
    url, usual = database(), database()
    generate(url, BEGINNING + 14 * HOUR, rate=RATE, faults=[fault(f"burst=6{span(10, 11)}")])
    generate(usual, BEGINNING + 14 * HOUR, rate=RATE)
    of_hour = (
        "select extract(hour from occurred_at)::int, count(*) from shop.transactions group by 1 order by 1"
    )
    found, expected = dict(rows(url, of_hour)), dict(rows(usual, of_hour))
    assert 4.5 < found.pop(10) / expected.pop(10) < 7.5
    assert found == expected
    ids = "select transaction_id from shop.transactions"
    assert set(rows(usual, ids)) <= set(rows(url, ids))


def test_an_outage_delays_everything_and_loses_nothing(database: Callable[[], str]) -> None:
    """Nothing is noted while it lasts; afterwards all of it is there, as without it but for when it was noted."""
    url, usual = database(), database()
    start, end = BEGINNING + 9 * HOUR, BEGINNING + 11 * HOUR
    outage = [fault(f"outage{span(9, 11)}")]
    generate(url, end, rate=RATE, faults=outage)
    for table in ("transactions", "line_items", "refunds"):
        assert number(url, f"select count(*) from shop.{table} where created_at >= %s", start) == 0
    generate(url, BEGINNING + DAY, rate=RATE, faults=outage)
    generate(usual, BEGINNING + DAY, rate=RATE)
    for table, noted in (
        ("transactions", "created_at, updated_at"), ("line_items", "created_at, updated_at"), ("refunds", "created_at, updated_at"),
        ("item_versions", "loaded_at"), ("customer_versions", "loaded_at"),
    ):  # fmt: skip
        columns = ", ".join(
            name for (name,) in rows(url, "select column_name from information_schema.columns where table_schema = 'shop' and table_name = %s", table)
            if name not in noted
        )  # fmt: skip
        of_table = f"select {columns} from shop.{table} order by {columns}"
        assert rows(url, of_table) == rows(usual, of_table), table
    late = "select count(*) from shop.transactions where occurred_at >= %s and occurred_at < %s and created_at >= %s"
    assert number(url, late, start, end, end) == number(
        url, "select count(*) from shop.transactions where occurred_at >= %s and occurred_at < %s", start, end
    )


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("storm", "is no fault"),
        ("late=2", "is a share, above 0 and up to 1"),
        ("outage", "has no span: write outage@START/END"),
        ("burst@2026-01-07/2026-01-06", "ends before it begins"),
        ("late@noon/", "is no instant"),
        ("late=1.2.3", "is no fault"),
        ("burst=0@2026-01-06/2026-01-07", "does nothing"),
        ("outage@2026-01-06T10:02/2026-01-06T10:04", "within five minutes"),
    ],
)
def test_a_fault_that_cannot_be_read_says_why(text: str, said: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=said):
        Fault.parse(text)


def test_the_command_line_says_what_is_wrong(database: Callable[[], str]) -> None:
    """A span that is written already, another seed, no such fault, no database; never a password."""
    url = database()
    assert run(url, "--until", "2026-01-05T03:00", "--quiet").stdout.endswith(
        "written up to 2026-01-05T03:00Z\n"
    )
    late = run(url, "--until", "2026-01-05T04:00", "--fault", "burst@2026-01-05T01:00/2026-01-05T02:00")
    assert late.returncode == 0
    assert "the fault burst lies before 2026-01-05T03:00Z: what is written stays as it is" in late.stderr
    assert (
        "begun with seed 1, rate 60 and since 2026-01-05T00:00"
        in run(url, "--until", "2026-01-05T04:00", "--seed", "2").stderr
    )
    assert "is no fault" in run(url, "--until", "2026-01-05T04:00", "--fault", "storm").stderr
    nowhere = run("postgresql://ann:s3cret@127.0.0.1:1/shop", "--until", "2026-01-05T04:00")
    assert (nowhere.returncode, "s3cret" in nowhere.stderr) == (1, False)
    assert "the source database cannot be used" in nowhere.stderr
    with pytest.raises(SourceError, match="has no time zone"):
        generate(url, datetime(2026, 1, 6))  # noqa: DTZ001 - that is the mistake


# The notebook


class Dbutils:
    """What a Databricks notebook finds under this name, as far as this one uses it."""

    def __init__(self, secrets: dict[tuple[str, str], str], **given: str) -> None:
        self._secrets, self._given, self._widgets = secrets, given, dict[str, str]()
        self.left: str | None = None
        self.secrets = self.widgets = self.notebook = self

    def text(self, name: str, default: str, _label: str) -> None:
        self._widgets[name] = self._given.get(name, default)

    def get(self, name: str | None = None, *, scope: str | None = None, key: str = "") -> str:
        return self._secrets[scope, key] if scope is not None else self._widgets[str(name)]

    def exit(self, value: str) -> None:
        self.left = value


def test_the_notebook_runs_and_writes_what_the_command_does(
    database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself, from its own folder, with secrets from a scope; only `dbutils` is a stand-in."""
    url, other = database(), database()
    notebook = PORTFOLIO / "notebooks" / "generate_source.py"
    text = notebook.read_text(encoding="utf-8")
    assert text.startswith("# Databricks notebook source\n")
    assert "# MAGIC %pip install" in text
    parts = psycopg2.extensions.parse_dsn(url)
    names = {"host": "host", "port": "port", "database": "dbname", "user": "user", "password": "password"}
    secrets = {("shop", key): str(parts.get(name, "")) for key, name in names.items()}
    dbutils = Dbutils(
        secrets,
        secret_scope="shop",
        sslmode="prefer",
        until="2026-01-05T03:00+01:00",
        rate=str(RATE),
        faults="late=0.5 nulls=0.1",
    )
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(PORTFOLIO)])
    exec(compile(text, str(notebook), "exec"), {"__name__": "__main__", "dbutils": dbutils})  # noqa: S102
    assert dbutils.left is not None
    assert dbutils.left.endswith("written up to 2026-01-05T02:00Z")
    generate(other, BEGINNING + 2 * HOUR, rate=RATE, faults=[fault("late=0.5"), fault("nulls=0.1")])
    assert content(url) == content(other)
