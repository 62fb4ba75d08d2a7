"""A GitHub of a test's own: a real HTTP server on this machine, with pull requests, comments, check runs and faults.

It answers what meshgate and SQLMesh's CI bot ask for: lists in pages, tokens that are somebody's and may do some things, a limit
on the length of a comment. Faults are put into a queue, and happen once each.
"""

from __future__ import annotations

import email.utils
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen

if TYPE_CHECKING:
    from types import TracebackType

LONGEST = 65_536
NOW = datetime(2026, 1, 5, 4, 0, tzinfo=UTC)
REPOSITORY, NUMBER = "acme/shop", 7
BOT = "github-actions[bot]"
TOKEN = "ghs_workflowtoken"


@frozen
class Fault:
    """One call that goes wrong.

    Attributes:
        status: What is answered; 0: the connection is cut.
        method: Of which call.
        path: Of which, a regular expression.
        message: GitHub's reason.
        headers: Sent with it.
        done: Whether what was asked is done all the same, and only the answer is lost.
    """

    status: int
    method: str = ""
    path: str = ""
    message: str = "it is broken"
    headers: dict[str, str] = field(factory=dict)
    done: bool = False


@define
class FakeGitHub:
    """The server, and what it knows.

    Attributes:
        page: How many items a page has at most, whatever is asked for.
        tokens: Whose they are.
        rights: What a token may not do: `write` is missing where it is in here.
        comments: In order, as GitHub gives them.
        checks: Check runs by name, as they are now.
        faults: What goes wrong next.
        calls: Method and path of each call.
        seen: Every token that was sent.
    """

    page: int = 3
    tokens: dict[str, str] = field(factory=lambda: {TOKEN: BOT})
    readers: set[str] = field(factory=set)
    comments: list[dict[str, Any]] = field(factory=list)
    checks: dict[str, dict[str, Any]] = field(factory=dict)
    faults: list[Fault] = field(factory=list)
    calls: list[tuple[str, str]] = field(factory=list)
    seen: set[str] = field(factory=set)
    lock: threading.Lock = field(factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None
    _next: int = 1

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def date_time_string(self, _: float | None = None) -> str:
                return email.utils.format_datetime(NOW, usegmt=True)

            def _any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                with fake.lock:
                    status, answer, headers = fake.answer(
                        self.command, self.path, body, self.headers.get("Authorization", "")
                    )
                if not status:
                    self.close_connection = True
                    return
                text = b"" if status == 204 else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - http.server's names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Of its REST API."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def say(self, login: str | None, body: str) -> dict[str, Any]:
        """Somebody comments; None: an account that is gone."""
        made = {
            "id": 100 + self._next,
            "url": f"{self.url}/repos/{REPOSITORY}/issues/comments/{100 + self._next}",
            "html_url": f"https://github.com/{REPOSITORY}/pull/{NUMBER}#issuecomment-{100 + self._next}",
            "user": None if login is None else {"login": login, "type": "Bot" if "[" in login else "User"},
            "body": body,
        }
        self._next += 1
        self.comments.append(made)
        return made

    def of(self, login: str) -> list[str]:
        """What somebody's comments say."""
        return [c["body"] for c in self.comments if c["user"] and c["user"]["login"] == login]

    # One call

    def answer(
        self, method: str, target: str, body: Any, authorization: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers."""
        parts = urlsplit(target)
        path, asked = parts.path, parse_qs(parts.query)
        self.calls.append((method, path))
        token = authorization.rpartition(" ")[2]
        self.seen.add(token)
        fault = next((f for f in self.faults if f.method in ("", method) and re.search(f.path, path)), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault.done:
                self._do(method, path, asked, body, self.tokens.get(token, ""))
            return fault.status, {"message": fault.message}, fault.headers
        if token not in self.tokens:
            return 401, {"message": "Bad credentials"}, {}
        if method != "GET" and token in self.readers and path != "/graphql":
            accepted = {"X-Accepted-GitHub-Permissions": "issues=write; pull_requests=write"}
            return 403, {"message": "Resource not accessible by integration"}, accepted
        return self._do(method, path, asked, body, self.tokens[token])

    def _do(  # noqa: PLR0911 - one answer for each address
        self, method: str, path: str, asked: dict[str, list[str]], body: Any, login: str
    ) -> tuple[int, Any, dict[str, str]]:
        root = f"/repos/{REPOSITORY}"
        if path == "/graphql":
            return 200, self._graphql(str(body["query"]), login), {}
        if path == f"{root}/issues/{NUMBER}/comments":
            return self._comment(method, asked, body, login)
        if one := re.fullmatch(rf"{root}/issues/comments/(\d+)", path):
            return self._change(method, int(one[1]), body)
        if path.startswith(f"{root}/check-runs"):
            return self._check(method, path, body)
        if method == "GET" and path == f"{root}/pulls/{NUMBER}":
            return 200, self._pull(), {}
        if method == "GET" and path == f"{root}/issues/{NUMBER}":
            return (
                200,
                {"number": NUMBER, "url": f"{self.url}{path}", "comments_url": f"{self.url}{path}/comments"},
                {},
            )
        if method == "GET" and path == f"{root}/pulls/{NUMBER}/reviews":
            return 200, [], {}
        return 404, {"message": "Not Found"}, {}

    @staticmethod
    def _graphql(query: str, login: str) -> dict[str, Any]:
        if "viewer" in query:
            return {"data": {"viewer": {"login": login}}}
        return {
            "data": {
                "repository": {"pullRequest": {"title": "", "state": "OPEN", "mergeStateStatus": "CLEAN"}}
            }
        }

    def _pull(self) -> dict[str, Any]:
        url = f"{self.url}/repos/{REPOSITORY}/pulls/{NUMBER}"
        return {
            "number": NUMBER, "url": url, "merged": False, "state": "open",
            "issue_url": f"{self.url}/repos/{REPOSITORY}/issues/{NUMBER}",
            "head": {"ref": "change", "sha": "a" * 40}, "base": {"ref": "main", "sha": "b" * 40},
        }  # fmt: skip

    def _comment(
        self, method: str, asked: dict[str, list[str]], body: Any, login: str
    ) -> tuple[int, Any, dict[str, str]]:
        if method == "POST":
            if refusal := self._too_long(body["body"]):
                return refusal
            return 201, self.say(login, body["body"]), {}
        size = min(self.page, int(asked.get("per_page", ["30"])[0]))
        page = int(asked.get("page", ["1"])[0])
        shown = self.comments[(page - 1) * size : page * size]
        links = {}
        if page * size < len(self.comments):
            address = f"{self.url}/repos/{REPOSITORY}/issues/{NUMBER}/comments?page={page + 1}"
            links["Link"] = f'<{address}>; rel="next"'
        return 200, shown, links

    def _change(self, method: str, number: int, body: Any) -> tuple[int, Any, dict[str, str]]:
        found = next((c for c in self.comments if c["id"] == number), None)
        if found is None:
            return 404, {"message": "Not Found"}, {}
        if method == "DELETE":
            self.comments.remove(found)
            return 204, None, {}
        if method == "PATCH":
            if refusal := self._too_long(body["body"]):
                return refusal
            found["body"] = body["body"]
        return 200, found, {}

    @staticmethod
    def _too_long(text: str) -> tuple[int, Any, dict[str, str]] | None:
        if len(text) <= LONGEST:
            return None
        error = {"resource": "IssueComment", "message": f"body is too long (maximum is {LONGEST} characters)"}
        return 422, {"message": "Validation Failed", "errors": [error]}, {}

    def _check(self, method: str, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        if method == "POST":
            number, self._next = 900 + self._next, self._next + 1
            url = f"{self.url}/repos/{REPOSITORY}/check-runs/{number}"
            self.checks[body["name"]] = {"id": number, "url": url, **body}
            return 201, self.checks[body["name"]], {}
        number = int(path.rpartition("/")[2])
        found = next(c for c in self.checks.values() if c["id"] == number)
        found.update(body)
        return 200, found, {}


def later(delta: timedelta) -> str:
    """An instant of the server's clock, as its limits tell it."""
    return str(int((NOW + delta).timestamp()))
