MODEL (
  name gold.fact_refunds,
  description 'What was given back, with what was known of the line when it was sold. A refund of a line that is not in silver (quarantined) has the item unknown, and nothing of the sale.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column refunded_at,
    partition_by_time_column FALSE,
    -- A late sale makes the refunds of five days after it stale: all of them at once.
    batch_size 168
  ),
  cron '@hourly',
  grain refund_id,
  references (item_key, store_id),
  audits (
    unique_values(columns := (refund_id)),
    not_null(columns := (item_key)),
    sale_is_known
  )
);

SELECT
  refunds.refund_id,
  refunds.transaction_id,
  refunds.line_no,
  COALESCE(items.item_key, 'unknown') AS item_key,
  lines.store_id,
  refunds.quantity,
  CAST(ROUND(refunds.amount * currencies.euro_per_unit, 2) AS DECIMAL(12, 2)) AS amount_eur,
  refunds.reason,
  lines.occurred_at AS sold_at,
  refunds.refunded_at
FROM silver.refunds AS refunds
LEFT JOIN silver.order_lines AS lines
  ON refunds.transaction_id = lines.transaction_id
  AND refunds.line_no = lines.line_no
  -- The first keeps the result from depending on the batch, the second keeps the engine from reading all sales.
  AND lines.occurred_at BETWEEN refunds.refunded_at - INTERVAL '5' DAY AND refunds.refunded_at
  AND lines.occurred_at BETWEEN @start_dt - INTERVAL '5' DAY AND @end_dt
LEFT JOIN bronze.currencies AS currencies
  ON lines.currency = currencies.currency
LEFT JOIN gold.dim_item AS items
  ON lines.item_id = items.item_id
  AND lines.occurred_at >= items.valid_from
  AND (
    items.valid_to IS NULL OR lines.occurred_at < items.valid_to
  )
WHERE
  refunds.refunded_at BETWEEN @start_dt AND @end_dt
