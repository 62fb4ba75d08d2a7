-- Different customers since the beginning
SELECT HLL_SKETCH_ESTIMATE(HLL_UNION_AGG(customers_sketch)) AS customers
FROM serving.sales_report
