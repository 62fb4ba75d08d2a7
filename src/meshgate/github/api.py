"""GitHub's API, as far as a comment needs it: bounded retries, and errors that say which right is missing."""

from __future__ import annotations

import email.utils
import json
import time
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from attrs import frozen

from meshgate.errors import ConfigError, GitHubError, GitHubRightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meshgate.config_values import Secret

_TIMEOUT_S: Final = 30.0
_PAUSES_S: Final = (1.0, 3.0, 9.0)
_PATIENCE: Final = timedelta(minutes=3)
_LOCAL: Final = ("127.0.0.1", "::1", "localhost")
_PAGE: Final = 100
_PAGES: Final = 1000
_LONGEST_MESSAGE: Final = 300


class UnclearError(GitHubError):
    """GitHub failed, or did not answer: nobody knows whether it did what was asked."""


@frozen
class Answer:
    """What GitHub answered: the parsed body, and the headers in lower case."""

    body: Any
    headers: Mapping[str, str]


class _NoRedirect(HTTPRedirectHandler):
    # Python would send the token along, to whatever host it is led to.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Api:
    """One GitHub, for one token.

    Args:
        url: Of its REST API, such as `https://api.github.com`.
        token: Never shown, and never sent anywhere else.
        graphql: Of its GraphQL API; by default where GitHub has it beside the other one.
        sleep: Waits so many seconds.
        patience: How long one call waits at most for a limit to pass.

    Raises:
        ConfigError: The token would travel in clear.
    """

    def __init__(
        self,
        url: str,
        token: Secret,
        *,
        graphql: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        patience: timedelta = _PATIENCE,
    ) -> None:
        self._url = url.rstrip("/")
        self._graphql = graphql or self._url.removesuffix("/v3") + "/graphql"
        for one in (self._url, self._graphql):
            parts = urlsplit(one)
            if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
                raise ConfigError(
                    f"{one} is no https address, and a token is not sent in clear",
                    hint="correct GITHUB_API_URL and GITHUB_GRAPHQL_URL",
                )
        self._token = token
        self._sleep = sleep
        self._patience = patience.total_seconds()
        self._open = build_opener(_NoRedirect).open

    def login(self) -> str:
        """Whose token it is; of an app's, its name with `[bot]`.

        Asked by GraphQL, as REST refuses to tell the token of a workflow.

        Raises:
            GitHubError: GitHub does not say.
        """
        doing = "ask whose token this is"
        found = self.call("POST", self._graphql, {"query": "query { viewer { login } }"}, doing=doing).body
        try:
            return str(found["data"]["viewer"]["login"])
        except (KeyError, TypeError):
            raise GitHubError(f"GitHub would not {doing.replace('ask', 'say', 1)}: {_said(found)}") from None

    def pages(self, path: str, *, doing: str) -> Iterator[Any]:
        """All items of a list, page by page.

        Raises:
            GitHubError: GitHub refuses or fails.
        """
        for page in range(1, _PAGES + 1):
            answer = self.call("GET", f"{path}?per_page={_PAGE}&page={page}", doing=doing)
            yield from answer.body
            # The address of the next page is not followed: the token goes to this host and no other.
            if 'rel="next"' not in answer.headers.get("link", ""):
                return

    def pause(self, attempt: int) -> None:
        """Wait after the first, second, ... failure of something that is made once more from its beginning."""
        self._sleep(_PAUSES_S[min(attempt, len(_PAUSES_S)) - 1])

    def call(self, method: str, path: str, body: Any = None, *, doing: str, again: bool = True) -> Answer:
        """Make one call, and wait where GitHub asks for it.

        Args:
            method: Of HTTP.
            path: Beginning with a slash, or GraphQL's whole address.
            body: Sent as JSON.
            doing: What it is for, after "cannot": for errors.
            again: Whether a call that failed on GitHub's side may be made once more; if not, `UnclearError`.

        Raises:
            GitHubRightsError: The token is wrong, or lacks a permission; or what is asked about is not there.
            UnclearError: GitHub fails or does not answer.
            GitHubError: It refuses, or its limit passes too late.
        """
        waited, pauses = 0.0, iter(_PAUSES_S)
        while True:
            try:
                return self._once(method, path, body)
            except HTTPError as error:
                with error:
                    headers = {k.lower(): v for k, v in error.headers.items()}
                    said = _said(_parsed(error.read()))
                if error.code >= 500:
                    problem: GitHubError = UnclearError(
                        f"GitHub cannot {doing}: {error.code}: {said}",
                        hint="see https://www.githubstatus.com, and run the job again", status=error.code,
                    )  # fmt: skip
                elif (pause := _limit(error.code, headers, said)) is not None:
                    waited += pause
                    if waited > self._patience:
                        raise _limited(doing, pause, said) from None
                    self._sleep(pause)
                    continue
                else:
                    raise _refused(doing, error.code, headers, said) from None
            except (URLError, HTTPException, OSError) as error:
                reason = getattr(error, "reason", None) or error
                problem = UnclearError(
                    f"GitHub cannot be reached to {doing}: {reason}",
                    hint=f"is {urlsplit(self._url).netloc} reachable from here?",
                )
            pause_s = next(pauses, None)
            if pause_s is None or not again:
                raise problem from None
            self._sleep(pause_s)

    def _once(self, method: str, path: str, body: Any) -> Answer:
        request = Request(  # noqa: S310 - the scheme was looked at when this was made
            path if path == self._graphql else self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token.reveal()}",
                "Content-Type": "application/json",
                "User-Agent": "meshgate",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        with self._open(request, timeout=_TIMEOUT_S) as response:
            return Answer(_parsed(response.read()), {k.lower(): v for k, v in response.headers.items()})


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _said(body: Any) -> str:
    """What GitHub gives as its reason, in one line."""
    if not isinstance(body, dict):
        return "it says nothing that could be read"
    errors = body.get("errors") or ()
    parts = [str(body.get("message") or "")]
    parts += [str(e.get("message") or e.get("code") or "") if isinstance(e, dict) else str(e) for e in errors]
    said = "; ".join(" ".join(part.split()) for part in parts if part)
    return said[:_LONGEST_MESSAGE] or "it gives no reason"


def _limit(status: int, headers: Mapping[str, str], said: str) -> float | None:
    """How many seconds to wait, if it is a limit that refuses; by GitHub's own clock."""
    if status not in (403, 429):
        return None
    if (after := headers.get("retry-after", "")).isdigit():
        return max(1.0, float(after))
    if headers.get("x-ratelimit-remaining") == "0" and headers.get("x-ratelimit-reset", "").isdigit():
        try:
            there = email.utils.parsedate_to_datetime(headers.get("date", ""))
        except ValueError:
            there = datetime.now(UTC)
        return max(1.0, float(headers["x-ratelimit-reset"]) - there.timestamp() + 1)
    return 60.0 if status == 429 or "rate limit" in said.lower() else None


def _limited(doing: str, pause: float, said: str) -> GitHubError:
    return GitHubError(
        f"GitHub will not {doing} for another {pause:.0f} s: {said}",
        hint="its rate limit is used up: run the job again later, or give it a token of its own",
        retry_after_s=pause,
    )


def _refused(doing: str, status: int, headers: Mapping[str, str], said: str) -> GitHubError:
    facts: dict[str, Any] = {"status": status}
    if status == 401:
        return GitHubRightsError(
            f"GitHub does not know the token: {said}", hint="is GITHUB_TOKEN set, and still valid?", **facts
        )
    if status == 403:
        asked = headers.get("x-accepted-github-permissions", "")
        needs = f" (GitHub accepts: {asked})" if asked else ""
        hint = (
            "give the job `permissions: {contents: read, pull-requests: write}`, or the token that right"
            f"{needs}; a pull request from a fork gets a token that only reads"
        )
        return GitHubRightsError(
            f"the token has no right to {doing}: {said}", hint=hint, accepted=asked, **facts
        )
    if status == 404:
        hint = "is the address right, and may the token see the repository? A private one is not there for who may not see it"
        return GitHubRightsError(f"GitHub has nothing there to {doing}: {said}", hint=hint, **facts)
    if 300 <= status < 400:
        where = urlsplit(headers.get("location", "")).netloc
        return GitHubError(
            f"GitHub leads elsewhere ({where}) to {doing}, and the token is not sent there",
            hint="was the repository renamed? Run the job again from its new name", **facts,
        )  # fmt: skip
    return GitHubError(f"GitHub refuses to {doing}: {status}: {said}", **facts)
