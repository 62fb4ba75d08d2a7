MODEL (
  name bronze.item_versions,
  description 'Versions of the items as they are in the source, by the time from which they hold; one that is entered late belongs to the past.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (item_id, updated_at),
  audits (
    not_null(columns := (item_id))
  )
);

SELECT
  item_id,
  name,
  description,
  category,
  CAST(list_price AS DECIMAL(12, 2)) AS list_price,
  CAST(updated_at AS TIMESTAMP) AS updated_at,
  CAST(loaded_at AS TIMESTAMP) AS loaded_at
FROM source.shop.item_versions
WHERE
  updated_at BETWEEN @start_dt AND @end_dt
