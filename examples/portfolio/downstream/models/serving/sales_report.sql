MODEL (
  name serving.sales_report,
  description 'What the sales report filters by, with its measures computed. Distinct customers cannot be added up over hours, so there is a sketch of them, which can be merged.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sale_hour,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain (sale_hour, store_country, category),
  -- The report's filters.
  clustered_by (sale_date, store_country, category),
  physical_properties (
    'delta.deletedFileRetentionDuration' = 'interval 7 days'
  ),
  audits (
    unique_combination_of_columns(columns := (sale_hour, store_country, category))
  )
);

SELECT
  DATE_TRUNC('HOUR', sold_at) AS sale_hour,
  sale_date,
  store_country,
  category,
  CAST(COUNT(DISTINCT transaction_id) AS BIGINT) AS receipts,
  CAST(COUNT(*) AS BIGINT) AS lines,
  CAST(SUM(quantity) AS BIGINT) AS quantity,
  CAST(SUM(amount_eur) AS DECIMAL(18, 2)) AS revenue_eur,
  @distinct_sketch(customer_id, @sketch_size) AS customers_sketch
FROM serving.sales
WHERE
  sold_at BETWEEN @start_dt AND @end_dt
GROUP BY
  1,
  2,
  3,
  4
