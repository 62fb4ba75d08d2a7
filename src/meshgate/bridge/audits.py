"""What audits say about an evaluated batch, and about each of its intervals.

SQLMesh audits a batch as one. That is a verdict on each of its intervals only for an audit that looks at rows: one
that counts them can pass on twelve intervals of which one is empty, and fail on twelve that are all good. What is
recorded is intervals, and the outcome must not depend on how many were computed together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from sqlglot import exp
from sqlmesh.core.dialect import MacroFunc, MacroVar
from sqlmesh.utils.errors import AuditError, NodeAuditsErrors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmesh.core.snapshot import Snapshot

    from meshgate.interval import Interval

# SQLMesh's own audits that look at each row. One that compares rows with each other (`unique_values`) is among them:
# where an interval fails it, so does every batch that holds it.
_ROW_WISE = frozenset(
    {
        "not_null", "unique_values", "unique_combination_of_columns", "accepted_values", "not_accepted_values",
        "accepted_range", "forall", "not_empty_string", "string_length_between", "string_length_equal", "valid_uuid",
        "valid_email", "valid_url", "valid_http_method", "match_regex_pattern_list", "not_match_regex_pattern_list",
        "match_like_pattern_list", "not_match_like_pattern_list",
    }
)  # fmt: skip
# What may make a row's verdict depend on other rows, or on what a batch is.
_NOT_ROW_WISE = (
    *(exp.AggFunc, exp.Window, exp.Group, exp.Having, exp.Qualify, exp.Distinct, exp.Limit, exp.Fetch, exp.Offset),
    *(exp.Query, exp.Join, exp.Lateral, exp.Unnest, exp.Pivot, exp.TableSample, exp.Anonymous, MacroFunc),
)  # fmt: skip


@attrs.frozen
class Verdict:
    """What the audits say of a stretch of an evaluated batch.

    Attributes:
        time: Half-open, UTC.
        audits: `{"audit", "count", "blocking"}` of each that ran.
        error: Why it must not be recorded, or None.
    """

    time: Interval
    audits: list[dict[str, Any]]
    error: Exception | None = None

    def follows(self, other: Verdict) -> bool:
        """Whether the two are neighbours to be recorded as one: both good, the same audits warned of."""
        warned = [[a["audit"] for a in v.audits if a["count"]] for v in (self, other)]
        neighbours = other.time.end == self.time.start and warned[0] == warned[1]
        return neighbours and self.error is None and other.error is None

    def after(self, other: Verdict) -> Verdict:
        """Both as one, their counts added up."""
        audits = [
            {**b, "count": a["count"] + b["count"]} for a, b in zip(other.audits, self.audits, strict=True)
        ]
        return Verdict(type(self.time)(other.time.start, self.time.end), audits)


def verdict(time: Interval, results: Iterable[Any], snapshot: Snapshot) -> Verdict:
    """SQLMesh's audit results as a verdict."""
    ran = [r for r in results if not r.skipped]
    errors = [
        AuditError(
            audit_name=r.audit.name, audit_args=r.audit_args, count=r.count, query=r.query, model=snapshot.model_or_none
        )
        for r in ran
        if r.blocking and r.count
    ]  # fmt: skip
    audits = [{"audit": r.audit.name, "count": r.count, "blocking": r.blocking} for r in ran]
    return Verdict(time, audits, NodeAuditsErrors(errors) if errors else None)


def each_interval_needs_its_own(snapshot: Snapshot, results: Iterable[Any]) -> bool:
    """Whether some audit of a model may say something else of an interval than of the batch that it is in.

    A standalone audit is asked as SQLMesh asks it, which can be once for years; only what it rejects is looked at more closely.
    """
    if snapshot.is_audit:
        return any(r.count for r in results)
    return snapshot.is_incremental_by_time_range and any(
        not _row_wise(audit) for audit, _ in snapshot.node.audits_with_args
    )


def _row_wise(audit: Any) -> bool:
    """Whether an audit is a filter on the model's own rows: what it finds in a batch, it finds in its intervals."""
    if audit.name in _ROW_WISE:
        return True
    query = audit.query
    if not isinstance(query, exp.Select):
        return False  # Jinja: nobody knows what it will be
    source = query.args.get("from_") or query.args.get("from")
    if source is None or not _this_model(source.this):
        return False
    return not any(
        node is not query
        and (isinstance(node, _NOT_ROW_WISE) or (isinstance(node, MacroVar) and not _this_model(node)))
        for node in query.walk()
    )


def _this_model(node: exp.Expression) -> bool:
    return str(node.sql()).strip('"').lower() == "@this_model"
