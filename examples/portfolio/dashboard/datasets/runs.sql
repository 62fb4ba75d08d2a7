-- Runs of the two projects, by hour and outcome
-- Reads the ledger's Postgres as a foreign catalog that is called `ledger`, and of it only columns of plain types: what is covered
-- is kept there as ranges of time, which have no type in the warehouse.
SELECT
  DATE_TRUNC('HOUR', COALESCE(r.as_of, r.started_at)) AS run_hour,
  p.name AS project,
  r.purpose,
  r.state,
  COUNT(*) AS runs,
  MAX(TIMESTAMPDIFF(SECOND, DATE_TRUNC('SECOND', r.started_at), DATE_TRUNC('SECOND', r.ended_at))) AS longest_seconds
FROM ledger.meshgate.run AS r
JOIN ledger.meshgate.project AS p ON p.project_id = r.project_id
GROUP BY DATE_TRUNC('HOUR', COALESCE(r.as_of, r.started_at)), p.name, r.purpose, r.state
