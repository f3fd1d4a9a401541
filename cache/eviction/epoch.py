"""For training: every object once per pass, in a new random order each time, over more data than the tier holds.

Any policy that goes by recency evicts exactly what will be needed last but long before that, and every admission
pushes out something of equal worth: the hit rate of LRU is near zero until everything fits. The best that can be done
without knowing the order is to keep what is there and refuse the rest: the hit rate is tier size / data size.

What stays must still be in use: a tier full of last month's dataset must not refuse this one for ever. So hits are
counted in *rounds*. In shuffled passes every live entry is asked once per pass; when nine tenths of the entries asked
in a round were asked twice, more than one whole pass has gone by. Entries not asked in a whole round are *cold*: they
may be replaced. A round also ends when far more was refused than the tier holds and almost nothing was found in it:
then the dataset in use is another one. `tests/cache/test_eviction_hit_rates.py` shows the rates.

Memory: 1 byte per entry, and 4 for its size.
"""

import re
from array import array
from collections.abc import Sequence

import numpy as np

from .entry_lists import GROWTH_CELLS, grow

# One byte per entry: asked in this round not at all, once, more often; not asked in the whole round before; no entry.
UNASKED, ONCE, OFTEN, COLD, ABSENT = 0, 1, 2, 3, 4
IS_COLD, IS_PRESENT = re.compile(b"\\x03"), re.compile(b"[^\\x04]")
NEXT_ROUND = bytes([COLD, UNASKED, UNASKED, COLD, ABSENT, *range(5, 256)])
TWICE_SHARE = 0.9
FEWEST_ASKED = 64  # too few hits say nothing about a pass
REFUSED_PER_ENTRY = 4
FOUND_SHARE = 0.01
# The tier must not have to evict before the policy says that it is full.
FULL_SHARE = 0.9
LOWERED_SHARE = 0.97


class EpochPolicy:
    """Admits until the tier is full, then only in place of what nobody asks for any more."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._limit_bytes = int(capacity_bytes * FULL_SHARE)
        self._states = bytearray()
        self._sizes = array("I")
        self._used_bytes = 0
        self._entries = 0
        self._cold_bytes = 0
        self._once = 0
        self._twice = 0
        self._refused = 0
        self._hand = 0

    def admit(self, entry: int, size_bytes: int, identity: int = 0) -> bool:
        if self._used_bytes + size_bytes > self._limit_bytes:
            self._refused += 1
            if self._round_is_over():
                self._begin_round()
            if self._cold_bytes <= 0:
                return False
            # Admitted in place of cold entries, which the tier will now ask for.
            self._refused -= 1
        self._grow_to(entry)
        self._states[entry] = UNASKED
        self._sizes[entry] = size_bytes
        self._used_bytes += size_bytes
        self._entries += 1
        return True

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        """What a restart found: there already, so not refused, and not asked in this round yet."""
        if len(entries) == 0:
            return
        numbers, sizes = np.asarray(entries), np.asarray(sizes_bytes)
        self._grow_to(int(numbers.max()))
        np.frombuffer(self._states, dtype=np.uint8)[numbers] = UNASKED
        np.frombuffer(self._sizes, dtype=np.uint32)[numbers] = sizes
        self._used_bytes += int(sizes.sum())
        self._entries += len(numbers)

    def grow(self, entry: int, added_bytes: int) -> None:
        self._sizes[entry] += added_bytes
        self._used_bytes += added_bytes
        if self._states[entry] == COLD:
            self._cold_bytes += added_bytes

    def hit(self, entry: int) -> None:
        # Counters are advisory: a count lost between threads moves the end of a round by one hit.
        state = self._states[entry]
        if state == UNASKED:
            self._states[entry] = ONCE
            self._once += 1
        elif state == ONCE:
            self._states[entry] = OFTEN
            self._twice += 1
        elif state == COLD:
            self._states[entry] = ONCE
            self._once += 1
            self._cold_bytes -= self._sizes[entry]

    def remove(self, entry: int) -> None:
        if entry >= len(self._states) or self._states[entry] == ABSENT:
            return
        if self._states[entry] == COLD:
            self._cold_bytes -= self._sizes[entry]
        self._states[entry] = ABSENT
        self._used_bytes -= self._sizes[entry]
        self._entries -= 1

    def victim(self) -> int | None:
        """A cold entry if there is one; else any, in turn: the tier must make room whatever the policy thinks.

        In that case the tier is fuller than the sizes given here say (frames, partly filled disks): full means less
        until the round ends, or each admission would cost an entry of equal worth.
        """
        if self._entries == 0:
            return None
        if self._cold_bytes > 0 and (cold := self._find(IS_COLD)) is not None:
            return cold
        self._limit_bytes = min(self._limit_bytes, int(self._used_bytes * LOWERED_SHARE))
        return self._find(IS_PRESENT)

    def skip(self, entry: int) -> None:
        """Pinned: counts as asked for, and the search goes on behind it."""
        if self._states[entry] == COLD:
            self._cold_bytes -= self._sizes[entry]
        self._states[entry] = OFTEN

    def _grow_to(self, entry: int) -> None:
        if entry >= len(self._states):
            added = max(entry + 1 - len(self._states), GROWTH_CELLS, len(self._states) // 4)
            self._states.extend(bytes([ABSENT]) * added)
        grow(self._sizes, entry)

    def _find(self, wanted: re.Pattern[bytes]) -> int | None:
        """The next entry whose state matches, going round from where the last search ended."""
        found = wanted.search(self._states, self._hand) or wanted.search(self._states, 0, self._hand)
        if found is None:
            return None
        self._hand = found.end()
        return found.start()

    def _round_is_over(self) -> bool:
        if self._once >= FEWEST_ASKED and self._twice >= TWICE_SHARE * self._once:
            return True
        unseen = self._refused > REFUSED_PER_ENTRY * max(self._entries, FEWEST_ASKED)
        return unseen and self._once < FOUND_SHARE * self._refused

    def _begin_round(self) -> None:
        # In place: a hit in another thread must not write into bytes that were just replaced.
        self._states[:] = self._states.translate(NEXT_ROUND)
        self._once = self._twice = self._refused = 0
        self._limit_bytes = int(self._capacity_bytes * FULL_SHARE)
        cold = np.frombuffer(self._states, dtype=np.uint8) == COLD
        sizes = np.frombuffer(self._sizes, dtype=np.uint32)
        self._cold_bytes = int(sizes[: len(cold)][cold[: len(sizes)]].sum())
