"""Deploys that follow an analysis: in its order, if the world is as it was, and from where they were killed; and what it leaves.

That every table is a recomputation's afterwards is shown for each change in `test_analysis_deployed`.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from analysis_cases import CASES, NOW, ORDERS
from diamond_mesh import DiamondMesh, edit, named, write
from meshgate.analysis import parse
from meshgate.errors import ConfigError, OutdatedError, ProjectError
from meshgate.report import data
from meshgate.report.deploys import leftovers
from meshgate.report.text import console
from tiny_mesh import at

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.coordinator.leftovers import Leftovers
    from meshgate.coordinator.progress import Progress
    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-followed")]

GOES = "three projects: a column goes, and nobody reads it any more"
ORDER = ("sales", "finance", "crm")
EXTRA = "MODEL (name finance.extra, kind FULL, cron '@hourly');\nSELECT 1::INT AS one\n"
INSTANT = f"{at(NOW):%Y-%m-%dT%H:%M}"
DIES = """
import os, signal
from meshgate.bridge.scheduler import AskingState
from meshgate.coordinator.journal import RunJournal
from meshgate.ledger import Ledger

def dying(owner, method, *, after, project=None):
    plain = getattr(owner, method)
    def call(*args, **kwargs):
        if project not in (None, *args):
            return plain(*args, **kwargs)
        answer = plain(*args, **kwargs) if after else None
        os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(owner, method, call)

"""
POINTS = (
    "dying(RunJournal, 'commit', after=True)",  # the ledger has a first interval, and SQLMesh not
    "dying(AskingState, 'promote', after=True)",  # SQLMesh's environment is half changed
    # One project is done; of the second, SQLMesh is through, and the ledger does not know all of it.
    "dying(Ledger, 'save_manifest', after=False, project='finance')",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None) -> DiamondMesh:
    """One state for all; everything is evaluated up to minute 125."""
    return DiamondMesh(tmp_path_factory.mktemp("followed") / "mesh", postgres).build()


def changed(whole: DiamondMesh, case: str, folder: Path) -> tuple[DiamondMesh, dict[str, Path | None]]:
    """A mesh of its own whose files have changed, and the checkouts that the change is about."""
    files = whole.copy(folder / "files")
    (found,) = (c for c in CASES if c.name == case)
    found.change(files)
    twin = whole.clone(folder / "twin", files)
    return twin, named(twin.folder, found.projects)


def written(found: Analysis) -> Analysis:
    """The analysis as it comes back from its file."""
    return parse(json.loads(data.dumped(data.analyze(found))), "FILE")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is wrapped."""
    monkeypatch.setenv("COLUMNS", "200")


def shown(found: Leftovers) -> list[str]:
    """What a person reads."""
    out = io.StringIO()
    leftovers(console(out), found)
    return out.getvalue().splitlines()


def test_the_order_is_followed_and_told_and_a_second_call_finds_it_done(
    whole: DiamondMesh, tmp_path: Path
) -> None:
    """Each project once, before and after each a line; what was analysed and read back is the same."""
    twin, checkouts = changed(whole, GOES, tmp_path)
    told: list[Progress] = []
    with twin.mesh() as mesh:
        found = mesh.analyze(checkouts, now=at(NOW))
        assert written(found) == found
        mesh._bench = mesh._bench.__class__(
            mesh.config, mesh.ledger, mesh._open_project, mesh.stop, told.append
        )
        done = mesh.deploy_analysed(written(found), now=at(NOW))
        assert [(one.project, one.what) for one in done.projects] == [(name, "deployed") for name in ORDER]
        again = mesh.deploy_analysed(written(found), now=at(NOW))
        assert [(one.project, one.what) for one in again.projects] == [(name, "there") for name in ORDER]
    said = [(p.project, p.place, p.what) for p in told if type(p).__name__ == "Deploying"]
    each = [(name, place, what) for place, name in enumerate(ORDER, 1) for what in ("begun", "deployed")]
    assert said == [*each, *((name, 0, "there") for name in ORDER)]


@pytest.mark.analysis
def test_killed_anywhere_the_same_call_goes_on(whole: DiamondMesh, tmp_path: Path) -> None:
    """Killed after a commit, between SQLMesh's two steps of a promotion, and before the ledger's last; and then all is there."""
    twin, checkouts = changed(whole, GOES, tmp_path)
    named_as = [f"{name}={path}" for name, path in checkouts.items()]
    file = tmp_path / "analysis.json"
    file.write_text(twin.cli("analyze", *named_as, "--now", INSTANT, "--json").stdout)
    follow = ("deploy", "--from-analysis", str(file), "--now", INSTANT)
    for point in POINTS:
        assert twin.cli(*follow, python=DIES + point, check=False).returncode == -9
    done = twin.cli(*follow)
    assert "sales: deployed before, as analysed" in done.stderr
    assert "crm (2 of 2): deploying\n" in done.stderr
    assert done.stdout.splitlines()[-1] == "  crm: deployed"
    found = json.loads(twin.cli(*follow, "--json").stdout)
    assert (found["schema"], found["done"]) == ("meshgate.deploys", True)
    assert [(one["project"], one["what"]) for one in found["projects"]] == [(name, "there") for name in ORDER]
    with twin.mesh() as mesh:
        assert mesh.analyze(checkouts, now=at(NOW)).changes == ()
        assert not mesh.verify().differences


def test_a_world_that_has_moved_is_refused_by_name(whole: DiamondMesh, tmp_path: Path) -> None:
    """Before the first deploy and between two; other files too. Nothing more is deployed, and what was stays."""
    twin, checkouts = changed(whole, GOES, tmp_path)
    with twin.mesh() as mesh:
        found = mesh.analyze(checkouts, now=at(NOW))
        text = (twin.folder / ORDERS).read_text()
        edit(twin.folder, ORDERS, ("owner bert", "owner dora"))
        with pytest.raises(
            OutdatedError, match=r"files in .*sales are not those that were analysed: lake.sales.orders"
        ):
            mesh.deploy_analysed(found, now=at(NOW))
        (twin.folder / ORDERS).write_text(text)
        # What was analysed of sales alone; of another project something comes in between.
        done = mesh.deploy_analysed(found, {"sales": None}, now=at(NOW))
        assert [one.what for one in done.projects] == ["deployed", "waiting", "waiting"]
        with pytest.raises(ConfigError, match="finance has to be deployed before crm"):
            mesh.deploy_analysed(found, {"crm": None}, now=at(NOW))
        write(twin.folder, "finance/models/extra.sql", EXTRA)
        with pytest.raises(
            OutdatedError, match=r"files in .*finance are not .*: lake.finance.extra of finance is new"
        ):
            mesh.deploy_analysed(found, now=at(NOW))
        mesh.deploy("finance", now=at(NOW))
        with pytest.raises(
            OutdatedError, match=r"moved since the analysis: lake.finance.extra of finance is new"
        ):
            mesh.deploy_analysed(found, now=at(NOW))
        changes = mesh.analyze(checkouts, now=at(NOW)).changes
        assert [c.model for c in changes if c.how == "direct"] == ['"lake"."crm"."customers"']


def test_a_project_with_a_state_of_its_own_counts_by_its_versions(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Nobody looked at its state; the ledger tells that it promotes something else by now. Its seed's readers are asked for."""
    twin = DiamondMesh(tmp_path / "mesh", postgres, separate=True).build()
    edit(twin.folder, "crm/seeds/countries.csv", ("DE,19", "DE,16"))
    rates = '"lake"."finance"."rates"'
    with twin.mesh() as mesh:
        found = written(mesh.analyze({"crm": None}, now=at(NOW)))
        text = (twin.folder / "finance/models/rates.sql").read_text()
        edit(twin.folder, "finance/models/rates.sql", ("vat::INT AS", "(vat + 0)::INT AS"))
        mesh.deploy("finance", now=at(NOW))
        moved = r"since the analysis: lake.finance.rates of finance is another one"
        with pytest.raises(OutdatedError, match=moved):
            mesh.deploy_analysed(found, now=at(NOW))
        with pytest.raises(OutdatedError, match=moved):
            mesh.leftovers(found)
        (twin.folder / "finance/models/rates.sql").write_text(text)
        mesh.deploy("finance", now=at(NOW))
        assert mesh.deploy_analysed(found, now=at(NOW)).left == 1
        asked = mesh.leftovers(found, apply=True)
        assert [(r.model, r.request_id) for r in mesh.requests()] == [(rates, *asked.made)]
        mesh.run("finance", now=at(NOW))
        assert dict(twin.table("finance.rates")) == {"AT": 20, "DE": 16}


def test_what_is_left_is_asked_for_once_and_after_the_deploys(whole: DiamondMesh, tmp_path: Path) -> None:
    """Shown at once; asked for when it is deployed; a second time the request is named that is there."""
    twin, checkouts = changed(whole, "forward-only", tmp_path)
    history = '"lake"."sales"."history"'
    with twin.mesh() as mesh:
        found = written(mesh.analyze(checkouts, now=at(NOW)))
        before = mesh.leftovers(found)
        assert ([one.left.model for one in before.models], before.waiting) == ([history], ("sales",))
        assert (
            shown(before)[0]
            == "restate what the change leaves as it was made: preview, nothing is asked for yet"
        )
        assert shown(before)[-1] == "→ sales must be deployed first: `meshgate deploy --from-analysis FILE`"
        with pytest.raises(ConfigError, match="sales must be deployed first"):
            mesh.leftovers(found, apply=True)
        # The hour that is computed between the analysis and the deploy is computed by the old query.
        for project in ("crm", "sales"):
            mesh.run(project, now=at(190))
        mesh.deploy_analysed(found, now=at(190))
        asked = mesh.leftovers(found, "sales.history", apply=True, by="test", reason="why")
        (request,) = mesh.requests()
        assert (asked.made, request.made_by, request.reason) == ((request.request_id,), "test", "why")
        assert (request.model, request.interval.start, request.interval.end) == (history, at(0), at(180))
        assert shown(asked)[-1].startswith("→ the next `meshgate run sales`, `meshgate run finance` does it")
        assert data.leftovers(asked)["made"] == [request.request_id]
        again = mesh.leftovers(found, apply=True, by="somebody else")
        assert f"      asked for already: request {request.request_id}" in shown(again)
        assert shown(again)[-1] == "→ there is nothing more to ask for"
        assert (again.made, again.models[0].request) == ((), request.request_id)
        assert len(mesh.requests()) == 1
        edit(twin.folder, ORDERS, ("owner bert", "owner dora"))
        mesh.deploy("sales", now=at(190))
        with pytest.raises(OutdatedError, match="project sales was deployed with other files"):
            mesh.leftovers(found)


def test_the_commands(whole: DiamondMesh, tmp_path: Path) -> None:
    """What is no analysis, another version, another environment, and what must not be deployed: exit code 2, and what to do."""
    twin, checkouts = changed(whole, "a removed column that another project reads", tmp_path)
    refused = twin.cli("analyze", f"crm={checkouts['crm']}", "--now", INSTANT, "--json", check=False)
    good = json.loads(refused.stdout)
    files = {
        "no JSON": ("{", "it is no JSON"),
        "other": (json.dumps({"schema": "meshgate.status", "version": 1}), "it says that it is a meshgate.status"),
        "newer": (json.dumps({**good, "version": 2}), "of version 2, and this meshgate knows version 1"),
        "half": (json.dumps({**good, "base": {}}), "it has no base.plans"),
        "good": (json.dumps(good), "must not be deployed: column country_id of crm.customers is removed"),
    }  # fmt: skip
    for name, (text, said) in files.items():
        (tmp_path / name).write_text(text)
        done = twin.cli("deploy", "--from-analysis", str(tmp_path / name), check=False)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    for name in ("no JSON", "newer"):
        assert twin.cli("restate", "--from-analysis", str(tmp_path / name), check=False).returncode == 2


def test_a_deploy_refuses_what_its_analysis_refuses(whole: DiamondMesh, tmp_path: Path) -> None:
    """A model, statements and a requirement of a project whose files are not there; in the same words, until it is told to."""
    twin = whole.clone(tmp_path / "twin", whole.copy(tmp_path / "files"))
    write(twin.folder, "finance/models/extra.sql", EXTRA)
    config = json.loads((twin.folder / "finance/config.yaml").read_text())
    (twin.folder / "finance/config.yaml").write_text(json.dumps({**config, "before_all": ["SELECT 1"]}))
    write(twin.folder, "finance/sqlmesh-requirements.lock", "pandas==2.2.2\n")
    with twin.mesh() as mesh:
        mesh.deploy("finance", environment="dev", now=at(NOW))
        edit(twin.folder, ORDERS, ("score::BIGINT AS amount", "(score + 1)::BIGINT AS amount"))
        found = mesh.analyze({"sales": None}, environment="dev", now=at(NOW))
        assert {r.what for r in found.refusals} == {
            "foreign_model",
            "foreign_statements",
            "foreign_requirement",
        }
        with pytest.raises(ProjectError) as refused:
            mesh.deploy("sales", environment="dev", now=at(NOW))
        assert refused.value.message == "; ".join(r.message for r in found.refusals)
        assert "--allow-dropping" in str(refused.value)
        both = mesh.analyze({"sales": None, "finance": None}, environment="dev", now=at(NOW))
        assert not both.refusals
        with pytest.raises(ConfigError, match="a deploy of sales takes back what was analysed of finance"):
            mesh.deploy_analysed(both, now=at(NOW))
        before: Any = mesh.ledger.manifest("dev").graph.nodes
        assert '"lake"."finance"."extra"' in before
        mesh.deploy("sales", environment="dev", now=at(NOW), dropping=True)
        assert '"lake"."finance"."extra"' not in mesh.ledger.manifest("dev").graph.nodes
