-- For tests only: writes down every change of a row of the ledger, in the transaction that makes it.
-- What was rolled back leaves no trace, and the commit timestamps give the order in which transactions ended.

CREATE SCHEMA chaos;

CREATE TABLE chaos.history (
    seq   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid   xid8        NOT NULL DEFAULT pg_current_xact_id(),
    at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    tab   text        NOT NULL,
    was   jsonb,      -- null: inserted
    became jsonb      -- null: deleted
);

CREATE FUNCTION chaos.record() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' SET intervalstyle = 'postgres' AS $$
BEGIN
    INSERT INTO chaos.history (tab, was, became)
    VALUES (TG_TABLE_NAME, CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$;

DO $$
DECLARE
    tab text;
BEGIN
    FOREACH tab IN ARRAY '{ledger,run,claim,coverage,mark}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER chaos_history AFTER INSERT OR UPDATE OR DELETE ON meshgate.%I '
                       'FOR EACH ROW EXECUTE FUNCTION chaos.record()', tab);
    END LOOP;
END $$;
