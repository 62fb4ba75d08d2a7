"""What can be taken away of the Python around the ledger, and the test that must then fail."""

from __future__ import annotations

from mutation import G, python, sql

OF_PYTHON = (
    python(
        "G1 gate, when a run plans",
        f"{G}g1_no_premature_work_when_the_run_plans",
        "gate.py",
        ("        entries += _closed(graph, gate, lack.unclean, wanted)\n", ""),
    ),
    python(
        "G1 gate, begun claims in the plan",
        f"{G}g1_no_premature_work_on_what_another_run_is_writing",
        "coordinator/standing.py",
        (
            'obstacles += [_of_claim(claim) for claim in known.claims if claim.state == "begun"]',
            "obstacles += []",
        ),
    ),
    python(
        "G1 gate, what the run makes itself",
        f"{G}g1_what_a_run_produces_itself_counts",
        "coordinator/plan.py",
        ("            made[name] =", "            _ ="),
    ),
    python(
        "G1 the journal keeps to the answer",
        f"{G}g1_no_premature_work_when_a_batch_begins[failed]",
        "coordinator/journal.py",
        ("        if not refused:\n            yield piece\n", "        if True:\n            yield piece\n"),
    ),
    python(
        "G3 a failed batch is due again",
        f"{G}g3_no_lost_work_when_a_redo_fails",
        "coordinator/plan.py",
        ('_REDONE = ("failed", ', "_REDONE = ("),
    ),
    python(
        "G4 a refused commit stops the other threads",
        f"{G}g4_no_zombie_commit",
        "lease.py",
        ("        keeper.lose()\n        raise\n", "        raise\n"),
    ),
    python(
        "G4 commits of the dead are waited for",
        "test_late_commits.py::test_the_commit_of_a_killed_run_is_waited_for",
        "bridge/scheduler.py",
        ("                outlast_commits(self._adapter(snapshot), self._journal.longest_statement_s)\n", ""),
    ),
    python(
        "G7 the trust starts with the attempt",
        "test_lease.py::test_the_trust_is_counted_from_the_start_of_a_renewal",
        "lease.py",
        (
            "self._trusted_until = attempt + self._ttl_s",
            "self._trusted_until = _trusted_clock() + self._ttl_s",
        ),
    ),
    python(
        "G7 the trust ends by itself",
        "test_lease.py::test_the_trust_lasts_as_long_as_the_lease",
        "lease.py",
        (
            "return not self._lost.is_set() and _trusted_clock() < self._trusted_until",
            "return not self._lost.is_set()",
        ),
    ),
    python(
        "G8 the facts of a mark",
        f"{G}g8_a_no_of_the_plan_explains_itself",
        "coordinator/standing.py",
        ("        **mark.detail,\n", ""),
    ),
    python(
        "lease: a refused renewal",
        "test_lease.py::test_a_refused_renewal_ends_the_trust",
        "lease.py",
        (
            "            except LeaseLostError:\n                self.lose()\n                return\n",
            "            except LeaseLostError:\n                pass\n",
        ),
    ),
    python(
        "lease: a connection of each thread's own",
        "test_lease.py::test_a_lease_is_renewed_while_the_runs_own_connection_is_busy",
        "db.py",
        ("self._local = threading.local()", "self._local = type('Shared', (), {})()"),
    ),
    python(
        "lease: the start time of a process",
        "test_lease.py::test_another_process_with_the_same_id_is_not_the_holder",
        "lease.py",
        ('return started != holder["started"] or _is_zombie(pid)', "return _is_zombie(pid)"),
    ),
    python(
        "G5 stale time is computed again",
        "test_staleness.py::test_g5_no_silent_staleness",
        "coordinator/plan.py",
        (
            "inside = (_marked(state.marks, _REDONE) | stale) & state.covered",
            "inside = _marked(state.marks, _REDONE) & state.covered",
        ),
    ),
    python(
        "G5 readers follow in the same run",
        "test_staleness.py::test_g5_no_silent_staleness",
        "coordinator/plan.py",
        ("again[name] = _restamped(node, planned, state)", "again[name] = IntervalSet()"),
    ),
    python(
        "G5 a child that was being computed is stale at birth",
        "test_staleness.py::test_g5_an_evaluation_under_way_does_not_hide_it",
        "sql/queries.sql",
        (
            "THEN greatest(c.read_revision, g.settled_revision) ELSE c.read_revision END",
            "THEN greatest(c.read_revision, g.settled_revision) ELSE c.revision END",
        ),
    ),
    python(
        "G5 what lies far behind a change of a parent is stale too, where nobody computes it again",
        "test_staleness.py::test_of_a_table_that_merges_exactly_what_read_older_rows_is_stale",
        "sql/queries.sql",
        ("    WHERE g.beyond IS NOT NULL),", "    WHERE g.beyond IS NOT NULL AND false),"),
    ),
    python(
        "G5 the part that was settled is stale by what came later",
        "test_staleness.py::test_of_a_table_that_merges_exactly_what_read_older_rows_is_stale",
        "sql/queries.sql",
        (
            "ELSE ARRAY[c.read_revision, greatest(c.read_revision, g.settled_revision)] END",
            "ELSE ARRAY[c.read_revision] END",
        ),
    ),
    python(
        "G5 dirty spans",
        "test_staleness.py::test_a_reader_in_flight_over_a_failed_refresh_is_stale",
        "sql/queries.sql",
        (
            "JOIN meshgate.dirty_span d ON d.version_id = g.parent",
            "JOIN meshgate.dirty_span d ON d.version_id = g.parent AND false",
        ),
    ),
    python(
        "G5 what was under way at a look is not settled by it",
        "test_staleness.py::test_a_claim_under_way_is_not_settled_by_a_look",
        "sql/queries.sql",
        (
            "AND p.revision > CASE WHEN c.revision <= g.settled_revision AND c.span <@ g.settled",
            "AND p.revision > CASE WHEN c.span <@ g.settled",
        ),
        (
            "WHEN greatest(pair.made, pair.revision) <= pair.settled_revision THEN",
            "WHEN pair.revision <= pair.settled_revision THEN",
        ),
        (
            "WHERE c.version_id = x.child AND c.revision > x.settled_revision),",
            "WHERE false),",
        ),
    ),
    python(
        "G5 the throttle",
        "test_staleness.py::test_stale_time_is_left_alone_for_a_period_after_it_was_read",
        "coordinator/staleness.py",
        ("return at if at > now else None", "return None"),
    ),
    python(
        "G5 an old version's staleness outlives a deploy that breaks nothing",
        "test_staleness_end_to_end.py::test_a_non_breaking_deploy_hides_no_staleness",
        "coordinator/staleness.py",
        (
            "wrong = [s.interval for s in before.get(name, ())] + [m.interval for m in was_it.marks]",
            "wrong = [m.interval for m in was_it.marks]",
        ),
    ),
    python(
        "G3 a redo that has waited goes",
        "test_turns.py::test_what_has_waited_for_a_turn_itself_goes",
        "coordinator/turns.py",
        ("again - _waited(states[version_ids[node.name]], present - (limit + max(limit, period)))", "again"),
    ),
    python(
        "bridge: no process of SQLMesh's own",
        "test_faults.py::test_nothing_is_forked_that_could_outlive_a_killed_run",
        "bridge/project.py",
        ("    c.MAX_FORK_WORKERS = 1", "    pass"),
    ),
    python(
        "lease: the last thread of a process",
        "test_lease.py::test_a_holder_of_which_a_thread_is_left_is_not_gone",
        "lease.py",
        ('for task in Path(f"/proc/{pid}/task").iterdir()', 'for task in [Path(f"/proc/{pid}")]'),
    ),
    python(
        "lease: another machine or namespace",
        "test_lease.py::test_a_holder_of_another_machine_or_namespace_is_never_proven_gone[boot]",
        "lease.py",
        ("or any(holder.get(key) != value for key, value in machine.items())", "or False"),
    ),
    python(
        "migrations: the lock",
        "test_migrations.py::test_who_comes_second_waits_and_finds_it_made",
        "db.py",
        (
            'cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])',
            "cursor.execute('SELECT 1')",
        ),
    ),
    python(
        "migrations: one transaction",
        (
            "test_migrations.py::test_a_migration_that_fails_leaves_the_version_before",
            "test_migrations.py::test_a_ledger_that_could_not_be_made_leaves_nothing",
        ),
        "db.py",
        ("    connection.autocommit = False\n    try:\n", "    try:\n"),
        (
            "translated(database.shown_url), connection, connection.cursor()",
            "translated(database.shown_url), connection.cursor()",
        ),
    ),
    python(
        "migrations: a newer ledger",
        "test_migrations.py::test_a_newer_ledger_is_not_taken_back",
        "db.py",
        ("            if before > SCHEMA_VERSION:", "            if False:"),
    ),
    python(
        "rule 23: what may have been appended is held",
        "test_histories.py::test_rule_23_rows_are_not_appended_twice",
        "coordinator/plan.py",
        ("fresh=answer.fresh - IntervalSet(b.interval for b in unsure)", "fresh=answer.fresh"),
    ),
    python(
        "rule 7: what was accepted is not settled by a promotion",
        "test_histories.py::test_rule_07_an_accepted_hole_is_not_what_the_new_version_computed",
        "coordinator/staleness.py",
        ("taken = was_it.accepted | now_is.accepted", "taken = IntervalSet()"),
    ),
    python(
        "deploys: tables of which nothing is due yet",
        "test_environments.py::test_models_of_which_nothing_is_due_yet_are_deployed_empty[prod]",
        "bridge/scheduler.py",
        ("result = {s: [] for s in fresh} | result", "pass"),
    ),
    python(
        "deploys: tables of what is left until after the promotion",
        "test_environments.py::test_what_would_be_evaluated_after_the_promotion_has_its_table_before",
        "bridge/scheduler.py",
        (
            'near = self.snapshots if kwargs["environment_naming_info"].name == PROD else chosen',
            "near = chosen",
        ),
    ),
    python(
        "environments: what begins is as settled as where the same is promoted",
        "test_verification.py::test_an_environment_that_begins_is_settled_as_another_that_has_the_same[True]",
        "coordinator/staleness.py",
        ("known = _stale_elsewhere(ledger, environment, graph, met)", "known = {}"),
    ),
    python(
        "environments: not where it reads something else",
        "test_verification.py::test_an_environment_that_begins_is_settled_as_another_that_has_the_same[False]",
        "coordinator/staleness.py",
        ("graph[n].version == other[n].version and ", ""),
    ),
    python(
        "environments: production's tables have no preview",
        "test_environments.py::test_a_dev_environment_made_after_a_change_that_breaks_nothing_is_settled",
        "bridge/project.py",
        ("if not snapshot.is_paused and", "if False and"),
    ),
    python(
        "environments: nothing follows from a preview",
        "test_verification.py::test_nothing_follows_from_what_an_environment_only_previews",
        "coordinator/plan.py",
        ("planned = planned.previewed()", "pass"),
    ),
    python(
        "horizon: hour by hour",
        "test_staleness.py::test_the_horizon_is_judged_hour_by_hour",
        "coordinator/staleness.py",
        (
            "return IntervalSet([stale.interval]) & self.behind(node, stale.since)",
            "return IntervalSet([stale.interval]) if stale.since - stale.interval.end > (self.horizon or _COLD) else IntervalSet()",
        ),
    ),
    python(
        "horizon: in the run that is the cause",
        "test_staleness.py::test_the_horizon_is_judged_hour_by_hour",
        "coordinator/staleness.py",
        ("        time -= policy.behind(node, present)\n", ""),
    ),
    python(
        "horizon: what was within it once",
        "test_staleness.py::test_what_was_within_the_horizon_once_is_done_whatever_comes_after",
        "coordinator/staleness.py",
        ("policy.too_old(node, s) - spared(s)", "policy.too_old(node, s)"),
    ),
    python(
        "horizon: not by what was read",
        "test_staleness.py::test_what_was_within_the_horizon_once_is_done_whatever_comes_after",
        "coordinator/staleness.py",
        ("policy.behind(\n                        node, change.at\n                    )", "IntervalSet()"),
    ),
    sql(
        "horizon: late rows are of when they came",
        "test_staleness.py::test_late_rows_of_a_dimension_are_judged_by_when_they_came",
        (
            "p_revision AS revision, meshgate.clock() AS committed_at",
            "p_revision AS revision, cut.committed_at",
        ),
    ),
)
