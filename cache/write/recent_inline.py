"""Inline data that was committed lately, kept in memory.

Most small files are uploaded seconds after their close. Reading their bytes back from the records would cost each a thread
and a turn at the database that closes wait for too.
"""

from collections.abc import Iterable, Mapping

LIMIT_BYTES = 32 * 1024 * 1024


class RecentInline:
    """The youngest up to `limit_bytes`. Not safe for threads by itself."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._data: dict[str, bytes] = {}  # oldest first

    def get(self, name: str) -> bytes | None:
        return self._data.get(name)

    def put(self, items: Mapping[str, bytes]) -> None:
        for name, data in items.items():
            self.drop([name])
            self._data[name] = data
            self._held_bytes += len(data)
        while self._held_bytes > self._limit_bytes:
            self.drop([next(iter(self._data))])

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._held_bytes -= len(self._data.pop(name, b""))
