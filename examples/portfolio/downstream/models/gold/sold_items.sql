MODEL (
  name gold.sold_items,
  description 'Sales with what their keys stand for. Embedded: a piece of a query that several tables share, and no table itself.',
  kind EMBEDDED
);

SELECT
  sales.transaction_id,
  sales.line_no,
  sales.receipt_no,
  sales.item_key,
  sales.customer_key,
  sales.store_id,
  sales.date_key,
  sales.channel,
  sales.quantity,
  sales.unit_price,
  sales.discount,
  sales.amount,
  sales.currency,
  sales.amount_eur,
  sales.sold_at,
  COALESCE(items.item_id, 'unknown') AS item_id,
  COALESCE(items.name, 'unknown') AS item_name,
  COALESCE(items.category, 'unknown') AS category,
  stores.name AS store_name,
  stores.country AS store_country,
  dates.date AS sale_date,
  customers.country AS customer_country,
  customers.segment,
  customers.customer_id
FROM gold.fact_sales AS sales
LEFT JOIN gold.dim_item AS items
  ON sales.item_key = items.item_key
LEFT JOIN gold.dim_store AS stores
  ON sales.store_id = stores.store_id
LEFT JOIN gold.dim_date AS dates
  ON sales.date_key = dates.date_key
LEFT JOIN gold.dim_customer AS customers
  ON sales.customer_key = customers.customer_key
