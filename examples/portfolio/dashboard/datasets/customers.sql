-- Different customers by day and country
-- Customers of two countries or days must not be added up either: sketches are merged, and then estimated.
SELECT
  sale_date,
  CASE WHEN GROUPING(store_country) = 1 THEN 'all' ELSE store_country END AS country,
  HLL_SKETCH_ESTIMATE(HLL_UNION_AGG(customers_sketch)) AS customers
FROM serving.sales_report
GROUP BY GROUPING SETS ((sale_date), (sale_date, store_country))
