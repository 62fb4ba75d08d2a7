MODEL (
  name gold.sales_by_category_hour,
  description 'Sales per hour and category.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sale_hour,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain (sale_hour, category),
  audits (
    unique_combination_of_columns(columns := (sale_hour, category))
  )
);

SELECT
  DATE_TRUNC('HOUR', sales.sold_at) AS sale_hour,
  COALESCE(items.category, 'unknown') AS category,
  CAST(COUNT(*) AS BIGINT) AS sales,
  CAST(SUM(sales.quantity) AS BIGINT) AS quantity,
  CAST(SUM(sales.amount_eur) AS DECIMAL(18, 2)) AS revenue_eur
FROM gold.fact_sales AS sales
LEFT JOIN gold.dim_item AS items
  ON sales.item_key = items.item_key
WHERE
  sales.sold_at BETWEEN @start_dt AND @end_dt
GROUP BY
  1,
  2
