"""Who buys and what is sold: stores, customers and items, each a function of the seed and of time alone.

Time is counted in slots of five minutes since the shop began. Whether a customer or an item changes is decided in its own slots only, one a
week for a customer and two a day for an item; so what holds at some time is found by going back through these, and nothing is remembered.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from source.tables import Customer, CustomerVersion, Item, ItemVersion, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT = timedelta(minutes=5)
SLOTS_PER_DAY = 288
SLOTS_PER_WEEK = 7 * SLOTS_PER_DAY
GROWTH_PER_WEEK = 1.02

CENT = Decimal("0.01")
CUSTOMERS_AT_FIRST = 200
ITEMS_AT_FIRST = 60
NEW_CUSTOMERS_PER_SALE = 0.04
SLOTS_PER_NEW_ITEM = SLOTS_PER_DAY
CUSTOMER_CHANGES = 0.15
ITEM_CHANGES = 0.2
_ITEM_TURN = SLOTS_PER_DAY // 2
# Coprime to the length of a turn: so every customer, and every item, has a slot of its own in it.
_STEP = 1103

PLACES = (
    ("Web", "Berlin", "DE", "EUR", 0),
    ("Mitte", "Berlin", "DE", "EUR", 0),
    ("Hafen", "Hamburg", "DE", "EUR", 0),
    ("Marais", "Paris", "FR", "EUR", 0),
    ("Soho", "London", "GB", "GBP", 0),
    ("Lavapiés", "Madrid", "ES", "EUR", 2),
    ("Jordaan", "Amsterdam", "NL", "EUR", 5),
)
CITIES = (
    *(
        ("Berlin", "DE"),
        ("Hamburg", "DE"),
        ("Leipzig", "DE"),
        ("Paris", "FR"),
        ("Lyon", "FR"),
        ("London", "GB"),
    ),
    *(("Leeds", "GB"), ("Madrid", "ES"), ("Sevilla", "ES"), ("Amsterdam", "NL"), ("Utrecht", "NL")),
)
SEGMENTS = ("consumer", "consumer", "consumer", "business", "school")
FIRST_NAMES = (
    *(
        "Ada",
        "Bruno",
        "Chidi",
        "Dalia",
        "Edith",
        "Farid",
        "Greta",
        "Hugo",
        "Ines",
        "Jonas",
        "Keiko",
        "Lena",
        "Mila",
        "Noor",
    ),
    *("Otis", "Pia", "Quinn", "Rosa", "Sami", "Tara"),
)
LAST_NAMES = (
    *(
        "Abel",
        "Borg",
        "Castro",
        "Dietz",
        "Evans",
        "Faber",
        "Grau",
        "Horvat",
        "Iden",
        "Jansen",
        "Kaya",
        "Lund",
        "Moreau",
    ),
    *("Novak", "Okoye", "Petit", "Quist", "Rossi", "Silva", "Tran"),
)
CATEGORIES = ("books", "coffee", "garden", "kitchen", "stationery", "toys")
NOUNS = (
    "Atlas",
    "Beaker",
    "Compass",
    "Easel",
    "Kettle",
    "Lantern",
    "Ledger",
    "Mortar",
    "Pruner",
    "Quill",
    "Spinner",
    "Tray",
)
ADJECTIVES = (
    "bright",
    "compact",
    "enamelled",
    "folding",
    "hand-made",
    "light",
    "oiled",
    "plain",
    "sturdy",
    "tall",
)


@dataclass(frozen=True)
class World:
    """A shop's people and things.

    Attributes:
        seed: Equal seeds make equal worlds.
        rate: Sales an hour, on average over the first week.
        since: The first instant, UTC.
    """

    seed: str
    rate: float
    since: datetime

    def start_of(self, slot: int) -> datetime:
        """When a slot begins, UTC."""
        return self.since + slot * SLOT

    def slot_of(self, instant: datetime) -> int:
        """The slot that holds an instant."""
        return (instant - self.since) // SLOT

    def dice(self, *about: object) -> random.Random:
        """Dice that always fall alike for the same matter."""
        return random.Random("/".join(map(str, (self.seed, *about))))

    # Stores

    def stores(self, slot: int) -> Iterator[Store]:
        """The stores that open in a slot."""
        for number, (name, city, country, currency, week) in enumerate(PLACES):
            if slot == week * SLOTS_PER_WEEK:
                at = self.start_of(slot)
                yield Store(f"S{number}", name, city, country, currency, at, at)

    def open_stores(self, slot: int) -> int:
        """How many are open: they are numbered in the order in which they open."""
        return sum(week * SLOTS_PER_WEEK <= slot for *_, week in PLACES)

    # Customers

    def customers_at(self, slot: int) -> int:
        """How many customers there are when a slot is over; they are numbered in the order in which they came."""
        growth = math.log(GROWTH_PER_WEEK) / SLOTS_PER_WEEK
        so_far = (math.exp(growth * slot) - 1) / growth
        return CUSTOMERS_AT_FIRST + int(self.rate / 12 * NEW_CUSTOMERS_PER_SALE * so_far)

    def register(self, slot: int) -> Iterator[Customer | CustomerVersion]:
        """Customers who come, and who change, in a slot."""
        known = self.customers_at(slot - 1) if slot else 0
        for index in range(known, self.customers_at(slot)):
            yield from self._customer(index, slot, slot)
        for index in _turn_of(slot, SLOTS_PER_WEEK, known):
            born = self._customer_born(index)
            if slot > born and self._changes("customer", index, slot, CUSTOMER_CHANGES):
                yield from self._customer(index, slot, born)

    def _customer(self, index: int, slot: int, born: int) -> Iterator[Customer | CustomerVersion]:
        first = self.dice("customer", index)
        given, family = first.choice(FIRST_NAMES), first.choice(LAST_NAMES)
        first.random()
        now = first if slot == born else self.dice("customer", index, slot)
        # A move changes where, and sometimes what sort of customer; the name stays.
        city, country = now.choice(CITIES)
        segment = self.dice("segment", index, 0 if slot == born or now.random() < 0.7 else slot).choice(
            SEGMENTS
        )
        at = self.start_of(slot) + _within(self.dice("customer at", index, slot), slot)
        created = self.start_of(born) + _within(self.dice("customer at", index, born), born)
        mail = f"{given}.{family}.{index}@{country.lower()}.example".lower()
        yield Customer(f"C{index:06}", f"{given} {family}", mail, city, country, segment, created, at)
        yield CustomerVersion(f"C{index:06}", f"{given} {family}", mail, city, country, segment, at, at)

    def _customer_born(self, index: int) -> int:
        if index < self.customers_at(0):
            return 0
        low, high = 0, 1
        while self.customers_at(high) <= index:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.customers_at(middle) <= index else (low, middle)
        return high

    # Items

    def items_at(self, slot: int) -> int:
        """How many items the catalogue has when a slot is over."""
        return ITEMS_AT_FIRST + slot // SLOTS_PER_NEW_ITEM

    def catalogue(self, slot: int) -> Iterator[Item | ItemVersion]:
        """Items that come, and that change, in a slot."""
        known = self.items_at(slot - 1) if slot else 0
        for index in range(known, self.items_at(slot)):
            yield from self._item(index, slot)
        for index in _turn_of(slot, _ITEM_TURN, known):
            if slot > _item_born(index) and self._changes("item", index, slot, ITEM_CHANGES):
                yield from self._item(index, slot)

    def _item(self, index: int, slot: int) -> Iterator[Item | ItemVersion]:
        born = _item_born(index)
        version = self.version_of_item(index, slot)
        created = self.start_of(born) + _within(self.dice("item at", index, born), born)
        yield from item_rows(version, created)

    def item_at(self, index: int, instant: datetime) -> ItemVersion:
        """An item as it is at an instant (UTC), going by what was entered in time."""
        slot = self.slot_of(instant)
        born = _item_born(index)
        for own in range(_last_turn(index, slot, _ITEM_TURN), born, -_ITEM_TURN):
            if self._changes("item", index, own, ITEM_CHANGES):
                version = self.version_of_item(index, own)
                if version.updated_at <= instant:
                    return version
        return self.version_of_item(index, born)

    @lru_cache(maxsize=20_000)  # noqa: B019 - there is one world in a process
    def version_of_item(self, index: int, slot: int) -> ItemVersion:
        """The version of an item that begins in a slot in which it comes or changes."""
        first, now = self.dice("item", index), self.dice("item", index, slot)
        base = Decimal(first.randrange(300, 9_500)) / 100
        inflation = Decimal(str(round(1 + 0.0005 * slot / SLOTS_PER_DAY, 4)))
        price = (base * inflation * Decimal(str(round(now.uniform(0.85, 1.2), 2)))).quantize(
            CENT, ROUND_HALF_UP
        )
        usual = CATEGORIES[index % len(CATEGORIES)]
        noun = NOUNS[index % len(NOUNS)]
        at = self.start_of(slot) + _within(self.dice("item at", index, slot), slot)
        return ItemVersion(
            item_id=f"I{index:05}",
            name=f"{noun} {index // len(NOUNS) + 1}",
            description=f"{now.choice(ADJECTIVES)} {noun.lower()}, {now.choice(ADJECTIVES)}",
            category=now.choice(CATEGORIES) if now.random() < 0.1 else usual,
            list_price=price,
            updated_at=at,
            loaded_at=at,
        )

    @lru_cache(maxsize=100_000)  # noqa: B019 - there is one world in a process
    def _changes(self, what: str, index: int, slot: int, share: float) -> bool:
        return self.dice(what, "changes", index, slot).random() < share


def item_rows(version: ItemVersion, created: datetime) -> Iterator[Item | ItemVersion]:
    """A version, and the item as it is with it."""
    yield Item(
        version.item_id, version.name, version.description, version.category, version.list_price, created, version.updated_at
    )  # fmt: skip
    yield version


def _item_born(index: int) -> int:
    return max(0, index - ITEMS_AT_FIRST + 1) * SLOTS_PER_NEW_ITEM


def _within(dice: random.Random, slot: int) -> timedelta:
    """Some whole second of a slot; of the very first, its beginning: what is sold there has to be there."""
    return timedelta(seconds=dice.randrange(1, 300) if slot else 0)


def _turn_of(slot: int, turn: int, count: int) -> range:
    """Whose turn it is in a slot, of so many."""
    return range(slot * pow(_STEP, -1, turn) % turn, count, turn)


def _last_turn(index: int, slot: int, turn: int) -> int:
    """The last slot up to this one that is the turn of a thing."""
    return slot - (slot - index * _STEP) % turn
