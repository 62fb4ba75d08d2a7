"""Items of receipts once as rows and once as arrays: what the same five questions read and take, on Parquet through DuckLake.

The two tables hold the same, in the order in which it was sold: `rows` has a row for each item and repeats the receipt in it, as serving.sales
does, with the columns that are compared alone; `arrays` is serving.receipts. Each question is asked on a connection of its own without DuckDB's cache of
files; bytes are those that the process reads meanwhile, by Linux's own count.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import duckdb

MAKE = """
CREATE TABLE lake.rows AS
WITH receipts AS (
    SELECT number, 'T' || lpad(number::varchar, 12, '0') AS transaction_id,
        TIMESTAMP '2026-01-05' + to_milliseconds(number * 1000 * 86400 * 30 // {receipts}) AS sold_at,
        'S' || (hash(number, 1) % 7) AS store_id,
        ['DE', 'DE', 'DE', 'FR', 'GB', 'ES', 'NL'][1 + (hash(number, 1) % 7)::int] AS store_country,
        [1, 1, 1, 2, 2, 3, 4][1 + (hash(number, 2) % 7)::int] AS lines
    FROM range({receipts}) AS t(number)
)
SELECT transaction_id, store_id, store_country, sold_at, line_no::int AS line_no,
    'I' || lpad((hash(number, line_no) % 400)::varchar, 5, '0') AS item_id,
    ['toys', 'books', 'kitchen', 'garden', 'stationery', 'clothes'][1 + (hash(number, line_no) % 400 % 6)::int] AS category,
    (1 + hash(number, line_no, 3) % 5)::int AS quantity,
    (1 + hash(number, line_no, 4) % 9000 / 100)::decimal(12, 2) AS amount_eur
FROM receipts, unnest(range(1, lines + 1)) AS l(line_no)
ORDER BY sold_at, transaction_id, line_no;
CREATE TABLE lake.arrays AS
SELECT transaction_id, store_id, store_country, sold_at, count(*) AS lines, sum(amount_eur)::decimal(18, 2) AS revenue_eur,
    list({{'line_no': line_no, 'item_id': item_id, 'category': category, 'quantity': quantity, 'amount_eur': amount_eur}} ORDER BY line_no) AS items
FROM lake.rows GROUP BY ALL ORDER BY sold_at, transaction_id;
"""
ITEMS = "lake.arrays, unnest(items) AS u(item)"
ONE = "transaction_id = 'T' || lpad(({receipts} // 3)::varchar, 12, '0')"
PAIRED = "lake.arrays, unnest(items) AS a(item), unnest(items) AS b(item)"
QUESTIONS = {
    "revenue by country and day": (
        "SELECT store_country, sold_at::date, sum(amount_eur) FROM lake.rows GROUP BY ALL",
        "SELECT store_country, sold_at::date, sum(revenue_eur) FROM lake.arrays GROUP BY ALL",
    ),
    "receipts by country and day": (
        "SELECT store_country, sold_at::date, count(DISTINCT transaction_id) FROM lake.rows GROUP BY ALL",
        "SELECT store_country, sold_at::date, count(*) FROM lake.arrays GROUP BY ALL",
    ),
    "revenue by category": (
        "SELECT category, sum(amount_eur) FROM lake.rows GROUP BY ALL",
        f"SELECT item.category, sum(item.amount_eur) FROM {ITEMS} GROUP BY ALL",
    ),
    "one receipt with its items": (
        f"SELECT line_no, item_id, quantity, amount_eur FROM lake.rows WHERE {ONE}",
        f"SELECT i.line_no, i.item_id, i.quantity, i.amount_eur FROM (SELECT unnest(items) AS i FROM lake.arrays WHERE {ONE})",
    ),
    "pairs bought together": (
        "SELECT a.item_id, b.item_id, count(*) FROM lake.rows a JOIN lake.rows b USING (transaction_id) WHERE a.line_no < b.line_no GROUP BY ALL",
        f"SELECT a.item.item_id, b.item.item_id, count(*) FROM {PAIRED} WHERE a.item.line_no < b.item.line_no GROUP BY ALL",
    ),
}
"""Each asked of the rows, and of the arrays."""


def opened(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection with the lake."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "portfolio"))
    from lakehouse import import_extensions

    import_extensions()
    connection = duckdb.connect()
    connection.execute(
        "LOAD ducklake; SET enable_external_file_cache = false; SET enable_progress_bar = false"
    )
    connection.execute(f"ATTACH 'ducklake:{folder}/catalog.db' AS lake (DATA_PATH '{folder}/data')")
    return connection


def read_by_now() -> int:
    """How many bytes this process has asked the system for; its page cache is behind that."""
    (line,) = [text for text in Path("/proc/self/io").read_text().splitlines() if text.startswith("rchar")]
    return int(line.split()[1])


def measured(folder: Path, query: str, times: int) -> tuple[int, float, list[tuple[object, ...]]]:
    """Bytes read, the median of the seconds taken, and the answer."""
    seconds, read, answer = [], 0, []
    for _ in range(times):
        with opened(folder) as connection:
            # What attaching and the catalogue read comes before.
            connection.execute("SELECT count(*) FROM lake.rows; SELECT count(*) FROM lake.arrays")
            before, started = read_by_now(), time.perf_counter()
            answer = sorted(connection.execute(query).fetchall())
            seconds.append(time.perf_counter() - started)
            read = read_by_now() - before
    return read, statistics.median(seconds), answer


def main(receipts: int = 1_000_000, times: int = 7) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder) as connection:
            connection.execute(MAKE.format(receipts=receipts))
            files = {
                table: connection.execute(
                    f"SELECT sum(data_file_size_bytes) FROM ducklake_list_files('lake', '{table}')"
                ).fetchone()
                for table in ("rows", "arrays")
            }
            (lines,) = connection.execute("SELECT count(*) FROM lake.rows").fetchone() or (0,)
        print(f"{receipts:,} receipts, {lines:,} items; median of {times}\n")
        print("| | rows: read | arrays: read | rows: time | arrays: time |\n|---|---:|---:|---:|---:|")
        total = [(found or (0,))[0] / 1e6 for found in files.values()]
        print(f"| the table on disk | {total[0]:.1f} MB | {total[1]:.1f} MB | | |")
        for question, queries in QUESTIONS.items():
            (read, took, said), (less, took_less, same) = (
                measured(folder, query.format(receipts=receipts), times) for query in queries
            )
            if said != same:
                raise SystemExit(f"{question}: the two tables answer differently")
            print(
                f"| {question} | {read / 1e6:.1f} MB | {less / 1e6:.1f} MB | {took * 1e3:.0f} ms | {took_less * 1e3:.0f} ms |"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
