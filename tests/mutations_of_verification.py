"""What can be taken away of the history and of its derivation, and of the watching of sources, and the test that must then fail."""

from __future__ import annotations

from mutation import python, sql

V = "test_verification.py::test_"
ANY = f"{V}after_any_history_the_ledger_is_what_its_events_say"

OF_VERIFICATION = (
    sql(
        "verify: a commit tells all that it stamped",
        f"{V}a_refresh_that_stamps_more_than_its_new_part_is_as_derived",
        ("jsonb_build_array(lower(stamped), upper(stamped))", "jsonb_build_array(lower(p_span), upper(p_span))"),
    ),
    sql(
        "verify: unjudged rows of a whole table are noted",
        ANY,
        ("    IF FOUND THEN\n        PERFORM meshgate.note('table.tainted'", "    IF false THEN\n        PERFORM meshgate.note('table.tainted'"),
    ),
    sql(
        "verify: what is taken back of a request is noted",
        f"{V}a_cancelled_request_leaves_nothing_that_differs",
        ("PERFORM meshgate.note('interval.withdrawn',", "PERFORM meshgate.note('interval.odd',"),
    ),
    sql(
        "verify: a forgotten history is known to be forgotten",
        f"{V}what_was_done_before_the_history_is_taken_as_it_is",
        ("FROM meshgate.event e WHERE e.at < before HAVING count(*) > 0", "FROM meshgate.event e WHERE false HAVING count(*) > 0"),
    ),
    sql(
        "verify: a commit that discharges nothing is seen",
        ANY,
        ("        PERFORM meshgate.carve_marks(p_version_id, p_span, held.read_revision);\n", ""),
    ),
    python(
        "verify: staleness is derived",
        f"{V}whatever_runs_do_staleness_and_readiness_are_as_derived[0]",
        "verification/compare.py",
        ("if other.revision > upto and not together:", "if False:"),
    ),
    python(
        "verify: readiness is derived",
        f"{V}what_was_read_before_its_parents_were_there_is_named",
        "verification/compare.py",
        ("for gap in lacking:", "for gap in ():"),
    ),
    sql(
        "watch: a look that was overtaken asks for nothing",
        "test_watch.py::test_of_two_that_looked_at_once_one_asks",
        ("        RETURN jsonb_build_object('overtaken', true);\n", "        NULL;\n"),
    ),
    python(
        "verify: the ledger's number",
        f"{V}a_ledger_whose_number_went_back_is_named",
        "verification/compare.py",
        ("if last > facts.revision:", "if False:"),
    ),
    python(
        "verify: what was being written",
        f"{V}another_batch_of_a_doubt_is_named[NULL]",
        "verification/compare.py",
        ("        found += _batches(facts, key, derived)\n", ""),
    ),
    python(
        "verify: the sort of a table",
        f"{V}another_sort_of_table_is_named",
        "verification/compare.py",
        ("*_kinds(facts)", ""),
    ),
    python(
        "verify: what a model reads",
        "test_verification_end_to_end.py::test_an_edge_that_is_gone_or_another_is_named",
        "verification/compare.py",
        ("        found += _edges(facts, environment)\n", ""),
    ),
)  # fmt: skip
