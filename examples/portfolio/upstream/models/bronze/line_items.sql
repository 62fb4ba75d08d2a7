MODEL (
  name bronze.line_items,
  description 'Lines of receipts as they are in the source, by the time of the sale, as the receipts are.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column occurred_at,
    -- Else the table is partitioned by the raw timestamp: one file per value.
    partition_by_time_column FALSE,
    batch_size 288
  ),
  cron '*/5 * * * *',
  grain (transaction_id, line_no),
  audits (
    not_null(columns := (transaction_id, line_no, item_id)),
    most_lines_are_usable,
    quantity_is_named,
    amount_is_positive
  )
);

SELECT
  transaction_id,
  CAST(line_no AS INT) AS line_no,
  item_id,
  CAST(quantity AS INT) AS quantity,
  CAST(unit_price AS DECIMAL(12, 2)) AS unit_price,
  CAST(discount AS DECIMAL(4, 2)) AS discount,
  CAST(amount AS DECIMAL(12, 2)) AS amount,
  CAST(occurred_at AS TIMESTAMP) AS occurred_at,
  CAST(created_at AS TIMESTAMP) AS created_at,
  CAST(updated_at AS TIMESTAMP) AS updated_at
FROM source.shop.line_items
WHERE
  occurred_at BETWEEN @start_dt AND @end_dt
