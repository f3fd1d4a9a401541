"""Fills: bytes on their way from the under store into a tier, each range once, however many ask for it.

    start -> (room in the budget) -> get_range -> arrived: all askers are answered -> tier write -> gone
                                        \\-> failed: all askers get the error, nothing is marked, the next ask tries anew

Answers do not wait for the tier: between *arrived* and *gone* the bytes are served from memory, to any thread. Two
kinds stay in memory for a while after the tier was asked, and are given up when their reader has passed, or their room
is needed: what no tier takes (full of pins, failing, none), so that it is not fetched twice, and what was read ahead, so
that it need not come back from the disk to which it has just gone.

All fills start and end on the event loop, so "is there one already?" needs no lock. Other threads only look: the
tuple of fills of a version is replaced, never changed. A fill is owned by `Fills`, not by who asked for it: an asker
that is cancelled leaves it to the others, and `close` ends what is left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from ..errors import ForebayError, StoreCorrupt, StoreError, StoreUnavailable, TierError, TierFailed
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion
from .budget import ByteBudget
from .stats import Counters

log = logging.getLogger(__name__)

Fetch = Callable[[ObjectVersion, int, int], Awaitable[Buffer]]
# Write the bytes of a range to a tier: None if one took them, else why none did.
Keep = Callable[[ObjectVersion, int, Buffer], Awaitable[TierError | None]]

KEPT_S = 10.0
# Readahead leaves this much of the budget to those who wait for an answer.
AHEAD_SHARE = 0.75


class Fill:
    """One range of one version.

    `data` is set when it has arrived, `error` when it failed; `done` tells of both. `stored` tells when a tier was asked
    to keep it, and why none did. Wait for these with `asyncio.wait`: to await them directly would cancel them for all.
    """

    __slots__ = ("ahead", "data", "done", "end", "error", "offset", "size", "stored", "version")

    def __init__(self, version: ObjectVersion, offset: int, size: int, *, ahead: bool) -> None:
        self.version = version
        self.offset = offset
        self.size = size
        self.end = offset + size
        self.ahead = ahead
        self.data: memoryview | None = None
        self.error: ForebayError | None = None
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.stored: asyncio.Future[TierError | None] = loop.create_future()

    def covers(self, offset: int, end: int) -> bool:
        return self.offset <= offset and end <= self.end

    def slice(self, offset: int, end: int) -> memoryview:
        """The bytes [offset, end) of the object; only of a fill that has arrived and covers them."""
        assert self.data is not None
        return self.data[offset - self.offset : end - self.offset]


class Fills:
    """All fills of one cache."""

    def __init__(self, fetch: Fetch, keep: Keep, budget: ByteBudget, counters: Counters) -> None:
        self._fetch = fetch
        self._keep = keep
        self._budget = budget
        self._counters = counters
        self._closed = False
        # Read by any thread; written on the loop.
        self.by_digest: dict[bytes, tuple[Fill, ...]] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def overlapping(self, version: ObjectVersion, offset: int, end: int) -> list[Fill]:
        """The fills of the range that are under way or in memory, ascending. On the loop."""
        return [f for f in self.by_digest.get(version.digest, ()) if f.offset < end and offset < f.end]

    def uncovered(self, version: ObjectVersion, offset: int, end: int) -> list[tuple[int, int, Fill | None]]:
        """The range as (start, stop, fill): pieces that no fill covers, each with the fill that follows it, if any."""
        pieces: list[tuple[int, int, Fill | None]] = []
        for fill in self.overlapping(version, offset, end):
            pieces.append((offset, max(fill.offset, offset), fill))
            offset = max(fill.end, offset)
        if offset < end:
            pieces.append((offset, end, None))
        return pieces

    def start(self, version: ObjectVersion, offset: int, size: int, *, keep: Keep | None = None) -> Fill:
        """Fetch a range that no fill overlaps, because somebody waits for it; there may be a wait for room first."""
        fill = Fill(version, offset, size, ahead=False)
        self._begin(fill, self._run(fill, keep or self._keep, taken=False))
        return fill

    def start_ahead(self, version: ObjectVersion, offset: int, size: int) -> Fill | None:
        """Fetch a range that somebody will want; None if there is no room for it now (or everything is closing)."""
        if self._closed or not self._budget.try_take(size, share=AHEAD_SHARE):
            return None
        fill = Fill(version, offset, size, ahead=True)
        self._begin(fill, self._run(fill, self._keep, taken=True))
        return fill

    def release_behind(self, version: ObjectVersion, offset: int) -> None:
        """A reader has passed `offset`: what was kept in memory for it before that may go. On the loop."""
        for fill in self.by_digest.get(version.digest, ()):
            if fill.end <= offset and fill.stored.done():
                self._budget.give_up(fill)

    async def close(self) -> None:
        """End everything. Who waits for a fill gets StoreUnavailable."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for fills in list(self.by_digest.values()):
            for fill in fills:
                self._budget.give_up(fill)

    def _begin(self, fill: Fill, run: Coroutine[None, None, None]) -> None:
        if self._closed:
            run.close()
            raise StoreUnavailable(f"{fill.version.key} cannot be fetched: the cache is closed")
        others = self.by_digest.get(fill.version.digest, ())
        self.by_digest[fill.version.digest] = tuple(sorted((*others, fill), key=lambda f: f.offset))
        task = asyncio.get_running_loop().create_task(run)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, fill: Fill, keep: Keep, *, taken: bool) -> None:
        try:
            if not taken:
                await self._budget.take(fill.size)
                taken = True
            fill.data = await self._fetch_whole(fill)
            fill.done.set_result(None)
            refusal = await keep(fill.version, fill.offset, fill.data)
            fill.stored.set_result(refusal)
            if refusal is not None:
                self._counters.not_cached_bytes += fill.size
            if refusal is not None or fill.ahead:
                self._keep_in_memory(fill)
                taken = False
        except ForebayError as error:
            self._fail(fill, error)
        except asyncio.CancelledError:
            self._fail(fill, StoreUnavailable(f"{fill.version.key} was not fetched: the cache is closing"))
            raise
        except Exception as error:
            log.exception("a fill of %r failed in a way that it should not", fill.version.key)
            self._fail(fill, StoreError(f"{fill.version.key} cannot be fetched: {type(error).__name__}"))
        finally:
            if taken:
                self._forget(fill)
                self._budget.give(fill.size)

    async def _fetch_whole(self, fill: Fill) -> memoryview:
        data = memoryview(await self._fetch(fill.version, fill.offset, fill.size)).cast("B")
        if len(data) != fill.size:
            raise StoreCorrupt(f"{fill.version.key}: {len(data)} bytes arrived where {fill.size} were asked for")
        self._counters.fetches += 1
        self._counters.fetched_bytes += fill.size
        return data

    def _fail(self, fill: Fill, error: ForebayError) -> None:
        """Nothing was marked present. The fill goes first, so that whoever asks from now on starts another."""
        self._counters.errors[error.kind] += 1
        self._forget(fill)
        if not fill.done.done():
            fill.error = error
            fill.done.set_result(None)
        if not fill.stored.done():
            fill.stored.set_result(TierFailed(f"{fill.version.key} was not kept: {error.message}"))

    def _keep_in_memory(self, fill: Fill) -> None:
        # A timer that was not cancelled would hold the bytes until its time, long after the budget has given them away.
        timer = asyncio.get_running_loop().call_later(KEPT_S, self._budget.give_up, fill)

        def release() -> None:
            timer.cancel()
            self._forget(fill)

        self._budget.keep(fill, fill.size, release)

    def _forget(self, fill: Fill) -> None:
        digest = fill.version.digest
        others = tuple(f for f in self.by_digest.get(digest, ()) if f is not fill)
        if others:
            self.by_digest[digest] = others
        else:
            self.by_digest.pop(digest, None)
