MODEL (
  name ops.lateness,
  description 'How late the receipts of each five minutes reached the source. The lookback reads the last three hours again at each tick, which is as late as a till comes; the restatement every day reads the last day again. Both stand in for the watch of the sources where plain SQLMesh runs alone.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column slot,
    partition_by_time_column FALSE,
    batch_size 288,
    lookback 36,
    auto_restatement_cron '@daily',
    auto_restatement_intervals 288
  ),
  cron '*/5 * * * *',
  grain slot
);

SELECT
  @five_minutes(occurred_at) AS slot,
  CAST(COUNT(*) AS BIGINT) AS receipts,
  CAST(COUNT_IF(@seconds_between(occurred_at, created_at) > 300) AS BIGINT) AS late_receipts,
  CAST(MAX(@seconds_between(occurred_at, created_at)) AS BIGINT) AS max_lateness_seconds
FROM bronze.transactions
WHERE
  occurred_at BETWEEN @start_dt AND @end_dt
GROUP BY
  1
