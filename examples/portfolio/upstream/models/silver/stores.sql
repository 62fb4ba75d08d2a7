MODEL (
  name silver.stores,
  description 'Every version of every store, as it was seen.',
  kind SCD_TYPE_2_BY_COLUMN (
    unique_key store_id,
    columns [name, city, country, currency]
  ),
  cron '@hourly',
  grain (store_id, valid_from)
);

SELECT
  store_id,
  name,
  city,
  country,
  currency
FROM bronze.stores
