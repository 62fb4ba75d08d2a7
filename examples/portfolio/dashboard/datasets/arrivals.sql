-- What reached the pipeline, by hour
SELECT
  DATE_TRUNC('HOUR', interval_start) AS arrival_hour,
  SUM(receipts) AS receipts,
  SUM(changes) AS changes,
  MAX(latest_lateness_seconds) / 60 AS latest_minutes,
  COUNT(*) AS ticks
FROM ops.arrivals
GROUP BY DATE_TRUNC('HOUR', interval_start)
