"""What the rules say of two holders of one table, on paper: sets of numbered hours, written from the rules, not the SQL.

A holder takes a lease, reserves hours, begins some of them, commits them or fails or gives them back, and finishes;
or its lease ends, somebody takes it over, buries or breaks it, and it writes all the same. `Paper` gives the answer
to each step and keeps what it makes of the table: who has reserved and begun what, what is recorded, in doubt, or
waited for. It knows hours and an order of events, nothing else: no ranges, rows, locks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ledger_scene import CELLS, GRACE, TTL, at

if TYPE_CHECKING:
    from datetime import datetime

Hours = frozenset[int]
WHOLE: Hours = frozenset(range(-1, CELLS + 1))
"""All of time: the grid, what is before it and what is after it."""
MOMENTS = (at(CELLS), at(CELLS) + TTL, at(CELLS) + TTL + GRACE)
"""When the clock stands at first; when a lease of that instant has ended; when the grace after it is over too."""
BY_TIME = "incremental_by_time_range"


class Step(NamedTuple):
    """What a holder does.

    Attributes:
        verb: A function of the ledger.
        hours: What it is about.
        whom: Whose run is buried or broken.
        gone: Whether the engine is proven to have gone with the process.
    """

    verb: str
    hours: Hours = frozenset()
    whom: str = ""
    gone: bool = False


class Setting(NamedTuple):
    """A table and those who work on it.

    Attributes:
        kind: Of the model.
        alone: Whether a table by time is claimed whole, because its writers would be in each other's way.
        projects: Whose runs they are, one letter a holder: A, B, ...
        purposes: Of their runs.
        share: Whether B asks to live beside other runs of its project.
        inside: Whether their engines die with their processes.
        most: How many batches of the model may be under way at once.
        leases: How many times longer than the usual each holder's lease is.
    """

    kind: str = BY_TIME
    alone: bool = False
    projects: tuple[str, ...] = ("up", "up")
    purposes: tuple[str, ...] = ("run", "run")
    share: bool = False
    inside: bool = False
    most: int | None = None
    leases: tuple[int, ...] = (1, 1)

    @property
    def as_of(self) -> bool:
        """Whether the table is one whole."""
        return self.kind != BY_TIME

    def written(self, hours: Hours) -> Hours:
        """Which rows an evaluation of some hours may change."""
        return WHOLE if self.as_of else hours


@dataclass
class Holder:
    """A run on paper."""

    project: str
    purpose: str
    expires: datetime
    state: str = "running"


@dataclass
class Paper:
    """One table, hour by hour.

    Attributes:
        setting: Who works on it.
        now: The one clock.
        number: Of the last event that anything is compared with.
        holders: The runs by their letters.
        reserved: Who has claimed an hour.
        begun: Who is writing it, and the number up to which it had read.
        waiting: Until when a late write of somebody to an hour may land.
        unheard: What somebody had begun who was lost, and may be writing still.
        recorded: Who recorded an hour.
        doubts: Why an hour is to be computed again, and the number that an answer must have read.
        failed: Who has said that its evaluation of an hour came to nothing.
        tainted: Whether readers of a whole table may meet rows that nobody has judged.
        batches: Which hours somebody was called for who has begun a whole table.
    """

    setting: Setting
    now: datetime = MOMENTS[0]
    number: int = 0
    holders: dict[str, Holder] = field(default_factory=dict)
    reserved: dict[int, str] = field(default_factory=dict)
    begun: dict[int, tuple[str, int]] = field(default_factory=dict)
    waiting: dict[tuple[str, int], datetime] = field(default_factory=dict)
    unheard: set[tuple[str, int]] = field(default_factory=set)
    recorded: dict[int, str] = field(default_factory=dict)
    doubts: dict[tuple[str, int], int] = field(default_factory=dict)
    failed: set[tuple[str, int]] = field(default_factory=set)
    tainted: bool = False
    batches: dict[str, Hours] = field(default_factory=dict)

    def copy(self) -> Self:
        """The same paper, to go on with in another way."""
        return replace(
            self,
            holders={letter: replace(run) for letter, run in self.holders.items()},
            reserved=dict(self.reserved),
            begun=dict(self.begun),
            waiting=dict(self.waiting),
            unheard=set(self.unheard),
            recorded=dict(self.recorded),
            doubts=dict(self.doubts),
            failed=set(self.failed),
            batches=dict(self.batches),
        )

    def tell(self, who: str, step: Step) -> str:
        """The answer that the rules give to a step, and what they make of it."""
        match step.verb:
            case "break" if step.whom not in self.holders:
                return "no run"
            case "bury" | "break":
                return self.end(step.whom, gone=step.gone, heard=step.verb == "bury")
            case "acquire" | "take_over" | "renew" | "finish" | "mirrored":
                return str(getattr(self, step.verb)(who))
        return str(getattr(self, step.verb)(who, step.hours))

    # What the rules are made of

    def holds(self, who: str) -> bool:
        run = self.holders[who]
        return run.state == "running" and self.now < run.expires

    def doubt(self, kind: str, hours: Hours) -> None:
        self.number += 1
        self.doubts.update(dict.fromkeys(((kind, hour) for hour in self.setting.written(hours)), self.number))
        self.tainted = self.setting.as_of

    def drop(self, who: str, until: datetime, *, heard: bool) -> None:
        """What somebody had begun is in doubt, and waited for; what it had only reserved is free."""
        begun = frozenset(hour for hour, (owner, _) in self.begun.items() if owner == who)
        if begun:
            self.doubt("suspect", begun)
            self.waiting.update(dict.fromkeys(((who, hour) for hour in begun), until))
            self.unheard.update((who, hour) for hour in begun if not heard)
        self.begun = {hour: claim for hour, claim in self.begun.items() if claim[0] != who}
        self.reserved = {hour: owner for hour, owner in self.reserved.items() if owner != who}

    def lose(self, who: str, *, gone: bool, heard: bool = False) -> None:
        run = self.holders[who]
        if run.state == "running":
            run.state = "lost"
            self.drop(who, self.now if gone else run.expires + GRACE, heard=heard)

    def hear_of(self, who: str) -> None:
        """Somebody's last word: until now it may have written what it had begun when it was lost."""
        hours = frozenset(hour for owner, hour in self.unheard if owner == who)
        if hours:
            self.doubt("suspect", hours)
            self.unheard -= {(who, hour) for hour in hours}

    def landed(self, who: str, hours: Hours) -> None:
        """Nothing more comes of what somebody had begun here."""
        for owner, hour in self.waiting:
            if owner == who and hour in hours:
                self.waiting[owner, hour] = min(self.waiting[owner, hour], self.now)

    def late(self, who: str, hours: Hours) -> str:
        """A write without a lease: nothing is recorded, and whatever was read before it is no answer to it."""
        self.lose(who, gone=False)
        self.doubt("suspect", hours)
        self.landed(who, self.setting.written(hours))
        return "lost"

    def in_the_way(self, who: str) -> list[str]:
        n = "ABC".index(who)
        project, purpose = self.setting.projects[n], self.setting.purposes[n]
        found = []
        for letter, run in self.holders.items():
            if run.state != "running":
                continue
            same, shares = run.project == project, self.setting.share and who == "B"
            if purpose == "deploy":
                blocks = run.purpose == "deploy"
            else:
                blocks = same and (run.purpose == "deploy" or not shares)
            found += [letter] if blocks else []
        return found

    # Runs

    def take_over(self, _who: str) -> str:
        for other, run in self.holders.items():
            if self.now >= run.expires:
                self.lose(other, gone=False)
        return "ok"

    def acquire(self, who: str) -> str:
        self.take_over(who)
        if rivals := self.in_the_way(who):
            return f"busy {rivals[0]}"
        n = "ABC".index(who)
        end = self.now + self.setting.leases[n] * TTL
        self.holders[who] = Holder(self.setting.projects[n], self.setting.purposes[n], end)
        return "ok"

    def renew(self, who: str) -> str:
        if not self.holds(who):
            return "lost"
        self.holders[who].expires = self.now + self.setting.leases["ABC".index(who)] * TTL
        return "ok"

    def finish(self, who: str) -> str:
        if self.holds(who):
            self.drop(who, self.now if self.setting.inside else self.now + GRACE, heard=True)
            self.holders[who].state = "done"
        else:
            self.end(who, gone=self.setting.inside, heard=True)
        return self.holders[who].state

    def end(self, who: str, *, gone: bool, heard: bool) -> str:
        """A run that does not hold its lease says that it ends, is proven to be gone, or its lease is broken."""
        if who in self.holders:
            self.lose(who, gone=gone, heard=heard)
            if heard:
                self.hear_of(who)
            if gone:
                self.landed(who, WHOLE)
        return "ok"

    # Claims

    def open(self, who: str, hours: Hours) -> str:
        if not self.holds(who):
            return "lost"
        wanted = WHOLE if self.setting.alone else self.setting.written(hours)
        owners = {self.reserved[hour] for hour in wanted if hour in self.reserved}
        late = {owner for (owner, hour), until in self.waiting.items() if hour in wanted and until > self.now}
        if who not in owners and late:
            return f"refused by {min(late)}"
        if owners - {who}:
            return f"refused by {min(owners - {who})}"
        self.reserved.update(dict.fromkeys(wanted, who))
        return "ok"

    def begin(self, who: str, hours: Hours) -> str:
        if not self.holds(who):
            return "lost"
        if any(self.reserved.get(hour) != who for hour in hours):
            return "no claim"
        working = {owner for owner, _ in self.begun.values() if self.holds(owner)}
        if self.setting.most is not None and who not in working and len(working) >= self.setting.most:
            return "wait"
        again = any(owner == who for owner, _ in self.begun.values())
        self.batches[who] = hours | (self.batches[who] if again else frozenset())
        self.begun.update(dict.fromkeys(self.setting.written(hours), (who, self.number)))
        return "ok"

    def ask(self, _who: str, hours: Hours) -> str:
        """Somebody wants hours computed again: what has been read of them so far, recorded or not."""
        begun = frozenset(hour for hour, (owner, _) in self.begun.items() if hour in self.batches[owner])
        read = hours & (begun | frozenset(self.recorded))
        if not read:
            return "no run"
        self.number += 1
        self.doubts.update(dict.fromkeys((("requested", hour) for hour in read), self.number))
        return "ok"

    def commit(self, who: str, hours: Hours) -> str:
        if not self.holds(who):
            return self.late(who, hours)
        if any(self.begun.get(hour, ("", 0))[0] != who for hour in hours):
            # The answer to an earlier call may have been lost on its way.
            return "ok" if all(self.recorded.get(hour) == who for hour in hours) else "no claim"
        read = min(self.begun[hour][1] for hour in hours)
        self.number += 1
        asked = {hour for (kind, hour), n in self.doubts.items() if kind == "requested" and n <= read}
        if self.setting.as_of and asked and self.recorded:
            # A refresh stamps everything from the first hour on that it was asked to redo.
            first = min(*hours, max(min(asked), min(self.recorded)))
            hours |= frozenset(range(first, max(hours | set(self.recorded)) + 1))
        self.recorded.update(dict.fromkeys(hours, who))
        written = self.setting.written(hours)
        self.doubts = {d: n for d, n in self.doubts.items() if d[1] not in written or n > read}
        self.tainted = self.tainted and any(kind != "requested" for kind, _ in self.doubts)
        self.close(hours, kept=self.setting.as_of)
        return "ok"

    def fail(self, who: str, hours: Hours) -> str:
        if not self.holds(who):
            return self.late(who, hours)
        if any(self.begun.get(hour, ("", 0))[0] != who for hour in hours):
            return "ok" if {(who, hour) for hour in hours} <= self.failed else "no claim"
        self.failed.update((who, hour) for hour in hours)
        self.doubt("failed", hours)
        self.close(hours, kept=False)
        return "ok"

    def give_up(self, who: str, hours: Hours) -> str:
        if not self.holds(who):
            self.late(who, hours)
            return "no"
        if any(self.begun.get(hour, ("", 0))[0] != who for hour in hours):
            return "no"
        self.doubt("suspect", hours)
        # That it failed as well is no news: the doubt is there.
        self.failed.update((who, hour) for hour in hours)
        self.close(hours, kept=False)
        return "ok"

    def close(self, hours: Hours, *, kept: bool) -> None:
        """Nobody writes this any more; `kept`: but it stays reserved for the run's next batch."""
        for hour in self.setting.written(hours):
            del self.begun[hour]
            if not kept:
                del self.reserved[hour]

    def abandon(self, who: str, hours: Hours) -> str:
        idle = {hour for hour, owner in self.reserved.items() if owner == who and hour not in self.begun}
        for hour in idle & self.setting.written(hours):
            del self.reserved[hour]
        return "ok"

    def mirrored(self, _who: str) -> str:
        return "ok"

    # To look at

    def standing(self) -> dict[str, Any]:
        """What can be seen of it."""
        return {
            "runs": {letter: (run.state, run.expires if run.state == "running" else None)
                     for letter, run in self.holders.items()},
            "reserved": self.reserved,
            "begun": {hour: owner for hour, (owner, _) in self.begun.items()},
            "waiting": {key: until for key, until in self.waiting.items() if until > self.now},
            "recorded": self.recorded,
            "doubts": set(self.doubts),
            "tainted": self.tainted,
        }  # fmt: skip

    def essence(self) -> str:
        """What decides of what happens next; numbers by their order alone."""
        numbers = sorted({0, self.number, *(read for _, read in self.begun.values()), *self.doubts.values()})
        rank = {number: n for n, number in enumerate(numbers)}
        return repr((
            rank[self.number],
            sorted((hour, owner, rank[read]) for hour, (owner, read) in self.begun.items()),
            sorted((doubt, rank[number]) for doubt, number in self.doubts.items()),
            sorted((key, until) for key, until in self.waiting.items() if until > self.now), sorted(self.unheard),
            sorted(self.reserved.items()), sorted(self.recorded.items()), sorted(self.standing()["runs"].items()),
            sorted(self.failed), self.tainted,
            sorted((who, sorted(hours)) for who, hours in self.batches.items() if (who in {o for o, _ in self.begun.values()})),
        ))  # fmt: skip
