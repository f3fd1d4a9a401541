"""File contents as a mount reads them: the view says which version, the cache gives its bytes.

The rule: a reply is exactly the bytes asked for, cut only at the end of the file. Fewer would be filled with zeros by
the kernel and stay in its page cache, so anything else is an error.

Files are opened without asking us (see docs/fuse.md), so a reader is known by its inode. The version of each inode that
is being read is kept here, because the view may have to build it and every 4 KiB read needs it.
"""

from collections.abc import Mapping
from typing import Protocol

from ..errors import TierError
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion
from .view import View

_VERSIONS_KEPT = 65536


class BlockReads(Protocol):
    """What a mount needs of the block cache; `cache.block_cache.BlockCache` is one."""

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int) -> Buffer | None:
        """The bytes if they are here; None if `read` must be awaited. Any thread, no I/O to a store."""
        ...

    async def read(
        self, version: ObjectVersion, offset: int, size: int, *, reader: int, timeout_s: float | None = None
    ) -> Buffer:
        """The bytes, from wherever they are; raises a StoreError within a bounded time."""
        ...

    def forget_reader(self, reader: int) -> None:
        """That reader will not come back."""
        ...


class FileReads:
    """Reads of one mount. `now` and `forget` from any thread, `later` on the event loop."""

    def __init__(self, view: View, cache: BlockReads, io_timeout_s: float | None) -> None:
        self._view = view
        self._cache = cache
        self._read_cached = cache.read_cached
        self._io_timeout_s = io_timeout_s
        self._versions: dict[int, ObjectVersion] = {}

    def now(self, ino: int, offset: int, size: int) -> Buffer | None:
        """The bytes at `offset` without waiting, or None: ask `later`."""
        version = self._versions.get(ino)
        if version is None:
            version = self._open(ino)
        left = version.size - offset
        if size > left:
            size = left
        if size <= 0:
            return b""
        data = self._read_cached(version, offset, size, reader=ino)
        if data is not None and len(data) != size:
            raise _wrong_length(version, offset, size, len(data))
        return data

    async def later(self, ino: int, offset: int, size: int) -> Buffer:
        """The bytes at `offset`; waits for the store if it must. Cancelling gives up this reader only."""
        version = self._versions.get(ino) or self._open(ino)
        size = min(size, version.size - offset)
        if size <= 0:
            return b""
        data = await self._cache.read(version, offset, size, reader=ino, timeout_s=self._io_timeout_s)
        if len(data) != size:
            raise _wrong_length(version, offset, size, len(data))
        return data

    def forget(self, ino: int) -> None:
        """The kernel let the inode go, and with it every reader."""
        if self._versions.pop(ino, None) is not None:
            self._cache.forget_reader(ino)

    def counters(self) -> Mapping[str, int]:
        return {"inodes_being_read": len(self._versions)}

    def _open(self, ino: int) -> ObjectVersion:
        version = self._view.version(ino)
        if len(self._versions) >= _VERSIONS_KEPT:
            # The first one in; if it is still read, its next read puts it back. Lanes race for it, one wins.
            oldest = next(iter(self._versions), None)
            if oldest is not None:
                self.forget(oldest)
        self._versions[ino] = version
        return version


def _wrong_length(version: ObjectVersion, offset: int, size: int, got: int) -> TierError:
    return TierError(f"the cache gave {got} bytes instead of {size} at {offset} of {version.key}")
