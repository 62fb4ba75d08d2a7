"""A comment as GitHub shows it: Markdown to HTML, and a picture of that by a headless Chromium.

`python tests/rendered_comment.py FILE.md FILE.png` makes the picture; docs/explanation/analysis-comment.png is that of
analysis_comment.md.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

# As GitHub's own, as far as tables, folded parts and code go.
STYLE = """
body { font: 14px/1.5 "DejaVu Sans", "Noto Color Emoji", sans-serif; color: #1f2328; margin: 16px; width: 880px; }
.comment { border: 1px solid #d1d9e0; border-radius: 6px; }
.author { background: #f6f8fa; border-bottom: 1px solid #d1d9e0; padding: 8px 16px; color: #59636e; border-radius: 6px 6px 0 0; }
.body { padding: 16px; }
h3 { font-size: 18px; margin: 0 0 12px; }
table { border-collapse: collapse; margin-bottom: 16px; display: block; }
th, td { border: 1px solid #d1d9e0; padding: 6px 13px; text-align: left; vertical-align: top; }
thead:not(:has(th:not(:empty))) { display: none; }
tr:nth-child(2n) { background: #f6f8fa; }
code { background: #eff1f3; border-radius: 6px; padding: 2px 5px; font: 12px "DejaVu Sans Mono", monospace; }
pre { background: #f6f8fa; border-radius: 6px; padding: 16px; } pre code { background: none; padding: 0; }
details { margin-bottom: 8px; } sub { font-size: 11px; color: #59636e; line-height: 1.4; }
"""
WINDOW = "920,{height}"


def html(markdown: str, *, author: str = "github-actions", opened: bool = False) -> str:
    """A page with one comment; `opened`: with its folded parts unfolded."""
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    if opened:
        body = body.replace("<details>", "<details open>")
    return (
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><div class="comment">'
        f'<div class="author"><b>{author}</b> <i>bot</i> commented</div><div class="body">{body}</div></div>'
    )


def browser() -> str | None:
    """A Chromium, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def picture(page: str, to: Path, *, height: int = 640) -> None:
    """Make a PNG of a page.

    Raises:
        RuntimeError: There is no Chromium, or it fails.
    """
    program = browser()
    if program is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, encoding="utf-8")
        done = subprocess.run(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", f"--window-size={WINDOW.format(height=height)}",
                f"--screenshot={to}", source.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    if done.returncode or not to.is_file():
        raise RuntimeError(f"Chromium made no picture: {done.stderr[-500:]}")


if __name__ == "__main__":
    picture(html(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
