-- Holds and requests for restatement; when a recorded range had read its parents, and a table was written last; a history that
-- suffices to derive the rest.

CREATE TABLE meshgate.forgotten (
    singleton    boolean PRIMARY KEY DEFAULT true CONSTRAINT "one history is forgotten" CHECK (singleton),
    revision     bigint  NOT NULL
);
-- What was noted so far tells too little.
INSERT INTO meshgate.forgotten (revision) SELECT revision FROM meshgate.ledger;

ALTER TABLE meshgate.project ADD COLUMN tidied_at timestamptz;

ALTER TABLE meshgate.coverage
    ADD COLUMN read_at timestamptz,
    ADD COLUMN merged integer NOT NULL DEFAULT 1,
    ADD COLUMN touched_revision bigint,
    DROP CONSTRAINT "data is read before it is made",
    ADD CONSTRAINT "data is read before it is made" CHECK (read_revision < greatest(revision, touched_revision) OR merged > 1);
CREATE INDEX coverage_by_revision ON meshgate.coverage (version_id, revision);
DROP INDEX meshgate.coverage_of_version;

ALTER TABLE meshgate.promotion
    ADD COLUMN settled tstzmultirange NOT NULL DEFAULT '{}',
    ADD COLUMN settled_revision bigint NOT NULL DEFAULT 0,
    ADD COLUMN restate_cron text,
    ADD COLUMN restate_units integer,
    ADD COLUMN answered_at timestamptz;

CREATE TABLE meshgate.hold (
    hold_id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     bigint      NOT NULL REFERENCES meshgate.model,
    version_id   bigint      REFERENCES meshgate.version,
    judge_id     bigint      REFERENCES meshgate.version,
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
    origin       text,
    made_by      text        NOT NULL,
    made_at      timestamptz NOT NULL,
    revision     bigint      NOT NULL,
    cancelled_by text,
    cancelled_at timestamptz,
    CONSTRAINT "a cancellation says who and when" CHECK ((cancelled_by IS NULL) = (cancelled_at IS NULL))
);
CREATE INDEX request_of_model ON meshgate.request (model_id) WHERE cancelled_at IS NULL;
CREATE UNIQUE INDEX "an origin asks for a model once" ON meshgate.request (origin, model_id) WHERE cancelled_at IS NULL;

CREATE TABLE meshgate.observation (
    environment  text        NOT NULL,
    project_id   integer     NOT NULL REFERENCES meshgate.project,
    source       text        NOT NULL,
    declared     jsonb       NOT NULL,
    span         tstzrange   NOT NULL,
    prints       jsonb       NOT NULL,
    looks        bigint      NOT NULL,
    observed_at  timestamptz NOT NULL,
    PRIMARY KEY (environment, project_id, source)
);

ALTER TABLE meshgate.version
    ADD COLUMN altered_at timestamptz,
    ADD COLUMN removals text[];
-- Of a version that is known already, what was removed before is known too, or nobody's business any more.
ALTER TABLE meshgate.version ALTER COLUMN removals SET DEFAULT '{}';

ALTER TABLE meshgate.dirty_span ADD COLUMN accepted_revision bigint;

CREATE TABLE meshgate.past (
    version_id    bigint      PRIMARY KEY REFERENCES meshgate.version,
    upto          timestamptz NOT NULL,
    prints        jsonb
);

ALTER TABLE meshgate.run
    DROP CONSTRAINT "a run has a known purpose",
    ADD CONSTRAINT "a run has a known purpose" CHECK (purpose IN ('run', 'deploy', 'maintenance'));
