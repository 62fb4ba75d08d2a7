MODEL (
  name silver.judged_lines,
  description 'Each line of a receipt with its head, and the reason why it cannot be used, if there is one. Embedded, because both tables that read it must judge alike, and nobody else needs it.',
  kind EMBEDDED
);

WITH heads AS (
  SELECT
    *,
    -- A receipt that is sent twice has two ids, one number and one time: so both are in one interval, whatever the batch.
    ROW_NUMBER() OVER (PARTITION BY receipt_no, occurred_at ORDER BY created_at, transaction_id) AS delivery
  FROM bronze.transactions
  WHERE
    occurred_at BETWEEN @start_dt AND @end_dt
)
SELECT
  lines.transaction_id,
  lines.line_no,
  heads.receipt_no,
  heads.store_id,
  heads.customer_id,
  heads.channel,
  heads.status,
  lines.item_id,
  lines.quantity,
  lines.unit_price,
  lines.discount,
  lines.amount,
  COALESCE(heads.currency, stores.currency) AS currency,
  lines.occurred_at,
  GREATEST(heads.updated_at, lines.updated_at) AS updated_at,
  CASE
    WHEN heads.delivery > 1
    THEN 'sent twice'
    WHEN lines.quantity IS NULL
    THEN 'no quantity'
    WHEN lines.amount IS NULL OR lines.amount <= 0
    THEN 'no amount'
  END AS reason
FROM bronze.line_items AS lines
JOIN heads
  ON lines.transaction_id = heads.transaction_id
LEFT JOIN bronze.stores AS stores
  ON heads.store_id = stores.store_id
WHERE
  lines.occurred_at BETWEEN @start_dt AND @end_dt
