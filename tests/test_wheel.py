"""The wheel as a user gets it: built from this checkout, installed with its dependencies into an empty environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.local_postgres import LocalPostgres

    Command = Callable[..., subprocess.CompletedProcess[str]]

REPOSITORY = Path(__file__).parents[1]
MODEL = """
MODEL (name lake.hours, kind INCREMENTAL_BY_TIME_RANGE (time_column hour, partition_by_time_column FALSE), cron '@hourly');
SELECT hour FROM generate_series(@start_dt, @end_dt - INTERVAL 1 HOUR, INTERVAL 1 HOUR) AS hours (hour)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("wheel")]


def _outside() -> dict[str, str]:
    """The environment of a user who has never seen the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MESHGATE", "VIRTUAL_ENV"))}
    return {**kept, "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true", "COLUMNS": "160"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built here."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that holds the wheel and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("user") / "environment"
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[local]"],
        capture_output=True, text=True, timeout=540, check=False, env=_outside(), cwd=folder,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        pytest.fail(
            f"pip could not install the wheel's dependencies; is a package registry in reach?\n{last}"
        )
    return folder / "bin"


@pytest.fixture(scope="module")
def user(programs: Path, postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs an installed program in a folder that holds one SQLMesh project and its meshgate.yaml."""
    folder = tmp_path_factory.mktemp("mesh")
    url = postgres.ensure_database("wheel")
    mesh = {"ledger": {"url": url}, "project": {"name": "hours", "path": "hours"}}
    (folder / "meshgate.yaml").write_text(json.dumps(mesh))
    (folder / "hours/models").mkdir(parents=True)
    (folder / "hours/models/hours.sql").write_text(MODEL)
    state = {
        "host": postgres.host,
        "port": postgres.port,
        "user": postgres.user,
        "password": postgres.password,
    }
    gateway = {
        "connection": {"type": "duckdb", "database": "lake.duckdb"},
        "state_connection": {"type": "postgres", "database": "wheel", **state},
    }
    config = {
        "project": "hours",
        "gateways": {"local": gateway},
        "model_defaults": {"dialect": "duckdb", "start": "2026-01-05"},
    }
    (folder / "hours/config.yaml").write_text(json.dumps(config))

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs / program, *arguments],
            capture_output=True, text=True, timeout=120, check=False, env=_outside(), cwd=folder,
        )  # fmt: skip

    return run


def test_the_wheel_holds_what_the_package_reads_and_nothing_else(wheel: Path) -> None:
    """Each file of the package is in it, its SQL and its type marker too; no test, no example."""
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    source = REPOSITORY / "src"
    there = {
        str(f.relative_to(source)) for f in source.rglob("*") if f.is_file() and "__pycache__" not in f.parts
    }
    assert names == there
    assert names >= {"meshgate/py.typed", "meshgate/sql/schema.sql", "meshgate/sql/queries.sql"}


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    """Python, licence and the tested range of SQLMesh are in its metadata, and SQLGlot has no version."""
    from meshgate.bridge.contract import TESTED_RANGE

    with zipfile.ZipFile(wheel) as archive:
        text = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("METADATA"))
    assert "Requires-Python: >=3.11" in text
    assert "License-Expression: MIT" in text
    needs = [
        line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist")
    ]
    versions = set(TESTED_RANGE.removeprefix("sqlmesh").split(","))
    assert [
        set(n.removeprefix("sqlmesh[databricks]").split(",")) for n in needs if n.startswith("sqlmesh")
    ] == [versions]
    assert "sqlglot" in needs


def test_the_installed_command_is_not_the_checkout(user: Command) -> None:
    """What the other tests run is the wheel."""
    done = user("python", "-c", "import meshgate; print(meshgate.__file__)")
    assert "site-packages" in done.stdout
    assert str(REPOSITORY) not in done.stdout


def test_help_needs_nothing_but_the_wheel(user: Command) -> None:
    """`meshgate --help` lists the commands."""
    done = user("meshgate", "--help")
    assert done.returncode == 0, done.stderr
    assert {"migrate", "doctor", "deploy", "run", "status", "why", "gate"} <= set(done.stdout.split())


def test_the_installed_command_makes_a_ledger_and_works(user: Command) -> None:
    """From an empty database: migrate, doctor, deploy, run, status; a second migrate finds nothing to do."""
    assert user("meshgate", "doctor").returncode == 2
    made = user("meshgate", "migrate")
    assert (made.returncode, made.stdout[:14]) == (0, "ledger created"), made.stderr
    again = user("meshgate", "migrate")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stderr
    for arguments in (
        ("doctor",),
        ("deploy", "hours", "--now", "2026-01-05T02:00Z"),
        ("run", "hours", "--now", "2026-01-05T04:00Z"),
        ("status", "--now", "2026-01-05T04:00Z"),
        ("doctor", "--json"),
    ):
        done = user("meshgate", *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert json.loads(done.stdout)["outcome"] == "warn"  # SQLMesh's state is in DuckDB here
