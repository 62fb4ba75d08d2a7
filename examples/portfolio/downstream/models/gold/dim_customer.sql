MODEL (
  name gold.dim_customer,
  description 'Customers as they were at the end of each hour, with the span in which that held. SCD type 2 by time: what is there is kept, and only what is new is added, so the history outlives the source. Of two changes in one hour the last one is kept, of a change that comes late only if none came after it.',
  kind SCD_TYPE_2_BY_TIME (
    unique_key customer_id,
    updated_at_name updated_at,
    -- Else a new customer would hold since 1970, and one who comes late since the hour in which we heard of them.
    updated_at_as_valid_from TRUE,
    -- Hour by hour: in one go a backfill would find only the last version of each customer, and earlier sales none.
    batch_size 1
  ),
  cron '@hourly',
  grain customer_key,
  audits (
    unique_values(columns := (customer_key)),
    spans_do_not_overlap(id := customer_id)
  )
);

WITH ranked AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY updated_at DESC) AS newest_first
  FROM silver.customer_versions
  WHERE
    updated_at <= @end_dt
)
SELECT
  @surrogate_key(customer_id, DATE_FORMAT(updated_at, 'yyyyMMddHHmmssSSSSSS')) AS customer_key,
  customer_id,
  name,
  email,
  city,
  country,
  segment,
  updated_at
FROM ranked
WHERE
  newest_first = 1
