"""What the histories of a ledger are drawn from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from ledger_paper import GRID, Asked, Cells, Claim
from ledger_scene import TTL

KINDS = (
    *("incremental_by_time_range", "incremental_by_time_range", "full"),
    *("incremental_by_unique_key", "incremental_unmanaged"),
)
LIMITS = st.sampled_from(
    [(None, None), (None, None), (None, None), (1, None), (None, 1), (2, None), (None, 2), (1, 2)]
)


@st.composite
def stretches(draw: st.DrawFn, within: Cells = GRID) -> Cells:
    """Some neighbouring cells; often one or two."""
    low, high = min(within), max(within)
    start = draw(st.integers(low, high))
    return frozenset(range(start, draw(st.integers(start, min(high, start + 3))) + 1))


@st.composite
def wishes(draw: st.DrawFn) -> Asked:
    """What a new run may be asked for; most are ordinary."""
    deploy = draw(st.integers(0, 4)) == 0
    return asked(
        project=draw(st.sampled_from(["up", "down"])),
        environment="dev" if draw(st.integers(0, 7)) == 0 else "prod",
        purpose="deploy" if deploy else "run",
        share=draw(st.booleans()),
        warehouse=draw(st.sampled_from(["default", "default", "small"])),
        ttl=draw(st.sampled_from([TTL, 10 * TTL])),
        engine_in_process=draw(st.booleans()),
        first=timedelta(seconds=draw(st.sampled_from([0, 20]))),
        longest=timedelta(seconds=draw(st.sampled_from([30, 3600]))),
    )


def asked(*, ttl: timedelta, engine_in_process: bool = False, **more: Any) -> Asked:
    pauses = {"first": timedelta(minutes=1), "longest": timedelta(hours=1)}
    return Asked(ttl=ttl, grace=ttl, engine_in_process=engine_in_process, **{**pauses, **more})


def part_of(data: st.DataObject, claim: Claim) -> Cells:
    """What a run works on next of something that it holds."""
    within = (claim.begun or claim.cells) & GRID
    ends = within == claim.cells or claim.begun
    return within if ends and within != GRID else data.draw(stretches(within), label="cells")
