-- Sales by day and store
SELECT d.sale_date, d.store_id, s.name AS store, s.city, s.country AS store_country, d.receipts, d.lines, d.quantity, d.revenue_eur
FROM gold.store_day AS d
LEFT JOIN gold.dim_store AS s ON s.store_id = d.store_id
