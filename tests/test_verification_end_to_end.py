"""`meshgate verify` on real tables: silent about ordinary work and deploys, and exact about what differs from SQLMesh's record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from command_line import answer_of
from tiny_mesh import SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE_EVENTS, SILVER_EVENTS, GOLD_HOURLY = (
    '"lake"."bronze"."events"',
    '"lake"."silver"."events"',
    '"lake"."gold"."hourly"',
)


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres, policies={"stale_throttle": "0s"})


def told(mesh: Mesh) -> list[tuple[str, str, object]]:
    return [(d.what, d.model, d.interval) for d in mesh.verify().differences]


def test_ordinary_work_leaves_nothing_that_differs(
    tiny: TinyMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deploys of all sorts, failures, restatements, a person's decision: at no moment is there a difference."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(120))
            assert told(mesh) == []
        tiny.poison(130)
        mesh.run("upstream", now=at(180))
        assert told(mesh) == []
        mesh.restate(BRONZE_EVENTS, span(60, 70), by="tester", apply=True)
        mesh.run("upstream", now=at(180))
        assert told(mesh) == []
        mesh.accept(BRONZE_EVENTS, span(130, 135), reason="odd", by="tester")
        assert told(mesh) == []
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(180))
            assert told(mesh) == []
        # Non-breaking, then breaking.
        for n, changed in enumerate(("value, 1 AS more FROM", "value + 0 AS value, 1 AS more FROM")):
            tiny.write("upstream", "silver", SILVER.replace("value FROM", changed))
            mesh.deploy("upstream", now=at(180))
            assert told(mesh) == [], n
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(240))
            assert told(mesh) == []
        found = mesh.verify(ledger_only=True)
        assert (found.sqlmesh, found.differences) == ((), ())
    said = answer_of(capsys, tiny.folder, "verify")
    assert (said.code, said.out.splitlines()[0].split(":")[0]) == (0, "nothing differs")
    assert len(said.out.splitlines()) == 1
    answer = answer_of(capsys, tiny.folder, "verify", "--json")
    assert answer.code == 0
    assert (answer.document["schema"], answer.document["differences"]) == ("meshgate.verify", [])


def test_a_hole_in_sqlmeshs_record_is_named(tiny: TinyMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """What SQLMesh does not record any more, and what only SQLMesh records; the next run's reconciliation settles both."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(120))
        with tiny.plain("upstream") as context:
            state = context.state_sync
            (snapshot,) = (
                s for s in state.get_snapshots(state.get_environment("prod").snapshots).values()
                if s.name == SILVER_EVENTS
            )  # fmt: skip
            state.remove_intervals([(snapshot, (_ms(60), _ms(65)))])
            state.add_interval(snapshot, at(120), at(125))
        assert sorted(told(mesh)) == [
            ("sqlmesh", SILVER_EVENTS, span(60, 65)),
            ("sqlmesh", SILVER_EVENTS, span(120, 125)),
        ]
        said = answer_of(capsys, tiny.folder, "verify", "--json")
        assert said.code == 1
        first = next(
            d for d in said.document["differences"] if d["interval"]["start"] == "2026-01-05T01:00:00Z"
        )
        assert (first["project"], first["model"]) == ("upstream", SILVER_EVENTS)
        assert (first["recorded"], first["derived"]) == (
            "recorded, also in SQLMesh",
            "SQLMesh has not recorded it",
        )
        text = answer_of(capsys, tiny.folder, "verify").out
        assert "SQLMesh has not recorded it" in text
        assert "2 differences" in text
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(130))
            assert told(mesh) == []
        assert json.dumps(said.document)


def test_an_edge_that_is_gone_or_another_is_named(tiny: TinyMesh) -> None:
    """Its gate would be open; nothing in the history tells, but what is deployed does."""
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(60))
        assert told(mesh) == []
        mesh.ledger.database.execute("UPDATE meshgate.edge SET mode = 'ungated'")
        changed = {model for what, model, _ in told(mesh) if what == "edge"}
        mesh.ledger.database.execute("DELETE FROM meshgate.edge")
        assert {model for what, model, _ in told(mesh) if what == "edge"} == changed > {SILVER_EVENTS}


def _ms(minutes: float) -> int:
    return int(at(minutes).timestamp() * 1000)
