MODEL (
  name bronze.currencies,
  description 'Fixed rates of the currencies that the tills accept.',
  kind SEED (
    path '../../seeds/currencies.csv'
  ),
  columns (
    currency STRING,
    euro_per_unit DECIMAL(9, 6)
  ),
  grain currency,
  audits (
    unique_values(columns := (currency))
  )
)
