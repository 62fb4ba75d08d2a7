-- Back-off, limits, claims on the whole, deploys that pause what they replace, runs that were stopped.

ALTER TABLE meshgate.run
    ADD COLUMN warehouse text NOT NULL DEFAULT 'default',
    ADD COLUMN retry_first interval NOT NULL DEFAULT '1 minute',
    ADD COLUMN retry_longest interval NOT NULL DEFAULT '1 hour',
    ADD COLUMN promoting bigint[],
    DROP CONSTRAINT "a run has a known state",
    ADD CONSTRAINT "a run has a known state"
        CHECK (state IN ('running', 'done', 'failed', 'lost', 'stopped', 'nothing_to_do'));

ALTER TABLE meshgate.claim ADD COLUMN batch tstzrange;

ALTER TABLE meshgate.mark
    ADD COLUMN retry_at timestamptz,
    ADD COLUMN batch tstzrange;
