"""The shops behind the example, which write into the source database.

`shop` is the one to read: customers, items whose prices and descriptions change, stores, transactions with line items,
refunds, corrections, and faults on demand; `python -m source --help` writes it. `tills` is a smaller one, on three tables
in the schema `public`, which the models of this folder read; its names can be had from here.
"""

from source.tills import (
    BEGINNING,
    SLOT,
    TABLES,
    Customer,
    Item,
    Row,
    Transaction,
    create_tables,
    generate,
    poison,
    repair,
    rows_of,
    write_late,
    write_late_item,
)

__all__ = [
    "BEGINNING",
    "SLOT",
    "TABLES",
    "Customer",
    "Item",
    "Row",
    "Transaction",
    "create_tables",
    "generate",
    "poison",
    "repair",
    "rows_of",
    "write_late",
    "write_late_item",
]
