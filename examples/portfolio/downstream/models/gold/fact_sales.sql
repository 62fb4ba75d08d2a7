MODEL (
  name gold.fact_sales,
  description 'What was sold, a row for each line of a receipt, with the item and the customer as they were at the time of the sale. By time range: a late sale has its own hour computed again, and nothing else.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sold_at,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain (transaction_id, line_no),
  clustered_by (sold_at, item_key),
  physical_properties (
    'delta.deletedFileRetentionDuration' = 'interval 7 days'
  ),
  references (item_key, customer_key, store_id, date_key),
  audits (
    unique_combination_of_columns(columns := (transaction_id, line_no)),
    forall(criteria := (quantity > 0, amount_eur > 0)),
    members_are_known
  )
);

SELECT
  lines.transaction_id,
  lines.line_no,
  lines.receipt_no,
  COALESCE(items.item_key, 'unknown') AS item_key,
  CASE
    WHEN lines.customer_id IS NULL
    THEN 'nobody'
    ELSE COALESCE(customers.customer_key, 'unknown')
  END AS customer_key,
  lines.store_id,
  CAST(DATE_FORMAT(lines.occurred_at, 'yyyyMMdd') AS INT) AS date_key,
  lines.channel,
  lines.quantity,
  lines.unit_price,
  lines.discount,
  lines.amount,
  lines.currency,
  lines.amount_eur,
  lines.occurred_at AS sold_at
FROM silver.order_lines AS lines
LEFT JOIN gold.dim_item AS items
  ON lines.item_id = items.item_id
  AND lines.occurred_at >= items.valid_from
  AND (
    items.valid_to IS NULL OR lines.occurred_at < items.valid_to
  )
LEFT JOIN gold.dim_customer AS customers
  ON lines.customer_id = customers.customer_id
  AND lines.occurred_at >= customers.valid_from
  AND (
    customers.valid_to IS NULL OR lines.occurred_at < customers.valid_to
  )
WHERE
  lines.occurred_at BETWEEN @start_dt AND @end_dt AND lines.status <> 'cancelled'
