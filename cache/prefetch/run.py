"""A prefetch: brings what is missing into a tier, many requests at once, and holds what it brought.

Objects stream through: one task reads what is wanted, pins it, and looks whether it is here; what is not becomes
*units* (a small object, or up to 8 MiB of a large one) in a bounded queue, from which `prefetch_requests` workers
take. A unit is a fill like any other, so a reader that wants the same bytes joins it, and the other way round.

Each object is pinned before it is looked at, in the lease that was asked for or, if none was, in one that ends with the
prefetch. So the prefetch cannot evict what it has counted. When the tier is full of what may not be evicted, fetching
more would be in vain: the rest is only looked at, and what is not here is missing for want of room.

It may be cancelled at any moment: what was done stays done and counted (`receipt`), and running it again goes on from
there, because what is present is not fetched again.
"""

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from ...errors import ForebayError, TierError, TierFull
from ...tiers.understore import Buffer
from ...tiers.version import ObjectVersion
from ..block_cache import BlockCache
from ..budget import ByteBudget
from ..fills import Fill
from ..pin_set import PinSet
from ..tier_set import TierName
from .receipt import Receipt
from .target import Pause, Target, Wanted

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.25
# The lease of a prefetch that asked for none: it is removed at its end, and this bounds what a crash leaves behind.
GUARD_LEASE_S = 7 * 24 * 3600.0
# A prefetch takes no more than this of the bytes in flight, so that readers are not kept waiting by it.
BUDGET_SHARE = 0.5
RATE_WEIGHT = 0.3
STOPPED = "the prefetch was stopped before this was done; run it again"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. Totals are None while they are not known; `eta_s` too."""

    objects: int
    size_bytes: int
    total_objects: int | None
    total_bytes: int | None
    fetched_bytes: int
    rate_bytes_s: float
    eta_s: float | None


class _Object:
    """An object on its way: how many of its units are not done, and why one of them failed."""

    __slots__ = ("error", "units_left", "wanted")

    def __init__(self, wanted: Wanted, units: int) -> None:
        self.wanted = wanted
        self.units_left = units
        self.error: ForebayError | None = None


_Unit = tuple[_Object, int, int]


class Prefetch:
    """One prefetch into one tier: `to`, or SSD if there is one, else RAM; then what RAM has counts as present.

    With `lease_s` what it brings stays pinned for that long under `owner`. `progress` is called a few times a second.
    Raises UsageError if there is no such tier.
    """

    def __init__(
        self,
        cache: BlockCache,
        *,
        to: TierName | None = None,
        lease_s: float | None = None,
        owner: str = "",
        purpose: str = "",
        progress: Callable[[Progress], None] | None = None,
        total_objects: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        self._cache = cache
        self._tiers = cache.tiers
        self._target = Target(cache.tiers, to)
        self._lease_s = lease_s
        self._owner = owner
        self._progress = progress
        self._total_objects = total_objects
        self._total_bytes = total_bytes
        self._budget = ByteBudget(max(int(cache.options.max_inflight_bytes * BUDGET_SHARE), 1))
        self._full: TierError | None = None
        self._started_s = 0.0
        self._told_s = 0.0
        self._told_bytes = 0
        self._rate_bytes_s = 0.0
        # Objects with units that are not done: as many as there are units at most.
        self._open: set[_Object] = set()
        self.receipt = Receipt(purpose=purpose)

    async def run(self, wanted: AsyncIterator[Wanted]) -> Receipt:
        """Bring everything in. The receipt says what became of it; `receipt` has it also after a cancellation.

        Errors of single objects are in the receipt. An error of `wanted` itself (a listing that fails) is raised, after
        what had begun is done.
        """
        self._started_s = self._told_s = time.monotonic()
        pins = self._cache.pins
        kept = self._lease_s is not None
        hold = pins.add(
            owner=self._owner or "prefetch",
            lease_s=self._lease_s if self._lease_s is not None else GUARD_LEASE_S,
            purpose=self.receipt.purpose,
            kept=kept,
        )
        try:
            await self._bring_all(wanted, hold)
            self.receipt.ended = True
        finally:
            for state in self._open:
                self.receipt.count_missing(state.wanted.path, state.wanted.version.size, "stopped", STOPPED)
            self._open.clear()
            self.receipt.seconds = time.monotonic() - self._started_s
            if kept:
                await asyncio.to_thread(hold.seal)
                self.receipt.pin = hold.label
            else:
                pins.remove(hold.label.id)
            self._tell(at_once=True)
        return self.receipt

    async def check(self, wanted: AsyncIterator[Wanted]) -> Receipt:
        """What of the wanted is here now, without fetching or holding anything."""
        self._started_s = time.monotonic()
        pause = Pause()
        async for item in wanted:
            self._count_asked(item)
            if self._target.gaps(item.version):
                held = self._tiers.cached(item.version).cached_bytes
                self.receipt.count_missing(
                    item.path, item.version.size, "not_cached", f"{held} of {item.version.size} bytes are here"
                )
            else:
                self._count_present(item.version)
            await pause.now_and_then()
        self.receipt.ended = True
        self.receipt.seconds = time.monotonic() - self._started_s
        return self.receipt

    async def _bring_all(self, wanted: AsyncIterator[Wanted], hold: PinSet) -> None:
        workers = self._cache.options.prefetch_requests
        units: asyncio.Queue[_Unit | None] = asyncio.Queue(2 * workers)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(units))
            try:
                await self._look_at_all(wanted, hold, units)
            except Exception as error:
                failure = error
            for _ in range(workers):
                await units.put(None)
        if failure is not None:
            raise failure

    # --- Looking: one task, in the order of what is wanted. ---

    async def _look_at_all(
        self, wanted: AsyncIterator[Wanted], hold: PinSet, units: asyncio.Queue[_Unit | None]
    ) -> None:
        pause = Pause()
        request_bytes = self._cache.options.request_bytes
        async for item in wanted:
            version = item.version
            self._count_asked(item)
            hold.add(version)
            if hold.merge_due:
                await asyncio.to_thread(hold.merge)
            gaps = self._target.gaps(version)
            if not gaps:
                self.receipt.found_objects += 1
                self.receipt.found_bytes += version.size
                self._count_present(version)
            elif self._full is not None:
                self.receipt.count_missing(item.path, version.size, self._full.kind, str(self._full))
            else:
                parts = [
                    (start, min(request_bytes, offset + size - start))
                    for offset, size in gaps
                    for start in range(offset, offset + size, request_bytes)
                ]
                state = _Object(item, len(parts))
                self._open.add(state)
                for start, length in parts:
                    await units.put((state, start, length))
            self._tell()
            await pause.now_and_then()

    # --- Fetching: many workers. ---

    async def _work(self, units: asyncio.Queue[_Unit | None]) -> None:
        while (unit := await units.get()) is not None:
            state, offset, size = unit
            try:
                if state.error is None:
                    await self._bring(state.wanted.version, offset, size)
            except ForebayError as error:
                state.error = error
                if isinstance(error, TierFull):
                    self._full = error
            except Exception as error:
                log.exception("prefetching %r failed in a way that it should not", state.wanted.path)
                state.error = ForebayError(f"{state.wanted.path} was not prefetched: {type(error).__name__}")
            state.units_left -= 1
            if state.units_left == 0:
                self._open.discard(state)
                self._count_done(state)
                self._tell()

    async def _bring(self, version: ObjectVersion, offset: int, size: int) -> None:
        """Have one unit in the target tier, or raise why not."""
        if self._full is not None:
            raise self._full
        await self._budget.take(size)
        try:
            if not self._target.anywhere and not self._tiers.missing(version, offset, size):
                data = await asyncio.to_thread(self._tiers.read, version, offset, size)
                if data is not None:
                    await self._write(version, offset, data)
                    return
            await self._fetch(version, offset, size)
        finally:
            self._budget.give(size)

    async def _fetch(self, version: ObjectVersion, offset: int, size: int) -> None:
        """Fetch what nobody is fetching, wait for the rest, and see to it that the target tier has all of it."""
        own: list[Fill] = []
        others: list[Fill] = []
        for start, stop, other in self._cache.fills.uncovered(version, offset, offset + size):
            if start < stop:
                own.append(self._cache.fills.start(version, start, stop - start, keep=self._keep))
            if other is not None:
                others.append(other)
        await asyncio.wait([fill.stored for fill in (*own, *others)])
        for fill in own:
            if fill.error is None:
                self.receipt.requests += 1
                self.receipt.fetched_bytes += fill.size
        for fill in (*own, *others):
            if fill.error is not None:
                raise copy.copy(fill.error) from fill.error
        for fill in own:
            if (refusal := fill.stored.result()) is not None:
                raise refusal
        for fill in others:
            assert fill.data is not None
            await self._write(version, fill.offset, fill.data)

    async def _keep(self, version: ObjectVersion, offset: int, data: Buffer) -> TierError | None:
        return await self._cache.writer.write(version, offset, data, self._target.name)

    async def _write(self, version: ObjectVersion, offset: int, data: Buffer) -> None:
        if (refusal := await self._keep(version, offset, data)) is not None:
            raise refusal

    # --- Counting. ---

    def _count_asked(self, item: Wanted) -> None:
        self.receipt.asked_objects += 1
        self.receipt.asked_bytes += item.version.size

    def _count_present(self, version: ObjectVersion) -> None:
        self.receipt.present_objects += 1
        self.receipt.present_bytes += version.size
        self._target.attribute(version, self.receipt.ram, self.receipt.ssd)

    def _count_done(self, state: _Object) -> None:
        """All units of an object are done. It counts as present only if it is: a disk may have failed since."""
        path, version = state.wanted
        if state.error is not None:
            self.receipt.count_missing(path, version.size, state.error.kind, str(state.error))
        elif self._target.gaps(version):
            self.receipt.count_missing(path, version.size, "not_cached", "it was fetched, but the tier lost it")
        else:
            self._count_present(version)

    def _tell(self, *, at_once: bool = False) -> None:
        """Call `progress`, if it is time."""
        now_s = time.monotonic()
        since_s = now_s - self._told_s
        if self._progress is None or (since_s < PROGRESS_INTERVAL_S and not at_once):
            return
        receipt = self.receipt
        if since_s >= PROGRESS_INTERVAL_S:
            rate = (receipt.fetched_bytes - self._told_bytes) / since_s
            self._rate_bytes_s += (rate - self._rate_bytes_s) * (RATE_WEIGHT if self._rate_bytes_s else 1.0)
            self._told_s, self._told_bytes = now_s, receipt.fetched_bytes
        done_bytes = receipt.present_bytes + receipt.missing_bytes
        eta_s = None
        if self._total_bytes is not None and self._rate_bytes_s > 0:
            eta_s = max(self._total_bytes - done_bytes, 0) / self._rate_bytes_s
        self._progress(
            Progress(
                objects=receipt.present_objects + receipt.missing_objects,
                size_bytes=done_bytes,
                total_objects=self._total_objects,
                total_bytes=self._total_bytes,
                fetched_bytes=receipt.fetched_bytes,
                rate_bytes_s=self._rate_bytes_s,
                eta_s=eta_s,
            )
        )
