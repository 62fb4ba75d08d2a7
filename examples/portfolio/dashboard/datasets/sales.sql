-- Sales by hour, country and category
-- A receipt with items of two categories is in both: `receipts` must not be added up over categories.
SELECT sale_hour, sale_date, store_country, category, receipts, lines, quantity, revenue_eur
FROM serving.sales_report
