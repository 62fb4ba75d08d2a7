-- Money given back, by hour and reason
SELECT
  DATE_TRUNC('HOUR', refunded_at) AS refund_hour,
  CAST(refunded_at AS DATE) AS refund_date,
  reason,
  COUNT(*) AS refunds,
  SUM(quantity) AS quantity,
  SUM(amount_eur) AS refunded_eur
FROM gold.fact_refunds
GROUP BY DATE_TRUNC('HOUR', refunded_at), CAST(refunded_at AS DATE), reason
