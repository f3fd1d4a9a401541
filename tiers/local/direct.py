"""Large writes and reads around the kernel's page cache.

Copying into the page cache costs more CPU than anything else that a fill does: 0.7 to 1.6 s per GiB on a busy machine
of two cores, against 0.14 s for O_DIRECT with a copy into an aligned buffer. What a reader waits for is served from
memory meanwhile, and reads through a mount fill the page cache on their own account.

A direct write takes as long as the disk takes, while the page cache absorbs what a slow disk does not: so direct writes
are only made while they are fast (`LEAST_BYTES_S`), and are tried again now and then. Where they cannot be made (tmpfs,
some file systems) or do not fit (small, unaligned), the caller writes as usual. Both ways may be mixed in one file: the
kernel drops cached pages of what is written directly, and writes back what is dirty before it reads directly.

A large read is on its way into the page cache of the mount itself, so a second copy in that of the tier is of use to
nobody. Small reads stay with the page cache: there the neighbours of what was read may be wanted again.
"""

import ctypes
import errno
import os
import threading
import time
from pathlib import Path

from ..memory import HugeMemory
from ..version import BLOCK_BYTES
from .files import OpenFile
from .read_buffers import BUFFER_BYTES, ReadBuffers

SMALLEST_BYTES = 256 * 1024
ALIGNMENT_BYTES = 4096
# Below this the page cache is better: fills need not wait for such a disk while there is memory.
LEAST_BYTES_S = 250e6
RATE_WEIGHT = 0.25
# So many writes go the usual way before a disk that was too slow is tried again.
WRITES_UNTIL_RETRY = 64
TMPFS_MAGIC = 0x01021994
NOT_POSSIBLE = frozenset({errno.EINVAL, errno.EOPNOTSUPP})

_libc = ctypes.CDLL(None, use_errno=True)


class DirectWrites:
    """Whether and how a tier writes directly. Any thread; each that writes has a buffer of one block."""

    def __init__(self, folder: Path) -> None:
        self._possible = not on_tmpfs(folder)
        self._rate_bytes_s = 2 * LEAST_BYTES_S
        self._writes_until_retry = 0
        self._buffers = threading.local()

    def write(self, file: OpenFile, data: memoryview, offset: int) -> int:
        """Write the beginning of `data` at `offset`; how many bytes, 0 if the caller should write all. Raises OSError."""
        size = min(len(data) // ALIGNMENT_BYTES * ALIGNMENT_BYTES, BLOCK_BYTES)
        if not self._possible or size < SMALLEST_BYTES or offset % ALIGNMENT_BYTES or not file.writable:
            return 0
        if self._rate_bytes_s < LEAST_BYTES_S:
            self._writes_until_retry -= 1
            if self._writes_until_retry > 0:
                return 0
        aligned = self._buffer().view()[:size]
        aligned[:] = data[:size]
        try:
            # Another open file on the very same inode, whatever its path is now.
            fd = os.open(f"/proc/self/fd/{file.fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self._possible = False
            return 0
        started_s = time.monotonic()
        try:
            written = os.pwrite(fd, aligned, offset)
        except OSError as error:
            if error.errno not in NOT_POSSIBLE:
                raise
            self._possible = False
            return 0
        finally:
            os.close(fd)
        self._learn(written, time.monotonic() - started_s)
        return written

    def _buffer(self) -> HugeMemory:
        buffer: HugeMemory | None = getattr(self._buffers, "block", None)
        if buffer is None:
            self._buffers.block = buffer = HugeMemory(BLOCK_BYTES)  # it goes with its thread
        return buffer

    def _learn(self, written: int, elapsed_s: float) -> None:
        rate = written / max(elapsed_s, 1e-6)
        retried = self._rate_bytes_s < LEAST_BYTES_S
        # After a retry only the new measurement counts, or a disk that has recovered would need many of them.
        self._rate_bytes_s = rate if retried else self._rate_bytes_s + RATE_WEIGHT * (rate - self._rate_bytes_s)
        if self._rate_bytes_s < LEAST_BYTES_S:
            self._writes_until_retry = WRITES_UNTIL_RETRY


class DirectReads:
    """Whether and how a tier reads directly. Any thread; what is read is in a buffer that is used again (read_buffers.py)."""

    def __init__(self, folder: Path) -> None:
        self._possible = not on_tmpfs(folder)
        self._buffers = ReadBuffers()

    def open(self, file: OpenFile) -> OpenFile | None:
        """The same file, to be read directly; None where that is not possible."""
        if not self._possible:
            return None
        try:
            return OpenFile(Path(f"/proc/self/fd/{file.fd}"), os.O_DIRECT)
        except OSError as error:
            if error.errno in NOT_POSSIBLE:
                self._possible = False
            return None

    def read(self, file: OpenFile, direct: OpenFile | None, offset: int, size: int) -> memoryview | None:
        """`size` bytes at `offset` (fewer at the end of the file), from `direct` if there is one; None if the caller should
        read them in the usual way, because they are few or many. Raises OSError."""
        if not SMALLEST_BYTES <= size <= BUFFER_BYTES:
            return None
        buffer = self._buffers.take()
        if direct is not None and self._possible and offset % ALIGNMENT_BYTES == 0:
            aligned_size = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            try:
                return buffer[: min(os.preadv(direct.fd, [buffer[:aligned_size]], offset), size)]
            except OSError as error:
                if error.errno not in NOT_POSSIBLE:
                    raise
                self._possible = False
        return buffer[: os.preadv(file.fd, [buffer[:size]], offset)]


def on_tmpfs(folder: Path) -> bool:
    """Whether a folder is on tmpfs, where O_DIRECT is accepted and means nothing. False if the kernel does not say."""
    answer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(folder), answer) != 0:
        return False
    return int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], "little") == TMPFS_MAGIC
