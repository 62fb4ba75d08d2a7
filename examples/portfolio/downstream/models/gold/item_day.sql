MODEL (
  name gold.item_day,
  description 'A periodic snapshot: each item at the end of each day, also those that nobody bought. Sales of unknown items are not in it.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sale_date,
    partition_by_time_column FALSE,
    batch_size 31
  ),
  cron '@daily',
  grain (sale_date, item_id),
  clustered_by (sale_date, item_id),
  audits (
    unique_combination_of_columns(columns := (sale_date, item_id))
  )
);

WITH sold AS (
  SELECT
    CAST(sales.sold_at AS DATE) AS sale_date,
    items.item_id,
    SUM(sales.quantity) AS quantity,
    SUM(sales.amount_eur) AS revenue_eur
  FROM gold.fact_sales AS sales
  JOIN gold.dim_item AS items
    ON sales.item_key = items.item_key
  WHERE
    sales.sold_at BETWEEN @start_dt AND @end_dt
  GROUP BY
    1,
    2
), refunded AS (
  SELECT
    CAST(refunds.refunded_at AS DATE) AS sale_date,
    items.item_id,
    SUM(refunds.amount_eur) AS refunded_eur
  FROM gold.fact_refunds AS refunds
  JOIN gold.dim_item AS items
    ON refunds.item_key = items.item_key
  WHERE
    refunds.refunded_at BETWEEN @start_dt AND @end_dt
  GROUP BY
    1,
    2
)
SELECT
  dates.date AS sale_date,
  items.item_id,
  items.list_price AS price_at_end_of_day,
  CAST(COALESCE(sold.quantity, 0) AS BIGINT) AS quantity,
  CAST(COALESCE(sold.revenue_eur, 0) AS DECIMAL(18, 2)) AS revenue_eur,
  CAST(COALESCE(refunded.refunded_eur, 0) AS DECIMAL(18, 2)) AS refunded_eur
FROM gold.dim_date AS dates
JOIN gold.dim_item AS items
  ON items.valid_from < DATE_ADD(dates.date, 1)
  AND (
    items.valid_to IS NULL OR items.valid_to >= DATE_ADD(dates.date, 1)
  )
LEFT JOIN sold
  ON sold.sale_date = dates.date AND sold.item_id = items.item_id
LEFT JOIN refunded
  ON refunded.sale_date = dates.date AND refunded.item_id = items.item_id
WHERE
  dates.date BETWEEN @start_date AND @end_date
