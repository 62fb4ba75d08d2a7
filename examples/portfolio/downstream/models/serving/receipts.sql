MODEL (
  name serving.receipts,
  description 'A row for each receipt, with its items as an array, by line (structs are ordered by their first field): for whoever shows a receipt, or asks what is bought together.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sold_at,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain transaction_id,
  clustered_by (sold_at, store_id),
  audits (
    unique_values(columns := (transaction_id))
  )
);

SELECT
  transaction_id,
  store_id,
  store_country,
  sold_at,
  CAST(COUNT(*) AS BIGINT) AS lines,
  CAST(SUM(amount_eur) AS DECIMAL(18, 2)) AS revenue_eur,
  SORT_ARRAY(
    COLLECT_LIST(
      STRUCT(
        line_no AS line_no,
        item_id AS item_id,
        category AS category,
        quantity AS quantity,
        amount_eur AS amount_eur
      )
    )
  ) AS items
FROM gold.sold_items
WHERE
  sold_at BETWEEN @start_dt AND @end_dt
GROUP BY
  transaction_id,
  store_id,
  store_country,
  sold_at
