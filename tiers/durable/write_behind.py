"""Large writes of a durable tier in a folder: around the page cache, and on their way to the disk while the writer goes on.

A write of a checkpoint that only copies into the page cache makes the processor do most of the work (2 GiB took 2 s of CPU
on a busy machine, against 0.4 s here), and leaves a long fsync for the end. So aligned pieces are copied into one of a few
aligned buffers, and a thread writes them with O_DIRECT; neighbours in the queue go in one call. A writer that is faster than
the disk waits for a buffer, so an fsync finds at most all buffers still to be written.

Pieces of one file are written one after the other, in the order of their writing. A piece that could not be written is
an error of the file for good: what `write` had already answered cannot be made true any more, so no sync may succeed.

Where O_DIRECT is not to be had (tmpfs, some file systems) the threads write through the page cache. Both ways may be mixed
in one file, because the kernel drops cached pages of what is written directly; who reads or writes in another way what is
still queued calls `drain` or `settle` before.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT_BYTES = 4096
BUFFER_BYTES = 1024 * 1024
BUFFERS = 16
THREADS = 2
# What one call writes at most.
TOGETHER = 4
_NOT_POSSIBLE = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_KEEP_SIZE = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Piece:
    offset: int
    size: int
    buffer: mmap.mmap

    @property
    def end(self) -> int:
        return self.offset + self.size


class WriteBehind:
    """Buffers and threads of one tier. The first write starts the threads; `close`, after the last file's, ends them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free: list[mmap.mmap] = []
        self._made = 0
        self._ready: deque[QueuedFile] = deque()  # have pieces, and no thread is at them
        self._threads: list[threading.Thread] = []
        self._closed = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for buffer in self._free:
            buffer.close()
        self._free.clear()

    def take_buffer(self) -> mmap.mmap:
        """An aligned buffer of BUFFER_BYTES; waits for one."""
        with self._changed:
            while not self._free:
                if self._made < BUFFERS:
                    self._made += 1
                    return mmap.mmap(-1, BUFFER_BYTES)
                self._changed.wait()
            return self._free.pop()

    def enqueue(self, file: "QueuedFile", piece: _Piece) -> None:
        with self._changed:
            if len(self._threads) < THREADS:
                thread = threading.Thread(
                    target=self._work, name=f"forebay-write-behind-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            file.pieces.append(piece)
            if not file.busy and file not in self._ready:
                self._ready.append(file)
            self._changed.notify_all()

    def wait_for(self, file: "QueuedFile") -> None:
        """Return when nothing of a file is queued or being written."""
        with self._changed:
            while file.pieces:
                self._changed.wait()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._ready:
                    if self._closed:
                        return
                    self._changed.wait()
                file = self._ready.popleft()
                file.busy = True
                run = _neighbours(file.pieces)
            file.put(run)
            with self._changed:
                for piece in run:
                    file.pieces.popleft()
                    self._free.append(piece.buffer)
                file.busy = False
                if file.pieces:
                    self._ready.append(file)
                self._changed.notify_all()


class QueuedFile:
    """The pieces of one data file. One thread at a time may write; `fd` stays the caller's. Raises OSError."""

    def __init__(self, behind: WriteBehind, fd: int) -> None:
        self._behind = behind
        self._fd = fd
        self._direct_fd = -1
        with contextlib.suppress(OSError):  # then through the page cache
            # Another open file on the very same inode, whatever its path is now.
            self._direct_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        # Of `WriteBehind`, under its lock; pieces being written are still in it.
        self.pieces: deque[_Piece] = deque()
        self.busy = False
        self._error: OSError | None = None
        self._can_reserve = True

    def write(self, offset: int, data: memoryview) -> None:
        """Queue bytes; offset and length are multiples of ALIGNMENT_BYTES. What comes back from it is free to be reused."""
        self._check()
        self._reserve(offset, len(data))
        for start in range(0, len(data), BUFFER_BYTES):
            part = data[start : start + BUFFER_BYTES]
            buffer = self._behind.take_buffer()
            buffer[: len(part)] = part
            self._behind.enqueue(self, _Piece(offset + start, len(part), buffer))

    def touches(self, offset: int, size: int) -> bool:
        """Whether any of these bytes is queued. Said by the one who writes; what is queued only gets less meanwhile."""
        return any(piece.offset < offset + size and offset < piece.end for piece in list(self.pieces))

    def settle(self) -> None:
        """Return when nothing is queued any more, written or failed."""
        if self.pieces:
            self._behind.wait_for(self)

    def drain(self) -> None:
        """Return when all that was ever queued is written (not: synced)."""
        self.settle()
        self._check()

    def close(self) -> None:
        """What is queued is written before, though nobody may care any more."""
        self.settle()
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
            self._direct_fd = -1

    def put(self, run: Sequence[_Piece]) -> None:
        """Write pieces that follow each other. A failure is kept for the writer."""
        if self._error is not None:
            return
        views = [memoryview(piece.buffer)[: piece.size] for piece in run]
        try:
            written = self._put_directly(views, run[0].offset)
            for piece, view in zip(run, views, strict=True):
                while written < piece.end - run[0].offset:
                    at = run[0].offset + written
                    written += os.pwrite(self._fd, view[at - piece.offset :], at)
        except OSError as error:
            self._error = error
        finally:
            for view in views:
                view.release()

    def _reserve(self, offset: int, size: int) -> None:
        """Have the disk set room aside, so that a full one is told to the writer and not to the sync."""
        if self._can_reserve and _libc.fallocate(self._fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(code, os.strerror(code))
            self._can_reserve = False

    def _put_directly(self, views: Sequence[memoryview], offset: int) -> int:
        """How many bytes were written directly, from the front: all, none, or (a disk that fills up) some."""
        if self._direct_fd < 0:
            return 0
        try:
            return os.pwritev(self._direct_fd, views, offset)
        except OSError as error:
            if error.errno not in _NOT_POSSIBLE:
                raise
            return 0

    def _check(self) -> None:
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror)


def _neighbours(pieces: Sequence[_Piece]) -> list[_Piece]:
    """The first piece and those that go on where the one before ends."""
    run = [pieces[0]]
    for piece in list(pieces)[1:TOGETHER]:
        if piece.offset != run[-1].end:
            break
        run.append(piece)
    return run
