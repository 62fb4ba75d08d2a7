"""Random histories of the corner shop: what becomes of its tables, and how often each interval is evaluated.

    python tests/corner_history.py --seeds 20
    python tests/corner_history.py --seed 3 --steps 40

Ticks that come late, late sales and late changes of items, poisoned sales and their repair, deploys (a breaking change, a column more,
one forward only), runs and deploys killed anywhere, and colleagues who run plain SQLMesh: on the two real projects, with DuckLake and a
private Postgres, over some simulated hours. Now and then, and at the end, everything is left to come to rest. Then every table must be
what the source says, `verify` must find nothing, and nothing may have been evaluated more often than `corner_bound` can justify.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from corner_bound import Bound, Log, short
from corner_tables import below, gold
from crash_nursery import Nursery
from meshgate.errors import EvaluationError, MeshgateError
from meshgate.mesh import Mesh
from meshgate.postgres_server import FSYNC_VARIABLE
from tiny_mesh import DAY, TinyMesh, at, span

CORNER_SHOP = Path(__file__).resolve().parent / "corner_shop"
sys.path[:0] = [str(CORNER_SHOP), str(CORNER_SHOP.parents[1] / "examples" / "portfolio")]

import tills  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.coordinator.run import RunReport
    from meshgate.interval import Interval

PROJECTS = ("upstream", "downstream")
MOST_HOURS_TO_REST = 5
BEGUN = """
SELECT m.name, extract(epoch FROM lower(c.batch)), extract(epoch FROM upper(c.batch)) FROM meshgate.claim c
JOIN meshgate.version USING (version_id) JOIN meshgate.model m USING (model_id) WHERE c.state = 'begun'
"""


class Story:
    """One history.

    Attributes:
        minutes: How far simulated time is, in minutes after the mesh's first instant.
        told: What happened, in words.
    """

    def __init__(self, folder: Path, lakehouse: Lakehouse, nursery: Nursery, log: Log, seed: int) -> None:
        self.folder = folder
        self.lakehouse = lakehouse
        self.nursery = nursery
        self.log = log
        self.chance = random.Random(seed)  # noqa: S311 - so that a history can be had again
        self.minutes = 0
        self.told: list[str] = []
        self.poisoned: list[tuple[int, int]] = []
        self.factor = {"amount": 1, "quantity": 1}
        self.columns = 0
        self.undeployed: dict[str, tuple[str, bool]] = {}
        self.bound = Bound(lookback=self.chance.choice((0, 0, 2)))
        self.throttle = self.chance.choice(("0s", "15m", None))
        self._write()
        self.mesh = Mesh.open(folder, check=False)

    def _write(self) -> None:
        """The corner shop's files, with policies of this history."""
        shutil.copytree(CORNER_SHOP, self.folder, ignore=shutil.ignore_patterns(".*", "logs", "__pycache__"))
        yaml = YAML(typ="safe", pure=True)
        file = self.folder / "meshgate.yaml"
        facts = yaml.load(file)
        for project in facts["projects"]:
            project["retry"] = {"first": "0s"}
            if self.throttle is not None:
                project["stale_throttle"] = self.throttle
        with file.open("w") as out:
            yaml.dump(facts, out)
        if self.bound.lookback:
            self._edit(
                "upstream/models/bronze/transactions.sql",
                "batch_size 288",
                f"batch_size 288, lookback {self.bound.lookback}",
            )

    def _edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, (file, old)
        path.write_text(text.replace(old, new, 1))

    def tell(self, what: str) -> None:
        """Note what happens."""
        self.told.append(f"{at(self.minutes):%H:%M} {what}")

    # -- what happens

    def play(self, steps: int) -> None:
        """All of it."""
        self.tell(f"throttle {self.throttle}, lookback {self.bound.lookback}")
        self.mesh.migrate()
        self.wait(60)
        for project in PROJECTS:
            self.undeployed[project] = ("", True)
            self.deploy(project)
        deeds: list[tuple[int, Callable[[], None]]] = [
            (7, lambda: self.run("upstream")),
            (5, lambda: self.run("downstream")),
            (3, self.late_sales),
            (2, self.late_item),
            (1, self.restate),
            (1, self.poison),
            (1, self.repair),
            (2, self.change),
            (1, self.retry_deploys),
            (1, self.forward_only),
            (4, self.kill),
            (2, self.colleague),
        ]
        for step in range(1, steps + 1):
            self.wait(self.chance.choice((0, 0, 5, 5, 10, 30)))
            (deed,) = self.chance.choices([d for _, d in deeds], [w for w, _ in deeds])
            deed()
            if step == steps // 2:
                self.rest()
        self.rest()

    def wait(self, minutes: int) -> None:
        """Time goes on, and the shop with it."""
        if minutes:
            tills.generate(self.lakehouse.source, at(self.minutes), at(self.minutes + minutes))
            self.minutes += minutes

    def run(self, project: str) -> RunReport:
        """An ordinary run."""
        report = self.mesh.run(project, now=at(self.minutes))
        self._judge(report)
        return report

    def _judge(self, report: RunReport) -> None:
        made = self.log.news()
        ends = {short(m): _minute(list(s)[-1].end) for m, s in report.committed.items() if s}
        self.bound.ran(made, [short(f.model) for f in report.failed], ends)
        self.tell(
            f"{report.state} {report.project}: "
            + ", ".join(f"{short(m)} {_times(s)}" for m, s in report.committed.items())
            + "".join(f" FAILED {short(f.model)} {_times([f.interval])}" for f in report.failed)
            + "".join(f" {f.what} {short(f.model)}" for f in report.findings)
        )

    def late_sales(self) -> None:
        """Sales arrive that happened a while ago, and somebody says so."""
        start = self._past()
        end = min(start + self.chance.choice((5, 5, 15, 60)), self.minutes)
        touched = tills.write_late(
            self.lakehouse.source,
            at(start),
            at(end),
            arrived=at(self.minutes),
            sales=self.chance.randint(1, 5),
        )
        self.tell(f"late sales of {start}-{end}")
        for slot in touched:
            self._ask("bronze.transactions", _minute(slot), _minute(slot) + 5)

    def late_item(self) -> None:
        """An item's price has been another one for a while, and somebody says so."""
        since = self._past()
        slot = tills.write_late_item(
            self.lakehouse.source,
            at(since) + timedelta(seconds=self.chance.randrange(1, 299)),
            arrived=at(self.minutes) + timedelta(seconds=len(self.told)),
        )
        self.tell(f"late item of {since}")
        self._ask("bronze.items", _minute(slot), _minute(slot) + 5)

    def restate(self) -> None:
        """Somebody wants some time computed again, for no reason."""
        model = self.chance.choice(
            ("bronze.transactions", "silver.orders", "silver.customers", "gold.dim_item", "gold.fact_sales")
        )
        start = self._past()
        self._ask(model, start, min(start + self.chance.choice((5, 60)), self.minutes))

    def _ask(self, model: str, start: int, end: int) -> None:
        self.tell(f"asked for {model} {start}-{end}")
        self.bound.touch(model, start, end)
        try:
            self.mesh.restate(model, span(start, end), reason="a history", by="test", apply=True)
        except MeshgateError as refused:
            # What was never recorded cannot be computed again, and is due anyway.
            self.tell(f"refused: {refused.message}")

    def _past(self) -> int:
        return self.chance.randrange(0, self.minutes, 5)

    def poison(self) -> None:
        """The till's next sales include one that bronze refuses; what was read before is looked at again."""
        start = self._past()
        tills.poison(
            self.lakehouse.source, at(start), at(start + 5), self.chance.choice(("amount", "currency"))
        )
        self.tell(f"poisoned {start}")
        self.poisoned.append((start, start + 5))
        self._ask("bronze.transactions", start, start + 5)

    def repair(self) -> None:
        """The shop repairs what was poisoned."""
        for start, end in self.poisoned:
            tills.repair(self.lakehouse.source, at(start), at(end))
            self._ask("bronze.transactions", start, end)
        self.tell(f"repaired {len(self.poisoned)}")
        self.poisoned.clear()

    def change(self) -> None:
        """A model's file changes, and is deployed; or the deploy is killed."""
        if self.undeployed:
            return self.retry_deploys()
        kind = self.chance.choice(("more amount", "more quantity", "column", "column"))
        self.columns += 1
        if kind == "more amount":
            old, self.factor["amount"] = self.factor["amount"], self.factor["amount"] + 1
            was, now = (f"euro_per_unit{f' * {f}' if f > 1 else ''} AS" for f in (old, self.factor["amount"]))
            self._edit("upstream/models/silver/orders.sql", was, now)
            self.undeployed["upstream"] = ("silver.orders", True)
        elif kind == "more quantity":
            old, self.factor["quantity"] = self.factor["quantity"], self.factor["quantity"] + 1
            was, now = (
                f"  orders.quantity{f' * {f} AS quantity' if f > 1 else ''},"
                for f in (old, self.factor["quantity"])
            )
            self._edit("downstream/models/gold/fact_sales.sql", was, now)
            self.undeployed["downstream"] = ("gold.fact_sales", True)
        else:
            project, model, last = self.chance.choice(
                (
                    ("upstream", "silver.orders", "  ranked.loaded_at\n"),
                    ("upstream", "silver.items", "  loaded_at\nFROM ranked"),
                    ("downstream", "gold.fact_sales", "  orders.occurred_at AS sold_at\n"),
                )
            )
            self._edit(*self._with_column(project, model, last))
            self.undeployed[project] = (model, False)
        self.tell(f"changed {self.undeployed}")
        if "upstream" in self.undeployed and self.chance.random() < 0.4:
            return self.kill("deploy", self.chance.randrange(1, 150))
        return self.retry_deploys()

    def _with_column(self, project: str, model: str, last: str) -> tuple[str, str, str]:
        file = f"{project}/models/{model.replace('.', '/')}.sql"
        first, rest = last.split("\n", 1)
        # Before the last column: it is what comes after it that the next change looks for.
        return file, last, f"  {self.columns} AS more_{self.columns},\n{first}\n{rest}"

    def retry_deploys(self) -> None:
        """Deploy what is not deployed yet."""
        for project in list(self.undeployed):
            self.deploy(project)

    def deploy(self, project: str) -> None:
        """SQLMesh's plan under the ledger."""
        model, breaking = self.undeployed[project]
        try:
            report = self.mesh.deploy(project, now=at(self.minutes))
        except EvaluationError as failed:
            self.tell(f"deploy of {project} failed: {failed.message}")
            made = self.log.news()
            self.bound.count(made)
            for evaluation in made:
                self.bound.touch(evaluation.model, evaluation.start, evaluation.end, readers=False)
            return
        if model:
            self.bound.touch(model, 0, self.minutes, readers=breaking)
        self._judge(report)
        if report.state in {"done", "nothing_to_do"}:
            del self.undeployed[project]

    def forward_only(self) -> None:
        """A colleague adds a column by plain SQLMesh, without computing anything again."""
        if self.undeployed:
            return
        self.columns += 1
        self._edit(*self._with_column("upstream", "silver.orders", "  ranked.loaded_at\n"))
        with TinyMesh.plain(self, "upstream", load=True) as context:  # type: ignore[arg-type]
            context.plan(
                "prod", forward_only=True, execution_time=at(self.minutes), auto_apply=True, no_prompts=True,
                skip_tests=True, skip_backfill=True,
            )  # fmt: skip
        self.bound.foreign(self.log.news())
        self.tell("forward only, by plain SQLMesh")

    def kill(self, project: str = "", point: int = 0) -> None:
        """A run is killed somewhere, or not if it is over before."""
        project = project or self.chance.choice(PROJECTS)
        words, status = self.nursery.bear(
            folder=str(self.folder), project=project, minutes=self.minutes,
            point=point or self.chance.randrange(1, 90), elsewhere=False,
        )  # fmt: skip
        made = self.log.news()
        begun = [(short(name), _minute_of(start), _minute_of(end)) for name, start, end in self.sql(BEGUN)]
        self.bound.vanished(made, begun)
        self.tell(
            f"{project} {'ended' if status == 0 else f'killed ({status})'} at {words[-1:]}, begun {begun}"
        )
        if project == "deploy" and self.undeployed:
            # Whether it was promoted is not known: it is deployed again, and is judged then.
            self.tell(f"to be deployed again: {self.undeployed}")
            for model, breaking in self.undeployed.values():
                self.bound.touch(model, 0, self.minutes, readers=breaking)

    def colleague(self) -> None:
        """Somebody runs plain SQLMesh, with or without the other project and the janitor."""
        chosen: dict[str, Any] = {}
        if self.chance.random() < 0.6:
            names = [
                n for n in ("gold.fact_sales", "gold.dim_item", "silver.orders") if self.chance.random() < 0.5
            ]
            chosen = {"select_models": names or ["gold.fact_sales"], "no_auto_upstream": True}
        with TinyMesh.plain(self, self.chance.choice(PROJECTS)) as context:  # type: ignore[arg-type]
            status = context.run(
                "prod", execution_time=at(self.minutes), skip_janitor=self.chance.random() < 0.5, **chosen
            )
        made = self.log.news()
        self.bound.foreign(made)
        self.tell(
            f"plain sqlmesh run {chosen.get('select_models', '')}: {status.name}, {len(made)} evaluations"
        )

    # -- at rest

    def rest(self) -> None:
        """Everything comes to rest, and is right."""
        self.repair()
        self.retry_deploys()
        for _ in range(MOST_HOURS_TO_REST):
            self.wait(60 - self.minutes % 60)
            for project in PROJECTS:
                self.run(project)
            states = {self.run(project).state for project in PROJECTS}
            if states == {"nothing_to_do"} and not self.restless():
                break
        assert not self.undeployed, self.undeployed
        assert self.restless() == []
        self.check()

    def restless(self) -> list[str]:
        """What is not at rest."""
        status = self.mesh.status(now=at(self.minutes))
        models = [m for project in status.projects for m in project.models]
        return [
            *(f"{short(m.model)} {w} {_times(getattr(m, w))}"
              for m in models for w in ("missing", "stale", "suspect", "failing", "requested", "begun") if getattr(m, w)),
            *(f"request {r.request_id} is {r.state}" for r in self.mesh.requests() if r.state not in {"done", "cancelled"}),
        ]  # fmt: skip

    def check(self) -> None:
        """Every table is the source's, `verify` finds nothing, and nothing was evaluated too often."""
        wrong = [
            str(v)
            for v in gold(self.lakehouse, self.minutes, self.factor, self.folder)
            if not v.right or not v.rows_found
        ]
        assert not wrong, wrong
        for name, rows, wanted in below(self.lakehouse, self.minutes, self.factor):
            assert rows == wanted, f"{name}: {len(rows - wanted)} too many, {len(wanted - rows)} missing"
        assert self.mesh.verify().differences == ()
        excess = self.bound.excess()
        assert not excess, excess[:20]

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in the ledger's database."""
        return TinyMesh.sql(self.lakehouse.state, statement)


def _minute(instant: Any) -> int:
    return int((instant.astimezone(UTC) - DAY) / timedelta(minutes=1))


def _minute_of(epoch: Any) -> int:
    return int(epoch - Decimal(DAY.timestamp())) // 60


def _times(spans: Any) -> str:
    several: list[Interval] = list(spans)
    return " ".join(f"[{s.start:%H:%M}, {s.end:%H:%M})" for s in several)


def one(seed: int, steps: int, *, talk: bool) -> int:
    """Play one history; 0 if everything is right."""
    began = time.monotonic()
    os.environ[FSYNC_VARIABLE] = "off"
    folder = Path(tempfile.mkdtemp(prefix="corner-history-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lakehouse = stack.enter_context(Lakehouse.start(folder / "house"))
        stack.callback(lakehouse.destroy)
        os.environ.update(lakehouse.environment())
        tills.create_tables(lakehouse.source)
        log = Log(folder / "evaluations")
        log.watch()
        nursery = Nursery()
        stack.callback(nursery.close)
        story = Story(folder / "shop", lakehouse, nursery, log, seed)
        stack.callback(story.mesh.close)
        wrong = ""
        try:
            story.play(steps)
        except (AssertionError, MeshgateError) as error:
            wrong = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                import traceback

                traceback.print_exc()
        if wrong or talk:
            print("\n".join(f"  {line}" for line in story.told))
        evaluations = sum(sum(counted.values()) for counted in story.bound.done.values())
        verdict = f"WRONG {wrong}" if wrong else f"right, {evaluations} evaluations of intervals"
        print(f"seed {seed}: {verdict}, {time.monotonic() - began:.0f}s", flush=True)
    return 1 if wrong else 0


def main() -> int:
    """Play histories as the arguments say; 0 if all are right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="so many histories (default: 6)")
    parser.add_argument("--first", type=int, default=1, metavar="S", help="the first of their seeds")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="this one only, and tell it")
    parser.add_argument("--steps", type=int, default=24, metavar="N", help="so many things happen")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return one(arguments.seed, arguments.steps, talk=True)
    wrong = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        # A process each: a history must not inherit what another one has opened.
        words = ["--seed", str(seed), "--steps", str(arguments.steps)]
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout if done.returncode else done.stdout.strip().splitlines()[-1], flush=True)
        wrong += done.returncode != 0
    print(f"{arguments.seeds} histories, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
