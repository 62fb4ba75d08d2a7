"""The action for pull requests: its steps as they stand in the YAML, real git, real SQLMesh, and a GitHub of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field

from action_runner import Runner, read
from analysis_cases import CUSTOMERS, ORDERS
from diamond_mesh import SCHEDULES, DiamondMesh, edit
from fake_github import BOT, NUMBER, REPOSITORY, TOKEN, FakeGitHub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from action_runner import Done
    from meshgate.local_postgres import LocalPostgres

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "actions" / "analyze"
EXAMPLE = ROOT / "examples" / "workflows" / "pull_request.yml"
MARKER = "<!-- meshgate analyze prod -->"
SIBLING_TOKEN = "ghs_siblings"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("action")]


def git(folder: Path, *arguments: str) -> None:
    """As somebody."""
    who = ("-c", "user.name=ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@define
class Acme:
    """An organisation with a repository for each project; crm's is the one with the pull request.

    Attributes:
        mesh: What is deployed.
        folder: Where repositories and checkouts are.
        github: Its GitHub.
    """

    mesh: DiamondMesh
    folder: Path
    github: FakeGitHub
    environment: dict[str, str] = field(factory=dict)

    @property
    def workspace(self) -> Path:
        """The checkout of the pull request."""
        return self.folder / "workspace"

    def publish(self) -> Acme:
        """Make the repositories."""
        for project in ("crm", "sales"):
            home = self.folder / "home" / project
            shutil.copytree(
                self.mesh.folder / project,
                home,
                ignore=shutil.ignore_patterns(".cache", "logs", "__pycache__"),
            )
            own = {"name": project, "path": ".", "schedule": SCHEDULES[project]}
            (home / "meshgate.yaml").write_text(
                json.dumps({"ledger": {"url": self.mesh.state_url}, "project": own})
            )
            git(home, "init", "--quiet")
            git(home, "add", "-A")
            git(home, "commit", "--quiet", "-m", "As it is deployed")
            git(
                home,
                "clone",
                "--quiet",
                "--bare",
                ".",
                str(self.folder / "server" / "acme" / f"{project}.git"),
            )
        shutil.copytree(self.folder / "home" / "crm", self.workspace)
        event = {"action": "synchronize", "pull_request": {
            "number": NUMBER,
            "_links": {"self": {"href": f"{self.github.url}/repos/{REPOSITORY}/pulls/{NUMBER}"}},
        }}  # fmt: skip
        (self.folder / "event.json").write_text(json.dumps(event))
        bin_ = self.folder / "bin"
        bin_.mkdir()
        (bin_ / "python").symlink_to(sys.executable)
        scripts = Path(sys.executable).parent
        self.environment = {
            "GITHUB_API_URL": self.github.url, "GITHUB_GRAPHQL_URL": f"{self.github.url}/graphql",
            "GITHUB_SERVER_URL": (self.folder / "server").as_uri(), "GITHUB_REPOSITORY": REPOSITORY,
            "GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": str(self.folder / "event.json"),
            "GITHUB_HEAD_REF": "change", "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "PATH": f"{scripts}:{bin_}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH")))),
            "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        return self

    def branch(self, project: str, *changes: tuple[str, tuple[str, str]]) -> None:
        """Push a branch called `change` to the repository of a project."""
        home = self.folder / "home"
        git(home / project, "checkout", "--quiet", "-B", "change", "main")
        for file, change in changes:
            edit(home, file, change)
        git(home / project, "commit", "--quiet", "-am", "A change")
        git(
            home / project,
            "push",
            "--quiet",
            "--force",
            str(self.folder / "server" / "acme" / f"{project}.git"),
            "change",
        )

    def write(self, *changes: tuple[str, str]) -> None:
        """Let the pull request be this change of the customers, and no other."""
        shutil.copy(self.mesh.folder / CUSTOMERS, self.workspace / "models/customers.sql")
        edit(self.workspace, "models/customers.sql", *changes)

    def runner(self) -> Runner:
        """The machine."""
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        secrets = {"MESHGATE_LEDGER_URL": self.mesh.state_url, "SIBLINGS_TOKEN": SIBLING_TOKEN}
        return Runner(self.workspace, scratch, {"token": TOKEN}, self.environment, secrets)

    def use(self, **given: str) -> Done:
        """Run the action; the packages are there already."""
        done = self.runner().action(
            ACTION, {"install": "none", **{k.replace("_", "-"): v for k, v in given.items()}}
        )
        assert TOKEN not in done.said
        return done

    def ours(self) -> list[str]:
        """Our comments."""
        return [body for body in self.github.of(BOT) if body.startswith(MARKER)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None) -> DiamondMesh:
    """Three projects with one state, deployed."""
    return DiamondMesh(tmp_path_factory.mktemp("action") / "mesh", postgres).build()


@pytest.fixture
def acme(built: DiamondMesh, tmp_path: Path) -> Iterator[Acme]:
    """Its repositories, and nothing commented yet."""
    with FakeGitHub() as github:
        yield Acme(built, tmp_path, github).publish()


BREAKING = ("(id % 3)", "(id % 4)")
REGION = ("AS score", "AS score, 7::INT AS region")


def test_the_first_run_comments_the_next_one_changes_it(acme: Acme) -> None:
    """In place, and what somebody else wrote under the same marker stays; outputs and the page of the job say it too."""
    foreign = acme.github.say("mallory", f"{MARKER}\n\n### ✅ All is fine")
    acme.write(BREAKING)
    first = acme.use()
    assert first.code == 0, first.said
    (posted,) = acme.ours()
    assert "This reaches other projects: sales and finance" in posted
    assert first.outputs["flags"] == "breaking cross-project restatement"
    assert first.outputs["refused"] == "false"
    assert first.outputs["comment-url"].startswith(f"https://github.com/{REPOSITORY}/pull/7#issuecomment-")
    document = json.loads(Path(first.outputs["document"]).read_text())
    assert (document["schema"], document["projects"]) == ("meshgate.analysis", ["crm"])
    assert posted in (acme.folder / "summary.md").read_text()
    acme.write(REGION)
    second = acme.use()
    assert second.code == 0, second.said
    assert second.outputs["comment-url"] == first.outputs["comment-url"]
    (changed,) = acme.ours()
    assert "column region is new" in changed
    assert foreign["body"].endswith("All is fine")
    assert acme.github.seen == {TOKEN}


def test_the_exit_code_follows_after_the_comment(acme: Acme) -> None:
    """1 where CI is asked to fail, 2 where the change must not be deployed; people can read why in both cases."""
    acme.write(BREAKING)
    done = acme.use(fail_on="collision, breaking\ncross-project")
    assert done.code == 1
    assert "failed on: breaking, cross-project" in done.said
    assert len(acme.ours()) == 1
    acme.write((" (id % 3)::INT AS country_id,", ""))
    done = acme.use()
    assert (done.code, done.outputs["refused"]) == (2, "true")
    assert "This must not be merged as it is" in acme.ours()[0]


def test_what_cannot_be_analysed_leaves_no_old_comment(acme: Acme) -> None:
    """A pull request that cannot be loaded says so where the analysis of an earlier push stood."""
    acme.write(BREAKING)
    acme.use()
    acme.write(("SELECT", "SELEKT oops ("))
    done = acme.use()
    assert done.code == 2
    (posted,) = acme.ours()
    assert "This could not be analysed" in posted
    assert "cannot be loaded" in posted


def test_two_workflows_keep_a_comment_each(acme: Acme) -> None:
    """By their names; a failed analysis replaces its own one only, and a name that would end the marker is refused."""
    acme.write(BREAKING)
    assert acme.use().code == 0
    assert acme.use(comment_name="sales nightly").code == 0
    plain, named = sorted(acme.github.of(BOT), key=len)
    assert plain.startswith(f"{MARKER}\n")
    assert named.startswith("<!-- meshgate analyze prod: sales nightly -->\n")
    assert "### ⚠️ This reaches other projects: sales and finance (sales nightly)" in named
    acme.write(("SELECT", "SELEKT oops ("))
    assert acme.use(comment_name="sales nightly").code == 2
    first, second = acme.github.of(BOT)
    assert first == plain
    assert "This could not be analysed (sales nightly)" in second
    done = acme.use(comment_name="x --> y")
    assert (done.code, "is no name for a comment" in done.said) == (2, True)


def test_siblings_are_taken_at_the_branch_of_the_same_name(acme: Acme) -> None:
    """Two changes that belong together are one analysis with an order; without the branch it is the sibling as it is."""
    acme.write(REGION)
    acme.branch("sales", (ORDERS, ("AS amount", "AS amount, region::INT AS region")))
    done = acme.use(siblings="# readers\nsales=acme/sales\n", siblings_token=SIBLING_TOKEN)
    assert done.code == 0, done.said
    assert "sales: acme/sales at change, as the pull request's branch is called" in done.said
    assert SIBLING_TOKEN not in done.said
    document = json.loads(Path(done.outputs["document"]).read_text())
    assert document["projects"] == ["crm", "sales"]
    assert document["order"]["state"] == "required"
    assert "1. **crm**<br>2. **sales**" in acme.ours()[0]
    for given in ({"same_branch": "false"}, {}):
        line = "sales=acme/sales" if given else "sales=acme/sales@main"
        done = acme.use(siblings=line, **given)
        assert done.code == 0, done.said
        assert json.loads(Path(done.outputs["document"]).read_text())["order"]["state"] == "any"
    assert not list(acme.folder.rglob("*extraheader*"))


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("sales=acme/returns", 1, "project 'sales' cannot be checked out from acme/returns"),
        ("sales=acme/sales@nowhere", 1, "cannot be checked out from acme/sales at nowhere"),
        ("sales=acme/sales/dbt", 2, "acme/sales has no folder dbt"),
        ("sales", 2, "'sales' is no sibling"),
        ("sales=acme/sales/../other", 2, "is no sibling"),
        ("sales=acme/sales@--upload-pack=x", 2, "is no sibling"),
        ("sales=acme/sales\nsales=acme/sales@main", 2, "has two siblings"),
        ("crm=acme/crm@nowhere", 1, "cannot be checked out"),
    ],
)
def test_wrong_siblings_are_named(acme: Acme, line: str, code: int, says: str) -> None:
    """Before anything is analysed."""
    done = acme.use(siblings=line)
    assert done.code == code
    assert says in done.said
    assert acme.github.calls == []


def test_a_missing_right_is_named(acme: Acme) -> None:
    """The analysis is made and printed, and the job fails with what to write into the workflow."""
    acme.github.readers.add(TOKEN)
    acme.write(REGION)
    done = acme.use()
    assert done.code == 2
    assert "the token has no right to comment on acme/shop#7" in done.said
    assert "pull-requests: write" in done.said
    assert "column region is new" in (acme.folder / "summary.md").read_text()


def test_a_role_that_only_reads_is_enough(acme: Acme) -> None:
    """With the rights that the reference gives to readers of the ledger, and those to read SQLMesh's state."""
    url, outside = acme.mesh.state_url, acme.mesh.postgres.url("postgres")
    acme.mesh.sql_outside(
        outside, "DROP ROLE IF EXISTS ci_reader; CREATE ROLE ci_reader LOGIN PASSWORD 'just-reads'"
    )
    for schema in ("meshgate", "sqlmesh"):
        acme.mesh.sql(url, f"GRANT USAGE ON SCHEMA {schema} TO ci_reader")
        acme.mesh.sql(url, f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO ci_reader")
    try:
        config = json.loads((acme.workspace / "config.yaml").read_text())
        config["gateways"]["local"]["state_connection"] |= {"user": "ci_reader", "password": "just-reads"}
        (acme.workspace / "config.yaml").write_text(json.dumps(config))
        server = acme.mesh.postgres
        name = url.rpartition("/")[2].partition("?")[0]
        reader = f"host={server.host} port={server.port} user=ci_reader password=just-reads dbname={name}"
        mesh = json.loads((acme.workspace / "meshgate.yaml").read_text()) | {"ledger": {"url": reader}}
        (acme.workspace / "meshgate.yaml").write_text(json.dumps(mesh))
        acme.write(REGION)
        done = acme.use()
    finally:
        acme.mesh.sql(url, "DROP OWNED BY ci_reader")
        acme.mesh.sql_outside(outside, "DROP ROLE ci_reader")
    assert done.code == 0, done.said
    assert "just-reads" not in done.said
    assert "column region is new" in acme.ours()[0]


def test_meshgate_is_installed_from_the_actions_own_version(acme: Acme, tmp_path: Path) -> None:
    """By the action's own step; into a folder of its own here, and without what is there already."""
    acme.environment |= {
        "PIP_TARGET": str(tmp_path / "installed"), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0",  # pip's own way of saying yes
    }  # fmt: skip
    acme.write(REGION)
    done = acme.use(install="this")
    assert done.code == 0, done.said
    assert (tmp_path / "installed" / "meshgate" / "github" / "siblings.py").is_file()


def steps_of_the_example() -> Any:
    return read(EXAMPLE)["jobs"]["plan"]


@pytest.mark.analysis
def test_beside_the_real_bot_of_sqlmesh(acme: Acme) -> None:
    """The example's own steps, twice: each keeps to its own comment; the bot makes its environment and its check runs."""
    pytest.importorskip("github", reason="needs sqlmesh[github]")
    config = json.loads((acme.workspace / "config.yaml").read_text())
    config["cicd_bot"] = {
        "type": "github",
        "auto_categorize_changes": {"sql": "full"},
        "default_pr_preview_start": "2026-01-05",  # the mesh lives in the past, and its yesterday is not ours
    }
    (acme.workspace / "config.yaml").write_text(json.dumps(config))
    actions = {"OWNER/meshgate/actions/analyze": ACTION}
    for change in (REGION, ("AS score", "AS score, 8::INT AS region")):
        acme.write(change)
        job = steps_of_the_example()
        next(s for s in job["steps"] if s.get("id") == "analysis")["with"]["install"] = "none"
        ran = acme.runner().job(job, actions, {"Install SQLMesh"})
        assert [name for name, _ in ran] == ["What this change does to the mesh", "SQLMesh's bot"]
        for name, done in ran:
            assert done.code == 0, f"{name}: {done.said}"
    (ours,) = acme.ours()
    (bots,) = [body for body in acme.github.of(BOT) if body not in ours]
    assert "SQLMesh Bot Info" in bots
    assert "shop_7" in bots
    assert {name: check["conclusion"] for name, check in acme.github.checks.items()} == {
        "SQLMesh - Run Unit Tests": "success",
        "SQLMesh - PR Environment Synced": "success",
        "SQLMesh - Prod Plan Preview": "success",
    }


def test_the_action_and_the_example_agree() -> None:
    """Inputs that are there, rights that suffice, and no event that would run a stranger's code with secrets."""
    workflow, action = read(EXAMPLE), read(ACTION / "action.yml")
    (used,) = [s for s in steps_of_the_example()["steps"] if "actions/analyze" in s.get("uses", "")]
    assert set(used["with"]) <= set(action["inputs"])
    assert steps_of_the_example()["permissions"]["pull-requests"] == "write"
    assert set(workflow[True] if True in workflow else workflow["on"]) == {"pull_request"}
    assert all(one.get("description") for one in (*action["inputs"].values(), *action["outputs"].values()))
