"""What a doctor's checks find, whatever they look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from meshgate.errors import MeshgateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Outcome = Literal["ok", "warn", "fail"]


@frozen
class Check:
    """One thing that was looked at.

    Attributes:
        name: What kind of thing: `config`, `sqlmesh`, `ledger`, `clock`, `notifications`, `project`, `models`, `schedule`,
            `state`, `warehouse`, `names`, `states`, `versions`, `manifest`, `windows`, `environment`, `runs`.
        subject: Which one of them: a project, an environment; empty where there is only one.
        outcome: `ok`, `warn` or `fail`.
        message: What was found.
        hint: What to do about it.
    """

    name: str
    subject: str
    outcome: Outcome
    message: str
    hint: str | None = None


@frozen
class Diagnosis:
    """Everything that was looked at, in the order in which it matters."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome."""
        found = {check.outcome for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def exit_code(self) -> int:
        """2 where anything fails, else 0."""
        return 2 if self.outcome == "fail" else 0


def failed(name: str, subject: str, error: MeshgateError) -> Check:
    """An error as a finding."""
    return Check(name, subject, "fail", error.message, error.hint)


def guarded(
    name: str, subject: str, look: Callable[..., Iterator[Check]], *args: Any, **kwargs: Any
) -> list[Check]:
    """What a look finds, and what it stumbles over as a finding of its own."""
    found: list[Check] = []
    try:
        found.extend(look(*args, **kwargs))
    except MeshgateError as error:
        found.append(failed(name, subject, error))
    except Exception as error:  # noqa: BLE001 - the other checks are worth more than a traceback
        found.append(Check(name, subject, "fail", f"could not be looked at: {type(error).__name__}"))
    return found
