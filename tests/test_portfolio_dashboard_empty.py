"""The portfolio's page where there is little to show: nothing deployed, nothing sold, and rows that lack something."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from test_portfolio_dashboard import NAMES, PORTFOLIO, sound

sys.path.insert(0, str(PORTFOLIO))

from dashboard import page, timeline
from lakehouse import Lakehouse

from meshgate.errors import MeshgateError, NotDeployedError, SchemaVersionError
from meshgate.mesh import Mesh
from meshgate.postgres_server import FSYNC_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

NOTHING: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES} | {
    "customers_ever": [{"customers": None}],
    "freshness": [
        {"what": "sales", "table_name": "t", "newest": None, "last_tick": None, "minutes_behind": None}
    ],
}
FEBRUARY = datetime(2026, 2, 1, 5)  # noqa: DTZ001 - as the datasets have it
ODD: dict[str, list[dict[str, Any]]] = NOTHING | {
    "sales": [{"sale_hour": FEBRUARY, "category": None, "revenue_eur": None}],
    # A store that is not in its dimension yet.
    "stores": [{"store": None, "city": None, "store_country": None, "receipts": 1, "revenue_eur": 3}],
    "items": [{"item": None, "category": None, "revenue_eur": 3}],
    "customers": [
        {"sale_date": FEBRUARY.date(), "country": country, "customers": None}
        for country in ("all", None, "DE")
    ],
    "returns": [{"refund_hour": FEBRUARY, "reason": None, "refunded_eur": 2}],
    "assortment": [{"sale_date": FEBRUARY.date(), "items": 0, "items_sold": 0}],
    "lateness": [{"sale_hour": FEBRUARY, "in_time": 0, "late": 0, "latest_minutes": None}],
}


@pytest.mark.parametrize("found", [NOTHING, ODD], ids=["nothing", "odd"])
def test_a_page_says_so_where_there_is_nothing(found: dict[str, list[dict[str, Any]]]) -> None:
    """Before the first sale, and with what a row may lack: words, and no `None`."""
    shown = sound(page.html(found, timeline.Timeline(None, {}, [], [], complete=True)))
    said = " ".join(shown.said)
    assert not re.search(r"\b(None|nan|inf)\b", said)
    assert "Nothing has been computed yet." in said
    assert said.count("Nothing yet.") == (10 if found is NOTHING else 6)
    assert ("unknown" in said) == (found is ODD)


@pytest.mark.portfolio
def test_a_page_of_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ledger yet; nothing deployed yet; no lake. With what to do, and without the password of the server."""
    monkeypatch.setenv(FSYNC_VARIABLE, "off")
    with Lakehouse.start(tmp_path / "lakehouse") as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SchemaVersionError, match="meshgate migrate"):
            page.write(started, tmp_path / "page")
        with Mesh.open(PORTFOLIO, check=False) as mesh:
            mesh.migrate()
        with pytest.raises(NotDeployedError, match="meshgate deploy"):
            page.write(started, tmp_path / "page")
        monkeypatch.setattr(timeline, "read", lambda _: timeline.Timeline(None, {}, [], [], complete=True))
        with pytest.raises(MeshgateError, match="the lake cannot be read") as refused:
            page.write(started, tmp_path / "page")
        assert started.server.password not in str(refused.value)
        assert not (tmp_path / "page").exists()
        started.destroy()
