MODEL (
  name silver.stores,
  description 'Every version of every store, as it was seen. SCD type 2 by column, because the list has no instant of change to be trusted: the table remembers what the source forgets. Hourly, which is soon enough for a store.',
  kind SCD_TYPE_2_BY_COLUMN (
    unique_key store_id,
    columns [name, city, country, currency]
  ),
  cron '@hourly',
  grain (store_id, valid_from),
  audits (
    not_null(columns := (store_id, valid_from))
  )
);

SELECT
  store_id,
  name,
  city,
  country,
  currency
FROM bronze.stores
