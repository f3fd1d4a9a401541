"""Least recently used, exactly, at the price of one deque append per hit.

Moving an entry to the end of a linked list needs a lock, and a hit must not take one. So hits are noted in a bounded
deque (appending is atomic) and replayed in order, under the tier's lock, before anything is decided. When more than
`PENDING_HITS` come between two decisions the oldest notes are lost: they are the ones that matter least.

Memory: 8 bytes per entry.
"""

from collections import deque
from collections.abc import Sequence

from .entry_lists import EntryLists

PENDING_HITS = 65_536
RECENT, PARKED = 0, 1
# One victim in so many is taken from the parked entries, so that those whose pin has ended are found again.
PARKED_TURN = 64


class LruPolicy:
    """The entry not asked for the longest time goes first."""

    def __init__(self) -> None:
        self._lists = EntryLists(2)
        self._pending: deque[int] = deque(maxlen=PENDING_HITS)
        self._turn = 0

    def admit(self, entry: int, size_bytes: int, identity: int = 0) -> bool:
        self._replay()
        self._lists.append(RECENT, entry)
        return True

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        self._lists.extend(RECENT, entries)

    def grow(self, entry: int, added_bytes: int) -> None:
        """Sizes do not matter here."""

    def hit(self, entry: int) -> None:
        self._pending.append(entry)

    def remove(self, entry: int) -> None:
        self._replay()
        self._lists.discard(entry)

    def victim(self) -> int | None:
        self._replay()
        self._turn = (self._turn + 1) % PARKED_TURN
        first, second = (PARKED, RECENT) if self._turn == 0 else (RECENT, PARKED)
        entry = self._lists.first(first)
        return entry if entry is not None else self._lists.first(second)

    def skip(self, entry: int) -> None:
        if self._lists.discard(entry):
            self._lists.append(PARKED, entry)

    def _replay(self) -> None:
        """Apply the noted hits in order; a hit brings a parked entry back among the others."""
        for _ in range(len(self._pending)):
            entry = self._pending.popleft()
            if self._lists.discard(entry):
                self._lists.append(RECENT, entry)
