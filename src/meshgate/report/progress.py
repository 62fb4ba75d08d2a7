"""What a run does while it works and waits, on stderr: a live line on a terminal, lines of a log everywhere else.

A log is read afterwards, by somebody who looks for what went wrong. So it tells what is waited for, once, and what
fails; every batch only where more is asked for. The live line goes away before the results are printed.

The times that are shown beside the ledger's are this machine's: they are for looking at, and decide nothing.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Self

from meshgate.coordinator.progress import Batch, Deploying, Planned, Waiting
from meshgate.interval import IntervalSet
from meshgate.report.wording import batch_of, clock_of, counted, model_name, time_of, waiting_for

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from meshgate.coordinator.progress import Progress

_REFRESHED_PER_S = 4
_BAR = 30
_POLLING = "; polling every 5 s: notifications do not get through"


class Narrator:
    """Tells what happens, to a person or to a log. Called from several threads.

    Args:
        file: Where: stderr.
        verbose: Whether every batch is told.
        silent: Whether nothing is told but what `say` says; `verbose` is stronger.
    """

    def __init__(self, file: IO[str], *, verbose: bool = False, silent: bool = False) -> None:
        self._file = file
        self._verbose = verbose
        self._silent = silent and not verbose
        self._lock = threading.Lock()
        self._told: set[tuple[object, ...]] = set()
        self._picture = _Picture() if _can_redraw(file) and not self._silent else None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, what: Progress) -> None:
        """Show what a run tells. Never raises: what cannot be shown is no reason to stop the work."""
        if self._silent:
            return
        try:
            with self._lock:
                if self._picture is not None:
                    self._picture.add(what)
                    self._draw()
                for line in self._lines(what):
                    self._print(line)
        except Exception:  # noqa: BLE001 - as the docstring says
            self._picture = None

    def say(self, text: str) -> None:
        """Print a line at once, whatever else is shown. Never raises: somebody waits for what comes after it.

        The live line ends by it, as the process may be about to exit.
        """
        self.close()
        with self._lock, suppress(OSError, ValueError):
            self._print(text)

    def close(self) -> None:
        """Take the live line away; what is told later is told in lines."""
        with self._lock, suppress(OSError, ValueError):
            live, self._live, self._picture = self._live, None, None
            if live is not None:
                live.stop()

    def _draw(self) -> None:
        if self._live is None:
            from rich.live import Live

            from meshgate.report.text import console

            self._live = Live(
                console=console(self._file), get_renderable=self._picture, refresh_per_second=_REFRESHED_PER_S,
                transient=True, redirect_stdout=False,
            )  # fmt: skip
            self._live.start()

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, soft_wrap=True)
        else:
            self._file.write(f"{line}\n")
            self._file.flush()

    def _lines(self, what: Progress) -> list[str]:
        now = datetime.now(UTC)
        if isinstance(what, Planned):
            said = f"{what.project}: {_planned(what)}" if self._verbose else ""
        elif isinstance(what, Deploying):
            said = _deploying(what)
        elif isinstance(what, Batch):
            said = batch_of(what, now) if self._worth_a_line(what) else ""
        elif self._picture is not None or not self._news(what):
            said = ""
        else:
            said = _waiting(what, now)
        return [f"{now:%Y-%m-%d %H:%M:%SZ} {said}"] if said else []

    def _worth_a_line(self, batch: Batch) -> bool:
        if batch.what == "failed":
            return True
        if not self._verbose or batch.what == "begun":
            return False
        return batch.what != "waiting" or self._first("batch", batch.model, batch.interval, batch.detail)

    def _news(self, waiting: Waiting) -> bool:
        """Whether something else is waited for than before: not each poll, nor each interval on the way to the last."""
        piece = waiting.time if self._verbose else None
        run_id = waiting.run_id if self._verbose or waiting.model is None else None
        return self._first("waiting", waiting.model, waiting.of, waiting.reason, run_id, piece)

    def _first(self, *key: object) -> bool:
        new = key not in self._told
        self._told.add(key)
        return new


def _can_redraw(file: IO[str]) -> bool:
    return file.isatty() and os.environ.get("TERM", "dumb").lower() not in ("dumb", "unknown")


def _planned(what: Planned) -> str:
    units = sum(count for _, count in what.units)
    models = ", ".join(f"{model_name(name)} {count}" for name, count in what.units)
    return f"{counted(units, 'interval')} to evaluate of {counted(len(what.units), 'model')}: {models}"


def _deploying(what: Deploying) -> str:
    if what.what == "there":
        return f"{what.project}: deployed before, as analysed"
    said = {"begun": "deploying", "deployed": "deployed", "failed": "not deployed"}[what.what]
    return f"{what.project} ({what.place} of {what.of}): {said}" + (f": {what.detail}" if what.detail else "")


def _waiting(what: Waiting, now: datetime, left: str = "") -> str:
    said = waiting_for(what, now)
    more = (f", {left} left" if left else "") + ("" if what.notified else _POLLING)
    return f"{said[:-1]}{more})" if more else said


class _Picture:
    """The live line. Drawn by another thread than those that tell, so what it shows is replaced, never changed."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._project = ""
        self._total: int | None = None
        self._done = 0
        self._at_work: dict[tuple[str, IntervalSet], Batch] = {}
        self._waiting: Waiting | None = None

    def add(self, what: Progress) -> None:
        """Take in what was told."""
        self._waiting = what if isinstance(what, Waiting) else None
        self._project = what.project
        if isinstance(what, Planned):
            self._total = (self._total or 0) + sum(count for _, count in what.units)
        elif isinstance(what, Batch):
            piece = IntervalSet((what.interval,))
            rest = {key: b for key, b in self._at_work.items() if key[0] != what.model or not key[1] & piece}
            if what.what in ("begun", "waiting"):
                rest[what.model, piece] = what
            elif what.what != "refused":
                self._done += what.units
            self._at_work = rest

    def __call__(self) -> RenderableType:
        """The line as it is now."""
        from rich.text import Text

        now = datetime.now(UTC)
        if (waiting := self._waiting) is not None:
            left = waiting.until - now
            return Text(_waiting(waiting, now, clock_of(left) if left.total_seconds() > 0 else ""))
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        total, done = self._total, self._done
        if total is not None:
            done = min(done, total)
        of = f"{done}/{total} intervals" if total is not None else counted(done, "interval")
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(width=_BAR)
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=total, completed=done, width=_BAR, pulse=total is None)
        line.add_row(
            self._project,
            bar,
            f"{of} · {clock_of(timedelta(seconds=time.monotonic() - self._since))}",
            self._now_at(now),
        )
        return line

    def _now_at(self, now: datetime) -> str:
        """The model at work, and how many others there are."""
        batches = list(self._at_work.values())
        if not batches:
            return ""
        first = next((b for b in batches if b.what == "begun"), batches[0])
        said = (
            batch_of(first, now)
            if first.what == "waiting"
            else f"{model_name(first.model)} {time_of(first.interval, now)}"
        )
        return said if len(batches) == 1 else f"{said} and {len(batches) - 1} more"
