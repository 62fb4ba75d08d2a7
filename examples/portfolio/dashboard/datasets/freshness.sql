-- How far behind the newest row of each table is
-- Measured against the last tick of upstream, not against the clock: when that itself is old, `last_tick` says so.
WITH newest AS (
  SELECT 1 AS place, 'receipts as the tills wrote them' AS what, 'bronze.transactions' AS table_name, MAX(occurred_at) AS newest
  FROM bronze.transactions
  UNION ALL
  SELECT 2, 'receipt lines, cleaned', 'silver.order_lines', MAX(occurred_at) FROM silver.order_lines
  UNION ALL
  SELECT 3, 'sales for analysis', 'gold.fact_sales', MAX(sold_at) FROM gold.fact_sales
  UNION ALL
  SELECT 4, 'sales as reports read them', 'serving.sales', MAX(sold_at) FROM serving.sales
), tick AS (
  SELECT MAX(interval_start) + INTERVAL 5 MINUTES AS last_tick FROM ops.arrivals
)
SELECT
  n.place,
  n.what,
  n.table_name,
  n.newest,
  t.last_tick,
  TIMESTAMPDIFF(SECOND, DATE_TRUNC('SECOND', n.newest), t.last_tick) / 60 AS minutes_behind
FROM newest AS n
CROSS JOIN tick AS t
ORDER BY n.place
