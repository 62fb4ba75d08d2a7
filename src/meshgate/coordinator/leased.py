"""A run or a deploy of one project, from its lease to its end."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from meshgate.lease import LeaseKeeper, identify
from meshgate.ledger import BackOff, Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from meshgate.config import ProjectConfig
    from meshgate.coordinator.run import Workbench
    from meshgate.ledger import Lease


@contextmanager
def leased(
    bench: Workbench,
    project: ProjectConfig,
    environment: str,
    purpose: str,
    now: datetime | None,
    *,
    engine_in_process: bool,
    warehouse: str,
    share: bool = False,
    on_lost: Callable[[], None] | None = None,
) -> Iterator[tuple[Lease, LeaseKeeper] | Busy]:
    """A lease that is kept alive while the block runs, or the run that is in the way. The block finishes the run.

    `warehouse`: what its batches are counted against. `on_lost`: called, from another thread, when the lease is lost.
    """
    settings = bench.config.ledger
    bench.bury_the_gone()
    asked_at = LeaseKeeper.now()
    answer = bench.ledger.acquire(
        project.name, environment, purpose, identify(engine_in_process=engine_in_process),
        ttl=timedelta(seconds=settings.lease_ttl_s), grace=timedelta(seconds=settings.grace_s), as_of=now,
        share=share, warehouse=warehouse, back_off=BackOff(project.retry_first, project.retry_longest),
    )  # fmt: skip
    if isinstance(answer, Busy):
        yield answer
        return

    def end() -> None:
        # Its thread may still write until the process is gone; then whoever can prove that need not wait.
        bench.ledger.finish(answer.run_id, "stopped", {}, f"ended by {bench.stop.reason}", writing=True)

    # Whoever waits for an answer of a ledger that has fallen silent must learn that the lease is over.
    cut = bench.ledger.database.cut
    with (
        LeaseKeeper(bench.ledger, answer, asked_at, on_lost, on_expired=cut) as keeper,
        bench.stop.ending(end),
    ):
        yield answer, keeper
