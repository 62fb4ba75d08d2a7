"""What can be taken away of the comment on a pull request, and the test that must then fail."""

from __future__ import annotations

from mutation import python

C = "test_github_comment.py::test_"
R = "test_rendered_comment.py::test_"

OF_COMMENTS = (
    python(
        "comment: whose it is",
        f"{C}other_peoples_comments_are_left_alone",
        "github/comment.py",
        ("return author == login and ", "return "),
    ),
    python(
        "comment: the marker stands first",
        f"{C}other_peoples_comments_are_left_alone",
        "github/comment.py",
        ("[:1] == [marker]", ".count(marker) == 1"),
    ),
    python(
        "comment: every page is looked at",
        f"{C}it_is_found_on_whichever_page[7]",
        "github/api.py",
        ("for page in range(1, _PAGES + 1):", "for page in range(1, 2):"),
    ),
    python(
        "comment: one that may be there is looked for",
        f"{C}what_github_fails_at_is_tried_again_and_never_doubled[done-500-POST]",
        "github/comment.py",
        (", again=False)", ")"),
    ),
    python(
        "comment: one of two goes",
        f"{C}of_two_first_comments_one_is_left",
        "github/comment.py",
        ("for other in others:", "for other in ():"),
    ),
    python(
        "comment: no redirection is followed",
        f"{C}other_refusals_are_named",
        "github/api.py",
        ("build_opener(_NoRedirect).open", "build_opener().open"),
    ),
    python(
        "comment: limits are waited for",
        f"{C}limits_are_waited_for_as_long_as_they_say",
        "github/api.py",
        ("                    self._sleep(pause)\n", ""),
    ),
    python(
        "comment: nobody waits an hour",
        f"{C}a_limit_that_lasts_is_named",
        "github/api.py",
        ("if waited > self._patience:", "if False:"),
    ),
    python(
        "comment: as long as GitHub takes",
        f"{R}it_is_never_too_long",
        "report/markdown.py",
        ("    if longest is None or _size(text) <= longest:\n", "    if True:\n"),
    ),
    python(
        "comment: characters have bytes",
        f"{R}it_is_never_too_long",
        "report/markdown.py",
        ("return len(text.encode())", "return len(text)"),
    ),
    python(
        "comment: text is no markup",
        f"{R}text_is_shown_as_it_is",
        "report/markdown.py",
        ('_calm(_SPECIAL.sub(r"\\\\\\1", p))', "_calm(p)"),
    ),
    python(
        "comment: hosts are not told",
        f"{R}what_is_wrong_elsewhere_is_not_told_to_the_public",
        "report/pull_request.py",
        ('if error.exit_code == 2 else ["See the log of the job."]', ""),
    ),
)
