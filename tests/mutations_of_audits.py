"""What can be taken away of `auto_restatement_cron` and of standalone audits, and the test that must then fail."""

from __future__ import annotations

from mutation import python, sql

T = "test_auto_restatement.py::test_"
E = "test_auto_restatement_end_to_end.py::test_"
A = "test_standalone_audits.py::test_"

OF_AUDITS = (
    sql(
        "ticks: of all who see one, one asks",
        f"{T}of_all_who_see_a_tick_one_asks",
        (" AND p.answered_at = p_since;", ";"),
    ),
    sql(
        "ticks: what is left of the last request is taken along",
        f"{T}of_a_model_there_is_one_such_request_and_nothing_of_the_last_one_is_lost",
        ("        p_span := range_merge(tstzmultirange(p_span) + coalesce(old.rest, '{}'));\n", ""),
    ),
    sql(
        "ticks: the last request gives way",
        f"{T}of_a_model_there_is_one_such_request_and_nothing_of_the_last_one_is_lost",
        ("        DELETE FROM meshgate.request WHERE request_id = old.request_id;\n", ""),
    ),
    sql(
        "ticks: nothing is asked for that is not recorded",
        f"{T}a_tick_about_time_that_is_not_recorded_is_answered_with_nothing",
        ("    IF p_span IS NULL OR NOT EXISTS (", "    IF p_span IS NULL OR false AND NOT EXISTS ("),
    ),
    sql(
        "ticks: the first one is one that comes",
        f"{T}the_first_tick_is_one_that_comes",
        ("coalesce(i.seen_at, meshgate.clock()) END", "timestamptz '2000-01-01' END"),
    ),
    sql(
        "ticks: a new cron begins anew",
        f"{T}the_first_tick_is_one_that_comes",
        ("CASE WHEN promotion.restate_cron = excluded.restate_cron THEN", "CASE WHEN true THEN"),
    ),
    python(
        "ticks: those that nobody saw are made up for",
        (
            f"{T}it_asks_when_sqlmesh_would_and_for_what_it_would_have_at_each_tick",
            f"{E}a_week_without_runs_is_made_up_for_once",
        ),
        "due.py",
        ("node.unit.floor(ticks.first)", "node.unit.floor(now)"),
    ),
    python(
        "ticks: those of an old cron are answered before it goes",
        f"{E}a_new_cron_counts_from_its_deploy_and_the_old_one_until_then",
        "coordinator/reconcile.py",
        ("    _answer_before_change(ledger, environment, graph, now)\n", ""),
    ),
    python(
        "ticks: SQLMesh's own record is told",
        f"{E}what_was_answered_here_plain_sqlmesh_does_not_do_again",
        "coordinator/run.py",
        ("            postpone(opened, target, until)\n", ""),
    ),
    python(
        "ticks: what must not be computed again is not",
        f"{E}kinds_are_treated_as_sqlmesh_does[disabled]",
        "bridge/translate.py",
        (" and not model.disable_restatement", ""),
    ),
    python(
        "ticks: only production's count",
        f"{E}only_production_does_it_by_itself",
        "coordinator/ticks.py",
        ("manifest.environment != _PRODUCTION", "False"),
    ),
    python(
        "ticks: a cron that never ticks is refused by the deploy",
        f"{E}a_cron_that_cannot_be_gone_by_is_refused_by_the_deploy[0 0 31 2 *]",
        "coordinator/deploy.py",
        ("    check_ticks(graph, project.name, now)\n", ""),
    ),
    sql(
        "standalone audits: verdict and hold are one transaction",
        f"{A}by_policy_what_it_reads_is_held_until_it_passes",
        (
            "    PERFORM meshgate.hold_judged(p_version_id, p_judged, p_judged_spans, p_whys, p_run_id);\n",
            "",
        ),
    ),
    sql(
        "standalone audits: what was made anew stays held",
        f"{A}rows_that_are_made_anew_stay_held_until_the_audit_has_passed",
        ("               AND x.judge_id IS NULL\n", ""),
    ),
    sql(
        "standalone audits: what is held is judged, when it begins",
        f"{A}rows_that_are_made_anew_stay_held_until_the_audit_has_passed",
        (
            "    WHERE o.reason <> 'held' OR (SELECT v.kind FROM meshgate.version v WHERE v.version_id = p_version_id) <> 'audit';",
            "    ;",
        ),
    ),
    python(
        "standalone audits: what is held is judged, when it is planned",
        f"{A}by_policy_what_it_reads_is_held_until_it_passes",
        "gate.py",
        ("            known = known.unheld\n", "            pass\n"),
    ),
    python(
        "standalone audits: other projects' models are not held",
        f"{A}another_projects_models_are_judged_and_not_held",
        "coordinator/allowance.py",
        (
            "for g in graph.gates(name) if graph[g.parent].project == node.project}",
            "for g in graph.gates(name)}",
        ),
    ),
    python(
        "standalone audits: it is no model that is held itself",
        f"{A}by_policy_what_it_reads_is_held_until_it_passes",
        "coordinator/journal.py",
        (" and node.kind is not Kind.AUDIT", ""),
    ),
    python(
        "standalone audits: of a whole table the newest verdict counts",
        f"{A}of_a_table_that_is_one_whole_the_newest_verdict_counts",
        "coordinator/judging.py",
        ("whole = parent.kind.as_of or gate", "whole = gate"),
    ),
    python(
        "standalone audits: of several intervals those are held that it rejects",
        f"{A}of_several_intervals_those_that_it_rejects_are_held[True]",
        "bridge/audits.py",
        ("return any(r.count for r in results)", "return False"),
    ),
    python(
        "standalone audits: a query that is the same for all is asked once",
        f"{A}of_several_intervals_those_that_it_rejects_are_held[False]",
        "bridge/scheduler.py",
        ("if snapshot.is_audit and [r.query", "if False and [r.query"),
    ),
    python(
        "standalone audits: asked again at once",
        f"{A}an_audit_is_asked_again_at_once",
        "coordinator/staleness.py",
        ("self.throttle is None and node.kind is Kind.AUDIT", "False"),
    ),
)
