-- Where two versions hold at one instant, each sale of that instant comes out twice: everything after it would be wrong.
AUDIT (
  name spans_do_not_overlap
);

SELECT
  one.@id,
  one.valid_from,
  other.valid_from AS also_from
FROM @this_model AS one
JOIN @this_model AS other
  ON one.@id = other.@id
  AND one.valid_from < other.valid_from
  AND (
    one.valid_to IS NULL OR one.valid_to > other.valid_from
  );
