"""What the exit codes mean: of every command, and of single ones besides."""

from __future__ import annotations

from typing import Final

EVERYWHERE: Final = {
    0: "done, nothing to do, or blocked: the answer says so",
    1: "something failed",
    2: "wrong input or setup",
    5: "the ledger cannot be reached",
    130: "stopped by Ctrl-C, in order",
    143: "stopped by SIGTERM, in order",
}
_RUN: Final = {
    1: "an interval failed, or the run lost its lease",
    4: "skipped or refused: another run or deploy lives",
}
PARTICULAR: Final[dict[str, dict[int, str]]] = {
    "analyze": {
        1: "a --fail-on is met",
        2: "the change must not be deployed as it is, whatever --fail-on says; or wrong input or setup",
    },
    "deploy": _RUN,
    "doctor": {2: "something has to be mended"},
    "gate": {3: "not ready"},
    "lease": {1: "nobody agreed to break the lease: nothing was done"},
    "restate": {code: f"with --now: {said}" for code, said in _RUN.items()},
    "run": {**_RUN, 3: "with --require-ready: due work is blocked"},
    "verify": {1: "something differs"},
}


def told(command: str) -> str:
    """For the end of its `--help`: what is particular to it."""
    found = PARTICULAR.get(command, {})
    lines = [f"{code}  {said}" for code, said in sorted(found.items())]
    return "\n".join(["\b", "Exit codes, beside those of all commands:", *lines]) if lines else ""
