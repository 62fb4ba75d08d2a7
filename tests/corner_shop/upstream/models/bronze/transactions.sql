MODEL (
  name bronze.transactions,
  description 'Deliveries of the tills as they are in the source, by the time of the sale. A delivery that arrives late belongs to an interval that is recorded already: that interval has to be restated.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column occurred_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain delivery_id,
  audits (
    not_null(columns := (transaction_id, customer_id, item_id)),
    amount_is_positive,
    currency_is_known
  )
);

SELECT
  delivery_id,
  transaction_id,
  customer_id,
  item_id,
  CAST(quantity AS INT) AS quantity,
  CAST(amount AS DECIMAL(12, 2)) AS amount,
  currency,
  status,
  CAST(occurred_at AS TIMESTAMP) AS occurred_at,
  CAST(loaded_at AS TIMESTAMP) AS loaded_at
FROM source.public.transactions
WHERE
  occurred_at BETWEEN @start_dt AND @end_dt
