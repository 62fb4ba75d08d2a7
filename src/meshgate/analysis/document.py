"""What an analysis says, as data. All times are UTC and half-open; models have their full names."""

from __future__ import annotations

# At run time too: whoever turns these records into JSON resolves their annotations.
from datetime import datetime, timedelta  # noqa: TC003
from typing import Literal

from attrs import field, frozen

from meshgate.interval import IntervalSet  # noqa: TC001

How = Literal["added", "removed", "direct", "indirect", "metadata"]
BREAKING = ("breaking", "indirect_breaking")
FLAGS = ("breaking", "cross-project", "restatement", "collision")
"""What `--fail-on` may name."""


@frozen
class Difference:
    """One thing that differs between two versions of a model.

    Attributes:
        what: `column_added`, `column_removed`, `column_retyped`, `column_redefined`, `query` (which rows it selects),
            `code` (a macro or Python function), `seed`, `kind`, `audits`, `statements`, `star` (a `SELECT *` finds other
            columns), `metadata`, or a property of the model such as `cron` or `start`.
        name: Of the column, where it is about one.
        before: As text, where it can be told shortly.
        after: The same.
    """

    what: str
    name: str | None = None
    before: str | None = None
    after: str | None = None

    @property
    def is_column(self) -> bool:
        """Whether it is about one column."""
        return self.what.startswith("column_")


@frozen
class Reason:
    """Why a change above reaches a model.

    Attributes:
        parent: What it reads.
        columns: What is different about the columns that it reads of it.
        rows: Whether the parent's rows are others, whatever the columns.
        star: Whether it reads all columns of it, so that nobody can tell which.
    """

    parent: str
    columns: tuple[Difference, ...] = ()
    rows: bool = False
    star: bool = False


@frozen
class Change:
    """One model whose version the plan changes, adds or removes.

    Attributes:
        model: The model, or standalone audit.
        project: Whose.
        owner: Who owns it, where it says so.
        how: `added`, `removed`, `direct`, `indirect` (by its parents), or `metadata` (its data stay as they are).
        category: SQLMesh's, such as `breaking`; None where it has none.
        forward_only: Whether the new version goes on in the old one's table, whose history stays as it is.
        because: Of an indirect change: the models above that were changed themselves.
        differences: What is different about it.
        reasons: Through which parents a change above reaches it.
    """

    model: str
    project: str
    owner: str | None
    how: How
    category: str | None
    forward_only: bool = False
    because: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    reasons: tuple[Reason, ...] = ()

    @property
    def keeps_data(self) -> bool:
        """Whether its table stays what it is: it only gets a new version because a parent has one."""
        return self.how == "indirect" and self.category in ("indirect_non_breaking", "metadata")


@frozen
class Hindrance:
    """Why some time of a model cannot be evaluated at once.

    Attributes:
        reason: As the gate has it: `late`, `not_due`, `failed`, `held`, ...
        parent: What it waits for.
        parent_project: Whose that is.
        range: What of the model waits.
        span: Which time of the parent it waits for.
        until: When that may be there at the earliest; None: not before somebody does something.
    """

    reason: str
    parent: str
    parent_project: str
    range: IntervalSet
    span: IntervalSet
    until: datetime | None


@frozen
class Work:
    """What is evaluated of one model because of the change.

    Attributes:
        model: The model.
        project: Whose.
        why: `rebuilt`: a new version has a table of its own. `extended`: the same version covers more time. `stale`: the
            version stays, and what it read changes.
        by: `deploy` or `run`.
        doer: The project whose deploy or runs do it.
        range: What of it.
        ready: What of that can be done as soon as its turn comes.
        hindrances: What keeps the rest.
        first_at: When some of it can be done at the earliest; None: not before somebody does something.
        complete_at: When all of it can be done at the earliest; the same.
        expected: How long it takes, by the last evaluations; None where nothing can be told.
        rows: How many rows it makes, by what is recorded; None where nothing can be told.
        because: The models whose change makes it necessary.
        again: Whether the deploy has evaluated it before, on what was not computed again yet.
    """

    model: str
    project: str
    why: Literal["rebuilt", "extended", "stale"]
    by: Literal["deploy", "run"]
    doer: str
    range: IntervalSet
    ready: IntervalSet
    hindrances: tuple[Hindrance, ...] = ()
    first_at: datetime | None = None
    complete_at: datetime | None = None
    expected: timedelta | None = None
    rows: int | None = None
    because: tuple[str, ...] = ()
    again: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all other work of one analysis."""
        return self.model, self.by


@frozen
class Left:
    """What nobody will compute again by itself, although what it holds is not what its query, or its parents, now say.

    Attributes:
        model: The model.
        project: Whose.
        reason: `forward_only`: its history was made by the old query. `star`: it selects all columns of a parent that
            got others, and keeps its table. `seed`, `ungated`: it does not follow that parent. `reported`, `policy`,
            `disabled`, `not_redoable`: as a restatement's preview has it.
        range: What of it.
        because: The models whose change makes it so.
        final: Whether it must not be computed again: it is so declared, by its kind or by itself, or rows would be doubled.
    """

    model: str
    project: str
    reason: str
    range: IntervalSet
    because: tuple[str, ...] = ()
    final: bool = False

    @property
    def can_be_asked(self) -> bool:
        """Whether `meshgate restate` would compute it again."""
        return not self.final and self.reason not in ("disabled", "not_redoable") and bool(self.range)


@frozen
class Boundary:
    """An edge between two projects that the change crosses.

    Attributes:
        parent: What is read.
        parent_project: Whose.
        child: Who reads it.
        child_project: Whose.
        owner: Who owns the reader, where it says so.
        effect: What becomes of the reader: `rebuilt`, `stale`, `left`, `broken`, `new` (the edge is new), `gone` (the
            reader reads it no more), or `none`.
        reason: Which columns, or rows, of it.
    """

    parent: str
    parent_project: str
    child: str
    child_project: str
    owner: str | None
    effect: str
    reason: Reason


@frozen
class Collision:
    """What is in flight, or asked for, where the change replaces or computes something.

    Attributes:
        what: `run` or `request`.
        number: Of that.
        project: Whose it is.
        model: The model.
        state: Of a run: `open`, `begun`, `lost`, or `deploying`. Of a request: `open`.
        range: What of the model.
        until: When a run's lease ends unless it is renewed.
    """

    what: Literal["run", "request"]
    number: int
    project: str
    model: str | None
    state: str
    range: IntervalSet
    until: datetime | None = None


@frozen
class Precedence:
    """One project has to be deployed before another.

    Attributes:
        first: This one.
        then: And then that.
        why: `reads_new_model`, `reads_removed_model`, `reads_new_column`, or `reads_removed_column`.
        parent: Of which model.
        child: Who reads it.
        columns: Which columns.
    """

    first: str
    then: str
    why: str
    parent: str
    child: str
    columns: tuple[str, ...] = ()


@frozen
class Order:
    """In which order the projects' changes must be merged and deployed.

    Attributes:
        projects: An order that keeps to all precedences; where there is none, parents first.
        precedences: What has to come before what.
        state: `any` order is right, this one is `required`, or `none` is: something breaks between two deploys.
    """

    projects: tuple[str, ...]
    precedences: tuple[Precedence, ...] = ()
    state: Literal["any", "required", "none"] = "any"


@frozen
class Refusal:
    """Why the change must not be deployed as it is.

    Attributes:
        what: `removed_model` or `removed_column` that is still read, `missing_column` that is newly read, `foreign_model`, `foreign_statements`,
            `foreign_requirement` or `foreign_changes` that the plan would drop, `owned_twice`, `forward_only` (SQLMesh refuses a change of its columns),
            `declaration` (of meshgate.yaml).
        model: Which model it is about, if any.
        project: Whose.
        message: What is wrong.
        hint: What to do.
    """

    what: str
    model: str | None
    project: str
    message: str
    hint: str


@frozen
class Definition:
    """What the files say of one model, or standalone audit, itself: not of what it reads. Or of a project's statements.

    Attributes:
        model: The model; or `before_all and after_all of PROJECT`.
        project: Whose.
        state: Which SQLMesh state promotes it: its place in `Base.states`. None: one that nobody looked at; then the ledger's
            word for its version stands for its definition.
        before: A digest of what is promoted; None where it is not there.
        after: A digest of what would be; the same.
    """

    model: str
    project: str
    state: int | None
    before: str | None
    after: str | None


@frozen
class Beyond:
    """A changed model whose query reads more of a parent's time than is declared, so that the gate does not wait for it.

    Attributes:
        model: The reader.
        project: Whose.
        parent: Which table it reads.
        message: What it reads, and what is declared.
        hint: What to do.
        places: The conditions that say so.
    """

    model: str
    project: str
    parent: str
    message: str
    hint: str
    places: tuple[Condition, ...] = ()


@frozen
class Condition:
    """A condition of a query.

    Attributes:
        expression: As it is rendered.
        file: Relative to its project's folder; empty where that is not known.
        line: In it; None where that is not known.
    """

    expression: str
    file: str
    line: int | None


@frozen
class Base:
    """The world that an analysis looked at: where it differs, the analysis is old.

    Attributes:
        plans: The plan that made the environment what it was, by SQLMesh state; None where it did not exist.
        promoted: A digest of every model's promoted version.
        revision: The ledger's revision.
        proposed: A digest of every model's version as it would be.
        states: By SQLMesh state: the projects whose files were looked at.
        definitions: Every model of the mesh, so far and then.
    """

    plans: tuple[str | None, ...]
    promoted: str
    revision: int
    proposed: str
    states: tuple[tuple[str, ...], ...]
    definitions: tuple[Definition, ...]


@frozen
class Analysis:
    """What a change of some projects' files does to the mesh.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counted.
        projects: Whose files were looked at; the others come from state.
        base: The world that it is about.
        changes: Every model that changes, parents first.
        work: What is evaluated because of it, parents first.
        left: What nobody computes again by itself.
        boundaries: Which edges between projects it crosses.
        collisions: What it meets.
        order: In which order to merge and deploy.
        refusals: Why it must not be deployed as it is.
        windows: Where queries of changed models read beyond what is declared.
        warnings: What SQLMesh, or the analysis, warns of.
    """

    environment: str
    now: datetime
    projects: tuple[str, ...]
    base: Base
    changes: tuple[Change, ...] = ()
    work: tuple[Work, ...] = ()
    left: tuple[Left, ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    collisions: tuple[Collision, ...] = ()
    order: Order = field(factory=lambda: Order(()))
    refusals: tuple[Refusal, ...] = ()
    windows: tuple[Beyond, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Of `FLAGS`, those that hold."""
        holds = {
            "breaking": any(
                c.category in BREAKING if c.how != "removed" else c.category != "metadata"
                for c in self.changes
                if c.how != "added"
            ),
            "cross-project": any(b.effect not in ("none", "gone") for b in self.boundaries),
            "restatement": bool(self.left) or any(w.why == "stale" for w in self.work),
            "collision": bool(self.collisions),
        }  # fmt: skip
        return tuple(flag for flag in FLAGS if holds[flag])

    @property
    def refused(self) -> bool:
        """Whether it must not be deployed as it is."""
        return bool(self.refusals) or self.order.state == "none"

    @property
    def expected(self) -> timedelta | None:
        """How long all that can be estimated takes, one after the other; None where nothing can."""
        known = [work.expected for work in self.work if work.expected is not None]
        return sum(known[1:], known[0]) if known else None

    @property
    def complete_at(self) -> datetime | None:
        """When all of the work can be done at the earliest; None where there is none, or somebody has to do something."""
        ends = [work.complete_at for work in self.work]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else None

    @property
    def affected(self) -> tuple[str, ...]:
        """Projects that have work or changes, or of which something is left: as their models come, parents first."""
        found = [c.project for c in self.changes if not c.keeps_data]
        found += [w.project for w in self.work]
        found += [one.project for one in self.left]
        return tuple(dict.fromkeys(name for name in found if name))
