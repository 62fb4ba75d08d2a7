-- Sales by day, country and item
-- An item that was renamed during a day is one item: under its newest name.
SELECT
  sale_date,
  store_country,
  item_id,
  MAX_BY(item_name, sold_at) AS item,
  MAX_BY(category, sold_at) AS category,
  SUM(quantity) AS quantity,
  SUM(amount_eur) AS revenue_eur
FROM serving.sales
GROUP BY sale_date, store_country, item_id
