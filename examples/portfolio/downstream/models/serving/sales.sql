MODEL (
  name serving.sales,
  description 'One big table: each sold line with everything about it, for questions that nobody has thought of yet. No join is left to whoever asks.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sold_at,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain (transaction_id, line_no),
  -- Databricks chooses the columns by what is asked: nobody can know it here.
  clustered_by AUTO,
  physical_properties (
    'delta.deletedFileRetentionDuration' = 'interval 7 days'
  ),
  audits (
    unique_combination_of_columns(columns := (transaction_id, line_no)),
    not_null(columns := (store_country, sale_date))
  )
);

SELECT
  transaction_id,
  line_no,
  receipt_no,
  item_key,
  customer_key,
  store_id,
  date_key,
  channel,
  quantity,
  unit_price,
  discount,
  amount,
  currency,
  amount_eur,
  sold_at,
  item_id,
  item_name,
  category,
  store_name,
  store_country,
  sale_date,
  customer_country,
  segment,
  customer_id
FROM gold.sold_items
WHERE
  sold_at BETWEEN @start_dt AND @end_dt
