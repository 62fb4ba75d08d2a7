-- A sale may reach us before its item or customer does; when they arrive, its hour is computed again.
AUDIT (
  name members_are_known,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  item_key = 'unknown' OR customer_key = 'unknown';
