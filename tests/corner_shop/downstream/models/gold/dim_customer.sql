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
  -- Only whole hours, so that a refresh at 04:17 gives what it would have given at 04:00: the end of the interval that
  -- SQLMesh records, for which it offers a FULL model no @end_dt. Not DATE_TRUNC: SQLGlot 30.8 fails when it simplifies it.
  DATE_FORMAT(updated_at, 'yyyyMMddHH') < DATE_FORMAT(@execution_dt, 'yyyyMMddHH')
