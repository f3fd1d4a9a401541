"""A policy for tests that makes life hard: victims without any order."""

import random
from collections.abc import Sequence


class RandomPolicy:
    """Evicts anybody: neighbours in a slab do not go together, as they do first in, first out."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._entries: list[int] = []
        self._places: dict[int, int] = {}

    def admit(self, entry: int, size_bytes: int, identity: int) -> bool:
        assert entry not in self._places
        self._places[entry] = len(self._entries)
        self._entries.append(entry)
        return True

    def admit_many(self, entries: Sequence[int], sizes_bytes: Sequence[int]) -> None:
        for entry, size_bytes in zip(entries, sizes_bytes, strict=True):
            self.admit(int(entry), int(size_bytes), 0)

    def grow(self, entry: int, added_bytes: int) -> None:
        assert entry in self._places
        assert added_bytes > 0

    def hit(self, entry: int) -> None:
        """Hits change nothing."""

    def remove(self, entry: int) -> None:
        place, last = self._places.pop(entry), self._entries.pop()
        if last != entry:
            self._entries[place] = last
            self._places[last] = place

    def victim(self) -> int | None:
        return self._random.choice(self._entries) if self._entries else None

    def skip(self, entry: int) -> None:
        assert entry in self._places

    def __len__(self) -> int:
        return len(self._entries)
