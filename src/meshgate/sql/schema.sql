-- The ledger of meshgate: who is working on what, what is done, and what has to be done again.
-- Postgres 14 or later, no extension. This file is the truth; migrations/ lead older ledgers here.
--
-- HOW IT WORKS
--
--   project, model, version, environment, promotion, edge     the manifest: what an environment promotes,
--                                                              enough to decide without importing SQLMesh
--   run       one attempt of one project. The row is the lease, its id is the fence.
--   claim     (run, model version, range): reserved ("open"), being written ("begun"), then ended
--   coverage  (model version, range): what is recorded, at which revision, having read up to which
--   mark      (model version, range): a reason to compute again: failed, suspect, removed, requested, lookback
--   dirty_span   revisions between which an as-of table held unchecked rows
--   hold      (model, range): kept from readers by a person, until released; or by a policy, until written again
--   request   (model, range): somebody asked for it to be computed again; marks carry it to the versions
--   observation   what a source looked like when a project's run last looked: count and latest change by time
--   event     append-only history for people and alerts; nothing is decided from it but what `stale_horizon` lets be, and it
--             tells enough to derive coverage, marks and dirty spans anew: `meshgate verify` does
--
-- RULES THAT EVERY FUNCTION BELOW KEEPS
--
--   1. Every change of state is one function, called as one statement: its own transaction.
--   2. Lock, then clock, then fence, then write. The one lock is the row of meshgate.ledger; the row of a run
--      comes after it. The clock is read after the wait, so that a lease that died while waiting is dead.
--   3. Revisions are handed out under that lock, which is held until the commit: commit order is revision order.
--   4. Ranges are half-open, UTC, and never empty. An as-of table is one whole: its claims and marks are '(,)'.
--   5. The fence is the safety property. Expiry is only the permission to take over.
--   6. What a caller must not take for success (a lost lease at commit) is RETURNED, not raised, whenever
--      something has to be remembered about it: an exception would undo the memory.
--
-- SQLSTATEs (the API of refusals): MG001 lease lost, MG002 no such claim, MG003 wrong argument,
-- MG005 wrong isolation level.

CREATE SCHEMA meshgate;

---------------------------------------------------------------------------------------------------------------
-- The ledger itself: version, revision, clock
---------------------------------------------------------------------------------------------------------------

CREATE TABLE meshgate.ledger (
    singleton       boolean     PRIMARY KEY DEFAULT true CONSTRAINT "there is one ledger" CHECK (singleton),
    schema_version  integer     NOT NULL,
    revision        bigint      NOT NULL DEFAULT 0,
    test_clock      boolean     NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The one clock of leases, order and history. A session of a ledger made for tests may set it:
-- SET meshgate.now = '2026-01-01 00:00Z'. A production ledger ignores the setting.
CREATE FUNCTION meshgate.clock() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF coalesce(current_setting('meshgate.now', true), '') <> ''
       AND (SELECT l.test_clock FROM meshgate.ledger l) THEN
        RETURN current_setting('meshgate.now')::timestamptz;
    END IF;
    RETURN clock_timestamp();
END $$;

-- Takes the one lock and returns the present revision. Under READ COMMITTED each later statement of the calling
-- function sees what was committed while it waited; under a stricter level it would not, hence the check.
CREATE FUNCTION meshgate.lock_ledger() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'meshgate needs transactions at READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'MG005', HINT = 'Reset default_transaction_isolation for this role or database.';
    END IF;
    SELECT l.revision INTO present FROM meshgate.ledger l FOR UPDATE;
    RETURN present;
END $$;

CREATE FUNCTION meshgate.next_revision() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    UPDATE meshgate.ledger SET revision = revision + 1 RETURNING revision;
$$;

---------------------------------------------------------------------------------------------------------------
-- The manifest
---------------------------------------------------------------------------------------------------------------

CREATE TABLE meshgate.project (
    project_id   integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text        NOT NULL CONSTRAINT "a project is registered once" UNIQUE,
    manifest     jsonb       NOT NULL DEFAULT '{}',  -- what its meshgate.yaml said at the last deploy
    deployed_at  timestamptz,    -- null: known only from its runs or from SQLMesh's state
    sqlmesh_version  text,
    sqlglot_version  text,
    tidied_at    timestamptz     -- when a run of it last merged and forgot what nobody needs one by one
);

CREATE TABLE meshgate.model (
    model_id     bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text    NOT NULL CONSTRAINT "a model has one owner" UNIQUE,
    project_id   integer NOT NULL REFERENCES meshgate.project
);

-- One physical table. Keyed by SQLMesh's snapshot version, never by environment: environments share tables.
CREATE TABLE meshgate.version (
    version_id   bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     bigint  NOT NULL REFERENCES meshgate.model,
    version      text    NOT NULL,
    kind         text    NOT NULL,
    as_of        boolean NOT NULL,
    altered_at   timestamptz,    -- when its table was written last, by SQLMesh's record, as far as that is accounted for
    removals     text[] DEFAULT '{}',  -- SQLMesh's keys of what was removed from its record, as seen last; null: never looked for
    CONSTRAINT "a version is registered once" UNIQUE (model_id, version)
);

CREATE TABLE meshgate.environment (
    environment  text        PRIMARY KEY,
    plan_id      text,
    fingerprint  text,       -- of SQLMesh's own tables when they were last reconciled
    synced_at    timestamptz NOT NULL
);

CREATE TABLE meshgate.promotion (
    environment  text        NOT NULL REFERENCES meshgate.environment,
    model_id     bigint      NOT NULL REFERENCES meshgate.model,
    version_id   bigint      NOT NULL REFERENCES meshgate.version,
    revision     bigint      NOT NULL,
    promoted_at  timestamptz NOT NULL,
    -- As SQLMesh declares them; kept here because metadata may change without a new version.
    unit         text        NOT NULL,
    cron         text        NOT NULL,
    cron_tz      text        NOT NULL DEFAULT 'UTC',
    start_at     timestamptz,
    end_at       timestamptz,                        -- exclusive
    lookback     integer     NOT NULL DEFAULT 0,     -- units
    batch_size   integer,                            -- units
    depends_on_past boolean  NOT NULL DEFAULT false,
    allow_partials  boolean  NOT NULL DEFAULT false,
    restate_cron    text,                            -- when it is computed again by itself, read in UTC
    restate_units   integer,                         -- how many units before a tick; null: all that is recorded
    answered_at     timestamptz,                     -- the ticks up to there are answered
    -- What was recorded of this time up to this revision was not stale by what its parents were at this revision.
    settled         tstzmultirange NOT NULL DEFAULT '{}',
    settled_revision bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (environment, model_id)
);

CREATE TABLE meshgate.edge (
    environment  text     NOT NULL REFERENCES meshgate.environment,
    child_id     bigint   NOT NULL REFERENCES meshgate.model,
    parent_id    bigint   NOT NULL REFERENCES meshgate.model,
    mode         text     NOT NULL DEFAULT 'interval'
        CONSTRAINT "a window has a known mode" CHECK (mode IN ('interval', 'latest', 'prefix', 'loaded', 'ungated')),
    from_offset  interval NOT NULL DEFAULT '0',
    to_offset    interval NOT NULL DEFAULT '0',
    PRIMARY KEY (environment, child_id, parent_id)
);

---------------------------------------------------------------------------------------------------------------
-- Work: runs and claims
---------------------------------------------------------------------------------------------------------------

CREATE TABLE meshgate.run (
    run_id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id   integer     NOT NULL REFERENCES meshgate.project,
    environment  text        NOT NULL,
    purpose      text        NOT NULL CONSTRAINT "a run has a known purpose" CHECK (purpose IN ('run', 'deploy', 'maintenance')),
    holder       jsonb       NOT NULL,               -- host, pid and what proves that the process is gone
    as_of        timestamptz,                        -- --now, if it was given
    started_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    ttl          interval    NOT NULL,
    grace        interval    NOT NULL,               -- how long a late write of this run may take to land
    state        text        NOT NULL DEFAULT 'running' CONSTRAINT "a run has a known state"
        CHECK (state IN ('running', 'done', 'failed', 'lost', 'stopped', 'nothing_to_do')),
    ended_at     timestamptz,
    plan_id      text,
    counts       jsonb       NOT NULL DEFAULT '{}',
    error        text,
    warehouse    text        NOT NULL DEFAULT 'default',  -- what its batches are counted against
    retry_first  interval    NOT NULL DEFAULT '1 minute', -- the pause after a first failure; each further one doubles it
    retry_longest interval   NOT NULL DEFAULT '1 hour',
    promoting    bigint[],                           -- the models that a deploy is about to replace
    CONSTRAINT "a run that ended says when" CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE INDEX run_live ON meshgate.run (project_id, environment) WHERE state = 'running';
CREATE INDEX run_recent ON meshgate.run (project_id, environment, run_id);

CREATE TABLE meshgate.claim (
    claim_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id       bigint      NOT NULL REFERENCES meshgate.run,
    version_id   bigint      NOT NULL REFERENCES meshgate.version,
    span         tstzrange   NOT NULL CONSTRAINT "a claim is about some time" CHECK (NOT isempty(span)),
    state        text        NOT NULL DEFAULT 'open' CONSTRAINT "a claim has a known state"
        CHECK (state IN ('open', 'begun', 'committed', 'abandoned', 'failed', 'lost')),
    opened_revision bigint   NOT NULL,
    opened_at    timestamptz NOT NULL,
    read_revision bigint,
    begun_at     timestamptz,
    batch        tstzrange,                          -- what was begun: of an as-of table, some part of its time;
                                                     -- of a lost claim, what its run may still write unheard
    ended_at     timestamptz,
    -- A lost claim may still be written to until this instant; nobody claims its range before.
    quarantined_until timestamptz,
    CONSTRAINT "a begun claim knows what it read" CHECK (state NOT IN ('begun', 'committed') OR read_revision IS NOT NULL),
    -- Equality through a range over the key, so that no extension is needed.
    CONSTRAINT "two live claims never overlap" EXCLUDE USING gist (
        int8range(version_id, version_id, '[]') WITH =, span WITH &&) WHERE (state IN ('open', 'begun'))
);
CREATE INDEX claim_of_run ON meshgate.claim (run_id) WHERE state IN ('open', 'begun', 'lost');
CREATE INDEX claim_by_run ON meshgate.claim (run_id);  -- for prune, and for the foreign key of each run that it forgets
CREATE INDEX claim_lost ON meshgate.claim (version_id) WHERE state = 'lost';
CREATE INDEX claim_ended ON meshgate.claim (ended_at) WHERE ended_at IS NOT NULL;

---------------------------------------------------------------------------------------------------------------
-- Results: coverage, marks, dirty spans, events
---------------------------------------------------------------------------------------------------------------

CREATE TABLE meshgate.coverage (
    coverage_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id    bigint      NOT NULL REFERENCES meshgate.version,
    span          tstzrange   NOT NULL CONSTRAINT "coverage is half-open and bounded" CHECK (
        NOT isempty(span) AND lower_inc(span) AND NOT upper_inc(span) AND NOT lower_inf(span) AND NOT upper_inf(span)),
    revision      bigint      NOT NULL,              -- when this data was made
    read_revision bigint      NOT NULL,              -- up to which revision its parents were read; 0: unknown
    run_id        bigint      REFERENCES meshgate.run,  -- null: recorded by plain SQLMesh
    verdict       text        NOT NULL CONSTRAINT "coverage has a known verdict"
        CHECK (verdict IN ('passed', 'warned', 'accepted', 'foreign')),
    audits        jsonb       NOT NULL DEFAULT '[]', -- [{"audit", "count", "blocking"}]
    duration      interval,
    rows          bigint,
    committed_at  timestamptz NOT NULL,
    mirrored_at   timestamptz,                       -- when SQLMesh's own record was known to hold it
    read_at       timestamptz,                       -- when its parents were read: its batch began; null: unknown
    merged        integer     NOT NULL DEFAULT 1,    -- how many commits it stands for
    touched_revision bigint,                         -- when it was computed again and was what it had been
    -- Of several commits: of all of them it is known that nothing they read has changed up to there.
    CONSTRAINT "data is read before it is made" CHECK (read_revision < greatest(revision, touched_revision) OR merged > 1),
    CONSTRAINT "coverage never overlaps" EXCLUDE USING gist (
        int8range(version_id, version_id, '[]') WITH =, span WITH &&)
);
CREATE INDEX coverage_by_revision ON meshgate.coverage (version_id, revision);
CREATE INDEX coverage_unmirrored ON meshgate.coverage (version_id) WHERE mirrored_at IS NULL;
CREATE INDEX coverage_of_run ON meshgate.coverage (run_id);

CREATE TABLE meshgate.mark (
    mark_id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id   bigint      NOT NULL REFERENCES meshgate.version,
    span         tstzrange   NOT NULL CONSTRAINT "a mark is about some time" CHECK (NOT isempty(span)),
    kind         text        NOT NULL CONSTRAINT "a mark has a known kind"
        CHECK (kind IN ('failed', 'suspect', 'removed', 'requested', 'lookback')),
    revision     bigint      NOT NULL,               -- only a commit that read at or after this discharges it
    run_id       bigint      REFERENCES meshgate.run,
    attempts     integer     NOT NULL DEFAULT 1,
    detail       jsonb       NOT NULL DEFAULT '{}',  -- audit, count, error, cause
    made_at      timestamptz NOT NULL,
    retry_at     timestamptz,                        -- not to be tried again before
    batch        tstzrange                           -- of a mark on a whole table: what was being written
);
CREATE INDEX mark_of_version ON meshgate.mark (version_id);
CREATE INDEX mark_of_run ON meshgate.mark (run_id);
CREATE INDEX mark_of_span ON meshgate.mark USING gist (int8range(version_id, version_id, '[]'), span);

CREATE TABLE meshgate.dirty_span (
    version_id    bigint NOT NULL REFERENCES meshgate.version,
    from_revision bigint NOT NULL,
    to_revision   bigint,                            -- null: not repaired yet
    accepted_revision bigint,                        -- a person took a refreshed table as it was: that ends it until it is repaired
    PRIMARY KEY (version_id, from_revision)
);

-- What an as-of table that tells from when to when its rows hold had held when it was recorded last: what differs at the
-- next refresh has changed behind its readers' backs.
CREATE TABLE meshgate.past (
    version_id    bigint      PRIMARY KEY REFERENCES meshgate.version,
    upto          timestamptz NOT NULL,              -- what is before it was compared, and is
    prints        jsonb                              -- [count, sum, sum] by second; null: nobody knows what readers met
);

-- Both belong to the model, and outlive its versions.
CREATE TABLE meshgate.hold (
    hold_id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     bigint      NOT NULL REFERENCES meshgate.model,
    version_id   bigint      REFERENCES meshgate.version,  -- whose rows a policy holds; null: a person's, of all versions
    judge_id     bigint      REFERENCES meshgate.version,  -- the standalone audit that rejected them; null: one of the model's own
    span         tstzrange   NOT NULL CONSTRAINT "a hold is about some time" CHECK (NOT isempty(span)),
    reason       text        NOT NULL,
    made_by      text        NOT NULL,
    made_at      timestamptz NOT NULL,
    released_by  text,
    released_at  timestamptz,
    CONSTRAINT "a release says who and when" CHECK ((released_by IS NULL) = (released_at IS NULL))
);
CREATE INDEX hold_of_model ON meshgate.hold (model_id) WHERE released_at IS NULL;

CREATE TABLE meshgate.request (
    request_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     bigint      NOT NULL REFERENCES meshgate.model,
    span         tstzrange   NOT NULL CONSTRAINT "a request is about some time" CHECK (NOT isempty(span)),
    reason       text        NOT NULL,
    origin       text,                               -- an analysis, or a cron, that asks by itself: of a model one request
    made_by      text        NOT NULL,
    made_at      timestamptz NOT NULL,
    revision     bigint      NOT NULL,               -- done where a commit read at or after this
    cancelled_by text,
    cancelled_at timestamptz,
    CONSTRAINT "a cancellation says who and when" CHECK ((cancelled_by IS NULL) = (cancelled_at IS NULL))
);
CREATE INDEX request_of_model ON meshgate.request (model_id) WHERE cancelled_at IS NULL;
CREATE UNIQUE INDEX "an origin asks for a model once" ON meshgate.request (origin, model_id) WHERE cancelled_at IS NULL;

-- What a project's run last saw of a table that its models read and nobody here makes: late rows change it.
CREATE TABLE meshgate.observation (
    environment  text        NOT NULL,
    project_id   integer     NOT NULL REFERENCES meshgate.project,
    source       text        NOT NULL,               -- the table's name
    declared     jsonb       NOT NULL,               -- by which columns, in buckets of how many seconds
    span         tstzrange   NOT NULL,               -- what was looked at
    prints       jsonb       NOT NULL,               -- [count, latest change] by the second at which a bucket begins; none: no rows
    looks        bigint      NOT NULL,
    observed_at  timestamptz NOT NULL,
    PRIMARY KEY (environment, project_id, source)
);

CREATE TABLE meshgate.event (
    event_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL,
    revision     bigint      NOT NULL,
    kind         text        NOT NULL,               -- noun.past_participle
    run_id       bigint,
    version_id   bigint,
    span         tstzrange,
    detail       jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX event_at ON meshgate.event (at);
CREATE INDEX event_of_version ON meshgate.event (version_id, event_id);

-- Events up to this revision are gone, or tell too little. Without a row: all are there. A table of its own, for the row
-- of the ledger is what everybody waits for.
CREATE TABLE meshgate.forgotten (
    singleton    boolean PRIMARY KEY DEFAULT true CONSTRAINT "one history is forgotten" CHECK (singleton),
    revision     bigint  NOT NULL
);

CREATE FUNCTION meshgate.note(p_kind text, p_run_id bigint, p_version_id bigint, p_span tstzrange, p_detail jsonb)
RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO meshgate.event (at, revision, kind, run_id, version_id, span, detail)
    SELECT meshgate.clock(), l.revision, p_kind, p_run_id, p_version_id, p_span, coalesce(p_detail, '{}')
    FROM meshgate.ledger l;
$$;

---------------------------------------------------------------------------------------------------------------
-- Pieces that the state changes are made of
---------------------------------------------------------------------------------------------------------------

-- Cuts span out of every coverage row of the version that it meets; what lies outside it stays as it was.
CREATE FUNCTION meshgate.carve_coverage(p_version_id bigint, p_span tstzrange) RETURNS void LANGUAGE sql VOLATILE AS $$
    WITH cut AS (
        DELETE FROM meshgate.coverage c
        WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
          AND c.span && p_span
        RETURNING c.*)
    INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, run_id, verdict, audits, duration,
                                   rows, committed_at, mirrored_at, read_at, merged, touched_revision)
    SELECT cut.version_id, piece, cut.revision, cut.read_revision, cut.run_id, cut.verdict, cut.audits,
           -- Shares of one measurement would be invented numbers.
           NULL, NULL, cut.committed_at, cut.mirrored_at, cut.read_at, cut.merged, cut.touched_revision
    FROM cut, unnest(tstzmultirange(cut.span) - tstzmultirange(p_span)) AS piece;
$$;

-- What is recorded of a version from an instant on was changed: it was made now, at this revision, though read when it was.
CREATE FUNCTION meshgate.restamp(p_version_id bigint, p_from timestamptz, p_revision bigint) RETURNS void LANGUAGE sql VOLATILE AS $$
    WITH cut AS (
        DELETE FROM meshgate.coverage c
        WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
          AND c.span && tstzrange(p_from, NULL) AND c.revision < p_revision
        RETURNING c.*)
    INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, run_id, verdict, audits, duration,
                                   rows, committed_at, mirrored_at, read_at, merged, touched_revision)
    SELECT cut.version_id, part.piece, part.revision, cut.read_revision, cut.run_id, cut.verdict, cut.audits,
           CASE WHEN part.piece = cut.span THEN cut.duration END, CASE WHEN part.piece = cut.span THEN cut.rows END,
           part.committed_at, cut.mirrored_at, cut.read_at, cut.merged, cut.touched_revision
    FROM cut, LATERAL (SELECT cut.span * tstzrange(p_from, NULL) AS piece, p_revision AS revision, meshgate.clock() AS committed_at
                       UNION ALL SELECT cut.span * tstzrange(NULL, p_from), cut.revision, cut.committed_at) part
    WHERE NOT isempty(part.piece);
$$;

-- Takes span out of the marks of a version that p_upto (a read_revision) discharges, optionally of one kind only.
CREATE FUNCTION meshgate.carve_marks(p_version_id bigint, p_span tstzrange, p_upto bigint, p_kind text DEFAULT NULL)
RETURNS void LANGUAGE sql VOLATILE AS $$
    WITH cut AS (
        DELETE FROM meshgate.mark m
        WHERE int8range(m.version_id, m.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
          AND m.span && p_span AND m.revision <= p_upto AND (p_kind IS NULL OR m.kind = p_kind)
        RETURNING m.*)
    INSERT INTO meshgate.mark (version_id, span, kind, revision, run_id, attempts, detail, made_at, retry_at, batch)
    SELECT cut.version_id, piece, cut.kind, cut.revision, cut.run_id, cut.attempts, cut.detail, cut.made_at, cut.retry_at,
           cut.batch
    FROM cut, unnest(tstzmultirange(cut.span) - tstzmultirange(p_span)) AS piece;
$$;

-- A reason to compute a range again. p_tried: a run has tried to, and the next one should not at once: each failure
-- in a row doubles the pause. A run that died may have died for reasons of its own: its second death counts.
-- The pause is counted from the instant that the run stands for.
CREATE FUNCTION meshgate.put_mark(p_version_id bigint, p_span tstzrange, p_kind text, p_run_id bigint, p_detail jsonb,
                                  p_tried boolean DEFAULT false)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    revision bigint := meshgate.next_revision();
    whole boolean;
    before integer;
    doublings integer;
    asked tstzrange := p_span;
    written tstzrange := p_span;
    again timestamptz;
BEGIN
    SELECT v.as_of INTO whole FROM meshgate.version v WHERE v.version_id = p_version_id;
    -- Nobody knows which rows of a whole table went bad; what was asked for or removed has its own range.
    IF whole AND p_kind IN ('failed', 'suspect') THEN
        p_span := '(,)';
    END IF;
    SELECT max(m.attempts), max(m.retry_at),
           CASE WHEN whole THEN range_merge(coalesce(range_agg(m.batch), '{}') + tstzmultirange(written)) END
    INTO before, again, written
    FROM meshgate.mark m
    WHERE int8range(m.version_id, m.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
      AND m.span && p_span AND m.kind = p_kind;
    IF p_tried THEN
        before := coalesce(before, 0) + 1;
        doublings := least(before - CASE p_kind WHEN 'suspect' THEN 2 ELSE 1 END, 30);
        -- In seconds: days that are doubled leave the range of an interval.
        SELECT CASE WHEN doublings >= 0 THEN coalesce(r.as_of, meshgate.clock()) + make_interval(
                   secs => least(extract(epoch FROM r.retry_first) * 2 ^ doublings, extract(epoch FROM r.retry_longest))) END
        INTO again FROM meshgate.run r WHERE r.run_id = p_run_id;
    END IF;
    -- The newer mark says all that an older one of its kind said.
    PERFORM meshgate.carve_marks(p_version_id, p_span, revision, p_kind);
    INSERT INTO meshgate.mark (version_id, span, kind, revision, run_id, attempts, detail, made_at, retry_at, batch)
    VALUES (p_version_id, p_span, p_kind, revision, p_run_id, coalesce(before, 0), coalesce(p_detail, '{}'),
            meshgate.clock(), again, CASE WHEN whole THEN written END);
    PERFORM meshgate.note('interval.' || p_kind, p_run_id, p_version_id, p_span, coalesce(p_detail, '{}')
        || CASE WHEN whole THEN jsonb_build_object('written', jsonb_build_array(lower(asked), upper(asked))) ELSE '{}' END);
    RETURN revision;
END $$;

-- The part of a run's live claims that is exactly span: the row is split where it is wider. The claim on an as-of table
-- is one whole, and only what was begun of it can end. Returns null where the run holds no such claim.
CREATE FUNCTION meshgate.claim_piece(p_run_id bigint, p_version_id bigint, p_span tstzrange, p_states text[])
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    held meshgate.claim;
BEGIN
    SELECT c.* INTO held FROM meshgate.claim c
    WHERE c.run_id = p_run_id AND c.version_id = p_version_id AND c.state = ANY (p_states) AND c.span @> p_span
      AND (p_states <> '{begun}' OR c.batch @> p_span);
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF held.span = p_span OR (SELECT v.as_of FROM meshgate.version v WHERE v.version_id = p_version_id) THEN
        RETURN held.claim_id;
    END IF;
    UPDATE meshgate.claim SET span = p_span, batch = held.batch * p_span WHERE claim_id = held.claim_id;
    INSERT INTO meshgate.claim (run_id, version_id, span, state, opened_revision, opened_at, read_revision, begun_at, batch)
    SELECT held.run_id, held.version_id, piece, held.state, held.opened_revision, held.opened_at, held.read_revision,
           held.begun_at, held.batch * piece
    FROM unnest(tstzmultirange(held.span) - tstzmultirange(p_span)) AS piece;
    RETURN held.claim_id;
END $$;

-- The time whose rows a begun claim may have changed: a table that is claimed whole because two writers would be in
-- each other's way still has rows by time; an as-of table is one whole.
CREATE FUNCTION meshgate.written(c meshgate.claim) RETURNS tstzrange LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN v.as_of THEN c.span ELSE coalesce(c.batch, c.span) END
    FROM meshgate.version v WHERE v.version_id = c.version_id;
$$;

-- What a range of a version holds that nobody may read: reason, where, and the facts. Empty: cleanly covered.
CREATE FUNCTION meshgate.unclean(p_version_id bigint, p_span tstzrange)
RETURNS TABLE (reason text, span tstzrange, detail jsonb) LANGUAGE sql STABLE AS $$
    SELECT 'missing', piece, '{}'::jsonb
    FROM unnest(tstzmultirange(p_span) - coalesce(
        (SELECT range_agg(c.span) FROM meshgate.coverage c
         WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
           AND c.span && p_span), '{}'::tstzmultirange)) AS piece
    UNION ALL
    SELECT m.kind, m.span * p_span, m.detail || jsonb_build_object('run_id', m.run_id, 'attempts', m.attempts)
    FROM meshgate.mark m
    WHERE int8range(m.version_id, m.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
      AND m.span && p_span AND m.kind IN ('failed', 'suspect', 'removed')
    UNION ALL
    -- A re-evaluation overwrites rows before anybody has judged them.
    SELECT 'begun', meshgate.written(c) * p_span, jsonb_build_object('run_id', c.run_id)
    FROM meshgate.claim c
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
      AND c.span && p_span AND c.state = 'begun' AND meshgate.written(c) && p_span
    UNION ALL
    -- A person's hold is on the model, whatever its version; of a table that is one whole, it is on all of it.
    SELECT 'held', CASE WHEN v.as_of THEN p_span ELSE h.span * p_span END,
           jsonb_build_object('hold_id', h.hold_id, 'reason', h.reason, 'by', h.made_by, 'since', h.made_at)
    FROM meshgate.version v JOIN meshgate.hold h USING (model_id)
    WHERE v.version_id = p_version_id AND h.released_at IS NULL AND (v.as_of OR h.span && p_span)
      AND coalesce(h.version_id, p_version_id) = p_version_id;
$$;

-- From this revision on an as-of table held rows that nobody had judged, until a commit repairs it.
CREATE FUNCTION meshgate.taint(p_version_id bigint, p_from bigint, p_run_id bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO meshgate.dirty_span (version_id, from_revision)
    SELECT v.version_id, p_from FROM meshgate.version v WHERE v.version_id = p_version_id AND v.as_of
    ON CONFLICT (version_id, from_revision) DO UPDATE SET to_revision = NULL, accepted_revision = NULL;
    IF FOUND THEN
        PERFORM meshgate.note('table.tainted', p_run_id, p_version_id, NULL, jsonb_build_object('from_revision', p_from));
    END IF;
END $$;

-- What remains of a claim that was begun and will never be committed: a suspicion, and for an as-of table
-- the revisions between which readers may have met its unchecked rows.
CREATE FUNCTION meshgate.distrust_claim(p_claim_id bigint, p_kind text, p_detail jsonb, p_tried boolean DEFAULT true)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    held meshgate.claim;
BEGIN
    SELECT c.* INTO held FROM meshgate.claim c WHERE c.claim_id = p_claim_id;
    PERFORM meshgate.put_mark(held.version_id, coalesce(held.batch, held.span), p_kind, held.run_id, p_detail, p_tried);
    PERFORM meshgate.taint(held.version_id, held.read_revision, held.run_id);
END $$;

-- Ends the lease of a run that did not end it itself. p_gone: its process and whatever it had set in motion in
-- the engine are proven to be gone, so nothing of it can be written any more. p_heard: this is the last word about it:
-- it says so itself, or its process is gone.
CREATE FUNCTION meshgate.lose_run(p_run_id bigint, p_gone boolean, p_heard boolean, p_why text)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz := meshgate.clock();
    r meshgate.run;
    c record;
BEGIN
    UPDATE meshgate.run SET state = 'lost', ended_at = present, error = coalesce(error, p_why)
    WHERE run_id = p_run_id AND state = 'running' RETURNING * INTO r;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR c IN SELECT k.claim_id FROM meshgate.claim k WHERE k.run_id = p_run_id AND k.state = 'begun'
             ORDER BY k.version_id, k.span LOOP
        PERFORM meshgate.distrust_claim(c.claim_id, 'suspect', jsonb_build_object('cause', p_why));
        UPDATE meshgate.claim SET state = 'lost', ended_at = present,
               batch = CASE WHEN p_heard THEN 'empty' ELSE coalesce(batch, span) END,
               quarantined_until = CASE WHEN p_gone THEN present ELSE r.expires_at + r.grace END
        WHERE claim_id = c.claim_id;
    END LOOP;
    -- A claim that never began has written nothing.
    UPDATE meshgate.claim SET state = 'abandoned', ended_at = present WHERE run_id = p_run_id AND state = 'open';
    PERFORM meshgate.note('run.lost', p_run_id, NULL, NULL, jsonb_build_object('cause', p_why, 'gone', p_gone));
    PERFORM pg_notify('meshgate', p_run_id::text);
END $$;

-- The last word about a run that had been lost before. It may have written until now what it had begun, though somebody
-- else has begun it since, or even committed it: that is suspect anew.
CREATE FUNCTION meshgate.hear_of(p_run_id bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT k.claim_id FROM meshgate.claim k WHERE k.run_id = p_run_id AND k.state = 'lost' AND NOT isempty(k.batch)
             ORDER BY k.version_id, k.span LOOP
        PERFORM meshgate.distrust_claim(c.claim_id, 'suspect',
                                        jsonb_build_object('cause', 'a run that had lost its lease may have written here'), false);
        UPDATE meshgate.claim SET batch = 'empty' WHERE claim_id = c.claim_id;
    END LOOP;
END $$;

-- Is the run still its own master? Locks its row, so that a renewal cannot pass in between.
CREATE FUNCTION meshgate.holds_lease(p_run_id bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r meshgate.run;
BEGIN
    SELECT x.* INTO r FROM meshgate.run x WHERE x.run_id = p_run_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'run % is not in the ledger', p_run_id USING ERRCODE = 'MG003';
    END IF;
    RETURN r.state = 'running' AND r.expires_at > meshgate.clock();
END $$;

---------------------------------------------------------------------------------------------------------------
-- Runs: acquire, renew, finish, bury
---------------------------------------------------------------------------------------------------------------

CREATE FUNCTION meshgate.project_id(p_name text) RETURNS integer LANGUAGE sql VOLATILE AS $$
    INSERT INTO meshgate.project (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING;
    SELECT project_id FROM meshgate.project WHERE name = p_name;
$$;

-- Takes over every run whose lease has expired, of whichever project: its claims would close gates and refuse claims
-- for nothing. The runs that were lost by it.
CREATE FUNCTION meshgate.take_over() RETURNS SETOF bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    r meshgate.run;
BEGIN
    PERFORM meshgate.lock_ledger();
    present := meshgate.clock();
    FOR r IN SELECT x.* FROM meshgate.run x WHERE x.state = 'running' AND x.expires_at <= present
             ORDER BY x.run_id FOR UPDATE LOOP
        -- Read again under the lock of the row: a renewal may just have been waited out.
        IF r.expires_at <= present THEN
            PERFORM meshgate.lose_run(r.run_id, false, false, 'its lease expired');
            RETURN NEXT r.run_id;
        END IF;
    END LOOP;
END $$;

-- A new run, or {"busy": ...} with the one that is in its way: to a deploy, another deploy in the environment; to a
-- run, a deploy of its project and, unless it shares, another run of its project. Expired ones are taken over first.
-- Maintenance is in nobody's way, and nobody in its: what it works on it claims, like everybody.
CREATE FUNCTION meshgate.acquire_run(p_project text, p_environment text, p_purpose text, p_holder jsonb,
                                     p_ttl interval, p_grace interval, p_as_of timestamptz, p_share boolean,
                                     p_warehouse text, p_retry_first interval, p_retry_longest interval)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    r meshgate.run;
    made bigint;
    owner integer;
BEGIN
    PERFORM meshgate.lock_ledger();
    PERFORM meshgate.take_over();
    present := meshgate.clock();
    IF p_ttl <= '0' OR p_grace < '0' THEN
        RAISE EXCEPTION 'a lease needs a positive ttl and a grace that is not negative' USING ERRCODE = 'MG003';
    END IF;
    IF p_as_of > present THEN
        RAISE EXCEPTION 'a run cannot be given an instant in the future: % is after %', p_as_of, present
            USING ERRCODE = 'MG003';
    END IF;
    owner := meshgate.project_id(p_project);
    SELECT x.* INTO r FROM meshgate.run x
    WHERE x.environment = p_environment AND x.state = 'running'
      AND CASE p_purpose WHEN 'deploy' THEN x.purpose = 'deploy'
               WHEN 'run' THEN x.project_id = owner AND (x.purpose = 'deploy' OR x.purpose = 'run' AND NOT p_share)
               ELSE false END
    ORDER BY x.purpose, x.run_id LIMIT 1;
    IF FOUND THEN
        RETURN jsonb_build_object('busy', jsonb_build_object('run_id', r.run_id, 'holder', r.holder, 'purpose', r.purpose,
            'project', (SELECT name FROM meshgate.project WHERE project_id = r.project_id),
            'started_at', r.started_at, 'expires_at', r.expires_at));
    END IF;
    INSERT INTO meshgate.run (project_id, environment, purpose, holder, as_of, started_at, expires_at, ttl, grace,
                              warehouse, retry_first, retry_longest)
    VALUES (owner, p_environment, p_purpose, p_holder, p_as_of, present, present + p_ttl, p_ttl, p_grace,
            p_warehouse, p_retry_first, p_retry_longest)
    RETURNING run_id INTO made;
    RETURN jsonb_build_object('run_id', made, 'started_at', present, 'expires_at', present + p_ttl);
END $$;

-- Lengthens the lease, counted from now. Takes only the row of the run, so that no long queue starves it.
CREATE FUNCTION meshgate.renew_run(p_run_id bigint) RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    until timestamptz;
BEGIN
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
    UPDATE meshgate.run SET expires_at = meshgate.clock() + ttl WHERE run_id = p_run_id RETURNING expires_at INTO until;
    RETURN until;
END $$;

-- The end that a run reports itself. What it began and did not commit is suspect. Returns the state in which the
-- run ended: 'lost' where it had been taken over; its report then ends the quarantine of what it had begun.
-- p_writing: it is not over yet: a thread of the process may still be inside a statement.
CREATE FUNCTION meshgate.finish_run(p_run_id bigint, p_state text, p_counts jsonb, p_error text,
                                    p_writing boolean DEFAULT false) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    holds boolean;
    over boolean;
    c record;
    ended text;
BEGIN
    PERFORM meshgate.lock_ledger();
    holds := meshgate.holds_lease(p_run_id);  -- which may wait for a renewal: the grace is counted from afterwards
    present := meshgate.clock();
    -- An engine elsewhere may go on with a statement whose client has given up: that is waited out.
    SELECT NOT p_writing AND coalesce(r.holder ->> 'engine_in_process' = 'true', false) INTO over
    FROM meshgate.run r WHERE r.run_id = p_run_id;
    IF NOT holds THEN
        PERFORM meshgate.lose_run(p_run_id, over, NOT p_writing, 'its lease expired');
        IF NOT p_writing THEN
            PERFORM meshgate.hear_of(p_run_id);
        END IF;
        UPDATE meshgate.claim SET quarantined_until = least(quarantined_until, present)
        WHERE run_id = p_run_id AND state = 'lost' AND over;
        SELECT state INTO ended FROM meshgate.run WHERE run_id = p_run_id;
        RETURN ended;
    END IF;
    FOR c IN SELECT k.claim_id FROM meshgate.claim k WHERE k.run_id = p_run_id AND k.state = 'begun'
             ORDER BY k.version_id, k.span LOOP
        PERFORM meshgate.distrust_claim(c.claim_id, 'suspect', jsonb_build_object('cause', 'the run ended before it was committed'));
        UPDATE meshgate.claim k SET state = 'lost', ended_at = present,
               batch = CASE WHEN p_writing THEN coalesce(k.batch, k.span) ELSE 'empty' END,
               quarantined_until = CASE WHEN over THEN present ELSE present + r.grace END
        FROM meshgate.run r WHERE k.claim_id = c.claim_id AND r.run_id = p_run_id;
    END LOOP;
    UPDATE meshgate.claim SET state = 'abandoned', ended_at = present WHERE run_id = p_run_id AND state = 'open';
    UPDATE meshgate.run SET state = p_state, ended_at = present, counts = coalesce(p_counts, '{}'), error = p_error
    WHERE run_id = p_run_id;
    PERFORM meshgate.note('run.finished', p_run_id, NULL, NULL,
                          jsonb_build_object('state', p_state, 'counts', p_counts, 'error', p_error));
    PERFORM pg_notify('meshgate', p_run_id::text);
    RETURN p_state;
END $$;

-- A run's process is proven to be gone: takes it over before its lease ends, or remembers what it may have written
-- since it was lost. p_engine_gone: so is whatever it had set in motion in the engine (true only for engines inside the
-- process).
CREATE FUNCTION meshgate.bury_run(p_run_id bigint, p_engine_gone boolean) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lock_ledger();
    PERFORM meshgate.lose_run(p_run_id, p_engine_gone, true, 'its process is gone');
    PERFORM meshgate.hear_of(p_run_id);
    IF p_engine_gone THEN
        UPDATE meshgate.claim SET quarantined_until = least(quarantined_until, meshgate.clock())
        WHERE run_id = p_run_id AND state = 'lost';
        PERFORM pg_notify('meshgate', p_run_id::text);
    END IF;
END $$;

-- Takes a lease away by hand. False where the run had ended already. Its process may live: what it had begun is
-- waited out as after an expiry.
CREATE FUNCTION meshgate.break_run(p_run_id bigint, p_by text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    lived boolean;
BEGIN
    PERFORM meshgate.lock_ledger();
    SELECT x.state = 'running' INTO lived FROM meshgate.run x WHERE x.run_id = p_run_id FOR UPDATE;
    IF lived IS NULL THEN
        RAISE EXCEPTION 'run % is not in the ledger', p_run_id USING ERRCODE = 'MG003';
    END IF;
    PERFORM meshgate.lose_run(p_run_id, false, false, 'its lease was broken by ' || p_by);
    RETURN lived;
END $$;

-- Before a deploy replaces models of its environment: from now on nothing of them begins there, and what others are
-- writing of them for it is told: an empty answer is the moment to promote. Ends with the run.
CREATE FUNCTION meshgate.pause_models(p_run_id bigint, p_models text[])
RETURNS TABLE (run_id bigint, model text, span tstzrange) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
BEGIN
    PERFORM meshgate.lock_ledger();
    present := meshgate.clock();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
    UPDATE meshgate.run r
    SET promoting = ARRAY(SELECT m.model_id FROM meshgate.model m WHERE m.name = ANY (p_models) ORDER BY m.model_id)
    WHERE r.run_id = p_run_id;
    RETURN QUERY
    SELECT k.run_id, m.name, meshgate.written(k)
    FROM meshgate.claim k JOIN meshgate.run r USING (run_id) JOIN meshgate.version v USING (version_id)
    JOIN meshgate.model m USING (model_id) JOIN meshgate.run d ON d.run_id = p_run_id
    WHERE k.state = 'begun' AND k.run_id <> p_run_id AND r.environment = d.environment AND m.name = ANY (p_models)
      AND r.state = 'running' AND r.expires_at > present
    ORDER BY k.run_id, m.name, k.span;
END $$;

-- Ends the pause of what failed, and of what runs died of: how many marks that were.
CREATE FUNCTION meshgate.retry_marks(p_versions bigint[], p_span tstzrange) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    found record;
    ended integer := 0;
BEGIN
    PERFORM meshgate.lock_ledger();
    FOR found IN UPDATE meshgate.mark m SET retry_at = NULL
                 WHERE m.version_id = ANY (p_versions) AND m.retry_at IS NOT NULL AND m.span && p_span
                 RETURNING m.version_id, m.span, m.kind LOOP
        PERFORM meshgate.note('interval.retried', NULL, found.version_id, found.span, jsonb_build_object('mark', found.kind));
        ended := ended + 1;
    END LOOP;
    PERFORM pg_notify('meshgate', '') WHERE ended > 0;
    RETURN ended;
END $$;

---------------------------------------------------------------------------------------------------------------
-- Claims: open, begin, commit, fail, abandon
---------------------------------------------------------------------------------------------------------------

-- Reserves ranges of one version. One row per asked range: its claim, or who has it.
-- p_whole: claim all of its time, as an as-of table's, because its writers would be in each other's way.
CREATE FUNCTION meshgate.open_claims(p_run_id bigint, p_version_id bigint, p_spans tstzrange[], p_whole boolean)
RETURNS TABLE (span tstzrange, claim_id bigint, refused_by bigint, free_at timestamptz) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    known bigint;
    whole boolean;
    wanted tstzrange;
    reserved tstzrange;
BEGIN
    known := meshgate.lock_ledger();
    present := meshgate.clock();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
    SELECT v.as_of OR p_whole INTO whole FROM meshgate.version v WHERE v.version_id = p_version_id;
    FOREACH wanted IN ARRAY p_spans LOOP
        span := wanted;
        claim_id := NULL; refused_by := NULL; free_at := NULL;
        reserved := CASE WHEN whole THEN '(,)'::tstzrange ELSE wanted END;
        -- An as-of table is claimed once, whatever the number of its intervals.
        SELECT k.claim_id INTO claim_id FROM meshgate.claim k
        WHERE (whole OR k.span = reserved) AND k.run_id = p_run_id AND k.version_id = p_version_id
          AND k.state IN ('open', 'begun');
        IF claim_id IS NULL THEN
            SELECT k.run_id, k.quarantined_until INTO refused_by, free_at FROM meshgate.claim k
            WHERE k.version_id = p_version_id AND k.span && reserved
              AND k.state = 'lost' AND k.quarantined_until > present
            ORDER BY k.quarantined_until DESC LIMIT 1;
            IF refused_by IS NULL THEN
                BEGIN
                    INSERT INTO meshgate.claim (run_id, version_id, span, opened_revision, opened_at)
                    VALUES (p_run_id, p_version_id, reserved, known, present) RETURNING claim.claim_id INTO claim_id;
                EXCEPTION WHEN exclusion_violation THEN
                    SELECT k.run_id, x.expires_at INTO refused_by, free_at
                    FROM meshgate.claim k JOIN meshgate.run x USING (run_id)
                    WHERE k.version_id = p_version_id AND k.span && reserved AND k.state IN ('open', 'begun') LIMIT 1;
                END;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Before the first read of a batch: fence, promoted version, gate anew, limits, read_revision. {"read_revision": n}, or
-- {"refused": [{"version_id", "reason", "start", "end", "detail"}]}, or {"wait": {"for", ...}} for what will pass by
-- itself: a deploy that is about to replace the model, as many batches at once as are allowed. The claim stays open.
-- p_parents/p_spans: what the batch reads. p_loaded: versions that must only have been loaded.
-- p_environment: where the version must still be promoted; null for a deploy, which promotes it afterwards.
-- p_of_model, p_of_warehouse: how many batches may be under way at once, of the model and of the run's warehouse. The
-- begun claims of live runs are counted, so nothing leaks and nothing drifts.
CREATE FUNCTION meshgate.begin_claim(p_run_id bigint, p_version_id bigint, p_span tstzrange, p_parents bigint[],
                                     p_spans tstzrange[], p_loaded bigint[], p_environment text,
                                     p_of_model integer, p_of_warehouse integer)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    known bigint;
    present timestamptz;
    piece bigint;
    refused jsonb;
    waits jsonb;
BEGIN
    known := meshgate.lock_ledger();
    present := meshgate.clock();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
    IF p_environment IS NOT NULL THEN
        SELECT jsonb_agg(jsonb_build_object('version_id', v, 'reason', 'superseded', 'start', lower(p_span),
                                            'end', upper(p_span), 'detail', '{}'::jsonb))
        INTO refused
        FROM unnest(p_version_id || p_parents || p_loaded) AS v
        WHERE NOT EXISTS (SELECT FROM meshgate.promotion p
                          WHERE p.environment = p_environment AND p.version_id = v)
          AND (v = p_version_id OR NOT meshgate.is_borrowed(v, p_environment));
        IF refused IS NOT NULL THEN
            RETURN jsonb_build_object('refused', refused);
        END IF;
    END IF;
    SELECT jsonb_agg(jsonb_build_object('version_id', o.parent, 'reason', o.reason, 'start', lower(o.span),
                                        'end', upper(o.span), 'detail', o.detail) ORDER BY lower(o.span))
    INTO refused
    FROM (SELECT need.parent, u.reason, u.span, u.detail
          FROM unnest(p_parents, p_spans) AS need (parent, span), meshgate.unclean(need.parent, need.span) u
          UNION ALL
          SELECT v, 'missing', p_span, '{}'::jsonb FROM unnest(p_loaded) AS v
          WHERE NOT EXISTS (SELECT FROM meshgate.coverage c
                            WHERE int8range(c.version_id, c.version_id, '[]') = int8range(v, v, '[]'))
          UNION ALL
          SELECT v, u.reason, u.span, u.detail FROM unnest(p_loaded) AS v, meshgate.unclean(v, '(,)') u
          WHERE u.reason <> 'missing') o
    -- A standalone audit judges what is held, and may be why it is.
    WHERE o.reason <> 'held' OR (SELECT v.kind FROM meshgate.version v WHERE v.version_id = p_version_id) <> 'audit';
    IF refused IS NOT NULL THEN
        RETURN jsonb_build_object('refused', refused);
    END IF;
    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{open,begun}');
    IF piece IS NULL THEN
        RAISE EXCEPTION 'run % holds no claim on %', p_run_id, p_span USING ERRCODE = 'MG002';
    END IF;
    -- Who has begun already must be able to go on, or those would wait for it who wait for the end of what it began.
    IF (SELECT state = 'open' FROM meshgate.claim WHERE claim_id = piece) THEN
        waits := meshgate.must_wait(p_run_id, p_version_id, p_environment, p_of_model, p_of_warehouse, present);
        IF waits IS NOT NULL THEN
            RETURN jsonb_build_object('wait', waits);
        END IF;
    END IF;
    -- What was begun of a whole table and did not end may have been written, from the first begin on.
    UPDATE meshgate.claim c
    SET state = 'begun', begun_at = present,
        read_revision = CASE WHEN c.state = 'begun' AND c.span = '(,)' THEN c.read_revision ELSE known END,
        batch = CASE WHEN c.state = 'begun' THEN range_merge(c.batch, p_span) ELSE p_span END
    WHERE c.claim_id = piece RETURNING c.read_revision INTO known;
    RETURN jsonb_build_object('read_revision', known);
END $$;

-- What a batch has to wait for although it is ready; null: nothing.
CREATE FUNCTION meshgate.must_wait(p_run_id bigint, p_version_id bigint, p_environment text, p_of_model integer,
                                   p_of_warehouse integer, p_present timestamptz) RETURNS jsonb LANGUAGE sql STABLE AS $$
    WITH under_way AS (
        SELECT v.model_id, r.warehouse FROM meshgate.claim k JOIN meshgate.run r USING (run_id)
        JOIN meshgate.version v USING (version_id)
        WHERE k.state = 'begun' AND r.state = 'running' AND r.expires_at > p_present),
    ours AS (
        SELECT v.model_id, r.warehouse FROM meshgate.version v, meshgate.run r
        WHERE v.version_id = p_version_id AND r.run_id = p_run_id)
    SELECT jsonb_build_object('for', 'promotion', 'run_id', d.run_id)
    FROM meshgate.run d, ours
    WHERE d.state = 'running' AND d.purpose = 'deploy' AND d.expires_at > p_present AND d.run_id <> p_run_id
      AND d.environment = p_environment AND ours.model_id = ANY (d.promoting)
    UNION ALL
    SELECT jsonb_build_object('for', 'limit', 'of', 'model', 'most', p_of_model)
    FROM ours WHERE (SELECT count(*) FROM under_way u WHERE u.model_id = ours.model_id) >= p_of_model
    UNION ALL
    SELECT jsonb_build_object('for', 'limit', 'of', 'warehouse', 'name', ours.warehouse, 'most', p_of_warehouse)
    FROM ours WHERE (SELECT count(*) FROM under_way u WHERE u.warehouse = ours.warehouse) >= p_of_warehouse
    LIMIT 1;
$$;

-- A write that arrives after the lease was lost. Whoever computed the range since cannot know what it overwrote, so
-- the suspicion is newer than any of their reads; and the write has landed, so the quarantine is over.
CREATE FUNCTION meshgate.refuse_write(p_run_id bigint, p_version_id bigint, p_span tstzrange) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lose_run(p_run_id, false, false, 'its lease expired');
    PERFORM meshgate.put_mark(p_version_id, p_span, 'suspect', p_run_id,
                              jsonb_build_object('cause', 'a run that had lost its lease wrote here'));
    PERFORM meshgate.taint(p_version_id, coalesce(
        (SELECT min(k.read_revision) FROM meshgate.claim k
         WHERE k.run_id = p_run_id AND k.version_id = p_version_id AND k.state = 'lost'),
        (SELECT l.revision FROM meshgate.ledger l)), p_run_id);
    UPDATE meshgate.claim SET quarantined_until = least(quarantined_until, meshgate.clock())
    WHERE run_id = p_run_id AND version_id = p_version_id AND state = 'lost' AND span @> p_span;
    PERFORM meshgate.note('commit.refused', p_run_id, p_version_id, p_span, '{}');
END $$;

-- What of a batch that was computed again, and is what it had been, need not be read again: whatever was good, and was
-- in nobody's hands meanwhile. Who was reading then may have met half of the rewrite; so everybody reads again.
CREATE FUNCTION meshgate.unspread(p_version_id bigint, p_claim_id bigint, p_since bigint, p_same tstzrange[])
RETURNS tstzmultirange LANGUAGE sql STABLE AS $$
    WITH RECURSIVE reader (model_id) AS (
        -- Through views, and through what is only a text in the queries of others.
        SELECT e.child_id FROM meshgate.version v JOIN meshgate.edge e ON e.parent_id = v.model_id
        WHERE v.version_id = p_version_id
        UNION
        SELECT e.child_id FROM reader r JOIN meshgate.edge e ON e.parent_id = r.model_id
        WHERE NOT EXISTS (SELECT FROM meshgate.promotion q JOIN meshgate.version w USING (version_id)
                          WHERE q.model_id = r.model_id AND w.kind NOT IN ('view', 'embedded'))),
    suspected AS (
        -- What a deploy builds may read whatever it likes: who reads whom is known of what is promoted.
        SELECT x.version_id FROM meshgate.version x
        WHERE x.model_id IN (SELECT model_id FROM reader)
           OR NOT EXISTS (SELECT FROM meshgate.promotion q WHERE q.model_id = x.model_id AND q.version_id = x.version_id))
    SELECT coalesce(range_agg(c.span), '{}') * range_agg(s.same)
           - coalesce((SELECT range_agg(m.span) FROM meshgate.mark m
                       WHERE m.version_id = p_version_id AND m.kind IN ('failed', 'suspect', 'removed')), '{}')
    FROM unnest(p_same) AS s (same), meshgate.version v, meshgate.coverage c
    WHERE v.version_id = p_version_id AND NOT v.as_of
      AND int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]') AND c.span && s.same
      AND NOT EXISTS (SELECT FROM suspected JOIN meshgate.claim k USING (version_id)
                      WHERE k.state = 'begun' AND k.claim_id <> p_claim_id)
      AND NOT EXISTS (SELECT FROM suspected x JOIN meshgate.coverage r USING (version_id)
                      WHERE x.version_id <> p_version_id AND greatest(r.revision, r.touched_revision) > p_since)
    HAVING count(*) > 0;
$$;

-- Records a batch. The revision of its commit, or null where the lease was lost: then nothing is recorded, and the
-- range is suspect. p_lookback: the units before a fresh one that have to be read again because of it.
-- p_stale_from: the first instant from which a table that is refreshed was stale. p_hold: why a policy keeps the batch from
-- its readers. p_changed_from, p_past, p_upto: from when on an as-of table tells another history than it did, and which one
-- that is now. p_same: what of the batch holds the rows that it held before; it keeps its revision where that is safe.
-- p_judged, p_judged_spans, p_whys: as in hold_judged.
CREATE FUNCTION meshgate.commit_claim(p_run_id bigint, p_version_id bigint, p_span tstzrange, p_verdict text,
                                      p_audits jsonb, p_duration interval, p_rows bigint, p_lookback tstzrange,
                                      p_stale_from timestamptz, p_hold text DEFAULT NULL,
                                      p_changed_from timestamptz DEFAULT NULL, p_past jsonb DEFAULT NULL,
                                      p_upto timestamptz DEFAULT NULL, p_same tstzrange[] DEFAULT NULL,
                                      p_judged bigint[] DEFAULT '{}', p_judged_spans tstzrange[] DEFAULT '{}',
                                      p_whys text[] DEFAULT '{}')
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    piece bigint;
    held meshgate.claim;
    made bigint;
    kind_of text;
    whole boolean;
    refreshed boolean;
    stamped tstzrange;
    kept tstzmultirange;
    asked timestamptz;
    upto timestamptz;
    old record;
BEGIN
    PERFORM meshgate.lock_ledger();
    present := meshgate.clock();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        PERFORM meshgate.refuse_write(p_run_id, p_version_id, p_span);
        RETURN NULL;
    END IF;
    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{begun}');
    IF piece IS NULL THEN
        -- The answer to an earlier call may have been lost on its way: saying it again is not doing it again.
        SELECT max(greatest(c.revision, c.touched_revision)) INTO made FROM meshgate.coverage c
        WHERE c.run_id = p_run_id AND c.version_id = p_version_id AND c.span && p_span
        HAVING range_agg(c.span) @> p_span;
        IF made IS NOT NULL THEN
            RETURN made;
        END IF;
        RAISE EXCEPTION 'run % has not begun %', p_run_id, p_span USING ERRCODE = 'MG002';
    END IF;
    SELECT c.* INTO held FROM meshgate.claim c WHERE c.claim_id = piece;
    SELECT v.as_of, v.kind INTO whole, kind_of FROM meshgate.version v WHERE v.version_id = p_version_id;
    refreshed := kind_of IN ('full', 'view');
    made := meshgate.next_revision();
    stamped := p_span;
    IF refreshed THEN
        -- A refresh stamps its new part, and what there is from the first instant on that was stale or that it was
        -- asked to redo. Not what a crash left suspect: that touches only the readers in flight (dirty spans).
        SELECT least(lower(p_span), greatest(min(coalesce(why.since, known.first)), known.first)),
               greatest(upper(p_span), known.frontier)
        INTO asked, upto
        FROM (SELECT lower(m.span) AS since FROM meshgate.mark m
              WHERE m.version_id = p_version_id AND m.kind IN ('requested', 'removed') AND m.revision <= held.read_revision
              UNION ALL SELECT p_stale_from WHERE p_stale_from IS NOT NULL
              UNION ALL SELECT p_changed_from WHERE p_changed_from IS NOT NULL) why,
             (SELECT min(lower(c.span)) AS first, max(upper(c.span)) AS frontier
              FROM meshgate.coverage c WHERE c.version_id = p_version_id) known
        WHERE known.first IS NOT NULL
        GROUP BY known.first, known.frontier;
        IF FOUND THEN
            stamped := tstzrange(asked, upto);
        END IF;
    END IF;
    -- Asked for only where something was compared: it may have to read what all readers ever read.
    kept := CASE WHEN p_same IS NULL THEN '{}'
                 ELSE coalesce(meshgate.unspread(p_version_id, piece, held.read_revision, p_same) * tstzmultirange(p_span), '{}') END;
    WITH part AS MATERIALIZED (
        SELECT kept_span AS span, c.revision, c.committed_at, made AS touched_revision
        FROM meshgate.coverage c, unnest(tstzmultirange(c.span) * kept) AS kept_span
        WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]') AND c.span && p_span
        UNION ALL
        SELECT new_span, made, present, NULL FROM unnest(tstzmultirange(stamped) - kept) AS new_span),
    carved AS MATERIALIZED (
        SELECT count(*) AS parts, meshgate.carve_coverage(p_version_id, stamped) FROM part)
    INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, run_id, verdict, audits, duration, rows, committed_at,
                                   read_at, touched_revision)
    SELECT p_version_id, part.span, part.revision, held.read_revision, p_run_id, p_verdict, coalesce(p_audits, '[]'),
           CASE WHEN carved.parts = 1 THEN p_duration END, CASE WHEN carved.parts = 1 THEN p_rows END, part.committed_at,
           coalesce(r.as_of, held.begun_at), part.touched_revision
    FROM part, carved, meshgate.run r WHERE r.run_id = p_run_id;
    PERFORM meshgate.note('interval.committed', p_run_id, p_version_id, p_span, jsonb_build_object(
        'verdict', p_verdict, 'rows', p_rows, 'read_revision', held.read_revision,
        'stamped', jsonb_build_array(lower(stamped), upper(stamped)))
        || CASE WHEN p_changed_from IS NOT NULL THEN jsonb_build_object('changed_from', p_changed_from) ELSE '{}' END
        || CASE WHEN NOT isempty(kept) THEN jsonb_build_object('touched', (
               SELECT jsonb_agg(jsonb_build_array(lower(k), upper(k)) ORDER BY k) FROM unnest(kept) AS k)) ELSE '{}' END);
    IF p_changed_from IS NOT NULL THEN
        PERFORM meshgate.restamp(p_version_id, p_changed_from, made);
    END IF;
    IF p_past IS NOT NULL THEN
        INSERT INTO meshgate.past (version_id, upto, prints) VALUES (p_version_id, p_upto, p_past)
        ON CONFLICT (version_id) DO UPDATE SET upto = excluded.upto, prints = excluded.prints;
    END IF;
    IF whole THEN
        -- A refresh makes the whole table anew. Merging writes what the interval has once more, and leaves what was
        -- asked for or went wrong elsewhere. Appending mends nothing: whether rows are doubled, a person must say.
        IF kind_of <> 'incremental_unmanaged' THEN
            -- Of a table that merges, the doubt is over when all that was being written has been written once more.
            UPDATE meshgate.mark m SET batch = range_merge(tstzmultirange(m.batch) - tstzmultirange(p_span))
            WHERE m.version_id = p_version_id AND m.revision <= held.read_revision AND m.kind IN ('failed', 'suspect')
              AND NOT refreshed AND NOT m.batch <@ p_span AND NOT lower_inf(m.batch);
            DELETE FROM meshgate.mark m
            WHERE m.version_id = p_version_id AND m.revision <= held.read_revision
              AND (refreshed OR m.kind IN ('failed', 'suspect')
                                AND (m.batch IS NULL OR m.batch <@ p_span OR lower_inf(m.batch)));
            PERFORM meshgate.carve_marks(p_version_id, p_span, held.read_revision, named)
            FROM unnest('{removed,requested,lookback}'::text[]) AS named;
        END IF;
        -- Asked by itself: of EXISTS the planner may think that the first rows of the table will do, and read all of them.
        PERFORM FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.kind IN ('failed', 'suspect');
        IF NOT FOUND THEN
            UPDATE meshgate.dirty_span SET to_revision = made WHERE version_id = p_version_id AND to_revision IS NULL;
        END IF;
    ELSE
        PERFORM meshgate.carve_marks(p_version_id, p_span, held.read_revision);
    END IF;
    IF whole THEN
        -- The table stays reserved for the next batch of the run; or for the rest of this one.
        UPDATE meshgate.claim c SET state = CASE WHEN refreshed OR c.batch <@ p_span THEN 'open' ELSE 'begun' END,
               batch = CASE WHEN NOT refreshed AND NOT c.batch <@ p_span
                            THEN range_merge(tstzmultirange(c.batch) - tstzmultirange(p_span)) END
        WHERE c.claim_id = held.claim_id;
    ELSE
        UPDATE meshgate.claim SET state = 'committed', ended_at = present WHERE claim_id = held.claim_id;
    END IF;
    -- The obligation is made in the transaction that makes it necessary: units that were read since the claim was
    -- opened have seen what this one saw.
    FOR old IN SELECT c.span * p_lookback AS span FROM meshgate.coverage c
               WHERE p_lookback IS NOT NULL AND NOT isempty(p_lookback)
                 AND int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
                 AND c.span && p_lookback AND c.read_revision < held.opened_revision
                 AND c.verdict <> 'accepted' ORDER BY c.span LOOP  -- what a person took as it is, stays so
        PERFORM meshgate.put_mark(p_version_id, old.span, 'lookback', p_run_id, '{}');
    END LOOP;
    PERFORM meshgate.hold_by_policy(p_version_id, CASE WHEN refreshed THEN '(,)' ELSE p_span END, p_span, p_hold, p_run_id);
    PERFORM meshgate.hold_judged(p_version_id, p_judged, p_judged_spans, p_whys, p_run_id);
    PERFORM pg_notify('meshgate', p_version_id::text);
    RETURN made;
END $$;

-- Records that an evaluation failed. False where the lease was lost (the range is then suspect).
CREATE FUNCTION meshgate.fail_claim(p_run_id bigint, p_version_id bigint, p_span tstzrange, p_detail jsonb)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    piece bigint;
BEGIN
    PERFORM meshgate.lock_ledger();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        PERFORM meshgate.refuse_write(p_run_id, p_version_id, p_span);
        RETURN false;
    END IF;
    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{begun}');
    IF piece IS NULL THEN
        -- The answer to an earlier call may have been lost on its way.
        IF EXISTS (SELECT FROM meshgate.claim c WHERE c.run_id = p_run_id AND c.version_id = p_version_id
                   AND c.state = 'failed' AND c.span @> p_span) THEN
            RETURN true;
        END IF;
        RAISE EXCEPTION 'run % has not begun %', p_run_id, p_span USING ERRCODE = 'MG002';
    END IF;
    -- What failed is the interval; the mark names it, also where the claim is on the whole table.
    PERFORM meshgate.distrust_claim(piece, 'failed',
        coalesce(p_detail, '{}') || jsonb_build_object('start', lower(p_span), 'end', upper(p_span)),
        coalesce((p_detail ->> 'tried')::boolean, true));
    UPDATE meshgate.claim SET state = 'failed', ended_at = meshgate.clock() WHERE claim_id = piece;
    PERFORM pg_notify('meshgate', p_version_id::text);
    RETURN true;
END $$;

-- Gives back what was begun, and was not finished although the run goes on: the half of a batch that is not ready any
-- more, after the whole was written. False where the run has not begun it, or has lost its lease.
CREATE FUNCTION meshgate.give_up_claim(p_run_id bigint, p_version_id bigint, p_span tstzrange)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    piece bigint;
BEGIN
    PERFORM meshgate.lock_ledger();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        PERFORM meshgate.refuse_write(p_run_id, p_version_id, p_span);
        RETURN false;
    END IF;
    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{begun}');
    IF piece IS NULL THEN
        RETURN false;
    END IF;
    PERFORM meshgate.distrust_claim(piece, 'suspect', jsonb_build_object(
        'cause', 'an evaluation wrote here and was not finished'), false);
    UPDATE meshgate.claim SET state = 'failed', ended_at = meshgate.clock() WHERE claim_id = piece;
    PERFORM pg_notify('meshgate', p_version_id::text);
    RETURN true;
END $$;

-- Gives back what was reserved and never begun: all of the run, of one version, or of one range of it.
CREATE FUNCTION meshgate.abandon_claims(p_run_id bigint, p_version_id bigint, p_span tstzrange) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ended integer;
    whole boolean;
BEGIN
    PERFORM meshgate.lock_ledger();
    SELECT v.as_of INTO whole FROM meshgate.version v WHERE v.version_id = p_version_id;
    IF p_span IS NOT NULL AND NOT whole THEN
        PERFORM meshgate.claim_piece(p_run_id, p_version_id, p_span, '{open}');
    END IF;
    UPDATE meshgate.claim c SET state = 'abandoned', ended_at = meshgate.clock()
    WHERE c.run_id = p_run_id AND c.state = 'open' AND (p_version_id IS NULL OR c.version_id = p_version_id)
      AND (p_span IS NULL OR whole OR c.span <@ p_span);
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END $$;

-- Something was done to a whole table that leaves its rows as they are. False where the lease was lost, or the table is not
-- reserved: then nothing is noted. Nothing but the next turn of maintenance goes by it.
CREATE FUNCTION meshgate.note_maintenance(p_run_id bigint, p_version_id bigint, p_operation text, p_detail jsonb)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lock_ledger();
    IF NOT meshgate.holds_lease(p_run_id) OR NOT EXISTS (
        SELECT FROM meshgate.claim c
        WHERE c.run_id = p_run_id AND c.version_id = p_version_id AND c.state = 'open' AND c.span = '(,)') THEN
        RETURN false;
    END IF;
    PERFORM meshgate.note('table.maintained', p_run_id, p_version_id, NULL,
                          coalesce(p_detail, '{}') || jsonb_build_object('operation', p_operation));
    RETURN true;
END $$;

-- SQLMesh's own record now holds what the run committed; with a refresh, also what earlier runs had committed of the
-- whole table. Informs reconciliation, decides nothing: no fence. But the lock, for whoever holds it may be rewriting
-- the same rows in another order.
-- p_altered: when it had written the table, as SQLMesh's record says now.
CREATE FUNCTION meshgate.note_mirrored(p_run_id bigint, p_version_id bigint, p_span tstzrange, p_altered timestamptz DEFAULT NULL)
RETURNS void LANGUAGE sql VOLATILE AS $$
    SELECT meshgate.lock_ledger();
    UPDATE meshgate.version v SET altered_at = greatest(v.altered_at, p_altered)
    WHERE v.version_id = p_version_id AND p_altered IS NOT NULL;
    UPDATE meshgate.coverage c SET mirrored_at = meshgate.clock()
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
      AND c.span && p_span AND c.mirrored_at IS NULL
      AND (c.run_id = p_run_id
           OR EXISTS (SELECT FROM meshgate.version v WHERE v.version_id = p_version_id AND v.kind IN ('full', 'view')));
$$;

---------------------------------------------------------------------------------------------------------------
-- The manifest follows SQLMesh's environments
---------------------------------------------------------------------------------------------------------------

-- The key of a version, registered when it is first met: a deploy writes to it before it is promoted.
CREATE FUNCTION meshgate.register_version(p_project text, p_model text, p_version text, p_kind text, p_as_of boolean)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    known bigint;
    owner integer;
    asked integer;
    found_version bigint;
BEGIN
    SELECT v.version_id INTO found_version FROM meshgate.version v JOIN meshgate.model m USING (model_id)
    JOIN meshgate.project p USING (project_id)
    WHERE m.name = p_model AND v.version = p_version AND p.name = p_project;
    IF FOUND THEN
        RETURN found_version;
    END IF;
    PERFORM meshgate.lock_ledger();
    asked := meshgate.project_id(p_project);
    INSERT INTO meshgate.model (name, project_id) VALUES (p_model, asked) ON CONFLICT (name) DO NOTHING;
    SELECT m.model_id, m.project_id INTO known, owner FROM meshgate.model m WHERE m.name = p_model;
    IF owner <> asked THEN
        UPDATE meshgate.model SET project_id = asked WHERE model_id = known;
        PERFORM meshgate.note('model.moved', NULL, NULL, NULL, jsonb_build_object('model', p_model, 'to', p_project));
    END IF;
    INSERT INTO meshgate.version (model_id, version, kind, as_of) VALUES (known, p_version, p_kind, p_as_of)
    ON CONFLICT (model_id, version) DO NOTHING;
    SELECT v.version_id INTO found_version FROM meshgate.version v WHERE v.model_id = known AND v.version = p_version;
    RETURN found_version;
END $$;

-- What a project declares, by its last deploy. p_environment: of another environment than the project's own, which changes
-- nothing for that one; null: of its own.
CREATE FUNCTION meshgate.save_manifest(p_project text, p_manifest jsonb, p_sqlmesh text, p_sqlglot text, p_environment text)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    known integer;
    others jsonb;
BEGIN
    PERFORM meshgate.lock_ledger();
    known := meshgate.project_id(p_project);  -- not in the WHERE: an UPDATE does not see the row that it would add
    SELECT coalesce(p.manifest -> 'environments', '{}') INTO others FROM meshgate.project p WHERE p.project_id = known;
    IF p_environment IS NOT NULL THEN
        others := others || jsonb_build_object(p_environment, p_manifest);
    ELSE
        -- An environment of its own that is another one now keeps what was declared for it.
        SELECT (others || CASE WHEN others ? (p.manifest ->> 'environment') OR p.manifest ->> 'environment' IS NULL THEN '{}'
                               ELSE jsonb_build_object(p.manifest ->> 'environment', p.manifest - 'environments') END)
               - coalesce(p_manifest ->> 'environment', '')
        INTO others FROM meshgate.project p WHERE p.project_id = known;
    END IF;
    UPDATE meshgate.project p SET deployed_at = meshgate.clock(), sqlmesh_version = p_sqlmesh, sqlglot_version = p_sqlglot,
        -- Until it is deployed in its own environment, what it declares elsewhere stands in.
        manifest = CASE WHEN p_environment IS NULL OR p.manifest = '{}' THEN p_manifest ELSE p.manifest - 'environments' END
                   || CASE WHEN others = '{}' THEN '{}' ELSE jsonb_build_object('environments', others) END
    WHERE p.project_id = known;
END $$;

-- A project's own environment; null where it was not deployed there yet.
CREATE FUNCTION meshgate.home_of(p_project_id integer) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT o.manifest ->> 'environment' FROM meshgate.project o
    WHERE o.project_id = p_project_id AND NOT coalesce(o.manifest -> 'environments', '{}') ? (o.manifest ->> 'environment');
$$;

-- Is a version what another SQLMesh state's reader finds under its name in an environment to which no deploy brought the model?
CREATE FUNCTION meshgate.is_borrowed(p_version_id bigint, p_environment text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM meshgate.promotion q JOIN meshgate.model m USING (model_id)
                   WHERE q.version_id = p_version_id AND q.environment = meshgate.home_of(m.project_id)
                     AND NOT EXISTS (SELECT FROM meshgate.promotion p
                                     WHERE p.environment = p_environment AND p.model_id = m.model_id));
$$;

-- Does its project's own environment, which its runs keep up, promote a version, other than the one that is asked about? Then
-- whatever was to be read again of it was asked of it too, and who goes back to it finds what production has. What a project
-- declared elsewhere stands in for its own environment until it is deployed there: that is none.
CREATE FUNCTION meshgate.lives_at_home(p_version_id bigint, p_but_for text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM meshgate.promotion q JOIN meshgate.model m USING (model_id)
                   WHERE q.version_id = p_version_id AND q.environment <> p_but_for AND q.environment = meshgate.home_of(m.project_id));
$$;

-- Makes the ledger's picture of one environment what SQLMesh promotes there. The models whose version changed.
-- A version that replaces another takes the promotion's own revision: whoever read the old one before reads anew.
-- What it had read before the old one was made, or was asked to be made again, is suspect: marks belong to the model.
-- p_projects: whose models this SQLMesh state holds; those of projects with another state are left alone.
-- p_settled: what is not stale by what it promotes now, as in settle_models, by what the ledger held at revision p_at; null:
-- nothing has changed about that. Where it holds more by now, the answer is one null, and nothing was done.
CREATE FUNCTION meshgate.sync_environment(p_environment text, p_plan_id text, p_projects text[], p_models jsonb, p_edges jsonb,
                                          p_settled jsonb, p_at bigint, p_others jsonb DEFAULT '[]')
RETURNS SETOF text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    made bigint;
    changed bigint[];
    gone bigint[];
    doubt record;
    other record;
BEGIN
    IF meshgate.lock_ledger() <> p_at AND p_settled IS NOT NULL THEN
        RETURN NEXT NULL;
        RETURN;
    END IF;
    INSERT INTO meshgate.environment (environment, plan_id, synced_at) VALUES (p_environment, p_plan_id, meshgate.clock())
    ON CONFLICT (environment) DO UPDATE SET plan_id = excluded.plan_id, synced_at = excluded.synced_at;
    CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS
    SELECT m.model_id, v.version_id, x.* FROM jsonb_to_recordset(p_models) AS x (
        name text, version text, unit text, cron text, cron_tz text, start_at timestamptz, end_at timestamptz,
        lookback integer, batch_size integer, depends_on_past boolean, allow_partials boolean,
        restate_cron text, restate_units integer, seen_at timestamptz)
    JOIN meshgate.model m USING (name) JOIN meshgate.version v USING (model_id, version);
    SELECT array_agg(i.version_id) INTO changed
    FROM incoming i JOIN meshgate.promotion p ON p.environment = p_environment AND p.model_id = i.model_id
    WHERE p.version_id <> i.version_id;
    -- Who is of another state, and reads it by its name, had something else under that name before.
    SELECT changed || array_agg(i.version_id) INTO changed
    FROM incoming i
    WHERE NOT EXISTS (SELECT FROM meshgate.promotion p WHERE p.environment = p_environment AND p.model_id = i.model_id)
      AND EXISTS (SELECT FROM meshgate.edge e JOIN meshgate.model c ON c.model_id = e.child_id JOIN meshgate.project o USING (project_id)
                  WHERE e.environment = p_environment AND e.parent_id = i.model_id AND o.name <> ALL (p_projects));
    IF changed IS NOT NULL THEN
        FOR doubt IN
            SELECT older.version_id, older.kind, unnest(range_agg(older.span)) AS span
            FROM (SELECT i.version_id, 'suspect' AS kind, n.span * o.span AS span
                  FROM incoming i JOIN meshgate.promotion p ON p.environment = p_environment AND p.model_id = i.model_id
                  JOIN meshgate.coverage n ON n.version_id = i.version_id
                  JOIN meshgate.coverage o ON o.version_id = p.version_id AND o.span && n.span
                       AND greatest(o.revision, o.touched_revision) > n.read_revision
                  WHERE p.version_id <> i.version_id AND NOT meshgate.lives_at_home(i.version_id, p_environment)
                  UNION ALL
                  SELECT i.version_id, CASE WHEN m.kind IN ('requested', 'lookback') THEN m.kind ELSE 'suspect' END,
                         n.span * m.span
                  FROM incoming i JOIN meshgate.promotion p ON p.environment = p_environment AND p.model_id = i.model_id
                  JOIN meshgate.coverage n ON n.version_id = i.version_id
                  JOIN meshgate.mark m ON m.version_id = p.version_id AND m.span && n.span AND m.revision > n.read_revision
                  WHERE p.version_id <> i.version_id AND NOT meshgate.lives_at_home(i.version_id, p_environment)) older
            GROUP BY older.version_id, older.kind ORDER BY 1, 2, 3
        LOOP
            PERFORM meshgate.put_mark(doubt.version_id, doubt.span, doubt.kind, NULL, jsonb_build_object(
                'cause', 'the version that it replaces was made, or was to be made, after this one had read its sources'));
        END LOOP;
        made := meshgate.next_revision();
        UPDATE meshgate.coverage SET revision = made WHERE version_id = ANY (changed);
    ELSE
        SELECT revision INTO made FROM meshgate.ledger;
    END IF;
    WITH removed AS (
        DELETE FROM meshgate.promotion p USING meshgate.model m, meshgate.project o
        WHERE p.environment = p_environment AND p.model_id NOT IN (SELECT model_id FROM incoming)
          AND m.model_id = p.model_id AND o.project_id = m.project_id AND o.name = ANY (p_projects)
        RETURNING p.version_id)
    SELECT array_agg(version_id) INTO gone FROM removed;
    INSERT INTO meshgate.promotion (environment, model_id, version_id, revision, promoted_at, unit, cron, cron_tz, start_at,
                                    end_at, lookback, batch_size, depends_on_past, allow_partials, restate_cron, restate_units, answered_at)
    SELECT p_environment, i.model_id, i.version_id, made, meshgate.clock(), i.unit, i.cron, coalesce(i.cron_tz, 'UTC'),
           i.start_at, i.end_at, coalesce(i.lookback, 0), i.batch_size, coalesce(i.depends_on_past, false),
           coalesce(i.allow_partials, false), i.restate_cron, i.restate_units,
           -- Its first tick is one that comes: what was there before is not computed again for having been found.
           CASE WHEN i.restate_cron IS NOT NULL THEN coalesce(i.seen_at, meshgate.clock()) END
    FROM incoming i
    ON CONFLICT (environment, model_id) DO UPDATE SET
        version_id = excluded.version_id, unit = excluded.unit, cron = excluded.cron, cron_tz = excluded.cron_tz,
        start_at = excluded.start_at, end_at = excluded.end_at, lookback = excluded.lookback,
        batch_size = excluded.batch_size, depends_on_past = excluded.depends_on_past,
        allow_partials = excluded.allow_partials,
        restate_cron = excluded.restate_cron, restate_units = excluded.restate_units,
        answered_at = CASE WHEN promotion.restate_cron = excluded.restate_cron THEN promotion.answered_at
                           ELSE excluded.answered_at END,
        revision = CASE WHEN promotion.version_id = excluded.version_id THEN promotion.revision ELSE excluded.revision END,
        promoted_at = CASE WHEN promotion.version_id = excluded.version_id THEN promotion.promoted_at ELSE excluded.promoted_at END,
        settled_revision = CASE WHEN promotion.version_id = excluded.version_id THEN promotion.settled_revision ELSE 0 END;
    IF p_settled IS NOT NULL THEN
        UPDATE meshgate.promotion SET settled_revision = 0 WHERE environment = p_environment;
        PERFORM meshgate.settle_models(p_environment, p_settled, made);
        -- Where the same versions are promoted too, nothing has happened: nobody there is stale by their new revision.
        FOR other IN SELECT x.environment, x.settled FROM jsonb_to_recordset(p_others) AS x (environment text, settled jsonb)
                     WHERE changed IS NOT NULL LOOP
            PERFORM meshgate.settle_models(other.environment, other.settled, made);
            PERFORM meshgate.note('environment.changed', NULL, NULL, NULL, jsonb_build_object(
                'environment', other.environment, 'plan_id', NULL, 'versions', '{}'::bigint[], 'removed', '{}'::bigint[],
                'settled', other.settled, 'last_run', (SELECT max(r.run_id) FROM meshgate.run r)));
        END LOOP;
    END IF;
    DELETE FROM meshgate.edge e USING meshgate.model m, meshgate.project o
    WHERE e.environment = p_environment AND m.model_id = e.child_id AND o.project_id = m.project_id
      AND o.name = ANY (p_projects);
    INSERT INTO meshgate.edge (environment, child_id, parent_id, mode, from_offset, to_offset)
    SELECT p_environment, c.model_id, p.model_id, x.mode, x.from_offset, x.to_offset
    FROM jsonb_to_recordset(p_edges) AS x (child text, parent text, mode text, from_offset interval, to_offset interval)
    JOIN meshgate.model c ON c.name = x.child JOIN meshgate.model p ON p.name = x.parent;
    DROP TABLE incoming;
    -- Which runs may still work by what was promoted before: those up to `last_run`.
    PERFORM meshgate.note(CASE WHEN changed IS NULL THEN 'environment.changed' ELSE 'environment.promoted' END,
        NULL, NULL, NULL, jsonb_build_object(
            'environment', p_environment, 'plan_id', p_plan_id, 'versions', coalesce(changed, '{}'),
            'removed', coalesce(gone, '{}'), 'settled', p_settled, 'last_run', (SELECT max(r.run_id) FROM meshgate.run r)))
    WHERE changed IS NOT NULL OR gone IS NOT NULL OR p_settled IS NOT NULL;
    PERFORM meshgate.mark_requests();
    RETURN QUERY SELECT m.name FROM meshgate.version v JOIN meshgate.model m USING (model_id) WHERE v.version_id = ANY (changed);
END $$;

-- What was recorded of these models up to a revision and was not stale by what the ledger held at that revision.
-- p_settled: {"model", "version_id", "spans": [[start, end], ...]} each.
CREATE FUNCTION meshgate.settle_models(p_environment text, p_settled jsonb, p_revision bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lock_ledger();
    UPDATE meshgate.promotion p SET settled_revision = p_revision, settled = coalesce(
        (SELECT range_agg(tstzrange((piece ->> 0)::timestamptz, (piece ->> 1)::timestamptz))
         FROM jsonb_array_elements(x.spans) AS piece), '{}')
    FROM jsonb_to_recordset(p_settled) AS x (model text, version_id bigint, spans jsonb) JOIN meshgate.model m ON m.name = x.model
    WHERE p.environment = p_environment AND p.model_id = m.model_id AND p.version_id = x.version_id
      AND p.settled_revision <= p_revision;
END $$;

---------------------------------------------------------------------------------------------------------------
-- Reconciliation with what SQLMesh recorded (G6)
---------------------------------------------------------------------------------------------------------------

-- Remembers up to which state of SQLMesh's tables an environment was reconciled.
CREATE FUNCTION meshgate.set_fingerprint(p_environment text, p_fingerprint text) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE meshgate.environment SET fingerprint = p_fingerprint WHERE environment = p_environment;
$$;

-- Compares SQLMesh's record of one version, read after p_read_at, with ours. What was found: added (by somebody
-- else), suspect (the part of it that may be wrong), removed (by somebody else), unmirrored (a run that ended
-- between our commit and SQLMesh's record: evaluated again, because nothing proves that it was not removed since).
-- p_trusted: what is taken as it is; at the first look at a state that is older than the ledger.
-- p_gated: does the version have gated parents? If not, unknown time is taken as it is: there is nothing it could
-- have read too early.
CREATE FUNCTION meshgate.reconcile_version(p_version_id bigint, p_state tstzrange[], p_trusted tstzrange[], p_gated boolean,
                                           p_read_at timestamptz)
RETURNS TABLE (finding text, span tstzrange) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v meshgate.version;
    recorded tstzmultirange;
    ours tstzmultirange;
    trusted tstzmultirange;
    made bigint;
    row record;
BEGIN
    PERFORM meshgate.lock_ledger();
    SELECT x.* INTO v FROM meshgate.version x WHERE x.version_id = p_version_id;
    SELECT coalesce(range_agg(r), '{}') INTO recorded FROM unnest(p_state) r;
    SELECT coalesce(range_agg(r), '{}') INTO trusted FROM unnest(p_trusted) r;
    SELECT coalesce(range_agg(c.span), '{}') INTO ours FROM meshgate.coverage c
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]');

    FOR row IN
        SELECT piece, true AS proven FROM unnest((recorded - ours) * trusted) AS piece
        UNION ALL SELECT piece, false FROM unnest(recorded - ours - trusted) AS piece ORDER BY 1
    LOOP
        made := meshgate.next_revision();
        INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, run_id, verdict, committed_at, mirrored_at)
        VALUES (p_version_id, row.piece, made, CASE WHEN row.proven THEN made - 1 ELSE 0 END,
                NULL, 'foreign', meshgate.clock(), meshgate.clock());
        finding := 'added'; span := row.piece;
        RETURN NEXT;
        PERFORM meshgate.note('interval.added_elsewhere', NULL, p_version_id, row.piece, jsonb_build_object('trusted', row.proven));
        -- Over time that the ledger already knows, nobody can tell which of the two writes came last.
        IF (p_gated AND NOT row.proven)
           OR EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.span && row.piece)
           OR EXISTS (SELECT FROM meshgate.claim k WHERE k.version_id = p_version_id AND k.span && row.piece
                      AND (k.state = 'begun' OR k.state = 'lost' AND k.quarantined_until > meshgate.clock())) THEN
            PERFORM meshgate.put_mark(p_version_id, row.piece, 'suspect', NULL, jsonb_build_object(
                'cause', 'recorded by plain SQLMesh, and not proven to have read complete parents'));
            -- Nobody knows when it was written, and so who has met it.
            PERFORM meshgate.taint(p_version_id, 0, NULL);
            finding := 'suspect';
            RETURN NEXT;
        END IF;
    END LOOP;

    -- What a person accepted, and no run took along to SQLMesh, is there only because somebody else evaluated it.
    FOR row IN
        SELECT piece, c.revision FROM meshgate.coverage c, unnest(tstzmultirange(c.span) * recorded) AS piece
        WHERE c.version_id = p_version_id AND c.verdict = 'accepted' AND c.run_id IS NULL AND c.mirrored_at IS NULL
          AND c.committed_at < p_read_at ORDER BY 1
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.span @> row.piece
                              AND m.kind = 'suspect' AND m.revision > row.revision);
        PERFORM meshgate.put_mark(p_version_id, row.piece, 'suspect', NULL, jsonb_build_object(
            'cause', 'recorded by plain SQLMesh over time that a person had accepted as it was'));
        finding := 'suspect'; span := row.piece;
        RETURN NEXT;
    END LOOP;

    FOR row IN
        -- What a run recorded here, and ended before it noted that SQLMesh has it too, SQLMesh may hold because of
        -- somebody else who evaluated it meanwhile: it is looked at whole.
        SELECT piece, c.mirrored_at IS NOT NULL AS seen, c.revision
        FROM meshgate.coverage c LEFT JOIN meshgate.run r USING (run_id),
             unnest(tstzmultirange(c.span) - CASE WHEN c.mirrored_at IS NULL THEN '{}' ELSE recorded END) AS piece
        WHERE c.version_id = p_version_id
          AND CASE WHEN c.mirrored_at IS NULL
                   -- A live run records in SQLMesh a moment after it recorded here. What no run ever took along to
                   -- SQLMesh was never there.
                   THEN c.committed_at < p_read_at AND c.run_id IS NOT NULL
                        AND (r.state <> 'running' OR r.expires_at <= meshgate.clock())
                   ELSE c.mirrored_at < p_read_at END
        ORDER BY 1
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.span @> row.piece
                              AND m.kind IN ('removed', 'suspect', 'failed') AND m.revision > row.revision);
        finding := CASE WHEN row.seen THEN 'removed' ELSE 'unmirrored' END; span := row.piece;
        PERFORM meshgate.put_mark(p_version_id, row.piece, CASE WHEN row.seen OR v.as_of THEN 'removed' ELSE 'suspect' END, NULL,
            jsonb_build_object('cause', CASE WHEN row.seen THEN 'removed from SQLMesh''s record by somebody else'
                ELSE 'a run ended before SQLMesh recorded it' END, 'start', lower(row.piece), 'end', upper(row.piece)));
        RETURN NEXT;
    END LOOP;
END $$;

-- What plain SQLMesh computed again. Its record shows what was added and removed, and when a table was written last; never
-- what else was written. What was found: suspect (p_again, as far as it was recorded: what an addition is taken to have
-- computed again besides), rewritten (written since it was last accounted for, nobody knows where).
-- And removed: what somebody has removed from SQLMesh's record since the last look (p_keys and p_removed: its log of that),
-- also where it stands there again. Whoever began to evaluate it before this look, and recorded it afterwards, may have read
-- before the removal.
-- p_altered: when the table was written last. p_explained: whether an addition explains that. p_suspect: whether a version
-- that was rewritten is suspect as a whole; else it is only told.
CREATE FUNCTION meshgate.find_rewritten(p_version_id bigint, p_again tstzrange[], p_altered timestamptz, p_explained boolean,
                                        p_suspect boolean, p_keys text[], p_removed tstzrange[])
RETURNS TABLE (finding text, span tstzrange) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v meshgate.version;
    ours tstzmultirange;
    doubtful tstzmultirange;
    gone tstzmultirange;
    unknown boolean := false;
    why text := 'plain SQLMesh recorded what is newer, and is taken to have computed this again with it';
BEGIN
    PERFORM meshgate.lock_ledger();
    SELECT x.* INTO v FROM meshgate.version x WHERE x.version_id = p_version_id;
    SELECT coalesce(range_agg(c.span), '{}') INTO ours FROM meshgate.coverage c
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]');
    SELECT ours * coalesce(range_agg(r), '{}') INTO doubtful FROM unnest(p_again) r;
    SELECT coalesce(range_agg(known.span * log.span), '{}') INTO gone
    FROM unnest(p_keys, p_removed) AS log (key, span) JOIN meshgate.read_time(p_version_id) known ON known.span && log.span
    WHERE log.key <> ALL (v.removals);
    UPDATE meshgate.version x SET removals = p_keys
    WHERE x.version_id = p_version_id AND (v.removals IS NULL OR NOT (v.removals @> p_keys AND v.removals <@ p_keys));
    FOR span IN SELECT unnest(gone) LOOP
        PERFORM meshgate.put_mark(p_version_id, span, 'removed', NULL, jsonb_build_object(
            'cause', 'removed from SQLMesh''s record by somebody else', 'start', lower(span), 'end', upper(span)));
        finding := 'removed';
        RETURN NEXT;
    END LOOP;
    -- A live run that has written there notes so in a moment: the next look tells.
    IF p_altered > coalesce(v.altered_at, '-infinity') AND NOT EXISTS (
        SELECT FROM meshgate.coverage c JOIN meshgate.run r USING (run_id)
        WHERE c.version_id = p_version_id AND c.mirrored_at IS NULL AND r.state = 'running' AND r.expires_at > meshgate.clock())
    THEN
        UPDATE meshgate.version x SET altered_at = p_altered WHERE x.version_id = p_version_id;
        unknown := v.altered_at IS NOT NULL AND NOT p_explained AND isempty(gone) AND NOT isempty(ours) AND NOT EXISTS (
            -- A run that ended before it could note so: what it wrote is looked at anyway.
            SELECT FROM meshgate.coverage c
            WHERE c.version_id = p_version_id AND c.mirrored_at IS NULL AND c.run_id IS NOT NULL);
    END IF;
    IF unknown THEN
        PERFORM meshgate.note('version.rewritten', NULL, p_version_id, NULL, jsonb_build_object('altered_at', p_altered));
        finding := 'rewritten'; span := '(,)';
        RETURN NEXT;
        IF p_suspect THEN
            doubtful := ours;
            why := 'plain SQLMesh has computed some of it again, nobody knows what';
        END IF;
    END IF;
    FOR span IN SELECT unnest(doubtful) LOOP
        PERFORM meshgate.put_mark(p_version_id, span, 'suspect', NULL, jsonb_build_object('cause', why));
        -- Nobody knows when it was written, and so who has met it.
        INSERT INTO meshgate.dirty_span (version_id, from_revision)
        SELECT p_version_id, 0 WHERE v.as_of
        ON CONFLICT (version_id, from_revision) DO UPDATE SET to_revision = NULL, accepted_revision = NULL;
        finding := 'suspect';
        RETURN NEXT;
    END LOOP;
END $$;

---------------------------------------------------------------------------------------------------------------
-- Restatement requests
---------------------------------------------------------------------------------------------------------------

-- What a version holds, or will when what is being evaluated is recorded; and at which revision that was read.
CREATE FUNCTION meshgate.read_time(p_version_id bigint) RETURNS TABLE (span tstzrange, read_revision bigint) LANGUAGE sql STABLE AS $$
    SELECT c.span, c.read_revision FROM meshgate.coverage c
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
    UNION ALL
    SELECT coalesce(k.batch, k.span), k.read_revision FROM meshgate.claim k
    WHERE int8range(k.version_id, k.version_id, '[]') && int8range(p_version_id, p_version_id, '[]') AND k.state = 'begun'
$$;

-- The time of a version that a request for span is about: what has been read, also where it is not recorded yet; what has
-- not is due anyway. Of a table that merges rows all of it: nothing less than a rebuild makes it right. p_before: only
-- what was read before this revision.
CREATE FUNCTION meshgate.requested_time(p_version_id bigint, p_span tstzrange, p_before bigint DEFAULT NULL)
RETURNS tstzmultirange LANGUAGE plpgsql STABLE AS $$
DECLARE
    asked tstzrange := p_span;
    found tstzmultirange;
BEGIN
    IF (SELECT v.as_of AND v.kind NOT IN ('full', 'view') FROM meshgate.version v WHERE v.version_id = p_version_id) THEN
        asked := '(,)';
        IF NOT EXISTS (SELECT FROM meshgate.read_time(p_version_id) c WHERE c.span && p_span) THEN
            RETURN '{}';
        END IF;
    END IF;
    SELECT range_agg(c.span * asked) INTO found FROM meshgate.read_time(p_version_id) c
    WHERE c.span && asked AND (p_before IS NULL OR c.read_revision < p_before);
    RETURN coalesce(found, '{}');
END $$;

-- Where an acceptance was undone, and nothing was computed since: that is nobody's request, and no cancellation takes it back.
CREATE FUNCTION meshgate.undone_time(p_version_id bigint) RETURNS tstzmultirange LANGUAGE sql STABLE AS $$
    SELECT coalesce(range_agg(m.span), '{}') FROM meshgate.mark m
    WHERE m.version_id = p_version_id AND m.kind = 'requested' AND m.detail ? 'undone';
$$;

-- Puts the marks that are still missing of what is requested: of a new request, and of a version that was promoted since.
-- Whatever was read before the request is open until a commit that read later; marks only say so to the runs.
CREATE FUNCTION meshgate.mark_requests(p_model_id bigint DEFAULT NULL) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    q record;
    undone tstzmultirange;
    missing tstzmultirange;
    piece tstzrange;
BEGIN
    FOR q IN SELECT r.request_id, r.span, r.revision, r.reason, p.version_id
             FROM meshgate.request r JOIN (SELECT DISTINCT model_id, version_id FROM meshgate.promotion) p USING (model_id)
             WHERE r.cancelled_at IS NULL AND (p_model_id IS NULL OR r.model_id = p_model_id)
             ORDER BY r.request_id, p.version_id LOOP
        missing := meshgate.requested_time(q.version_id, q.span, q.revision) - coalesce(
            (SELECT range_agg(m.span) FROM meshgate.mark m
             WHERE m.version_id = q.version_id AND m.kind = 'requested' AND m.revision >= q.revision), '{}');
        -- The newer mark takes the place of an older one: that an acceptance was undone there is true still.
        undone := meshgate.undone_time(q.version_id);
        FOR piece IN SELECT unnest(missing - undone) UNION ALL SELECT unnest(missing * undone) LOOP
            PERFORM meshgate.put_mark(q.version_id, piece, 'requested', NULL,
                                      jsonb_build_object('request_id', q.request_id, 'cause', q.reason)
                                      || CASE WHEN undone @> piece THEN jsonb_build_object('undone', true) ELSE '{}' END);
        END LOOP;
    END LOOP;
END $$;

-- Somebody wants a range of a model computed again. Only what was asked is marked: its readers follow, because what they
-- had read is newer then; a mark for each of them would age with every deploy.
CREATE FUNCTION meshgate.request_range(p_model text, p_span tstzrange, p_reason text, p_by text, p_origin text DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    known bigint;
    made bigint;
BEGIN
    PERFORM meshgate.lock_ledger();
    present := meshgate.clock();
    SELECT m.model_id INTO known FROM meshgate.model m WHERE m.name = p_model;
    IF NOT EXISTS (SELECT FROM meshgate.promotion p
                   WHERE p.model_id = known AND NOT isempty(meshgate.requested_time(p.version_id, p_span))) THEN
        RAISE EXCEPTION 'nothing of % is recorded in %', p_model, p_span USING ERRCODE = 'MG003';
    END IF;
    INSERT INTO meshgate.request (model_id, span, reason, origin, made_by, made_at, revision)
    VALUES (known, p_span, p_reason, p_origin, p_by, present, meshgate.next_revision()) RETURNING request_id INTO made;
    PERFORM meshgate.mark_requests(known);
    PERFORM meshgate.note('request.made', NULL, NULL, p_span, jsonb_build_object(
        'request_id', made, 'model', p_model, 'reason', p_reason, 'by', p_by));
    PERFORM pg_notify('meshgate', '');
    RETURN made;
END $$;

-- Several at once, or none: the readers of a model, a model and the tables that are to be rebuilt with it. An origin asks for a
-- model once: who comes again gets the request that is there, unless somebody has cancelled it.
CREATE FUNCTION meshgate.request_ranges(p_models text[], p_spans tstzrange[], p_reason text, p_by text, p_origin text DEFAULT NULL)
RETURNS SETOF bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lock_ledger();
    RETURN QUERY SELECT coalesce(
        (SELECT r.request_id FROM meshgate.request r JOIN meshgate.model m USING (model_id)
         WHERE m.name = x.model AND r.origin = p_origin AND r.cancelled_at IS NULL),
        meshgate.request_range(x.model, x.span, p_reason, p_by, p_origin))
    FROM unnest(p_models, p_spans) AS x (model, span);
END $$;

-- What a source looks like now, and the requests for what has changed there: one transaction, so that no change is asked for
-- twice, and none is forgotten. p_looks: how many looks there were when this one was compared with the last; where somebody
-- else has looked meanwhile, nothing is done: {"overtaken": true}. Else {"requests": [...]}: of what is recorded.
CREATE FUNCTION meshgate.save_observation(p_environment text, p_project text, p_source text, p_looks bigint, p_declared jsonb,
                                          p_span tstzrange, p_prints jsonb, p_models text[], p_spans tstzrange[],
                                          p_reason text, p_by text)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    owner integer;
    made bigint[] := '{}';
    wanted record;
BEGIN
    PERFORM meshgate.lock_ledger();
    owner := meshgate.project_id(p_project);
    IF p_looks <> coalesce((SELECT o.looks FROM meshgate.observation o
                            WHERE o.environment = p_environment AND o.project_id = owner AND o.source = p_source), 0) THEN
        RETURN jsonb_build_object('overtaken', true);
    END IF;
    INSERT INTO meshgate.observation (environment, project_id, source, declared, span, prints, looks, observed_at)
    VALUES (p_environment, owner, p_source, p_declared, p_span, p_prints, 1, meshgate.clock())
    ON CONFLICT (environment, project_id, source) DO UPDATE SET
        declared = excluded.declared, span = excluded.span, prints = excluded.prints, looks = observation.looks + 1,
        observed_at = excluded.observed_at;
    FOR wanted IN
        SELECT x.model, x.span FROM unnest(p_models, p_spans) AS x (model, span) JOIN meshgate.model m ON m.name = x.model
        WHERE EXISTS (SELECT FROM meshgate.promotion p
                      WHERE p.model_id = m.model_id AND NOT isempty(meshgate.requested_time(p.version_id, x.span)))
        ORDER BY 1, 2
    LOOP
        made := made || meshgate.request_range(wanted.model, wanted.span, p_reason, p_by);
    END LOOP;
    RETURN jsonb_build_object('requests', made);
END $$;

-- The cron by which a model is computed again by itself has ticked: what that is about is asked for in the same transaction,
-- so that of all who see it one asks, and a crash neither forgets a tick nor asks twice. p_since: up to where the ticks were
-- answered when they were seen; where that has changed, nothing is done: {"overtaken": true}. Else {"request": its key, or
-- null: nothing is recorded there}. What is left of the last such request is taken along, so that there is one of a model.
CREATE FUNCTION meshgate.answer_ticks(p_environment text, p_model text, p_since timestamptz, p_last timestamptz, p_span tstzrange,
                                      p_reason text, p_by text, p_origin text)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    old record;
    made bigint;
BEGIN
    PERFORM meshgate.lock_ledger();
    UPDATE meshgate.promotion p SET answered_at = p_last FROM meshgate.model m
    WHERE m.name = p_model AND p.model_id = m.model_id AND p.environment = p_environment AND p.answered_at = p_since;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('overtaken', true);
    END IF;
    IF p_span IS NULL OR NOT EXISTS (
            SELECT FROM meshgate.promotion p JOIN meshgate.model m USING (model_id)
            WHERE m.name = p_model AND NOT isempty(meshgate.requested_time(p.version_id, p_span))) THEN
        RETURN jsonb_build_object('request', NULL);
    END IF;
    FOR old IN
        SELECT q.request_id, (SELECT range_agg(piece) FROM meshgate.promotion p,
                                     unnest(meshgate.requested_time(p.version_id, q.span, q.revision)) AS piece
                              WHERE p.model_id = q.model_id) AS rest
        FROM meshgate.request q JOIN meshgate.model m USING (model_id)
        WHERE m.name = p_model AND q.origin = p_origin AND q.cancelled_at IS NULL
    LOOP
        p_span := range_merge(tstzmultirange(p_span) + coalesce(old.rest, '{}'));
        DELETE FROM meshgate.request WHERE request_id = old.request_id;
    END LOOP;
    made := meshgate.request_range(p_model, p_span, p_reason, p_by, p_origin);
    RETURN jsonb_build_object('request', made);
END $$;

-- Takes back what of a request was not begun. False where somebody had cancelled it before. What another request wants
-- too stays marked, with the mark that it has: an evaluation under way goes on to count. So does what was accepted and undone.
CREATE FUNCTION meshgate.cancel_request(p_request_id bigint, p_by text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    q meshgate.request;
    present bigint;
    marked record;
BEGIN
    present := meshgate.lock_ledger();
    UPDATE meshgate.request SET cancelled_by = p_by, cancelled_at = meshgate.clock()
    WHERE request_id = p_request_id AND cancelled_at IS NULL RETURNING * INTO q;
    IF NOT FOUND THEN
        IF NOT EXISTS (SELECT FROM meshgate.request WHERE request_id = p_request_id) THEN
            RAISE EXCEPTION 'request % is not in the ledger', p_request_id USING ERRCODE = 'MG003';
        END IF;
        RETURN false;
    END IF;
    FOR marked IN
        SELECT v.version_id, unnest(meshgate.requested_time(v.version_id, q.span) - coalesce(
                   (SELECT range_agg(wanted) FROM meshgate.request o,
                           unnest(meshgate.requested_time(v.version_id, o.span, o.revision)) AS wanted
                    WHERE o.model_id = q.model_id AND o.cancelled_at IS NULL), '{}')
                   - meshgate.undone_time(v.version_id)) AS span
        FROM meshgate.version v WHERE v.model_id = q.model_id
          AND EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = v.version_id AND m.kind = 'requested')
        ORDER BY 1, 2
    LOOP
        PERFORM meshgate.carve_marks(marked.version_id, marked.span, present, 'requested');
        PERFORM meshgate.note('interval.withdrawn', NULL, marked.version_id, marked.span,
                              jsonb_build_object('request_id', p_request_id));
    END LOOP;
    PERFORM meshgate.note('request.cancelled', NULL, NULL, q.span, jsonb_build_object('request_id', p_request_id, 'by', p_by));
    PERFORM pg_notify('meshgate', '');
    RETURN true;
END $$;

---------------------------------------------------------------------------------------------------------------
-- Holds and declared holes
---------------------------------------------------------------------------------------------------------------

-- What a person does stands in the history with a reason and a name.
CREATE FUNCTION meshgate.must_be_told(p_what text, p_value text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF coalesce(btrim(p_value), '') = '' THEN
        RAISE EXCEPTION '% must be told', p_what USING ERRCODE = 'MG003';
    END IF;
END $$;

-- Keeps a range of a model from its readers until somebody releases it: the hold's key. The model's own evaluation
-- goes on. Saying it again is not doing it again.
CREATE FUNCTION meshgate.hold_range(p_model text, p_span tstzrange, p_reason text, p_by text)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    present timestamptz;
    known bigint;
    found_hold bigint;
BEGIN
    PERFORM meshgate.lock_ledger();
    present := meshgate.clock();
    PERFORM meshgate.must_be_told('why it is held', p_reason), meshgate.must_be_told('who holds it', p_by);
    SELECT m.model_id INTO known FROM meshgate.model m WHERE m.name = p_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'model % is not in the ledger', p_model USING ERRCODE = 'MG003';
    END IF;
    SELECT h.hold_id INTO found_hold FROM meshgate.hold h
    WHERE h.model_id = known AND h.version_id IS NULL AND h.released_at IS NULL AND h.span = p_span AND h.reason = p_reason AND h.made_by = p_by;
    IF FOUND THEN
        RETURN found_hold;
    END IF;
    INSERT INTO meshgate.hold (model_id, span, reason, made_by, made_at)
    VALUES (known, p_span, p_reason, p_by, present) RETURNING hold_id INTO found_hold;
    PERFORM meshgate.note('interval.held', NULL, (SELECT max(v.version_id) FROM meshgate.version v WHERE v.model_id = known),
                          p_span, jsonb_build_object('hold_id', found_hold, 'reason', p_reason, 'by', p_by));
    PERFORM pg_notify('meshgate', '');
    RETURN found_hold;
END $$;

-- Ends a hold, or a part of it: the rest goes on as it was.
CREATE FUNCTION meshgate.cut_hold(h meshgate.hold, p_span tstzrange, p_by text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE meshgate.hold x SET span = h.span * p_span, released_by = p_by, released_at = meshgate.clock()
    WHERE x.hold_id = h.hold_id;
    INSERT INTO meshgate.hold (model_id, version_id, judge_id, span, reason, made_by, made_at)
    SELECT h.model_id, h.version_id, h.judge_id, piece, h.reason, h.made_by, h.made_at
    FROM unnest(tstzmultirange(h.span) - tstzmultirange(p_span)) AS piece;
    PERFORM meshgate.note('interval.released', NULL,
                          coalesce(h.version_id, (SELECT max(v.version_id) FROM meshgate.version v WHERE v.model_id = h.model_id)),
                          h.span * p_span, jsonb_build_object('hold_id', h.hold_id, 'by', p_by));
END $$;

-- A range that the policy of warnings keeps from readers. p_judge_id: the standalone audit that warned; null: one of its own.
CREATE FUNCTION meshgate.hold_from_readers(p_version_id bigint, p_judge_id bigint, p_span tstzrange, p_why text, p_run_id bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO meshgate.hold (model_id, version_id, judge_id, span, reason, made_by, made_at)
    SELECT v.model_id, v.version_id, p_judge_id, p_span, p_why, 'on_audit_warning', meshgate.clock()
    FROM meshgate.version v WHERE v.version_id = p_version_id;
    PERFORM meshgate.note('interval.held', p_run_id, p_version_id, p_span,
                          jsonb_build_object('reason', p_why, 'by', 'on_audit_warning'));
END $$;

-- What a policy keeps from readers of what was just written: the rows from before are gone, and so is what was held of
-- them by it. p_gone: where. p_why: why the new ones are held; null: they are not.
CREATE FUNCTION meshgate.hold_by_policy(p_version_id bigint, p_gone tstzrange, p_span tstzrange, p_why text, p_run_id bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    h meshgate.hold;
BEGIN
    FOR h IN SELECT x.* FROM meshgate.hold x JOIN meshgate.version v USING (model_id)
             WHERE v.version_id = p_version_id AND x.version_id = p_version_id AND x.released_at IS NULL AND x.span && p_gone
               -- Rows that a standalone audit rejected were made anew: whether they are better, it has to say.
               AND x.judge_id IS NULL
             ORDER BY x.hold_id LOOP
        PERFORM meshgate.cut_hold(h, p_gone, 'run ' || p_run_id);
    END LOOP;
    IF p_why IS NOT NULL THEN
        PERFORM meshgate.hold_from_readers(p_version_id, NULL, p_span, p_why, p_run_id);
    END IF;
END $$;

-- A standalone audit has looked at these versions, each in a span: what it had rejected of these models there is judged anew.
-- p_whys: why a policy keeps it from readers now; null: it does not.
CREATE FUNCTION meshgate.hold_judged(p_judge_id bigint, p_versions bigint[], p_spans tstzrange[], p_whys text[], p_run_id bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    h meshgate.hold;
    seen record;
BEGIN
    FOR seen IN SELECT v.model_id, x.span FROM unnest(p_versions, p_spans) AS x (version_id, span)
                JOIN meshgate.version v USING (version_id) ORDER BY 1, 2 LOOP
        FOR h IN SELECT x.* FROM meshgate.hold x
                 WHERE x.model_id = seen.model_id AND x.judge_id = p_judge_id AND x.released_at IS NULL AND x.span && seen.span
                 ORDER BY x.hold_id LOOP
            PERFORM meshgate.cut_hold(h, seen.span, 'run ' || p_run_id);
        END LOOP;
    END LOOP;
    FOR seen IN SELECT x.* FROM unnest(p_versions, p_spans, p_whys) AS x (version_id, span, why)
                WHERE x.why IS NOT NULL ORDER BY 1, 2 LOOP
        PERFORM meshgate.hold_from_readers(seen.version_id, p_judge_id, seen.span, seen.why, p_run_id);
    END LOOP;
END $$;

-- Lets readers have a range of a model again: what was held of it, by whom and why. The rest of a hold that reaches
-- further goes on as it was.
CREATE FUNCTION meshgate.release_holds(p_model text, p_span tstzrange, p_by text)
RETURNS TABLE (released tstzrange, why text, held_by text, since timestamptz) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    h meshgate.hold;
BEGIN
    PERFORM meshgate.lock_ledger();
    PERFORM meshgate.must_be_told('who releases it', p_by);
    FOR h IN SELECT x.* FROM meshgate.hold x JOIN meshgate.model m USING (model_id)
             WHERE m.name = p_model AND x.released_at IS NULL AND x.span && p_span ORDER BY x.span, x.hold_id LOOP
        released := h.span * p_span; why := h.reason; held_by := h.made_by; since := h.made_at;
        PERFORM meshgate.cut_hold(h, p_span, p_by);
        RETURN NEXT;
    END LOOP;
    PERFORM pg_notify('meshgate', '') WHERE released IS NOT NULL;
END $$;

-- A person takes a range of a version as it is. What of it is missing, failed, suspect or removed counts as recorded
-- from now on: a commit with a revision of its own, so that whoever read it before reads it again. Its clean time stays
-- untouched. {"revision", "accepted": [{"start", "end"}]}, or {"busy": {...}}: a run is writing it, or may still be; or
-- {"clean": true}: there is nothing to accept.
-- The doubt about a table that is one whole is accepted whole; of its time, what was being written and what is missing.
-- p_lookback: the units before a fresh one that have to be read again because of it.
CREATE FUNCTION meshgate.accept_range(p_version_id bigint, p_span tstzrange, p_lookback tstzrange, p_reason text, p_by text)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    known bigint;
    present timestamptz;
    v meshgate.version;
    busy jsonb;
    doubted boolean;
    spoilt tstzmultirange;
    covered tstzmultirange;
    mirrored tstzmultirange;
    holes tstzmultirange;
    made bigint;
    piece tstzrange;
    old record;
    facts jsonb;
BEGIN
    known := meshgate.lock_ledger();
    present := meshgate.clock();
    PERFORM meshgate.must_be_told('why it is accepted', p_reason), meshgate.must_be_told('who accepts it', p_by);
    SELECT x.* INTO v FROM meshgate.version x WHERE x.version_id = p_version_id;
    IF NOT FOUND OR isempty(p_span) OR lower_inf(p_span) OR upper_inf(p_span) OR upper(p_span) > present THEN
        RAISE EXCEPTION 'only time of a known version that is over can be accepted, not %', p_span USING ERRCODE = 'MG003';
    END IF;
    SELECT jsonb_build_object('run_id', k.run_id, 'project', p.name, 'claim', k.state, 'start', lower(k.span), 'end', upper(k.span),
                              'until', coalesce(k.quarantined_until, r.expires_at))
    INTO busy
    FROM meshgate.claim k JOIN meshgate.run r USING (run_id) JOIN meshgate.project p USING (project_id)
    WHERE k.version_id = p_version_id AND k.span && p_span
      AND (k.state = 'begun' AND (v.as_of OR meshgate.written(k) && p_span)
           OR k.state = 'lost' AND k.quarantined_until > present)
    ORDER BY k.state, k.claim_id LIMIT 1;
    IF busy IS NOT NULL THEN
        RETURN jsonb_build_object('busy', busy);
    END IF;
    SELECT coalesce(range_agg(c.span), '{}'), coalesce(range_agg(c.span) FILTER (WHERE c.mirrored_at IS NOT NULL), '{}')
    INTO covered, mirrored
    FROM meshgate.coverage c
    WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]') AND c.span && p_span;
    SELECT count(*) > 0,
           coalesce(range_agg(CASE WHEN v.as_of AND m.kind <> 'removed' THEN m.batch ELSE m.span END)
                    FILTER (WHERE NOT (v.as_of AND m.kind <> 'removed') OR NOT lower_inf(m.batch)), '{}'),
           mirrored - coalesce(range_agg(m.span) FILTER (WHERE m.kind = 'removed'), '{}')
    INTO doubted, spoilt, mirrored
    FROM meshgate.mark m
    WHERE m.version_id = p_version_id AND m.span && p_span AND m.kind IN ('failed', 'suspect', 'removed');
    holes := tstzmultirange(p_span) - covered + spoilt * tstzmultirange(p_span);
    IF isempty(holes) AND NOT doubted THEN
        RETURN jsonb_build_object('clean', true);
    END IF;
    made := meshgate.next_revision();
    FOREACH piece IN ARRAY ARRAY(SELECT unnest(holes)) LOOP
        SELECT jsonb_build_object('by', p_by, 'reason', p_reason, 'was', coalesce(jsonb_agg(DISTINCT m.kind), '["missing"]'))
        INTO facts
        FROM meshgate.mark m
        WHERE m.version_id = p_version_id AND m.span && piece AND m.kind IN ('failed', 'suspect', 'removed');
        PERFORM meshgate.carve_coverage(p_version_id, piece);
        -- What SQLMesh holds already it keeps; the rest a run takes along to it (adopt_accepted).
        INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, audits, committed_at, mirrored_at)
        SELECT p_version_id, part, made, known, 'accepted', jsonb_build_array(facts), present, present
        FROM unnest(tstzmultirange(piece) * mirrored) AS part
        UNION ALL
        SELECT p_version_id, part, made, known, 'accepted', jsonb_build_array(facts), present, NULL
        FROM unnest(tstzmultirange(piece) - mirrored) AS part;
        PERFORM meshgate.carve_marks(p_version_id, piece, known);
        PERFORM meshgate.note('interval.accepted', NULL, p_version_id, piece, facts);
    END LOOP;
    IF v.as_of THEN
        DELETE FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.kind IN ('failed', 'suspect');
        -- Its rows stand as they are until it is refreshed, which writes all of them anew: then whoever has read them since has
        -- read others. (What is written over accepted rows, and accepted in its turn, is such a refresh.)
        UPDATE meshgate.dirty_span d
        SET to_revision = CASE WHEN v.kind NOT IN ('full', 'view') OR d.accepted_revision IS NOT NULL AND EXISTS (
                SELECT FROM meshgate.dirty_span o
                WHERE o.version_id = p_version_id AND o.to_revision IS NULL AND o.accepted_revision IS NULL) THEN made END,
            accepted_revision = CASE WHEN v.kind IN ('full', 'view') THEN coalesce(d.accepted_revision, made) END
        WHERE d.version_id = p_version_id AND d.to_revision IS NULL;
        -- From now on readers meet rows that nobody has compared with those before.
        UPDATE meshgate.past SET prints = NULL WHERE version_id = p_version_id AND doubted;
        PERFORM meshgate.note('interval.accepted', NULL, p_version_id, '(,)', jsonb_build_object('by', p_by, 'reason', p_reason))
        WHERE isempty(holes);
    END IF;
    FOR old IN SELECT c.span * p_lookback AS span FROM meshgate.coverage c
               WHERE p_lookback IS NOT NULL AND NOT isempty(p_lookback) AND NOT isempty(holes)
                 AND int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
                 AND c.span && p_lookback AND c.verdict <> 'accepted' ORDER BY c.span LOOP
        PERFORM meshgate.put_mark(p_version_id, old.span, 'lookback', NULL, '{}');
    END LOOP;
    PERFORM pg_notify('meshgate', p_version_id::text);
    RETURN jsonb_build_object('revision', made, 'accepted', coalesce(
        (SELECT jsonb_agg(jsonb_build_object('start', lower(h), 'end', upper(h)) ORDER BY h) FROM unnest(holes) AS h), '[]'));
END $$;

-- Makes what was accepted due again: the ranges.
CREATE FUNCTION meshgate.undo_accept(p_version_id bigint, p_span tstzrange, p_by text)
RETURNS SETOF tstzrange LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    found record;
BEGIN
    PERFORM meshgate.lock_ledger();
    PERFORM meshgate.must_be_told('who undoes it', p_by);
    FOR found IN SELECT c.span * p_span AS span FROM meshgate.coverage c
                 WHERE int8range(c.version_id, c.version_id, '[]') = int8range(p_version_id, p_version_id, '[]')
                   AND c.span && p_span AND c.verdict = 'accepted' ORDER BY c.span LOOP
        PERFORM meshgate.put_mark(p_version_id, found.span, 'requested', NULL, jsonb_build_object(
            'cause', 'its acceptance was undone', 'by', p_by, 'undone', true));
        PERFORM pg_notify('meshgate', p_version_id::text);
        RETURN NEXT found.span;
    END LOOP;
END $$;

-- What was accepted of a version and no run has taken along to SQLMesh's record yet: the run that asks does it now, and
-- notes that it has (note_mirrored). If it ends in between, nobody knows whether it did, and the range is evaluated again
-- like any other that a run left behind there.
CREATE FUNCTION meshgate.adopt_accepted(p_run_id bigint, p_version_id bigint) RETURNS SETOF tstzrange LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM meshgate.lock_ledger();
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
    RETURN QUERY
    UPDATE meshgate.coverage c SET run_id = p_run_id
    WHERE c.version_id = p_version_id AND c.verdict = 'accepted' AND c.run_id IS NULL AND c.mirrored_at IS NULL
    RETURNING c.span;
END $$;

---------------------------------------------------------------------------------------------------------------
-- Housekeeping
---------------------------------------------------------------------------------------------------------------

-- Merges what neighbouring commits of a project recorded, where nobody needs them one by one any more; how many rows that
-- saved. The size of the ledger then follows the number of models, not of ticks.
-- A merged row has the highest revision, so all that reads any part of it must have read it later than that; and it counts as
-- having read up to the bound, so it must not be stale by anything up to there. No claim that lives may have begun or been
-- opened before the bound: its failure would make dirty, and its commit would oblige to read again, what came before it.
-- p_cold: committed at least that long ago. The gates are those of all environments, with windows as in the query "stale"; what
-- was settled last is the bound.
CREATE FUNCTION meshgate.merge_coverage(p_project text, p_cold interval, p_environments text[], p_children bigint[], p_parents bigint[],
                                        p_lows interval[], p_highs interval[])
RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    latest bigint;
    saved integer;
BEGIN
    latest := meshgate.lock_ledger();
    SELECT least(latest, min(k.opened_revision)) - 1 INTO latest FROM meshgate.claim k
    WHERE k.state IN ('open', 'begun') OR k.state = 'lost' AND k.quarantined_until > meshgate.clock();
    WITH gate AS MATERIALIZED (
        SELECT g.child, g.parent, g.low, g.high, q.settled, q.settled_revision
        FROM unnest(p_environments, p_children, p_parents, p_lows, p_highs) AS g (environment, child, parent, low, high)
        JOIN meshgate.version v ON v.version_id = g.child
        JOIN meshgate.promotion q ON q.environment = g.environment AND q.model_id = v.model_id AND q.version_id = g.child),
    mine AS MATERIALIZED (
        -- Who reads an accepted table, and had read it before it was dirty, is not to be mixed with who has since: the next refresh
        -- tells them apart.
        SELECT v.version_id, v.model_id, v.as_of,
               least(latest, (SELECT min(g.settled_revision) FROM gate g WHERE v.version_id IN (g.child, g.parent)),
                     (SELECT min(d.from_revision) FROM gate g JOIN meshgate.dirty_span d ON d.version_id = g.parent
                      WHERE g.child = v.version_id AND d.to_revision IS NULL AND d.accepted_revision IS NOT NULL)) AS bound
        FROM meshgate.version v JOIN meshgate.model m USING (model_id) JOIN meshgate.project o USING (project_id)
        WHERE o.name = p_project
          AND EXISTS (SELECT FROM meshgate.promotion q WHERE q.model_id = v.model_id AND q.version_id = v.version_id)),
    behind AS MATERIALIZED (
        -- What somebody reads who has not read up to the bound.
        SELECT g.parent, range_agg(tstzrange(lower(piece) + g.low, upper(piece) + g.high)) AS time
        FROM gate g JOIN mine v ON v.version_id = g.parent
        JOIN meshgate.coverage c ON c.version_id = g.child AND c.read_revision < v.bound,
             unnest(tstzmultirange(c.span) - CASE WHEN c.revision <= g.settled_revision THEN g.settled ELSE '{}' END) AS piece
        GROUP BY g.parent),
    ready AS (
        SELECT c.coverage_id, c.version_id, c.verdict, c.span, v.bound,
               CASE WHEN lower(c.span) = lag(upper(c.span)) OVER (PARTITION BY c.version_id, c.verdict ORDER BY c.span)
                    THEN 0 ELSE 1 END AS apart
        FROM mine v JOIN meshgate.coverage c ON c.version_id = v.version_id AND greatest(c.revision, c.touched_revision) <= v.bound
        WHERE c.mirrored_at IS NOT NULL AND c.verdict IN ('passed', 'warned', 'foreign')
          AND c.committed_at < meshgate.clock() - p_cold
          AND NOT EXISTS (SELECT FROM gate g WHERE g.child = c.version_id AND NOT c.span <@ g.settled)
          AND NOT EXISTS (SELECT FROM behind b WHERE b.parent = c.version_id AND c.span && b.time)
          AND NOT EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = c.version_id AND m.span && c.span)
          AND NOT EXISTS (SELECT FROM meshgate.request q
                          WHERE q.model_id = v.model_id AND q.cancelled_at IS NULL AND q.revision > c.read_revision
                            AND (v.as_of OR q.span && c.span))),
    island AS (
        SELECT r.*, sum(r.apart) OVER (PARTITION BY r.version_id, r.verdict ORDER BY r.span) AS number FROM ready r),
    gone AS (
        DELETE FROM meshgate.coverage c
        USING (SELECT i.*, count(*) OVER (PARTITION BY i.version_id, i.verdict, i.number) AS size FROM island i) i
        WHERE c.coverage_id = i.coverage_id AND i.size > 1
        RETURNING c.*, i.number, i.bound),
    told AS (
        SELECT g.version_id, g.verdict, g.number, a ->> 'audit' AS audit, (a ->> 'blocking')::boolean AS blocking,
               sum((a ->> 'count')::bigint) AS count
        FROM gone g, jsonb_array_elements(g.audits) AS a
        GROUP BY 1, 2, 3, 4, 5),
    made AS (
        INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, run_id, verdict, audits, duration, rows,
                                       committed_at, mirrored_at, read_at, merged)
        SELECT g.version_id, range_merge(range_agg(g.span)), max(g.revision), g.bound, max(g.run_id), g.verdict,
               coalesce((SELECT jsonb_agg(jsonb_build_object('audit', t.audit, 'count', t.count, 'blocking', t.blocking) ORDER BY t.audit)
                         FROM told t WHERE (t.version_id, t.verdict, t.number) = (g.version_id, g.verdict, g.number)), '[]'),
               CASE WHEN bool_and(g.duration IS NOT NULL) THEN sum(g.duration) END,
               CASE WHEN bool_and(g.rows IS NOT NULL) THEN sum(g.rows) END,
               -- Its oldest read: who waits since then need not wait any longer.
               max(g.committed_at), max(g.mirrored_at), min(g.read_at), sum(g.merged)
        FROM gone g GROUP BY g.version_id, g.verdict, g.number, g.bound
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone) - (SELECT count(*) FROM made) INTO saved;
    -- Whoever met it while it was dirty has been computed again.
    DELETE FROM meshgate.dirty_span d
    WHERE d.to_revision <= latest AND d.version_id = ANY (p_parents) AND NOT EXISTS (
        SELECT FROM unnest(p_children, p_parents) AS g (child, parent) JOIN meshgate.version x ON x.version_id = g.child
        JOIN meshgate.version w ON w.model_id = x.model_id JOIN meshgate.coverage c ON c.version_id = w.version_id
        WHERE g.parent = d.version_id AND greatest(c.revision, c.touched_revision) > d.from_revision AND c.read_revision < d.to_revision);
    RETURN saved;
END $$;

-- Is it time again for a run of a project to merge and to prune? If so, the next one to ask need not, for a while.
CREATE FUNCTION meshgate.turn_to_tidy(p_project text, p_every interval) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT meshgate.lock_ledger();
    WITH turn AS (
        UPDATE meshgate.project SET tidied_at = meshgate.clock()
        WHERE name = p_project AND (tidied_at IS NULL OR tidied_at NOT BETWEEN meshgate.clock() - p_every AND meshgate.clock())
        RETURNING 1)
    SELECT EXISTS (SELECT FROM turn);
$$;

-- Forgets ended claims and events older than p_keep, and the runs that nothing names and nothing may come from.
CREATE FUNCTION meshgate.prune(p_keep interval) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before timestamptz := meshgate.clock() - p_keep;
BEGIN
    PERFORM meshgate.lock_ledger();
    INSERT INTO meshgate.forgotten (revision) SELECT max(e.revision) FROM meshgate.event e WHERE e.at < before HAVING count(*) > 0
    ON CONFLICT (singleton) DO UPDATE SET revision = greatest(forgotten.revision, excluded.revision);
    DELETE FROM meshgate.event WHERE at < before;
    DELETE FROM meshgate.claim WHERE ended_at < before AND (quarantined_until IS NULL OR quarantined_until < before);
    DELETE FROM meshgate.request q WHERE coalesce(q.cancelled_at, q.made_at) < before
      AND (q.cancelled_at IS NOT NULL OR NOT EXISTS (
               SELECT FROM meshgate.promotion p WHERE p.model_id = q.model_id
                  AND NOT isempty(meshgate.requested_time(p.version_id, q.span, q.revision))));
    -- A lost run may still write; without its row nobody would remember that it did.
    DELETE FROM meshgate.run r WHERE r.ended_at < before AND r.state <> 'lost'
      AND NOT EXISTS (SELECT FROM meshgate.claim c WHERE c.run_id = r.run_id)
      AND NOT EXISTS (SELECT FROM meshgate.coverage c WHERE c.run_id = r.run_id)
      AND NOT EXISTS (SELECT FROM meshgate.mark m WHERE m.run_id = r.run_id);
END $$;
