"""A runner for the steps of an action or a workflow: what stands in the YAML is what runs, in bash, as GitHub runs it.

Of GitHub's expressions it knows what is used: `a.b.c`, and `x || y`. An expression in a script itself is refused, as
GitHub would paste into it whatever a pull request is called.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

from attrs import define, field
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def read(file: Path) -> Any:
    """A YAML file as plain data."""
    return YAML(typ="safe").load(file)


@define
class Done:
    """What became of some steps: the exit code of the first that failed, all that they printed, and their outputs."""

    code: int = 0
    said: str = ""
    steps: dict[str, dict[str, str]] = field(factory=dict)
    outputs: dict[str, str] = field(factory=dict)


@define
class Runner:
    """A machine that runs steps.

    Attributes:
        workspace: Where the repository is checked out.
        scratch: Where files of the runner go.
        github: GitHub's context: the token and what else expressions ask for.
        environment: What each step gets besides.
    """

    workspace: Path
    scratch: Path
    github: Mapping[str, str]
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(factory=dict)

    def action(self, folder: Path, given: Mapping[str, str]) -> Done:
        """Use an action."""
        found = read(folder / "action.yml")
        unknown = set(given) - set(found["inputs"])
        assert not unknown, f"{folder} has no input {unknown}"
        defaults = {
            name: self._filled(str(one.get("default", "")), {}, {}) for name, one in found["inputs"].items()
        }
        inputs = {**defaults, **given}
        done = Done()
        for step in found["runs"]["steps"]:
            self._step(step, done, inputs, {"GITHUB_ACTION_PATH": str(folder)})
            if done.code:
                break
        done.outputs = {
            name: self._filled(str(one["value"]), inputs, done.steps)
            for name, one in found["outputs"].items()
        }
        return done

    def job(
        self, job: Mapping[str, Any], actions: Mapping[str, Path], skipped: Collection[str]
    ) -> list[tuple[str, Done]]:
        """Run a job's steps, whatever becomes of each; what is used and not in `actions`, or is called as in `skipped`, is left out."""
        every: list[tuple[str, Done]] = []
        for step in job["steps"]:
            name, used = step.get("name", ""), step.get("uses", "").partition("@")[0]
            if name in skipped or (used and used not in actions):
                continue
            if used:
                given = {key: self._filled(str(value), {}, {}) for key, value in step.get("with", {}).items()}
                every.append((name, self.action(actions[used], given)))
            else:
                done = Done()
                self._step(step, done, {}, {})
                every.append((name, done))
        return every

    def _step(
        self, step: Mapping[str, Any], done: Done, inputs: Mapping[str, str], more: Mapping[str, str]
    ) -> None:
        script = step["run"]
        assert "${{" not in script, f"an expression is pasted into the script of {step.get('name')!r}"
        output, file = self.scratch / "output.txt", self.scratch / "step.sh"
        output.write_text("")
        file.write_text(script)
        given = {k: self._filled(str(v), inputs, done.steps) for k, v in step.get("env", {}).items()}
        folder = self.workspace / self._filled(str(step.get("working-directory", ".")), inputs, done.steps)
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)],
            cwd=folder, capture_output=True, text=True, timeout=240, check=False,
            env={**os.environ, **self.environment, "GITHUB_OUTPUT": str(output), "RUNNER_TEMP": str(self.scratch), **more, **given},
        )  # fmt: skip
        done.code = done.code or ran.returncode
        done.said += ran.stdout + ran.stderr
        pairs = (line.partition("=") for line in output.read_text().splitlines())
        done.steps[step.get("id", "")] = {name: value for name, _, value in pairs}

    def _filled(self, text: str, inputs: Mapping[str, str], steps: Mapping[str, Mapping[str, str]]) -> str:
        def value(expression: str) -> str:
            for part in expression.split("||"):
                if found := self._value(part.strip(), inputs, steps):
                    return found
            return ""

        return _EXPRESSION.sub(lambda match: value(match[1]), text)

    def _value(self, name: str, inputs: Mapping[str, str], steps: Mapping[str, Mapping[str, str]]) -> str:
        context, _, rest = name.partition(".")
        if context == "steps":
            step, outputs, output = rest.split(".", 2)
            assert outputs == "outputs"
            return steps.get(step, {}).get(output, "")
        known = {"inputs": inputs, "github": self.github, "secrets": self.secrets}
        assert context in known, f"an expression that is not known here: {name}"
        return known[context].get(rest, "")
