"""`meshgate.yaml`, the keys of coordination: what is right, what is wrong, and what counts without them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from meshgate.cli import cli
from meshgate.config import FILE_NAME, OVERLAPS, ModelConfig, ProjectConfig, load
from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "ledger: {url: local}\nproject:\n  name: downstream\n"


def read(folder: Path, text: str) -> ProjectConfig:
    (folder / FILE_NAME).write_text(HEAD + text)
    return load(folder).project()


def test_every_key_arrives_with_its_type(tmp_path: Path) -> None:
    """Durations in their units, limits as numbers, models as they are written."""
    found = read(
        tmp_path,
        """\
  warehouse: lakehouse
  overlap: share
  overlap_limit: 5m
  stop_grace: 90s
  retry: {first: 30s, longest: 2h}
  limits:
    warehouse: 8
    models:
      gold.fact_sales: 2
      hourly: 1
  exclusive: [gold.hourly, bronze.events]
  validity: {dim.a: day, dim.b: {from: x, to: y}, dim.c: {from: x}, dim.d: none}
""",
    )
    assert (found.warehouse, found.overlap, found.overlap_limit) == (
        "lakehouse",
        "share",
        timedelta(minutes=5),
    )
    assert (found.stop_grace, found.retry_first, found.retry_longest) == (
        timedelta(seconds=90),
        timedelta(seconds=30),
        timedelta(hours=2),
    )
    assert (found.warehouse_limit, found.model_limits) == (8, {"gold.fact_sales": 2, "hourly": 1})
    assert found.exclusive == ("gold.hourly", "bronze.events")
    assert found.validity == {
        "dim.a": ("day", None),
        "dim.b": ("x", "y"),
        "dim.c": ("x", None),
        "dim.d": ("", None),
    }


def test_policies_of_stale_time_and_of_single_models(tmp_path: Path) -> None:
    """What is not given for a model is its project's."""
    found = read(
        tmp_path,
        """\
  stale: report
  stale_horizon: 30d
  stale_budget: 12
  models:
    gold.daily: {stale: reprocess, stale_throttle: 6h, stale_horizon: 7d}
    gold.sales: {on_audit_warning: hold}
""",
    )
    assert (found.stale, found.stale_horizon, found.stale_budget) == ("report", timedelta(days=30), 12)
    assert found.models == {
        "gold.daily": ModelConfig("reprocess", timedelta(hours=6), timedelta(days=7)),
        "gold.sales": ModelConfig(on_audit_warning="hold"),
    }


def test_without_them_there_is_no_limit_and_a_second_run_is_skipped(tmp_path: Path) -> None:
    """The defaults, which the reference tells too."""
    found = read(tmp_path, "")
    assert (found.warehouse, found.overlap, found.overlap_limit) == ("default", "skip", timedelta(minutes=15))
    assert (found.stop_grace, found.retry_first, found.retry_longest) == (
        timedelta(seconds=20),
        timedelta(minutes=1),
        timedelta(hours=1),
    )
    assert (found.warehouse_limit, found.model_limits, found.exclusive) == (None, {}, ())


def test_a_pause_and_a_grace_may_be_nothing(tmp_path: Path) -> None:
    """Zero means at once; a first pause above the longest default lengthens that one."""
    found = read(tmp_path, "  stop_grace: 0\n  retry: {first: 0}\n")
    assert (found.stop_grace, found.retry_first) == (timedelta(0), timedelta(0))
    assert read(tmp_path, "  retry: {first: 3h}\n").retry_longest == timedelta(hours=3)


MISTAKES = {
    "overlap": (
        "  overlap: waits\n",
        4,
        "project.overlap is 'waits', expected one of skip, wait, share, fail",
    ),
    "no limit": ("  overlap_limit: 0\n", 4, "project.overlap_limit is the number 0, expected a duration"),
    "negative grace": ("  stop_grace: -5s\n", 4, "project.stop_grace is '-5s', expected a duration"),
    "retry": ("  retry: 5m\n", 4, "project.retry is '5m', expected a mapping such as {first"),
    "retry key": ("  retry: {frist: 5m}\n", 4, "unknown key 'frist' in project.retry"),
    "retry order": (
        "  retry:\n    first: 5m\n    longest: 1m\n",
        6,
        "project.retry.longest is 0:01:00, shorter than",
    ),
    "limits": (
        "  limits: 4\n",
        4,
        "project.limits is the number 4, expected a mapping with warehouse and models",
    ),
    "limits key": ("  limits: {warehose: 4}\n", 4, "unknown key 'warehose' in project.limits"),
    "zero": (
        "  limits:\n    warehouse: 0\n",
        5,
        "project.limits.warehouse is the number 0, expected a whole number above 0",
    ),
    "half": (
        "  limits: {warehouse: 1.5}\n",
        4,
        "project.limits.warehouse is the number 1.5, expected a whole number",
    ),
    "models": (
        "  limits: {models: [a]}\n",
        4,
        "project.limits.models is a list, expected a mapping of models' names",
    ),
    "model": (
        "  limits:\n    models:\n      gold.x: many\n",
        6,
        "project.limits.models.gold.x is 'many', expected a",
    ),
    "model twice": ("  limits: {models: {a: 1, a: 2}}\n", 4, "project.limits.models.a is given twice"),
    "exclusive": (
        "  exclusive: gold.x\n",
        4,
        "project.exclusive is 'gold.x', expected a list of models' names",
    ),
    "nested": (
        "  exclusive: [[gold.x]]\n",
        4,
        "project.exclusive is a list, expected a list of models' names",
    ),
    "policies": ("  models: [gold.x]\n", 4, "project.models is a list, expected a mapping of models' names"),
    "policy": (
        "  models:\n    gold.x: {stale: never}\n",
        5,
        "project.models.gold.x.stale is 'never', expected one of reprocess, report",
    ),
    "policy key": (
        "  models: {gold.x: {stael: report}}\n",
        4,
        "unknown key 'stael' in project.models.gold.x",
    ),
    "validity": (
        "  validity: [dim.a]\n",
        4,
        "project.validity is a list, expected a mapping of models' names",
    ),
    "validity twice": ("  validity: {a: x, a: y}\n", 4, "project.validity.a is given twice"),
    "validity of nothing": (
        "  validity: {dim.a: [x]}\n",
        4,
        "project.validity.dim.a is a list, expected a column, none",
    ),
    "validity without from": ("  validity: {dim.a: {to: x}}\n", 4, "project.validity.dim.a.from is missing"),
    "elsewhere": ("  first: 5m\n", 4, "unknown key 'first'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, mistake: str) -> None:
    """One ConfigError with file, line, key, what was found and what is expected."""
    text, line, said = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path / FILE_NAME}:{line}: ")
    assert said in caught.value.message


def test_the_command_line_knows_the_policies_of_the_file() -> None:
    """`run --overlap` takes what `overlap` takes: it is written twice, as `--help` must not load the configuration."""
    (option,) = (p for p in cli.commands["run"].params if p.name == "overlap")
    assert tuple(getattr(option.type, "choices", ())) == OVERLAPS
