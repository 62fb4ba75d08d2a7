MODEL (
  name gold.store_day,
  description 'Sales per day and store. By partition: each hour the last five days are replaced as wholes, which is less to remember than which of them changed, and covers the longest that a sale is late or changes. For older days somebody has to ask.',
  kind INCREMENTAL_BY_PARTITION,
  partitioned_by sale_date,
  cron '@hourly',
  grain (sale_date, store_id),
  audits (
    unique_combination_of_columns(columns := (sale_date, store_id))
  )
);

SELECT
  CAST(sold_at AS DATE) AS sale_date,
  store_id,
  CAST(COUNT(DISTINCT transaction_id) AS BIGINT) AS receipts,
  CAST(COUNT(*) AS BIGINT) AS lines,
  CAST(SUM(quantity) AS BIGINT) AS quantity,
  CAST(SUM(amount_eur) AS DECIMAL(18, 2)) AS revenue_eur
FROM gold.fact_sales
WHERE
  sold_at >= DATE_SUB(@start_date, 4) AND sold_at <= @end_dt
GROUP BY
  1,
  2
