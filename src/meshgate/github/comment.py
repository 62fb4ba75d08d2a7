"""One comment on a pull request: made the first time, changed in place from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen

from meshgate.github.api import UnclearError

if TYPE_CHECKING:
    from meshgate.github.api import Api
    from meshgate.github.workflow import PullRequest

LONGEST: Final = 65_536
"""Of a comment. GitHub speaks of characters; counted in bytes of UTF-8 it fits by whatever is meant."""
_TRIES: Final = 4


@frozen
class Posted:
    """A comment as it is now.

    Attributes:
        url: Where people see it.
        how: Whether it is new, changed, or was the same already.
    """

    url: str
    how: Literal["created", "updated", "unchanged"]


def put(api: Api, pull: PullRequest, marker: str, text: str) -> Posted:
    """Let the pull request have this comment, and no older one of ours.

    Ours is what begins with the marker's line and was written by the token's owner: anybody can quote a marker, and a token
    that may write can change other people's comments.

    Args:
        api: GitHub.
        pull: Which pull request.
        marker: The first line, by which it is found again.
        text: The comment, marker included.

    Raises:
        GitHubError: GitHub refuses or fails.
    """
    login = api.login()
    path = f"/repos/{pull.repository}/issues/{pull.number}/comments"
    for attempt in range(1, _TRIES + 1):
        found = [c for c in api.pages(path, doing=f"list the comments of {pull}") if _ours(c, login, marker)]
        if found:
            return _update(api, pull, found, text)
        try:
            # Not simply once more: if it was made and only the answer was lost, there would be two.
            made = api.call("POST", path, {"body": text}, doing=f"comment on {pull}", again=False)
            return Posted(str(made.body["html_url"]), "created")
        except UnclearError:
            if attempt == _TRIES:
                raise
            api.pause(attempt)
    raise AssertionError


def _update(api: Api, pull: PullRequest, found: list[Any], text: str) -> Posted:
    first, *others = sorted(found, key=lambda comment: int(comment["id"]))
    path = f"/repos/{pull.repository}/issues/comments"
    for other in others:  # of two first runs at the same time
        api.call("DELETE", f"{path}/{other['id']}", doing=f"remove a second comment of ours on {pull}")
    if _lines(first["body"]) == _lines(text):
        return Posted(str(first["html_url"]), "unchanged")
    doing = f"change our comment on {pull}"
    changed = api.call("PATCH", f"{path}/{first['id']}", {"body": text}, doing=doing)
    return Posted(str(changed.body["html_url"]), "updated")


def _ours(comment: Any, login: str, marker: str) -> bool:
    # The author of a deleted account is null.
    author = str((comment.get("user") or {}).get("login") or "")
    return author == login and _lines(str(comment.get("body") or ""))[:1] == [marker]


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").rstrip().split("\n")
