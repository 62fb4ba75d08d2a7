MODEL (
  name bronze.transactions,
  description 'Receipts as they are in the source, by the time of the sale. A time range, because a receipt belongs to the five minutes in which it happened, however late it comes or is changed: these are replaced as one.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column occurred_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain transaction_id,
  audits (
    not_null(columns := (transaction_id, receipt_no, store_id, status)),
    currency_is_named,
    receipts_come_in_time
  )
);

SELECT
  transaction_id,
  receipt_no,
  store_id,
  customer_id,
  channel,
  currency,
  status,
  CAST(occurred_at AS TIMESTAMP) AS occurred_at,
  CAST(created_at AS TIMESTAMP) AS created_at,
  CAST(updated_at AS TIMESTAMP) AS updated_at
FROM source.shop.transactions
WHERE
  occurred_at BETWEEN @start_dt AND @end_dt
