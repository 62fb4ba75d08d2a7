-- A sale may reach us before its item or customer does; when they arrive, its hour is computed again. Those that never arrive are
-- orphans in the source. They must be seen, but not stop anything: a report without them would be wrong by their amount.
AUDIT (
  name members_are_known,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  item_key = 'unknown' OR customer_key = 'unknown';

-- What was given back for a line that silver refused. The money is gone all the same.
AUDIT (
  name sale_is_known,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  sold_at IS NULL;
