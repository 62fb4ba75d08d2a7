"""The comment as GitHub shows it: what it says is what is shown, it is never too long, and it can be looked at."""

from __future__ import annotations

import html as entities
import re
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import rendered_comment
from meshgate.analysis import (
    Analysis,
    Base,
    Beyond,
    Boundary,
    Change,
    Difference,
    Left,
    Order,
    Precedence,
    Reason,
    Refusal,
    Work,
)
from meshgate.errors import ConfigError, LedgerUnreachableError
from meshgate.github import LONGEST
from meshgate.interval import Interval, IntervalSet
from meshgate.report.markdown import code, plain
from meshgate.report.pull_request import markdown, marker, not_analysed

COMMENT = Path(__file__).parent / "analysis_comment.md"
PICTURE = Path(__file__).parents[1] / "docs" / "explanation" / "analysis-comment.png"
NOW = datetime(2026, 1, 5, 4, 0, tzinfo=UTC)
DAY = IntervalSet([Interval(NOW - timedelta(hours=4), NOW)])
GFM = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=30),
    st.text(st.sampled_from("*_`~<>[]()!&#@|\\ab1 ;:/lt-+=\"'"), min_size=1, max_size=12),
    st.sampled_from(
        [
            "*a*",
            "__init__",
            "~~a~~",
            "<b>a</b>",
            "[a](http://b)",
            "&lt;",
            "![a](b)",
            "a | b",
            "@ann #12",
            "<!-- a",
        ]
    ),
)


def shown(markdown_text: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(entities.unescape(re.sub(r"<[^>]*>", "", GFM.render(markdown_text))).split())


@given(WORDS)
@example("@``0")
@example("@`0`0")
@settings(max_examples=300, deadline=None)
def test_text_is_shown_as_it_is(text: str) -> None:
    """Whatever a model, column, owner or message is called: no markup, no HTML, nobody called, no cell ended."""
    expected = " ".join(text.replace("`", "").split())
    if "`" not in text:
        assert shown(f"x {plain(text)} y").replace("\u200b", "") == f"x {expected} y".replace("  ", " ")
    table = f"| a | b |\n|---|---|\n| {plain(text)} | {code(text or 'x')} |\n"
    assert len(re.findall("<td>", GFM.render(table))) == 2
    assert not re.search(r"(?<!\w)@\w|#\d", re.sub(r"`[^`]*`", " ", plain(text)))


def test_backticks_with_nothing_between_begin_no_code() -> None:
    """Two of them would pair with two others further on, and show the escapes between."""
    assert shown(plain("a `` *b* `` c")) == "a *b* c"


def large(models: int, refusals: int = 0, name: str = "schema.a_model_with_a_name") -> Analysis:
    """A change of so many models."""
    names = [f'"lake"."{name}{place}"' for place in range(models)]
    changes = tuple(
        Change(
            one, f"project{place % 7}", f"owner{place}", "direct" if place % 2 else "indirect", "breaking", because=(names[0],),
            differences=(Difference("column_redefined", "amount", "a + 1", "a + 2"), Difference("query")),
            reasons=(Reason(names[0], rows=True),),
        )
        for place, one in enumerate(names)
    )  # fmt: skip
    work = tuple(
        Work(
            one,
            f"project{place % 7}",
            "rebuilt",
            "deploy",
            "project0",
            DAY,
            DAY,
            (),
            NOW,
            NOW,
            timedelta(seconds=1),
        )
        for place, one in enumerate(names)
    )
    left = tuple(Left(one, "project1", "policy", DAY, (names[0],)) for one in names[: models // 3])
    edges = tuple(
        Boundary(names[0], "project0", one, "project1", None, "rebuilt", Reason(names[0], rows=True))
        for one in names
    )
    precedences = tuple(Precedence("project0", "project1", "reads_new_model", names[0], one) for one in names)
    said = tuple(
        Refusal(
            "removed_model", one, "project1", f"{one} is removed, and somebody reads it", "change that first"
        )
        for one in (names * (refusals // max(models, 1) + 1))[:refusals]
    )
    beyond = tuple(
        Beyond(one, "project1", names[0], f"{one} reads too far", "declare it") for one in names[:5]
    )
    return Analysis(
        "prod", NOW, ("project0", "project1"), Base(("p",), "0", 1, "1", (("project0", "project1"),), ()), changes, work, left, edges,
        (), Order(("project0", "project1"), precedences, "required"), said, beyond, ("a warning",) * (models // 4),
    )  # fmt: skip


@given(
    st.integers(1, 400), st.integers(0, 40), st.sampled_from([3_000, 8_000, LONGEST]), st.sampled_from(["a", "模型" * 20])
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_it_is_never_too_long(models: int, refusals: int, longest: int, name: str) -> None:
    """Answers first; what is left out is said, and what is left is whole Markdown."""
    found = large(models, refusals, name)
    whole, said = markdown(found), markdown(found, longest=longest)
    assert len(said.encode()) <= longest
    assert said.startswith(marker("prod") + "\n")
    assert (said == whole) is (len(whole.encode()) <= longest)
    assert said.count("<details>") == said.count("</details>")
    assert said.count("```") % 2 == 0
    assert "Nothing was written." in said
    if said != whole:
        assert "This comment is shortened" in said
        assert "```mermaid" not in said
    if longest == LONGEST:
        assert shown(said.split("<details>")[0]).count("In which order to merge?") == 1


def test_as_much_as_fits_is_kept() -> None:
    """Nothing is thrown away that there is room for: less than a tenth of it stays empty."""
    said = markdown(large(600), longest=LONGEST)
    assert LONGEST * 0.9 < len(said.encode()) <= LONGEST
    assert re.search(r"\.\.\. and \d+ more", said)


def test_what_is_wrong_elsewhere_is_not_told_to_the_public() -> None:
    """A file's mistake with its cure; of a ledger that cannot be reached not even the host."""
    mistake = not_analysed(
        "prod", ConfigError("meshgate.yaml:3: `projets` is no key", hint="did you mean projects?")
    )
    assert "meshgate.yaml:3" in shown(mistake)
    assert "did you mean projects?" in shown(mistake)
    hidden = not_analysed(
        "prod", LedgerUnreachableError("no connection to ledger.internal:5432", hint="is it up?")
    )
    assert "internal" not in hidden
    assert "See the log of the job" in hidden
    assert mistake.splitlines()[0] == hidden.splitlines()[0] == marker("prod")


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


def test_it_answers_five_questions_in_a_picture(tmp_path: Path) -> None:
    """What changes, who is affected, what is computed again, when, in which order: seen without opening anything."""
    text = COMMENT.read_text(encoding="utf-8")
    first = shown(text.split("<details>")[0])
    for answer in (
        "What changes? crm.customers of crm changes: column score is removed",
        "Who is affected? crm, this change's own (owned by anna): crm.customers",
        "What is computed again? The 7 models above",
        "When? When crm, the last of them, is deployed: crm.customers",
        "In which order to merge? Merge and deploy one after the other:1. sales2. finance3. crm",
    ):
        assert answer in first
    assert size_of(PICTURE)[0] == 920
    if rendered_comment.browser() is None:
        pytest.skip("there is no Chromium to make a picture with")
    rendered_comment.picture(
        rendered_comment.html(text), tmp_path / "comment.png", height=size_of(PICTURE)[1]
    )
    assert size_of(tmp_path / "comment.png") == size_of(PICTURE)
    assert (tmp_path / "comment.png").stat().st_size > 20_000  # a white page has some hundred bytes
