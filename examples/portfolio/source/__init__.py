"""The shop behind the example, which writes into the source database: `python -m source --help`.

Customers, items whose prices and descriptions change, stores, transactions with line items, refunds, corrections, and faults
on demand; all a function of the seed and of time.
"""

from source.faults import Fault
from source.people_and_things import SLOT
from source.writer import BEGINNING, SourceError, Written, create_tables, generate

__all__ = ["BEGINNING", "SLOT", "Fault", "SourceError", "Written", "create_tables", "generate"]
