"""What can be taken away of the Python around the ledger, and the test that must then fail."""

from __future__ import annotations

from mutation import G, python

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
        "coordinator/journal.py",
        ("            self.keeper.lose()", "            pass"),
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
)
