"""The AI/BI dashboard for Databricks, from the files in datasets/ and the layout below.

    python -m dashboard.build

writes `shop.lvdash.json`, which is committed: a deployment takes the file as it is. Tables are named by schema and name alone; the
catalog is the one with which the dashboard is published (`dataset_catalog` of the Terraform resource).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from dashboard import datasets

FILE = Path(__file__).resolve().parent / "shop.lvdash.json"
WIDTH = 6
"""How many columns the canvas has."""

Json = dict[str, Any]
Size = tuple[int, int]


def dashboard() -> Json:
    """The definition, as Databricks exports one."""
    return {
        "datasets": [
            {
                "name": name,
                "displayName": datasets.title(name),
                "queryLines": datasets.text(name).splitlines(keepends=True),
            }
            for name in datasets.names()
        ],
        "pages": [_sales(), _pipeline()],
    }


def written() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _sales() -> Json:
    return _page(
        "sales",
        "Sales",
        _text("# The shop's sales\nAll times are UTC, all amounts in euro. Returns are not taken off sales.", (6, 1)),
        _filter("Country", {"sales": "store_country", "stores": "store_country", "items": "store_country"}, (3, 1)),
        _filter("Day", {"sales": "sale_date", "stores": "sale_date", "items": "sale_date", "customers": "sale_date", "returns": "refund_date"},
                (3, 1), kind="filter-date-range-picker"),
        _counter("Sales, in euro", "stores", "SUM(`revenue_eur`)", (2, 2)),
        _counter("Receipts", "stores", "SUM(`receipts`)", (2, 2)),
        _counter("Different customers since the beginning, estimated", "customers_ever", "MAX(`customers`)", (2, 2)),
        _chart("bar", "Sales by hour and category, in euro", "sales", ("sale_hour", "temporal", "Hour (UTC)"),
               ("SUM(`revenue_eur`)", "Sales (EUR)"), (6, 5), color=("category", "Category")),
        _chart("bar", "Sales by store, in euro", "stores", ("store", "categorical", "Store"),
               ("SUM(`revenue_eur`)", "Sales (EUR)"), (3, 5), color=("store_country", "Country")),
        _table("Sales by item", "items", {
            "item": ("`item`", "Item"), "category": ("`category`", "Category"),
            "quantity": ("SUM(`quantity`)", "Pieces sold"), "revenue_eur": ("SUM(`revenue_eur`)", "Sales (EUR)"),
        }, (3, 5), order="revenue_eur"),
        _chart("line", "Different customers a day, estimated", "customers", ("sale_date", "temporal", "Day (UTC)"),
               ("MAX(`customers`)", "Customers"), (3, 5), color=("country", "Country of the store")),
        _chart("bar", "Money given back, in euro", "returns", ("refund_hour", "temporal", "Hour (UTC)"),
               ("SUM(`refunded_eur`)", "Given back (EUR)"), (3, 5), color=("reason", "Reason")),
        _chart("bar", "Items for sale that sold on the day", "assortment", ("sale_date", "temporal", "Day (UTC)"),
               ("SUM(`items_sold`)", "Items sold"), (6, 4)),
    )  # fmt: skip


def _pipeline() -> Json:
    return _page(
        "pipeline",
        "Pipeline",
        _text("# Is it fresh, and is it whole?\nHow far the tables are behind the tills, what came late, and what was left out. "
              "The runs come from the ledger, which has to be there as the foreign catalog `ledger`.", (6, 1)),
        _counter("Last tick of upstream (UTC)", "freshness", "MAX(`last_tick`)", (2, 2)),
        _counter("Reports are behind it by so many minutes", "freshness", "MAX(`minutes_behind`)", (2, 2)),
        _counter("Receipts that came more than five minutes late", "lateness", "SUM(`late`)", (2, 2)),
        _table("The newest row of each table", "freshness", {
            "what": ("`what`", "What"), "table_name": ("`table_name`", "Table"),
            "newest": ("`newest`", "Newest row (UTC)"), "minutes_behind": ("`minutes_behind`", "Minutes behind the last tick"),
        }, (6, 3)),
        _chart("bar", "Receipts that reached the pipeline, by hour of arrival", "arrivals", ("arrival_hour", "temporal", "Hour (UTC)"),
               ("SUM(`receipts`)", "Receipts"), (3, 4)),
        _chart("line", "The longest that a receipt was on its way, in minutes", "lateness", ("sale_hour", "temporal", "Hour of the sale (UTC)"),
               ("MAX(`latest_minutes`)", "Minutes"), (3, 4)),
        _chart("bar", "Receipts that came late, by hour of the sale", "lateness", ("sale_hour", "temporal", "Hour of the sale (UTC)"),
               ("SUM(`late`)", "Receipts"), (3, 4)),
        _chart("bar", "Receipt lines left out, and why", "rejected", ("sale_hour", "temporal", "Hour of the sale (UTC)"),
               ("SUM(`lines`)", "Lines"), (3, 4), color=("reason", "Reason")),
        _chart("bar", "Runs by outcome", "runs", ("run_hour", "temporal", "Hour (UTC)"), ("SUM(`runs`)", "Runs"), (3, 4),
               color=("state", "Outcome")),
        _chart("line", "The longest run, in seconds", "runs", ("run_hour", "temporal", "Hour (UTC)"),
               ("MAX(`longest_seconds`)", "Seconds"), (3, 4), color=("project", "Project")),
    )  # fmt: skip


# -- pieces


def _page(name: str, title: str, *widgets: tuple[Json, Size]) -> Json:
    """Widgets from left to right, and a new row where one has no room left."""
    layout: list[Json] = []
    x = y = height = 0
    for widget, (wide, high) in widgets:
        if x + wide > WIDTH:
            x, y, height = 0, y + height, 0
        named = {"name": f"{name}-{len(layout) + 1}", **widget}
        layout.append({"widget": named, "position": {"x": x, "y": y, "width": wide, "height": high}})
        x, height = x + wide, max(height, high)
    return {"name": name, "displayName": title, "pageType": "PAGE_TYPE_CANVAS", "layout": layout}


def _text(markdown: str, size: Size) -> tuple[Json, Size]:
    return {"textbox_spec": markdown}, size


def _query(dataset: str, fields: dict[str, str], *, rows: bool = False, name: str = "main_query") -> Json:
    found = [{"name": alias, "expression": expression} for alias, expression in fields.items()]
    return {"name": name, "query": {"datasetName": dataset, "fields": found, "disaggregated": rows}}


def _widget(
    title: str, kind: str, version: int, queries: list[Json], encodings: Json, size: Size
) -> tuple[Json, Size]:
    frame = {"title": title, "showTitle": True}
    spec = {"version": version, "widgetType": kind, "encodings": encodings, "frame": frame}
    return {"queries": queries, "spec": spec}, size


def _counter(title: str, dataset: str, expression: str, size: Size) -> tuple[Json, Size]:
    alias = _alias(expression)
    encodings = {"value": {"fieldName": alias, "displayName": title}}
    return _widget(title, "counter", 2, [_query(dataset, {alias: expression})], encodings, size)


def _chart(
    kind: str, title: str, dataset: str, x: tuple[str, str, str], y: tuple[str, str], size: Size, *, color: tuple[str, str] | None = None
) -> tuple[Json, Size]:  # fmt: skip
    """A chart of one measure; `x`: column, sort of scale, title; `y`: expression, title; `color`: column, title."""
    expression, label = y
    fields = {x[0]: f"`{x[0]}`", _alias(expression): expression}
    encodings: Json = {
        "x": {"fieldName": x[0], "scale": {"type": x[1]}, "displayName": x[2]},
        "y": {"fieldName": _alias(expression), "scale": {"type": "quantitative"}, "displayName": label},
    }
    if color is not None:
        fields[color[0]] = f"`{color[0]}`"
        encodings["color"] = {
            "fieldName": color[0],
            "scale": {"type": "categorical"},
            "displayName": color[1],
        }
    return _widget(title, kind, 3, [_query(dataset, fields)], encodings, size)


def _table(
    title: str, dataset: str, columns: dict[str, tuple[str, str]], size: Size, *, order: str | None = None
) -> tuple[Json, Size]:
    """`columns`: expression and title, by name; `order`: the largest of it first."""
    fields = {name: expression for name, (expression, _) in columns.items()}
    query = _query(dataset, fields, rows=not any("(" in expression for expression in fields.values()))
    if order is not None:
        query["query"]["orders"] = [{"direction": "DESC", "expression": fields[order]}]
    encodings = {
        "columns": [{"fieldName": name, "displayName": shown} for name, (_, shown) in columns.items()]
    }
    return _widget(title, "table", 2, [query], encodings, size)


def _filter(
    title: str, fields: dict[str, str], size: Size, *, kind: str = "filter-multi-select"
) -> tuple[Json, Size]:
    """A filter of several datasets: the column of each that it is about."""
    queries, encoded = [], []
    for dataset, column in fields.items():
        known = {
            column: f"`{column}`",
            f"{column}_associativity": "COUNT_IF(`associative_filter_predicate_group`)",
        }
        queries.append(_query(dataset, known, name=f"{dataset}_{column}"))
        encoded.append({"fieldName": column, "displayName": column, "queryName": f"{dataset}_{column}"})
    return _widget(title, kind, 2, queries, {"fields": encoded}, size)


def _alias(expression: str) -> str:
    return re.sub(r"`", "", expression).lower()


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
