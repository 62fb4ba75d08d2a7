"""What can be taken away of the ledger's SQL, and the test that must then fail."""

from __future__ import annotations

from mutation import G, L, sql

FENCE = """\
    IF NOT meshgate.holds_lease(p_run_id) THEN
        PERFORM meshgate.refuse_write(p_run_id, p_version_id, p_span);
        RETURN {};
    END IF;
"""
LEASE_OR_ERROR = """\
    IF NOT meshgate.holds_lease(p_run_id) THEN
        RAISE EXCEPTION 'run % has lost its lease', p_run_id USING ERRCODE = 'MG001';
    END IF;
"""

OF_SQL = (
    sql(
        "G1 second check in begin_claim, parents",
        f"{G}g1_no_premature_work_when_a_batch_begins[failed]",
        (
            "meshgate.unclean(need.parent, need.span) u\n",
            "meshgate.unclean(need.parent, need.span) u WHERE false\n",
        ),
    ),
    sql(
        "G1 second check in begin_claim, promotions",
        (
            f"{G}g1_no_premature_work_when_a_batch_begins[superseded]",
            f"{L}a_batch_does_not_begin_on_a_version_that_is_not_promoted_any_more",
        ),
        ("    IF p_environment IS NOT NULL THEN\n", "    IF false THEN\n"),
    ),
    sql(
        "G1 second check in begin_claim, seeds",
        f"{L}a_seed_that_was_never_loaded_closes_the_gate",
        (
            "SELECT v, 'missing', p_span, '{}'::jsonb FROM unnest(p_loaded) AS v\n          WHERE NOT EXISTS",
            "SELECT v, 'missing', p_span, '{}'::jsonb FROM unnest(p_loaded) AS v\n          WHERE false AND NOT EXISTS",
        ),
    ),
    sql(
        "G1 begun and not committed is unclean",
        (f"{G}g1_no_premature_work_when_a_batch_begins[begun]", "test_ledger_stateful.py"),
        ("      AND c.span && p_span AND c.state = 'begun' AND", "      AND c.span && p_span AND false AND"),
    ),
    *(
        sql(
            f"G1 {kind} is unclean",
            f"{G}g1_no_premature_work_when_a_batch_begins[{kind}]",
            (
                "AND m.kind IN ('failed', 'suspect', 'removed')\n    UNION",
                f"AND m.kind IN ({others})\n    UNION",
            ),
        )
        for kind, others in (
            ("failed", "'suspect', 'removed'"),
            ("suspect", "'failed', 'removed'"),
            ("removed", "'failed', 'suspect'"),
        )
    ),
    sql(
        "G1 a failed whole table is unclean as a whole",
        f"{G}g1_no_premature_work_while_an_as_of_parent_is_in_doubt",
        (
            "    IF whole AND p_kind IN ('failed', 'suspect') THEN\n        p_span := '(,)';\n    END IF;\n",
            "",
        ),
    ),
    sql(
        "G2 one live run of a project",
        (f"{L}a_second_run_of_a_project_is_told_which_one_lives", "test_ledger_stateful.py"),
        ("(x.purpose = 'deploy' OR x.purpose = 'run' AND NOT p_share)", "x.purpose = 'deploy'"),
    ),
    sql(
        "G2 quarantine where the engine is elsewhere",
        f"{L}the_end_of_a_run_is_the_end_of_its_writes_where_the_engine_is_in_its_process[False-False-True]",
        ("CASE WHEN over THEN present ELSE present + r.grace END", "present"),
    ),
    sql(
        "G2 quarantine from the end on",
        f"{L}the_grace_of_a_run_that_ends_is_counted_from_its_end",
        (
            (
                "    holds := meshgate.holds_lease(p_run_id);  -- which may wait for a renewal: the grace is counted from afterwards\n"
                "    present := meshgate.clock();\n"
            ),
            "    present := meshgate.clock();\n    holds := meshgate.holds_lease(p_run_id);\n",
        ),
    ),
    sql(
        "G2 exclusion constraint",
        (f"{G}g2_no_double_work", f"{G}g2_no_double_work_whatever_the_code_does", "test_ledger_stateful.py"),
        (
            (
                " OR read_revision IS NOT NULL),\n    -- Equality through a range over the key, so that no extension is needed.\n"
                '    CONSTRAINT "two live claims never overlap" EXCLUDE USING gist (\n'
                "        int8range(version_id, version_id, '[]') WITH =, span WITH &&) WHERE (state IN ('open', 'begun'))\n"
            ),
            " OR read_revision IS NOT NULL)\n",
        ),
    ),
    sql(
        "G2 as-of claims are on all of time",
        (f"{G}g2_no_double_work_on_a_whole_table", "test_ledger_stateful.py"),
        ("reserved := CASE WHEN whole THEN '(,)'::tstzrange ELSE wanted END;", "reserved := wanted;"),
    ),
    sql(
        "G2 quarantine in open_claims",
        (f"{G}g2_no_double_work_while_a_lost_run_may_still_write", "test_ledger_stateful.py"),
        ("AND k.state = 'lost' AND k.quarantined_until > present\n", "AND false\n"),
    ),
    sql(
        "G2 quarantine at takeover",
        (
            f"{G}g4_a_mute_zombie_is_waited_out",
            f"{L}what_a_lost_run_had_begun_is_not_claimed_before_its_grace_is_over",
        ),
        ("CASE WHEN p_gone THEN present ELSE r.expires_at + r.grace END", "present"),
    ),
    sql(
        "G3 suspect mark at takeover",
        (
            f"{G}g3_no_lost_work_when_a_run_dies_in_a_redo",
            f"{G}g4_what_a_lost_run_had_begun_opens_no_gate",
            "test_ledger_stateful.py",
        ),
        (
            "        PERFORM meshgate.distrust_claim(c.claim_id, 'suspect', jsonb_build_object('cause', p_why));\n",
            "",
        ),
    ),
    sql(
        "G3 suspect mark at the end of a run",
        f"{L}what_a_run_began_and_did_not_commit_is_suspect_when_it_ends",
        (
            (
                "        PERFORM meshgate.distrust_claim(c.claim_id, 'suspect', jsonb_build_object('cause', "
                "'the run ended before it was committed'));\n"
            ),
            "",
        ),
    ),
    sql(
        "G3 failed mark",
        (
            f"{G}g3_no_lost_work_when_a_redo_fails",
            f"{G}g1_no_premature_work_on_rows_whose_redo_failed",
        ),
        (
            (
                "    PERFORM meshgate.put_mark(held.version_id, coalesce(held.batch, held.span), p_kind, held.run_id, "
                "p_detail, p_tried);\n"
            ),
            (
                "    IF p_kind <> 'failed' OR EXISTS (SELECT FROM meshgate.version v WHERE v.version_id = held.version_id AND v.as_of)\n"
                "       OR NOT EXISTS (SELECT FROM meshgate.coverage c WHERE c.version_id = held.version_id AND c.span && held.span) THEN\n"
                "    PERFORM meshgate.put_mark(held.version_id, coalesce(held.batch, held.span), p_kind, held.run_id, "
                "p_detail, p_tried);\n    END IF;\n"
            ),
        ),
    ),
    sql(
        "G3 mark discharge compare",
        (f"{G}g3_no_lost_work_when_a_request_comes_while_it_is_worked", "test_ledger_stateful.py"),
        ("AND m.span && p_span AND m.revision <= p_upto AND", "AND m.span && p_span AND"),
    ),
    sql(
        "G3 mark discharge compare, whole tables",
        (f"{L}a_refresh_does_not_stamp_what_was_asked_for_after_it_began", "test_ledger_stateful.py"),
        (
            "WHERE m.version_id = p_version_id AND m.revision <= held.read_revision\n              AND (refreshed",
            "WHERE m.version_id = p_version_id\n              AND (refreshed",
        ),
    ),
    sql(
        "G3 what SQLMesh never got",
        f"{G}g3_no_lost_work_of_what_crashed_between_the_two_records",
        ("THEN c.committed_at < p_read_at AND c.run_id", "THEN false AND c.run_id"),
    ),
    sql(
        "G3 lookback is an obligation",
        (
            f"{L}a_fresh_commit_asks_for_the_units_that_were_not_read_since",
            f"{L}the_obligation_outlives_the_run",
        ),
        (
            "        PERFORM meshgate.put_mark(p_version_id, old.span, 'lookback', p_run_id, '{}');\n",
            "        NULL;\n",
        ),
    ),
    sql(
        "G3 a merge answers for its interval only",
        f"{L}what_a_commit_mends_depends_on_how_the_table_is_written[incremental_by_unique_key-left1]",
        ("    refreshed := kind_of IN ('full', 'view');", "    refreshed := whole;"),
    ),
    sql(
        "G3 a commit is said twice",
        (f"{L}a_commit_said_twice_is_done_once", "test_ledger_stateful.py"),
        ("        IF made IS NOT NULL THEN\n            RETURN made;\n        END IF;\n", ""),
    ),
    sql(
        "G4 fence in commit_claim",
        (
            f"{G}g4_no_zombie_commit",
            f"{G}g4_no_zombie_commit_though_nobody_took_over",
            "test_ledger_stateful.py",
        ),
        (FENCE.format("NULL"), ""),
    ),
    sql(
        "G4 fence in fail_claim",
        f"{L}a_zombies_failure_is_remembered_like_its_commit",
        (FENCE.format("false"), ""),
    ),
    sql("G4 fence in open_claims", f"{L}a_run_without_a_lease_reserves_nothing", (LEASE_OR_ERROR, "", 2)),
    sql("G4 fence in begin_claim", f"{L}a_run_without_a_lease_begins_nothing", (LEASE_OR_ERROR, "", 3)),
    sql(
        "G4 fence in renew_run",
        f"{L}a_renewal_after_the_end_is_refused_though_nobody_took_over",
        (LEASE_OR_ERROR, "", 0),
    ),
    sql(
        "G4 the lease ends",
        (f"{G}g4_no_zombie_commit_though_nobody_took_over", "test_ledger_stateful.py"),
        (
            "RETURN r.state = 'running' AND r.expires_at > meshgate.clock();",
            "RETURN r.state = 'running';",
        ),
    ),
    sql(
        "G4 a refused write is remembered",
        (
            f"{G}g4_a_zombies_late_write_is_evaluated_again",
            f"{L}the_suspicion_of_a_zombies_write_outlives_the_successors_commit",
        ),
        (
            (
                "    PERFORM meshgate.put_mark(p_version_id, p_span, 'suspect', p_run_id,\n"
                "                              jsonb_build_object('cause', 'a run that had lost its lease wrote here'));\n"
            ),
            "",
        ),
    ),
    sql(
        "G5 a refresh stamps from the first stale instant on",
        "test_staleness.py::test_a_restated_dimension_makes_its_facts_stale_from_there_on",
        ("SELECT p_stale_from WHERE p_stale_from IS NOT NULL", "SELECT p_stale_from WHERE false"),
    ),
    sql(
        "G4 the last word of a lost run",
        f"{L}what_a_zombie_had_begun_is_suspect_anew_when_it_is_heard_of_for_the_last_time[says that it ends]",
        ("            PERFORM meshgate.hear_of(p_run_id);\n", ""),
    ),
    sql(
        "G4 the end of a lost process",
        (
            f"{L}what_a_zombie_had_begun_is_suspect_anew_when_it_is_heard_of_for_the_last_time[is proven gone]",
            "test_faults.py::test_a_late_write_that_ends_in_an_error_is_mended[True]",
        ),
        ("    PERFORM meshgate.hear_of(p_run_id);\n    IF p_engine_gone", "    IF p_engine_gone"),
    ),
    sql(
        "G4 the fence of a lost run is kept",
        f"{L}a_zombie_is_remembered_after_the_history_was_pruned",
        ("WHERE r.ended_at < before AND r.state <> 'lost'", "WHERE r.ended_at < before"),
    ),
    sql(
        "G4 lock before clock, the ledger's lock",
        f"{L}a_commit_that_waits_beyond_its_lease_is_refused",
        (
            (
                "    old record;\nBEGIN\n    PERFORM meshgate.lock_ledger();\n    present := meshgate.clock();\n"
                "    IF NOT meshgate.holds_lease(p_run_id) THEN"
            ),
            (
                "    old record;\nBEGIN\n    whole := meshgate.holds_lease(p_run_id);\n    PERFORM meshgate.lock_ledger();\n"
                "    present := meshgate.clock();\n    IF NOT whole THEN"
            ),
        ),
    ),
    sql(
        "G4 lock before clock, the run's row",
        f"{L}a_renewal_that_waits_beyond_its_lease_is_refused",
        (
            "DECLARE\n    r meshgate.run;\nBEGIN\n    SELECT x.* INTO r FROM meshgate.run x WHERE x.run_id = p_run_id FOR UPDATE;",
            (
                "DECLARE\n    r meshgate.run;\n    early timestamptz := meshgate.clock();\nBEGIN\n"
                "    SELECT x.* INTO r FROM meshgate.run x WHERE x.run_id = p_run_id FOR UPDATE;"
            ),
        ),
        ("r.expires_at > meshgate.clock();", "r.expires_at > early;"),
    ),
    sql(
        "G5 revision order: a bare sequence instead of the lock",
        f"{L}revisions_are_handed_out_in_the_order_of_commits",
        ("INTO present FROM meshgate.ledger l FOR UPDATE;", "INTO present FROM meshgate.ledger l;"),
        (
            "CREATE FUNCTION meshgate.next_revision()",
            "CREATE SEQUENCE meshgate.bare;\nCREATE FUNCTION meshgate.next_revision()",
        ),
        (
            "    UPDATE meshgate.ledger SET revision = revision + 1 RETURNING revision;",
            "    SELECT nextval('meshgate.bare');",
        ),
    ),
    sql(
        "G5 the ledger's lock",
        f"{L}a_begin_waits_for_a_commit_under_way_and_reads_up_to_it",
        ("INTO present FROM meshgate.ledger l FOR UPDATE;", "INTO present FROM meshgate.ledger l;"),
    ),
    sql(
        "G5 isolation level",
        f"{L}a_stricter_isolation_level_is_refused",
        ("    IF current_setting('transaction_isolation') <> 'read committed' THEN", "    IF false THEN"),
    ),
    sql(
        "G5 a promotion has its own revision",
        f"{L}a_promotion_gives_the_new_version_its_own_revision",
        ("        UPDATE meshgate.coverage SET revision = made WHERE version_id = ANY (changed);\n", ""),
    ),
    sql(
        "G5 a version that read too early is suspect",
        f"{L}a_new_version_that_read_before_the_old_one_was_made_again_is_suspect",
        (
            "                       AND greatest(o.revision, o.touched_revision) > n.read_revision\n",
            "AND false",
        ),
    ),
    sql(
        "G5 marks belong to the model",
        f"{L}a_mark_goes_over_to_the_version_that_had_read_before_it[requested-requested]",
        ("AND m.span && n.span AND m.revision > n.read_revision", "AND false"),
    ),
    sql(
        "G5 a refresh stamps what it was asked to redo",
        (f"{L}a_refresh_stamps_everything_from_what_was_asked_for_on[requested]", "test_ledger_stateful.py"),
        ("            stamped := tstzrange(asked, upto);\n", "            NULL;\n"),
    ),
    sql(
        "G5 dirty spans",
        (f"{L}a_failed_refresh_leaves_a_dirty_span_until_it_is_repaired", "test_ledger_stateful.py"),
        (
            "    PERFORM meshgate.taint(held.version_id, held.read_revision, held.run_id);\n",
            "",
        ),
    ),
    sql(
        "G6 suspect mark of foreign time",
        (f"{G}g6_foreign_writes_on_missing_parents_are_seen_and_redone", "test_ledger_stateful.py"),
        ("        IF (p_gated AND NOT row.proven)\n           OR EXISTS", "        IF EXISTS"),
    ),
    sql(
        "G6 foreign time over what is being written",
        (f"{G}g6_a_foreign_write_into_an_evaluation_under_way_is_redone", "test_ledger_stateful.py"),
        ("AND (k.state = 'begun' OR k.state = 'lost'", "AND (k.state = 'lost'"),
    ),
    sql(
        "G6 foreign time over what is marked",
        f"{L}foreign_time_over_time_that_the_ledger_knows_is_suspect[failed]",
        (
            "           OR EXISTS (SELECT FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.span && row.piece)\n",
            "",
        ),
    ),
    sql(
        "G6 removals",
        (f"{G}g6_foreign_removals_are_seen_and_redone", "test_ledger_stateful.py"),
        ("                   ELSE c.mirrored_at < p_read_at END", "                   ELSE false END"),
    ),
    sql(
        "G6 a look from before the record proves nothing",
        f"{L}a_look_from_before_the_mirror_does_not_miss_it",
        (
            "                   ELSE c.mirrored_at < p_read_at END",
            "                   ELSE c.mirrored_at IS NOT NULL END",
        ),
    ),
    sql(
        "G7 acquire_run looks at --now",
        (f"{G}g7_a_run_is_given_no_instant_in_the_future", "test_ledger_stateful.py"),
        ("    IF p_as_of > present THEN", "    IF false THEN"),
    ),
    sql(
        "G7 a production ledger has one clock",
        (
            f"{G}g7_one_clock_that_no_session_of_a_production_ledger_can_set",
            "test_migrations.py::test_a_production_ledger_ignores_a_sessions_clock",
        ),
        ("       AND (SELECT l.test_clock FROM meshgate.ledger l) THEN", "       THEN"),
    ),
    sql(
        "G8 the facts of a failure",
        (
            f"{G}g8_a_no_of_the_plan_explains_itself",
            f"{L}a_failure_keeps_its_facts_and_counts_its_attempts",
        ),
        (
            "        coalesce(p_detail, '{}') || jsonb_build_object('start'",
            "        jsonb_build_object('start'",
        ),
    ),
    sql(
        "G8 the facts of a refusal",
        f"{G}g8_a_no_of_the_begin_explains_itself",
        (
            "m.span * p_span, m.detail || jsonb_build_object('run_id'",
            "m.span * p_span, jsonb_build_object('run_id'",
        ),
    ),
    sql(
        "G8 who has a claim",
        f"{L}a_refused_claim_names_who_has_it_and_until_when",
        (
            "SELECT k.run_id, x.expires_at INTO refused_by, free_at",
            "SELECT 0, x.expires_at INTO refused_by, free_at",
        ),
    ),
    sql(
        "G5 merging asks the readers",
        "test_merging.py::test_a_reader_that_has_not_read_it_keeps_its_rows_apart",
        (
            "          AND NOT EXISTS (SELECT FROM behind b WHERE b.parent = c.version_id AND c.span && b.time)\n",
            "",
        ),
    ),
    sql(
        "G5 merging leaves what is stale",
        "test_merging.py::test_a_reader_that_has_not_read_it_keeps_its_rows_apart",
        (
            "          AND NOT EXISTS (SELECT FROM gate g WHERE g.child = c.version_id AND NOT c.span <@ g.settled)\n",
            "",
        ),
    ),
    sql(
        "G3 merging leaves the look-back of a claim under way",
        "test_merging.py::test_the_look_back_of_a_fresh_unit_is_not_taken_for_done",
        ("SELECT least(latest, min(k.opened_revision)) - 1 INTO latest", "SELECT latest - 1 INTO latest"),
    ),
    sql(
        "G5 merging leaves what a refresh under way may make dirty",
        "test_merging.py::test_a_refresh_that_fails_touches_only_who_read_meanwhile",
        ("SELECT least(latest, min(k.opened_revision)) - 1 INTO latest", "SELECT latest - 1 INTO latest"),
    ),
)
