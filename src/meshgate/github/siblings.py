"""Checkouts of the other repositories of a mesh: `python -m meshgate.github.siblings FOLDER`, for the action.

Reads from the environment, so that nothing that a pull request may choose becomes part of a command:

* `SIBLINGS`: a line for each, `PROJECT=OWNER/REPOSITORY[/FOLDER][@REF]`, REF a branch, tag or commit;
* `SAME_BRANCH`: if `true`, a sibling without REF is taken at the branch that is called like the pull request's, where
  there is one: two changes that belong together are analysed together;
* `GITHUB_HEAD_REF`, `GITHUB_SERVER_URL`: of GitHub Actions; `SIBLINGS_TOKEN`: what may read them.

Prints `PROJECT=PATH` for each on stdout, and what was taken on stderr.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from meshgate.errors import ConfigError, GitHubError, MeshgateError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINE: Final = re.compile(
    r"(?P<project>[\w.-]+)=(?P<repository>[\w.-]+/[\w.-]+?)(?P<folder>(?:/[\w.-]+)*)(?:@(?P<ref>\w[\w./+-]*))?"
)
_TIMEOUT_S: Final = 300
_EXPECTED: Final = "PROJECT=OWNER/REPOSITORY[/FOLDER][@REF], such as downstream=acme/downstream@main"


@frozen
class Sibling:
    """A project in another repository.

    Attributes:
        project: Its `project:` key.
        repository: `owner/name`.
        folder: Where in there the project is; empty: at the top.
        ref: A branch, tag or commit; None: by the pull request's branch, or the default branch.
    """

    project: str
    repository: str
    folder: str
    ref: str | None


def parse(text: str) -> tuple[Sibling, ...]:
    """Siblings, a line for each; empty lines and those that begin with # are left out.

    Raises:
        ConfigError: A line is none, or two are about one project.
    """
    found: dict[str, Sibling] = {}
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        parts = match["folder"].strip("/") if match else ""
        if match is None or ".." in parts.split("/"):
            raise ConfigError(f"{line!r} is no sibling", hint=f"write {_EXPECTED}")
        if match["project"] in found:
            raise ConfigError(f"project {match['project']!r} has two siblings", hint="keep one of the lines")
        found[match["project"]] = Sibling(match["project"], match["repository"], parts, match["ref"])
    return tuple(found.values())


def check_out(sibling: Sibling, to: Path, given: Mapping[str, str]) -> tuple[Path, str]:
    """Fetch a sibling, without its history.

    Args:
        sibling: Which.
        to: Where its repository goes; a folder that is not there yet.
        given: The environment, as this module reads it.

    Returns:
        Where the project is, and what was taken, for people.

    Raises:
        ConfigError: Its folder is not there.
        GitHubError: git cannot get it.
    """
    server = (given.get("GITHUB_SERVER_URL") or "https://github.com").rstrip("/")
    url = f"{server}/{sibling.repository}.git"
    same = given.get("GITHUB_HEAD_REF", "") if given.get("SAME_BRANCH", "").lower() == "true" else ""
    ref, said = sibling.ref, sibling.ref
    if ref is None and same and _git(sibling, given, "ls-remote", "--heads", url, f"refs/heads/{same}"):
        ref, said = f"refs/heads/{same}", f"{same}, as the pull request's branch is called"
    _git(sibling, given, "init", "--quiet", str(to))
    fetch = ("fetch", "--quiet", "--no-tags", "--depth", "1", url, ref or "HEAD")
    _git(sibling, given, "-C", str(to), *fetch)
    _git(sibling, given, "-C", str(to), "checkout", "--quiet", "--detach", "FETCH_HEAD")
    commit = _git(sibling, given, "-C", str(to), "rev-parse", "--short", "HEAD")
    path = to / sibling.folder
    if not path.is_dir():
        raise ConfigError(
            f"{sibling.repository} has no folder {sibling.folder}",
            hint=f"correct the line {sibling.project}=...",
        )
    return path, f"{sibling.repository} at {said or 'its default branch'} ({commit})"


def _git(sibling: Sibling, given: Mapping[str, str], *arguments: str) -> str:
    environment = {**given, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    token = given.get("SIBLINGS_TOKEN", "").strip()
    if token:
        # By the environment: arguments can be seen by other processes, and a file would stay behind.
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        server = (given.get("GITHUB_SERVER_URL") or "https://github.com").rstrip("/")
        environment |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{server}/.extraheader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
        }
    what = f"project {sibling.project!r} cannot be checked out from {sibling.repository}"
    try:
        done = subprocess.run(  # noqa: S603 - arguments, no shell; none can be taken for an option
            ["git", *arguments],  # noqa: S607 - whichever git the runner has
            env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitHubError(f"{what}: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["git says nothing"]
        raise GitHubError(
            f"{what}{f' at {sibling.ref}' if sibling.ref else ''}: {said[-1]}",
            hint="does it exist, and may the token read it? A workflow's own token reads its own repository only: "
            "for a private sibling give `siblings-token` one with `contents: read` there",
        )
    return done.stdout.strip()


def main(arguments: list[str], given: Mapping[str, str]) -> int:
    """Check all siblings out; the exit code."""
    (folder,) = arguments
    try:
        for sibling in parse(given.get("SIBLINGS", "")):
            path, said = check_out(sibling, Path(folder) / sibling.project, given)
            sys.stdout.write(f"{sibling.project}={path}\n")
            sys.stderr.write(f"{sibling.project}: {said}\n")
    except MeshgateError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
