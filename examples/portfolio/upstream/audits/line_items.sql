-- Blocks: where more than half of the lines are bad, it is not the lines but the software of a till. What is left is no picture of these five
-- minutes, and quarantine would hide that; so nobody reads them before a person has looked. Fewer than five lines prove nothing.
AUDIT (
  name most_lines_are_usable
);

SELECT
  @five_minutes(occurred_at) AS slot,
  COUNT(*) AS all_lines,
  COUNT_IF(quantity IS NULL OR amount IS NULL OR amount <= 0) AS bad_lines
FROM @this_model
GROUP BY
  1
HAVING
  COUNT(*) >= 5 AND COUNT_IF(quantity IS NULL OR amount IS NULL OR amount <= 0) * 2 > COUNT(*);
