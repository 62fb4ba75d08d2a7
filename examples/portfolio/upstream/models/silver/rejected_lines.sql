MODEL (
  name silver.rejected_lines,
  description 'Quarantine: the lines that silver.order_lines leaves out, each with the reason, so that nothing is lost in silence.',
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
    receipts_are_sent_once
  )
);

SELECT
  transaction_id,
  line_no,
  reason,
  occurred_at
FROM silver.judged_lines
WHERE
  NOT reason IS NULL AND occurred_at BETWEEN @start_dt AND @end_dt
