"""What can be taken away of restatement, and the test that must then fail."""

from __future__ import annotations

from mutation import python, sql

R = "test_ledger_requests.py::test_"
P = "test_restatement.py::test_"
C = "test_restatement_cascade.py::test_"
U = "test_early_cut_off.py::test_"
B = "test_rebuild.py::test_"
M = "test_analysis_movement.py::test_"
F = "test_foreign_writes.py::test_"

OF_RESTATEMENT = (
    sql(
        "restatement: what was read before a request does not fulfil it",
        f"{R}an_evaluation_that_was_under_way_does_not_fulfil_a_request",
        (
            "AND (p_before IS NULL OR c.read_revision < p_before);",
            "AND (p_before IS NULL OR c.revision < p_before);",
        ),
    ),
    sql(
        "restatement: a request goes over to versions that are promoted later",
        f"{R}a_request_reaches_a_version_that_has_more_than_the_one_it_marked",
        ("    PERFORM meshgate.mark_requests();\n", ""),
    ),
    sql(
        "restatement: an analysis asks for a model once",
        f"{R}an_origin_asks_for_a_model_once_however_many_come_with_it",
        ("AND r.origin = p_origin AND r.cancelled_at IS NULL),", "AND false),"),
    ),
    sql(
        "restatement: who cancelled what an analysis asked for may ask anew",
        f"{R}an_origin_asks_for_a_model_once_however_many_come_with_it",
        ("AND r.origin = p_origin AND r.cancelled_at IS NULL),", "AND r.origin = p_origin),"),
    ),
    python(
        "analysis: what is neither as it was nor as analysed has moved",
        f"{M}whatever_else_is_done_is_named",
        "analysis/movement.py",
        ("not in (one.before, one.after)]", "not in (one.before, one.after, 'stranger', None)]"),
    ),
    python(
        "analysis: half a deploy is no deploy",
        f"{M}half_a_deploy_is_nobodys_deploy",
        "analysis/movement.py",
        ("if not strange and project in analysed:", "if False:"),
    ),
    sql(
        "restatement: a mark that is there is not made anew",
        f"{R}looking_at_an_environment_again_does_not_ask_again",
        ("m.kind = 'requested' AND m.revision >= q.revision), '{}');", "false), '{}');"),
    ),
    sql(
        "restatement: cancelling leaves what another request wants",
        f"{R}cancelling_one_of_two_requests_leaves_the_other_as_it_was",
        ("WHERE o.model_id = q.model_id AND o.cancelled_at IS NULL), '{}')", "WHERE false), '{}')"),
    ),
    sql(
        "restatement: cancelling leaves what was accepted and undone",
        f"{R}cancelling_a_request_leaves_what_was_accepted_and_undone[False]",
        ("                   - meshgate.undone_time(v.version_id)) AS span", "                   ) AS span"),
    ),
    sql(
        "restatement: a request over what was accepted and undone does not hide it",
        f"{R}cancelling_a_request_leaves_what_was_accepted_and_undone[True]",
        ("CASE WHEN undone @> piece THEN", "CASE WHEN false THEN"),
    ),
    sql(
        "restatement: a table that merges is asked for as a whole",
        f"{R}a_request_for_a_table_that_merges_is_for_all_of_it[scd_type_2]",
        ("        asked := '(,)';\n", ""),
    ),
    sql(
        "restatement: an open request is kept",
        f"{R}what_is_done_or_cancelled_is_forgotten_in_time_and_what_is_open_is_not",
        ("AND (q.cancelled_at IS NOT NULL OR NOT EXISTS (", "AND (true OR NOT EXISTS ("),
    ),
    python(
        "restatement: what reads itself follows up to its frontier",
        (
            f"{P}what_reads_itself_is_computed_again_up_to_its_frontier",
            f"{C}each_kind_follows_as_in_sqlmesh[time-range_2]",
        ),
        "restatement.py",
        ("if graph.sequential(node.name) and onwards", "if False and onwards"),
    ),
    python(
        "restatement: a refresh changes what comes after, too",
        f"{P}a_refreshed_table_is_made_anew_and_changes_from_the_first_instant_on",
        "restatement.py",
        ("range=known, changed=onwards, widened", "range=known, changed=step.reached, widened"),
    ),
    python(
        "restatement: disable_restatement stops it",
        f"{P}the_cascade_stops_where_it_is_told_to",
        "restatement.py",
        ('    if disabled:\n        return "disabled"\n', ""),
    ),
    python(
        "restatement: a table that appends is not computed twice",
        f"{P}what_cannot_be_computed_again_cannot_be_asked_for[Kind.INCREMENTAL_UNMANAGED-disabled2-not_redoable]",
        "restatement.py",
        ("    if not node.kind.redoable:", "    if False:"),
    ),
    # -- early cut-off
    sql(
        "early cut-off: who is reading",
        (
            f"{U}a_reader_in_flight_makes_everybody_read_again",
            f"{U}a_reader_in_flight_behind_a_view_counts_too[view]",
        ),
        ("WHERE k.state = 'begun' AND k.claim_id <> p_claim_id)", "WHERE false)"),
    ),
    sql(
        "early cut-off: who has read meanwhile",
        f"{U}a_reader_that_ended_meanwhile_makes_everybody_read_again",
        ("greatest(r.revision, r.touched_revision) > p_since)", "false)"),
    ),
    sql(
        "early cut-off: readers behind views",
        f"{U}a_reader_in_flight_behind_a_view_counts_too[view]",
        (
            "WHERE q.model_id = r.model_id AND w.kind NOT IN ('view', 'embedded'))),\n",
            "WHERE q.model_id = r.model_id)),\n",
        ),
    ),
    sql(
        "early cut-off: what was in doubt",
        f"{U}what_was_in_doubt_is_read_again[suspect]",
        (
            "AND m.kind IN ('failed', 'suspect', 'removed')), '{}')\n    FROM unnest(p_same)",
            "AND false), '{}')\n    FROM unnest(p_same)",
        ),
    ),
    python(
        "early cut-off: a second attempt",
        f"{U}a_second_attempt_is_compared_with_nothing",
        "bridge/scheduler.py",
        (
            "                results += self._attempt(snapshot, ready, max(batch_index, 1), kwargs, failures)\n",
            "                results += self._attempt(snapshot, ready, 1, kwargs, failures, ignored=self._journal.compares(snapshot.name, ready))\n",
        ),
    ),
    python(
        "early cut-off: the run goes on with what changed",
        f"{U}what_changed_spreads_and_nothing_else",
        "coordinator/run.py",
        ("        if not todo.later:\n            break\n", "        break\n"),
    ),
    python(
        "early cut-off: readers are planned when that is done",
        f"{U}an_unchanged_restatement_does_not_spread",
        "coordinator/plan.py",
        ("                compared.add(name)\n", "                pass\n"),
    ),
    sql(
        "early cut-off: a version that was built before",
        f"{U}a_version_that_was_built_before_is_in_doubt_when_it_is_promoted",
        (
            "AND greatest(o.revision, o.touched_revision) > n.read_revision",
            "AND o.revision > n.read_revision",
        ),
    ),
    python(
        "early cut-off: a time column that is too coarse",
        f"{U}a_time_column_of_days_tells_no_hours_apart[ts::DATE]",
        "bridge/digests.py",
        ("if any(one == other for some in (starts, day)", "if any(False for some in (starts, day)"),
    ),
    sql(
        "G6 what is removed while it is evaluated",
        (
            f"{F}what_is_removed_while_it_is_evaluated_is_computed_again[False]",
            f"{F}what_was_removed_and_computed_again_by_others_is_not_taken_for_untouched",
        ),
        ("    WHERE log.key <> ALL (v.removals);\n", "    WHERE false;\n"),
    ),
    sql(
        "G6 what is removed while it is evaluated for the first time",
        "test_ledger.py::test_what_is_removed_while_it_is_evaluated_outlives_the_commit[full]",
        (
            "JOIN meshgate.read_time(p_version_id) known ON",
            "JOIN meshgate.coverage known ON known.version_id = p_version_id AND",
        ),
    ),
    sql(
        "G6 a removal that was seen is done with",
        f"{F}what_is_removed_while_it_is_evaluated_is_computed_again[False]",
        ("    WHERE log.key <> ALL (v.removals);\n", "    WHERE true;\n"),
    ),
    python(
        "rebuild: a restating plan empties what it merges anew",
        f"{B}a_restating_plan_rebuilds_as_a_request_does[lake.keyed]",
        "bridge/scheduler.py",
        (
            "        emptied = {s.name for s in bare if s.intervals}\n",
            "        emptied = {s.name for s in bare if not s.intervals}\n",
        ),
    ),
    python(
        "rebuild: a table is begun in whole before it is emptied",
        (
            f"{B}nobody_reads_between_the_batches_of_a_rebuild[False]",
            f"{B}nobody_reads_between_the_batches_of_a_rebuild[True]",
        ),
        "coordinator/journal.py",
        (
            "refused = self._ask(self._graph[name], self.rebuild[name])",
            "refused = self._ask(self._graph[name], piece)",
        ),
    ),
    python(
        "rebuild: a plan makes again all that is recorded, or empties nothing",
        f"{B}a_restating_plan_empties_nothing_that_it_cannot_make_again",
        "coordinator/rebuild.py",
        ("    if covered - decision.ready:\n", "    if False:\n"),
    ),
    python(
        "rebuild: a plan that dies is remembered for what it empties on the way",
        f"{B}a_restating_plan_that_dies_before_it_empties_is_finished",
        "bridge/enforced.py",
        (
            "            follows = kind.time_partitioned or kind.reads_everything\n",
            "            follows = True\n",
        ),
    ),
    sql(
        "G5 a dev environment that goes back to what production keeps up",
        "test_environments.py::test_a_dev_environment_that_goes_back_changes_nothing_in_production[breaking]",
        (
            "q.environment <> p_but_for AND q.environment = meshgate.home_of(m.project_id))",
            "q.environment <> p_but_for AND false)",
        ),
    ),
    sql(
        "two states: what is new under a name that others read is news",
        "test_two_states.py::test_a_model_that_another_state_reads_is_taken_away_and_brought_back[False]",
        ("e.parent_id = i.model_id AND o.name <> ALL (p_projects))", "false)"),
    ),
    sql(
        "two states: what is borrowed is not superseded",
        "test_two_states.py::test_a_dev_environment_of_the_reader_is_gated_by_production[missing]",
        ("AND (v = p_version_id OR NOT meshgate.is_borrowed(v, p_environment))", ""),
    ),
    sql(
        "two states: a former environment keeps what was declared for it",
        "test_two_states.py::test_an_environment_of_its_own_that_is_another_one_now",
        ("               - coalesce(p_manifest ->> 'environment', '')\n", ""),
    ),
    python(
        "two states: dev reads production's tables",
        "test_two_states.py::test_a_dev_environment_of_the_reader_is_gated_by_production[held]",
        "coordinator/reconcile.py",
        ("dict.fromkeys((environment, *ledger.homes()))", "(environment,)"),
    ),
    python(
        "two states: deploys look through views of another state",
        "test_two_states.py::test_a_deploy_looks_through_the_views_of_another_state",
        "coordinator/reconcile.py",
        ("theirs, environment, behind)", "theirs, environment)"),
    ),
    python(
        "two states: readers of another state stay settled",
        "test_two_states.py::test_readers_of_another_state_stay_settled[a change that breaks nothing]",
        "coordinator/staleness.py",
        ("    if elsewhere:\n        whole", "    if False:\n        whole"),
    ),
    sql(
        "G5 a promotion elsewhere is no news here",
        "test_environments.py::test_a_dev_environment_that_goes_back_changes_nothing_in_production[breaking]",
        ("WHERE changed IS NOT NULL LOOP\n", "WHERE false LOOP\n"),
    ),
    python(
        "restatement: each project has as many turns as it needs",
        "test_environments.py::test_now_runs_a_project_again_that_reads_what_another_makes_of_its_own",
        "coordinator/restate.py",
        ("if waiting.isdisjoint(step.because):", "if True:"),
    ),
    python(
        "restatement: what is open is listed",
        f"{R}an_open_request_is_listed_however_many_came_after_it",
        "sql/queries.sql",
        (" OR q.cancelled_at IS NULL AND NOT isempty(q.missing)", ""),
    ),
)
