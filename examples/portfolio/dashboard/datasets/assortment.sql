-- Items that were for sale, and those that sold, by day
SELECT
  sale_date,
  COUNT(*) AS items,
  COUNT(CASE WHEN quantity > 0 THEN 1 END) AS items_sold,
  SUM(revenue_eur) AS revenue_eur,
  SUM(refunded_eur) AS refunded_eur
FROM gold.item_day
GROUP BY sale_date
