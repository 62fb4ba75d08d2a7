-- Every statement that meshgate sends to its ledger. Loaded by meshgate.db, called by meshgate.ledger only.
-- "-- name: X" starts a query; parameters are %(name)s. Writing ones call exactly one function of schema.sql.

-- name: schema_version
SELECT schema_version, test_clock FROM meshgate.ledger;

-- name: server
-- Also where there is no ledger yet.
SELECT current_setting('server_version_num')::integer AS version, clock_timestamp() AS now;

-- name: clock
SELECT meshgate.clock() AS now;

-- name: revision
SELECT revision FROM meshgate.ledger;

-- name: acquire_run
SELECT meshgate.acquire_run(%(project)s, %(environment)s, %(purpose)s, %(holder)s, %(ttl)s, %(grace)s, %(as_of)s,
                            %(share)s, %(warehouse)s, %(retry_first)s, %(retry_longest)s) AS answer;

-- name: take_over
SELECT meshgate.take_over() AS run_id;

-- name: break_run
SELECT meshgate.break_run(%(run_id)s, %(by)s) AS lived;

-- name: pause_models
SELECT run_id, model, span FROM meshgate.pause_models(%(run_id)s, %(models)s);

-- name: retry_marks
SELECT meshgate.retry_marks(%(versions)s, %(span)s::tstzrange) AS ended;

-- name: hold_range
SELECT meshgate.hold_range(%(model)s, %(span)s::tstzrange, %(reason)s, %(by)s) AS hold_id;

-- name: release_holds
SELECT released, why, held_by, since FROM meshgate.release_holds(%(model)s, %(span)s::tstzrange, %(by)s);

-- name: accept_range
SELECT meshgate.accept_range(%(version_id)s, %(span)s::tstzrange, %(lookback)s::tstzrange, %(reason)s, %(by)s) AS answer;

-- name: undo_accept
SELECT meshgate.undo_accept(%(version_id)s, %(span)s::tstzrange, %(by)s) AS span;

-- name: adopt_accepted
SELECT meshgate.adopt_accepted(%(run_id)s, %(version_id)s) AS span;

-- name: renew_run
SELECT meshgate.renew_run(%(run_id)s) AS expires_at;

-- name: finish_run
SELECT meshgate.finish_run(%(run_id)s, %(state)s, %(counts)s, %(error)s, %(writing)s) AS state;

-- name: bury_run
SELECT meshgate.bury_run(%(run_id)s, %(engine_gone)s);

-- name: prune
SELECT meshgate.prune(%(keep)s);

-- name: turn_to_tidy
SELECT meshgate.turn_to_tidy(%(project)s, %(every)s) AS turn;

-- name: merge_coverage
SELECT meshgate.merge_coverage(%(project)s, %(cold)s, %(environments)s, %(children)s::bigint[], %(parents)s::bigint[],
                               %(lows)s::interval[], %(highs)s::interval[]) AS saved;

-- name: open_claims
SELECT span, claim_id, refused_by, free_at
FROM meshgate.open_claims(%(run_id)s, %(version_id)s, %(spans)s::tstzrange[], %(whole)s);

-- name: begin_claim
SELECT meshgate.begin_claim(%(run_id)s, %(version_id)s, %(span)s::tstzrange, %(parents)s::bigint[], %(spans)s::tstzrange[],
                            %(loaded)s::bigint[], %(environment)s, %(of_model)s, %(of_warehouse)s) AS answer;

-- name: commit_claim
SELECT meshgate.commit_claim(%(run_id)s, %(version_id)s, %(span)s::tstzrange, %(verdict)s, %(audits)s, %(duration)s,
                             %(rows)s, %(lookback)s::tstzrange, %(stale_from)s, %(hold)s, %(changed_from)s, %(past)s, %(upto)s,
                             %(same)s::tstzrange[], %(judged)s::bigint[], %(spans)s::tstzrange[], %(whys)s::text[]) AS revision;

-- name: touched
SELECT c.span FROM meshgate.coverage c WHERE c.version_id = %(version_id)s AND c.touched_revision = %(revision)s ORDER BY c.span;

-- name: past
SELECT upto, prints FROM meshgate.past WHERE version_id = %(version_id)s;

-- name: fail_claim
SELECT meshgate.fail_claim(%(run_id)s, %(version_id)s, %(span)s::tstzrange, %(detail)s) AS recorded;

-- name: give_up_claim
SELECT meshgate.give_up_claim(%(run_id)s, %(version_id)s, %(span)s::tstzrange) AS given_up;

-- name: abandon_claims
SELECT meshgate.abandon_claims(%(run_id)s, %(version_id)s, %(span)s::tstzrange) AS ended;

-- name: note_mirrored
SELECT meshgate.note_mirrored(%(run_id)s, %(version_id)s, %(span)s::tstzrange, %(altered)s);

-- name: register_version
SELECT meshgate.register_version(%(project)s, %(model)s, %(version)s, %(kind)s, %(as_of)s) AS version_id;

-- name: save_manifest
SELECT meshgate.save_manifest(%(project)s, %(manifest)s, %(sqlmesh)s, %(sqlglot)s, %(environment)s);

-- name: sync_environment
SELECT * FROM meshgate.sync_environment(%(environment)s, %(plan_id)s, %(projects)s, %(models)s, %(edges)s, %(settled)s, %(at)s,
                                        %(others)s) AS model;

-- name: set_fingerprint
SELECT meshgate.set_fingerprint(%(environment)s, %(fingerprint)s);

-- name: reconcile_version
SELECT finding, span FROM meshgate.reconcile_version(%(version_id)s, %(state)s::tstzrange[], %(trusted)s::tstzrange[],
                                                     %(gated)s, %(read_at)s);

-- name: environment
SELECT environment, plan_id, fingerprint, synced_at FROM meshgate.environment WHERE environment = %(environment)s;

-- name: environments
SELECT environment FROM meshgate.environment ORDER BY environment;

-- name: projects
SELECT name, manifest, deployed_at, sqlmesh_version, sqlglot_version FROM meshgate.project ORDER BY name;

-- name: promotions
SELECT m.name, p.name AS project, v.version_id, v.version, v.kind, q.unit, q.cron, q.cron_tz,
       q.start_at, q.end_at, q.lookback, q.batch_size, q.depends_on_past, q.allow_partials,
       q.restate_cron, q.restate_units, q.answered_at
FROM meshgate.promotion q
JOIN meshgate.model m USING (model_id) JOIN meshgate.project p USING (project_id) JOIN meshgate.version v USING (version_id)
WHERE q.environment = %(environment)s
ORDER BY m.name;

-- name: borrowed
-- Models that are read in an environment to which no deploy brought them: they are another SQLMesh state's, and what is read
-- of them is what their project's own environment has. External where nobody has them any more.
SELECT m.name, CASE WHEN q.model_id IS NULL THEN '' ELSE p.name END AS project, v.version_id,
       CASE WHEN q.model_id IS NULL THEN '' ELSE v.version END AS version,
       CASE WHEN q.model_id IS NULL THEN 'external' ELSE v.kind END AS kind,
       coalesce(q.unit, 'day') AS unit, coalesce(q.cron, '@daily') AS cron, coalesce(q.cron_tz, 'UTC') AS cron_tz,
       q.start_at, q.end_at, coalesce(q.lookback, 0) AS lookback, q.batch_size, coalesce(q.depends_on_past, false) AS depends_on_past,
       coalesce(q.allow_partials, false) AS allow_partials, q.restate_cron, q.restate_units
FROM meshgate.model m JOIN meshgate.project p USING (project_id)
LEFT JOIN meshgate.promotion q ON q.model_id = m.model_id AND q.environment = meshgate.home_of(p.project_id)
CROSS JOIN LATERAL (SELECT x.* FROM meshgate.version x WHERE x.model_id = m.model_id AND x.version_id = coalesce(q.version_id, x.version_id)
                    ORDER BY x.version_id DESC LIMIT 1) v
WHERE m.name = ANY (%(names)s)
ORDER BY m.name;

-- name: borrowed_edges
SELECT c.name AS child, p.name AS parent, e.mode, e.from_offset, e.to_offset
FROM meshgate.edge e JOIN meshgate.model c ON c.model_id = e.child_id JOIN meshgate.model p ON p.model_id = e.parent_id
WHERE c.name = ANY (%(names)s) AND e.environment = meshgate.home_of(c.project_id)
ORDER BY c.name, p.name;

-- name: edges
SELECT c.name AS child, p.name AS parent, e.mode, e.from_offset, e.to_offset
FROM meshgate.edge e JOIN meshgate.model c ON c.model_id = e.child_id JOIN meshgate.model p ON p.model_id = e.parent_id
WHERE e.environment = %(environment)s
ORDER BY c.name, p.name;

-- name: covered
SELECT c.version_id, ARRAY(SELECT unnest(range_agg(c.span))) AS spans,
       ARRAY(SELECT unnest(range_agg(c.span) FILTER (WHERE c.verdict = 'accepted'))) AS accepted,
       ARRAY(SELECT unnest(range_agg(c.span) FILTER (WHERE c.verdict = 'warned'))) AS warned, max(c.committed_at) AS last_commit,
       max(c.read_at) AS last_read,
       max(c.revision) AS last_revision, sum(c.rows)::bigint AS rows
FROM meshgate.coverage c WHERE c.version_id = ANY (%(versions)s) GROUP BY c.version_id;

-- name: coverage_rows
SELECT c.span, c.revision, c.read_revision, c.run_id, c.verdict, c.audits, c.duration, c.rows, c.committed_at, c.mirrored_at, c.merged
FROM meshgate.coverage c
WHERE int8range(c.version_id, c.version_id, '[]') = int8range(%(version_id)s, %(version_id)s, '[]') AND c.span && %(span)s::tstzrange
ORDER BY c.span;

-- name: stale
-- Recorded ranges of children, and what of a parent is newer than what they read: by revision, or because rows that nobody
-- had judged stood there meanwhile. One row for each gate and each pair; the windows are wide, the caller narrows them.
-- Of a gate with `beyond` nobody computes the child again, and it reads all of the parent's past: what is stale of it stays so, and
-- would be paired with ever more of the parent. So time that lies that far after a range of the parent is told once, with the
-- first that was newer; and there is one row for each range of the parent.
-- What was settled at a revision has, in effect, read up to there.
WITH gate AS (
    SELECT g.*, coalesce(p.settled_revision, 0) AS settled_revision, coalesce(p.settled, '{}') AS settled
    FROM unnest(%(children)s::bigint[], %(parents)s::bigint[], %(lows)s::interval[], %(highs)s::interval[],
                %(beyonds)s::interval[], %(lives)s::tstzrange[])
         WITH ORDINALITY AS g (child, parent, low, high, beyond, life, gate)
    LEFT JOIN meshgate.version v ON v.version_id = g.child
    LEFT JOIN meshgate.promotion p ON p.environment = %(environment)s AND p.model_id = v.model_id AND p.version_id = g.child),
read AS MATERIALIZED (
    -- What is newer than the least that any of the child's rows has read. Of what was settled that is known without a look.
    SELECT x.child, least(x.settled_revision,
        (SELECT min(c.read_revision) FROM meshgate.coverage c WHERE c.version_id = x.child AND c.revision > x.settled_revision),
        (SELECT min(c.read_revision)
         FROM unnest('{(,)}'::tstzmultirange - x.settled) AS unsettled,
              LATERAL (SELECT c.read_revision FROM meshgate.coverage c
                       WHERE int8range(c.version_id, c.version_id, '[]') = int8range(x.child, x.child, '[]')
                         AND c.span && unsettled OFFSET 0) c)) AS upto
    FROM (SELECT DISTINCT child, settled_revision, settled FROM gate) x),
-- OFFSET 0 keeps the order: few gates, few newer rows of each parent, few rows of the child that meet them.
pair AS (
    SELECT g.gate, g.beyond IS NOT NULL AS once, g.settled_revision, g.settled, c.span, c.revision AS made,
           p.span AS parent_span, p.revision, p.committed_at AS since, c.read_at, c.read_revision
    FROM gate g JOIN read r USING (child),
         LATERAL (SELECT p.* FROM meshgate.coverage p WHERE p.version_id = g.parent AND p.revision > r.upto OFFSET 0) p,
         LATERAL (SELECT c.* FROM meshgate.coverage c
                  WHERE int8range(c.version_id, c.version_id, '[]') = int8range(g.child, g.child, '[]')
                    AND c.span && tstzrange(lower(p.span) - g.high, upper(p.span) - coalesce(g.beyond, g.low))
                    AND p.revision > CASE WHEN c.revision <= g.settled_revision AND c.span <@ g.settled
                                          THEN greatest(c.read_revision, g.settled_revision) ELSE c.read_revision END
                    -- Intervals of one batch are computed one after the other, whatever their numbers. What a person accepted at
                    -- once stays together too, though a run takes only some of it along.
                    AND NOT (p.version_id = c.version_id AND p.read_revision = c.read_revision
                             AND (p.run_id IS NOT DISTINCT FROM c.run_id OR p.verdict = 'accepted' AND c.verdict = 'accepted'))
                  OFFSET 0) c
    UNION ALL
    SELECT g.gate, true, g.settled_revision, g.settled, c.span, c.revision, p.span, p.revision, p.committed_at, c.read_at, c.read_revision
    FROM gate g JOIN meshgate.coverage c ON c.version_id = g.child,
         -- What is settled in part is stale by other ranges there than elsewhere.
         LATERAL unnest(CASE WHEN c.revision <= g.settled_revision AND c.span <@ g.settled
                             THEN ARRAY[greatest(c.read_revision, g.settled_revision)]
                             ELSE ARRAY[c.read_revision, greatest(c.read_revision, g.settled_revision)] END) AS upto,
         -- Written so that the planner goes through the revisions in their order, and not through an index of spans: the first is near.
         LATERAL (SELECT p.* FROM meshgate.coverage p
                  WHERE p.version_id = g.parent AND p.revision > upto AND upper(p.span) - g.beyond <= lower(c.span)
                    AND upper(p.span) > coalesce(lower(g.life), '-infinity') AND lower(p.span) < coalesce(upper(g.life), 'infinity')
                  ORDER BY p.revision LIMIT 1) p
    WHERE g.beyond IS NOT NULL),
found AS (
SELECT pair.gate, pair.once, left_over AS span, pair.parent_span, pair.since, pair.read_at,
       CASE WHEN pair.made <= pair.settled_revision AND left_over <@ pair.settled
            THEN greatest(pair.read_revision, pair.settled_revision) ELSE pair.read_revision END AS read_revision
FROM pair, unnest(tstzmultirange(pair.span)
                  - CASE WHEN greatest(pair.made, pair.revision) <= pair.settled_revision THEN pair.settled ELSE '{}' END) AS left_over
UNION ALL
SELECT g.gate, g.beyond IS NOT NULL, c.span, '(,)'::tstzrange, NULL, c.read_at, c.read_revision
FROM gate g JOIN meshgate.dirty_span d ON d.version_id = g.parent
JOIN meshgate.coverage c ON c.version_id = g.child AND greatest(c.revision, c.touched_revision) > d.from_revision
    AND c.read_revision < coalesce(d.to_revision, d.accepted_revision, 9223372036854775807))
SELECT f.gate, ARRAY[f.span] AS spans, f.parent_span, f.since, f.read_at, f.read_revision FROM found f WHERE NOT f.once
UNION ALL
SELECT f.gate, ARRAY(SELECT unnest(f.spans)), f.parent_span, f.since, f.read_at, f.read_revision
FROM (SELECT x.gate, range_agg(x.span) AS spans, x.parent_span, x.since, min(x.read_at) AS read_at, min(x.read_revision) AS read_revision
      FROM found x WHERE x.once GROUP BY x.gate, x.parent_span, x.since) f
ORDER BY 1, 2, 3;

-- name: read_lately
-- What of a version was read after an instant.
SELECT unnest(range_agg(c.span)) AS span FROM meshgate.coverage c WHERE c.version_id = %(version_id)s AND c.read_at > %(instant)s;

-- name: changes
-- When time of a version was made anew after a revision, by the history: what is recorded tells only the last time.
SELECT e.revision, e.at, piece AS span
FROM meshgate.event e,
     unnest((tstzmultirange(tstzrange((e.detail -> 'stamped' ->> 0)::timestamptz, (e.detail -> 'stamped' ->> 1)::timestamptz))
             + CASE WHEN e.detail ? 'changed_from'
                    THEN tstzmultirange(tstzrange((e.detail ->> 'changed_from')::timestamptz, NULL)) ELSE '{}' END
             - coalesce((SELECT range_agg(tstzrange((t ->> 0)::timestamptz, (t ->> 1)::timestamptz))
                         FROM jsonb_array_elements(e.detail -> 'touched') AS t), '{}'))
            * tstzmultirange(%(span)s::tstzrange)) AS piece
WHERE e.version_id = %(version_id)s AND e.revision > %(revision)s AND e.kind = 'interval.committed' AND e.detail ? 'stamped'
ORDER BY e.event_id;

-- name: settle_models
SELECT meshgate.settle_models(%(environment)s, %(settled)s, %(revision)s);

-- name: marks
SELECT m.version_id, m.span, m.kind, m.revision, m.run_id, m.attempts, m.detail, m.made_at, m.retry_at, m.batch
FROM meshgate.mark m WHERE m.version_id = ANY (%(versions)s) ORDER BY m.version_id, m.span, m.mark_id;

-- name: holds
SELECT v.version_id, h.hold_id, CASE WHEN v.as_of THEN '(,)' ELSE h.span END AS span, h.reason, h.made_by, h.made_at
FROM meshgate.hold h JOIN meshgate.version v USING (model_id)
WHERE h.released_at IS NULL AND coalesce(h.version_id, v.version_id) = v.version_id AND v.version_id = ANY (%(versions)s)
ORDER BY v.version_id, h.span, h.hold_id;

-- name: live_claims
SELECT k.version_id, k.span, k.state, k.run_id, k.quarantined_until, r.expires_at, p.name AS project, r.holder,
       CASE WHEN k.state = 'begun' THEN meshgate.written(k) END AS written
FROM meshgate.claim k JOIN meshgate.run r USING (run_id) JOIN meshgate.project p USING (project_id)
WHERE k.version_id = ANY (%(versions)s)
  AND (k.state IN ('open', 'begun') OR k.state = 'lost' AND k.quarantined_until > meshgate.clock())
ORDER BY k.version_id, k.span;

-- name: watched
-- Runs that live, or that were lost and may still write: whoever can prove that they are gone need not wait for them, and
-- remembers what they may have written meanwhile.
SELECT r.run_id, r.holder FROM meshgate.run r WHERE r.state = 'running'
UNION
SELECT r.run_id, r.holder FROM meshgate.claim k JOIN meshgate.run r USING (run_id)
WHERE k.state = 'lost'
  AND (NOT isempty(k.batch) OR k.quarantined_until > meshgate.clock() AND r.holder ->> 'engine_in_process' = 'true')
ORDER BY run_id;

-- name: live_runs
SELECT r.run_id, p.name AS project, r.environment, r.purpose, r.holder, r.started_at, r.expires_at, r.promoting IS NOT NULL AS promoting,
       count(k.claim_id) FILTER (WHERE k.state = 'open') AS open, count(k.claim_id) FILTER (WHERE k.state = 'begun') AS begun
FROM meshgate.run r JOIN meshgate.project p USING (project_id)
LEFT JOIN meshgate.claim k ON k.run_id = r.run_id AND k.state IN ('open', 'begun')
WHERE r.state = 'running'
GROUP BY r.run_id, p.name ORDER BY r.run_id;

-- name: runs
-- Maintenance is left out: it computes nothing, and there may be many of it.
SELECT r.run_id, p.name AS project, r.environment, r.purpose, r.state, r.holder, r.as_of, r.started_at, r.ended_at,
       r.expires_at, r.expires_at <= meshgate.clock() AS expired, r.counts, r.error
FROM meshgate.run r JOIN meshgate.project p USING (project_id)
WHERE r.purpose <> 'maintenance'
  AND (%(project)s::text IS NULL OR p.name = %(project)s) AND (%(environment)s::text IS NULL OR r.environment = %(environment)s)
ORDER BY r.run_id DESC LIMIT %(limit)s;

-- name: events
SELECT e.at, e.revision, e.kind, e.run_id, m.name AS model, p.name AS project, e.span, e.detail
FROM meshgate.event e LEFT JOIN meshgate.version v USING (version_id) LEFT JOIN meshgate.model m USING (model_id)
LEFT JOIN meshgate.run r ON r.run_id = e.run_id
LEFT JOIN meshgate.project p ON p.project_id = coalesce(m.project_id, r.project_id)
WHERE e.event_id > %(after)s AND (%(run_id)s::bigint IS NULL OR e.run_id = %(run_id)s)
  AND (%(version_id)s::bigint IS NULL OR e.version_id = %(version_id)s)
ORDER BY e.event_id DESC LIMIT %(limit)s;

-- name: find_rewritten
SELECT finding, span FROM meshgate.find_rewritten(%(version_id)s, %(redone)s::tstzrange[], %(altered)s, %(explained)s, %(suspect)s,
                                                  %(keys)s::text[], %(removed)s::tstzrange[]);

-- name: has_unmirrored
-- Is there anything in the environment that a run recorded here, and ended before SQLMesh recorded it too?
SELECT EXISTS (
    SELECT FROM meshgate.promotion p JOIN meshgate.coverage c USING (version_id) LEFT JOIN meshgate.run r USING (run_id)
    WHERE p.environment = %(environment)s AND c.mirrored_at IS NULL
      AND (r.state IS NULL OR r.state <> 'running' OR r.expires_at <= meshgate.clock())) AS found;

-- name: sqlmesh_fingerprint
-- A cheap sign that SQLMesh's own tables have not changed since they were last reconciled.
SELECT (SELECT concat_ws('/', count(*), max(created_ts), sum(created_ts::numeric)) FROM {schema}._intervals) || ':' ||
       coalesce((SELECT concat_ws('/', plan_id, finalized_ts) FROM {schema}._environments WHERE name = %(environment)s), '')
       AS fingerprint;

-- name: request_ranges
SELECT meshgate.request_ranges(%(models)s, %(spans)s::tstzrange[], %(reason)s, %(by)s, %(origin)s) AS request_id;

-- name: requests_of_origin
-- What an analysis has asked for by itself, and nobody has cancelled.
SELECT m.name AS model, q.request_id FROM meshgate.request q JOIN meshgate.model m USING (model_id)
WHERE q.origin = %(origin)s AND q.cancelled_at IS NULL ORDER BY q.request_id;

-- name: cancel_request
SELECT meshgate.cancel_request(%(request_id)s, %(by)s) AS cancelled;

-- name: requests
-- Progress is read from coverage: marks of one kind are merged, and discharged ones are gone. What is open is listed however
-- old it is.
SELECT q.*, ARRAY(SELECT unnest(meshgate.requested_time(q.version_id, q.span))) AS asked, ARRAY(SELECT unnest(q.missing)) AS open
FROM (
    SELECT q.request_id, m.name AS model, o.name AS project, q.span, q.reason, q.made_by, q.made_at, q.revision, q.cancelled_by,
           q.cancelled_at, p.version_id, meshgate.requested_time(p.version_id, q.span, q.revision) AS missing,
           row_number() OVER (ORDER BY q.request_id DESC) AS place
    FROM meshgate.request q JOIN meshgate.model m USING (model_id) JOIN meshgate.project o USING (project_id)
    JOIN meshgate.promotion p ON p.model_id = q.model_id AND p.environment = %(environment)s
    WHERE %(request_id)s::bigint IS NULL OR q.request_id = %(request_id)s) q
WHERE q.place <= %(limit)s OR q.cancelled_at IS NULL AND NOT isempty(q.missing)
ORDER BY q.request_id DESC;

-- name: answer_ticks
SELECT meshgate.answer_ticks(%(environment)s, %(model)s, %(since)s, %(last)s, %(span)s::tstzrange, %(reason)s, %(by)s,
                             %(origin)s) AS answer;

-- name: durations
-- How long the last evaluations of versions took, and over how much time.
SELECT v AS version_id, count(*) AS evaluations, sum(c.duration) AS took, sum(upper(c.span) - lower(c.span)) AS time
FROM unnest(%(versions)s::bigint[]) AS v,
     LATERAL (SELECT k.duration, k.span FROM meshgate.coverage k
              WHERE k.version_id = v AND k.duration IS NOT NULL
              ORDER BY k.committed_at DESC LIMIT 100) c
GROUP BY v;

-- name: history
-- Everything that is remembered of what happened, oldest first: what `verify` derives the rest from.
SELECT e.event_id, e.at, e.revision, e.kind, e.run_id, e.version_id, e.span, e.detail
FROM meshgate.event e WHERE e.revision > coalesce((SELECT f.revision FROM meshgate.forgotten f), 0) ORDER BY e.event_id;

-- name: forgotten
SELECT coalesce((SELECT f.revision FROM meshgate.forgotten f), 0) AS revision;

-- name: versions
SELECT v.version_id, m.name AS model, p.name AS project, v.version, v.kind, v.as_of
FROM meshgate.version v JOIN meshgate.model m USING (model_id) JOIN meshgate.project p USING (project_id)
ORDER BY v.version_id;

-- name: everything_recorded
SELECT c.version_id, c.span, c.revision, c.read_revision, c.run_id, c.verdict, c.mirrored_at IS NOT NULL AS mirrored, c.merged,
       c.touched_revision AS touched
FROM meshgate.coverage c ORDER BY c.version_id, c.span;

-- name: dirty_spans
SELECT d.version_id, d.from_revision, d.to_revision, d.accepted_revision FROM meshgate.dirty_span d ORDER BY d.version_id, d.from_revision;

-- name: run_environments
SELECT r.run_id, r.environment FROM meshgate.run r;

-- name: orphaned_claims
-- Claims that live though their run has ended.
SELECT k.version_id, k.span, k.state, k.run_id, r.state AS ended
FROM meshgate.claim k JOIN meshgate.run r USING (run_id)
WHERE k.state IN ('open', 'begun') AND r.state <> 'running' ORDER BY k.claim_id;

-- name: observation
SELECT o.declared, o.span, o.prints, o.looks
FROM meshgate.observation o JOIN meshgate.project p USING (project_id)
WHERE o.environment = %(environment)s AND p.name = %(project)s AND o.source = %(source)s;

-- name: save_observation
SELECT meshgate.save_observation(%(environment)s, %(project)s, %(source)s, %(looks)s, %(declared)s, %(span)s::tstzrange,
                                 %(prints)s, %(models)s, %(spans)s::tstzrange[], %(reason)s, %(by)s) AS answer;

-- name: note_maintenance
SELECT meshgate.note_maintenance(%(run_id)s, %(version_id)s, %(operation)s, %(detail)s) AS noted;

-- name: maintained
SELECT DISTINCT ON (e.version_id, e.detail ->> 'operation') e.version_id, e.detail ->> 'operation' AS operation, e.at
FROM meshgate.event e WHERE e.kind = 'table.maintained' AND e.version_id = ANY (%(versions)s)
ORDER BY e.version_id, e.detail ->> 'operation', e.event_id DESC;

-- name: longest_run
-- One that lives has taken so long already. One that died may have worked until its lease and its grace were over, whenever that was noticed.
SELECT coalesce(max(least(coalesce(r.ended_at, meshgate.clock()), r.expires_at + r.grace) - r.started_at), '0') AS longest
FROM meshgate.run r WHERE r.purpose <> 'maintenance';
