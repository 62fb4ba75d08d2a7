"""Requests for restatement: what somebody wants computed again, and how far that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from meshgate.db import json
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger.ranges import to_interval, to_range, to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from meshgate.db import Database


@attrs.frozen
class Request:
    """Somebody wants a range of a model computed again. Times UTC, half-open.

    Attributes:
        request_id: The ledger's key.
        model: The model.
        project: Its project.
        interval: What was asked for.
        reason: Why.
        made_by: By whom.
        made_at: When.
        revision: What was read at or after it counts.
        asked: What of the promoted version it is about: recorded time; all of it where a table merges rows.
        open: What of that is still as it was.
        cancelled_by: Who took it back, or None.
        cancelled_at: When.
    """

    request_id: int
    model: str
    project: str
    interval: Interval
    reason: str
    made_by: str
    made_at: datetime
    revision: int
    asked: IntervalSet
    open: IntervalSet
    cancelled_by: str | None = None
    cancelled_at: datetime | None = None

    @property
    def done(self) -> IntervalSet:
        """What has been computed again since."""
        return self.asked - self.open

    @property
    def state(self) -> str:
        """`open`, `done` or `cancelled`."""
        if self.cancelled_at is not None:
            return "cancelled"
        return "open" if self.open else "done"


@attrs.frozen
class Pace:
    """How long the last evaluations of a version took.

    Attributes:
        evaluations: How many they were.
        took: How long all of them took.
        time: How much of the model's time they were about.
    """

    evaluations: int
    took: timedelta
    time: timedelta


@attrs.frozen
class Observation:
    """What a source looked like.

    Attributes:
        declared: By which columns, in buckets of how many seconds.
        interval: What was looked at, UTC, half-open.
        prints: How many rows, and the latest change as text, by the second since 1970 at which a bucket begins; buckets
            without rows are left out.
        looks: How often somebody had looked.
    """

    declared: Mapping[str, Any]
    interval: Interval
    prints: Mapping[int, tuple[int, str | None]]
    looks: int


class RequestLedger:
    """The ledger as those use it who ask for a restatement."""

    database: Database

    def request(
        self, asked: Sequence[tuple[str, Interval]], *, reason: str, by: str, origin: str | None = None
    ) -> tuple[int, ...]:
        """Ask for ranges of models to be computed again, all or none; the keys of the requests.

        Args:
            asked: Full names, and the time of each.
            reason: Why: for the history.
            by: Who asks: for the history.
            origin: What asks by itself, each model once: the keys of those that it asked for before are among the others.

        Raises:
            LedgerError: Nothing of a model is recorded there.
        """
        rows = self.database.rows(
            "request_ranges", models=[name for name, _ in asked], spans=[to_range(i) for _, i in asked],
            reason=reason, by=by, origin=origin,
        )  # fmt: skip
        return tuple(row["request_id"] for row in rows)

    def requests_of(self, origin: str) -> dict[str, int]:
        """The requests, by model, that an origin has made and nobody has cancelled."""
        rows = self.database.rows("requests_of_origin", origin=origin, again=True)
        return {row["model"]: row["request_id"] for row in rows}

    def observation(self, environment: str, project: str, source: str) -> Observation | None:
        """What a project's run last saw of a source; None where nobody has looked yet."""
        rows = self.database.rows(
            "observation", environment=environment, project=project, source=source, again=True
        )
        if not rows:
            return None
        (row,) = rows
        prints = {int(second): (count, latest) for second, (count, latest) in row["prints"].items()}
        return Observation(row["declared"], to_interval(row["span"]), prints, row["looks"])

    def save_observation(
        self,
        environment: str,
        project: str,
        source: str,
        seen: Observation,
        asked: Sequence[tuple[str, Interval]],
        *,
        reason: str,
        by: str,
    ) -> tuple[int, ...] | None:
        """Remember a look at a source, and ask for what has changed there, both or none.

        Args:
            environment: SQLMesh's environment.
            project: Whose run looks.
            source: The table.
            seen: What it looks like; `looks` is that of the look with which it was compared, 0 for none.
            asked: Full names of models that read it, and the time of each; only what is recorded of it is asked for.
            reason: Why: for the history.
            by: Who: for the history.

        Returns:
            The keys of the requests; None where somebody else has looked meanwhile: nothing was done.
        """
        answer = self.database.one(
            "save_observation", environment=environment, project=project, source=source, looks=seen.looks,
            declared=json(dict(seen.declared)), span=to_range(seen.interval),
            prints=json({str(second): found for second, found in seen.prints.items()}),
            models=[name for name, _ in asked], spans=[to_range(i) for _, i in asked], reason=reason, by=by,
        )["answer"]  # fmt: skip
        return None if answer.get("overtaken") else tuple(answer["requests"])

    def answer_ticks(
        self,
        environment: str,
        model: str,
        since: datetime,
        last: datetime,
        interval: Interval | None,
        *,
        reason: str,
        by: str,
        origin: str,
    ) -> int | None:
        """Note that the ticks of a model's `auto_restatement_cron` are answered, and ask for what they are about, both or none.

        Args:
            environment: SQLMesh's environment.
            model: Its full name.
            since: Up to where they had been answered, UTC.
            last: Up to where they are now, UTC.
            interval: What is to be computed again, if any of it is recorded.
            reason: Why: for the history.
            by: Who asks: for the history.
            origin: Of whose requests there is one of a model: what is left of the last one is taken along.

        Returns:
            The key of the request; None where nothing was to be asked for, or somebody else has answered meanwhile.
        """
        answer = self.database.one(
            "answer_ticks", environment=environment, model=model, since=since, last=last,
            span=to_range(interval), reason=reason, by=by, origin=origin,
        )["answer"]  # fmt: skip
        found: int | None = answer.get("request")
        return found

    def cancel_request(self, request_id: int, by: str) -> bool:
        """Take back what of a request was not begun yet; False where it had been taken back before.

        Raises:
            LedgerError: There is no such request.
        """
        return bool(self.database.one("cancel_request", request_id=request_id, by=by)["cancelled"])

    def requests(
        self, environment: str, request_id: int | None = None, *, limit: int = 50
    ) -> tuple[Request, ...]:
        """The newest requests for models that an environment promotes, and all that are open, newest first; or only one."""
        rows = self.database.rows(
            "requests", environment=environment, request_id=request_id, limit=limit, again=True
        )
        return tuple(_request(row) for row in rows)

    def paces(self, version_ids: Iterable[int]) -> dict[int, Pace]:
        """How long the last evaluations of versions took, by key; those without any are left out."""
        return {
            row["version_id"]: Pace(row["evaluations"], row["took"], row["time"])
            for row in self.database.rows("durations", versions=sorted(set(version_ids)), again=True)
        }


def _request(row: Mapping[str, Any]) -> Request:
    facts = {key: row[key] for key in ("request_id", "model", "project", "reason", "made_by", "revision")}
    return Request(
        **facts,
        interval=to_interval(row["span"]),
        made_at=to_utc(row["made_at"]),
        asked=IntervalSet(to_interval(s) for s in row["asked"]),
        open=IntervalSet(to_interval(s) for s in row["open"]),
        cancelled_by=row["cancelled_by"],
        cancelled_at=to_utc(row["cancelled_at"]) if row["cancelled_at"] else None,
    )
