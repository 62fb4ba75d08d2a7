"""What a change of some projects' files does to the whole mesh: the document, and what is derived for it.

Pure: SQLMesh's plan, the ledger's knowledge and the gate's decisions are handed in by the coordinator.

* `document`: what an analysis says;
* `order`: in which order projects must be deployed, and whether any order is safe;
* `timing`: when each part of the work can be done at the earliest;
* `parse`: the document read back;
* `movement`: whether the world is still the one that was analysed.
"""

from meshgate.analysis.document import (
    BREAKING,
    Analysis,
    Base,
    Beyond,
    Boundary,
    Change,
    Collision,
    Condition,
    Definition,
    Difference,
    Hindrance,
    Left,
    Order,
    Precedence,
    Reason,
    Refusal,
    Work,
)
from meshgate.analysis.movement import Moved, Movement, movement
from meshgate.analysis.order import ALL_COLUMNS, Reading, arrange, precedences, reasons_of
from meshgate.analysis.parse import parse
from meshgate.analysis.timing import Task, earliest

__all__ = [
    "ALL_COLUMNS",
    "BREAKING",
    "Analysis",
    "Base",
    "Beyond",
    "Boundary",
    "Change",
    "Collision",
    "Condition",
    "Definition",
    "Difference",
    "Hindrance",
    "Left",
    "Moved",
    "Movement",
    "Order",
    "Precedence",
    "Reading",
    "Reason",
    "Refusal",
    "Task",
    "Work",
    "arrange",
    "earliest",
    "movement",
    "parse",
    "precedences",
    "reasons_of",
]
