"""What can be taken away of waiting, sharing, back-off and claims on the whole, and the test that must then fail."""

from __future__ import annotations

from mutation import L, python, sql
from mutations_of_sql import LEASE_OR_ERROR

STATEFUL = "test_ledger_stateful.py"

OF_COORDINATION = (
    # -- back-off
    sql(
        "back-off: doubles",
        (f"{L}the_pause_doubles_with_each_failure_and_is_bounded", STATEFUL),
        ("extract(epoch FROM r.retry_first) * 2 ^ doublings", "extract(epoch FROM r.retry_first)"),
    ),
    sql(
        "back-off: is bounded",
        f"{L}the_pause_doubles_with_each_failure_and_is_bounded",
        (" * 2 ^ doublings, extract(epoch FROM r.retry_longest)", " * 2 ^ doublings"),
    ),
    sql(
        "back-off: so many doublings",
        f"{L}any_number_of_failures_has_a_pause",
        ("ELSE 1 END, 30);", "ELSE 1 END, 3000);"),
    ),
    sql(
        "back-off: from the run's instant",
        f"{L}the_pause_is_counted_from_the_instant_that_the_run_stands_for",
        ("coalesce(r.as_of, meshgate.clock()) + make", "meshgate.clock() + make"),
    ),
    sql(
        "back-off: the first death",
        f"{L}the_second_death_at_the_same_time_pauses_and_the_first_does_not[buried]",
        ("before - CASE p_kind WHEN 'suspect' THEN 2 ELSE 1 END", "before - 1"),
    ),
    sql(
        "back-off: only tries count",
        (
            f"{L}the_refused_write_of_a_zombie_is_no_attempt[1]",
            f"{L}a_write_that_is_refused_before_anybody_took_over_is_one_attempt",
        ),
        ("    IF p_tried THEN\n", "    IF p_run_id IS NOT NULL THEN\n"),
    ),
    sql(
        "back-off: an outage is no try",
        f"{L}a_failure_that_was_told_without_a_try_is_no_attempt",
        ("coalesce((p_detail ->> 'tried')::boolean, true)", "true"),
    ),
    sql(
        "back-off: what is given up is no try",
        f"{L}what_was_given_up_is_no_attempt",
        (
            "an evaluation wrote here and was not finished'), false);",
            "an evaluation wrote here and was not finished'));",
        ),
    ),
    sql(
        "G3 suspect mark of what is given up",
        f"{L}what_is_given_up_is_suspect_and_free",
        (
            (
                "    PERFORM meshgate.distrust_claim(piece, 'suspect', jsonb_build_object(\n"
                "        'cause', 'an evaluation wrote here and was not finished'), false);\n"
            ),
            "",
        ),
    ),
    sql(
        "G4 fence in give_up_claim",
        f"{L}a_zombie_gives_nothing_up",
        (
            (
                "        PERFORM meshgate.refuse_write(p_run_id, p_version_id, p_span);\n        RETURN false;\n    END IF;\n"
                "    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{begun}');\n    IF piece IS NULL THEN\n"
                "        RETURN false;"
            ),
            (
                "        NULL;\n    END IF;\n"
                "    piece := meshgate.claim_piece(p_run_id, p_version_id, p_span, '{begun}');\n    IF piece IS NULL THEN\n"
                "        RETURN false;"
            ),
        ),
    ),
    sql(
        "G2 quarantine of what still writes",
        (
            f"{L}a_run_that_ends_while_it_still_writes_is_waited_for[False]",
            f"{L}a_run_that_ends_while_it_still_writes_is_waited_for[True]",
        ),
        ("SELECT NOT p_writing AND coalesce(", "SELECT coalesce("),
    ),
    sql(
        "back-off: outlives a mark that was no try",
        f"{L}the_refused_write_of_a_zombie_is_no_attempt[2]",
        ("SELECT max(m.attempts), max(m.retry_at),", "SELECT max(m.attempts), NULL::timestamptz,"),
    ),
    sql(
        "back-off: outlives a cut",
        f"{L}a_part_that_was_committed_leaves_the_rest_of_a_pause_as_it_was",
        ("cut.detail, cut.made_at, cut.retry_at,", "cut.detail, cut.made_at, NULL,"),
    ),
    sql(
        "retry: ends pauses",
        (f"{L}whoever_repaired_it_ends_the_pause", STATEFUL),
        (
            "IN UPDATE meshgate.mark m SET retry_at = NULL",
            "IN UPDATE meshgate.mark m SET retry_at = m.retry_at",
        ),
    ),
    sql(
        "retry: of this time",
        f"{L}only_what_is_asked_for_is_tried_at_once",
        ("AND m.retry_at IS NOT NULL AND m.span && p_span\n", "AND m.retry_at IS NOT NULL\n"),
    ),
    sql(
        "retry: of these models",
        f"{L}only_what_is_asked_for_is_tried_at_once",
        ("WHERE m.version_id = ANY (p_versions) AND m.retry_at", "WHERE m.retry_at"),
    ),
    # -- whole tables, tables claimed whole
    sql(
        "merge: all that was being written",
        (
            f"{L}a_merge_mends_a_table_once_all_that_was_being_written_is_written_again[incremental_by_unique_key]",
            STATEFUL,
        ),
        ("AND (m.batch IS NULL OR m.batch <@ p_span OR lower_inf(m.batch)));", ");"),
    ),
    sql(
        "merge: what is left to be written",
        f"{L}a_merge_tells_what_is_left_to_be_written",
        ("AND NOT refreshed AND NOT m.batch <@ p_span AND NOT lower_inf(m.batch);", "AND false;"),
    ),
    sql(
        "merge: what is left, read late enough",
        f"{L}a_merge_that_had_begun_before_mends_nothing[1]",
        ("AND m.revision <= held.read_revision AND m.kind IN ('failed'", "AND m.kind IN ('failed'"),
    ),
    sql(
        "merge: a doubt without bounds",
        f"{L}a_doubt_without_bounds_ends_with_any_merge",
        (" AND NOT lower_inf(m.batch);", ";"),
        (" OR lower_inf(m.batch)))", "))"),
    ),
    sql(
        "merge: doubts add up",
        f"{L}a_second_failure_adds_to_what_has_to_be_written_again",
        ("coalesce(range_agg(m.batch), '{}') + tstzmultirange(written)", "tstzmultirange(written)"),
    ),
    sql(
        "merge: the batch is in doubt",
        f"{L}what_a_lost_merge_was_writing_has_to_be_written_again",
        ("coalesce(held.batch, held.span)", "held.span"),
    ),
    sql(
        "merge: dirty until the doubt ends",
        f"{L}the_dirty_span_of_a_merge_ends_with_its_doubt",
        (
            "IF NOT FOUND THEN\n            UPDATE meshgate.dirty_span",
            "IF true THEN\n            UPDATE meshgate.dirty_span",
        ),
    ),
    sql(
        "whole: what was not begun cannot end",
        (
            f"{L}what_was_not_begun_of_a_whole_table_cannot_end[commit-full]",
            f"{L}what_was_not_begun_of_a_whole_table_cannot_end[fail-incremental_by_unique_key]",
        ),
        ("\n      AND (p_states <> '{begun}' OR c.batch @> p_span);", ";"),
    ),
    sql(
        "whole: a second begin, what is written",
        (f"{L}a_second_begin_of_a_whole_table_forgets_nothing_of_the_first", STATEFUL),
        ("CASE WHEN c.state = 'begun' THEN range_merge(c.batch, p_span) ELSE p_span END", "p_span"),
    ),
    sql(
        "whole: a second begin, what was read",
        f"{L}a_second_begin_of_a_whole_table_forgets_nothing_of_the_first",
        ("CASE WHEN c.state = 'begun' AND c.span = '(,)' THEN c.read_revision ELSE known END", "known"),
    ),
    sql(
        "whole: a commit of a part",
        f"{L}a_merge_in_parts_is_under_way_until_the_last_one",
        ("CASE WHEN refreshed OR c.batch <@ p_span THEN 'open' ELSE 'begun' END", "'open'"),
    ),
    sql(
        "exclusive: all of it",
        f"{L}who_claims_a_table_whole_is_alone_with_it",
        ("SELECT v.as_of OR p_whole INTO whole", "SELECT v.as_of INTO whole"),
    ),
    sql(
        "exclusive: each batch by itself",
        (
            f"{L}a_batch_of_a_table_claimed_whole_counts_as_one",
            f"{L}a_table_claimed_whole_is_unclean_only_where_it_is_being_written",
            STATEFUL,
        ),
        (
            "held.span = p_span OR (SELECT v.as_of FROM meshgate.version v WHERE v.version_id = p_version_id)",
            "held.span IN (p_span, '(,)')",
        ),
        (
            "SELECT CASE WHEN v.as_of THEN c.span ELSE coalesce(c.batch, c.span) END",
            "SELECT c.span",
        ),
    ),
    # -- who lives beside whom
    sql(
        "share: never beside a deploy",
        (f"{L}who_may_live_beside_whom[sharing run beside deploy]", STATEFUL),
        (
            "(x.purpose = 'deploy' OR x.purpose = 'run' AND NOT p_share)",
            "(x.purpose = 'run' AND NOT p_share)",
        ),
    ),
    sql(
        "share: a sharing run starts",
        f"{L}of_many_that_share_all_get_a_lease",
        ("(x.purpose = 'deploy' OR x.purpose = 'run' AND NOT p_share)", "x.purpose <> 'maintenance'"),
    ),
    sql(
        "deploy: one of an environment",
        f"{L}of_many_deploys_at_once_one_gets_the_lease",
        (
            "CASE p_purpose WHEN 'deploy' THEN x.purpose = 'deploy'",
            "CASE p_purpose WHEN 'deploy' THEN false",
        ),
    ),
    sql(
        "deploy: starts beside runs",
        f"{L}who_may_live_beside_whom[deploy beside run]",
        ("THEN x.purpose = 'deploy'\n", "THEN x.purpose = 'deploy' OR x.project_id = owner\n"),
    ),
    sql(
        "deploy: is named before a run",
        f"{L}a_run_that_is_kept_out_by_a_deploy_is_told_of_the_deploy",
        ("ORDER BY x.purpose, x.run_id LIMIT 1;", "ORDER BY x.run_id LIMIT 1;"),
    ),
    sql(
        "takeover: by whoever starts",
        f"{L}any_run_that_starts_takes_over_what_has_expired",
        ("    PERFORM meshgate.take_over();\n", ""),
    ),
    sql(
        "takeover: of the row as it is",
        f"{L}a_takeover_leaves_a_run_alone_whose_renewal_is_under_way",
        ("             ORDER BY x.run_id FOR UPDATE LOOP", "             ORDER BY x.run_id LOOP"),
    ),
    sql(
        "break: waits for what was begun",
        f"{L}what_a_broken_run_had_begun_is_waited_out_as_after_an_expiry",
        (
            "lose_run(p_run_id, false, false, 'its lease was broken by '",
            "lose_run(p_run_id, true, false, 'its lease was broken by '",
        ),
    ),
    sql(
        "break: a run that never was",
        f"{L}a_run_that_never_was_cannot_be_broken",
        ("    IF lived IS NULL THEN\n", "    IF false THEN\n"),
    ),
    sql(
        "G8 break: who did it",
        f"{L}the_history_tells_who_broke_a_lease",
        ("'its lease was broken by ' || p_by", "'its lease was broken'"),
    ),
    # -- deploys that are about to promote
    sql(
        "pause: nothing begins",
        (f"{L}nothing_begins_of_what_a_deploy_is_about_to_replace", STATEFUL),
        ("ours.model_id = ANY (d.promoting)", "false"),
    ),
    sql(
        "pause: of these models",
        f"{L}what_a_deploy_leaves_as_it_is_goes_on",
        ("ours.model_id = ANY (d.promoting)", "d.promoting IS NOT NULL"),
    ),
    sql(
        "pause: a deploy's word only",
        f"{L}a_run_that_is_no_deploy_pauses_nothing",
        ("d.state = 'running' AND d.purpose = 'deploy' AND", "d.state = 'running' AND"),
    ),
    sql(
        "pause: ends with the deploy",
        f"{L}a_pause_ends_with_the_deploy_however_that_ends[finished]",
        ("d.state = 'running' AND d.purpose = 'deploy' AND", "d.purpose = 'deploy' AND"),
    ),
    sql(
        "pause: ends with the lease",
        f"{L}a_pause_ends_with_the_deploy_however_that_ends[expired]",
        ("AND d.expires_at > p_present AND d.run_id", "AND d.run_id"),
    ),
    sql(
        "pause: in its environment",
        f"{L}another_environment_goes_on",
        ("      AND d.environment = p_environment AND ours", "      AND ours"),
    ),
    sql(
        "pause: not for the deploy itself",
        f"{L}the_deploy_itself_begins",
        ("d.expires_at > p_present AND d.run_id <> p_run_id", "d.expires_at > p_present"),
    ),
    sql("pause: fence", f"{L}a_deploy_that_lost_its_lease_pauses_nothing", (LEASE_OR_ERROR, "", 1)),
    sql(
        "pause: the ledger's lock",
        f"{L}a_begin_under_a_pause_under_way_waits_for_the_deploy",
        (
            "    present timestamptz;\nBEGIN\n    PERFORM meshgate.lock_ledger();\n    present := meshgate.clock();\n    IF NOT",
            "    present timestamptz;\nBEGIN\n    present := meshgate.clock();\n    IF NOT",
        ),
    ),
    sql(
        "pause: tells what others write",
        f"{L}what_was_begun_before_the_pause_goes_on_to_its_end",
        ("WHERE k.state = 'begun' AND k.run_id <> p_run_id", "WHERE false AND k.run_id <> p_run_id"),
    ),
    sql(
        "pause: tells what others write, not itself",
        f"{L}a_deploy_is_told_only_of_what_others_write",
        ("WHERE k.state = 'begun' AND k.run_id <> p_run_id", "WHERE k.state = 'begun'"),
    ),
    sql(
        "pause: waits for no dead run",
        f"{L}a_deploy_waits_for_no_batch_that_has_ended[expired]",
        (
            "AND r.state = 'running' AND r.expires_at > present\n    ORDER",
            "AND r.state = 'running'\n    ORDER",
        ),
    ),
    # -- limits
    sql(
        "limit of a model",
        (f"{L}a_models_limit_holds_over_all_runs", STATEFUL),
        ("WHERE u.model_id = ours.model_id) >= p_of_model", "WHERE u.model_id = ours.model_id) > p_of_model"),
    ),
    sql(
        "limit of a warehouse",
        f"{L}a_warehouses_limit_holds_over_all_projects",
        ("WHERE u.warehouse = ours.warehouse) >= p_of", "WHERE u.warehouse = ours.warehouse) > p_of"),
    ),
    sql(
        "limit: of this model",
        f"{L}a_models_limit_does_not_count_other_models",
        ("FROM under_way u WHERE u.model_id = ours.model_id)", "FROM under_way u)"),
    ),
    sql(
        "limit: of this warehouse",
        f"{L}a_warehouses_limit_does_not_count_other_warehouses",
        ("FROM under_way u WHERE u.warehouse = ours.warehouse)", "FROM under_way u)"),
    ),
    sql(
        "limit: counts what lives",
        (
            f"{L}no_place_leaks_however_a_batch_ends[model-expired]",
            f"{L}no_place_leaks_however_a_batch_ends[warehouse-expired]",
        ),
        ("AND r.state = 'running' AND r.expires_at > p_present),", "AND r.state = 'running'),"),
    ),
    sql(
        "limit: counts what has begun",
        f"{L}what_is_only_reserved_counts_for_nothing",
        (
            "        WHERE k.state = 'begun' AND r.state = 'running'",
            "        WHERE k.state <> 'lost' AND r.state = 'running'",
        ),
    ),
    sql(
        "limit: what has begun goes on",
        f"{L}what_has_begun_may_begin_again_at_the_limit",
        (
            "    IF (SELECT state = 'open' FROM meshgate.claim WHERE claim_id = piece) THEN",
            "    IF true THEN",
        ),
    ),
    sql(
        "limit: the ledger's lock",
        f"{L}a_begin_waits_for_one_under_way_and_counts_it",
        (
            "    known := meshgate.lock_ledger();\n",
            "    SELECT revision INTO known FROM meshgate.ledger;\n",
            1,
        ),
    ),
    # -- migrations
    python(
        "migrations: not while a run lives",
        "test_migrations.py::test_a_ledger_is_not_migrated_while_a_run_lives",
        "db.py",
        ("                _refuse_while_runs_live(cursor, database.shown_url)\n", ""),
    ),
    python(
        "migrations: an expired run is in nobody's way",
        "test_migrations.py::test_a_ledger_is_migrated_once_no_run_lives[expired]",
        "db.py",
        (" AND r.expires_at > clock_timestamp() ORDER", " ORDER"),
    ),
    python(
        "migrations: functions anew",
        "test_migrations.py::test_a_migration_makes_every_function_anew",
        "db.py",
        ("                cursor.execute(_DROP_FUNCTIONS)\n", ""),
        (
            "cursor.execute(functions_sql())",
            'cursor.execute(functions_sql().replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))',
        ),
    ),
    sql(
        "maintenance keeps no run out",
        "test_upkeep.py::test_it_is_in_no_runs_way_and_no_run_in_its",
        (
            "x.project_id = owner AND (x.purpose = 'deploy' OR x.purpose = 'run' AND NOT p_share)",
            "x.project_id = owner AND (x.purpose = 'deploy' OR NOT p_share)",
        ),
    ),
    sql(
        "maintenance is kept out by no run",
        "test_upkeep.py::test_it_is_in_no_runs_way_and_no_run_in_its",
        ("               ELSE false END\n", "               ELSE x.project_id = owner END\n"),
    ),
    sql(
        "maintenance is noted under its lease",
        "test_upkeep.py::test_what_dies_leaves_nothing_behind",
        (
            "    IF NOT meshgate.holds_lease(p_run_id) OR NOT EXISTS (\n        SELECT FROM meshgate.claim c\n        WHERE c.run_id = p_run_id AND c.version_id = p_version_id AND c.state = 'open' AND c.span = '(,)') THEN",
            "    IF false THEN",
        ),
    ),
    sql(
        "maintenance is noted of what it holds",
        "test_upkeep.py::test_it_is_remembered_by_operation_and_only_for_what_is_reserved",
        (
            "    IF NOT meshgate.holds_lease(p_run_id) OR NOT EXISTS (\n        SELECT FROM meshgate.claim c\n        WHERE c.run_id = p_run_id AND c.version_id = p_version_id AND c.state = 'open' AND c.span = '(,)') THEN",
            "    IF NOT meshgate.holds_lease(p_run_id) THEN",
        ),
    ),
    python(
        "maintenance counts a run that lives",
        "test_upkeep.py::test_the_longest_run_counts_also_while_it_lives",
        "sql/queries.sql",
        ("coalesce(r.ended_at, meshgate.clock())", "coalesce(r.ended_at, r.started_at)"),
    ),
    python(
        "maintenance reserves the whole of a table",
        "test_upkeep.py::test_statements_run_while_the_tables_are_held",
        "coordinator/upkeep.py",
        ("        if answer.refused_by is not None:", "        if False:"),
    ),
)
