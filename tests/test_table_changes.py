"""What `docs/explanation/streaming.md` says of table changes, on DuckLake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")

HOURLY = "SELECT DATE_TRUNC('hour', ts), {count}, {total} FROM {rows} GROUP BY 1 ORDER BY 1"
ADDED = "change_type IN ('insert', 'update_postimage')"


class Lake:
    """Six hours of a row a minute, in a DuckLake of its own."""

    def __init__(self, folder: Path) -> None:
        self.connection = duckdb.connect()
        self.sql(
            f"LOAD ducklake; ATTACH 'ducklake:{folder}/catalog.db' AS lake (DATA_PATH '{folder}/data/'); USE lake"
        )
        self.sql("CREATE TABLE orders (id INT, ts TIMESTAMP, amount INT)")
        for hour in range(6):
            self.insert(hour)

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.connection.execute(text).fetchall()
        return found

    def insert(self, hour: int) -> None:
        rows = f"range({hour * 60}, {hour * 60 + 60})"
        self.sql(
            f"INSERT INTO orders SELECT i, TIMESTAMP '2026-01-05' + to_minutes(i::INT), 10 + i % 7 FROM {rows} AS r(i)"
        )

    def snapshot(self) -> int:
        return int(self.sql("SELECT id FROM ducklake_current_snapshot('lake')")[0][0])

    def changes(self, since: int = -1) -> str:
        return f"ducklake_table_changes('lake', 'main', 'orders', {since + 1}, {self.snapshot()})"

    def counted(self, since: int) -> dict[str, int]:
        return dict(self.sql(f"SELECT change_type, COUNT(*) FROM {self.changes(since)} GROUP BY 1"))


@pytest.fixture
def lake(tmp_path: Path, extensions: None) -> Iterator[Lake]:
    made = Lake(tmp_path)
    yield made
    made.connection.close()


def test_computing_an_hour_again_sends_all_of_its_rows(lake: Lake) -> None:
    """Also where each is what it was; a change in place is two."""
    before = lake.snapshot()
    lake.sql("BEGIN; DELETE FROM orders WHERE DATE_TRUNC('hour', ts) = TIMESTAMP '2026-01-05 02:00'")
    lake.insert(2)
    lake.sql("COMMIT")
    assert lake.counted(before) == {"insert": 60, "delete": 60}
    before = lake.snapshot()
    lake.sql("UPDATE orders SET amount = amount + 1 WHERE id = 7")
    assert lake.counted(before) == {"update_preimage": 1, "update_postimage": 1}


def test_compaction_sends_nothing_and_expiry_ends_the_stream(lake: Lake) -> None:
    """Files are others, rows are not; what has expired cannot be read any more."""
    before = lake.snapshot()
    lake.sql("CALL ducklake_flush_inlined_data('lake')")
    lake.sql("CALL ducklake_merge_adjacent_files('lake', 'orders')")
    assert lake.snapshot() > before
    assert lake.counted(before) == {}
    lake.sql("CALL ducklake_expire_snapshots('lake', older_than => now())")
    with pytest.raises(duckdb.Error, match="No snapshot found"):
        lake.sql(f"SELECT COUNT(*) FROM {lake.changes(0)}")


def test_sums_follow_from_changes_and_a_maximum_does_not(lake: Lake) -> None:
    """What can be taken away again can be kept up; what needs the other rows cannot."""
    lake.sql("UPDATE orders SET amount = amount + 1 WHERE id = 7")
    lake.sql("DELETE FROM orders WHERE amount = 16")
    sign = f"CASE WHEN {ADDED} THEN 1 ELSE -1 END"
    kept_up = lake.sql(
        HOURLY.format(count=f"SUM({sign})", total=f"SUM({sign} * amount)", rows=lake.changes())
    )
    assert kept_up == lake.sql(HOURLY.format(count="COUNT(*)", total="SUM(amount)", rows="orders"))
    assert lake.sql(f"SELECT MAX(amount) FROM {lake.changes()} WHERE {ADDED}") == [(16,)]
    assert lake.sql("SELECT MAX(amount) FROM orders") == [(15,)]
