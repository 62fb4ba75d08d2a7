"""The ledger in SQL: `schema.sql` is the truth, `queries.sql` what is asked of it, `migrations/` the way here."""
