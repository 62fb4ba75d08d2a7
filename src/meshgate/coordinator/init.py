"""A first `meshgate.yaml`, from what the SQLMesh projects' own configurations say."""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen

from meshgate.config import FILE_NAME
from meshgate.due import cron_next
from meshgate.errors import ConfigError, MeshgateError, ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from meshgate.bridge.settings import StatePlace
    from meshgate.bridge.survey import ProjectModels

_CONFIGS = ("config.yaml", "config.yml", "config.py")
_LOCAL = "MESHGATE_LOCAL_"
_DEEP = 3
"""Folders below the first one that are looked into."""


@frozen
class FoundProject:
    """A SQLMesh project that goes into the file.

    Attributes:
        name: Its `project:` key, or its folder's name where it has none.
        path: Its folder.
        named: Whether it has that key.
        schedule: The most frequent cron of its models; None where they cannot be loaded.
        state: Where its SQLMesh state is.
        models: Its models; None where they cannot be loaded.
    """

    name: str
    path: Path
    named: bool
    schedule: str | None
    state: StatePlace | None
    models: ProjectModels | None = None


@frozen
class Beginning:
    """A first configuration.

    Attributes:
        path: The file.
        text: What is in it.
        projects: Whose, those first that others read, as far as that is known.
        ledger: The URL that `MESHGATE_LEDGER_URL` is best set to, without user and password; None: the file names `local`.
        passed_over: Folders that look like SQLMesh projects and cannot be read, and why.
    """

    path: Path
    text: str
    projects: tuple[FoundProject, ...]
    ledger: str | None
    passed_over: tuple[tuple[Path, str], ...] = ()


def begin(folders: Sequence[Path], into: Path) -> Beginning:
    """Write `meshgate.yaml` for SQLMesh projects.

    Args:
        folders: Of the projects; none: all that are found in `into` and below it.
        into: The folder of the file.

    Raises:
        ConfigError: There is such a file already, two projects have one name, or there is no project.
        ProjectError: A folder that was named is no SQLMesh project.
    """
    path = into / FILE_NAME
    if path.exists():
        raise ConfigError(f"there is a {path} already", hint="change that, or move it away first")
    passed_over: list[tuple[Path, str]] = []
    projects: list[FoundProject] = []
    for folder in folders:
        if not folder.is_dir():
            raise ProjectError(f"there is no folder {folder}", hint="name those of SQLMesh projects")
    candidates = list({folder.resolve(): folder for folder in folders or _search(into, _DEEP)}.values())
    with _private_server(candidates, into) as private:
        for folder in candidates:
            try:
                projects.append(_look(folder))
            except MeshgateError as error:
                if folders:
                    raise
                passed_over.append((folder, error.message))
    if not projects:
        why = "".join(f"; {message}" for _, message in passed_over)
        raise ConfigError(
            f"there is no SQLMesh project in {into} or in the folders below it{why}",
            hint="name their folders: `meshgate init PATH...`",
        )
    projects = _parents_first(projects)
    seen: dict[str, Path] = {}
    for project in projects:
        if project.name in seen:
            raise ConfigError(
                f"{seen[project.name]} and {project.path} are both called {project.name!r}",
                hint="give each a `project:` key of its own in its config.yaml",
            )
        seen[project.name] = project.path
    places = [p.state for p in projects if p.state and p.state.engine == "postgres" and not private]
    ledger = f"postgresql://{places[0].database}" if places else None
    text = _text(projects, into, places[0] if places else None)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return Beginning(path, text, tuple(projects), ledger, tuple(passed_over))


@contextmanager
def _private_server(folders: Sequence[Path], into: Path) -> Iterator[bool]:
    """The server that `ledger: {url: local}` will have, where configurations read its variables and nobody has set them."""
    read = any(_LOCAL in text for folder in folders for text in _configurations(folder))
    if not read or f"{_LOCAL}PORT" in os.environ:
        yield False
        return
    from meshgate.local_postgres import LocalPostgres

    with LocalPostgres.start(into / ".meshgate") as server:
        server.ensure_database("meshgate")
        os.environ.update(server.environment())
        yield True


def _parents_first(projects: Sequence[FoundProject]) -> list[FoundProject]:
    """In the order given where nothing is known, or where projects read each other."""
    left, found = list(projects), []
    while left:
        wanted = [set(p.models.reads if p.models else ()) for p in left]
        free = (
            n for n, reads in enumerate(wanted)
            if not any(reads & o.models.names for m, o in enumerate(left) if m != n and o.models)
        )  # fmt: skip
        found.append(left.pop(next(free, 0)))
    return found


def _search(folder: Path, deep: int) -> Iterator[Path]:
    if _is_project(folder):
        yield folder
        return
    if deep:
        for below in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            if not below.name.startswith((".", "_")) and not (below / "pyvenv.cfg").exists():
                yield from _search(below, deep - 1)


def _is_project(folder: Path) -> bool:
    texts = _configurations(folder)
    if not texts:
        return False
    return (folder / "models").is_dir() or any(
        "model_defaults" in text or "gateways" in text for text in texts
    )


def _configurations(folder: Path) -> list[str]:
    files = (folder / name for name in _CONFIGS)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]


def _look(folder: Path) -> FoundProject:
    from meshgate.bridge.settings import read_settings
    from meshgate.bridge.survey import survey_models

    settings = read_settings(folder)
    models: ProjectModels | None = None
    with suppress(MeshgateError):  # whatever its files or its packages lack: `meshgate doctor` says what
        models = survey_models(folder)
    then = datetime(2026, 1, 5, 0, 0, 1, tzinfo=UTC)
    scheduled = models.scheduled if models else ()
    soonest = min(scheduled, key=lambda node: cron_next(node.cron, node.cron_tz, then), default=None)
    schedule = soonest.cron if soonest else None
    return FoundProject(
        settings.key or folder.resolve().name, folder, bool(settings.key), _ALIASES.get(schedule or "", schedule),
        settings.state, models,
    )  # fmt: skip


_ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip


def _text(projects: Sequence[FoundProject], into: Path, place: StatePlace | None) -> str:
    several = len(projects) > 1
    lines = [
        "# Written by `meshgate init`: look it through, then `meshgate migrate` and `meshgate doctor`.",
        "# All keys are in docs/reference/configuration.md.",
        "",
        "ledger:",
    ]
    if place is None:
        lines += [
            "  # A private Postgres in .meshgate/ beside this file, to try things out. In production, where runs are on several",
            "  # machines or any of them may go away: postgresql://user:password@host/database",
            "  url: local",
        ]
    else:
        lines += [
            f"  # SQLMesh's state is in {place.database}: the ledger is best kept in the same database, where it has the schema",
            f"  # `meshgate` for itself. MESHGATE_LEDGER_URL: postgresql://user:password@{place.database}",
            "  url: \"{{ env_var('MESHGATE_LEDGER_URL') }}\"",
        ]
    lines += ["", "projects:" if several else "project:"]
    for project in projects:
        first, rest = ("  - ", "    ") if several else ("  ", "  ")
        key = (
            "its `project:` key"
            if project.named
            else "its folder's name: give its config.yaml the same `project:` key"
        )
        lines.append(f"{first}name: {_quoted(project.name)}  # {key}")
        lines.append(f"{rest}path: {_quoted(os.path.relpath(project.path, into))}")
        if project.schedule is None:
            lines.append(
                f'{rest}# schedule: "*/5 * * * *"  # when its orchestrator runs `meshgate run {_argument(project.name)}`'
            )
        else:
            lines.append(
                f"{rest}# When its orchestrator runs `meshgate run {_argument(project.name)}`: the most frequent cron of its models."
            )
            lines.append(f'{rest}schedule: "{project.schedule}"')
    lines += [
        "",
        "# A model is taken to read its parents over its own interval. Where a query reads more, as for a rolling week, or a parent",
        "# as it is now, the project that reads says so; `meshgate doctor` names the queries that need it:",
        "#   edges:",
        "#     - {reader: gold.weekly_sales, parent: silver.orders, window: {from: -6d}}",
        "#     - {reader: gold.sales, parent: silver.rates, window: latest}",
    ]
    return "\n".join(lines) + "\n"


def _argument(text: str) -> str:
    """As a shell's word, for a comment: on one line, whatever is in it."""
    return shlex.quote(text if text.isprintable() else json.dumps(text))


def _quoted(text: str) -> str:
    """As YAML, whatever is in it: what may not be a plain word is a JSON string, which is YAML too."""
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
