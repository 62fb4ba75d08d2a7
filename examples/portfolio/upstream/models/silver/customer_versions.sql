MODEL (
  name silver.customer_versions,
  description 'One row per version of a customer: what was entered last.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (customer_id, updated_at),
  audits (
    unique_combination_of_columns(columns := (customer_id, updated_at)),
    versions_are_entered_in_time
  )
);

WITH ranked AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY customer_id, updated_at ORDER BY loaded_at DESC) AS newest_first
  FROM bronze.customer_versions
  WHERE
    updated_at BETWEEN @start_dt AND @end_dt
)
SELECT
  customer_id,
  name,
  email,
  city,
  country,
  segment,
  updated_at,
  loaded_at
FROM ranked
WHERE
  newest_first = 1
