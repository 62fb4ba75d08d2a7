"""The command line, called in this process: what it printed where, and its exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meshgate import cli
from meshgate.cli import exits

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Answer:
    """What one call did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


def answer_of(capsys: pytest.CaptureFixture[str], config: Path | None, *arguments: str) -> Answer:
    """Call the command line; whatever happens, it shows no traceback, and exits with a code that the reference has."""
    capsys.readouterr()
    code = cli.execute([*(["--config", str(config)] if config else []), *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    verb = next((word for word in arguments if word in cli.cli.commands), "")
    assert code in {**exits.EVERYWHERE, **exits.PARTICULAR.get(verb, {})}, (arguments, code)
    return Answer(code, out, err)


def configure(folder: Path, url: str, **more: Any) -> Path:
    """Write a `meshgate.yaml`; JSON is YAML."""
    path = folder / "meshgate.yaml"
    path.write_text(
        json.dumps({"ledger": {"url": url}, "project": {"name": "upstream", "path": "."}, **more})
    )
    return path
