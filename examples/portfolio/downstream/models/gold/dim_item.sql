MODEL (
  name gold.dim_item,
  description 'Every version of every item with the span in which it holds. Whatever the hour of the refresh, the row that holds at an earlier instant is the same.',
  kind FULL,
  cron '@hourly',
  grain item_key,
  audits (
    unique_values(columns := (item_key)),
    number_of_rows(threshold := 1)
  )
);

SELECT
  CONCAT(item_id, '@', DATE_FORMAT(updated_at, 'yyyyMMddHHmmss')) AS item_key,
  item_id,
  name,
  category,
  list_price,
  updated_at AS valid_from,
  LEAD(updated_at) OVER (PARTITION BY item_id ORDER BY updated_at) AS valid_to
FROM silver.items
WHERE
  -- As of the end of the refreshed interval, not of the moment at which the refresh happens to run.
  updated_at <= @end_dt
