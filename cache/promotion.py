"""Promotion: what the SSD tier is asked for a second time within a while gets a copy in RAM.

"Within a while" is a table of fingerprints as large as RAM has chunks: a first hit leaves its mark, a second finds it
unless so many others came between that RAM could not have held them all. Sequential readers leave no marks, so a scan
promotes nothing.

What promotion costs is bounded by what it can save. Each hit on the SSD earns credit, in bytes: an eighth of its size
while RAM has room, a thirty-second when promoting means evicting. A promotion is paid from the credit, and costs
about three times as much CPU as the hit that it repeats: so readers lose little to it, whatever they do, and what
stays hot is in RAM after some passes. The kernel keeps the SSD's hot pages in memory meanwhile.

Copies are made by one thread of its own, from what was read where possible; no more than `pending_limit_bytes` wait for
it, and what comes beyond is dropped: it will be hot again.
"""

import threading
from array import array
from concurrent.futures import ThreadPoolExecutor

from ..errors import TierError
from ..tiers.local import LocalTier
from ..tiers.version import CHUNK_BYTES, ObjectVersion, align_to_chunks
from .tier_set import TierSet

FEWEST_MARKS, MOST_MARKS = 1 << 12, 1 << 20
MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
CREDIT_LIMIT_BYTES = 64 * 1024 * 1024
CREDIT_SHARE = 1 / 8
CREDIT_SHARE_WHEN_FULL = 1 / 32


class Promotion:
    """From the SSD tiers of a set to its RAM tier. `hit` is on the path of reads, about 1 µs, any thread."""

    def __init__(self, tiers: TierSet, ram: LocalTier, pending_limit_bytes: int) -> None:
        self._tiers = tiers
        self._ram = ram
        self._pending_limit_bytes = pending_limit_bytes
        chunks = ram.options.capacity_bytes // CHUNK_BYTES
        marks = FEWEST_MARKS
        while marks < chunks and marks < MOST_MARKS:
            marks *= 2
        self._marks = array("I", bytes(4 * marks))
        self._mask = marks - 1
        self._credit_bytes = 0.0
        self._lock = threading.Lock()
        self.pending_bytes = 0
        self._thread = ThreadPoolExecutor(1, "forebay-promotion")

    def hit(self, tier: LocalTier, version: ObjectVersion, offset: int, size: int) -> None:
        """An SSD tier answered a read of a reader that does not scan."""
        share = CREDIT_SHARE if self._tiers.ram_has_room() else CREDIT_SHARE_WHEN_FULL
        self._credit_bytes = min(self._credit_bytes + size * share, CREDIT_LIMIT_BYTES)
        chunk = 0 if version.is_small else offset // CHUNK_BYTES + 1
        key = (int.from_bytes(version.digest[:8], "little") ^ chunk * MULTIPLIER) & MASK
        cell, fingerprint = key & self._mask, key >> 32 | 1
        if self._marks[cell] != fingerprint:
            self._marks[cell] = fingerprint
            return
        start, length = (0, version.size) if version.is_small else align_to_chunks(offset, size, version.size)
        if self._credit_bytes < length:
            return
        with self._lock:
            if self.pending_bytes + length > self._pending_limit_bytes:
                self._tiers.counters.promotions_dropped += 1
                return
            self._credit_bytes -= length
            self.pending_bytes += length
        self._marks[cell] = 0
        try:
            self._thread.submit(self._promote, tier, version, start, length)
        except RuntimeError:  # closed a moment ago
            self._done(length)

    def close(self) -> None:
        """Drop what waits; returns when the copy under way is finished."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.pending_bytes = 0

    def _promote(self, tier: LocalTier, version: ObjectVersion, start: int, length: int) -> None:
        try:
            if self._ram.missing(version, start, length):
                data = tier.read(version, start, length)
                if data is not None:
                    self._ram.write(version, start, data)
                    self._tiers.counters.promoted_bytes += length
        except TierError as error:
            self._tiers.counters.errors[error.kind] += 1
            self._tiers.counters.promotions_dropped += 1
        finally:
            self._done(length)

    def _done(self, length: int) -> None:
        with self._lock:
            self.pending_bytes -= length
