"""Which entry goes next: the protocol of eviction policies. The real ones live in `cache/eviction/`.

An *entry* is what a tier evicts at once: a block of a large object, or a whole small object. Entries are dense
non-negative ints, reused after `remove`, so that a policy can live in arrays. A tier calls everything but `hit`
under one lock; `hit` comes from any thread, without a lock, and may name an entry that was removed a moment ago.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class EvictionPolicy(Protocol):
    def admit(self, entry: int, size_bytes: int, identity: int) -> bool:
        """A new entry wants in. False: the bytes are not cached, and the policy forgets the entry.

        `identity` is 64 well mixed bits of the content's digest: the same if the same bytes come again.
        """
        ...

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        """Entries found at restart, oldest first; they are there, so they cannot be refused. Both are of equal
        length, lists or arrays; a million must take well under a second."""
        ...

    def grow(self, entry: int, added_bytes: int) -> None:
        """More of an entry came in: a block that random readers fill chunk by chunk is admitted with its first."""
        ...

    def hit(self, entry: int) -> None:
        """The entry was read. Hot: about 100 ns, any thread."""
        ...

    def remove(self, entry: int) -> None:
        """The entry is gone (evicted, dropped, or its write failed); its number may come back for another."""
        ...

    def victim(self) -> int | None:
        """The entry to evict next, None if there is none. Answered with `remove` or `skip`."""
        ...

    def skip(self, entry: int) -> None:
        """The victim must stay for now (pinned, or being written): name another next time."""
        ...


class FifoPolicy:
    """First in, first out: the simplest thing that works, for tests and as an example."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def admit(self, entry: int, size_bytes: int, identity: int) -> bool:
        self._order[entry] = None
        return True

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        self._order.update((int(entry), None) for entry in entries)

    def grow(self, entry: int, added_bytes: int) -> None:
        """First in, first out does not care."""

    def hit(self, entry: int) -> None:
        """Nor for this."""

    def remove(self, entry: int) -> None:
        self._order.pop(entry, None)

    def victim(self) -> int | None:
        return next(iter(self._order), None)

    def skip(self, entry: int) -> None:
        if entry in self._order:
            self._order.move_to_end(entry)
