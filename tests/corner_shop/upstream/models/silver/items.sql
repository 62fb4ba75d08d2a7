MODEL (
  name silver.items,
  description 'One row per version of a item: its latest delivery.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (item_id, updated_at),
  audits (
    unique_combination_of_columns(columns := (item_id, updated_at))
  )
);

WITH ranked AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY item_id, updated_at ORDER BY loaded_at DESC, delivery_id DESC) AS newest_first
  FROM bronze.items
  WHERE
    updated_at BETWEEN @start_dt AND @end_dt
)
SELECT
  item_id,
  name,
  category,
  list_price,
  updated_at,
  loaded_at
FROM ranked
WHERE
  newest_first = 1
