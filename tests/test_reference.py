"""The references of commands and configuration are what the code does: names, types, defaults, exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest

import cli_reference
from meshgate import config, config_parts, errors
from meshgate.cli import cli
from meshgate.cli.exits import EVERYWHERE, PARTICULAR
from meshgate.errors import ConfigError, MeshgateError
from test_docs import CONFIGURATION, section, table

if TYPE_CHECKING:
    from pathlib import Path

# The sections of the configuration reference, the keys that each has to list, and an example that has its required ones.
SECTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "Top level": (config._TOP_KEYS, {}),
    "ledger": (config._LEDGER_KEYS, {"url": "local"}),
    "project": (config._PROJECT_KEYS, {"name": "p"}),
    "retry": (config._RETRY_KEYS, {}),
    "limits": (config._LIMITS_KEYS, {}),
    "models": (config_parts._MODEL_KEYS, {}),
    "validity": (config_parts.VALIDITY_KEYS, {"from": "since"}),
    "edges": (config_parts.EDGE_KEYS, {"reader": "a.b", "parent": "c.d", "window": "latest"}),
    "window": (config_parts._WINDOW_KEYS, {}),
    "sources": (config_parts._SOURCE_KEYS, {"table": "a.b", "time_column": "ts"}),
}
# What is accepted of each type, and what is refused.
TYPES: dict[str, tuple[list[Any], list[Any]]] = {
    "text": (["a", "a.b"], [["a"], {"a": 1}]),
    "connection": (
        ["local", "local:there", "postgresql://u@h/d", "host=h dbname=d"],
        ["nonsense", ["local"]],
    ),
    "duration": (["0", "90s", "1h30m", "366d"], ["90", "-5m", "367d", "soon", ["5m"]]),
    "duration above 0": (["30m", "1h30m"], ["0", "90", "-5m", "367d"]),
    "duration from 1s": (["1s", "5m"], ["0", "500ms", "367d"]),
    "signed duration": (["0", "-7d", "90s"], ["90", "soon"]),
    "count": ([1, 12], [0, -1, "many", 1.5]),
    "cron": (["*/5 * * * *", "@hourly"], ["often", "* * *"]),
    "environment": (["prod", "dev_1"], ["Dev", "dev-1"]),
    "list of names": ([["a.b"], []], ["a.b", [{"a": 1}]]),
    "mapping": ([], ["a", ["a"]]),
    "mapping by model": ([], ["a", ["a"]]),
    "list of mappings": ([], ["a", ["a"], {"a": 1}]),
    "window": (["latest", "prefix", "ungated", {"from": "-6d"}], ["sometimes", ["latest"]]),
    "true, false, or a mapping": ([True, False, {"ignore": ["a"]}], ["a", ["a"], {"ignore": "a"}]),
}


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Type and default by key."""
    return {row[0].strip("`"): (row[1], row[2].strip("`")) for row in table(section(CONFIGURATION, heading))}


def document(heading: str, found: dict[str, Any]) -> dict[str, Any]:
    """A meshgate.yaml with something in the place that a section is about."""
    project: dict[str, Any] = {"name": "p"}
    top: dict[str, Any] = {"ledger": {"url": "local"}, "project": project}
    if heading == "Top level":
        return {k: v for k, v in (top | found).items() if not (k == "project" and "projects" in found)}
    if heading == "ledger":
        return top | {"ledger": found}
    if heading == "project":
        return top | {"project": project | found}
    if heading == "window":
        found = {**SECTIONS["edges"][1], "window": found and {"from": "-30d", "to": "30d", **found}}
    whole = (
        [found]
        if heading in {"edges", "window", "sources"}
        else {"a.b": found}
        if heading in {"models", "validity"}
        else found
    )
    return top | {"project": project | {"edges" if heading == "window" else heading: whole}}


def loaded(folder: Path, heading: str, **found: Any) -> config.MeshConfig:
    (folder / "meshgate.yaml").write_text(json.dumps(document(heading, SECTIONS[heading][1] | found)))
    return config.load(folder)


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_reference_lists_exactly_the_keys(heading: str) -> None:
    """Each key has its row, in the order of the code, and no row is about a key that is not read."""
    assert list(rows(heading)) == list(SECTIONS[heading][0])


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_reference_tells_the_types(heading: str, tmp_path: Path) -> None:
    """What the type allows is accepted; what it does not is refused, and the error names the key."""
    for key, (told, _) in rows(heading).items():
        choices = [word.strip("`") for word in told.split(", ")] if told.startswith("`") else []
        good, bad = (choices, ["neither", [choices[0]]]) if choices else TYPES[told]
        for value in good:
            loaded(tmp_path, heading, **{key: value})
        for value in bad:
            with pytest.raises(ConfigError) as refused:
                loaded(tmp_path, heading, **{key: value})
            assert key in refused.value.message, (key, value)


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_reference_tells_what_is_required(heading: str, tmp_path: Path) -> None:
    """Without it the file is refused, without any other key it is read."""
    required = {key for key, (_, default) in rows(heading).items() if default == "required"}
    if heading == "Top level":
        required -= {"ledger"}
        (tmp_path / "meshgate.yaml").write_text('{"project": {"name": "p"}}')
        with pytest.raises(ConfigError, match="ledger is missing"):
            config.load(tmp_path)
    for key in required:
        base = {k: v for k, v in SECTIONS[heading][1].items() if k != key}
        nameless = {"ledger": {"url": "local"}, "project": {"path": "x"}}
        broken = nameless if heading == "project" else document(heading, base)
        (tmp_path / "meshgate.yaml").write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match="is missing"):
            config.load(tmp_path)
    if heading != "Top level":
        assert required == set(SECTIONS[heading][1])
    loaded(tmp_path, heading)


def test_the_reference_tells_the_defaults(tmp_path: Path) -> None:
    """What every key is without being given."""
    found = loaded(tmp_path, "project")
    only, ledger = found.project(), found.ledger
    told = {heading: {k: d for k, (_, d) in rows(heading).items() if d != "required"} for heading in SECTIONS}
    for key, default in told["ledger"].items():
        length = told["ledger"].get(default, default)
        assert getattr(ledger, f"{key}_s") == config.parse_duration(length).total_seconds(), key
    pieces = {
        "retry": {"first": only.retry_first, "longest": only.retry_longest},
        "limits": {"warehouse": only.warehouse_limit, "models": only.model_limits},
        "models": {key: getattr(config_parts.ModelConfig(), key) for key in told["models"]},
        "sources": {key: getattr(config.SourceConfig("t", "c"), key) for key in told["sources"]},
        "window": {"from": loaded(tmp_path, "window").project().edges[0].window.from_offset,
                   "to": loaded(tmp_path, "window").project().edges[0].window.to_offset},
        "validity": {"to": loaded(tmp_path, "validity").project().validity["a.b"][1]},
        "project": {key: getattr(only, key) for key in told["project"] if key not in {"retry", "limits"}},
    }  # fmt: skip
    computed = {"path": str(tmp_path), "gateway": None, "patience": None, "stale_throttle": None}
    for heading, values in pieces.items():
        for key, value in values.items():
            default = told[heading][key]
            if heading == "project" and key in computed:
                assert str(value) == str(computed[key]), key
            elif default in {"none", "the project's", "false"}:
                assert not value, (heading, key)
            elif not isinstance(value, str):
                assert value == config.parse_duration(default), (heading, key)
            else:
                assert value == default, (heading, key)


# Commands


def test_the_reference_of_the_commands_is_what_they_say_of_themselves() -> None:
    """Every command, argument, option, default and exit code; `python tests/cli_reference.py` writes it anew."""
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.page()


def test_every_command_and_option_says_what_it_does() -> None:
    """None is without help."""
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), (
                name,
                parameter.name,
            )


def test_every_exit_code_of_an_error_is_told() -> None:
    """Those of all commands, or of a command that raises it; `answer_of` checks each code that a test meets."""
    told = set(EVERYWHERE) | {code for codes in PARTICULAR.values() for code in codes}
    raised = {
        e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, MeshgateError)
    }
    assert raised <= told
    assert set(PARTICULAR) <= set(cli.commands)
