"""What can be taken away of enforced mode and of the signal wrapper, and the test that must then fail."""

from __future__ import annotations

from mutation import python

I = "test_enforced_inside.py::test_"  # noqa: E741
E = "test_enforced.py::test_"
S = "test_signal_wrapper.py::test_"
BRIDGE = "bridge/enforced.py"
OURS = "enforced.py"
SIGNALS = "signals.py"

OF_ENFORCED = (
    # -- plain runs and plans
    python(
        "enforced: a run goes through the ledger",
        f"{I}a_run_reads_nothing_that_is_not_there",
        BRIDGE,
        ("            context.create_scheduler = seat.create_scheduler\n", ""),
    ),
    python(
        "enforced: nothing is evaluated beside it",
        f"{I}nothing_is_evaluated_outside_a_run_or_a_plan",
        BRIDGE,
        ('        if not kwargs.get("audit_only"):\n', "        if False:\n"),
    ),
    python(
        "enforced: nothing is promoted beside it",
        f"{I}nothing_is_promoted_outside_a_plan",
        BRIDGE,
        ('        if journal is None:\n            raise SQLMeshError(\n                "an environment is promoted',
         '        if False:\n            raise SQLMeshError(\n                "an environment is promoted'),
    ),
    python(
        "enforced: a plan waits for what is being written",
        f"{I}a_plan_replaces_nothing_that_is_being_written",
        BRIDGE,
        ("        journal.promoting()\n", ""),
    ),
    python(
        "enforced: the past by SQLMesh's clock, never the future",
        f"{I}a_plan_for_the_future_is_refused",
        OURS,
        ("if past is None and instant > mesh.ledger.clock() + _DRIFT:", "if False:"),
    ),
    python(
        "enforced: no restating plan of a development environment",
        f"{I}restating_a_development_environment_is_refused",
        BRIDGE,
        ("bool(plan.restatements and plan.is_dev)", "False"),
    ),
    python(
        "enforced: one project a call",
        f"{I}several_projects_in_one_call_are_refused",
        BRIDGE,
        ("        if len(self.context.configs) > 1:\n", "        if False:\n"),
    ),
    python(
        "enforced: no other scheduler",
        f"{I}a_gateway_with_a_scheduler_of_its_own_is_refused",
        BRIDGE,
        ("        if gateway.scheduler is not None and type(gateway.scheduler) is not BuiltInSchedulerConfig:\n", "        if False:\n"),
    ),
    python(
        "enforced: what has no meaning under the ledger",
        (
            f"{E}what_does_not_go_under_the_ledger_is_refused[arguments1---end]",
            f"{E}what_does_not_go_under_the_ledger_is_refused[arguments3---empty-backfill]",
        ),
        BRIDGE,
        ('    if what:\n        raise ProjectError(f"{command} with', '    if False:\n        raise ProjectError(f"{command} with'),
    ),
    python(
        "enforced: a restating plan is remembered",
        f"{E}a_restating_plan_is_a_restatement[True]",
        "coordinator/deploy.py",
        ("    if asked:\n        bench.ledger.request(", "    if False:\n        bench.ledger.request("),
    ),
    python(
        "enforced: what failed fails the command",
        f"{E}an_interval_that_fails_its_audit_costs_its_readers_one_hour",
        OURS,
        ("            return report.exit_code in (0, 4)\n", "            return True\n"),
    ),
    python(
        "enforced: the private server is there first",
        f"{E}a_private_server_is_there_before_the_configuration_is_read",
        OURS,
        ("            authority.serve(config.parent)\n", "            pass\n"),
    ),
    # -- the signal
    python(
        "signal: only what the gate lets through",
        f"{S}only_what_the_gate_lets_through_is_evaluated",
        SIGNALS,
        ("strict=True) if answer.ready.covers(unit)]", "strict=True)]"),
    ),
    python(
        "signal: without a ledger nothing is ready",
        f"{S}without_a_ledger_nothing_waits_but_what_asks_it",
        SIGNALS,
        ("        return []\n", "        return batch\n"),
    ),
    python(
        "signal: meshgate's own gate has spoken",
        f"{S}it_passes_under_meshgates_own_runs",
        SIGNALS,
        ("        if under_ledger():\n", "        if False:\n"),
    ),
    python(
        "signal: what the same run makes counts",
        f"{S}what_the_same_run_makes_counts",
        "coordinator/second_line.py",
        ("        produced[parents[0]] = asked.made\n", "        pass\n"),
    ),
    python(
        "signal: of a version that nobody knows SQLMesh's record counts",
        f"{S}a_plan_promotes_full_tables",
        "coordinator/second_line.py",
        ("            covered |= IntervalSet([graph[name].life]) if asked.made is None else asked.made\n", "            pass\n"),
        ("        produced[parents[0]] = asked.made\n", "        pass\n"),
    ),
    # -- the lookback of a plan
    python(
        "lookback: counted from what is new",
        (
            "test_lookback.py::test_only_what_is_new_asks_for_what_it_looks_back_at[batch1-owed1]",
            "test_lookback.py::test_only_what_is_new_asks_for_what_it_looks_back_at[batch3-owed3]",
        ),
        "coordinator/journal.py",
        ("            piece.start, self._frontier(name)\n", "            piece.start, piece.start\n"),
    ),
)  # fmt: skip
