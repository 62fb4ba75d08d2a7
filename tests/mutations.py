"""Takes away, one at a time, what keeps a promise, and shows that a test named for it then fails.

    python tests/mutations.py                 # all of them
    python tests/mutations.py fence "G2 *"    # those whose names contain or match one of the words
    python tests/mutations.py --sample 60         # so many by chance, as in CI
    python tests/mutations.py --list

Each mutation replaces exact text in a scratch copy of the package; text that is not there any more is an error, so
that the table follows the code. A mutation is killed if its test fails and `SMOKE`, an ordinary piece of work on the
same mutated ledger, still passes: a function that does not work at all proves nothing. Exit code 1 if any survived.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meshgate.local_postgres import LocalPostgres
from meshgate.postgres_server import FSYNC_VARIABLE
from mutation import REPOSITORY, Mutation, located
from mutations_of_audits import OF_AUDITS
from mutations_of_comments import OF_COMMENTS
from mutations_of_coordination import OF_COORDINATION
from mutations_of_enforced import OF_ENFORCED
from mutations_of_people import OF_PEOPLE
from mutations_of_python import OF_PYTHON
from mutations_of_restatement import OF_RESTATEMENT
from mutations_of_sql import OF_SQL
from mutations_of_verification import OF_VERIFICATION

MUTATIONS = (
    *OF_SQL,
    *OF_COORDINATION,
    *OF_PYTHON,
    *OF_PEOPLE,
    *OF_RESTATEMENT,
    *OF_VERIFICATION,
    *OF_ENFORCED,
    *OF_COMMENTS,
    *OF_AUDITS,
)


def killed(mutation: Mutation, folder: Path, postgres: Path) -> tuple[bool, str]:
    """Whether every test of a mutation fails while the smoke test passes; and what happened."""
    for part in ("src", "tests", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", ".meshgate", ".cache")
        shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    try:
        for edit in mutation.edits:
            edit.apply(folder / "src" / "meshgate")
        tests = tuple(located(test) for test in mutation.tests)
    except LookupError as error:
        return False, f"the table is out of date: {error}"
    seen = tests_of(folder, (*tests, mutation.smoke), postgres)
    smoke = seen.pop(mutation.smoke, "not run")
    if smoke != "passed":
        return False, f"the mutation breaks ordinary work: {mutation.smoke} {smoke}"
    survivors = [test for test in tests if seen.get(test) != "failed"]
    if survivors:
        return False, "; ".join(f"{test} {seen.get(test, 'not run')}" for test in survivors)
    return True, f"{len(mutation.tests)} tests fail"


def tests_of(folder: Path, tests: tuple[str, ...], postgres: Path) -> dict[str, str]:
    """Run tests of a copy against that copy; for each argument `passed`, `failed` or `error`, the worst of its tests."""
    report = folder / "report.xml"
    environment = os.environ | {
        "PYTHONPATH": str(folder / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MESHGATE_TEST_POSTGRES": str(postgres),
        "MESHGATE_PATIENCE_S": "5",
        "MESHGATE_HURRY": "1",
        FSYNC_VARIABLE: "off",
    }
    # Also those of the slower lanes, where they are named.
    argv = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", f"--junitxml={report}"]
    argv += ["-o", "junit_family=xunit1", "--timeout", "240", *(f"tests/{test}" for test in tests)]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError(f"pytest did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seen: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own file
        name = f"{Path(case.get('file', '')).name}::{case.get('name')}"
        state = next((k for k in ("error", "failure") if case.find(k) is not None), "passed")
        state = {"failure": "failed"}.get(state, state)
        for test in tests:
            if name == test or name.startswith((f"{test}::", f"{test}[")):
                order = ("passed", "failed", "error")
                seen[test] = max(seen.get(test, "passed"), state, key=order.index)
    return seen


def chosen(words: list[str]) -> list[Mutation]:
    return [
        m
        for m in MUTATIONS
        if not words or any(word in m.name or fnmatch.fnmatch(m.name, word) for word in words)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="words or patterns; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default 2)")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of them, by chance")
    parser.add_argument("--seed", type=int, help="which ones; made up and printed otherwise")
    parser.add_argument("--list", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    mutations = chosen(arguments.names)
    if arguments.sample and arguments.sample < len(mutations):
        seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
        print(f"seed {seed}: {arguments.sample} of {len(mutations)}")
        mutations = random.Random(seed).sample(mutations, arguments.sample)  # noqa: S311
    if arguments.list or not mutations:
        for mutation in mutations:
            print(f"{mutation.name:58} {', '.join(mutation.tests)}")
        return 0 if mutations else 2
    began = time.monotonic()
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as root:
        os.environ[FSYNC_VARIABLE] = "off"
        postgres = Path(root) / "postgres"
        server = LocalPostgres.start(postgres)  # shared, so that no copy has to start one
        try:

            def one(number: int) -> tuple[bool, str]:
                folder = Path(root) / str(number)
                folder.mkdir()
                try:
                    return killed(mutations[number], folder, postgres)
                finally:
                    shutil.rmtree(folder)

            with ThreadPoolExecutor(arguments.jobs) as pool:
                for mutation, (dead, why) in zip(
                    mutations, pool.map(one, range(len(mutations))), strict=True
                ):
                    survived += not dead
                    print(f"{'killed  ' if dead else 'SURVIVED'}  {mutation.name:58} {why}", flush=True)
        finally:
            server.destroy()
    print(f"{len(mutations) - survived} of {len(mutations)} killed in {time.monotonic() - began:.0f} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
