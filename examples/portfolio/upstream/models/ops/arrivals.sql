MODEL (
  name ops.arrivals,
  description 'What each tick saw arrive: receipts, changes of earlier ones, and how late the latest receipt was. Unmanaged, because it is an observation: appended once, and never made again, not even where the source is repaired later.',
  kind INCREMENTAL_UNMANAGED,
  cron '*/5 * * * *',
  grain interval_start
);

WITH slots AS (
  SELECT
    EXPLODE(SEQUENCE(CAST(@start_dt AS TIMESTAMP), CAST(@end_dt AS TIMESTAMP), INTERVAL '5' MINUTES)) AS interval_start
), noted AS (
  SELECT
    @five_minutes(updated_at) AS slot,
    created_at,
    CASE WHEN @five_minutes(created_at) = @five_minutes(updated_at) THEN @seconds_between(occurred_at, created_at) END AS lateness_seconds
  FROM bronze.transactions
  WHERE
    updated_at BETWEEN @start_dt AND @end_dt
)
SELECT
  slots.interval_start,
  CAST(COUNT(noted.lateness_seconds) AS BIGINT) AS receipts,
  CAST(MAX(noted.lateness_seconds) AS BIGINT) AS latest_lateness_seconds,
  CAST(COUNT(noted.created_at) - COUNT(noted.lateness_seconds) AS BIGINT) AS changes
FROM slots
LEFT JOIN noted
  ON slots.interval_start = noted.slot
GROUP BY
  slots.interval_start
