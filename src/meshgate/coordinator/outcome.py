"""What a run has done so far, and how that is put into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.gate import Blocked
    from meshgate.interval import Interval, IntervalSet


@attrs.frozen
class Failure:
    """An interval whose evaluation or audit failed, with the facts."""

    model: str
    project: str
    interval: Interval
    detail: Mapping[str, Any]


@attrs.define
class Outcome:
    """What a run has done so far.

    Attributes:
        committed: Recorded, by model.
        failed: What failed, in the order it did.
        blocked: What was ready when the run planned and not when it began, or never was.
        warned: Non-blocking audits that failed: model, interval, audits.
        unchanged: What of it was computed again and was what it had been, by model: early cut-off keeps it from its readers.
        uncompared: Why early cut-off could not find out what has changed, by model.
        unmirrored: Recorded in the ledger, but SQLMesh's own record failed: model, interval, problem.
    """

    committed: dict[str, IntervalSet] = attrs.field(factory=dict)
    failed: list[Failure] = attrs.field(factory=list)
    blocked: list[Blocked] = attrs.field(factory=list)
    warned: list[Failure] = attrs.field(factory=list)
    unchanged: dict[str, IntervalSet] = attrs.field(factory=dict)
    uncompared: dict[str, str] = attrs.field(factory=dict)
    unmirrored: list[tuple[str, Interval, str]] = attrs.field(factory=list)


def wait_in_words(wait: Mapping[str, Any]) -> str:
    """What a batch waits for."""
    if wait["for"] == "promotion":
        return f"for deploy {wait['run_id']} to replace it"
    what = f"warehouse {wait['name']!r}" if wait["of"] == "warehouse" else "the model"
    return f"as {what} is at its limit of {wait['most']} batches at once"


def failure_in_words(detail: Mapping[str, Any]) -> str:
    """Why something failed."""
    audits = ", ".join(f"audit {a['audit']} found {a['count']}" for a in detail.get("audits", ()))
    return audits or str(detail.get("message") or "")
