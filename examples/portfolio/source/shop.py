"""The shop: everything that it writes in five minutes, from the seed and these minutes alone, with the faults that are asked for.

So two runs with one seed write equal rows, whatever the pieces in which they are generated.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from source.people_and_things import SLOT, World, item_rows
from source.sales import DELAYS, Sale, Tills, poisson
from source.tables import CustomerVersion, ItemVersion, LineItem, Refund, Row, Transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from source.faults import Fault

LATEST_SALE = 36
"""How many slots late a sale may be."""
LATEST_ITEM = 72
"""How many slots late a change of an item may be."""
NOBODY = "C999999"
NOTHING = "I99999"
DDL_OF_CHANGE = "alter table shop.transactions add column if not exists loyalty_card text"


class Shop:
    """A shop with its faults.

    Args:
        seed: Equal seeds write equal rows.
        rate: Sales an hour, on average over the first week.
        since: The first instant, UTC; whole five minutes.
        faults: What goes wrong.
    """

    def __init__(self, seed: str, rate: float, since: datetime, faults: Iterable[Fault] = ()) -> None:
        self.world = World(seed, rate, since)
        self.faults = tuple(faults)
        changed = [f.start or since for f in self.faults if f.kind == "schema_change"]
        self.changes_at = min(changed, default=None)
        self._tills = Tills(self.world, self.changes_at)

    def rows(self, start: datetime) -> list[Row]:
        """All that reaches the source in the five minutes from `start` (UTC) on; a row that changes in them comes several times."""
        slot = self.world.slot_of(start)
        if self._out(slot):
            return []
        found: list[Row] = []
        waiting = slot
        while waiting and self._out(waiting - 1):
            waiting -= 1
        for missed in range(waiting, slot):
            # After an outage all of it comes at once, in its order.
            found += (_arriving(row, start, self.world.start_of(waiting)) for row in self._happening(missed))
        return [*found, *self._happening(slot)]

    def orphans_at(self, start: datetime) -> bool:
        """Whether rows of these five minutes may name what does not exist, against the foreign keys."""
        slot = self.world.slot_of(start)
        waiting = slot
        while waiting and self._out(waiting - 1):
            waiting -= 1
        return any(self._share("orphans", number) for number in range(waiting, slot + 1))

    def _share(self, kind: str, slot: int) -> float:
        at = self.world.start_of(slot)
        return max((f.amount for f in self.faults if f.kind == kind and f.at(at)), default=0.0)

    def _out(self, slot: int) -> bool:
        return slot >= 0 and self._share("outage", slot) > 0

    def sales(self, slot: int) -> tuple[Sale, ...]:
        """The sales that happen in a slot, in order, without faults but bursts."""
        times = self._share("burst", slot)
        return self._tills.sales(slot, times) if times else self._tills.sales(slot)

    def _happening(self, slot: int) -> list[Row]:
        """What happens in a slot, whether it reaches the source or not."""
        found: list[Row] = [*self.world.stores(slot), *self.world.register(slot), *self.world.catalogue(slot)]
        found += self._late_items(slot)
        for sale in self.sales(slot):
            found += self._delivered(sale, slot)
        for delay in DELAYS:
            if delay <= slot:
                found += self._tills.aftermath(slot, slot - delay, self.sales(slot - delay))
        found += self._late_sales(slot)
        return found

    def _delivered(self, sale: Sale, slot: int) -> Iterator[Row]:
        """A sale as it reaches the source: perhaps not as it was."""
        dice = self.world.dice("fault", sale.head.transaction_id)
        head, lines = sale.head, list(sale.lines)
        drawn = {
            kind: dice.random() < self._share(kind, slot)
            for kind in ("nulls", "negative", "orphans", "duplicates")
        }
        some = dice.randrange(len(lines))
        either = dice.random() < 0.5
        if drawn["nulls"]:
            if either:
                lines[some] = replace(lines[some], quantity=None)
            else:
                head = replace(head, currency=None)
        if drawn["negative"]:
            lines[some] = replace(lines[some], amount=-max(lines[some].amount, Decimal("0.01")))
        if drawn["orphans"]:
            if either:
                lines[some] = replace(lines[some], item_id=NOTHING)
            else:
                head = replace(head, customer_id=NOBODY)
        yield head
        yield from lines
        if drawn["duplicates"]:
            again = f"{head.transaction_id}-again"
            created, updated = (
                instant + timedelta(milliseconds=1) for instant in (head.created_at, head.updated_at)
            )
            yield replace(head, transaction_id=again, created_at=created, updated_at=updated)
            for line in lines:
                yield replace(line, transaction_id=again, created_at=created, updated_at=updated)

    def _late_sales(self, slot: int) -> Iterator[Row]:
        share = self._share("late", slot)
        if not share:
            return
        dice = self.world.dice("late", slot)
        for position in range(poisson(dice, share * self._tills.volume(slot))):
            sold = slot - dice.randrange(1, LATEST_SALE + 1)
            loaded = self.world.start_of(slot) + timedelta(seconds=dice.randrange(1, 299))
            if sold >= 0:
                sale = self._tills.sale(sold, position, what="L", loaded=loaded)
                yield sale.head
                yield from sale.lines

    def _late_items(self, slot: int) -> Iterator[Row]:
        share = self._share("late_items", slot)
        dice = self.world.dice("late item", slot)
        if dice.random() >= share:
            return
        held = slot - dice.randrange(1, LATEST_ITEM + 1)
        if held < 1:
            return
        index = dice.randrange(self.world.items_at(held - 1))
        since = self.world.start_of(held) + timedelta(seconds=dice.randrange(1, 300), milliseconds=500)
        known = self.world.item_at(index, since)
        price = (known.list_price * Decimal(str(round(dice.uniform(0.8, 1.25), 2)))).quantize(Decimal("0.01"))
        loaded = self.world.start_of(slot) + timedelta(seconds=dice.randrange(1, 299))
        version = replace(known, list_price=price, updated_at=since, loaded_at=loaded)
        yield from item_rows(version, since)


def _arriving(row: Row, at: datetime, since: datetime) -> Row:
    """A row that reaches the source only at `at`, as it was cut off from `since` on: what happened keeps its time, what is noted does not."""
    if isinstance(row, (ItemVersion, CustomerVersion)):
        return replace(row, loaded_at=max(row.loaded_at, at))
    if isinstance(row, (Transaction, LineItem, Refund)):

        def noted(instant: datetime) -> datetime:
            # Of two changes of one row the later one stays the later one; what was noted before the outage was noted.
            return at + (instant - since) / 1_000_000 if since <= instant < at else instant

        return replace(row, created_at=noted(row.created_at), updated_at=noted(row.updated_at))
    return row


def slots(start: datetime, end: datetime) -> Iterator[datetime]:
    """The beginnings of all five minutes in `[start, end)`."""
    while start < end:
        yield start
        start += SLOT
