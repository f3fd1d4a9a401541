"""S3-FIFO: three first-in-first-out queues; the algorithm of Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all
you need for cache eviction", SOSP 2023.

New entries wait in a *small* queue (a tenth of the capacity). Those asked again before they reach its end move to the
*main* queue; the others go, and their identity is remembered for a while (*ghosts*). Who comes back as a ghost enters
the main queue at once. An entry at the end of the main queue goes round again as often as it was asked, three times
at most. A scan therefore passes through the small queue and leaves the main one alone.

Two things differ from the paper, for reasons of this cache:

- Hits are counted at most once per *tick* (the time in which a sixteenth of the small queue is admitted), and not in
  the tick of the fill. A sequential reader asks a 4 MiB block four or more times in a row; counted one by one, every
  scanned block would look hot.
- Ghosts are a direct-mapped table of 32-bit fingerprints instead of a queue: 4 bytes each, and old ones disappear by
  being overwritten. A false ghost (one in four thousand million per lookup) only means a place in the main queue.

Memory: 17 bytes per entry, and 4 to 8 for the ghosts.
"""

from array import array
from collections.abc import Sequence

import numpy as np

from .entry_lists import EntryLists, grow

SMALL, MAIN, PARKED = 0, 1, 2
NOWHERE = 3
SMALL_SHARE = 0.1
TICKS_PER_SMALL = 16
MOST_HITS = 3
PARKED_TURN = 64  # one victim in so many is a parked entry: those whose pin has ended are found again
UNIT_BYTES = 4096  # sizes are kept in units, so that two bytes are enough for a block
MOST_UNITS = 0xFFFF
FEWEST_GHOSTS = 1024


class S3FifoPolicy:
    """What is asked more than once stays. `capacity_bytes` is that of the tier."""

    def __init__(self, capacity_bytes: int) -> None:
        self._small_limit = max(int(capacity_bytes * SMALL_SHARE) // UNIT_BYTES, 1)
        self._tick_units = max(self._small_limit // TICKS_PER_SMALL, 1)
        self._lists = EntryLists(3)
        self._hits = array("B")
        self._ticks = array("B")
        self._where = array("B")
        self._units = array("H")
        self._identities = array("I")
        self._ghosts = array("I", bytes(4 * FEWEST_GHOSTS))
        self._small_units = 0
        self._admitted_units = 0
        self._tick = 0
        self._turn = 0
        self._entries = 0

    def admit(self, entry: int, size_bytes: int, identity: int = 0) -> bool:
        """`identity` is 64 well mixed bits that stand for the content; 0 means unknown (then there is no ghost of it)."""
        for cells in (self._hits, self._ticks, self._where, self._units):
            grow(cells, entry)
        self._units[entry] = units = units_of(size_bytes)
        self._hits[entry] = 0
        self._count_admitted(units)
        self._ticks[entry] = self._tick
        self._entries += 1
        self._enter(MAIN if self._take_ghost(identity) else SMALL, entry)
        self._remember(entry, identity)
        return True

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        """What a restart found goes to the main queue: it has been worth keeping, and its identity is not known here."""
        if len(entries) == 0:
            return
        numbers = np.asarray(entries)
        for cells in (self._hits, self._ticks, self._where, self._units, self._identities):
            grow(cells, int(numbers.max()))
        units = np.minimum(-(-np.asarray(sizes_bytes) // UNIT_BYTES), MOST_UNITS)
        np.frombuffer(self._units, dtype=np.uint16)[numbers] = units
        np.frombuffer(self._hits, dtype=np.uint8)[numbers] = 0
        np.frombuffer(self._ticks, dtype=np.uint8)[numbers] = self._tick
        np.frombuffer(self._where, dtype=np.uint8)[numbers] = MAIN
        np.frombuffer(self._identities, dtype=np.uint32)[numbers] = 0
        self._lists.extend(MAIN, entries)
        self._entries += len(numbers)
        self._grow_ghosts()

    def grow(self, entry: int, added_bytes: int) -> None:
        before = self._units[entry]
        self._units[entry] = after = min(before + units_of(added_bytes), MOST_UNITS)
        if self._where[entry] == SMALL:
            self._small_units += after - before
        self._count_admitted(after - before)

    def hit(self, entry: int) -> None:
        if self._ticks[entry] != self._tick:
            self._ticks[entry] = self._tick
            hits = self._hits[entry]
            if hits < MOST_HITS:
                self._hits[entry] = hits + 1

    def remove(self, entry: int) -> None:
        if not self._lists.discard(entry):
            return
        if self._where[entry] == SMALL:
            self._small_units -= self._units[entry]
            if self._hits[entry] == 0:
                self._leave_ghost(entry)
        self._where[entry] = NOWHERE
        self._entries -= 1

    def victim(self) -> int | None:
        self._turn = (self._turn + 1) % PARKED_TURN
        if self._turn == 0 and (parked := self._lists.first(PARKED)) is not None:
            if self._hits[parked] == 0:
                return parked
            self._move(MAIN, parked, hits=0)
        while True:
            main = self._lists.first(MAIN)
            if self._small_units >= self._small_limit or main is None:
                entry = self._lists.first(SMALL)
                if entry is None:
                    return main if main is not None else self._lists.first(PARKED)
                if self._hits[entry] == 0:
                    return entry
                self._move(MAIN, entry, hits=0)
            elif self._hits[main] == 0:
                return main
            else:
                self._move(MAIN, main, hits=self._hits[main] - 1)

    def skip(self, entry: int) -> None:
        if entry in self._lists:
            self._move(PARKED, entry, hits=0)

    def _count_admitted(self, units: int) -> None:
        self._admitted_units += units
        if self._admitted_units >= self._tick_units:
            self._admitted_units = 0
            self._tick = (self._tick + 1) & 0xFF

    def _enter(self, name: int, entry: int) -> None:
        self._lists.append(name, entry)
        self._where[entry] = name
        if name == SMALL:
            self._small_units += self._units[entry]

    def _move(self, name: int, entry: int, hits: int) -> None:
        self._lists.discard(entry)
        if self._where[entry] == SMALL:
            self._small_units -= self._units[entry]
        self._hits[entry] = hits
        self._enter(name, entry)

    # Ghosts. The identity's low bits choose the cell, its high bits are the fingerprint; 0 marks an empty cell. Per
    # entry only 32 bits of the identity are kept, mixed from both halves, and these are all that the table ever sees.

    def _remember(self, entry: int, identity: int) -> None:
        grow(self._identities, entry)
        self._identities[entry] = fold(identity)
        self._grow_ghosts()

    def _grow_ghosts(self) -> None:
        while self._entries > len(self._ghosts):
            # A cell of the doubled table is chosen by one more bit; the old ghosts stand in both places it can mean.
            self._ghosts.extend(self._ghosts)

    def _leave_ghost(self, entry: int) -> None:
        folded = self._identities[entry]
        if folded:
            self._ghosts[folded & (len(self._ghosts) - 1)] = folded

    def _take_ghost(self, identity: int) -> bool:
        folded = fold(identity)
        cell = folded & (len(self._ghosts) - 1)
        if folded and self._ghosts[cell] == folded:
            self._ghosts[cell] = 0
            return True
        return False


def units_of(size_bytes: int) -> int:
    return min(-(-size_bytes // UNIT_BYTES), MOST_UNITS)


def fold(identity: int) -> int:
    """32 bits out of 64."""
    return (identity ^ identity >> 32) & 0xFFFF_FFFF
