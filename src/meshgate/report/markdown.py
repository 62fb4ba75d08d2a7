"""Text as Markdown: escaped, as code, in rows of a table, folded, and no longer than somebody takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import evolve, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&])")
_CODE = re.compile(r"(`[^`]*`)")
_NO_CODE = re.compile(r"`\s*`")
_LINE = re.compile(r"[\r\n]+")
# A name after an @ would call somebody, `#12` would lead to an issue; a zero-width space is seen by nobody.
_CALLING = re.compile(r"((?<!\w)@(?=\w)|#(?=\d))")


def plain(text: str) -> str:
    """Text that Markdown leaves as it is, but for what stands between backticks."""
    text = _LINE.sub(" ", text)
    while (
        shorter := _NO_CODE.sub("", text)
    ) != text:  # two backticks and nothing between would begin another span
        text = shorter
    parts = _CODE.split(text)
    spans = (code(p) if p.startswith("`") and len(p) > 1 else _calm(_SPECIAL.sub(r"\\\1", p)) for p in parts)
    return "".join(spans)


def _calm(text: str) -> str:
    return _CALLING.sub("\\1\u200b", text)


def code(text: str) -> str:
    """Text as it is typed."""
    # A cell of a table ends at a bar, also inside a span of code.
    return f"`{' '.join(text.replace('`', '').split()).replace('|', chr(92) + '|')}`"


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(_LINE.sub(' ', c) for c in cells)} |"


def bullets(said: Iterable[str]) -> list[str]:
    """A list."""
    return [f"- {plain(one)}" for one in said]


@frozen
class Folded:
    """A part that a reader opens.

    Attributes:
        title: What stands there before it is opened.
        head: Lines that stay in any case, such as the head of a table.
        items: What can be left out one by one, from the end; each some lines.
        whole: Whether to leave out all of it or nothing, such as a diagram.
        cut: How many items were left out.
    """

    title: str
    head: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]
    whole: bool = False
    cut: int = 0

    def lines(self) -> list[str]:
        """As Markdown."""
        body = [line for item in self.items for line in item]
        more = ["", f"... and {self.cut} more"] if self.cut else []
        summary = f"<summary>{self.title}</summary>"
        return ["<details>", summary, "", *self.head, *body, *more, "", "</details>", ""]

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return _size("\n".join(self.lines()))

    def without(self, over: int) -> Folded:
        """At least so many bytes shorter, as far as there is something to leave out; at least one item."""
        items, freed = list(self.items), 0
        while items and freed < over:
            freed += _size("\n".join(items.pop())) + 1
        return evolve(self, items=tuple(items), cut=self.cut + len(self.items) - len(items))


def fitted(
    head: Sequence[str], parts: Sequence[Folded], foot: Sequence[str], longest: int | None, note: str
) -> str:
    """Head, folded parts and foot, no longer than `longest` bytes of UTF-8.

    What is left out first: diagrams, then the last items of whichever part is the longest. Where even head and foot are too
    long, lines of the head go, from its end; its first two stay.

    Args:
        head: What stands first.
        parts: What is folded.
        foot: What stands last.
        longest: In bytes; None: whatever it takes.
        note: Says that something is left out; stands after the head.
    """
    kept = list(parts)
    text = _joined(head, kept, foot)
    if longest is None or _size(text) <= longest:
        return text
    kept, last = [part for part in kept if not part.whole], [note, "", *foot]
    while kept and (over := _size(_joined(head, kept, last)) - longest) > 0:
        place = max(range(len(kept)), key=lambda at: kept[at].size)
        kept[place] = kept[place].without(over)
        if not kept[place].items:
            del kept[place]
    lines = list(head)
    while len(lines) > 2 and _size(_joined(lines, kept, last)) > longest:
        lines.pop()
    return _joined(lines, kept, last)


def _joined(head: Sequence[str], parts: Sequence[Folded], foot: Sequence[str]) -> str:
    return "\n".join([*head, *(line for part in parts for line in part.lines()), *foot]) + "\n"


def _size(text: str) -> int:
    return len(text.encode())
