-- Receipt lines left out, by hour and reason
SELECT
  DATE_TRUNC('HOUR', occurred_at) AS sale_hour,
  reason,
  COUNT(*) AS lines
FROM silver.rejected_lines
GROUP BY DATE_TRUNC('HOUR', occurred_at), reason
