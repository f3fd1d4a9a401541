"""Age since fill decides first: entries older than `ttl_s` go, oldest fill first; if none is, the least recently used.

The age is that of the entry in this tier. A tier that is opened again admits what it finds, so ages begin anew: a
restart makes data stay longer, never shorter. Memory: 20 bytes per entry.
"""

import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from .entry_lists import EntryLists, grow
from .lru import LruPolicy

BY_FILL, PARKED = 0, 1


class TtlPolicy:
    """What was filled more than `ttl_s` seconds ago goes first, however often it is asked."""

    def __init__(self, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._started_s = clock()
        self._recency = LruPolicy()
        self._fills = EntryLists(2)
        self._filled_s = array("I")

    def admit(self, entry: int, size_bytes: int, identity: int = 0) -> bool:
        grow(self._filled_s, entry)
        self._filled_s[entry] = self._now_s()
        self._fills.append(BY_FILL, entry)
        return self._recency.admit(entry, size_bytes)

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        if len(entries) == 0:
            return
        numbers = np.asarray(entries)
        grow(self._filled_s, int(numbers.max()))
        np.frombuffer(self._filled_s, dtype=np.uint32)[numbers] = self._now_s()
        self._fills.extend(BY_FILL, entries)
        self._recency.admit_many(entries, sizes_bytes)

    def grow(self, entry: int, added_bytes: int) -> None:
        """Sizes do not matter here, and the age is that of the first chunk."""

    def hit(self, entry: int) -> None:
        self._recency.hit(entry)

    def remove(self, entry: int) -> None:
        self._fills.discard(entry)
        self._recency.remove(entry)

    def victim(self) -> int | None:
        oldest = self._fills.first(BY_FILL)
        if oldest is not None and self._now_s() - self._filled_s[oldest] > self._ttl_s:
            return oldest
        return self._recency.victim()

    def skip(self, entry: int) -> None:
        if self._fills.discard(entry):
            self._fills.append(PARKED, entry)
        self._recency.skip(entry)

    def _now_s(self) -> int:
        return int(self._clock() - self._started_s)
