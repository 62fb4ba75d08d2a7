"""What SQLMesh's plan over some checkouts would do, without doing any of it.

One context holds the checkouts that share a state; the other projects' models come from that state. It plans, and that is
all: its state refuses every write, and nothing of the warehouse is asked for but its name.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.bridge.contract import check_version

check_version()  # before the import, which may fail in ways that name neither the cause nor the cure

from sqlmesh.core import constants as c  # noqa: E402
from sqlmesh.core.environment import Environment  # noqa: E402
from sqlmesh.core.plan.builder import PlanBuilder  # noqa: E402
from sqlmesh.core.snapshot import SnapshotChangeCategory  # noqa: E402
from sqlmesh.core.state_sync.base import DelegatingStateSync, StateReader, StateSync  # noqa: E402
from sqlmesh.core.state_sync.cache import CachingStateSync  # noqa: E402
from sqlmesh.utils.errors import PlanError  # noqa: E402

from meshgate.bridge.columns import (  # noqa: E402
    Difference,
    columns_of,
    differences,
    named,
    reads,
    rendered_alike,
)
from meshgate.bridge.definitions import definition, definitions  # noqa: E402
from meshgate.bridge.dropped import Dropped, dropped  # noqa: E402
from meshgate.bridge.failures import sentence  # noqa: E402
from meshgate.bridge.queries import Rendered, rendered  # noqa: E402
from meshgate.bridge.quiet import QuietConsole, quiet  # noqa: E402
from meshgate.bridge.scheduler import GatedContext  # noqa: E402
from meshgate.bridge.settings import read_config  # noqa: E402
from meshgate.bridge.translate import Promoted, interval_set, promoted, unbroken  # noqa: E402
from meshgate.errors import MeshgateError, ProjectError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlmesh.core.model import Model
    from sqlmesh.core.plan import Plan
    from sqlmesh.core.snapshot import Snapshot

    from meshgate.bridge.queries import Bounds
    from meshgate.interval import IntervalSet


@attrs.frozen
class Checkout:
    """One project's files: its `project:` key, where they are, and which gateway it uses."""

    project: str
    path: Path
    gateway: str | None = None


@attrs.frozen
class Altered:
    """One model that a plan changes.

    Attributes:
        model: The model, or standalone audit.
        project: Whose.
        how: `added`, `removed`, `direct`, `indirect` (its parents changed), or `metadata` (its data stay as they are).
        category: SQLMesh's category, in lower case; None where there is none.
        forward_only: Whether the new version goes on in the old one's table.
        because: Of an indirect change: the models above it that were changed themselves.
        differences: What is different about it.
        old: The version so far; empty for an added one.
        new: The version that is planned; empty for a removed one.
    """

    model: str
    project: str
    how: str
    category: str | None = None
    forward_only: bool = False
    because: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    old: str = ""
    new: str = ""


@attrs.frozen
class Proposal:
    """A plan over some checkouts.

    Attributes:
        projects: Whose files it is made of.
        state: Which SQLMesh state it is about: a fingerprint.
        base: The plan that made the environment what it is; None where there is none.
        before: What the environment promotes; None where it does not exist.
        begun: The same; a new environment begins as production is.
        after: What it would promote.
        altered: What is different, parents first.
        wanted: What the plan would evaluate, by model: also what is merely due.
        dropped: What it takes away of others.
        refused: Models of which SQLMesh refuses the change, and its words.
        columns: Columns and types that are promoted so far, and that would be, by model.
        reads: The columns that each model reads of each parent, so far, and would.
        named: What the query of each model calls by name, so far, and would; None: perhaps anything.
        identities: Name and identifier of every model, promoted so far and as it would be.
        definitions: Project and definition of every model, so far and then; a new environment begins as production is.
        owners: Who owns each model, where it says so.
        queries: Models that were changed themselves, and what they read, by name; only where bounds were given.
        warnings: What SQLMesh warned of.
    """

    projects: tuple[str, ...]
    state: str
    base: str | None
    before: Promoted | None
    begun: Promoted
    after: Promoted
    altered: tuple[Altered, ...]
    wanted: Mapping[str, IntervalSet]
    dropped: tuple[Dropped, ...]
    columns: tuple[Mapping[str, Mapping[str, str]], Mapping[str, Mapping[str, str]]]
    reads: tuple[Mapping[str, Mapping[str, frozenset[str]]], Mapping[str, Mapping[str, frozenset[str]]]]
    named: tuple[Mapping[str, frozenset[str] | None], Mapping[str, frozenset[str] | None]]
    identities: tuple[tuple[str, ...], tuple[str, ...]]
    definitions: tuple[Mapping[str, tuple[str, str]], Mapping[str, tuple[str, str]]]
    owners: Mapping[str, str] = attrs.field(factory=dict)
    queries: Mapping[str, Rendered] = attrs.field(factory=dict)
    refused: Mapping[str, str] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()


_READS = frozenset(StateReader.__abstractmethods__) - {"update_auto_restatements"}
_WRITES = frozenset(StateSync.__abstractmethods__) - _READS - {"recycle", "close"}


class UnwritableState(DelegatingStateSync):  # type: ignore[misc]
    """SQLMesh's state, for looking only."""

    def __getattr__(self, name: str) -> Any:
        if name == "state_sync":  # before there is one
            raise AttributeError(name)
        return getattr(self.state_sync, name)


def _refusing(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ProjectError(f"an analysis writes nothing, and SQLMesh asked its state to {name}")

    return refuse


for _name in _WRITES:
    setattr(UnwritableState, _name, _refusing(_name))


class _Builder(PlanBuilder):  # type: ignore[misc]
    """SQLMesh's plan builder, but what it raises about removed models that others read, no change at all, or columns that must not change, is told."""

    def _ensure_no_broken_references(self) -> None:
        pass

    def _ensure_new_env_with_changes(self) -> None:
        pass

    def _check_destructive_additive_changes(self, directly_modified: Iterable[Any]) -> None:
        self.refused: dict[str, str] = {}
        for one in directly_modified:
            try:
                super()._check_destructive_additive_changes({one})
            except PlanError as error:
                self.refused[one.name] = str(error)


class ReadingContext(GatedContext):
    """A SQLMesh context that cannot write its state, nor make one where there is none."""

    PLAN_BUILDER_TYPE = _Builder
    _unwritable: Any = None

    @property
    def state_sync(self) -> Any:
        """SQLMesh's hook: the state that it plans against."""
        if self._unwritable is None:
            found = self.config.get_scheduler(self.gateway).create_state_sync(self)
            if found.get_versions(validate=False).schema_version == 0:
                raise ProjectError(
                    "SQLMesh's state is empty: nothing was ever planned there",
                    hint="deploy first; there is nothing yet that a change could be compared with",
                )
            found.get_versions()
            self._unwritable = CachingStateSync(UnwritableState(found))
        return self._unwritable

    def close(self) -> None:
        """Close the connections."""
        if self._unwritable is not None:
            self._unwritable.close()
        super().close()


@contextmanager
def _named(projects: Sequence[str], what: str) -> Iterator[None]:
    try:
        yield
    except MeshgateError:
        raise
    except Exception as error:
        said = ", ".join(map(repr, projects))
        raise ProjectError(f"{said} cannot be {what}: {sentence(error)}", projects=list(projects)) from error


def propose(
    checkouts: Sequence[Checkout], environment: str, now: datetime, bounds: Bounds | None = None
) -> tuple[Proposal, ...]:
    """Plan checkouts against an environment, those that share a state as one.

    Args:
        checkouts: The projects' files.
        environment: SQLMesh's environment.
        now: SQLMesh's execution time, UTC.
        bounds: For which intervals, and which times of execution, to render what was changed, by its interval unit.

    Raises:
        ProjectError: A checkout is none of its project, cannot be loaded or planned, or its state is empty.
    """
    return tuple(_propose(group, state, environment, now, bounds) for state, group in _by_state(checkouts))


def _by_state(checkouts: Sequence[Checkout]) -> Iterator[tuple[str, list[Checkout]]]:
    groups: dict[str, list[Checkout]] = {}
    for checkout in checkouts:
        found = read_config(checkout.path).project
        if found != checkout.project:
            raise ProjectError(
                f"the SQLMesh project in {checkout.path} has `project: {found}`" if found else
                f"the SQLMesh project in {checkout.path} has no `project:` key: a plan of it would drop all other projects",
                hint=f"it was named as {checkout.project!r}: name it as its configuration does, or mend that",
            )  # fmt: skip
        with quiet(), _named([checkout.project], "opened"):
            context = ReadingContext(paths=[str(checkout.path)], gateway=checkout.gateway, load=False)
            try:
                state = context.config.get_scheduler(context.gateway).state_sync_fingerprint(context)
            finally:
                context.close()
        groups.setdefault(str(state), []).append(checkout)
    yield from groups.items()


def _propose(
    group: Sequence[Checkout], state: str, environment: str, now: datetime, bounds: Bounds | None
) -> Proposal:
    names = tuple(sorted(checkout.project for checkout in group))
    with quiet() as console:
        with _named(names, "loaded"):
            context = ReadingContext(
                paths=[str(checkout.path) for checkout in group], gateway=group[0].gateway
            )
        try:
            with _named(names, "planned"):
                found = _planned(context, names, state, environment, now, console)
                folders = {checkout.project: checkout.path for checkout in group}
                return attrs.evolve(found, queries=_queries(context, found.altered, folders, bounds))
        finally:
            context.close()


def _planned(
    context: ReadingContext,
    names: tuple[str, ...],
    state: str,
    environment: str,
    now: datetime,
    console: QuietConsole,
) -> Proposal:
    # Tests are the pull request's own business: they write to a database of their own.
    builder = context.plan_builder(environment, execution_time=now, skip_tests=True)
    plan = builder.build()
    for snapshot in plan.uncategorized:
        builder.set_choice(snapshot, SnapshotChangeCategory.BREAKING)  # as a deploy does
    plan = builder.build()
    found = _environment(context, environment)
    old = _promoted(context, found)
    begun = old if found is not None else _promoted(context, _environment(context, c.PROD))
    context.state_sync.refresh_snapshot_intervals(begun)
    new = list(plan.snapshots.values())
    models = [[s for s in side if s.is_model] for side in (begun, new)]
    others = {s.node.project for s in old if s.node.project} - set(names)
    was_read = {s.name: reads(s.model) for s in models[0]}
    so_far = {s.name: s.model for s in models[0]}
    gone = _gone(so_far, {s.name: s.model for s in models[1]})
    return Proposal(
        projects=names,
        state=state,
        base=found.plan_id if found is not None else None,
        before=promoted(old, plan_id=found.plan_id, finalized=bool(found.finalized_ts), now=now)
        if found is not None
        else None,
        begun=promoted(begun, plan_id=None, finalized=False, now=now),
        after=promoted(new, plan_id=None, finalized=False, now=now),
        altered=_altered(plan, names, {s.name: s for s in begun}),
        wanted={i.snapshot_id.name: interval_set(i.merged_intervals) for i in plan.missing_intervals},
        dropped=dropped(plan, names, old, others, exists=found is not None),
        columns=tuple({s.name: columns_of(s.model) for s in side} for side in models),  # type: ignore[arg-type]
        reads=(
            was_read,
            {
                s.name: was_read[s.name]
                if s.name in so_far and rendered_alike(so_far[s.name], s.model)
                else reads(s.model, gone)
                for s in models[1]
            },
        ),
        named=tuple({s.name: named(s.model) for s in side} for side in models),  # type: ignore[arg-type]
        identities=tuple(tuple(sorted(f"{s.name} {s.identifier}" for s in side)) for side in (old, new)),  # type: ignore[arg-type]
        definitions=(
            definitions(
                (s.node for s in begun),
                context.state_sync.get_environment_statements(found.name if found is not None else c.PROD),
            ),
            definitions((s.node for s in new), plan.context_diff.environment_statements),
        ),
        owners={s.name: s.node.owner for side in (old, new) for s in side if s.node.owner},
        refused=getattr(builder, "refused", {}),
        warnings=tuple(dict.fromkeys(console.warnings)),
    )


def _environment(context: ReadingContext, name: str) -> Environment | None:
    return context.state_sync.get_environment(Environment.sanitize_name(name))


def _promoted(context: ReadingContext, found: Environment | None) -> list[Snapshot]:
    """What an environment promotes; nothing where it does not exist."""
    return list(context.state_sync.get_snapshots(found.snapshots).values()) if found is not None else []


def _gone(old: Mapping[str, Model], new: Mapping[str, Model]) -> dict[str, dict[str, Any]]:
    """The columns that models had and have no more, as far as they are known; those of removed models are not among them."""
    found = {}
    for name in set(old) & set(new):
        had, has = (model.columns_to_types or {} for model in (old[name], new[name]))
        if has and (lost := {column: kind for column, kind in had.items() if column not in has}):
            found[name] = lost
    return found


def _altered(plan: Plan, names: Collection[str], old: Mapping[str, Snapshot]) -> tuple[Altered, ...]:
    diff = plan.context_diff
    made = {s.snapshot_id for s in plan.new_snapshots}
    direct = {s_id.name for s_id in plan.directly_modified}
    above: dict[str, set[str]] = {}
    for s_id, below in plan.indirectly_modified.items():
        for child in below:
            above.setdefault(child.name, set()).add(s_id.name)
    found: list[Altered] = []
    for s_id in sorted(diff.added):
        snapshot = plan.snapshots[s_id]
        found.append(_one(snapshot, "added", None, fresh=True))
    for name, (new, was) in sorted(diff.modified_snapshots.items()):
        told = differences(was, new) if was.is_model and new.is_model else ()
        # A model whose file says what it said differs only by its parents, even if its query is rendered differently by that.
        own = new.node.project in names and definition(new.node) != definition(was.node)
        if own and name in direct:
            found.append(_one(new, "direct", was, told=told, fresh=new.snapshot_id in made))
        elif own and told and not diff.indirectly_modified(name):
            found.append(_one(new, "metadata", was, told=told, fresh=new.snapshot_id in made))
        else:
            because = tuple(sorted(above.get(name, ())))
            stars = tuple(d for d in told if d.what == "star")
            found.append(
                _one(new, "indirect", was, because=because, told=stars, fresh=new.snapshot_id in made)
            )
    for s_id in sorted(diff.removed_snapshots):
        was = old.get(s_id.name)
        project = (was.node.project or "") if was is not None else ""
        # An audit of its own holds no data.
        category = None if was is None or was.is_model else SnapshotChangeCategory.METADATA.name.lower()
        version = was.version or "" if was is not None else ""
        found.append(Altered(s_id.name, project, "removed", category, old=version))
    return tuple(found)


def _one(
    new: Snapshot,
    how: str,
    old: Snapshot | None,
    because: tuple[str, ...] = (),
    told: tuple[Difference, ...] = (),
    *,
    fresh: bool,
) -> Altered:
    return Altered(
        new.name, new.node.project or "", how, _category(new, how, old, fresh=fresh), bool(new.is_forward_only),
        because, told, old.version or "" if old is not None else "", new.version or "",
    )  # fmt: skip


def _category(new: Snapshot, how: str, old: Snapshot | None, *, fresh: bool) -> str | None:
    """What SQLMesh calls the change; of a version that was there before it says what that was a change of then, not of what now."""
    category = new.change_category
    if category is None or old is None:
        return str(category.name.lower()) if category else None
    was, now = (s.fingerprint for s in (old, new))
    if (was.data_hash, was.parent_data_hash) == (now.data_hash, now.parent_data_hash):
        category = SnapshotChangeCategory.METADATA
    elif not fresh and new.version != old.version and old.version not in unbroken(new):
        category = (
            SnapshotChangeCategory.INDIRECT_BREAKING if how == "indirect" else SnapshotChangeCategory.BREAKING
        )
    return str(category.name.lower())


def _queries(
    context: ReadingContext, altered: Iterable[Altered], folders: Mapping[str, Path], bounds: Bounds | None
) -> dict[str, Rendered]:
    """What was changed itself, and what it reads, down to the tables behind views; rendering all models would take long."""
    own = {a.model for a in altered if a.how in ("added", "direct") and a.project in folders}
    pending, found = list(own) if bounds is not None else [], {}
    while pending:
        name = pending.pop()
        if name in found or (model := context.models.get(name)) is None:
            continue
        seen_through = model.kind.is_view or model.kind.is_embedded
        folder = folders.get(model.project, next(iter(folders.values())))
        looked_into = name in own or seen_through
        found[name] = rendered(model, folder, bounds if looked_into else None)
        pending += model.depends_on if looked_into else ()
    return found
