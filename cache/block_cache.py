"""The read side: bytes of object versions, from RAM, SSD, or the under store, each fetched once.

A read looks, in this order, at: fills in memory (arrived, on their way to a tier), RAM, SSD, and then joins or starts a
fill. `read_cached` does the first three in any thread and answers None for "go through `read`"; `read` runs on the
event loop and does all of it. Around them:

    readahead.py   which bytes a reader will want next          tier_set.py    where bytes live, and move
    fills.py       one fetch per range, served from memory      tier_writer.py tier writes off the loop, in batches
    budget.py      the bound on bytes held outside of tiers     promotion.py   SSD -> RAM of what is hot
    eviction/      who goes when a tier is full                 pins.py        what may not go
    prefetch/      filling tiers before anybody reads           stats.py       what all of it counts

What is fetched: a small object whole; for a reader without a pattern its range, widened to `random_fill_bytes`; for one
that reads on, requests that grow with its window, several at once. A reader is answered when its own range has arrived.
A failed fill marks nothing and is told to all who wait for it; the next ask tries again. What a tier will not take is
served anyway.
"""

import asyncio
import copy
import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from ..errors import StoreError, StoreUnavailable, TierError
from ..tiers.understore import Buffer, UnderStore
from ..tiers.version import CHUNK_BYTES, ObjectVersion, align_to_chunks
from .budget import ByteBudget
from .fills import Fill, Fills
from .options import CacheOptions
from .pins import Pins
from .promotion import Promotion
from .readahead import NEVER, Head, Readers
from .stats import CacheStats
from .tier_set import CachedParts, TierSet
from .tier_writer import TierWriter

log = logging.getLogger(__name__)

Stores = Mapping[str, UnderStore] | Callable[[ObjectVersion], UnderStore]

WRITE_THREADS = 2
READ_THREADS = 4
# A longer read is answered piece by piece, so that no more than this much of it is under way outside of readahead.
PIECE_BYTES = 16 * 1024 * 1024
# How far ahead the disk is told what will be read; the under store is asked further ahead.
DISK_WINDOW_BYTES = 16 * 1024 * 1024
# A read that waits is not made to wait for more than this beside its own range.
WIDEN_BYTES = 1024 * 1024
# What was read ahead stays in memory until its reader is so far beyond it: its requests may change places.
RELEASE_BEHIND_BYTES = 4 * 1024 * 1024
MAINTENANCE_S = 5.0


class BlockCache:
    """Use as an async context manager, or `start` and `close`: it owns its tasks, threads and tiers, not the stores.

    `stores` finds the under store of a version, by the name in `ObjectVersion.store` or by a function.
    """

    def __init__(self, tiers: TierSet, stores: Stores, *, options: CacheOptions | None = None, pins: Pins) -> None:
        self.options = options or CacheOptions()
        self.tiers = tiers
        self.pins = pins
        self._stores = stores
        self._counters = tiers.counters
        self._budget = ByteBudget(self.options.max_inflight_bytes)
        self.fills = Fills(self._fetch, self._keep, self._budget, self._counters)
        self._fills_by_digest = self.fills.by_digest
        self._readers = Readers(self.options.window_bytes, self.options.request_bytes)
        self._ram = tiers.ram
        self._promotion: Promotion | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._maintenance: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start what runs beside the reads. On the event loop on which `read` will be called."""
        self._loop = asyncio.get_running_loop()
        self._write_threads = ThreadPoolExecutor(WRITE_THREADS, "forebay-tier-write")
        self._read_threads = ThreadPoolExecutor(READ_THREADS, "forebay-tier-read")
        self.writer = TierWriter(self.tiers, self._write_threads, WRITE_THREADS)
        if self._ram is not None and self.tiers.ssd:
            self._promotion = Promotion(self.tiers, self._ram, self.options.pending_bytes)
        self._maintenance = self._loop.create_task(self._maintain())

    async def close(self) -> None:
        """End all fills (who waits gets StoreUnavailable), finish tier writes under way, close the tiers."""
        if self._loop is None:
            self.tiers.close()
            return
        self._loop = None
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.wait([self._maintenance])
        await self.fills.close()
        self.writer.close()
        await asyncio.to_thread(self._close_threads)
        self.tiers.close()

    async def __aenter__(self) -> "BlockCache":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- Reading. ---

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int = 0) -> Buffer | None:
        """The bytes of the range, clipped at the object's end, if they are in memory or a tier; else None: `read` them.

        Any thread; blocks on a local disk at most. `reader` is a number that stands for one open stream (0: none) and
        one version: what it reads teaches readahead.
        """
        end = offset + size
        if end > version.size:
            end = version.size
            size = end - offset
        if size <= 0:
            return b""
        counters = self._counters
        if self._fills_by_digest:
            for fill in self._fills_by_digest.get(version.digest, ()):
                if fill.offset < end and offset < fill.end:
                    if fill.data is None or not fill.covers(offset, end):
                        if fill.stored.done():
                            continue  # a tier has been asked to keep it, and has it if it could
                        return None
                    counters.memory_hits += 1
                    counters.memory_bytes += size
                    if reader:
                        self._note(version, reader, offset, end)
                    return fill.slice(offset, end)
        ram = self._ram
        if ram is not None and (data := ram.read(version, offset, size)) is not None:
            counters.ram_hits += 1
            counters.ram_bytes += size
            if reader and not version.is_small:
                self._note(version, reader, offset, end)
            return data
        ssd = self.tiers.ssd_of(version)
        # What is learnt from a read is learnt while the disk works.
        learns = reader and not version.is_small
        note = functools.partial(self._note, version, reader, offset, end) if learns else None
        if ssd is None or (data := ssd.read(version, offset, size, meanwhile=note)) is None:
            return None
        counters.ssd_hits += 1
        counters.ssd_bytes += size
        promotion = self._promotion
        if promotion is not None and (version.is_small or not self._readers.reading_on(reader)):
            promotion.hit(ssd, version, offset, size)
        return data

    async def read(
        self, version: ObjectVersion, offset: int, size: int, *, reader: int = 0, timeout_s: float | None = None
    ) -> Buffer:
        """The bytes of the range, clipped at the object's end, fetched if need be.

        Raises StoreUnavailable after `timeout_s` (the option of that name if not given) or when the store does, and the
        other StoreErrors as the under store raises them. Cancelling is safe; what others wait for goes on.
        """
        end = min(offset + size, version.size)
        if end <= offset:
            return b""
        loop = asyncio.get_running_loop()
        timeout_s = self.options.timeout_s if timeout_s is None else timeout_s
        deadline_s = loop.time() + timeout_s
        if end - offset <= PIECE_BYTES:
            return await self._read_piece(version, offset, end, reader, deadline_s)
        whole = bytearray(end - offset)
        for start in range(offset, end, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, end)
            whole[start - offset : stop - offset] = await self._read_piece(version, start, stop, reader, deadline_s)
        return whole

    def forget_reader(self, reader: int) -> None:
        """The stream is closed: what was learnt about it goes. Any thread."""
        self._readers.forget(reader)

    # --- Seeing. ---

    def cached(self, version: ObjectVersion) -> CachedParts:
        """How much of a version is here, by tier. For people and receipts: it walks the blocks."""
        return self.tiers.cached(version)

    def stats(self) -> CacheStats:
        """All counters and gauges at this moment."""
        counters = dict(vars(self._counters))
        counters["errors"] = dict(self._counters.errors)
        counters["readahead_wasted_bytes"] = self._readers.wasted_bytes
        return CacheStats(
            **counters,
            fills_in_flight=self.fills.in_flight,
            inflight_bytes=self._budget.taken_bytes,
            readers=len(self._readers),
            pending_promotion_bytes=self._promotion.pending_bytes if self._promotion else 0,
            pins=len(self.pins.list()),
            pinned_bytes=self.pins.pinned_bytes,
            tiers=tuple(tier.stats() for tier in (self._ram, *self.tiers.ssd) if tier is not None),
        )

    # --- A read that may have to fetch. ---

    async def _read_piece(
        self, version: ObjectVersion, offset: int, end: int, reader: int, deadline_s: float
    ) -> Buffer:
        head = self._readers.note(reader, offset, end) if reader and not version.is_small else None
        data = await self._gather(version, offset, end, reader, head, deadline_s, use_tiers=True)
        if data is None:
            # Evicted or found corrupt between looking and reading. This time nothing depends on a tier.
            data = await self._gather(version, offset, end, reader, None, deadline_s, use_tiers=False)
        assert data is not None
        return data

    async def _gather(
        self,
        version: ObjectVersion,
        offset: int,
        end: int,
        reader: int,
        head: Head | None,
        deadline_s: float,
        *,
        use_tiers: bool,
    ) -> Buffer | None:
        """The bytes from fills and tiers together; None if a tier did not have what it said it had."""
        gaps = self._missing(version, offset, end, use_tiers=use_tiers)
        fills: list[Fill] = []
        for gap_offset, gap_end in gaps:
            fills += self._fetch_gap(version, *self._widen(version, gap_offset, gap_end, reader), use_tiers=use_tiers)
        if head is not None:
            self._advance(version, reader, head)
        fills = sorted((f for f in fills if f.offset < end and offset < f.end), key=lambda f: f.offset)
        if not fills:
            data = await self._read_tiers(version, offset, end)
            if data is not None:
                self._counters.tier_hits += 1
                self._counters.tier_bytes += end - offset
            return data
        self._counters.misses += 1
        self._counters.missed_bytes += end - offset
        await self._wait(version, fills, deadline_s)
        if fills[0].covers(offset, end):
            return fills[0].slice(offset, end)
        parts: list[Buffer] = []
        position = offset
        for fill in fills:
            if fill.offset > position:
                data = await self._read_tiers(version, position, fill.offset)
                if data is None:
                    return None
                parts.append(data)
                position = fill.offset
            stop = min(fill.end, end)
            parts.append(fill.slice(position, stop))
            position = stop
        if position < end:
            data = await self._read_tiers(version, position, end)
            if data is None:
                return None
            parts.append(data)
        return b"".join(parts)

    def _missing(self, version: ObjectVersion, offset: int, end: int, *, use_tiers: bool) -> list[tuple[int, int]]:
        """Chunk-aligned (offset, end) ranges that no tier has; everything, if tiers are not to be used."""
        if use_tiers:
            gaps = self.tiers.missing(version, offset, end - offset)
        elif version.is_small:
            gaps = [(0, version.size)]
        else:
            gaps = [align_to_chunks(offset, end - offset, version.size)]
        return [(gap_offset, gap_offset + gap_size) for gap_offset, gap_size in gaps]

    def _widen(self, version: ObjectVersion, offset: int, end: int, reader: int) -> tuple[int, int]:
        """What to fetch for a gap: never less than one unit of random reading, a little more for who reads on."""
        if version.is_small:
            return 0, version.size
        if reader and self._readers.reading_on(reader):
            return offset, min(max(end, offset + WIDEN_BYTES), version.size)
        unit = self.options.random_fill_bytes
        return offset // unit * unit, min(-(-end // unit) * unit, version.size)

    def _fetch_gap(self, version: ObjectVersion, offset: int, end: int, *, use_tiers: bool) -> list[Fill]:
        """Fills that together cover what is missing of a range: those under way, and new ones for the rest."""
        found: list[Fill] = []
        for gap_offset, gap_end in self._missing(version, offset, end, use_tiers=use_tiers):
            for start, stop, fill in self.fills.uncovered(version, gap_offset, gap_end):
                if fill is not None:
                    self._counters.joined += 1
                    found.append(fill)
                for position in range(start, stop, self.options.request_bytes):
                    size = min(self.options.request_bytes, stop - position)
                    found.append(self.fills.start(version, position, size))
        return found

    async def _wait(self, version: ObjectVersion, fills: list[Fill], deadline_s: float) -> None:
        """Until all have arrived. Raises the error of one that failed, or StoreUnavailable at the deadline."""
        pending = [fill.done for fill in fills if not fill.done.done()]
        if pending:
            left_s = deadline_s - asyncio.get_running_loop().time()
            _, late = await asyncio.wait(pending, timeout=max(left_s, 0.0))
            if late:
                raise StoreUnavailable(
                    f"{version.key} at byte {fills[0].offset} did not arrive in time from {version.store}",
                    remedy="the fetch goes on, a later read may find it",
                )
        for fill in fills:
            if fill.error is not None:
                # Each asker raises an exception of its own: one object would collect the tracebacks of all.
                raise copy.copy(fill.error) from fill.error

    async def _read_tiers(self, version: ObjectVersion, offset: int, end: int) -> Buffer | None:
        size = end - offset
        if self._ram is not None and (data := self._ram.read(version, offset, size)) is not None:
            return data
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_threads, self._read_mixed, version, offset, size)

    def _read_mixed(self, version: ObjectVersion, offset: int, size: int) -> Buffer | None:
        """From one tier, or chunk by chunk from whichever tier has it."""
        data = self.tiers.read(version, offset, size)
        if data is not None or version.is_small:
            return data
        parts: list[Buffer] = []
        end = offset + size
        while offset < end:
            stop = min((offset // CHUNK_BYTES + 1) * CHUNK_BYTES, end)
            part = self.tiers.read(version, offset, stop - offset)
            if part is None:
                return None
            parts.append(part)
            offset = stop
        return b"".join(parts)

    # --- Reading ahead. ---

    def _note(self, version: ObjectVersion, reader: int, offset: int, end: int) -> None:
        """Tell readahead of a read that was answered; if it is time, the loop does what follows from it."""
        head = self._readers.note(reader, offset, end)
        if head is not None and self._loop is not None:
            head.trigger = NEVER  # until it is armed again, this thread and others leave it alone
            try:
                self._loop.call_soon_threadsafe(self._advance, version, reader, head)
            except RuntimeError:
                log.debug("no readahead: the event loop is closed")

    def _advance(self, version: ObjectVersion, reader: int, head: Head) -> None:
        """Bring the window of a head to where it should be: ask the under store, or tell the disk. On the loop."""
        passed = head.front if head.front >= version.size else head.front - RELEASE_BEHIND_BYTES
        self.fills.release_behind(version, passed)
        window = self._readers.window(reader, head)
        if window and self._loop is not None:
            request_bytes = self._readers.request_size(window)
            target = min(head.front + window, version.size)
            position = max(head.ahead_end, head.front) // CHUNK_BYTES * CHUNK_BYTES
            while position < target:
                stop = min((position // request_bytes + 1) * request_bytes, version.size)
                if stop > target and position > head.front:
                    break
                if not self._fetch_ahead(version, head, position, stop):
                    break
                position = stop
            head.ahead_end = max(position, head.ahead_end)
        self._readers.arm(reader, head, version.size)

    def _fetch_ahead(self, version: ObjectVersion, head: Head, offset: int, end: int) -> bool:
        """Have [offset, end) on its way; False if it is not time, or there is no room, for all of it."""
        gaps = self._missing(version, offset, end, use_tiers=True)
        if sum(gap_end - gap_offset for gap_offset, gap_end in gaps) < end - offset:
            ssd = self.tiers.ssd_of(version)
            if offset > head.front + DISK_WINDOW_BYTES:
                return False
            if ssd is not None:
                self._read_threads.submit(ssd.readahead, version, offset, end - offset)
        for gap_offset, gap_end in gaps:
            for start, stop, _ in self.fills.uncovered(version, gap_offset, gap_end):
                if start < stop:
                    if self.fills.start_ahead(version, start, stop - start) is None:
                        return False
                    head.ahead_bytes += stop - start
                    self._counters.readahead_bytes += stop - start
        return True

    # --- What fills and maintenance need. ---

    async def _fetch(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        return await self.store_of(version).get_range(version, offset, size)

    async def _keep(self, version: ObjectVersion, offset: int, data: Buffer) -> TierError | None:
        return await self.writer.write(version, offset, data)

    def store_of(self, version: ObjectVersion) -> UnderStore:
        """The under store of a version. Raises StoreError if there is none of that name."""
        if callable(self._stores):
            return self._stores(version)
        try:
            return self._stores[version.store]
        except KeyError:
            raise StoreError(f"there is no under store {version.store} for {version.key}") from None

    async def _maintain(self) -> None:
        """Let ended pins go, and try tiers that are out of service (nobody reads them, so nobody else would)."""
        while True:
            await asyncio.sleep(MAINTENANCE_S)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._read_threads, self.pins.sweep)
            for tier in (self._ram, *self.tiers.ssd):
                if tier is not None and not tier.in_service:
                    await loop.run_in_executor(self._read_threads, tier.probe)

    def _close_threads(self) -> None:
        if self._promotion is not None:
            self._promotion.close()
        self._write_threads.shutdown(wait=True)
        self._read_threads.shutdown(wait=True, cancel_futures=True)
