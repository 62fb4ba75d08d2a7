MODEL (
  name bronze.customers,
  description 'Versions of the customers as they are in the source, by the time from which they hold.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column updated_at,
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain delivery_id,
  audits (
    not_null(columns := (customer_id, name))
  )
);

SELECT
  delivery_id,
  customer_id,
  name,
  country,
  segment,
  CAST(updated_at AS TIMESTAMP) AS updated_at,
  CAST(loaded_at AS TIMESTAMP) AS loaded_at
FROM source.public.customers
WHERE
  updated_at BETWEEN @start_dt AND @end_dt
