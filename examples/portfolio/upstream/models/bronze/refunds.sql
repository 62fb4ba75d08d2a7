MODEL (
  name bronze.refunds,
  description 'Refunds as they are in the source, by the time at which the money was given back.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column refunded_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain refund_id,
  audits (
    not_null(columns := (refund_id, transaction_id, line_no)),
    amount_is_positive
  )
);

SELECT
  refund_id,
  transaction_id,
  CAST(line_no AS INT) AS line_no,
  CAST(quantity AS INT) AS quantity,
  CAST(amount AS DECIMAL(12, 2)) AS amount,
  reason,
  CAST(refunded_at AS TIMESTAMP) AS refunded_at,
  CAST(created_at AS TIMESTAMP) AS created_at,
  CAST(updated_at AS TIMESTAMP) AS updated_at
FROM source.shop.refunds
WHERE
  refunded_at BETWEEN @start_dt AND @end_dt
