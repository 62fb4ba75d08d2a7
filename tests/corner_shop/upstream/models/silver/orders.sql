MODEL (
  name silver.orders,
  description 'One row per transaction: its latest delivery, with the amount in euro.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column occurred_at,
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain transaction_id,
  audits (
    unique_values(columns := (transaction_id)),
    not_null(columns := (amount_eur))
  )
);

WITH ranked AS (
  SELECT
    *,
    -- Every delivery of a transaction carries the time of the sale, so all of them are in one interval, and the
    -- result does not depend on how many intervals are computed together.
    ROW_NUMBER() OVER (PARTITION BY transaction_id ORDER BY loaded_at DESC, delivery_id DESC) AS newest_first
  FROM bronze.transactions
  WHERE
    occurred_at BETWEEN @start_dt AND @end_dt
)
SELECT
  ranked.transaction_id,
  ranked.customer_id,
  ranked.item_id,
  ranked.quantity,
  ranked.amount,
  ranked.currency,
  CAST(ranked.amount * currencies.euro_per_unit AS DECIMAL(12, 2)) AS amount_eur,
  ranked.status,
  ranked.occurred_at,
  ranked.loaded_at
FROM ranked
LEFT JOIN bronze.currencies AS currencies
  ON ranked.currency = currencies.currency
WHERE
  ranked.newest_first = 1
