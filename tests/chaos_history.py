"""What is written down of a ledger under chaos, and read back: every change of a row, and what the workers saw.

`chaos_history.sql` records each change together with its transaction; `chaos_replay` judges the whole on a grid of
five-minute cells. What was done in the engine is known from the workers' own logs (`Outside`), so that work done
twice is seen from there too.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from chaos_worker import KILL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


CELL_S = 300
BEFORE, AFTER = -1, 1_000_000
"""Cells that stand for all time before and after the grid: a whole table is claimed as one."""

READ_CHANGES = """
SELECT seq, xid::text, extract(epoch FROM at)::float8 AS at, tab, was, became,
       extract(epoch FROM pg_xact_commit_timestamp(xid::xid))::float8 AS ended
FROM chaos.history ORDER BY pg_xact_commit_timestamp(xid::xid), seq
"""
READ_MODELS = """
SELECT v.version_id, m.name, v.as_of,
       ARRAY(SELECT q.version_id FROM meshgate.edge e JOIN meshgate.promotion q
             ON q.environment = e.environment AND q.model_id = e.parent_id
             JOIN meshgate.version w ON w.version_id = q.version_id
             WHERE e.environment = p.environment AND e.child_id = p.model_id AND w.kind <> 'external' ORDER BY 1) AS parents
FROM meshgate.promotion p JOIN meshgate.version v USING (version_id) JOIN meshgate.model m ON m.model_id = p.model_id
WHERE p.environment = 'prod'
"""

Cells = frozenset[int]


@dataclass(frozen=True)
class Change:
    """One row of one table, before and after; times are seconds since 1970."""

    seq: int
    xid: str
    at: float
    table: str
    was: Mapping[str, Any] | None
    became: Mapping[str, Any] | None
    ended: float


@dataclass(frozen=True)
class Model:
    """One promoted version."""

    version: int
    name: str
    whole: bool = False
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What a worker did in the engine: `end` is None where it never came back."""

    run: int
    model: str
    cells: Cells
    begin: float
    end: float | None
    error: str | None = None


@dataclass
class Outside:
    """What is known without the ledger.

    Attributes:
        evaluations: Every one, in any order.
        over: When a run could not write any more: its process was gone, or it had said that it ended.
        overlap: The policy with which a run was started.
        deaths: When the process with an id and a start time was gone, or was sent what it could not survive.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    over: dict[int, float] = field(default_factory=dict)
    overlap: dict[int, str] = field(default_factory=dict)
    deaths: dict[tuple[int, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: which check found it, and the facts."""

    check: str
    said: str
    at: float = 0.0

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at, UTC).strftime("%H:%M:%S.%f")[:-3] if self.at else "at rest"
        return f"{self.check}: {self.said} ({when})"


# -- reading what was written down


def seconds(text: str | None) -> float | None:
    """An instant as Postgres writes it into JSON, as seconds since 1970; None for an open end."""
    return datetime.fromisoformat(text).timestamp() if text else None


def length_s(text: str) -> float:
    """An interval as Postgres writes it, in seconds."""
    days = re.search(r"(-?\d+) day", text)
    clock = re.search(r"(\d+):(\d+):([\d.]+)", text)
    found = timedelta(days=int(days[1])) if days else timedelta(0)
    if clock:
        found += timedelta(hours=int(clock[1]), minutes=int(clock[2]), seconds=float(clock[3]))
    return found.total_seconds()


def cells_of(span: str, origin: datetime) -> Cells:
    """The cells of a range as Postgres writes it; all of time is everything between BEFORE and AFTER."""
    lower, upper = (part.strip('"[]()') for part in span.split(","))
    first = BEFORE if not lower else _cell(lower, origin)
    last = AFTER if not upper else _cell(upper, origin)
    if first == BEFORE or last == AFTER:
        return frozenset({BEFORE, AFTER})
    return frozenset(range(first, last))


def _cell(text: str, origin: datetime) -> int:
    return int((datetime.fromisoformat(text) - origin).total_seconds() // CELL_S)


def said(cells: Iterable[int]) -> str:
    """Cells for people: `3-5,9`."""
    pieces = []
    for _, group in groupby(enumerate(sorted(cells)), key=lambda pair: pair[1] - pair[0]):
        run = [cell for _, cell in group]
        pieces.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(pieces)


def outside_of(logs: Iterable[Path], deaths: Mapping[int, list[float]], origin: datetime) -> Outside:
    """What the workers' logs say.

    Args:
        logs: One file a worker, a JSON object a line; the last line of a killed worker may be torn.
        deaths: When the processes with an id were gone, or were sent what they could not survive: the system uses
            ids again.
        origin: The first instant of the grid.
    """
    found = Outside()
    for log in logs:
        who, since, runs, open_, suicide = (0, ""), 0.0, set(), {}, None
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            kind = event["e"]
            if kind == "start":
                who, since = (event["pid"], event["started"]), event["t"]
            elif kind == "run":
                runs.add(event["run"])
                found.overlap[event["run"]] = event["overlap"]
            elif kind == "over":
                found.over[event["run"]] = event["t"]
            elif kind == "aimed":
                suicide = event["t"] if event["action"] == KILL else None
            elif kind == "eval":
                open_[event["n"]] = event
            elif kind == "evaled":
                found.evaluations.append(
                    _evaluation(open_.pop(event["n"]), event["t"], origin, event["error"])
                )
        died = (
            min((at for at in deaths.get(who[0], ()) if at >= since), default=None)
            if suicide is None
            else suicide
        )
        if died is not None:
            found.deaths[who] = died
        found.evaluations += [_evaluation(event, died, origin) for event in open_.values()]
        for run in runs:
            if died is not None:
                found.over.setdefault(run, died)
    return found


def _evaluation(
    event: Mapping[str, Any], end: float | None, origin: datetime, error: str | None = None
) -> Evaluation:
    first, last = (
        int((datetime.fromisoformat(event[k]) - origin).total_seconds() // CELL_S) for k in ("start", "end")
    )
    return Evaluation(event["run"], event["model"], frozenset(range(first, last)), event["t"], end, error)


# -- the database's side


def record(url: str) -> None:
    """Start to write down the changes of a ledger."""
    sql = (Path(__file__).parent / "chaos_history.sql").read_text(encoding="utf-8")
    with connected(url) as cursor:
        cursor.execute(sql)


def history(url: str) -> list[Change]:
    """Everything that was committed, in the order of the commits."""
    with connected(url) as cursor:
        cursor.execute(READ_CHANGES)
        return [
            Change(seq, xid, at, table, was, became, ended)
            for seq, xid, at, table, was, became, ended in cursor.fetchall()
        ]


def keep_history(url: str, path: Path) -> None:
    """Write it into a file, a JSON object a line, to be read by a person."""
    lines = [json.dumps(asdict(change)) for change in history(url)]
    path.write_text("\n".join(lines), encoding="utf-8")


def promoted(url: str) -> list[Model]:
    """The versions that production promotes."""
    with connected(url) as cursor:
        cursor.execute(READ_MODELS)
        return [
            Model(version, name, whole=whole, parents=tuple(parents))
            for version, name, whole, parents in cursor.fetchall()
        ]


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A cursor of a connection of its own, each statement a transaction."""
    connection = psycopg2.connect(url, application_name="chaos", connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()
