"""The state of a tier's entries: what is findable, what is on its way in or out, and what the policy knows.

A pure state machine, without I/O. An entry lives like this:

    begin -> (bytes are written) -> publish -> [relocate]* -> remove -> (bytes are freed) -> release
          \\-> abandon, if the write failed

Between `begin` and `publish`, and between `remove` and `release`, nobody finds it and nobody can evict it, so it is
written once and freed once, whoever races. Each transition happens under one lock and says by its result whether
it was this caller who made it.
"""

import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..understore import Buffer
from ..version import ObjectVersion
from .index import NOT_FOUND, U64, EntryIndex, block_parts, digest_of, is_block, key_of
from .policy import EvictionPolicy

# Called with (version, offset, data) of what is about to be evicted.
OnEvict = Callable[[ObjectVersion, int, Buffer], None]

# Victims that may be answered with `skip` in one search: a bound on the time under the lock when most is pinned.
MAX_SKIPS = 1024


@dataclass(frozen=True, slots=True)
class Victim:
    """An entry to evict, as it was when it was chosen. `block` is 0 for a small object."""

    row: int
    location: int
    digest: bytes
    block: int


class Entries:
    """Index and policy under one lock."""

    def __init__(self, policy: EvictionPolicy, pinned: Callable[[bytes], bool]) -> None:
        self._policy = policy
        self._pinned = pinned
        self._lock = threading.Lock()
        self._index = EntryIndex()
        # The hot path goes straight to these; neither takes the lock.
        self.find_key = self._index.find
        self.location = self._index.location
        self.hit = policy.hit

    def __len__(self) -> int:
        return len(self._index)

    def find(self, digest: bytes, block: int = 0) -> int:
        """The row of an entry whose bytes are there, or NOT_FOUND. Any thread, no lock; may be stale (see index)."""
        return self._index.find(*key_of(digest, block))

    def begin(self, digest: bytes, block: int, size_bytes: int) -> int | None:
        """A row for an entry that is about to be written; None if the policy does not want it."""
        identity = key_of(digest, block)[0]
        with self._lock:
            row = self._index.new_row()
            if self._policy.admit(row, size_bytes, identity):
                return row
            self._index.release(row)
            return None

    def abandon(self, row: int) -> None:
        """The write of a begun entry failed, or somebody else was faster."""
        with self._lock:
            self._policy.remove(row)
            self._index.release(row)

    def publish(self, row: int, digest: bytes, block: int, location: int) -> bool:
        """The bytes of a begun entry are written. False if the key is there already: then `abandon` it."""
        key = key_of(digest, block)
        with self._lock:
            if self._index.find(*key) != NOT_FOUND:
                return False
            self._index.publish(row, *key, location)
            return True

    def relocate(self, row: int, before: int, after: int, added_bytes: int = 0) -> bool:
        """The entry's bytes moved, or there are more of them; False if it is not at `before` any more."""
        with self._lock:
            if self._index.location(row) != before:
                return False
            self._index.relocate(row, after)
            if added_bytes > 0:
                self._policy.grow(row, added_bytes)
            return True

    def remove(self, row: int, location: int) -> bool:
        """Take an entry out before its bytes are freed; False if it is not at `location` any more."""
        with self._lock:
            if location == 0 or self._index.location(row) != location:
                return False
            self._index.unpublish(row)
            self._policy.remove(row)
            return True

    def release(self, row: int) -> None:
        """The bytes of a removed entry are freed."""
        with self._lock:
            self._index.release(row)

    def next_victim(self) -> Victim | None:
        """What the policy would evict next and what may be evicted; None if there is nothing (soon enough)."""
        with self._lock:
            for _ in range(min(MAX_SKIPS, len(self._index) + 64)):
                row = self._policy.victim()
                if row is None:
                    return None
                location = self._index.location(row)
                if location:
                    block = block_parts(location)[0] if is_block(location) else 0
                    digest = digest_of(*self._index.key(row), block)
                    if not self._pinned(digest):
                        return Victim(row, location, digest, block)
                self._policy.skip(row)
            return None

    def restore(self, first: U64, second: U64, location: U64, sizes_bytes: NDArray[np.int64]) -> None:
        """Entries found on disk, oldest first. Keys must be new and all different."""
        with self._lock:
            rows = self._index.add_many(first, second, location)
            # As arrays: as lists of numbers, twenty million entries would take more than a gigabyte for a moment.
            self._policy.admit_many(array("q", rows.tobytes()), array("q", sizes_bytes.tobytes()))

    def rows_where(self, low: int, high: int) -> list[tuple[int, int, bytes]]:
        """(row, location, key as 16 bytes) of the entries with locations in [low, high)."""
        with self._lock:
            rows = self._index.rows_where(low, high).tolist()
            return [(row, self._index.location(row), digest_of(*self._index.key(row), 0)) for row in rows]

    def columns(self) -> Iterator[tuple[U64, U64, U64]]:
        """(first, second, location) of all entries, in pieces of bounded size. A piece is consistent, the whole is not."""
        return self._index.columns()

    def validate(self) -> None:
        with self._lock:
            self._index.validate()
