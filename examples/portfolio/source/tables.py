"""The shop's tables: their rows, how they are created, and how rows are written into them.

The tables hold the present, as those of a shop do: a row is changed in place, and `updated_at` grows. Of customers and items the
shop also keeps every version, with the instant from which it holds (`updated_at`) and the one at which it was entered (`loaded_at`).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from psycopg2.extras import execute_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from decimal import Decimal

DDL = """
create schema if not exists shop;
create table if not exists shop.generator (
    one boolean primary key default true check (one),
    seed text not null,
    rate numeric not null,
    since timestamptz not null,
    written_until timestamptz not null
);
comment on table shop.generator is 'How far the generator has come, and with what; written together with the rows.';
create table if not exists shop.stores (
    store_id text primary key,
    name text not null,
    city text not null,
    country text not null,
    currency text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create table if not exists shop.customers (
    customer_id text primary key,
    name text,
    email text,
    city text,
    country text,
    segment text,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create table if not exists shop.customer_versions (
    customer_id text not null references shop.customers,
    name text,
    email text,
    city text,
    country text,
    segment text,
    updated_at timestamptz not null,
    loaded_at timestamptz not null,
    primary key (customer_id, updated_at)
);
create table if not exists shop.items (
    item_id text primary key,
    name text,
    description text,
    category text,
    list_price numeric(12, 2),
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create table if not exists shop.item_versions (
    item_id text not null references shop.items,
    name text,
    description text,
    category text,
    list_price numeric(12, 2),
    updated_at timestamptz not null,
    loaded_at timestamptz not null,
    primary key (item_id, updated_at)
);
create table if not exists shop.transactions (
    transaction_id text primary key,
    receipt_no text not null,
    store_id text not null references shop.stores,
    customer_id text references shop.customers,
    channel text,
    currency text,
    status text,
    occurred_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create table if not exists shop.line_items (
    transaction_id text not null references shop.transactions,
    line_no integer not null,
    item_id text not null references shop.items,
    quantity integer,
    unit_price numeric(12, 2),
    discount numeric(4, 2),
    amount numeric(12, 2),
    occurred_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (transaction_id, line_no)
);
create table if not exists shop.refunds (
    refund_id text primary key,
    transaction_id text not null,
    line_no integer not null,
    quantity integer,
    amount numeric(12, 2),
    reason text,
    refunded_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    foreign key (transaction_id, line_no) references shop.line_items
);
create index if not exists customer_versions_by_time on shop.customer_versions (updated_at);
create index if not exists item_versions_by_time on shop.item_versions (updated_at);
create index if not exists transactions_by_time on shop.transactions (occurred_at);
create index if not exists line_items_by_time on shop.line_items (occurred_at);
create index if not exists refunds_by_time on shop.refunds (refunded_at);
"""


@dataclass(frozen=True)
class Store:
    """A shop in a town, or the one on the web."""

    table: ClassVar[str] = "stores"
    key: ClassVar[tuple[str, ...]] = ("store_id",)
    store_id: str
    name: str
    city: str
    country: str
    currency: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Customer:
    """A customer as the register has them now."""

    table: ClassVar[str] = "customers"
    key: ClassVar[tuple[str, ...]] = ("customer_id",)
    customer_id: str
    name: str
    email: str
    city: str
    country: str
    segment: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class CustomerVersion:
    """A customer as they were from `updated_at` on."""

    table: ClassVar[str] = "customer_versions"
    key: ClassVar[tuple[str, ...]] = ("customer_id", "updated_at")
    customer_id: str
    name: str
    email: str
    city: str
    country: str
    segment: str
    updated_at: datetime
    loaded_at: datetime


@dataclass(frozen=True)
class Item:
    """An item as the catalogue has it now."""

    table: ClassVar[str] = "items"
    key: ClassVar[tuple[str, ...]] = ("item_id",)
    item_id: str
    name: str
    description: str
    category: str
    list_price: Decimal
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class ItemVersion:
    """An item as it was from `updated_at` on."""

    table: ClassVar[str] = "item_versions"
    key: ClassVar[tuple[str, ...]] = ("item_id", "updated_at")
    item_id: str
    name: str
    description: str
    category: str
    list_price: Decimal
    updated_at: datetime
    loaded_at: datetime


@dataclass(frozen=True)
class Transaction:
    """A receipt. `status` is `completed`, `cancelled`, or `refunded` (in whole or in part)."""

    table: ClassVar[str] = "transactions"
    key: ClassVar[tuple[str, ...]] = ("transaction_id",)
    transaction_id: str
    receipt_no: str
    store_id: str
    customer_id: str | None
    channel: str
    currency: str | None
    status: str
    occurred_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class CardTransaction(Transaction):
    """A receipt since the schema changed: it names the loyalty card."""

    loyalty_card: str | None = None


@dataclass(frozen=True)
class LineItem:
    """A line of a receipt: `amount` is what was paid for it."""

    table: ClassVar[str] = "line_items"
    key: ClassVar[tuple[str, ...]] = ("transaction_id", "line_no")
    transaction_id: str
    line_no: int
    item_id: str
    quantity: int | None
    unit_price: Decimal
    discount: Decimal
    amount: Decimal
    occurred_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Refund:
    """Money given back for a line of a receipt."""

    table: ClassVar[str] = "refunds"
    key: ClassVar[tuple[str, ...]] = ("refund_id",)
    refund_id: str
    transaction_id: str
    line_no: int
    quantity: int
    amount: Decimal
    reason: str
    refunded_at: datetime
    created_at: datetime
    updated_at: datetime


Row = Store | Customer | CustomerVersion | Item | ItemVersion | Transaction | LineItem | Refund
KINDS: tuple[type[Row], ...] = (
    *(Store, Customer, CustomerVersion, Item, ItemVersion, Transaction, CardTransaction, LineItem, Refund),
)
"""In the order in which they are written: what is referenced comes first."""
TABLES = tuple(dict.fromkeys(kind.table for kind in KINDS))


def write(cursor: Any, rows: Iterable[Row]) -> int:
    """Insert rows, or change those that are there into newer ones; what is there and as new stays.

    Args:
        cursor: In a transaction of the caller's.
        rows: In order of time: of two that change one row, the later one counts.

    Returns:
        How many rows were inserted or changed.
    """
    grouped: dict[type[Row], dict[tuple[Any, ...], Row]] = {kind: {} for kind in KINDS}
    for row in rows:
        of_kind = grouped[type(row)]
        key = tuple(getattr(row, name) for name in row.key)
        known = of_kind.get(key)
        if known is None or row.updated_at > known.updated_at:
            of_kind[key] = row
    return sum(_write(cursor, kind, list(found.values())) for kind, found in grouped.items() if found)


def _write(cursor: Any, kind: type[Row], rows: Sequence[Row]) -> int:
    columns = [field.name for field in fields(kind)]
    # The first that was entered stays the one that was entered first.
    changed = [name for name in columns if name not in (*kind.key, "created_at")]
    # One statement a page: `rowcount` would be that of the last page only.
    found = execute_values(
        cursor,
        f"insert into shop.{kind.table} as t ({', '.join(columns)}) values %s on conflict ({', '.join(kind.key)}) do update set "
        f"{', '.join(f'{name} = excluded.{name}' for name in changed)} where excluded.updated_at > t.updated_at returning 1",
        [astuple(row) for row in rows],
        page_size=1_000,
        fetch=True,
    )
    return len(found)
