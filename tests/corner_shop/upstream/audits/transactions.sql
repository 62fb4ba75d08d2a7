AUDIT (
  name amount_is_positive
);

SELECT
  *
FROM @this_model
WHERE
  amount IS NULL OR amount <= 0;

AUDIT (
  name currency_is_known
);

SELECT
  *
FROM @this_model
WHERE
  currency IS NULL OR NOT currency IN ('EUR', 'GBP', 'USD');
