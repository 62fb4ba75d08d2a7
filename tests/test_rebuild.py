"""A requested rebuild of a table that merges rows: it is emptied first, and whoever dies in the middle leaves no half of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duck_mesh import DuckMesh, copied, naive, ranged
from meshgate.coordinator.journal import RunJournal
from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshgate.interval import Interval
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

KEYED, READER = '"house"."lake"."keyed"', '"house"."lake"."reader"'
KEY = "INCREMENTAL_BY_UNIQUE_KEY (unique_key id, batch_size 1)"
UPSTREAM = {
    "events": copied("lake.events", "raw.events"),
    "keyed": f"MODEL (name lake.keyed, kind {KEY}, cron '@hourly', audits (positive));"
    "SELECT id, ts, value FROM lake.events WHERE ts >= @start_dt AND ts < @end_dt",
    "audits/positive.sql": "AUDIT (name positive); SELECT * FROM @this_model WHERE value < 0",
}
DOWNSTREAM = {
    "reader": ranged("lake.reader", "SELECT id, ts, value FROM lake.keyed WHERE ts >= @start_dt AND ts < @end_dt")
}  # fmt: skip


class KilledError(BaseException):
    """What nobody catches."""


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Four hours of a keyed table, its parent, and who reads it in the other project."""
    duck = DuckMesh(tmp_path, postgres, upstream=UPSTREAM, downstream=DOWNSTREAM)
    duck.write_mesh(
        {p: {"stale_throttle": "0s", "retry": {"first": "0s"}} for p in ("upstream", "downstream")}
    )
    duck.feed(0, 300)
    return duck


@pytest.fixture
def mesh(duck: DuckMesh) -> Iterator[Mesh]:
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(240))
        yield mesh


def lose_rows(duck: DuckMesh, mesh: Mesh) -> None:
    """Rows vanish from the source, and the parent is computed again; the keyed table only reports that."""
    duck.sql("DELETE FROM raw.events WHERE id IN (70, 200)")
    for start in (60, 180):
        mesh.restate("lake.events", span(start, start + 60), reason="deleted", by="tester", apply=True)
    assert set(mesh.run("upstream", now=at(240)).committed) == {'"house"."lake"."events"'}
    assert ids(duck, "keyed") == set(range(240))


def ask(mesh: Mesh, start: float = 60, end: float = 120) -> None:
    mesh.restate("lake.keyed", span(start, end), reason="rows were deleted", by="tester", apply=True)


def ids(duck: DuckMesh, table: str) -> set[int]:
    return {row[0] for row in duck.sql(f"SELECT id FROM lake.{table}")}


def settle(mesh: Mesh, until: float) -> None:
    """Run both projects until nothing is left to do, and verify."""
    for _ in range(4):
        states = {mesh.run(project, now=at(until)).state for project in ("upstream", "downstream")}
        if states == {"nothing_to_do"}:
            break
    assert states == {"nothing_to_do"}
    assert mesh.verify().differences == ()


def killed(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool, model: str = KEYED) -> None:
    """Die before or after the commit of a batch of the keyed table, or of another one."""
    whole: Callable[..., None] = RunJournal.commit
    seen: list[Interval] = []

    def commit(journal: RunJournal, name: str, piece: Interval, **facts: Any) -> None:
        if name == model:
            seen.append(piece)
        if len(seen) == number and not after:
            raise KilledError
        whole(journal, name, piece, **facts)
        if len(seen) == number:
            raise KilledError

    monkeypatch.setattr(RunJournal, "commit", commit)


def test_old_keys_vanish_from_a_rebuilt_table(duck: DuckMesh, mesh: Mesh) -> None:
    """Whoever asks for one hour of it asks for all: batch by batch, into an empty table; its readers follow."""
    lose_rows(duck, mesh)
    ask(mesh)
    assert mesh.run("upstream", now=at(240)).committed == {KEYED: IntervalSet([span(0, 240)])}
    assert ids(duck, "keyed") == set(range(240)) - {70, 200}
    assert mesh.run("downstream", now=at(240)).committed == {READER: IntervalSet([span(0, 240)])}
    assert [request.state for request in mesh.requests()] == ["done"] * 3
    settle(mesh, 240)
    assert ids(duck, "reader") == set(range(240)) - {70, 200}


def test_new_time_is_merged_behind_a_rebuild(duck: DuckMesh, mesh: Mesh) -> None:
    """A rebuild and a new hour in one run."""
    lose_rows(duck, mesh)
    ask(mesh)
    assert mesh.run("upstream", now=at(300)).committed[KEYED] == IntervalSet([span(0, 300)])
    settle(mesh, 300)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(300)) - {70, 200}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_a_rebuild_that_is_killed_is_finished(
    duck: DuckMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool
) -> None:
    """At no moment after the table was emptied may anybody read what is missing; at the end every row is there, and no old one."""
    lose_rows(duck, mesh)
    ask(mesh)
    with monkeypatch.context() as patch:
        killed(patch, number, after=after)
        with pytest.raises(KilledError):
            mesh.run("upstream", now=at(300))
    before = ids(duck, "reader")
    mesh.run("downstream", now=at(300))
    done = 5 if (number, after) == (5, True) else 0
    assert (ids(duck, "reader") == before) is (done == 0)  # a table that is one whole is in doubt as a whole
    settle(mesh, 300)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(300)) - {70, 200}
    assert duck.sql("SELECT COUNT(*) FROM lake.keyed") == [(298,)]


def test_a_rebuild_that_fails_goes_on_where_it_failed(duck: DuckMesh, mesh: Mesh) -> None:
    """A batch that an audit rejects keeps the table from its readers; mended, the rest is merged behind what is there."""
    lose_rows(duck, mesh)
    duck.set_value(130, -1)
    mesh.restate("lake.events", span(120, 180), reason="spoilt", by="tester", apply=True)
    ask(mesh)
    failed = mesh.run("upstream", now=at(240))
    assert [f.interval for f in failed.failed] == [span(120, 180)]
    duck.set_value(130, 1)
    mesh.restate("lake.events", span(120, 180), reason="mended", by="tester", apply=True)
    done = mesh.run("upstream", now=at(240)).committed
    assert done[KEYED] == IntervalSet([span(120, 240)])
    settle(mesh, 240)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(240)) - {70, 200}


def test_a_rebuild_waits_until_all_of_it_can_be_read(duck: DuckMesh, mesh: Mesh) -> None:
    """While one hour of the parent has failed, nothing is emptied, and it is told for what it waits."""
    lose_rows(duck, mesh)
    ask(mesh)
    mesh.hold("lake.events", span(120, 180), reason="looked into", by="tester")
    report = mesh.run("upstream", now=at(240))
    assert KEYED not in report.committed
    assert IntervalSet(b.interval for b in report.blocked if b.model == KEYED) == IntervalSet([span(0, 240)])
    assert ids(duck, "keyed") == set(range(240))
    mesh.release("lake.events", by="tester")
    settle(mesh, 240)
    assert ids(duck, "keyed") == set(range(240)) - {70, 200}


def enforced(duck: DuckMesh) -> None:
    """Put plain SQLMesh's plans of upstream under the ledger."""
    (duck.folder / "upstream/config.yaml").rename(duck.folder / "upstream/base.yaml")
    config = "from meshgate.enforced import enforce\nconfig = enforce('base.yaml')\n"
    duck.write("upstream", "config.py", config)


def plans(duck: DuckMesh, model: str = "lake.keyed", end: float = 240) -> None:
    """`sqlmesh plan --restate-model` of an hour, which SQLMesh widens to all of a table that merges."""
    with TinyMesh.plain(duck, "upstream", load=True) as context:  # type: ignore[arg-type]
        context.plan(
            "prod", restate_models=[model], start=at(60), end=at(end - 0.01), execution_time=at(240),
            auto_apply=True, no_prompts=True, skip_tests=True,
        )  # fmt: skip


@pytest.mark.parametrize("model", ["lake.keyed", "lake.events"])
def test_a_restating_plan_rebuilds_as_a_request_does(duck: DuckMesh, mesh: Mesh, model: str) -> None:
    """Old keys vanish, whether the table itself is restated or what it reads."""
    lose_rows(duck, mesh)
    enforced(duck)
    plans(duck, model)
    assert ids(duck, "keyed") == set(range(240)) - {70, 200}
    assert mesh.run("upstream", now=at(240)).committed == {}
    settle(mesh, 240)
    assert ids(duck, "reader") == set(range(240)) - {70, 200}


@pytest.mark.parametrize("model", ["lake.keyed", "lake.events"])
@pytest.mark.parametrize(("number", "after"), [(1, False), (1, True), (3, False), (4, False)])
def test_a_restating_plan_that_is_killed_is_finished(
    duck: DuckMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch, model: str, number: int, *, after: bool
) -> None:
    """Nobody reads what is missing, and the ordinary runs make the table whole, without its old keys."""
    lose_rows(duck, mesh)
    enforced(duck)
    with monkeypatch.context() as patch:
        killed(patch, number, after=after)
        with pytest.raises(KilledError):
            plans(duck, model)
    before = ids(duck, "reader")
    mesh.run("downstream", now=at(240))
    assert ids(duck, "reader") == before
    settle(mesh, 240)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(240)) - {70, 200}


def test_a_restating_plan_that_dies_before_it_empties_is_finished(
    duck: DuckMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the table reads was computed again, and nothing of the table: that alone would only be reported."""
    lose_rows(duck, mesh)
    enforced(duck)
    with monkeypatch.context() as patch:
        killed(patch, 1, after=True, model='"house"."lake"."events"')
        with pytest.raises(KilledError):
            plans(duck, "lake.events", end=120)
    settle(mesh, 240)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(240)) - {70, 200}


@pytest.mark.parametrize("by_plan", [False, True])
def test_nobody_reads_between_the_batches_of_a_rebuild(
    duck: DuckMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch, *, by_plan: bool
) -> None:
    """From the moment it is emptied until its last batch, also of what was merged already."""
    lose_rows(duck, mesh)
    whole: Callable[..., None] = RunJournal.commit
    seen: list[tuple[bool, set[str]]] = []

    def commit(journal: RunJournal, name: str, piece: Interval, **facts: Any) -> None:
        whole(journal, name, piece, **facts)
        if name == KEYED:
            with duck.mesh() as beside:
                answer = beside.gate("lake.reader", span(0, 60), now=at(240))
            seen.append((answer.ready, {b.reason for b in answer.blocked}))

    with monkeypatch.context() as patch:
        patch.setattr(RunJournal, "commit", commit)
        if by_plan:
            enforced(duck)
            plans(duck)
        else:
            ask(mesh)
            mesh.run("upstream", now=at(240))
    assert seen == [(False, {"begun"})] * 3 + [(True, set())]


def test_a_restating_plan_empties_nothing_that_it_cannot_make_again(duck: DuckMesh, mesh: Mesh) -> None:
    """While one hour of the parent is held, the table stays as it is; the request waits for an ordinary run."""
    lose_rows(duck, mesh)
    mesh.hold("lake.events", span(120, 180), reason="looked into", by="tester")
    enforced(duck)
    plans(duck)
    assert ids(duck, "keyed") == set(range(240))
    mesh.release("lake.events", by="tester")
    settle(mesh, 240)
    assert ids(duck, "keyed") == ids(duck, "reader") == set(range(240)) - {70, 200}


@pytest.mark.parametrize("forward_only", [False, True])
def test_a_deploy_empties_no_table_that_is_read(duck: DuckMesh, mesh: Mesh, *, forward_only: bool) -> None:
    """Its plan restates nothing. A change makes a table of its own, or, forward-only, goes on with the one that is there."""
    lose_rows(duck, mesh)
    assert mesh.deploy("upstream", now=at(240)).committed == {}
    before = mesh.ledger.manifest("prod").graph[KEYED].version
    model = UPSTREAM["keyed"].replace("id, ts, value FROM", "id, ts, value + 1 AS value FROM")
    if forward_only:
        model = model.replace("batch_size 1", "batch_size 1, forward_only TRUE")
    duck.write("upstream", "keyed", model)
    mesh.deploy("upstream", now=at(240))
    after = mesh.ledger.manifest("prod").graph[KEYED].version
    assert (after == before) is forward_only
    assert duck.sql(f"SELECT COUNT(*), SUM(value) FROM sqlmesh__lake.lake__keyed__{before}") == [(240, 240)]


def test_what_must_not_be_restated_is_never_emptied(tmp_path: Path, postgres: LocalPostgres) -> None:
    """A history that its source does not have any more is kept, also where all of it is merged once more."""
    model = UPSTREAM["keyed"].replace("batch_size 1", "batch_size 1, disable_restatement TRUE")
    duck = DuckMesh(tmp_path, postgres, upstream={**UPSTREAM, "keyed": model})
    duck.feed(0, 240)
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        duck.sql("DELETE FROM raw.events WHERE id = 70")
        mesh.ledger.request([(KEYED, span(0, 240))], reason="by hand", by="tester")
        assert mesh.run("upstream", now=at(240)).committed == {KEYED: IntervalSet([span(0, 240)])}
        assert duck.sql("SELECT ts FROM lake.keyed WHERE id = 70") == [(naive(70),)]
