MODEL (
  name bronze.customer_versions,
  description 'Versions of the customers as they are in the source, by the time from which they hold.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (customer_id, updated_at),
  audits (
    not_null(columns := (customer_id))
  )
);

SELECT
  customer_id,
  name,
  email,
  city,
  country,
  segment,
  CAST(updated_at AS TIMESTAMP) AS updated_at,
  CAST(loaded_at AS TIMESTAMP) AS loaded_at
FROM source.shop.customer_versions
WHERE
  updated_at BETWEEN @start_dt AND @end_dt
