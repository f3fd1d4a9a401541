"""Writing to tiers off the event loop, in batches.

A hop to a thread and back costs about as much as writing a small object. So while the threads are busy, what comes is
collected, and a thread that gets free takes all of it, up to `BATCH_BYTES`, in one hop. Nothing waits for a batch to
fill. How much can be waiting is bounded by who asks: each byte handed in is covered by a byte budget.
"""

import asyncio
from collections import deque
from concurrent.futures import Executor

from ..errors import TierError, TierFailed
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion
from .tier_set import TierName, TierSet

BATCH_BYTES = 16 * 1024 * 1024
Job = tuple[ObjectVersion, int, Buffer, TierName | None, asyncio.Future[TierError | None]]


class TierWriter:
    """Writes ranges to a tier set in `threads` threads of `executor`. On one event loop."""

    def __init__(self, tiers: TierSet, executor: Executor, threads: int) -> None:
        self._tiers = tiers
        self._executor = executor
        self._idle = threads
        self._waiting: deque[Job] = deque()
        self._closed = False

    async def write(
        self, version: ObjectVersion, offset: int, data: Buffer, to: TierName | None = None
    ) -> TierError | None:
        """As `TierSet.write`, without blocking. If the caller is cancelled the bytes are written all the same."""
        if self._closed:
            return TierFailed("the cache is closed")
        answer: asyncio.Future[TierError | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((version, offset, data, to, answer))
        self._start_batch()
        return await answer

    def close(self) -> None:
        """Write nothing more than what the threads have; what waits is answered with TierFailed."""
        self._closed = True
        while self._waiting:
            *_, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(TierFailed("the cache is closed"))

    def _start_batch(self) -> None:
        if self._closed or not self._idle or not self._waiting:
            return
        # Leave some for the other threads that are free.
        share = -(-len(self._waiting) // self._idle)
        batch: list[Job] = []
        size_bytes = 0
        while self._waiting and len(batch) < share and size_bytes < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size_bytes += len(batch[-1][2])
        self._idle -= 1
        done = asyncio.get_running_loop().run_in_executor(self._executor, self._write_all, batch)
        done.add_done_callback(lambda done: self._finish(batch, done))

    def _write_all(self, batch: list[Job]) -> list[TierError | None]:
        outcomes: list[TierError | None] = []
        for version, offset, data, to, _ in batch:
            try:
                outcomes.append(self._tiers.write(version, offset, data, to))
            except Exception as error:  # a bug must not leave the others of the batch without an answer
                outcomes.append(TierFailed(f"writing {version.key!r} to a tier failed: {error!r}"))
        return outcomes

    def _finish(self, batch: list[Job], done: "asyncio.Future[list[TierError | None]]") -> None:
        self._idle += 1
        if done.cancelled() or done.exception() is not None:
            outcomes: list[TierError | None] = [TierFailed("the cache is closed")] * len(batch)
        else:
            outcomes = done.result()
        for (*_, answer), outcome in zip(batch, outcomes, strict=True):
            if not answer.done():
                answer.set_result(outcome)
        self._start_batch()
