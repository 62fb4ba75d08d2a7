"""What `meshgate analyze` costs beside `sqlmesh plan --explain` over the same mesh: whole processes, in turns.

Three projects with a hundred models each, in layers; each model reads two of the layer above, across the boundaries too. State
and ledger in one Postgres, the warehouse a DuckDB file. One model of the first project is changed so that all below it follow, or
one at the end. Both commands load all three checkouts, whose files are cached by SQLMesh as after any earlier plan; neither writes.

    python benchmarks/analyze.py                 # some minutes, most of them for deploying the mesh
    python benchmarks/analyze.py --models 300 --rounds 7
    python benchmarks/analyze.py --profile       # where the time of an analysis goes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from meshgate.local_postgres import LocalPostgres
from meshgate.mesh import Mesh

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECTS = ("ingest", "core", "mart")
LAYERS = 10
COLUMNS = ("amount", "quantity", "price", "tax", "discount")


def model(name: str, parents: list[str], *, full: bool) -> str:
    """The file of a model with some columns, a join, and the usual filter."""
    kind = "FULL" if full else "INCREMENTAL_BY_TIME_RANGE (time_column ts, partition_by_time_column FALSE)"
    head = f"MODEL (name {name}, kind {kind}, cron '@hourly');\n"
    if not parents:
        made = ", ".join(f"({place} + 1)::BIGINT AS {column}" for place, column in enumerate(COLUMNS))
        return f"{head}SELECT 1::BIGINT AS id, @start_dt::TIMESTAMP AS ts, {made}\n"
    first, second = parents
    made = ", ".join(f"(a.{column} + COALESCE(b.{column}, 0))::BIGINT AS {column}" for column in COLUMNS)
    limits = " AND ".join(f"{side}.ts >= @start_dt AND {side}.ts < @end_dt" for side in "ab")
    where = "" if full else f" WHERE {limits}"
    return (
        f"{head}SELECT a.id::BIGINT AS id, a.ts::TIMESTAMP AS ts, {made}\n"
        f"FROM {first} AS a JOIN {second} AS b ON a.id = b.id AND a.ts = b.ts{where}\n"
    )


class Wide:
    """The mesh: its files, and its databases.

    Args:
        folder: Where its files go.
        postgres: For state and ledger.
        models: How many, in all projects.
    """

    def __init__(self, folder: Path, postgres: LocalPostgres, models: int) -> None:
        self.folder = folder
        url = postgres.ensure_database("wide")
        state = {
            "type": "postgres", "host": postgres.host, "port": postgres.port, "user": postgres.user,
            "password": postgres.password, "database": "wide",
        }  # fmt: skip
        start = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        for project in PROJECTS:
            (folder / project / "models").mkdir(parents=True)
            config = {
                "project": project, "default_gateway": "local", "disable_anonymized_analytics": True,
                "gateways": {"local": {
                    "connection": {"type": "duckdb", "database": str(folder / "house.duckdb")}, "state_connection": state,
                }},
                "model_defaults": {"dialect": "duckdb", "start": start},
            }  # fmt: skip
            (folder / project / "config.yaml").write_text(json.dumps(config))
        listed = [{"name": p, "path": p, "schedule": "0 * * * *"} for p in PROJECTS]
        (folder / "meshgate.yaml").write_text(json.dumps({"ledger": {"url": url}, "projects": listed}))
        chance, width = random.Random(7), models // (len(PROJECTS) * LAYERS)
        above: list[str] = []
        for layer in range(len(PROJECTS) * LAYERS):
            project = PROJECTS[layer // LAYERS]
            names = [f"{project}.m{layer}_{place}" for place in range(width)]
            for name in names:
                parents = chance.sample(above, 2) if above else []
                text = model(name, parents, full=layer % 7 == 6)
                (folder / project / "models" / f"{name.partition('.')[2]}.sql").write_text(text)
            above = names
        self.first, self.last = "ingest/models/m0_0.sql", f"mart/models/{above[0].partition('.')[2]}.sql"

    def deploy(self) -> None:
        """Evaluate everything."""
        with Mesh.open(self.folder, check=False) as mesh:
            mesh.migrate()
            for project in PROJECTS:
                report = mesh.deploy(project)
                assert report.exit_code == 0, report

    def change(self, file: str) -> None:
        """Change what a model computes, and no other one."""
        path = self.folder / file
        text = path.read_text()
        assert "BIGINT AS tax" in text
        path.write_text(text.replace(")::BIGINT AS tax", " + 1)::BIGINT AS tax"))

    def restore(self, file: str) -> None:
        """Undo that."""
        path = self.folder / file
        path.write_text(path.read_text().replace(" + 1)::BIGINT AS tax", ")::BIGINT AS tax"))

    def run(self, command: list[str]) -> tuple[float, str]:
        """Seconds of a whole process, and what it printed."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "src"),
            "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true",
        }
        begun = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=600,
        )
        took = time.perf_counter() - begun
        assert done.returncode == 0, done.stdout + done.stderr
        return took, done.stdout

    @property
    def analyze(self) -> list[str]:
        """Meshgate's command."""
        checkouts = [f"{p}={self.folder / p}" for p in PROJECTS]
        return [sys.executable, "-m", "meshgate", "analyze", *checkouts, "--json"]

    @property
    def explain(self) -> list[str]:
        """SQLMesh's."""
        paths = [word for p in PROJECTS for word in ("-p", str(self.folder / p))]
        return [
            sys.executable, "-c", "from sqlmesh.cli.main import cli; cli()",
            *paths, "plan", "--explain", "--no-prompts", "--skip-tests",
        ]  # fmt: skip


def measure(wide: Wide, models: int, rounds: int) -> None:
    """The table."""
    print(
        f"\n| {models} models, 3 projects | evaluated | load | `sqlmesh plan --explain` | `meshgate analyze` | ratio |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, file in (("nothing changes", None), ("a model at the end changes", wide.last), ("a model at the beginning changes", wide.first)):  # fmt: skip
        if file is not None:
            wide.change(file)
        wide.run(wide.explain)  # both find SQLMesh's file cache filled
        _, said = wide.run(wide.analyze)
        evaluated = len({one["model"] for one in json.loads(said)["work"]})
        theirs, ours = [], []
        for _ in range(rounds):
            theirs.append(wide.run(wide.explain)[0])
            ours.append(wide.run(wide.analyze)[0])
        ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
        shown = [
            f"{statistics.median(side):.1f} s ({min(side):.1f}-{max(side):.1f})" for side in (theirs, ours)
        ]
        print(
            f"| {name} | {evaluated} | {os.getloadavg()[0]:.1f} | {shown[0]} | {shown[1]} | **{ratio:.2f}** |",
            flush=True,
        )
        if file is not None:
            wide.restore(file)


def profile(wide: Wide) -> None:
    """The functions in which an analysis spends most, everything that they call included."""
    wide.change(wide.first)
    wide.run(wide.analyze)
    code = (
        "import cProfile, pstats, sys, io\nfrom meshgate.cli import execute\n"
        "p = cProfile.Profile()\nout = sys.stdout\nsys.stdout = io.StringIO()\np.runcall(execute, sys.argv[1:])\n"
        "sys.stdout = out\npstats.Stats(p).sort_stats('cumulative').print_stats(90)"
    )
    print(wide.run([sys.executable, "-c", code, *wide.analyze[3:]])[1])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        postgres = LocalPostgres.start(Path(folder) / "postgres")
        try:
            wide = Wide(Path(folder) / "mesh", postgres, chosen.models)
            begun = time.perf_counter()
            wide.deploy()
            print(f"deployed in {time.perf_counter() - begun:.0f} s")
            if chosen.profile:
                profile(wide)
            else:
                measure(wide, chosen.models, chosen.rounds)
        finally:
            postgres.destroy()


if __name__ == "__main__":
    main()
