MODEL (
  name silver.refunds,
  description 'Refunds of an amount, by the time at which the money was given back.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column refunded_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain refund_id,
  audits (
    unique_values(columns := (refund_id))
  )
);

SELECT
  refund_id,
  transaction_id,
  line_no,
  quantity,
  amount,
  reason,
  refunded_at
FROM bronze.refunds
WHERE
  refunded_at BETWEEN @start_dt AND @end_dt AND amount > 0
