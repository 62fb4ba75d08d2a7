"""`meshgate init`: a first `meshgate.yaml`, from what the projects' own configurations say."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from command_line import Answer, answer_of
from meshgate.config import load

if TYPE_CHECKING:
    from collections.abc import Callable

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
MODEL = "MODEL (name {name}, kind FULL, cron '{cron}');\nSELECT 1 AS id{source}\n"


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls it in this test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *folders: answer_of(capsys, None, "init", *folders)


def project(folder: Path, key: str | None, models: dict[str, tuple[str, str]], **more: Any) -> None:
    """A SQLMesh project whose models have a cron and read something."""
    (folder / "models").mkdir(parents=True)
    config = {
        "gateways": {"local": {"connection": {"type": "duckdb"}, **more}},
        "model_defaults": {"dialect": "duckdb"},
    }
    (folder / "config.yaml").write_text(json.dumps({**({"project": key} if key else {}), **config}))
    for name, (cron, source) in models.items():
        text = MODEL.format(name=name, cron=cron, source=f" FROM {source}" if source else "")
        (folder / "models" / f"{name}.sql").write_text(text)


def test_projects_are_found_and_put_in_order(init: Callable[..., Answer], tmp_path: Path) -> None:
    """Whoever is read comes first; the schedule is that of the most frequent model; the file is one that meshgate reads."""
    project(tmp_path / "a_reader", "reader", {"gold.a": ("@hourly", "silver.a"), "gold.b": ("@daily", "")})
    project(tmp_path / "deep" / "er" / "source", "source", {"silver.a": ("*/5 * * * *", "raw.a")})
    answer = init()
    assert answer.code == 0, answer
    found = load(tmp_path / "meshgate.yaml")
    assert [(p.name, p.path, p.schedule) for p in found.projects] == [
        ("source", tmp_path / "deep" / "er" / "source", "*/5 * * * *"),
        ("reader", tmp_path / "a_reader", "0 * * * *"),
    ]
    assert "`meshgate deploy source`\n  → `meshgate deploy reader`" in answer.out


def test_a_single_project_is_no_list(init: Callable[..., Answer], tmp_path: Path) -> None:
    """As in a repository of its own. What it lacks is named."""
    project(tmp_path, None, {"gold.a": ("@weekly", "")})
    answer = init()
    text = (tmp_path / "meshgate.yaml").read_text()
    assert "\nproject:\n" in text
    name = load(tmp_path / "meshgate.yaml").projects[0].name
    assert name == tmp_path.name
    assert f"write `project: {name}`" in answer.out


def test_a_state_in_postgres_is_where_the_ledger_goes(
    init: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its user and password; that it is away hinders nobody, a project that cannot be loaded has no schedule."""
    state = {
        "type": "postgres", "host": "127.0.0.1", "port": 1, "user": "me", "password": "secret", "database": "meta",
    }  # fmt: skip
    project(tmp_path / "up", "up", {"silver.a": ("@daily", "")}, state_connection=state)
    answer = init()
    text = (tmp_path / "meshgate.yaml").read_text()
    assert "secret" not in text + answer.out + answer.err
    assert "127.0.0.1:1/meta" in text
    assert 'schedule: "0 0 * * *"' in text
    (tmp_path / "meshgate.yaml").unlink()
    (tmp_path / "up" / "models" / "broken.sql").write_text("MODEL (")
    assert init().code == 0
    assert "# schedule:" in (tmp_path / "meshgate.yaml").read_text()
    monkeypatch.setenv("MESHGATE_LEDGER_URL", "postgresql://me:secret@127.0.0.1:1/meta")
    assert load(tmp_path / "meshgate.yaml").ledger.url.endswith("/meta")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda _: None, "there is no SQLMesh project in"),
        (lambda root: (root / "meshgate.yaml").write_text("mine"), "there is a "),
        (
            lambda root: [project(root / name, "same", {}) for name in ("one", "two")],
            "are both called 'same'",
        ),
    ],
    ids=["nothing there", "a file that is there", "one name twice"],
)
def test_what_cannot_be_written_is_said(
    init: Callable[..., Answer], tmp_path: Path, prepare: Callable[[Path], Any], said: str
) -> None:
    """Exit code 2, and no file is touched."""
    prepare(tmp_path)
    answer = init()
    assert (answer.code, said in answer.err) == (2, True), answer
    written = tmp_path / "meshgate.yaml"
    assert not written.exists() or written.read_text() == "mine"


@pytest.mark.parametrize("key", ["1e3", "null", "0x1f", "it's", "a: b", "2026", "bröt", "a\u2028b"])
def test_a_name_that_yaml_would_take_for_something_else(
    init: Callable[..., Answer], tmp_path: Path, key: str
) -> None:
    """It comes back as it was."""
    project(tmp_path / "one", key, {})
    assert init().code == 0
    assert load(tmp_path / "meshgate.yaml").projects[0].name == key


def test_names_and_folders_are_written_as_a_person_would(init: Callable[..., Answer], tmp_path: Path) -> None:
    """A command with a name that has a space can be copied; a folder that is named twice is one; one that is not there is said to be that."""
    project(tmp_path / "my brot", "my bröt", {})
    answer = init("my brot", "./my brot")
    assert "`meshgate deploy 'my bröt'`" in answer.out, answer
    text = (tmp_path / "meshgate.yaml").read_text(encoding="utf-8")
    assert 'name: "my bröt"' in text
    assert "`meshgate run 'my bröt'`" in text
    (tmp_path / "meshgate.yaml").unlink()
    nowhere = init("nowhere")
    assert (nowhere.code, "there is no folder nowhere" in nowhere.err, "`path:`" in nowhere.err) == (
        2,
        True,
        False,
    )


def test_a_project_without_a_connection_is_told_like_any_other(
    init: Callable[..., Answer], tmp_path: Path
) -> None:
    """Its gateway may be named elsewhere; nothing is said of its state."""
    project(tmp_path / "one", "one", {})
    config = {"project": "one", "gateways": {"local": {}}, "model_defaults": {"dialect": "duckdb"}}
    (tmp_path / "one" / "config.yaml").write_text(json.dumps(config))
    answer = init()
    assert (answer.code, "internal error" in answer.err) == (0, False), answer
    assert load(tmp_path / "meshgate.yaml").projects[0].name == "one"


def test_a_folder_that_is_named_must_be_a_project(init: Callable[..., Answer], tmp_path: Path) -> None:
    """Of those that are found, one that cannot be read is passed over, and told."""
    project(tmp_path / "good", "good", {})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("gateways: [")
    assert init(str(tmp_path / "bad")).code == 2
    assert not (tmp_path / "meshgate.yaml").exists()
    answer = init()
    assert answer.code == 0
    assert "passed over" in answer.out


def test_the_portfolios_own_file_says_the_same(
    init: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written for it is what it has: names, folders, schedules."""
    shutil.copytree(
        PORTFOLIO, tmp_path / "portfolio", ignore=shutil.ignore_patterns(".meshgate", ".cache", "__pycache__")
    )
    (tmp_path / "portfolio" / "meshgate.yaml").unlink()
    monkeypatch.setattr(sys, "path", [*sys.path, str(PORTFOLIO)])
    from lakehouse import Lakehouse

    with Lakehouse.start(tmp_path / "lake") as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        assert init().code == 0
        written = load(tmp_path / "meshgate.yaml")
        ours = load(PORTFOLIO / "meshgate.yaml")
        started.destroy()
    assert [(p.name, p.path.name, p.schedule) for p in written.projects] == [
        (p.name, p.path.name, p.schedule) for p in ours.projects
    ]
