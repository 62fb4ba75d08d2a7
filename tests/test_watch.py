"""Sources that are watched: late rows are noticed by what they change, asked for once, and come through both projects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from command_line import answer_of
from ledger_scene import Scene
from ledger_scene import span as cells
from meshgate.config import load
from meshgate.errors import ConfigError, LedgerError
from meshgate.interval import IntervalSet
from meshgate.ledger import Observation
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.interval import Interval
    from meshgate.ledger import Ledger
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE_EVENTS = '"lake"."bronze"."events"'


def watched(folder: Path, postgres: LocalPostgres, **source: str) -> TinyMesh:
    """Upstream watches the source of its events."""
    tiny = TinyMesh(folder, postgres, policies={"stale_throttle": "0s"})
    tiny.sql(tiny.source_url, "ALTER TABLE events ADD COLUMN changed_at timestamp NOT NULL DEFAULT now()")
    path = folder / "meshgate.yaml"
    config = json.loads(path.read_text())
    config["projects"][0]["sources"] = [{"table": "public.events", "time_column": "ts", **source}]
    path.write_text(json.dumps(config))
    return tiny


def late(tiny: TinyMesh, minute: float) -> None:
    """A row comes late."""
    tiny.sql(
        tiny.source_url,
        f"INSERT INTO events VALUES ({int(minute * 60)} + 30, '{at(minute).replace(tzinfo=None)}', 5)",
    )


def asked(mesh: Mesh) -> list[tuple[str, object, str]]:
    return [(r.model, r.interval, r.state) for r in reversed(mesh.requests())]


def test_late_rows_are_noticed_and_come_through_both_projects(
    tmp_path: Path, postgres: LocalPostgres, extensions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by their number or by the latest change, asked for once, and evaluated by the run that has found them."""
    tiny = watched(tmp_path, postgres, updated_at="changed_at", within="2d")
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(180))
        assert asked(mesh) == []
        late(tiny, 72)
        tiny.sql(
            tiny.source_url,
            f"UPDATE events SET value = 9, changed_at = now() + interval '1s' WHERE id = {20 * 60}",
        )
        done = mesh.run("upstream", now=at(180)).committed
        assert done[BRONZE_EVENTS] == IntervalSet([span(20, 25), span(70, 75)])
        assert asked(mesh) == [
            (BRONZE_EVENTS, span(20, 25), "done"),
            (BRONZE_EVENTS, span(70, 75), "done"),
        ]
        mesh.run("downstream", now=at(180))
        for project in ("upstream", "downstream"):
            assert mesh.run(project, now=at(180)).state == "nothing_to_do"
        assert len(asked(mesh)) == 2
        # What is fresh is seen before it is evaluated, and is no change; what comes late to it is one.
        assert mesh.run("upstream", now=at(240)).committed[BRONZE_EVENTS] == IntervalSet([span(180, 240)])
        late(tiny, 200)
        (look,) = mesh.watch("upstream", now=at(240))
        assert (look.changed, len(look.requests)) == (IntervalSet([span(200, 205)]), 1)
        (look,) = mesh.watch("upstream", now=at(240))
        assert (look.changed, look.requests) == (IntervalSet(), ())
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(240))
        assert mesh.verify().differences == ()
    rows = tiny.sql(
        tiny.source_url, "SELECT id, ts, value FROM events WHERE ts < '2026-01-05 04:00' ORDER BY id"
    )
    assert tiny.table("silver.events") == rows
    assert tiny.table("gold.hourly") == tiny.expected(240)["gold.hourly"]
    said = answer_of(capsys, tiny.folder, "watch", "upstream", "--now", "2026-01-05T04:00")
    assert said.out.startswith("source.public.events is as it was in ")
    document = answer_of(
        capsys, tiny.folder, "watch", "upstream", "--now", "2026-01-05T04:00", "--json"
    ).document
    assert (document["schema"], document["sources"][0]["changed"]) == ("meshgate.watch", [])
    assert "declares no sources" in answer_of(capsys, tiny.folder, "watch", "downstream").err


def test_what_comes_after_a_deploy_is_noticed_by_the_first_run(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """The deploy looks before it reads: else the first run would take the late row for given.

    Fails without `look_before_deploying` in `coordinator.deploy._build`.
    """
    tiny = watched(tmp_path, postgres)
    tiny.feed(0, 60)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        late(tiny, 12)
        tiny.feed(60, 65)
        assert mesh.run("upstream", now=at(65)).committed[BRONZE_EVENTS] == IntervalSet(
            [span(10, 15), span(60, 65)]
        )
        # Another deploy moves nothing that a run has yet to compare.
        late(tiny, 22)
        mesh.deploy("upstream", now=at(65))
        assert mesh.run("upstream", now=at(65)).committed[BRONZE_EVENTS] == IntervalSet([span(20, 25)])


def test_what_was_evaluated_before_anybody_looked_is_asked_for(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """A run that cannot look goes on, and what it has evaluated unseen is evaluated once more after the next look."""
    tiny = watched(tmp_path, postgres)
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(120))
        mesh.run("upstream", now=at(120))
    path = tmp_path / "meshgate.yaml"
    right = path.read_text()
    path.write_text(right.replace('"ts"', '"no_such_column"'))
    with tiny.mesh() as mesh:
        assert mesh.run("upstream", now=at(130)).state == "done"
        late(tiny, 127)
    path.write_text(right)
    with tiny.mesh() as mesh:
        mesh.run("upstream", now=at(130))
        assert asked(mesh) == [(BRONZE_EVENTS, span(120, 130), "done")]
        assert mesh.run("upstream", now=at(130)).state == "nothing_to_do"
    rows = tiny.sql(
        tiny.source_url, "SELECT id, ts, value FROM events WHERE ts < '2026-01-05 02:10' ORDER BY id"
    )
    assert tiny.table("silver.events") == rows


def test_of_two_that_looked_at_once_one_asks(ledger: Ledger) -> None:
    """The request is made with the look that it comes from, or not at all; and only for what is recorded."""
    scene = Scene(ledger)
    version = scene.version("m")
    scene.promote({"m": "1"})
    scene.record(scene.run(), version, cells(0, 4))

    def look(looks: int, *asked: Interval) -> tuple[int, ...] | None:
        seen = Observation({"bucket_s": 3600}, cells(0, 6), {0: (1, None)}, looks)
        wanted = [("m", interval) for interval in asked]
        return ledger.save_observation("prod", "up", "s", seen, wanted, reason="changed", by="watch")

    assert look(0) == ()
    assert look(1, cells(1, 2), cells(5, 6)) == (1,)
    assert look(1, cells(1, 2)) is None
    assert [r.interval for r in ledger.requests("prod")] == [cells(1, 2)]
    with pytest.raises(LedgerError):  # whoever cannot ask does not remember the look either
        ledger.save_observation(
            "prod", "up", "s", Observation({}, cells(0, 6), {}, 2), [("m", cells(0, 1))], reason=None, by="w"
        )  # type: ignore[arg-type]
    found = ledger.observation("prod", "up", "s")
    assert found is not None
    assert (found.looks, found.prints) == (2, {0: (1, None)})


def test_a_source_that_nobody_reads_is_refused_by_the_deploy(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """It names the nearest."""
    tiny = watched(tmp_path, postgres)
    path = tmp_path / "meshgate.yaml"
    path.write_text(path.read_text().replace("public.events", "public.evens"))
    with tiny.mesh() as mesh, pytest.raises(ConfigError) as caught:
        mesh.deploy("upstream", now=at(60))
    assert "did you mean public.events?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  sources: orders\n", "project.sources is 'orders', expected a list"),
        ("  sources: [{table: a}]\n", "project.sources[0].time_column is missing"),
        ("  sources: [{table: a, time_column: t}, {table: a, time_column: t}]\n", "is given twice: a"),
        ("  sources: [{table: a, time_column: t, within: 0}]\n", "project.sources[0].within"),
        ("  sources: [{table: a, time: t}]\n", "unknown key 'time' in project.sources[0]"),
    ],
)
def test_a_mistake_in_the_list_is_named(tmp_path: Path, text: str, said: str) -> None:
    """With the key, and what is expected."""
    (tmp_path / "meshgate.yaml").write_text(f"ledger: {{url: local}}\nproject:\n  name: up\n{text}")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert said in caught.value.message
