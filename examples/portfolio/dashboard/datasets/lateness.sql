-- Receipts that came late, by the hour in which they were sold
SELECT
  DATE_TRUNC('HOUR', slot) AS sale_hour,
  SUM(receipts) - SUM(late_receipts) AS in_time,
  SUM(late_receipts) AS late,
  MAX(max_lateness_seconds) / 60 AS latest_minutes
FROM ops.lateness
GROUP BY DATE_TRUNC('HOUR', slot)
