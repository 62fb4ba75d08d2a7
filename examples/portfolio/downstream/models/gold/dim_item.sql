MODEL (
  name gold.dim_item,
  description 'Every version of every item with the span in which it holds. FULL: the catalogue is small, and a version that is entered late splits the span of another one, which no merge can do. Whatever the hour of the refresh, the row that holds at an earlier instant is the same.',
  kind FULL,
  cron '@hourly',
  grain item_key,
  -- Each refresh leaves the whole table that was before to VACUUM.
  physical_properties (
    'delta.deletedFileRetentionDuration' = 'interval 2 days'
  ),
  audits (
    unique_values(columns := (item_key)),
    spans_do_not_overlap(id := item_id),
    number_of_rows(threshold := 1)
  )
);

SELECT
  @surrogate_key(item_id, DATE_FORMAT(updated_at, 'yyyyMMddHHmmssSSSSSS')) AS item_key,
  item_id,
  name,
  description,
  category,
  list_price,
  updated_at AS valid_from,
  LEAD(updated_at) OVER (PARTITION BY item_id ORDER BY updated_at) AS valid_to
FROM silver.item_versions
WHERE
  -- Only whole hours, so that a refresh at 04:17 gives what it would have given at 04:00: the end of the interval that
  -- SQLMesh records, for which it offers a FULL model no @end_dt. Not DATE_TRUNC: SQLGlot 30.8 fails when it simplifies it.
  DATE_FORMAT(updated_at, 'yyyyMMddHH') < DATE_FORMAT(@execution_dt, 'yyyyMMddHH')
