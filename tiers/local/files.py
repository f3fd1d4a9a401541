"""Open files with an owner, holes, and exact reads and writes.

A descriptor number is reused by the kernel as soon as it is closed, so a cache of descriptors that closes the
oldest one can make a slow thread read or write another file. Here the *object* is the hold: `OpenFile` closes its
descriptor when the last reference to it goes, so whoever is in the middle of an I/O keeps the number alive. The hot
path pays nothing for it, and no lock and no reference count of our own is needed.
"""

import ctypes
import errno
import os
import threading
from pathlib import Path
from typing import Generic, TypeVar

from ..understore import Buffer

BLOCK_UNIT_BYTES = 512  # st_blocks counts these, whatever the file system's own block size is
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


class OpenFile:
    """A descriptor that is closed when nobody refers to this object any more."""

    __slots__ = ("__weakref__", "fd", "path", "writable")

    def __init__(self, path: Path, flags: int = 0) -> None:
        """Opens for reading and writing, or for reading only where writing is not possible; or raises OSError.

        New files (with O_CREAT in `flags`) get mode 0600: cached bytes are as private as the bucket.
        """
        self.fd = -1
        self.path = path
        self.writable = True
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            if error.errno not in READ_ONLY or flags:
                raise
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.writable = False

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def allocated(self) -> int:
        """Bytes that the file really takes on its file system."""
        return os.fstat(self.fd).st_blocks * BLOCK_UNIT_BYTES

    def write_at(self, buffers: list[Buffer], offset: int) -> None:
        """Write all of `buffers`, one after the other, at `offset`, or raise OSError (ENOSPC for a short write)."""
        self._require_writable()
        total = sum(len(buffer) for buffer in buffers)
        written = os.pwritev(self.fd, buffers, offset)
        if written == total:
            return
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            written = os.pwrite(self.fd, rest, offset + total - len(rest))
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            rest = rest[written:]

    def punch(self, offset: int, size: int) -> None:
        """Give the range back to the file system; it reads as zeros afterwards. The file keeps its length."""
        self._require_writable()
        if _fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, offset, size) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.path))

    def _require_writable(self) -> None:
        """Open again for writing what was opened when the file system was read-only, under the same number."""
        if self.writable:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            os.close(fd)
        self.writable = True


def remove(path: Path) -> int:
    """Unlink a file and give its bytes back, now: those who have it open would otherwise keep them allocated, and a
    limit on what is allocated would not hold. The bytes it had allocated; 0 if there is no such file."""
    try:
        allocated = path.stat().st_blocks * BLOCK_UNIT_BYTES
        os.truncate(path, 0)
    except FileNotFoundError:
        return 0
    path.unlink(missing_ok=True)
    return allocated


class Recent:
    """Something kept open, with the flag that says that it was used lately."""

    __slots__ = ("recent",)

    def __init__(self) -> None:
        self.recent = True


K = TypeVar("K")
V = TypeVar("V", bound=Recent)


class OpenCache(Generic[K, V]):
    """At most `limit` open things by key. Whoever got one may go on using it after it was let go.

    `get` takes no lock. The one let go is the oldest that was not used since it was last looked at (second
    chance), which needs no reordering on the hot path: `get` only sets a flag.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: dict[K, V] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        item = self._items.get(key)
        if item is not None:
            item.recent = True
        return item

    def put(self, key: K, item: V) -> None:
        """Keep `item`, and let another go when there are too many."""
        with self._lock:
            self._items[key] = item
            while len(self._items) > self._limit:
                oldest = next(iter(self._items))
                candidate = self._items.pop(oldest)
                if candidate.recent:
                    candidate.recent = False
                    self._items[oldest] = candidate

    def pop(self, key: K) -> V | None:
        with self._lock:
            return self._items.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._items.clear()

    def __len__(self) -> int:
        return len(self._items)
