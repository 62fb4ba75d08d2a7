"""One comment on a pull request, against a GitHub of the test's own: made, changed, found, refused, tried again."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import answer_of
from fake_github import BOT, NUMBER, REPOSITORY, TOKEN, FakeGitHub, Fault, later
from meshgate.config_values import Secret
from meshgate.errors import ConfigError, GitHubError, GitHubRightsError
from meshgate.github import Api, PullRequest, Workflow, put
from meshgate.github.api import UnclearError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKER = "<!-- meshgate analyze prod -->"
PULL = PullRequest(REPOSITORY, NUMBER)
COMMENTS = f"/repos/{REPOSITORY}/issues/{NUMBER}/comments"


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGitHub]:
    """With a proxy for everything else, which nobody may use here."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FakeGitHub() as fake:
        yield fake


def text(body: str) -> str:
    return f"{MARKER}\n\n{body}\n"


def api(github: FakeGitHub, token: str = TOKEN, slept: list[float] | None = None) -> Api:
    """One that does not really sleep."""
    return Api(github.url, Secret(token), sleep=(slept if slept is not None else []).append)


def test_the_first_makes_it_the_next_change_it(github: FakeGitHub) -> None:
    """One comment whatever happens; what says the same is not written."""
    first = put(api(github), PULL, MARKER, text("one"))
    second = put(api(github), PULL, MARKER, text("two"))
    third = put(api(github), PULL, MARKER, text("two").replace("\n", "\r\n"))
    assert [first.how, second.how, third.how] == ["created", "updated", "unchanged"]
    assert first.url == second.url == third.url
    assert github.of(BOT) == [text("two")]
    assert [m for m, _ in github.calls].count("PATCH") == 1


def test_other_peoples_comments_are_left_alone(github: FakeGitHub) -> None:
    """Who quotes or copies the marker, whose account is gone, and the SQLMesh bot under the same name."""
    others = [
        github.say("mallory", text("mine")),
        github.say(None, text("nobody's")),
        github.say(BOT, ":robot: **SQLMesh Bot Info** :robot:\n" + MARKER),
        github.say(BOT, text("another environment").replace("prod", "dev")),
    ]
    before = [dict(c) for c in others]
    put(api(github), PULL, MARKER, text("ours"))
    put(api(github), PULL, MARKER, text("ours again"))
    assert others == before
    assert [c["body"] for c in github.comments] == [*(c["body"] for c in before), text("ours again")]


@pytest.mark.parametrize("place", [0, 2, 3, 7])
def test_it_is_found_on_whichever_page(github: FakeGitHub, place: int) -> None:
    """Pages have three comments here; an address that a page leads to is not followed, as the token would go there."""
    for number in range(8):
        github.say("ann", f"comment {number}")
    github.comments.insert(place, github.say(BOT, text("old")))
    github.comments.pop()
    assert put(api(github), PULL, MARKER, text("new")).how == "updated"
    assert github.of(BOT) == [text("new")]


def test_of_two_first_comments_one_is_left(github: FakeGitHub) -> None:
    """Two runs may both have found none: the older one stays."""
    older = github.say(BOT, text("one"))
    github.say(BOT, text("two"))
    posted = put(api(github), PULL, MARKER, text("three"))
    assert (posted.url, github.of(BOT)) == (older["html_url"], [text("three")])


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("status", [500, 502, 503, 0])
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_what_github_fails_at_is_tried_again_and_never_doubled(
    github: FakeGitHub, method: str, status: int, done: bool
) -> None:
    """Also where the comment was made and only the answer is lost."""
    if method == "PATCH":
        github.say(BOT, text("old"))
    github.faults = [Fault(status, method, "comments", done=done), Fault(status, method, "comments")]
    slept: list[float] = []
    put(api(github, slept=slept), PULL, MARKER, text("new"))
    assert github.of(BOT) == [text("new")]
    assert slept
    assert sum(slept) < 60


def test_it_gives_up_in_the_end(github: FakeGitHub) -> None:
    """A few tries, then an error that says what could not be done."""
    for method, doing in (("GET", "list the comments"), ("POST", "comment on")):
        github.calls.clear()
        github.faults = [Fault(503, method, "comments", "no server is available")] * 10
        with pytest.raises(
            UnclearError, match=rf"cannot {doing}.* of? ?acme/shop#7|cannot comment on acme/shop#7"
        ) as told:
            put(api(github), PULL, MARKER, text("new"))
        assert "503: no server is available" in str(told.value)
        assert [m for m, path in github.calls if path == COMMENTS].count(method) == 4


def test_limits_are_waited_for_as_long_as_they_say(github: FakeGitHub) -> None:
    """By Retry-After, by the reset of the limit on GitHub's own clock, or a minute; 403 and 429 are both used."""
    reset = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": later(timedelta(seconds=40))}
    github.faults = [
        Fault(429, "GET", headers={"Retry-After": "7"}),
        Fault(403, "GET", headers=reset),
        Fault(403, "POST", COMMENTS, "You have exceeded a secondary rate limit"),
    ]
    slept: list[float] = []
    put(api(github, slept=slept), PULL, MARKER, text("new"))
    assert slept == [7, 41, 60]
    assert github.of(BOT) == [text("new")]


def test_a_limit_that_lasts_is_named(github: FakeGitHub) -> None:
    """Nobody waits an hour for a comment."""
    github.faults = [Fault(403, "GET", COMMENTS, "API rate limit exceeded", {"Retry-After": "3600"})]
    slept: list[float] = []
    with pytest.raises(GitHubError, match="for another 3600 s: API rate limit exceeded") as told:
        put(api(github, slept=slept), PULL, MARKER, text("new"))
    assert (slept, told.value.exit_code) == ([], 1)


def test_a_missing_right_is_named(github: FakeGitHub) -> None:
    """Which permission to give, what GitHub would accept, and that forks never get it."""
    github.tokens["ghs_reader"] = BOT
    github.readers.add("ghs_reader")
    with pytest.raises(GitHubRightsError) as told:
        put(api(github, "ghs_reader"), PULL, MARKER, text("new"))
    error = told.value
    assert error.message == (
        f"the token has no right to comment on {PULL}: Resource not accessible by integration"
    )
    assert "pull-requests: write" in str(error.hint)
    assert "issues=write; pull_requests=write" in str(error.hint)
    assert "fork" in str(error.hint)
    assert error.exit_code == 2


def test_other_refusals_are_named(github: FakeGitHub) -> None:
    """A wrong token, a pull request that is not there, a body that GitHub does not take, a move; none is tried again."""
    with pytest.raises(GitHubRightsError, match="does not know the token: Bad credentials"):
        put(api(github, "ghs_other"), PULL, MARKER, text("new"))
    with pytest.raises(
        GitHubRightsError, match=r"nothing there to list the comments of acme/shop#8: Not Found"
    ):
        put(api(github), PullRequest(REPOSITORY, 8), MARKER, text("new"))
    with pytest.raises(
        GitHubError, match="refuses to comment on acme/shop#7: 422: Validation Failed; body is too long"
    ):
        put(api(github), PULL, MARKER, text("x" * 70_000))
    github.calls.clear()
    elsewhere = {"Location": "https://evil.example/repositories/1/issues/7/comments"}
    github.faults = [Fault(301, "GET", headers=elsewhere), Fault(404, "PATCH")]
    with pytest.raises(GitHubError, match=r"leads elsewhere \(evil.example\)"):
        put(api(github), PULL, MARKER, text("new"))
    assert len(github.calls) == 2
    assert github.of(BOT) == []


@given(secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=40))
@settings(max_examples=20, deadline=None)
def test_no_error_shows_the_token(secret: str) -> None:
    """Neither message, nor hint, nor fields, nor repr."""
    with FakeGitHub() as github:
        mute = Api(github.url, Secret(secret), sleep=lambda _: None)
        with pytest.raises(GitHubError) as told:
            put(mute, PULL, MARKER, text("new"))
        assert github.seen == {secret}
    shown = f"{told.value!r} {told.value} {told.value.fields} {vars(mute)}"
    assert secret not in shown


@pytest.mark.parametrize("url", ["http://api.github.com", "ftp://127.0.0.1", "api.github.com"])
def test_a_token_is_not_sent_in_clear(url: str) -> None:
    """Only to https, or to this machine."""
    with pytest.raises(ConfigError, match="no https address"):
        Api(url, Secret("x"))


# What a workflow says


def given_by(tmp_path: Path, event: object, **more: str) -> dict[str, str]:
    (tmp_path / "event.json").write_text(json.dumps(event))
    return {
        "GITHUB_TOKEN": TOKEN, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_EVENT_NAME": "some_event",
        "GITHUB_EVENT_PATH": str(tmp_path / "event.json"), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event", "more"),
    [
        ({"pull_request": {"number": 7}}, {}),
        ({"issue": {"number": 7, "pull_request": {"url": "..."}}, "comment": {"body": "/deploy"}}, {}),
        ({}, {"GITHUB_REF": "refs/pull/7/merge"}),
    ],
)
def test_the_pull_request_is_found_in_the_event(tmp_path: Path, event: object, more: dict[str, str]) -> None:
    """Of a pull request, of a comment on one, or of the ref alone."""
    assert Workflow.of_environment(given_by(tmp_path, event, **more)).pull == PULL


@pytest.mark.parametrize(
    ("event", "more", "says"),
    [
        ({"pull_request": {"number": 7}}, {"GITHUB_TOKEN": " "}, "there is no GITHUB_TOKEN"),
        ({"pull_request": {"number": 7}}, {"GITHUB_REPOSITORY": ""}, "GITHUB_REPOSITORY does not say"),
        ({"issue": {"number": 7}}, {}, "does not run for a pull request"),
        ({"ref": "refs/heads/main"}, {"GITHUB_REF": "refs/heads/main"}, "its event is some_event"),
        ({}, {"GITHUB_EVENT_PATH": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_is_no_workflow_of_a_pull_request_is_named(
    tmp_path: Path, event: object, more: dict[str, str], says: str
) -> None:
    """Before anything is analysed."""
    with pytest.raises(ConfigError, match=says):
        Workflow.of_environment(given_by(tmp_path, event, **more))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--comment",), "there is no GITHUB_TOKEN to comment with"),
        (("--comment", "--json", "--markdown"), "--json and --markdown are both given"),
        (("--sibling", "sales"), "'sales' is no checkout"),
        (("--sibling", "a=x", "--sibling", "a=y"), "project 'a' is named twice"),
    ],
)
def test_wrong_options_are_named_before_anything_is_opened(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither configuration nor ledger are looked at."""
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    answer = answer_of(capsys, None, "analyze", *arguments)
    assert answer.code == 2
    assert says in answer.err
