"""What a batch has to wait for although it is ready: limits, and deploys about to promote; on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ledger_scene import Scene, at, cells, locked, meanwhile, other_session, span, wait_until_blocked
from meshgate.errors import LeaseLostError
from meshgate.ledger import Begun, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger

ONE_OF_MODEL = Limits(model=1)
ONE_OF_WAREHOUSE = Limits(warehouse=1)
ENDS: dict[str, Callable[[Scene, int, int], object]] = {
    "committed": lambda scene, run, version: scene.commit(run, version, span(0, 1)),
    "failed": lambda scene, run, version: scene.ledger.fail(run, version, span(0, 1), {}),
    "finished": lambda scene, run, _: scene.ledger.finish(run, "failed", {}),
    "stopped": lambda scene, run, _: scene.ledger.finish(run, "stopped", {}, "by signal 15"),
    "expired": lambda scene, _run, _version: scene.pass_time(61),
    "taken over": lambda scene, _run, _version: (scene.pass_time(61), scene.ledger.take_over()),
    "buried": lambda scene, run, _: scene.ledger.bury(run, engine_gone=False),
    "broken": lambda scene, run, _: scene.ledger.break_lease(run, "somebody"),
}
OF_A_DEPLOY = {how: end for how, end in ENDS.items() if how not in ("committed", "failed")}


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def wants(scene: Scene, run: int, version: int, cell: int, limits: Limits) -> Begun:
    """Reserve an hour and ask to begin it."""
    assert scene.open(run, version, span(cell, cell + 1)) == [None]
    return scene.begin(run, version, span(cell, cell + 1), limits=limits)


# -- limits


def test_a_models_limit_holds_over_all_runs(scene: Scene) -> None:
    """A second batch of it waits, whosever run it is, and is told for what."""
    version = scene.version()
    scene.work(scene.run("up"), version, span(0, 1))
    answer = wants(scene, scene.run("down"), version, 5, ONE_OF_MODEL)
    assert answer == Begun(None, (), {"for": "limit", "of": "model", "most": 1})


def test_a_models_limit_holds_within_a_run(scene: Scene) -> None:
    """Its threads count like anybody's."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    assert wants(scene, run, version, 5, ONE_OF_MODEL).wait is not None
    assert wants(scene, run, version, 6, Limits(model=2)).wait is None


def test_a_models_limit_counts_all_its_versions(scene: Scene) -> None:
    """What a limit protects is behind the model, whatever its table is called."""
    old, new = scene.version(), scene.version(version="2")
    scene.work(scene.run("up"), old, span(0, 1))
    assert wants(scene, scene.run("down"), new, 0, ONE_OF_MODEL).wait is not None


def test_a_models_limit_does_not_count_other_models(scene: Scene) -> None:
    """Each model has its own."""
    scene.work(scene.run("up"), scene.version("q"), span(0, 1))
    assert wants(scene, scene.run("down"), scene.version(), 0, ONE_OF_MODEL).wait is None


def test_a_batch_of_a_table_claimed_whole_counts_as_one(scene: Scene) -> None:
    """Who is alone with a table is not alone with its limit: each batch of the run counts."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1), whole=True)
    assert scene.begin(run, version, span(1, 2), limits=ONE_OF_MODEL).wait is not None
    assert scene.begin(run, version, span(2, 3), limits=Limits(model=2)).wait is None


def test_a_warehouses_limit_holds_over_all_projects(scene: Scene) -> None:
    """Batches of any model, by any project's run that names the same warehouse, are counted."""
    scene.work(scene.run("up", warehouse="small"), scene.version("q"), span(0, 1))
    answer = wants(scene, scene.run("down", warehouse="small"), scene.version(), 0, ONE_OF_WAREHOUSE)
    assert answer.wait == {"for": "limit", "of": "warehouse", "name": "small", "most": 1}


def test_a_warehouses_limit_does_not_count_other_warehouses(scene: Scene) -> None:
    """Each warehouse has its own."""
    scene.work(scene.run("up", warehouse="large"), scene.version("q"), span(0, 1))
    answer = wants(scene, scene.run("down", warehouse="small"), scene.version(), 0, ONE_OF_WAREHOUSE)
    assert answer.wait is None


def test_what_is_only_reserved_counts_for_nothing(scene: Scene) -> None:
    """A run that has claimed a hundred hours and works on none is in nobody's way."""
    version = scene.version()
    scene.open(scene.run("up"), version, span(0, 4))
    assert wants(scene, scene.run("down"), version, 5, ONE_OF_MODEL).wait is None


def test_who_waits_has_begun_nothing(scene: Scene) -> None:
    """The claim stays reserved, closes no gate, and begins as soon as there is room."""
    version, one, two = scene.version(), scene.run("up"), scene.run("down")
    scene.record(two, version, span(5, 6))
    scene.work(one, version, span(0, 1))
    assert wants(scene, two, version, 5, ONE_OF_MODEL).wait is not None
    assert scene.unclean(version, span(5, 6)) == set()
    scene.commit(one, version, span(0, 1))
    assert scene.begin(two, version, span(5, 6), limits=ONE_OF_MODEL).read_revision == 2


def test_of_two_sessions_that_begin_at_once_one_waits(ledger: Ledger) -> None:
    """The count is made under the ledger's lock, so the last free place is given to one."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    version = scene.version()
    runs = [scene.run(f"p{n}") for n in range(4)]
    for n, run in enumerate(runs):
        scene.open(run, version, span(n, n + 1))

    def begin(n: int) -> Begun:
        return scene.begin(runs[n], version, span(n, n + 1), limits=Limits(2, 3))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(begin, range(4)))
    assert [a.wait is None for a in answers].count(True) == 2


def test_a_begin_waits_for_one_under_way_and_counts_it(scene: Scene) -> None:
    """What another session begins while this one waits for the lock takes the place."""
    version, one, two = scene.version(), scene.run("up"), scene.run("down")
    scene.open(one, version, span(0, 1))
    scene.open(two, version, span(1, 2))
    begin = (
        f"SELECT meshgate.begin_claim({one}, {version}, tstzrange('{at(0)}', '{at(1)}'),"
        " '{}', '{}', '{}', NULL, 1, NULL)"
    )
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger, f"SET meshgate.now = '{scene.now.isoformat()}'; {begin}") as first,
        meanwhile(
            lambda: other.begin(
                two, version, span(1, 2), needs=[], loaded=[], environment=None, limits=ONE_OF_MODEL
            )
        ) as second,
    ):
        wait_until_blocked(scene.ledger)
        first.commit()
        assert second.result().wait is not None


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("limits", [ONE_OF_MODEL, ONE_OF_WAREHOUSE], ids=["model", "warehouse"])
def test_no_place_leaks_however_a_batch_ends(scene: Scene, limits: Limits, how: str) -> None:
    """What is counted are rows of live runs, so no end of a batch can forget to give a place back."""
    version, run = scene.version(), scene.run("up")
    other = scene.run("down", ttl=timedelta(hours=1))
    scene.work(run, version, span(0, 1))
    assert wants(scene, other, version, 5, limits).wait is not None
    ENDS[how](scene, run, version)
    assert scene.begin(other, version, span(5, 6), limits=limits).wait is None


def test_what_has_begun_may_begin_again_at_the_limit(scene: Scene) -> None:
    """The half of a failed batch does not wait for the place that the batch itself has."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 2))
    limits = Limits(1, 1)
    assert scene.begin(run, version, span(0, 1), limits=limits).wait is None
    scene.commit(run, version, span(0, 1))
    assert scene.begin(run, version, span(1, 2), limits=limits).wait is None


def test_a_smaller_limit_lets_go_on_what_was_begun(scene: Scene) -> None:
    """Three batches are under way, and from now on one is enough: none is stopped, none is added."""
    run, version = scene.run(), scene.version()
    for cell in range(3):
        scene.work(run, version, span(cell, cell + 1))
    assert wants(scene, run, version, 5, ONE_OF_MODEL).wait is not None
    for cell in range(3):
        scene.commit(run, version, span(cell, cell + 1))
    assert scene.begin(run, version, span(5, 6), limits=ONE_OF_MODEL).wait is None


def test_what_is_not_ready_is_refused_and_does_not_wait(scene: Scene) -> None:
    """Waiting would not help it: the answer names what its parents lack."""
    version, parent, run = scene.version(), scene.version("q"), scene.run()
    scene.work(run, version, span(0, 1))
    scene.open(run, version, span(1, 2))
    answer = scene.begin(run, version, span(1, 2), (parent, span(1, 2)), limits=ONE_OF_MODEL)
    assert answer.wait is None
    assert [r.reason for r in answer.refused] == ["missing"]


# -- deploys


@pytest.fixture
def deploy(scene: Scene) -> int:
    """A deploy that is about to replace model p in prod, where p and q are promoted."""
    scene.version("p")
    scene.version("q")
    scene.promote({"p": "1", "q": "1"})
    run = scene.run("deployer", purpose="deploy")
    scene.ledger.pause(run, ["p"])
    return run


def begun(scene: Scene, run: int, model: str, cell: int = 0) -> Begun:
    """Reserve an hour of what prod promotes and ask to begin it."""
    version = scene.version(model)
    assert scene.open(run, version, span(cell, cell + 1)) == [None]
    return scene.begin(run, version, span(cell, cell + 1), environment="prod")


def test_nothing_begins_of_what_a_deploy_is_about_to_replace(scene: Scene, deploy: int) -> None:
    """Whoever is ready waits, and is told for which deploy."""
    answer = begun(scene, scene.run(), "p")
    assert answer == Begun(None, (), {"for": "promotion", "run_id": deploy})


@pytest.mark.usefixtures("deploy")
def test_what_a_deploy_leaves_as_it_is_goes_on(scene: Scene) -> None:
    """A pause is about the models that it names."""
    assert begun(scene, scene.run(), "q").wait is None


@pytest.mark.usefixtures("deploy")
def test_another_environment_goes_on(scene: Scene) -> None:
    """A deploy is about to replace what its own environment promotes."""
    scene.promote({"p": "1"}, environment="dev")
    run, version = scene.run(environment="dev"), scene.version("p")
    scene.open(run, version, span(0, 1))
    assert scene.begin(run, version, span(0, 1), environment="dev").wait is None


def test_the_deploy_itself_begins(scene: Scene, deploy: int) -> None:
    """It does not wait for itself."""
    assert begun(scene, deploy, "p").wait is None


def test_what_was_begun_before_the_pause_goes_on_to_its_end(scene: Scene) -> None:
    """It may begin again in halves, be committed and fail; the deploy is told of it until then."""
    version, run = scene.version("p"), scene.run()
    scene.promote({"p": "1"})
    scene.work(run, version, span(0, 2))
    deploy = scene.run("deployer", purpose="deploy")
    assert [(r, m, cells(i)) for r, m, i in scene.ledger.pause(deploy, ["p"])] == [(run, "p", {0, 1})]
    assert scene.begin(run, version, span(0, 1), environment="prod").wait is None
    scene.commit(run, version, span(0, 1))
    assert [cells(i) for _, _, i in scene.ledger.pause(deploy, ["p"])] == [{1}]
    scene.ledger.fail(run, version, span(1, 2), {})
    assert scene.ledger.pause(deploy, ["p"]) == ()


def test_a_deploy_is_told_only_of_what_others_write(scene: Scene, deploy: int) -> None:
    """Neither its own batches, nor other models', nor what is only reserved, nor what is for another environment."""
    begun(scene, deploy, "p")
    begun(scene, scene.run(), "q")
    scene.work(scene.run("down", environment="dev"), scene.version("p"), span(7, 8))
    scene.open(scene.run("down"), scene.version("p"), span(5, 6))
    assert scene.ledger.pause(deploy, ["p"]) == ()


@pytest.mark.parametrize("how", ENDS)
def test_a_deploy_waits_for_no_batch_that_has_ended(scene: Scene, how: str) -> None:
    """However a batch ends: nobody is left who could say that it has."""
    version, run = scene.version("p"), scene.run()
    scene.work(run, version, span(0, 1))
    deploy = scene.run("deployer", purpose="deploy", ttl=timedelta(hours=1))
    assert scene.ledger.pause(deploy, ["p"]) != ()
    ENDS[how](scene, run, version)
    assert scene.ledger.pause(deploy, ["p"]) == ()


@pytest.mark.parametrize("how", OF_A_DEPLOY)
def test_a_pause_ends_with_the_deploy_however_that_ends(scene: Scene, deploy: int, how: str) -> None:
    """Nothing has to be taken back: a pause is a word in the row of a run that lives."""
    run = scene.run(ttl=timedelta(hours=1))
    assert begun(scene, run, "p").wait is not None
    OF_A_DEPLOY[how](scene, deploy, 0)
    assert begun(scene, run, "p").wait is None


@pytest.mark.usefixtures("deploy")
def test_who_waited_for_a_promotion_is_refused_after_it(scene: Scene) -> None:
    """The batch was planned for a version that is not promoted any more."""
    run, version = scene.run(), scene.version("p")
    assert begun(scene, run, "p").wait is not None
    scene.version("p", version="2")
    scene.promote({"p": "2", "q": "1"})
    answer = scene.begin(run, version, span(0, 1), environment="prod")
    assert (answer.wait, [r.reason for r in answer.refused]) == (None, ["superseded"])


def test_the_last_word_of_a_deploy_counts(scene: Scene, deploy: int) -> None:
    """What it names later takes the place of what it named before."""
    scene.ledger.pause(deploy, ["q"])
    run = scene.run()
    assert begun(scene, run, "p").wait is None
    assert begun(scene, run, "q").wait is not None


def test_a_begin_under_a_pause_under_way_waits_for_the_deploy(scene: Scene) -> None:
    """Between an empty answer and the promotion nothing slips through: both take the ledger's lock."""
    version, run = scene.version("p"), scene.run()
    scene.promote({"p": "1"})
    deploy = scene.run("deployer", purpose="deploy")
    scene.open(run, version, span(0, 1))
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(
            scene.ledger,
            f"SET meshgate.now = '{scene.now.isoformat()}'; SELECT meshgate.pause_models({deploy}, '{{p}}')",
        ) as first,
        meanwhile(
            lambda: other.begin(run, version, span(0, 1), needs=[], loaded=[], environment="prod")
        ) as begin,
    ):
        wait_until_blocked(scene.ledger)
        first.commit()
        assert begin.result().wait == {"for": "promotion", "run_id": deploy}


def test_a_deploy_that_lost_its_lease_pauses_nothing(scene: Scene, deploy: int) -> None:
    """It may not go on, and is told so; the others go on."""
    scene.pass_time(61)
    with pytest.raises(LeaseLostError):
        scene.ledger.pause(deploy, ["p", "q"])
    assert begun(scene, scene.run(), "q").wait is None


def test_a_run_that_is_no_deploy_pauses_nothing(scene: Scene) -> None:
    """Only what will promote something can make others wait for a promotion."""
    scene.version("p")
    scene.promote({"p": "1"})
    scene.ledger.pause(scene.run("down"), ["p"])
    assert begun(scene, scene.run("up"), "p").wait is None
