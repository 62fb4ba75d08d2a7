MODEL (
  name bronze.stores,
  description 'The list of stores as it is now. FULL, because it is tiny, and rows of it may go without a trace.',
  kind FULL,
  cron '*/5 * * * *',
  grain store_id,
  audits (
    not_null(columns := (store_id, currency)),
    unique_values(columns := (store_id))
  )
);

SELECT
  store_id,
  name,
  city,
  country,
  currency,
  CAST(created_at AS TIMESTAMP) AS created_at,
  CAST(updated_at AS TIMESTAMP) AS updated_at
FROM source.shop.stores
