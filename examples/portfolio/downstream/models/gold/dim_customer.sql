MODEL (
  name gold.dim_customer,
  description 'Every version of every customer with the span in which it holds. Whatever the hour of the refresh, the row that holds at an earlier instant is the same.',
  kind FULL,
  cron '@hourly',
  grain customer_key,
  audits (
    unique_values(columns := (customer_key)),
    number_of_rows(threshold := 1)
  )
);

SELECT
  CONCAT(customer_id, '@', DATE_FORMAT(updated_at, 'yyyyMMddHHmmss')) AS customer_key,
  customer_id,
  name,
  country,
  segment,
  updated_at AS valid_from,
  LEAD(updated_at) OVER (PARTITION BY customer_id ORDER BY updated_at) AS valid_to
FROM silver.customers
WHERE
  -- As of the end of the refreshed interval, not of the moment at which the refresh happens to run.
  updated_at <= @end_dt
