"""SQLMesh told to say nothing, while what it warns of is kept."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlmesh.core.console import NoopConsole, get_console, set_console

from meshgate.db import redact

if TYPE_CHECKING:
    from collections.abc import Iterator


class QuietConsole(NoopConsole):  # type: ignore[misc]
    """SQLMesh's console without output; its warnings are kept, the newest last, and why models failed."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.failures: list[Any] = []

    def log_failed_models(self, errors: list[Any]) -> None:  # noqa: D102 - SQLMesh's
        self.failures = list(errors)

    def log_warning(self, short_message: str, *_: Any, **__: Any) -> None:  # noqa: D102 - SQLMesh's
        self.warnings.append(redact(short_message))


@contextmanager
def quiet(console: QuietConsole | None = None) -> Iterator[QuietConsole]:
    """Have SQLMesh speak to this console, or to a new one, and to its own again afterwards."""
    before, console = get_console(), console or QuietConsole()
    set_console(console)
    try:
        yield console
    finally:
        set_console(before)
