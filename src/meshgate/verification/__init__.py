"""The ledger derived anew from its history, and what differs from the ledger as it is.

Slow on purpose: events are replayed one by one over plain lists, staleness is judged by each child's own unit. It shares
with the ledger's queries the words of the rules, and none of their code.
"""

from meshgate.verification.compare import compare
from meshgate.verification.facts import Difference, Environment, Facts, Orphan
from meshgate.verification.replay import Derived, Dirty, Event, Mark, Piece, Replay, Table

__all__ = [
    "Derived",
    "Difference",
    "Dirty",
    "Environment",
    "Event",
    "Facts",
    "Mark",
    "Orphan",
    "Piece",
    "Replay",
    "Table",
    "compare",
]
