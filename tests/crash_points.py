"""Kills a run before and after each ledger function and each write of the engine, and sees what the next ones make of it.

    python tests/crash_points.py --all
    python tests/crash_points.py --sample 12 --seed 7
    python tests/crash_points.py --all --project deploy

An ordinary run is walked through once, to list the points: upstream two intervals of which one fails its audit and is
halved, downstream one hour, a deploy a change of a model that both projects read, a restatement of the source's table through
both projects. Then, for each point, a process does the same one step further on in time and is killed there with SIGKILL; runs are repeated until they find nothing to do;
and everything must be as if nothing had happened: see `Stage.check`. Some of the dead cannot be proven to be gone, as on
another machine: then their lease and its grace are waited out.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from crash_nursery import Nursery, ask_again
from meshgate import lease
from meshgate.errors import MeshgateError
from meshgate.interval import IntervalSet
from meshgate.local_postgres import LocalPostgres
from meshgate.postgres_server import FSYNC_VARIABLE
from tiny_mesh import SILVER, TinyMesh, at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshgate.mesh import Mesh

PROJECTS = ("upstream", "downstream", "deploy", "restate")
STEP = {"upstream": 10, "downstream": 60, "deploy": 0, "restate": 0}
"""Minutes that each point takes of the mesh's history."""
PATIENCE_S = 60.0
MOST_RUNS = 6


# -- those that go on


class Point(NamedTuple):
    """Where somebody dies.

    Attributes:
        project: Of the run, or `deploy`.
        number: Of the point, counted from 1.
        name: What is being done there.
        elsewhere: Whether it cannot be proven that the process is gone.
    """

    project: str
    number: int
    name: str
    elsewhere: bool = False

    def __str__(self) -> str:
        return f"{self.project} {self.number} {self.name}{' elsewhere' if self.elsewhere else ''}"


def until(condition: Callable[[], Any], what: str) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.02)


UNSETTLED = """
SELECT 'a claim is open' AS what, count(*) FROM meshgate.claim WHERE state IN ('open', 'begun')
UNION ALL SELECT 'a late write is waited for', count(*) FROM meshgate.claim WHERE quarantined_until > clock_timestamp()
UNION ALL SELECT 'a run lives', count(*) FROM meshgate.run WHERE state = 'running'
UNION ALL SELECT 'something is marked', count(*) FROM meshgate.mark k
    JOIN meshgate.promotion p ON p.version_id = k.version_id AND p.environment = 'prod'
UNION ALL SELECT 'SQLMesh lacks something', count(*) FROM meshgate.coverage c
    JOIN meshgate.promotion p ON p.version_id = c.version_id AND p.environment = 'prod' WHERE c.mirrored_at IS NULL
"""
WAITS = """
SELECT run_id FROM meshgate.run WHERE state = 'running' AND expires_at > clock_timestamp()
UNION SELECT run_id FROM meshgate.claim WHERE state = 'lost' AND quarantined_until > clock_timestamp()
"""
MIRRORED = """
SELECT c.version_id, c.span FROM meshgate.coverage c WHERE c.mirrored_at IS NOT NULL AND NOT EXISTS (
    SELECT FROM meshgate.mark m WHERE m.version_id = c.version_id AND m.span && c.span)
"""
LAST_EVENT = "SELECT coalesce(max(event_id), 0) AS n FROM meshgate.event"
COMMITTED = """
SELECT version_id, span FROM meshgate.event WHERE kind = 'interval.committed' AND event_id > %(after)s ORDER BY event_id
"""


@dataclass
class Stage:
    """One mesh, whose history each point takes a step further.

    Attributes:
        minutes: How far it is.
    """

    tiny: TinyMesh
    nursery: Nursery
    mesh: Mesh
    brief: Path
    reader: duckdb.DuckDBPyConnection
    minutes: int = 60
    changes: int = 0
    heard_of: int = 0
    before: int = 0

    @classmethod
    def make(cls, folder: Path, server: LocalPostgres, nursery: Nursery, stack: ExitStack) -> Stage:
        """Two projects, deployed, with an hour of history."""
        tiny = TinyMesh(folder, server, policies={"stale_throttle": "0s"})
        # The same mesh with leases that end soon, for those whose end nobody can prove.
        brief = folder / "brief"
        brief.mkdir()
        config = json.loads((folder / "meshgate.yaml").read_text())
        config["ledger"] |= {"lease_ttl": "1s", "grace": "1s", "statement_timeout": "1s"}
        for project in config["projects"]:
            project["path"] = str(folder / project["path"])
        (brief / "meshgate.yaml").write_text(json.dumps(config))
        mesh = stack.enter_context(tiny.mesh())
        reader = stack.enter_context(duckdb.connect())
        stage = cls(tiny, nursery, mesh, brief, reader)
        tiny.feed(0, 60)
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(60))
        reader.execute("LOAD ducklake; LOAD postgres")
        reader.execute(
            f"ATTACH 'ducklake:postgres:host={server.host} port={server.port} user={server.user} "
            f"password={server.password} dbname=lake_{tiny.key}' AS lake (READ_ONLY)"
        )
        stage.settle()
        return stage

    def rows(self, sql: str, **known: Any) -> list[dict[str, Any]]:
        return self.mesh.ledger.database.execute(sql, known)

    # One point

    def prepare(self, project: str) -> None:
        """What there is to do for a run that may die."""
        upto = self.minutes + STEP[project]
        self.tiny.feed(self.minutes, upto)
        if project == "upstream":
            self.tiny.poison(self.minutes + 7)
        elif project == "downstream":
            self.mesh.run("upstream", now=at(upto))
        elif project == "restate":
            self.tiny.change(self.minutes - 35, self.minutes - 5)
            self.heard_of = self._last_request()
        else:
            self.changes += 1
            self.tiny.write("upstream", "silver", f"{SILVER} AND id >= -{self.changes}")

    def walk(self, project: str) -> list[str]:
        """The points of a run that nobody disturbs."""
        self.prepare(project)
        words, status = self.bear(project, None)
        assert status == 0, words[-1:]
        self.recover(project)
        self.settle()
        self.check()
        return words

    def bear(self, project: str, point: int | None, *, elsewhere: bool = False) -> tuple[list[str], int]:
        return self.nursery.bear(
            folder=str(self.brief if elsewhere else self.tiny.folder), project=project,
            minutes=self.minutes + STEP[project], point=point, elsewhere=elsewhere,
        )  # fmt: skip

    def die(self, point: Point) -> bool:
        """Let a run die at a point, go on, and check; whether it came to that point.

        A lease that is short enough to be waited out may end by itself where the machine is busy.
        """
        self.before = self.rows(LAST_EVENT)[0]["n"]
        self.prepare(point.project)
        words, status = self.bear(point.project, point.number, elsewhere=point.elsewhere)
        if point.project == "restate" and self._last_request() == self.heard_of:
            ask_again(self.mesh, self.minutes)  # nobody has heard of it
        died = self.rows(LAST_EVENT)[0]["n"]
        done = self.rows(MIRRORED)
        self.recover(point.project)
        self.settle()
        self.check()
        self.check_effort(died, done)
        reached = os.WIFSIGNALED(status) and words[-1] == point.name
        assert reached or point.elsewhere, f"it ended with {status} after {words}"
        return reached

    def _last_request(self) -> int:
        return max((request.request_id for request in self.mesh.requests()), default=0)

    def recover(self, project: str) -> None:
        """What is done after a death: the same again; what made the audit fail was mended."""
        upto = self.minutes + STEP[project]
        if project == "upstream":
            self.tiny.repair(self.minutes + 7)
        if project == "deploy":
            self.wait_for_the_dead()
            self.mesh.deploy("upstream", now=at(self.minutes))
        self.minutes = upto

    def wait_for_the_dead(self) -> None:
        """Until nobody lives or may still write, or all who might are proven to be gone."""

        def over() -> bool:
            watched = self.mesh.ledger.watched()
            waits = [row["run_id"] for row in self.rows(WAITS)]
            return all(run in watched and lease.proven_gone(watched[run]) for run in waits)

        until(over, "the end of a lease and of its grace")

    def settle(self) -> None:
        """Run until there is nothing to do."""
        for project in ("upstream", "downstream"):
            for _ in range(MOST_RUNS):
                self.wait_for_the_dead()
                report = self.mesh.run(project, now=at(self.minutes))
                if report.state == "nothing_to_do" and not self.rows(WAITS):
                    break
            else:
                raise AssertionError(f"{project} is not at rest after {MOST_RUNS} runs: {report}")

    # What must be so

    def check(self) -> None:
        """Assert that nothing is left of a death: tables, ledger and SQLMesh's record are as they should be."""
        left = {row["what"]: row["count"] for row in self.rows(UNSETTLED) if row["count"]}
        assert not left, left
        assert {request.state for request in self.mesh.requests()} <= {"done"}
        differs = self.mesh.verify().differences
        assert not differs, differs
        for name, rows in self.tiny.expected(self.minutes).items():
            found = self.reader.execute(f"SELECT * FROM lake.{name} ORDER BY 1").fetchall()
            assert found == rows, (
                f"{name}: {len(found)} rows instead of {len(rows)}, {set(found) ^ set(rows)}"
            )
        manifest = self.mesh.ledger.manifest("prod")
        states = self.mesh.ledger.states(manifest.version_ids.values())
        # Both projects have one state.
        promoted = self.mesh._open_project(self.mesh.config.projects[0], load=False).promoted(
            "prod", at(self.minutes)
        )
        assert promoted is not None
        assert promoted.finalized, "a plan is half done"
        for name, recorded in promoted.recorded.items():
            node = manifest.graph[name]
            if node.kind.recorded and node.version:
                ours = states[manifest.version_ids[name]].covered
                assert ours == recorded, f"{name}: the ledger has {ours}, SQLMesh has {recorded}"
                wanted = IntervalSet.of(at(0), node.unit.floor(at(self.minutes)))
                assert ours == wanted, f"{name}: {ours} is done of {wanted}"

    def check_effort(self, died: int, done: list[dict[str, Any]]) -> None:
        """Assert that nothing was done anew that the dead had finished and that is not stale, and nothing twice for nothing."""
        again = self._pieces(self.rows(COMMITTED, after=died))
        everything = self._pieces(self.rows(COMMITTED, after=self.before))
        manifest = self.mesh.ledger.manifest("prod")
        ids, graph = manifest.version_ids, manifest.graph
        parents = {key: {ids[gate.parent] for gate in graph.gates(name)} for name, key in ids.items()}
        for row in done:
            cells = again.get(row["version_id"], [])
            anew = {cell for cell in cells if cell in self._cells(row["span"])}
            read = {cell for p in parents.get(row["version_id"], ()) for cell in everything.get(p, ())}
            assert not anew or read & anew, f"what was done is done anew: {row['version_id']}, {min(anew)}"
        # A deploy finds out only when it promotes that of what it builds on the dead had recorded the end in SQLMesh alone.
        since: dict[int, set[Any]] = {}
        readers: dict[int, set[int]] = {}
        for reader, those in parents.items():
            for parent in those:
                readers.setdefault(parent, set()).add(reader)
        for row in self.rows(COMMITTED, after=died):
            version, cells = row["version_id"], set(self._cells(row["span"]))
            known = since.setdefault(version, set())
            assert not cells <= known, (
                f"version {version} was done twice after the death, and not because of a parent"
            )
            known |= cells
            for reader in readers.get(version, ()):
                since.get(reader, set()).difference_update(cells)

    @staticmethod
    def _cells(span_: Any) -> list[Any]:
        start, found = span_.lower, []
        while start < span_.upper:
            found.append(start)
            start += at(5) - at(0)
        return found

    def _pieces(self, rows: list[dict[str, Any]]) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for row in rows:
            found.setdefault(row["version_id"], []).extend(self._cells(row["span"]))
        return found


# -- all of them, or some


def points_of(stage: Stage, project: str, generator: random.Random) -> list[Point]:
    """All points of a project's ordinary run; of some, nobody can prove that the process is gone."""
    names = stage.walk(project)
    return [Point(project, n, name, generator.randrange(4) == 0) for n, name in enumerate(names, start=1)]


def sample_of(points: list[Point], count: int, generator: random.Random) -> list[Point]:
    """So many of them, as many of each project as of the others."""
    groups = [[p for p in points if p.project == project] for project in PROJECTS]
    groups = [group for group in groups if group]
    chosen = [generator.sample(group, min(count // len(groups) + 1, len(group))) for group in groups]
    mixed = [point for several in zip(*chosen, strict=False) for point in several]
    return mixed[:count]


def strike(stages: Iterator[Stage], points: list[Point]) -> dict[Point, str]:
    """Let somebody die at each point; those at which something was wrong afterwards, and what.

    Args:
        stages: A fresh one for the first point, and after each that left something wrong.
        points: Where to die.
    """
    wrong: dict[Point, str] = {}
    stage = next(stages)
    for n, point in enumerate(points, start=1):
        began, note = time.monotonic(), ""
        try:
            attempts = (point, point, point._replace(elsewhere=False))
            died = next(attempt for attempt in attempts if stage.die(attempt))
            note = "" if died == point else " reached only with a lease that is long enough"
        except (AssertionError, MeshgateError) as error:
            wrong[point] = note = f" WRONG: {type(error).__name__}: {error}"
            stage = next(stages)
        print(f"{n}/{len(points)} {point} {time.monotonic() - began:.1f}s{note}", flush=True)
    return wrong


def main() -> int:
    """Kill as the arguments say; how many points were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="every point")
    parser.add_argument("--sample", type=int, default=12, metavar="N", help="so many points (default: 12)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="which ones")
    parser.add_argument("--project", choices=PROJECTS, action="append", help="only of these runs")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)  # noqa: S311 - which points, no secret
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    os.environ[FSYNC_VARIABLE] = "off"
    nursery = Nursery()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and leave nothing behind
    sys.path.append(str(Path(__file__).parents[1] / "examples" / "portfolio"))
    importlib.import_module("lakehouse").import_extensions()  # from their wheels: nothing is fetched
    folder = Path(tempfile.mkdtemp(prefix="crash-points-"))
    wrong: dict[Point, str] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(nursery.close)
        server = LocalPostgres.start(folder / "server")
        stack.callback(server.destroy)
        stages = (Stage.make(folder / f"mesh{n}", server, nursery, stack) for n in itertools.count())
        stage = next(stages)
        points = [
            p for project in arguments.project or PROJECTS for p in points_of(stage, project, generator)
        ]
        print(f"{len(points)} points", flush=True)
        chosen = points if arguments.all else sample_of(points, arguments.sample, generator)
        wrong = strike(itertools.chain([stage], stages), chosen)
    print(
        f"seed {seed}: {len(chosen)} of {len(points)} points in {time.monotonic() - began:.0f}s, {len(wrong)} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
