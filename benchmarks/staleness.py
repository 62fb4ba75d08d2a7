"""What a look at staleness costs after a year, and how large the ledger is by then.

A mesh of a thousand models in five projects, half of them every 5 minutes and half every hour, with a year of history that is
written into the ledger as a year of runs would have left it: all but the last day merged, or all of it one row for each commit.
Then one interval of the model with most readers is computed again, and it is looked for what is stale by that.

    python benchmarks/staleness.py                   # both tables, some minutes
    python benchmarks/staleness.py look --models 1000
    python benchmarks/staleness.py size --models 20
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from guarantee_mesh import node
from ledger_scene import Scene, at
from meshgate.coordinator.staleness import find, settle, tidy
from meshgate.db import Database, migrate
from meshgate.graph import Edge, MeshGraph
from meshgate.interval import Interval
from meshgate.ledger import Ledger
from meshgate.local_postgres import LocalPostgres

if TYPE_CHECKING:
    from datetime import datetime

YEAR = timedelta(days=365)
LAYERS = 5
# A child reads just before it commits; its parents have lower numbers in each tick.
_HISTORY = """
INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, duration, rows, committed_at, mirrored_at, read_at)
SELECT %(version)s, tstzrange(t, t + %(step)s), n * %(width)s + %(place)s, n * %(width)s + %(place)s - 1, 'passed', '1s', 100,
       t + %(step)s, t + %(step)s, t + %(step)s
FROM (SELECT t, (extract(epoch FROM t + %(step)s - %(begin)s) / 300)::bigint AS n
      FROM generate_series(%(first)s::timestamptz, %(last)s::timestamptz - %(step)s, %(step)s) AS t) AS ticks"""


def graph_of(models: int) -> MeshGraph:
    """Layers of models, each of which reads two of the layer above; every second layer is hourly below the first two."""
    chance = random.Random(7)
    nodes, edges = [], []
    width = models // LAYERS
    for layer in range(LAYERS):
        for place in range(width):
            name = f'"lake"."m{layer}_{place}"'
            unit = "five_minute" if layer < LAYERS // 2 or (layer == LAYERS // 2 and place % 2) else "hour"
            nodes.append(node(name, f"p{layer}", unit))
            if layer:
                parents = chance.sample(range(width), 2)
                edges += [Edge(name, f'"lake"."m{layer - 1}_{p}"') for p in parents]
    return MeshGraph({n.name: n for n in nodes}, edges)


class Year:
    """A ledger after a year.

    Args:
        postgres: Where to make it.
        graph: The mesh.
        apart: How much of its end is one row for each commit; the rest is merged.
    """

    def __init__(self, postgres: LocalPostgres, graph: MeshGraph, apart: timedelta) -> None:
        database = Database(postgres.ensure_database(f"year_{uuid.uuid4().hex[:8]}"))
        migrate(database, test_clock=True)
        self.ledger = Ledger(database)
        self.graph = graph
        self.scene = Scene(self.ledger)
        self.now = at(0) + YEAR
        self.scene.set_clock(self.now)
        self.ledger.sync_environment("prod", "plan", graph, {n.project for n in graph.nodes.values()})
        self.ids = self.ledger.manifest("prod").version_ids
        for place, name in enumerate(graph.order(), start=2):
            step = timedelta(hours=1) if graph[name].unit.value == "hour" else timedelta(minutes=5)
            self._history(place, name, self.now - apart, self.now, step)
            if apart < YEAR:
                self._history(place, name, at(0), self.now - apart, YEAR - apart)
        database.execute(
            "UPDATE meshgate.ledger SET revision = (SELECT max(revision) + 1 FROM meshgate.coverage)"
        )
        # As the last run left it: nothing is stale, and that was remembered.
        database.execute(
            "UPDATE meshgate.promotion SET settled = '{(,)}', settled_revision = (SELECT revision FROM meshgate.ledger)"
        )
        database.execute("VACUUM ANALYZE")
        self.source = max(graph.nodes, key=lambda name: len(graph.children(name)))

    def _history(self, place: int, name: str, first: datetime, last: datetime, step: timedelta) -> None:
        facts = {
            "version": self.ids[name], "step": step, "begin": at(0), "place": place, "first": first, "last": last,
            "width": len(self.ids) + 2,
        }  # fmt: skip
        self.ledger.database.execute(_HISTORY, facts)

    def size(self) -> tuple[int, int]:
        """Rows of coverage, and their bytes with all indexes."""
        self.ledger.database.execute("VACUUM FULL ANALYZE meshgate.coverage")
        (row,) = self.ledger.database.execute(
            "SELECT count(*) AS n, pg_total_relation_size('meshgate.coverage') AS bytes FROM meshgate.coverage"
        )
        return row["n"], row["bytes"]

    def recompute(self, back: timedelta) -> None:
        """One interval of the model that most others read is computed again."""
        piece = Interval(self.now - back, self.now - back + timedelta(minutes=5))
        run = self.scene.run(self.graph[self.source].project)
        self.ledger.open_claims(run, self.ids[self.source], [piece])
        self.ledger.begin(run, self.ids[self.source], piece, needs=[], loaded=[], environment="prod")
        self.ledger.commit(run, self.ids[self.source], piece, verdict="passed")
        self.ledger.finish(run, "done", {})

    def look(self, rounds: int) -> tuple[str, int]:
        """Median and worst time of a look, ms, and how much is stale."""
        taken, found = [], {}
        for _ in range(rounds):
            begun = time.perf_counter()
            found = find(self.ledger, "prod", self.graph, self.ids)
            taken.append(1000 * (time.perf_counter() - begun))
        return f"{statistics.median(taken):,.0f} / {max(taken):,.0f}", sum(len(v) for v in found.values())


def look(postgres: LocalPostgres, models: int, rounds: int) -> None:
    """The table of what a look costs."""
    print(f"\n{models} models, {rounds} looks each, ms, median / worst\n")
    print(
        "| rows apart | rows | at rest | stale after an hour ago | intervals | stale after 100 days ago | intervals |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    graph = graph_of(models)
    for apart in (timedelta(days=1), timedelta(days=7)):
        year = Year(postgres, graph, apart)
        rows, _ = year.size()
        cells = [f"the last {apart.days} days", f"{rows:,}", year.look(rounds)[0]]
        year.recompute(timedelta(hours=1))
        cells += map(str, year.look(rounds))
        settle(year.ledger, "prod", None)
        year.recompute(timedelta(days=100))
        cells += map(str, year.look(rounds))
        print(f"| {' | '.join(cells)} |", flush=True)


def size(postgres: LocalPostgres, models: int) -> None:
    """The table of what a year leaves; the merging is the product's own, of a whole year at once."""
    print(f"\n{models} models\n")
    print("| after a year | rows | MB | of 1,000 models |")
    print("|---|---:|---:|---:|")
    year = Year(postgres, graph_of(models), YEAR)
    _size_row("not merged", year, models)
    begun = time.perf_counter()
    for project in sorted({n.project for n in year.graph.nodes.values()}):
        tidy(year.ledger, project)
    took = time.perf_counter() - begun
    _size_row("merged", year, models)
    begun = time.perf_counter()
    for project in sorted({n.project for n in year.graph.nodes.values()}):
        tidy(year.ledger, project)
    print(f"\nmerging the year took {took:.1f} s, once more {time.perf_counter() - begun:.2f} s")


def _size_row(name: str, year: Year, models: int) -> None:
    rows, size = year.size()
    print(f"| {name} | {rows:,} | {size / 1e6:,.1f} | {size / 1e6 * 1000 / models:,.0f} MB |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("look", "size"))
    parser.add_argument("--models", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        postgres = LocalPostgres.start(Path(folder) / "postgres")
        try:
            if chosen.part != "size":
                look(postgres, chosen.models or 1000, chosen.rounds)
            if chosen.part != "look":
                size(postgres, chosen.models or 20)
        finally:
            postgres.destroy()


if __name__ == "__main__":
    main()
