"""What can be taken away of holds and declared holes, and the test that must then fail."""

from __future__ import annotations

from mutation import L, python, sql
from mutations_of_sql import LEASE_OR_ERROR

OF_PEOPLE = (
    # -- holds
    sql(
        "hold: readers are refused where they begin",
        (
            f"{L}a_held_range_is_refused_to_its_readers_where_they_begin",
            f"{L}a_reader_of_a_loaded_table_waits_for_its_release",
        ),
        ("WHERE v.version_id = p_version_id AND h.released_at IS NULL AND (v.as_of", "WHERE false AND (v.as_of"),
    ),
    sql(
        "hold: ends with its release",
        f"{L}a_reader_of_a_loaded_table_waits_for_its_release",
        ("AND h.released_at IS NULL AND (v.as_of", "AND (v.as_of"),
    ),
    sql(
        "hold: a whole table",
        f"{L}a_hold_on_a_table_that_is_one_whole_is_on_all_of_it",
        ("AND h.released_at IS NULL AND (v.as_of OR h.span && p_span)", "AND h.released_at IS NULL AND h.span && p_span"),
    ),
    sql(
        "hold: the lock",
        f"{L}a_hold_waits_for_the_one_lock",
        (
            ("    PERFORM meshgate.lock_ledger();\n    present := meshgate.clock();\n"
            "    PERFORM meshgate.must_be_told('why it is held'"),
            "    present := meshgate.clock();\n    PERFORM meshgate.must_be_told('why it is held'",
        ),
    ),
    sql(
        "hold: twice is once",
        f"{L}holding_twice_with_the_same_words_is_one_hold",
        ("    IF FOUND THEN\n        RETURN found_hold;\n    END IF;\n", ""),
    ),
    sql(
        "hold: reason and author",
        (f"{L}nothing_is_done_without_a_reason_and_a_name[]", f"{L}nothing_is_done_without_a_reason_and_a_name[  ]"),
        ("IF coalesce(btrim(p_value), '') = '' THEN", "IF p_value IS NULL THEN"),
    ),
    sql(
        "release: the rest stays held",
        f"{L}releasing_a_part_leaves_the_rest_held_as_it_was",
        ("    SELECT h.model_id, h.version_id, h.judge_id, piece, h.reason, h.made_by, h.made_at\n", "    SELECT h.model_id, h.version_id, h.judge_id, piece, h.reason, p_by, h.made_at\n"),
    ),
    sql(
        "release: only what is asked for",
        f"{L}releasing_what_is_not_held_does_nothing",
        ("AND x.released_at IS NULL AND x.span && p_span ORDER", "AND x.released_at IS NULL ORDER"),
    ),
    python(
        "hold: closes the gate of the plan",
        "test_holds.py::test_what_is_held_is_evaluated_and_not_read_until_it_is_released",
        "coordinator/standing.py",
        ("    obstacles += [_of_hold(hold) for hold in known.holds]\n", ""),
    ),
    python(
        "hold: the model itself goes on",
        "test_holds.py::test_a_model_that_reads_itself_goes_on_over_its_own_hold",
        "gate.py",
        ("history - own.unheld.clean", "history - own.clean"),
    ),
    sql(
        "policy: held in the commit",
        f"{L}a_policy_holds_what_it_was_told_to_in_the_commit",
        ("    IF p_why IS NOT NULL THEN\n        PERFORM meshgate.hold", "    IF false THEN\n        PERFORM meshgate.hold"),
    ),
    sql(
        "policy: ends where it passes",
        f"{L}a_hold_by_policy_ends_where_the_range_is_written_again_and_passes",
        ("        PERFORM meshgate.cut_hold(h, p_gone, 'run ' || p_run_id);\n", "        NULL;\n"),
    ),
    sql(
        "policy: not the holds of people",
        f"{L}a_commit_leaves_the_holds_of_people_alone",
        ("p_version_id AND x.version_id = p_version_id AND x.released", "p_version_id AND x.released"),
    ),
    sql(
        "policy: one version",
        f"{L}a_hold_by_policy_is_on_the_rows_of_one_version",
        ("\n      AND coalesce(h.version_id, p_version_id) = p_version_id;", ";"),
    ),
    python(
        "policy: only where the project says so",
        "test_holds.py::test_what_an_audit_warns_of_is_held_where_the_project_says_so",
        "coordinator/allowance.py",
        ('manifest.get("on_audit_warning") == "hold"', 'manifest.get("on_audit_warning") == "no"'),
    ),
    # -- declared holes
    sql(
        "accept: a new revision",
        (
            f"{L}a_failed_range_that_is_accepted_opens_the_gate[1]",
            f"{L}who_read_good_rows_before_has_read_less_than_the_accepted_revision",
        ),
        (
            "    made := meshgate.next_revision();\n    FOREACH piece",
            ("    made := (SELECT coalesce(min(c.revision), known) FROM meshgate.coverage c WHERE c.version_id = p_version_id);\n"
            "    known := made - 1;\n    FOREACH piece"),
        ),
    ),
    sql(
        "accept: clean time keeps its revision",
        f"{L}accepting_touches_only_what_is_not_clean",
        ("holes := tstzmultirange(p_span) - covered + spoilt * tstzmultirange(p_span);", "holes := tstzmultirange(p_span);"),
    ),
    sql(
        "accept: discharges the marks",
        f"{L}acceptance_discharges_the_older_marks_of_what_it_accepts[removed]",
        ("        PERFORM meshgate.carve_marks(p_version_id, piece, known);\n        PERFORM meshgate.note('interval.accepted'",
         "        PERFORM meshgate.note('interval.accepted'"),
    ),
    sql(
        "accept: not what is being written",
        (
            f"{L}what_a_run_is_writing_cannot_be_accepted[incremental_by_time_range]",
            f"{L}what_a_run_is_writing_cannot_be_accepted[full]",
        ),
        ("AND (k.state = 'begun' AND (v.as_of", "AND (false AND (v.as_of"),
    ),
    sql(
        "accept: not what may still be written",
        f"{L}what_a_lost_run_may_still_write_cannot_be_accepted",
        ("           OR k.state = 'lost' AND k.quarantined_until > present)\n    ORDER BY k.state", "           OR false)\n    ORDER BY k.state"),
    ),
    sql(
        "accept: only what is over",
        f"{L}time_that_is_not_over_cannot_be_accepted",
        (" OR upper(p_span) > present THEN", " THEN"),
    ),
    sql(
        "accept: obliges to the lookback",
        f"{L}accepting_fresh_time_obliges_to_the_lookback",
        ("               WHERE p_lookback IS NOT NULL AND NOT isempty(p_lookback) AND NOT isempty(holes)\n", "               WHERE false\n"),
    ),
    sql(
        "accept: the lookback leaves it alone",
        f"{L}the_lookback_of_a_commit_leaves_accepted_time_alone",
        ("\n                 AND c.verdict <> 'accepted' ORDER BY c.span LOOP  -- what", " ORDER BY c.span LOOP  -- what"),
    ),
    sql(
        "accept: the doubt of a whole table",
        (
            f"{L}the_doubt_about_a_whole_table_is_accepted_whole[full]",
            "test_ledger_people.py",
            f"{L}a_doubt_without_a_range_is_accepted_too",
        ),
        ("        DELETE FROM meshgate.mark m WHERE m.version_id = p_version_id AND m.kind IN ('failed', 'suspect');\n", ""),
    ),
    sql(
        "accept: readers in flight",
        f"{L}readers_in_flight_over_an_accepted_refresh_met_its_rows",
        ("        WHERE d.version_id = p_version_id AND d.to_revision IS NULL;\n        -- From now", "        WHERE false;\n        -- From now"),
    ),
    sql(
        "accept: a refreshed table until it is refreshed",
        (
            "test_histories.py::test_rule_12_who_read_a_whole_table_as_it_was_accepted_is_stale_when_it_is_refreshed",
            f"{L}who_read_an_accepted_refresh_met_what_the_next_one_writes_over",
        ),
        ("SET to_revision = CASE WHEN v.kind NOT IN ('full', 'view') OR", "SET to_revision = CASE WHEN true OR"),
    ),
    sql(
        "accept: a table that is written over and accepted again",
        f"{L}who_read_an_accepted_refresh_met_what_the_next_one_writes_over",
        ("OR d.accepted_revision IS NOT NULL AND EXISTS (", "OR false AND EXISTS ("),
    ),
    sql(
        "accept: merging keeps its readers apart",
        "test_merging.py::test_who_read_an_accepted_table_is_not_merged_with_who_read_before",
        ("WHERE g.child = v.version_id AND d.to_revision IS NULL AND d.accepted_revision IS NOT NULL", "WHERE false"),
    ),
    # -- and SQLMesh's own record
    sql(
        "accept: never taken along, never removed",
        f"{L}what_was_never_taken_along_to_sqlmesh_is_no_finding",
        ("THEN c.committed_at < p_read_at AND c.run_id IS NOT NULL\n                        AND (r.state <> 'running'",
         "THEN c.committed_at < p_read_at\n                        AND (r.state IS NULL OR r.state <> 'running'"),
    ),
    sql(
        "accept: taken along under a lease",
        f"{L}a_run_without_a_lease_takes_nothing_along",
        (LEASE_OR_ERROR, "", 4),
    ),
    sql(
        "accept: taken along by a name",
        f"{L}a_run_that_ends_while_it_takes_it_along_leaves_it_to_be_evaluated",
        ("    UPDATE meshgate.coverage c SET run_id = p_run_id\n    WHERE c.version_id = p_version_id AND c.verdict",
         "    UPDATE meshgate.coverage c SET run_id = NULL\n    WHERE c.version_id = p_version_id AND c.verdict"),
    ),
    sql(
        "accept: what SQLMesh holds already",
        f"{L}what_sqlmesh_held_before_it_holds_still",
        ("'accepted', jsonb_build_array(facts), present, present\n", "'accepted', jsonb_build_array(facts), present, NULL\n"),
    ),
    sql(
        "accept: what SQLMesh holds no more",
        f"{L}removed_time_that_is_accepted_is_taken_along_anew",
        ("           mirrored - coalesce(range_agg(m.span) FILTER (WHERE m.kind = 'removed'), '{}')\n", "           mirrored\n"),
    ),
    sql(
        "G6 plain SQLMesh over accepted time",
        f"{L}plain_sqlmesh_over_accepted_time_is_suspect",
        ("          AND c.committed_at < p_read_at ORDER BY 1\n    LOOP", "          AND false ORDER BY 1\n    LOOP"),
    ),
    python(
        "accept: SQLMesh is told",
        "test_holds.py::test_a_poisoned_interval_is_accepted_and_later_filled",
        "coordinator/reconcile.py",
        ("                project.record(environment, name, node.version, piece)\n", ""),
    ),
)  # fmt: skip
