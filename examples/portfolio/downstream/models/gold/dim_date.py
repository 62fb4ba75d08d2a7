"""The calendar: a row for each day of 2025-2030."""

from __future__ import annotations

import typing as t
from datetime import date, timedelta

import pandas as pd
from sqlglot import exp
from sqlmesh import ExecutionContext, model


@model(
    "gold.dim_date",
    description="Every day of 2025-2030. A Python model, as the standard library knows what a calendar week is, and SQL dialects differ about it. Monthly: it never changes. date_key is yyyymmdd, weekday 1 is Monday.",
    kind="FULL",
    cron="@monthly",
    # Before the facts begin, so that there is a whole month before their first hour.
    start="2025-01-01",
    grains=["date_key"],
    audits=[
        ("unique_values", {"columns": [exp.column("date_key")]}),
        ("number_of_rows", {"threshold": 2190}),
    ],
    columns={
        "date_key": "int",
        "date": "date",
        "year": "int",
        "quarter": "int",
        "month": "int",
        "day": "int",
        "weekday": "int",
        "is_weekend": "boolean",
        "iso_week": "int",
    },
)
def execute(context: ExecutionContext, **kwargs: t.Any) -> pd.DataFrame:  # noqa: ARG001 - as SQLMesh calls it
    """Give the calendar, whatever interval is asked for."""
    first, last = date(2025, 1, 1), date(2030, 12, 31)
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    return pd.DataFrame(
        {
            "date_key": [day.year * 10_000 + day.month * 100 + day.day for day in days],
            "date": days,
            "year": [day.year for day in days],
            "quarter": [(day.month + 2) // 3 for day in days],
            "month": [day.month for day in days],
            "day": [day.day for day in days],
            "weekday": [day.isoweekday() for day in days],
            "is_weekend": [day.isoweekday() > 5 for day in days],
            "iso_week": [day.isocalendar().week for day in days],
        }
    )
