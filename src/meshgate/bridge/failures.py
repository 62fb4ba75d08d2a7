"""What goes wrong in an evaluation, as data: an interval's own fault, everybody's, or a meeting with another writer."""

from __future__ import annotations

import re
from typing import Any

from sqlmesh.utils.concurrency import NodeExecutionFailedError
from sqlmesh.utils.errors import NodeAuditsErrors, PythonModelEvalError, SignalEvalError, SQLMeshError

from meshgate.db import redact
from meshgate.errors import EvaluationError, MeshgateError

_MESSAGE_LIMIT = 500
_SAME_FAILURES = 3
_SERIALIZATION = ("40001", "40P01")  # SQLSTATEs: serialization failure, deadlock
# DuckLake and DuckDB; Delta's exceptions and error classes. Drivers give these no code to go by.
_CONFLICT = re.compile(
    r"transaction conflict|conflict on update|catalog write-write conflict|Concurrent(?:Append|DeleteRead|DeleteDelete|Write|"
    r"Transaction)Exception|DELTA_CONCURRENT_",
    re.IGNORECASE,
)

_STYLE = re.compile(r"\x1b\[[0-9;]*m")  # SQLGlot underlines what it cannot parse


def is_conflict(error: BaseException) -> bool:
    """Whether the engine gave this write up because another one to the same table came first; nothing was written."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, NodeAuditsErrors):
            return False
        if getattr(at, "pgcode", None) in _SERIALIZATION or _CONFLICT.search(str(at)):
            return True
        at = at.__cause__ or at.__context__
    return False


def is_outage(failures: list[Exception]) -> bool:
    """Whether the last intervals that were tried alone failed for one and the same reason, which is not an audit's."""
    last = failures[-_SAME_FAILURES:]
    if len(last) < _SAME_FAILURES or any(isinstance(e, NodeAuditsErrors) for e in last):
        return False
    return len({str(describe(e)) for e in last}) == 1


def first_line(error: BaseException) -> str:
    """What an error says, in a line. Never a password."""
    told = _STYLE.sub("", redact(str(error)))
    lines = [line.strip() for line in told.splitlines() if line.strip()] or [type(error).__name__]
    # A line that ends like this one does announces what comes next: a statement, and then the reason.
    said = " ".join(lines[:3]) if lines[0].endswith(":") else lines[0]
    return said[:_MESSAGE_LIMIT]


def describe(error: BaseException) -> dict[str, Any]:
    """A failure as data: the audits with their counts, or the error's first line. Never a password."""
    if isinstance(error, NodeExecutionFailedError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, NodeAuditsErrors):
        return {"audits": [{"audit": e.audit_name, "count": e.count} for e in error.errors]}
    cause = error.__cause__ if isinstance(error, SQLMeshError) and error.__cause__ is not None else error
    # SQLMesh tells where in the user's code it happened first, and what happened last.
    while isinstance(cause, (PythonModelEvalError, SignalEvalError)) and cause.__context__ is not None:
        cause = cause.__context__
    mark = getattr(cause, "problem_mark", None)
    if mark is not None:  # a YAML parser's own words may quote what stands there: a password, for all we know
        said = f"it is not well-formed YAML: line {mark.line + 1}, column {mark.column + 1}"
        return {"error": type(cause).__name__, "message": said}
    return {"error": type(cause).__name__, "message": first_line(cause)}


def sentence(error: BaseException) -> str:
    """A failure as a sentence."""
    facts = describe(error)
    words = str(facts.get("message") or facts)
    if isinstance(error, SignalEvalError):
        # Its last line is SQLMesh's own: which signal, of which model, in which file.
        return f"signal {redact(str(error)).strip().splitlines()[-1].strip()}: {words}"
    return words


def said_of_node(error: Any) -> str:
    """What failed, and why: of a node of SQLMesh's plan."""
    node = error.node if isinstance(error, NodeExecutionFailedError) else None
    name = getattr(node, "snapshot_name", None) or getattr(node, "name", None)
    facts = describe(error)
    audits = ", ".join(f"audit {a['audit']} found {a['count']}" for a in facts.get("audits", ()))
    said = audits or str(facts.get("message"))
    return f"{name.replace(chr(34), '')}: {said}" if isinstance(name, str) else said


def evaluation_error(errors: list[Any]) -> EvaluationError:
    """What to raise where nodes of a run failed otherwise than by what is recorded.

    Raises:
        MeshgateError: The first of them was one of ours.
    """
    first = errors[0].__cause__ or errors[0]
    if isinstance(first, MeshgateError):
        raise first
    return EvaluationError(f"SQLMesh stopped: {'; '.join(map(said_of_node, errors[:3]))}")
