MODEL (
  name serving.current_items,
  description 'The catalogue as it is now.',
  kind VIEW,
  cron '@hourly',
  grain item_id
);

SELECT
  item_key,
  item_id,
  name,
  description,
  category,
  list_price,
  valid_from
FROM gold.dim_item
WHERE
  valid_to IS NULL
