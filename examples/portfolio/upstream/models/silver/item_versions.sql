MODEL (
  name silver.item_versions,
  description 'One row per version of an item: what was entered last. Versions, not validity: the end of one depends on the next, which may be of another interval; gold.dim_item finds it.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (item_id, updated_at),
  audits (
    unique_combination_of_columns(columns := (item_id, updated_at)),
    versions_are_entered_in_time
  )
);

WITH ranked AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY item_id, updated_at ORDER BY loaded_at DESC) AS newest_first
  FROM bronze.item_versions
  WHERE
    updated_at BETWEEN @start_dt AND @end_dt
)
SELECT
  item_id,
  name,
  description,
  category,
  list_price,
  updated_at,
  loaded_at
FROM ranked
WHERE
  newest_first = 1
