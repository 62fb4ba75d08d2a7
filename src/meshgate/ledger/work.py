"""Runs and claims: who is working on what. Each method is one SQL function, one transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.db import Database, json
from meshgate.errors import LeaseLostError
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet
from meshgate.ledger.ranges import to_instant, to_interval, to_range, to_utc
from meshgate.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from meshgate.ledger.holds import Judged


@attrs.frozen
class Lease:
    """A run that may work: its id is the fence of everything that it writes.

    Attributes:
        run_id: The run's id.
        started_at: By the database's clock, UTC.
        expires_at: By the database's clock, UTC; a renewal moves it.
        ttl: How long a renewal lasts.
    """

    run_id: int
    started_at: datetime
    expires_at: datetime
    ttl: timedelta


@attrs.frozen
class Busy:
    """Another run of the project lives, so this one may not start."""

    run_id: int
    project: str
    purpose: str
    holder: Mapping[str, Any]
    started_at: datetime
    expires_at: datetime


@attrs.frozen
class LiveRun:
    """A run whose row says that it lives; its lease may have ended, and nobody taken it over yet.

    Attributes:
        run_id: The run's id.
        project: Whose run.
        environment: SQLMesh's environment.
        purpose: `run`, `deploy` or `maintenance`.
        holder: Who it is.
        started_at: By the database's clock, UTC.
        expires_at: By the database's clock, UTC.
        promoting: Whether it is a deploy that is about to replace models.
        open: How many ranges it has reserved.
        begun: How many batches it is writing.
    """

    run_id: int
    project: str
    environment: str
    purpose: str
    holder: Mapping[str, Any]
    started_at: datetime
    expires_at: datetime
    promoting: bool
    open: int
    begun: int


@attrs.frozen
class BackOff:
    """How long what failed is left alone: `first` after the first failure, doubled by each further one."""

    first: timedelta = timedelta(minutes=1)
    longest: timedelta = timedelta(hours=1)


@attrs.frozen
class Limits:
    """How many batches may be under way at once: of the model, and of the run's warehouse; None: any number."""

    model: int | None = None
    warehouse: int | None = None


@attrs.frozen
class ClaimAnswer:
    """What became of one range that was asked for.

    Attributes:
        interval: The range.
        refused_by: The run that has it, or None: it is reserved.
        free_at: When that run's lease or quarantine ends unless it is renewed, UTC.
    """

    interval: Interval
    refused_by: int | None = None
    free_at: datetime | None = None


@attrs.frozen
class Refusal:
    """Why a batch may not begin: a range of a version that is not clean."""

    version_id: int
    reason: str
    interval: Interval
    detail: Mapping[str, Any]


@attrs.frozen
class Begun:
    """The answer to `begin`: the revision read, or what stands in the way, or what will pass by itself.

    Attributes:
        read_revision: Up to where the ledger's changes are read; None where it did not begin.
        refused: What of the parents is not clean.
        wait: Why it has to be asked for again later: `for` is `promotion` (and the deploy's `run_id`) or `limit`
            (`of` the `model` or the `warehouse`, at `most` so many).
    """

    read_revision: int | None
    refused: tuple[Refusal, ...] = ()
    wait: Mapping[str, Any] | None = None


@attrs.frozen
class Past:
    """What the history of an as-of table looked like when it was recorded last.

    Attributes:
        upto: What was before it is compared, UTC.
        prints: How many changes, and two sums of their digests, by the second since 1970 at which a bucket begins; None:
            nobody knows what its readers have met.
    """

    upto: datetime
    prints: Mapping[int, tuple[int, int, int]] | None


class WorkLedger:
    """The ledger as those use it who work: clock, runs, claims.

    Args:
        database: Where it is; `Database.check_schema` is the caller's to call, once.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def server(self) -> tuple[int, datetime]:
        """The server's version number (140005 is 14.5) and its own clock, UTC; also where there is no ledger yet."""
        row = self.database.one("server", again=True)
        return int(row["version"]), to_utc(row["now"])

    def clock(self) -> datetime:
        """The database's present instant, UTC: the only clock that decides."""
        return to_utc(self.database.one("clock", again=True)["now"])

    def listen(self) -> Listener:
        """Something that wakes when a run commits, fails or ends."""
        return Listener(self.database)

    def revision(self) -> int:
        """The ledger's present revision."""
        return int(self.database.one("revision", again=True)["revision"])

    # Runs

    def acquire(
        self,
        project: str,
        environment: str,
        purpose: str,
        holder: Mapping[str, Any],
        *,
        ttl: timedelta,
        grace: timedelta,
        as_of: datetime | None = None,
        share: bool = False,
        warehouse: str = "default",
        back_off: BackOff = BackOff(),
    ) -> Lease | Busy:
        """Start a run of the project, or say which other one is in its way. Takes over what has expired.

        Args:
            project: The `project:` key.
            environment: SQLMesh's environment.
            purpose: `run`, `deploy` or `maintenance`.
            holder: Who asks: host, pid, and what proves the process's end.
            ttl: How long the lease lasts without a renewal.
            grace: How long after expiry a write of this run may still land.
            as_of: The `--now` of the run, UTC.
            share: Whether other runs of the project may live beside it; never beside a deploy.
            warehouse: What its batches are counted against.
            back_off: How long what fails in it is left alone.
        """
        answer = self.database.one(
            "acquire_run", project=project, environment=environment, purpose=purpose, holder=json(dict(holder)),
            ttl=ttl, grace=grace, as_of=as_of, share=share, warehouse=warehouse,
            retry_first=back_off.first, retry_longest=back_off.longest,
        )["answer"]  # fmt: skip
        if busy := answer.get("busy"):
            return Busy(
                run_id=busy["run_id"],
                project=busy["project"],
                purpose=busy["purpose"],
                holder=busy["holder"],
                started_at=to_instant(busy["started_at"], MIN_INSTANT),
                expires_at=to_instant(busy["expires_at"], MAX_INSTANT),
            )
        return Lease(
            run_id=answer["run_id"],
            started_at=to_instant(answer["started_at"], MIN_INSTANT),
            expires_at=to_instant(answer["expires_at"], MAX_INSTANT),
            ttl=ttl,
        )

    def renew(self, run_id: int) -> datetime:
        """Lengthen the lease; its new end, UTC.

        Raises:
            LeaseLostError: It has ended or was taken over.
        """
        return to_utc(self.database.one("renew_run", run_id=run_id, again=True)["expires_at"])

    def finish(
        self,
        run_id: int,
        state: str,
        counts: Mapping[str, Any],
        error: str | None = None,
        *,
        writing: bool = False,
    ) -> str:
        """End the run; the state in which it really ended (`lost` where it had been taken over).

        `writing`: a thread of it may still be inside a statement.
        """
        return str(
            self.database.one(
                "finish_run",
                run_id=run_id,
                state=state,
                counts=json(dict(counts)),
                error=error,
                writing=writing,
                again=True,
            )["state"]
        )

    def bury(self, run_id: int, *, engine_gone: bool) -> None:
        """Take over a run whose process is proven to be gone, without waiting for its lease to end."""
        self.database.rows("bury_run", run_id=run_id, engine_gone=engine_gone)

    def watched(self) -> dict[int, dict[str, Any]]:
        """The holders of runs that need not be waited for once they are proven to be gone, by run."""
        return {row["run_id"]: row["holder"] for row in self.database.rows("watched", again=True)}

    def take_over(self) -> tuple[int, ...]:
        """Take over every run whose lease has expired; which those were."""
        return tuple(row["run_id"] for row in self.database.rows("take_over", again=True))

    def break_lease(self, run_id: int, by: str) -> bool:
        """Take a lease away by hand; False where the run had ended already.

        Args:
            run_id: The run.
            by: Who did it: for the history.
        """
        return bool(self.database.one("break_run", run_id=run_id, by=by, again=True)["lived"])

    def live_runs(self) -> tuple[LiveRun, ...]:
        """Every run that lives, or that nobody has taken over yet, oldest first."""
        return tuple(
            LiveRun(
                **{**row, "started_at": to_utc(row["started_at"]), "expires_at": to_utc(row["expires_at"])}
            )
            for row in self.database.rows("live_runs", again=True)
        )

    def pause(self, run_id: int, models: Iterable[str]) -> tuple[tuple[int, str, Interval], ...]:
        """Let nothing of these models begin until the deploy ends; what others are still writing: run, model, time.

        Raises:
            LeaseLostError: The deploy may not go on.
        """
        rows = self.database.rows("pause_models", run_id=run_id, models=sorted(models), again=True)
        return tuple((row["run_id"], row["model"], to_interval(row["span"])) for row in rows)

    def retry(self, version_ids: Iterable[int], interval: Interval) -> int:
        """Let what failed be tried again at once; how many marks that concerned."""
        rows = self.database.rows(
            "retry_marks", versions=list(version_ids), span=to_range(interval), again=True
        )
        return int(rows[0]["ended"])

    def turn_to_tidy(self, project: str, every: timedelta) -> bool:
        """Whether nobody has asked that of the project for a while."""
        return bool(self.database.rows("turn_to_tidy", project=project, every=every)[0]["turn"])

    def prune(self, keep: timedelta) -> None:
        """Forget ended claims, events and unnamed runs older than `keep`."""
        self.database.rows("prune", keep=keep)

    # Claims

    def open_claims(
        self, run_id: int, version_id: int, intervals: Iterable[Interval], *, whole: bool = False
    ) -> tuple[ClaimAnswer, ...]:
        """Reserve ranges of one version (the whole of it for as-of models, or where `whole` says so).

        Raises:
            LeaseLostError: The run may not write any more.
        """
        rows = self.database.rows(
            "open_claims",
            run_id=run_id,
            version_id=version_id,
            spans=[to_range(i) for i in intervals],
            whole=whole,
            again=True,
        )
        return tuple(
            ClaimAnswer(
                to_interval(row["span"]),
                row["refused_by"] if row["claim_id"] is None else None,
                to_utc(row["free_at"]) if row["free_at"] and row["claim_id"] is None else None,
            )
            for row in rows
        )

    def begin(
        self,
        run_id: int,
        version_id: int,
        interval: Interval,
        *,
        needs: Sequence[tuple[int, Interval]],
        loaded: Sequence[int],
        environment: str | None,
        limits: Limits = Limits(),
    ) -> Begun:
        """Before a batch reads anything: check fence, promotion and gate once more, and note what it will have read.

        Args:
            run_id: The fence.
            version_id: What will be written.
            interval: The batch.
            needs: The parents' versions and the time of them that the batch reads.
            loaded: Versions that only need to have been loaded (seeds).
            environment: Where all of them must still be promoted; None for a deploy.
            limits: How many batches may be under way at once.

        Raises:
            LeaseLostError: The run may not write any more.
            LedgerError: The run holds no claim on the batch.
        """
        answer = self.database.one(
            "begin_claim", run_id=run_id, version_id=version_id, span=to_range(interval),
            parents=[v for v, _ in needs], spans=[to_range(i) for _, i in needs], loaded=list(loaded),
            environment=environment, of_model=limits.model, of_warehouse=limits.warehouse, again=True,
        )["answer"]  # fmt: skip
        refused = tuple(
            Refusal(
                r["version_id"],
                r["reason"],
                Interval(to_instant(r["start"], MIN_INSTANT), to_instant(r["end"], MAX_INSTANT)),
                r["detail"] or {},
            )
            for r in answer.get("refused", ())
        )
        return Begun(answer.get("read_revision"), refused, answer.get("wait"))

    def commit(
        self,
        run_id: int,
        version_id: int,
        interval: Interval,
        *,
        verdict: str,
        audits: Sequence[Mapping[str, Any]] = (),
        duration: timedelta | None = None,
        rows: int | None = None,
        lookback: Interval | None = None,
        stale_from: datetime | None = None,
        hold: str | None = None,
        changed_from: datetime | None = None,
        past: Past | None = None,
        same: IntervalSet | None = None,
        judged: Sequence[Judged] = (),
    ) -> int:
        """Record a batch under the fence; the revision of its commit.

        Args:
            run_id: The fence.
            version_id: What was written.
            interval: The batch.
            verdict: `passed` or `warned` (a non-blocking audit failed).
            audits: `{"audit", "count", "blocking"}` each.
            duration: How long the evaluation took.
            rows: How many rows it wrote, if the engine said.
            lookback: The units before it that have to be read again because of it.
            stale_from: Of a table that is refreshed: from which instant on it was stale, UTC.
            hold: Why a policy keeps it from its readers; None: it does not, nor what was there before.
            changed_from: Of an as-of table: from which instant on it tells another history than it did, UTC.
            past: Of an as-of table that is compared: its history now.
            same: What of the batch holds the rows that it held before. It keeps the revision of its data, so that nobody
                reads it again: unless something was wrong with it, or somebody was reading meanwhile.
            judged: Of a standalone audit: what it has looked at.

        Raises:
            LeaseLostError: Nothing was recorded; the batch is suspect.
            LedgerError: The run had not begun it.
        """
        revision = self.database.one(
            "commit_claim", run_id=run_id, version_id=version_id, span=to_range(interval), verdict=verdict,
            audits=json([dict(a) for a in audits]), duration=duration, rows=rows, lookback=to_range(lookback),
            stale_from=stale_from, hold=hold, changed_from=changed_from,
            past=None if past is None or past.prints is None else json({str(at): found for at, found in past.prints.items()}),
            upto=past and past.upto, same=[to_range(piece) for piece in same] if same else None,
            judged=[j.version_id for j in judged], spans=[to_range(j.interval) for j in judged],
            whys=[j.held for j in judged], again=True,
        )["revision"]  # fmt: skip
        if revision is None:
            raise LeaseLostError(
                f"run {run_id} has lost its lease: {interval} was not recorded and will be evaluated again",
                run_id=run_id,
            )
        return int(revision)

    def touched(self, version_id: int, revision: int) -> IntervalSet:
        """What a commit found to be what it had been, and left to its readers as it was."""
        rows = self.database.rows("touched", version_id=version_id, revision=revision, again=True)
        return IntervalSet(to_interval(row["span"]) for row in rows)

    def past(self, version_id: int) -> Past | None:
        """What an as-of table's history looked like when it was recorded last; None where nobody has looked."""
        for row in self.database.rows("past", version_id=version_id, again=True):
            prints = row["prints"]
            return Past(
                to_utc(row["upto"]), None if prints is None else {int(k): tuple(v) for k, v in prints.items()}
            )
        return None

    def fail(self, run_id: int, version_id: int, interval: Interval, detail: Mapping[str, Any]) -> None:
        """Record that an evaluation failed, with the facts (audit, count, error).

        Raises:
            LeaseLostError: The range is suspect instead.
            LedgerError: The run had not begun it.
        """
        recorded = self.database.one(
            "fail_claim",
            run_id=run_id,
            version_id=version_id,
            span=to_range(interval),
            detail=json(dict(detail)),
            again=True,
        )["recorded"]
        if not recorded:
            raise LeaseLostError(
                f"run {run_id} has lost its lease: {interval} will be evaluated again", run_id=run_id
            )

    def give_up(self, run_id: int, version_id: int, interval: Interval) -> bool:
        """Give back what was begun and not finished, as suspect; False where the run had not begun it."""
        found = self.database.one(
            "give_up_claim", run_id=run_id, version_id=version_id, span=to_range(interval), again=True
        )
        return bool(found["given_up"])

    def abandon(self, run_id: int, version_id: int | None = None, interval: Interval | None = None) -> int:
        """Give back what was reserved and never begun; how many claims that were."""
        return int(
            self.database.one(
                "abandon_claims", run_id=run_id, version_id=version_id, span=to_range(interval)
            )["ended"]
        )

    def note_mirrored(
        self, run_id: int, version_id: int, interval: Interval, altered: datetime | None = None
    ) -> None:
        """Remember that SQLMesh's own record holds what was committed, and when it says that the table was written."""
        self.database.rows(
            "note_mirrored", run_id=run_id, version_id=version_id, span=to_range(interval), altered=altered, again=True
        )  # fmt: skip
