MODEL (
  name bronze.currencies,
  description 'Fixed rates of the currencies that the tills accept. A seed, because they change with a commit, and are reviewed.',
  kind SEED (
    path '../../seeds/currencies.csv'
  ),
  -- With the default, @daily, it would be loaded only when its first whole day is over.
  cron '*/5 * * * *',
  columns (
    currency STRING,
    euro_per_unit DECIMAL(9, 6)
  ),
  grain currency,
  audits (
    unique_values(columns := (currency))
  )
)
