"""The portfolio's projects as SQLMesh has them for an engine, with a DuckDB in memory for all that is asked."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlglot

# At the top: what SQLMesh adds to SQLGlot is not seen by a dialect that somebody has written SQL with before.
from sqlmesh import Context
from sqlmesh.core.config import Config, DuckDBConnectionConfig, GatewayConfig, ModelDefaultsConfig

if TYPE_CHECKING:
    from datetime import datetime

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
UPSTREAM, DOWNSTREAM = PORTFOLIO / "upstream", PORTFOLIO / "downstream"
CACHES = tempfile.TemporaryDirectory(prefix="portfolio-caches-")
"""SQLMesh keeps rendered queries beside the files, and does not keep apart for which engine."""


def opened(engine: str, *projects: Path) -> Any:
    """Projects as they are for an engine; where both are named, gold's types come from silver's."""
    zone = {"TimeZone": "UTC"}
    gateway = GatewayConfig(
        connection=DuckDBConnectionConfig(
            catalogs={"lake": ":memory:", "source": ":memory:"}, connector_config=zone
        ),
        test_connection=DuckDBConnectionConfig(connector_config=zone),
        variables={"engine": engine},
    )
    (size,) = re.findall(r"sketch_size: (\d+)", (DOWNSTREAM / "config.yaml").read_text())
    config = Config(
        gateways={engine: gateway},
        model_defaults=ModelDefaultsConfig(dialect="databricks", start="2026-01-05"),
        variables={"sketch_size": int(size)},
        disable_anonymized_analytics=True,
        cache_dir=f"{CACHES.name}/{engine}",
    )
    return Context(paths=list(projects), config=dict.fromkeys(projects, config))


def rendered_for_databricks(context: Any, start: datetime, end: datetime) -> str:
    """All that the models of a context say for a range: queries, statements afterwards, audits. SQLGlot reads each back as it is."""
    time = {"start": start, "end": end, "execution_time": end}
    said = ""
    for model in context.models.values():
        if not model.is_sql:
            continue
        texts = [model.render_query_or_raise(**time), *model.render_post_statements(**time)]
        texts += [model.render_audit_query(audit, **time, **args) for audit, args in model.audits_with_args]
        for text in texts:
            written = text.sql("databricks")
            assert sqlglot.parse_one(written, dialect="databricks").sql("databricks") == written
            said += written
    return said
