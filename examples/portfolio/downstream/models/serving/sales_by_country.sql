MODEL (
  name serving.sales_@{country},
  description 'The sales of one country, for whoever may see only these: rights are given on the view, not on the table. One file makes one view for each country.',
  kind VIEW,
  cron '@hourly',
  blueprints ((country := DE), (country := FR), (country := GB)),
  grain (transaction_id, line_no)
);

SELECT
  *
FROM serving.sales
WHERE
  store_country = @'@{country}'
