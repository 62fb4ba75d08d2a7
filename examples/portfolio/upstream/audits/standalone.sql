-- Audits of several tables at once. They belong to none of these, so SQLMesh runs them by themselves. None blocks.

-- Every line of bronze is in silver, once: used or rejected. Anything else is a defect of silver.judged_lines.
AUDIT (
  name silver_accounts_for_bronze,
  standalone TRUE,
  dialect databricks,
  cron '@hourly'
);

WITH silver AS (
  SELECT
    transaction_id,
    line_no
  FROM silver.order_lines
  WHERE
    occurred_at BETWEEN @start_dt AND @end_dt
  UNION ALL
  SELECT
    transaction_id,
    line_no
  FROM silver.rejected_lines
  WHERE
    occurred_at BETWEEN @start_dt AND @end_dt
)
SELECT
  bronze.transaction_id,
  bronze.line_no,
  COUNT(silver.transaction_id) AS times
FROM bronze.line_items AS bronze
LEFT JOIN silver
  ON bronze.transaction_id = silver.transaction_id AND bronze.line_no = silver.line_no
WHERE
  bronze.occurred_at BETWEEN @start_dt AND @end_dt
GROUP BY
  bronze.transaction_id,
  bronze.line_no
HAVING
  COUNT(silver.transaction_id) <> 1;

-- Does not block: gold calls them `unknown`, and looks them up again when they come.
AUDIT (
  name sales_name_what_exists,
  standalone TRUE,
  dialect databricks,
  cron '@hourly'
);

SELECT
  lines.transaction_id,
  lines.line_no,
  lines.item_id,
  lines.customer_id
FROM silver.order_lines AS lines
LEFT JOIN (
  SELECT DISTINCT
    item_id
  FROM silver.item_versions
) AS items
  ON lines.item_id = items.item_id
LEFT JOIN silver.customers AS customers
  ON lines.customer_id = customers.customer_id
WHERE
  lines.occurred_at BETWEEN @start_dt AND @end_dt
  AND (
    items.item_id IS NULL
    OR (
      NOT lines.customer_id IS NULL AND customers.customer_id IS NULL
    )
  );

-- An outage: nothing for a whole hour of the day. A burst: in one hour four times as much as in the hour before. Either may be true, so neither blocks.
AUDIT (
  name arrivals_are_as_usual,
  standalone TRUE,
  dialect databricks,
  cron '@hourly'
);

WITH hours AS (
  SELECT
    DATE_TRUNC('HOUR', interval_start) AS hour,
    SUM(receipts) AS receipts
  FROM ops.arrivals
  WHERE
    interval_start BETWEEN @start_dt - INTERVAL '1' HOUR AND @end_dt
  GROUP BY
    1
), beside AS (
  SELECT
    hour,
    receipts,
    LAG(receipts) OVER (ORDER BY hour) AS before
  FROM hours
)
SELECT
  *
FROM beside
WHERE
  hour BETWEEN @start_dt AND @end_dt
  AND (
    receipts = 0 OR (
      receipts >= 40 AND receipts > 4 * before
    )
  );

-- Somebody of the shop added a column: nothing breaks, since every column is named, and somebody of ours should know.
AUDIT (
  name source_has_no_new_columns,
  standalone TRUE,
  dialect databricks,
  cron '@hourly'
);

SELECT
  table_name,
  column_name
FROM source.information_schema.columns
WHERE
  table_schema = 'shop'
  AND table_name IN ('transactions', 'line_items', 'refunds', 'item_versions', 'customer_versions', 'stores')
  AND NOT column_name IN (
    'amount', 'category', 'channel', 'city', 'country', 'created_at', 'currency', 'customer_id', 'description', 'discount', 'email', 'item_id',
    'line_no', 'list_price', 'loaded_at', 'name', 'occurred_at', 'quantity', 'reason', 'receipt_no', 'refund_id', 'refunded_at', 'segment',
    'status', 'store_id', 'transaction_id', 'unit_price', 'updated_at'
  );
