"""The shop behind the example: tills, a catalogue and a customer register that write into the source database.

Simulated time is cut into slots of five minutes. What a slot contains depends on the seed and on the slot alone, so that
two runs with one seed write equal rows, a span can be generated in any number of pieces, and generating it twice
changes nothing: not even rows that were poisoned, repaired or delivered late in the meantime.
"""

from __future__ import annotations

import math
import random
from contextlib import closing
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Literal

import psycopg2
from psycopg2.extras import execute_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BEGINNING = datetime(2026, 1, 5, tzinfo=UTC)
"""The first instant of simulated time, and the `start` of every model."""

SLOT = timedelta(minutes=5)

CATEGORIES = ("books", "coffee", "garden", "kitchen", "stationery", "toys")
COUNTRIES = ("DE", "ES", "FR", "GB", "NL", "US")
CURRENCIES = ("EUR", "EUR", "EUR", "GBP", "USD")
SEGMENTS = ("consumer", "business", "school")
NOUNS = (
    "Atlas",
    "Beaker",
    "Compass",
    "Easel",
    "Kettle",
    "Lantern",
    "Ledger",
    "Mortar",
    "Pruner",
    "Quill",
    "Spinner",
    "Tray",
)
FIRST_NAMES = (
    "Ada",
    "Bruno",
    "Chidi",
    "Dalia",
    "Edith",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Keiko",
    "Lena",
)
LAST_NAMES = (
    "Abel",
    "Borg",
    "Castro",
    "Dietz",
    "Evans",
    "Faber",
    "Grau",
    "Horvat",
    "Iden",
    "Jansen",
    "Kaya",
    "Lund",
)

ITEMS_AT_FIRST = 24
CUSTOMERS_AT_FIRST = 40
SLOTS_PER_NEW_ITEM = 48
SLOTS_PER_NEW_CUSTOMER = 6

SCHEMA = """
create table if not exists public.transactions (
    delivery_id text primary key,
    transaction_id text not null,
    customer_id text,
    item_id text,
    quantity integer,
    amount numeric(12, 2),
    currency text,
    status text,
    occurred_at timestamptz not null,
    loaded_at timestamptz not null
);
create index if not exists transactions_by_time on public.transactions (occurred_at);
create table if not exists public.items (
    delivery_id text primary key,
    item_id text not null,
    name text,
    category text,
    list_price numeric(12, 2),
    updated_at timestamptz not null,
    loaded_at timestamptz not null
);
create index if not exists items_by_time on public.items (updated_at);
create table if not exists public.customers (
    delivery_id text primary key,
    customer_id text not null,
    name text,
    country text,
    segment text,
    updated_at timestamptz not null,
    loaded_at timestamptz not null
);
create index if not exists customers_by_time on public.customers (updated_at);
"""


@dataclass(frozen=True)
class Transaction:
    """One delivery of a sale; a sale that is sent twice, or corrected, has several."""

    delivery_id: str
    transaction_id: str
    customer_id: str
    item_id: str
    quantity: int
    amount: Decimal
    currency: str
    status: str
    occurred_at: datetime
    loaded_at: datetime


@dataclass(frozen=True)
class Item:
    """One version of an item, valid from `updated_at`."""

    delivery_id: str
    item_id: str
    name: str
    category: str
    list_price: Decimal
    updated_at: datetime
    loaded_at: datetime


@dataclass(frozen=True)
class Customer:
    """One version of a customer, valid from `updated_at`."""

    delivery_id: str
    customer_id: str
    name: str
    country: str
    segment: str
    updated_at: datetime
    loaded_at: datetime


Row = Transaction | Item | Customer
TABLES: dict[type[Row], str] = {Customer: "customers", Item: "items", Transaction: "transactions"}


def create_tables(dsn: str) -> None:
    """Create the three source tables, if they do not exist."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)


def generate(dsn: str, start: datetime, end: datetime, seed: int = 1) -> int:
    """Write everything that the shop did in [start, end), UTC.

    Args:
        dsn: The source database.
        start: The first instant; a boundary of a slot, not before `BEGINNING`.
        end: The first instant that is left out; a boundary of a slot.
        seed: Equal seeds write equal rows.

    Returns:
        The number of rows that were new.

    Raises:
        ValueError: The span is not cut along slots, or begins before `BEGINNING`.
    """
    _check_span(start, end)
    return _insert(dsn, (row for slot in _slots(start, end) for row in rows_of(slot, seed)))


def rows_of(slot: datetime, seed: int = 1) -> Iterator[Row]:
    """Yield the rows of the five minutes that begin at `slot` (UTC), from the seed and the slot alone."""
    number = (slot - BEGINNING) // SLOT
    dice = random.Random(f"{seed}/{number}")
    yield from _catalogue(slot, number, dice)
    yield from _register(slot, number, dice)
    for position in range(_volume(slot, dice)):
        # The first second belongs to the catalogue: an item exists before it is sold.
        occurred = slot + timedelta(milliseconds=dice.randrange(1_000, 300_000))
        yield from _deliveries(f"T{slot:%m%d%H%M}-{position:03}", occurred, slot + SLOT, number, dice)


def write_late(
    dsn: str, start: datetime, end: datetime, seed: int = 1, *, arrived: datetime, sales: int = 5
) -> list[datetime]:
    """Deliver sales of [start, end) that had been held back, and cancel one that was delivered already.

    Args:
        dsn: The source database.
        start: The first instant (UTC) at which the sales may have happened; a boundary of a slot.
        end: The first instant that is left out; a boundary of a slot.
        seed: Equal seeds write equal rows.
        arrived: When they reached the source (UTC); after `end`.
        sales: How many new sales.

    Returns:
        The slots that the rows belong to, in order: what has to be computed again.
    """
    _check_span(start, end)
    dice = random.Random(f"{seed}/late/{start:%m%d%H%M}/{arrived:%m%d%H%M}")
    rows: list[Row] = []
    for position in range(sales):
        occurred = start + timedelta(
            milliseconds=dice.randrange(1_000, (end - start) // timedelta(milliseconds=1))
        )
        identity = f"L{start:%m%d%H%M}-{arrived:%m%d%H%M}-{position:03}"
        rows.append(_sale(identity, occurred, arrived, (occurred - BEGINNING) // SLOT, dice))
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "select * from public.transactions where occurred_at >= %s and occurred_at < %s"
            " and loaded_at < %s and status = 'completed' order by delivery_id limit 1",
            (start, end, arrived),
        )
        known = cursor.fetchone()
    if known is not None:
        old = Transaction(*known)
        rows.append(
            replace(
                old,
                delivery_id=f"{old.transaction_id}/late-{arrived:%m%d%H%M}",
                status="cancelled",
                loaded_at=arrived,
            )
        )
    _insert(dsn, rows)
    return sorted({_slot_of(row.occurred_at) for row in rows if isinstance(row, Transaction)})


def write_late_item(dsn: str, since: datetime, seed: int = 1, *, arrived: datetime) -> datetime:
    """Deliver a change of price and category that held since `since` but was entered only at `arrived` (both UTC).

    Returns:
        The slot that the row belongs to. What was computed from that instant on has to be computed again.
    """
    since = since.replace(microsecond=0)
    number = (since - BEGINNING) // SLOT
    dice = random.Random(f"{seed}/late-item/{since:%m%d%H%M}/{arrived:%m%d%H%M}")
    index = dice.randrange(_items_at(number))
    row = _item_version(index, since, dice, category=dice.choice(CATEGORIES), loaded_at=arrived)
    _insert(dsn, [row])
    return _slot_of(since)


def poison(dsn: str, start: datetime, end: datetime, kind: Literal["amount", "currency"] = "amount") -> str:
    """Make the first sale of [start, end) (UTC) one that bronze's audits refuse.

    Args:
        dsn: The source database.
        start: The first instant of the interval.
        end: The first instant that is left out.
        kind: `amount`: the amount becomes negative. `currency`: the currency becomes one that nobody knows.

    Returns:
        The row's id.

    Raises:
        LookupError: There is no sound sale in the interval.
    """
    change = {"amount": "amount = -amount", "currency": "currency = 'X' || currency"}[kind]
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            f"update public.transactions set {change} where delivery_id = ("
            "  select delivery_id from public.transactions where occurred_at >= %s and occurred_at < %s"
            "  and amount > 0 and currency not like 'X%%' order by delivery_id limit 1) returning delivery_id",
            (start, end),
        )
        row = cursor.fetchone()
    if row is None:
        raise LookupError(f"No sound sale between {start} and {end}: generate the span first.")
    return str(row[0])


def repair(dsn: str, start: datetime, end: datetime) -> int:
    """Undo `poison` in [start, end) (UTC), as the shop's staff would: in place.

    Returns:
        The number of sales that were repaired.
    """
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "update public.transactions set amount = abs(amount), currency = ltrim(currency, 'X')"
            " where occurred_at >= %s and occurred_at < %s and (amount < 0 or currency like 'X%%')",
            (start, end),
        )
        return int(cursor.rowcount)


def _slots(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += SLOT


def _slot_of(instant: datetime) -> datetime:
    return BEGINNING + (instant - BEGINNING) // SLOT * SLOT


def _check_span(start: datetime, end: datetime) -> None:
    if start < BEGINNING or _slot_of(start) != start or _slot_of(end) != end:
        raise ValueError(f"{start} to {end} is not a span of whole five minutes at or after {BEGINNING}.")


def _volume(slot: datetime, dice: random.Random) -> int:
    """20 to 60 sales: few at night, most in the afternoon."""
    hour = slot.hour + slot.minute / 60
    return round(40 - 14 * math.cos((hour - 3) * math.tau / 24) + dice.uniform(-6, 6))


def _items_at(number: int) -> int:
    return ITEMS_AT_FIRST + number // SLOTS_PER_NEW_ITEM


def _customers_at(number: int) -> int:
    return CUSTOMERS_AT_FIRST + number // SLOTS_PER_NEW_CUSTOMER


def _catalogue(slot: datetime, number: int, dice: random.Random) -> Iterator[Item]:
    born = range(_items_at(number)) if number == 0 else range(_items_at(number - 1), _items_at(number))
    for index in born:
        yield _item_version(index, slot, dice)
    if number and dice.random() < 1 / 6:
        since = slot + timedelta(seconds=dice.randrange(1, 300))
        category = dice.choice(CATEGORIES) if dice.random() < 1 / 4 else None
        yield _item_version(dice.randrange(_items_at(number - 1)), since, dice, category=category)


def _register(slot: datetime, number: int, dice: random.Random) -> Iterator[Customer]:
    born = (
        range(_customers_at(number))
        if number == 0
        else range(_customers_at(number - 1), _customers_at(number))
    )
    for index in born:
        yield _customer_version(index, slot, dice)
    if number and dice.random() < 1 / 5:
        since = slot + timedelta(seconds=dice.randrange(1, 300))
        yield _customer_version(
            dice.randrange(_customers_at(number - 1)), since, dice, segment=dice.choice(SEGMENTS)
        )


def _item_version(
    index: int,
    since: datetime,
    dice: random.Random,
    *,
    category: str | None = None,
    loaded_at: datetime | None = None,
) -> Item:
    usual = CATEGORIES[index % len(CATEGORIES)]
    price = (_base_price(index) * Decimal(str(round(dice.uniform(0.85, 1.25), 2)))).quantize(
        Decimal("0.01"), ROUND_HALF_UP
    )
    return Item(
        delivery_id=f"I{index:03}/{since:%m%d%H%M%S}" + ("/late" if loaded_at else ""),
        item_id=f"I{index:03}",
        name=f"{NOUNS[index % len(NOUNS)]} {index // len(NOUNS) + 1}",
        category=category or usual,
        list_price=price,
        updated_at=since,
        loaded_at=loaded_at or since,
    )


def _customer_version(
    index: int, since: datetime, dice: random.Random, *, segment: str | None = None
) -> Customer:
    return Customer(
        delivery_id=f"C{index:04}/{since:%m%d%H%M%S}",
        customer_id=f"C{index:04}",
        name=f"{FIRST_NAMES[index % len(FIRST_NAMES)]} {LAST_NAMES[index * 7 // len(FIRST_NAMES) % len(LAST_NAMES)]}",
        country=dice.choice(COUNTRIES),
        segment=segment or SEGMENTS[index % len(SEGMENTS)],
        updated_at=since,
        loaded_at=since,
    )


def _base_price(index: int) -> Decimal:
    return Decimal(3 + index * 37 % 90) + Decimal("0.90")


def _sale(
    identity: str, occurred: datetime, loaded: datetime, number: int, dice: random.Random
) -> Transaction:
    item = dice.randrange(_items_at(number))
    quantity = dice.choice((1, 1, 1, 2, 2, 3, 5))
    discount = Decimal(str(dice.choice((1, 1, 1, 0.95, 0.9))))
    return Transaction(
        delivery_id=f"{identity}/1",
        transaction_id=identity,
        customer_id=f"C{dice.randrange(_customers_at(number)):04}",
        item_id=f"I{item:03}",
        quantity=quantity,
        amount=(_base_price(item) * quantity * discount).quantize(Decimal("0.01"), ROUND_HALF_UP),
        currency=dice.choice(CURRENCIES),
        status="completed",
        occurred_at=occurred,
        loaded_at=loaded,
    )


def _deliveries(
    identity: str, occurred: datetime, deadline: datetime, number: int, dice: random.Random
) -> Iterator[Transaction]:
    """Yield one sale; now and then it is sent twice, corrected or cancelled, all of it before the slot ends."""
    last = deadline - timedelta(milliseconds=1)
    loaded = min(occurred + timedelta(milliseconds=dice.randrange(200, 5_000)), last)
    sale = _sale(identity, occurred, loaded, number, dice)
    yield sale
    fate = dice.random()
    again = min(loaded + timedelta(seconds=dice.randrange(1, 90)), last)
    if fate < 0.03:
        yield replace(sale, delivery_id=f"{identity}/2", loaded_at=again)
    elif fate < 0.05:
        yield replace(
            sale,
            delivery_id=f"{identity}/2",
            loaded_at=again,
            quantity=sale.quantity * 2,
            amount=sale.amount * 2,
        )
    elif fate < 0.07:
        yield replace(sale, delivery_id=f"{identity}/2", loaded_at=again, status="cancelled")


def _insert(dsn: str, rows: Iterable[Row]) -> int:
    grouped: dict[type[Row], list[Sequence[object]]] = {kind: [] for kind in TABLES}
    for row in rows:
        grouped[type(row)].append(astuple(row))
    written = 0
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        for kind, values in grouped.items():
            if not values:
                continue
            columns = ", ".join(field.name for field in fields(kind))
            new = execute_values(
                cursor,
                f"insert into public.{TABLES[kind]} ({columns}) values %s on conflict (delivery_id) do nothing returning 1",
                values,
                page_size=1_000,
                fetch=True,
            )
            written += len(new)
    return written
