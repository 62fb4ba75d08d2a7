"""What is sold: receipts with their lines, and what becomes of them later."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from source.people_and_things import CENT, GROWTH_PER_WEEK, PLACES, SLOTS_PER_WEEK, World
from source.tables import CardTransaction, LineItem, Refund, Row, Transaction

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

HOURS = (
    *(0.15, 0.10, 0.07, 0.05, 0.05, 0.10, 0.25, 0.55, 0.90, 1.15, 1.35, 1.55),
    *(1.80, 1.60, 1.45, 1.50, 1.65, 1.95, 2.10, 1.85, 1.45, 1.05, 0.65, 0.35),
)
"""How busy each hour of a day is; UTC, as are all times here."""
DAYS = (0.85, 0.90, 0.95, 1.00, 1.20, 1.35, 0.75)
"""How busy each day of a week is, from Monday on."""
_SHAPE = sum(HOURS) / len(HOURS)

Fate = Literal["kept", "corrected", "refunded", "cancelled"]
FATES: tuple[tuple[Fate, float, tuple[int, ...]], ...] = (
    ("corrected", 0.02, (12, 36)),
    ("refunded", 0.03, (36, 288, 864)),
    ("cancelled", 0.01, (1, 12)),
)
"""What may become of a sale, how often, and how many slots later."""
DELAYS = tuple(sorted({delay for _, _, delays in FATES for delay in delays}))
REASONS = ("broken", "not as described", "unwanted gift", "wrong item")


@dataclass(frozen=True)
class Sale:
    """A receipt with its lines, and its fate."""

    head: Transaction
    lines: tuple[LineItem, ...]
    fate: Fate = "kept"
    after: int = 0


class Tills:
    """Sells.

    Args:
        world: Who buys and what there is.
        cards_since: From when on receipts name a loyalty card, UTC; None: never.
    """

    def __init__(self, world: World, cards_since: datetime | None = None) -> None:
        self.world = world
        self._cards_since = cards_since
        # What happens to sales later goes back to them; the cache holds a little more than the longest delay.
        self.sales = lru_cache(maxsize=DELAYS[-1] + 100)(self._sales)

    def volume(self, slot: int) -> float:
        """How many sales a slot has on average."""
        at = self.world.start_of(slot)
        hour = at.hour + at.minute / 60
        low, share = int(hour), hour - int(hour)
        of_day = (HOURS[low] * (1 - share) + HOURS[(low + 1) % 24] * share) / _SHAPE
        growth: float = GROWTH_PER_WEEK ** (slot / SLOTS_PER_WEEK)
        return self.world.rate / 12 * of_day * DAYS[at.weekday()] * growth

    def _sales(self, slot: int, times: float = 1.0) -> tuple[Sale, ...]:
        count = poisson(self.world.dice("volume", slot), self.volume(slot) * times)
        return tuple(self.sale(slot, position) for position in range(count))

    def sale(self, slot: int, position: int, *, what: str = "T", loaded: datetime | None = None) -> Sale:
        """One sale.

        Args:
            slot: When it happens.
            position: Which one of the slot.
            what: How its id begins.
            loaded: When it reaches the source, UTC; by default some seconds after it happened.
        """
        world = self.world
        dice = world.dice("sale", what, slot, position, loaded)
        at = world.start_of(slot)
        occurred = at + timedelta(milliseconds=dice.randrange(1_000, 299_000))
        created = loaded or min(
            occurred + timedelta(milliseconds=dice.randrange(200, 5_000)),
            at + timedelta(milliseconds=299_999),
        )
        number = self._buyer(dice, slot)
        store = self._store(dice, slot, number)
        identity = f"{what}{at:%y%m%d%H%M}-{position:04}" + (f"-{loaded:%y%m%d%H%M}" if loaded else "")
        lines = tuple(
            self._line(dice, identity, line_no, slot, occurred, created, number)
            for line_no in range(1, dice.choice((1, 1, 1, 2, 2, 3, 4)) + 1)
        )
        head = Transaction(
            transaction_id=identity,
            receipt_no=f"S{store}/{at:%Y%m%d}/{identity}",
            store_id=f"S{store}",
            customer_id=None if number is None else f"C{number:06}",
            channel="web" if store == 0 else "store",
            currency=PLACES[store][3],
            status="completed",
            occurred_at=occurred,
            created_at=created,
            updated_at=created,
        )
        if self._cards_since is not None and occurred >= self._cards_since:
            card = None if number is None or dice.random() < 0.4 else f"L{number:06}"
            head = CardTransaction(**vars(head), loyalty_card=card)
        fate, after = _fate(dice)
        return Sale(head, lines, fate, after)

    def _buyer(self, dice: random.Random, slot: int) -> int | None:
        """Who: one in four says no name; who came early comes most often."""
        if dice.random() < 0.25:
            return None
        known = self.world.customers_at(slot - 1) if slot else self.world.customers_at(0)
        return int(known * dice.random() ** 1.8)

    def _store(self, dice: random.Random, slot: int, number: int | None) -> int:
        count = self.world.open_stores(slot)
        if number is None or dice.random() < 0.2:
            return dice.randrange(1 if number is None else 0, count)
        return self.world.dice("usual store", number).randrange(count)

    def _line(
        self, dice: random.Random, identity: str, line_no: int, slot: int, occurred: datetime, created: datetime, number: int | None
    ) -> LineItem:  # fmt: skip
        count = self.world.items_at(slot - 1) if slot else self.world.items_at(0)
        item = int(count * dice.random() ** 1.3)
        if number is not None and dice.random() < 0.3:
            item = self.world.dice("usual item", number, dice.randrange(3)).randrange(count)
        version = self.world.item_at(item, occurred)
        quantity = dice.choice((1, 1, 1, 1, 2, 2, 3, 5))
        discount = Decimal(dice.choice(("0.00", "0.00", "0.00", "0.05", "0.10")))
        return LineItem(
            transaction_id=identity,
            line_no=line_no,
            item_id=version.item_id,
            quantity=quantity,
            unit_price=version.list_price,
            discount=discount,
            amount=paid(version.list_price, quantity, discount),
            occurred_at=occurred,
            created_at=created,
            updated_at=created,
        )

    def aftermath(self, slot: int, sold: int, sales: Iterable[Sale]) -> Iterator[Row]:
        """What becomes, in a slot, of the sales of an earlier one."""
        for sale in sales:
            if sale.fate != "kept" and sold + sale.after == slot:
                dice = self.world.dice("fate", sale.head.transaction_id)
                at = self.world.start_of(slot) + timedelta(seconds=dice.randrange(1, 299))
                yield from _fulfilled(sale, at, dice)


def paid(price: Decimal, quantity: int, discount: Decimal) -> Decimal:
    """What a line costs."""
    return (price * quantity * (1 - discount)).quantize(CENT, ROUND_HALF_UP)


def poisson(dice: random.Random, mean: float) -> int:
    """How often something happens that happens so often on average."""
    if mean > 200:
        return max(0, round(dice.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        count += 1
        product *= dice.random()
    return count


def _fate(dice: random.Random) -> tuple[Fate, int]:
    drawn = dice.random()
    for fate, share, delays in FATES:
        if drawn < share:
            return fate, dice.choice(delays)
        drawn -= share
    return "kept", 0


def _fulfilled(sale: Sale, at: datetime, dice: random.Random) -> Iterator[Row]:
    line = dice.choice(sale.lines)
    if sale.fate == "cancelled":
        yield replace(sale.head, status="cancelled", updated_at=at)
    elif sale.fate == "corrected" and line.quantity is not None:
        quantity = line.quantity + 1 if line.quantity == 1 or dice.random() < 0.5 else line.quantity - 1
        amount = paid(line.unit_price, quantity, line.discount)
        yield replace(line, quantity=quantity, amount=amount, updated_at=at)
        yield replace(sale.head, updated_at=at)
    elif sale.fate == "refunded" and line.quantity is not None:
        quantity = dice.randrange(1, line.quantity + 1)
        yield Refund(
            refund_id=f"R-{line.transaction_id}-{line.line_no}",
            transaction_id=line.transaction_id,
            line_no=line.line_no,
            quantity=quantity,
            amount=paid(line.unit_price, quantity, line.discount),
            reason=dice.choice(REASONS),
            refunded_at=at,
            created_at=at,
            updated_at=at,
        )
        yield replace(sale.head, status="refunded", updated_at=at)
