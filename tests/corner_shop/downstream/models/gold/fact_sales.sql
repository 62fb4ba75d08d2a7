MODEL (
  name gold.fact_sales,
  description 'Completed sales with the item and the customer as they were at the time of the sale.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column sold_at,
    partition_by_time_column FALSE,
    batch_size 24
  ),
  cron '@hourly',
  grain transaction_id,
  references (item_key, customer_key),
  audits (
    unique_values(columns := (transaction_id)),
    members_are_known
  )
);

SELECT
  orders.transaction_id,
  COALESCE(items.item_key, 'unknown') AS item_key,
  COALESCE(customers.customer_key, 'unknown') AS customer_key,
  orders.quantity,
  orders.amount,
  orders.currency,
  orders.amount_eur,
  orders.occurred_at AS sold_at
FROM silver.orders AS orders
LEFT JOIN gold.dim_item AS items
  ON orders.item_id = items.item_id
  AND orders.occurred_at >= items.valid_from
  AND (
    items.valid_to IS NULL OR orders.occurred_at < items.valid_to
  )
LEFT JOIN gold.dim_customer AS customers
  ON orders.customer_id = customers.customer_id
  AND orders.occurred_at >= customers.valid_from
  AND (
    customers.valid_to IS NULL OR orders.occurred_at < customers.valid_to
  )
WHERE
  orders.occurred_at BETWEEN @start_dt AND @end_dt AND orders.status = 'completed'
