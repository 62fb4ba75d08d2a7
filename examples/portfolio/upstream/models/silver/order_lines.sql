MODEL (
  name silver.order_lines,
  description 'Lines of receipts that can be used, each once, with the amount in euro. A time range: what comes late replaces its own five minutes.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column occurred_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (transaction_id, line_no),
  audits (
    unique_combination_of_columns(columns := (transaction_id, line_no)),
    not_null(columns := (store_id, item_id, amount_eur))
  )
);

SELECT
  lines.transaction_id,
  lines.line_no,
  lines.receipt_no,
  lines.store_id,
  lines.customer_id,
  lines.channel,
  lines.status,
  lines.item_id,
  lines.quantity,
  lines.unit_price,
  lines.discount,
  lines.amount,
  lines.currency,
  CAST(ROUND(lines.amount * currencies.euro_per_unit, 2) AS DECIMAL(12, 2)) AS amount_eur,
  lines.occurred_at,
  lines.updated_at
FROM silver.judged_lines AS lines
LEFT JOIN bronze.currencies AS currencies
  ON lines.currency = currencies.currency
WHERE
  lines.reason IS NULL AND lines.occurred_at BETWEEN @start_dt AND @end_dt
