"""`meshgate doctor`: every check is made whatever fails before it, and each says what to do."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of, configure
from ledger_story import PROJECTS, Story
from meshgate.bridge.contract import installed_versions
from meshgate.coordinator.doctor import _half_changed
from meshgate.ledger import Ledger
from transaction_pooler import TransactionPooler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The poisoned mesh of `ledger_story`."""
    found = Story(database_url, tmp_path)
    found.poisoned()
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line is wrapped, and what the command line does to structlog is undone."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MESHGATE_DEBUG", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls the command line on the configuration in this test's folder."""

    def run(*arguments: str, config: Path | None = tmp_path) -> Answer:
        return answer_of(capsys, config, *arguments)

    return run


@pytest.fixture
def projects(story: Story, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of both SQLMesh projects, right."""
    monkeypatch.setenv("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")
    # As if nothing had been deployed: what SQLMesh's state says is looked at by the end-to-end tests.
    story.database.execute("UPDATE meshgate.project SET deployed_at = NULL")
    for name in PROJECTS:
        write_project(story.folder / name, name)
    return story.folder


def write_project(folder: Path, key: str | None) -> None:
    folder.mkdir(exist_ok=True)
    config = {
        "gateways": {"local": {"connection": {"type": "duckdb"}}},
        "model_defaults": {"dialect": "duckdb"},
    }
    (folder / "config.yaml").write_text(json.dumps({**({"project": key} if key else {}), **config}))


def checks(answer: Answer, outcome: str) -> list[tuple[str, str]]:
    return [(c["name"], c["subject"]) for c in answer.document["checks"] if c["outcome"] == outcome]


def test_doctor_finds_nothing_wrong_where_nothing_is(projects: Path, call: Any) -> None:
    """Warnings only: neither project was deployed, has models, or keeps its state where several processes reach it."""
    answer = call("doctor", "--json")
    assert (answer.code, answer.document["outcome"]) == (0, "warn")
    assert checks(answer, "fail") == []
    kinds = [kind for kind, _ in checks(answer, "warn")]
    assert kinds == ["state", "models", "state", "models", "manifest", "manifest"]
    text = call("doctor").out.splitlines()
    assert text[-1] == "it works, but see the warnings"
    assert f"ok    project upstream: {projects}/upstream has `project: upstream`" in text


def test_doctor_goes_on_after_a_failure_and_reports_all(projects: Path, call: Any) -> None:
    """A wrong key, a gateway that does not exist, in two projects at once: exit code 2."""
    write_project(projects / "upstream", None)
    config = json.loads((projects / "meshgate.yaml").read_text())
    config["projects"][1]["gateway"] = "databricks"
    (projects / "meshgate.yaml").write_text(json.dumps(config))
    answer = call("doctor", "--json")
    assert answer.code == 2
    assert checks(answer, "fail") == [("project", "upstream"), ("project", "downstream")]
    text = call("doctor").out
    assert "has no `project:` key" in text
    assert "→ write `project: upstream` into its config.yaml, or change the name in meshgate.yaml" in text
    assert "gateway 'databricks' is not configured" in text
    assert "→ it has: local" in text


def test_doctor_names_projects_of_other_versions_and_manifests_that_differ(
    story: Story, projects: Path, call: Any
) -> None:
    """Another minor of SQLMesh in the mesh fails; a meshgate.yaml that was changed since its deploy warns."""
    sqlmesh, sqlglot = installed_versions()
    story.ledger.save_manifest(
        "upstream", {"overlap": "fail", "edges": []}, sqlmesh="0.200.1", sqlglot=sqlglot
    )
    answer = call("doctor", "--json")
    assert answer.code == 2
    assert ("versions", "upstream") in checks(answer, "fail")
    told = {(c["name"], c["subject"]): c for c in answer.document["checks"]}
    assert f"was deployed with SQLMesh 0.200.1, here is {sqlmesh}" in told["versions", "upstream"]["message"]
    assert "overlap is skip, was fail" in told["manifest", "upstream"]["message"]
    assert told["manifest", "upstream"]["outcome"] == "warn"


def test_doctor_tells_of_runs_that_were_lost_and_of_suspect_time(
    story: Story, projects: Path, call: Any
) -> None:
    """A lease that expired without an end, then what it had begun."""
    story.begin(story.acquire("upstream"), "bronze.transactions", "2026-01-05T04:00/2026-01-05T04:05")
    story.time("2026-01-05 04:10")
    answer = call("doctor")
    assert (
        "run 6 of 'upstream' (pid 4711 on worker-1) lost its lease at 2026-01-05 04:03:00Z, and nobody took over yet"
        in answer.out
    )
    with story.run("downstream"):
        pass
    assert (
        "bronze.transactions of project 'upstream' has suspect time: its lease expired" in call("doctor").out
    )


def test_doctor_works_without_a_configuration_and_without_a_ledger(tmp_path: Path, call: Any) -> None:
    """What can still be looked at is."""
    answer = call("doctor", "--json")
    assert (answer.code, checks(answer, "fail"), checks(answer, "ok")) == (
        2,
        [("config", "")],
        [("sqlmesh", "")],
    )
    configure(tmp_path, "postgresql://ann:s3cret@127.0.0.1:1/ledger")
    write_project(tmp_path, "upstream")
    answer = call("doctor", "--json")
    assert (answer.code, checks(answer, "fail")) == (2, [("ledger", "")])
    assert ("project", "upstream") in checks(answer, "ok")
    assert "s3cret" not in answer.out


def test_doctor_measures_the_clock_of_the_ledger(
    story: Story, projects: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference of minutes is a warning: the ledger's clock decides, so nothing goes wrong."""
    monkeypatch.setattr(Ledger, "server", lambda _: (160004, datetime.now(UTC) - timedelta(minutes=3)))
    answer = call("doctor")
    assert "warn  clock: this machine's clock and the ledger's differ by 180 s or more" in answer.out
    monkeypatch.setattr(Ledger, "server", lambda _: (130001, datetime.now(UTC)))
    answer = call("doctor")
    assert answer.code == 2
    assert "FAIL  ledger: the ledger's Postgres is 13.1" in answer.out


def found(answer: Answer, name: str, subject: str = "") -> list[dict[str, Any]]:
    return [c for c in answer.document["checks"] if (c["name"], c["subject"]) == (name, subject)]


def configure_ledger(folder: Path, url: str) -> None:
    config = json.loads((folder / "meshgate.yaml").read_text())
    config["ledger"]["url"] = url
    (folder / "meshgate.yaml").write_text(json.dumps(config))


def configure_upstream(folder: Path, **more: Any) -> None:
    config = json.loads((folder / "meshgate.yaml").read_text())
    config["projects"][0] |= more
    (folder / "meshgate.yaml").write_text(json.dumps(config))


def test_doctor_names_every_key_that_the_last_deploy_does_not_know(
    story: Story, projects: Path, call: Any
) -> None:
    """Policy, limits, warehouse, patience: what runs decide from is the copy, until a deploy."""
    sqlmesh, sqlglot = installed_versions()
    copy = {"overlap": "skip", "schedule": None, "model_limits": {"gold.fact_sales": 2}, "patience_s": 600.0}
    story.ledger.save_manifest("upstream", copy, sqlmesh=sqlmesh, sqlglot=sqlglot)
    configure_upstream(
        projects, overlap="share", warehouse="lake", limits={"warehouse": 4, "models": {"silver.orders": 1}},
        exclusive=["silver.orders"],
    )  # fmt: skip
    (check,) = found(call("doctor", "--json"), "manifest", "upstream")
    assert check["outcome"] == "warn"
    assert check["message"].split(": ", 1)[1].split("; ") == [
        "overlap is share, was skip",
        "patience is not given, was 600s",
        "warehouse is lake, was default",
        "limits.warehouse is 4, was not given",
        "limits.models is silver.orders: 1, was gold.fact_sales: 2",
        "exclusive is silver.orders, was not given",
    ]
    assert check["hint"].startswith("run `meshgate deploy upstream`: until then")


def test_doctor_is_content_with_a_copy_that_says_what_the_file_says(
    story: Story, projects: Path, call: Any
) -> None:
    """Also with one that was made before there were limits."""
    sqlmesh, sqlglot = installed_versions()
    story.ledger.save_manifest(
        "upstream", {"overlap": "skip", "schedule": None}, sqlmesh=sqlmesh, sqlglot=sqlglot
    )
    (check,) = found(call("doctor", "--json"), "manifest", "upstream")
    assert check["outcome"] == "ok"


def test_doctor_names_limits_on_models_that_are_not_there_or_not_ours(projects: Path, call: Any) -> None:
    """A deploy would refuse them; each is told, with the nearest name."""
    configure_upstream(projects, limits={"models": {"silver.order": 1}}, exclusive=["gold.fact_sales"])
    first, second = found(call("doctor", "--json"), "names", "upstream")
    assert (first["outcome"], second["outcome"]) == ("warn", "warn")
    assert "limits.models of project 'upstream' names a model that does not exist" in first["message"]
    assert "silver.orders" in first["hint"]
    assert "exclusive of project 'upstream' names gold.fact_sales, a model of project" in second["message"]
    configure_upstream(projects, limits={"models": {"orders": 1}}, exclusive=[])
    assert [c["outcome"] for c in found(call("doctor", "--json"), "names", "upstream")] == ["ok"]


def test_doctor_tells_whether_notifications_get_through(story: Story, projects: Path, call: Any) -> None:
    """Directly they do; where nothing is heard that is a warning, with what it costs."""
    (check,) = found(call("doctor", "--json"), "notifications")
    assert check["outcome"] == "ok"
    with closing(TransactionPooler(story.url)) as pooler:
        configure_ledger(projects, pooler.url)
        (check,) = found(call("doctor", "--json"), "notifications")
    assert check["outcome"] == "warn"
    assert "asks the ledger every 5 s instead" in check["message"]


def test_doctor_names_a_deploy_that_died_while_it_replaced_models(story: Story) -> None:
    """The newest that died since the last one that was done; one that is live is at it; without any it was plain SQLMesh."""

    def told() -> str:
        with story.mesh() as mesh:
            project = mesh.config.projects[0]
            check = _half_changed(mesh._bench, project, "environment 'prod'", "deploy it")
            return f"{check.outcome}: {check.message} → {check.hint}"

    def deploy(project: str, state: str | None) -> None:
        lease = story.ledger.acquire(
            project, "prod", "deploy", {"host": "h", "pid": 1}, ttl=timedelta(minutes=1), grace=timedelta(0)
        )
        if state:
            story.ledger.finish(getattr(lease, "run_id", 0), state, {})

    assert told() == (
        "warn: environment 'prod' is in the middle of a plan that did not end → wait for the plan that works on it, "
        "or deploy it"
    )
    deploy("upstream", "done")
    assert "a plan that did not end" in told()
    deploy("downstream", None)
    assert told().startswith(
        "ok: environment 'prod' is being changed by deploy 7 of 'downstream', which is live"
    )
    story.time("2026-01-05 04:10")
    assert told() == (
        "warn: environment 'prod' is half changed: deploy 7 of 'downstream' died while it replaced models → run "
        "`meshgate deploy downstream --environment prod`: it goes on where that one ended"
    )
    deploy("upstream", "failed")
    assert "deploy 7 of 'downstream' died while it replaced models" in told()
    deploy("upstream", "done")
    deploy("upstream", "failed")
    assert "deploy 10 of 'upstream' failed while it replaced models" in told()
