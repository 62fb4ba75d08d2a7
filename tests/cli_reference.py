"""Writes `docs/reference/cli.md` from the commands themselves: `python tests/cli_reference.py` after a change of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from meshgate.cli import cli
from meshgate.cli.exits import EVERYWHERE, PARTICULAR

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# The commands

Written by `python tests/cli_reference.py` from what each command says of itself, and compared with it by a test; `--help` after a command shows
the same. Results go to stdout, everything else to stderr. Instants are UTC, ISO 8601; durations are such as `90s`, `15m`, `1h30m`.

| exit code | of every command |
|---|---|
"""


def page() -> str:
    """The whole page."""
    codes = "".join(f"| {code} | {said} |\n" for code, said in EVERYWHERE.items())
    parts = [HEAD + codes, _options("## meshgate", [p for p in cli.params if p.name != "help"])]
    parts += [_command(name, command) for name, command in sorted(cli.commands.items())]
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> str:
    with click.Context(command, info_name=f"meshgate {name}") as context:
        usage = " ".join(["meshgate", name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}\n", f"```text\n{usage}\n```\n", *_prose(inspect.cleandoc(command.help or ""))]
    if options := [p for p in command.params if isinstance(p, click.Option)]:
        parts.append(_options("", options))
    if found := PARTICULAR.get(name):
        rows = "".join(f"| {code} | {said} |\n" for code, said in sorted(found.items()))
        parts.append(f"| exit code | meaning |\n|---|---|\n{rows}")
    return "\n".join(parts)


def _prose(text: str) -> list[str]:
    """Paragraphs; what a command keeps in lines is kept in lines."""
    found = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            found.append(f"```text\n{paragraph.removeprefix(chr(8)).strip(chr(10))}\n```\n")
        elif re.match(r"meshgate \w+ ", paragraph):
            found.append(f"```text\n{paragraph}\n```\n")
        else:
            found.append(" ".join(paragraph.split()) + "\n")
    return found


def _options(heading: str, parameters: list[click.Parameter]) -> str:
    rows = [_row(one) for one in parameters if isinstance(one, click.Option)]
    table = "| option | default | meaning |\n|---|---|---|\n" + "".join(rows)
    return f"{heading}\n\n{table}" if heading else table


def _row(option: click.Option) -> str:
    with click.Context(cli) as context:
        metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    names = ", ".join(sorted(option.opts, key=len))
    given = option.to_info_dict()["default"]
    default = (
        "required"
        if option.required
        else "off"
        if option.is_flag
        else "none"
        if given in (None, ())
        else str(given)
    )
    cell = f"{names}{metavar}".replace("|", r"\|")
    return f"| `{cell}` | {default} | {(option.help or '').replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
