MODEL (
  name silver.customers,
  description 'The register of customers as it is now. By unique key, because each five minutes bring few customers of many, and a merge touches these only. Forward only: a change of the model goes on from the rows that are there.',
  kind INCREMENTAL_BY_UNIQUE_KEY (
    unique_key customer_id,
    forward_only TRUE
  ),
  cron '*/5 * * * *',
  grain customer_id,
  audits (
    unique_values(columns := (customer_id)),
    number_of_rows(threshold := 1)
  )
);

WITH told AS (
  -- By when it was entered, not by when it begins to hold: a version that comes late is news now. From an hour before, as a row is
  -- stamped before it is committed: merged again, a customer stays what they are.
  SELECT DISTINCT
    customer_id
  FROM silver.customer_versions
  WHERE
    loaded_at BETWEEN @start_dt - INTERVAL '1' HOUR AND @end_dt
), ranked AS (
  SELECT
    versions.*,
    ROW_NUMBER() OVER (PARTITION BY versions.customer_id ORDER BY versions.updated_at DESC) AS newest_first
  FROM silver.customer_versions AS versions
  JOIN told
    ON versions.customer_id = told.customer_id
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
  newest_first = 1;

-- What is merged into every five minutes outgrows its statistics, and every hour's lookup of customers is planned by them.
@analyzed_daily(@this_model, @start_dt)
