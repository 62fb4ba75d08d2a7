MODEL (
  name gold.dim_store,
  description 'Stores as they are now. A view: seven rows, nothing to compute.',
  kind VIEW,
  cron '@hourly',
  grain store_id
);

SELECT
  store_id,
  name,
  city,
  country,
  currency
FROM silver.stores
WHERE
  valid_to IS NULL
