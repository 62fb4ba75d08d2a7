"""What GitHub Actions tells a step by its environment, and what a step tells it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from meshgate.config_values import Secret
from meshgate.errors import ConfigError
from meshgate.github.api import Api

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@frozen
class PullRequest:
    """A pull request: `owner/name`, and its number."""

    repository: str
    number: int

    def __str__(self) -> str:
        return f"{self.repository}#{self.number}"


@frozen
class Workflow:
    """A step of a workflow that runs for a pull request.

    Attributes:
        pull: The pull request.
        api: GitHub, with the step's token.
    """

    pull: PullRequest
    api: Api
    _summary: Path | None = None
    _outputs: Path | None = None

    @classmethod
    def of_environment(cls, given: Mapping[str, str] | None = None) -> Workflow:
        """What the environment says.

        Raises:
            ConfigError: It is no workflow, there is no token, or it does not run for a pull request.
        """
        given = os.environ if given is None else given
        if not (token := given.get("GITHUB_TOKEN", "").strip()):
            raise ConfigError(
                "there is no GITHUB_TOKEN to comment with",
                hint="give the step `env: {GITHUB_TOKEN: ${{ github.token }}}`, and the job `permissions: {pull-requests: write}`",
            )
        api = Api(
            given.get("GITHUB_API_URL") or "https://api.github.com",
            Secret(token),
            graphql=given.get("GITHUB_GRAPHQL_URL") or None,
        )
        paths = [
            Path(given[name]) if given.get(name) else None
            for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")
        ]
        return cls(_pull_request(given), api, *paths)

    def summarise(self, text: str) -> None:
        """Add Markdown to the page of the job."""
        if self._summary is not None:
            with self._summary.open("a", encoding="utf-8") as file:
                file.write(text if text.endswith("\n") else f"{text}\n")

    def output(self, name: str, value: str) -> None:
        """Set an output of the step; a value has one line."""
        if self._outputs is not None:
            with self._outputs.open("a", encoding="utf-8") as file:
                file.write(f"{name}={' '.join(value.split())}\n")


def _pull_request(given: Mapping[str, str]) -> PullRequest:
    repository = given.get("GITHUB_REPOSITORY", "")
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            "GITHUB_REPOSITORY does not say which repository this is",
            hint="--comment works in a workflow of GitHub Actions; elsewhere set GITHUB_REPOSITORY and GITHUB_REF as it does",
        )
    event = _event(given.get("GITHUB_EVENT_PATH"))
    issue = event.get("issue") if isinstance(event.get("issue"), dict) else {}
    number = (event.get("pull_request") or {}).get("number")
    if number is None and issue and issue.get("pull_request"):  # a comment on one
        number = issue.get("number")
    if number is None and (ref := re.fullmatch(r"refs/pull/(\d+)/\w+", given.get("GITHUB_REF", ""))):
        number = ref[1]
    if number is None:
        raise ConfigError(
            f"this workflow does not run for a pull request (its event is {given.get('GITHUB_EVENT_NAME') or 'none'})",
            hint="run it `on: pull_request`, or leave --comment out",
        )
    return PullRequest(repository, int(number))


def _event(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"GITHUB_EVENT_PATH ({path}) cannot be read: {error}", hint="it is GitHub's file about the event"
        ) from None
    return found if isinstance(found, dict) else {}
