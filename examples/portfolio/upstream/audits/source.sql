-- What single rows of the source lack. None of these blocks: the rest of the five minutes is right, and silver has an answer to each.

-- The store's own is used.
AUDIT (
  name currency_is_named,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  currency IS NULL;

-- The line goes to silver.rejected_lines, until the till sends the quantity.
AUDIT (
  name quantity_is_named,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  quantity IS NULL;

-- The line goes to silver.rejected_lines; money that is given back is a refund, with a table of its own.
AUDIT (
  name amount_is_positive,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  amount IS NULL OR amount <= 0;

-- The five minutes of the sale are computed again, and how late tills are is in ops.lateness.
AUDIT (
  name receipts_come_in_time,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  created_at > occurred_at + INTERVAL '5' MINUTES;
