"""The tutorial, executed as it stands: its files written, its commands run in a shell, what they print compared."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
NOT_RUN = ("pip install '/path/to/meshgate[local]'",)
COMMANDS = {
    "meshgate": "from meshgate.cli import main\nmain()",
    "sqlmesh": "from sqlmesh.cli.main import cli\ncli()",
}
# What differs from one machine, or one moment, to the next.
VARYING = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|\b\d\d:\d\d:\d\dZ", "<instant>"),
    (r"\b\d+(\.\d+)?m?s\b", "<length>"),
    (r"127\.0\.0\.1:\d+", "<server>"),
]


def pieces() -> list[tuple[str, str]]:
    """Files and blocks of commands in the order of the page: (`name`, text) or (empty, block)."""
    pattern = r"(?:^`([\w./]+)`\n\n)?^```(\w+)\n(.*?)^```"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert all(name or language == "console" for name, language, _ in found)
    return [(name, text) for name, _, text in found]


def calls(block: str) -> list[tuple[str, str]]:
    """Each command of a block, and what it prints."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


def expected(printed: str, folder: Path) -> re.Pattern[str]:
    """What is printed as a pattern: a line of three dots stands for any number of lines, blanks for blanks."""
    shown = plain(printed.replace("/home/you/mesh", str(folder)))
    return re.compile(re.escape(shown).replace(re.escape("..."), ".*"))


def plain(printed: str) -> str:
    """Without what varies, in one line: how long lines are depends on the length of paths."""
    for pattern, name in VARYING:
        printed = re.sub(pattern, name, printed)
    return " ".join(printed.split())


@pytest.mark.slow
def test_the_tutorial_is_what_happens(
    tmp_path: Path, extensions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of the page succeeds and prints what stands there."""
    folder, tools = tmp_path / "mesh", tmp_path / "bin"
    for place in (folder, tools):
        place.mkdir()
    # No link: what is beside the executable as it is called says which packages there are.
    tools.joinpath("python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    tools.joinpath("python").chmod(0o755)
    for name, code in COMMANDS.items():
        shim = tools / name
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        shim.chmod(0o755)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MESHGATE_LOCAL_", "COV_"))},
        "PATH": f"{tools}:{os.environ['PATH']}", "COLUMNS": "160", "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true",
        "MESHGATE_LOCAL_LINGER_S": "15",
    }  # fmt: skip
    begun = time.monotonic()
    skipped, count = [], 0
    for name, text in pieces():
        if name:
            (folder / name).write_text(text)
            continue
        for command, printed in calls(text):
            if command.startswith("pip "):
                skipped.append(command)
                continue
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert expected(printed, folder).fullmatch(plain(done.stdout)), (command, done.stdout)
            count += 1
    assert tuple(skipped) == NOT_RUN
    with capsys.disabled():
        print(f"\nthe tutorial: {count} commands in {time.monotonic() - begun:.0f} s")
