"""A durable tier in a directory: any file system whose fsync tells the truth (ext4, XFS, CephFS).

    FOLDER/format        "forebay-write 1"; another version is refused
    FOLDER/identity      a name by chance, by which records know the folder again wherever it is mounted
    FOLDER/lock          flock of the process that has it; says who (embedded mode only)
    FOLDER/data/xx/NAME  one sparse file per data file; xx are two hex digits of a hash of the name

Bytes go to the file at the user's offsets. Large writes go around the page cache while the writer goes on
(write_behind.py). Of small ones the page cache is the buffer; their write-out is started every 8 MiB (sync_file_range),
so that a late fsync finds most of it done instead of beginning then.

A share of the file system stays free (`free_space_ratio`): the write that would go below it gets TierFull, before
the file system itself is full and the records could not be committed either.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ...errors import DirtyDataMissing, TierFailed, TierFull, TierInUse
from ..understore import Buffer
from .tier import Room
from .write_behind import ALIGNMENT_BYTES, QueuedFile, WriteBehind

FORMAT = "forebay-write 1\n"
FANOUT = 256
WRITEOUT_BYTES = 8 * 1024 * 1024
# From here on the page cache only costs; below, it makes one large write of many small ones.
LARGE_WRITE_BYTES = 128 * 1024
# How much may be written between two looks at the free space of the file system.
ROOM_CHECK_BYTES = 64 * 1024 * 1024
ROOM_CHECK_S = 1.0

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _start_writeout(fd: int, offset: int, size: int) -> None:
    """Ask the kernel to begin writing dirty pages of a range, without waiting. Only a hint: its failure means nothing."""
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FolderTier:
    """See the module. `shared=True` takes no lock: several mounts keep data files there, under names of their own."""

    def __init__(self, folder: Path, *, free_space_ratio: float, lock_fd: int | None) -> None:
        """Use `FolderTier.at`."""
        self._folder = folder
        self._data = folder / "data"
        self._free_space_ratio = free_space_ratio
        self._lock_fd = lock_fd
        self.behind = WriteBehind()
        self._room_mutex = threading.Lock()
        self._unchecked_bytes = 0
        self._room_checked_at = float("-inf")

    @classmethod
    def at(cls, folder: Path, *, free_space_ratio: float = 0.05, shared: bool = False) -> "FolderTier":
        """Make or open the tier in `folder`. Raises TierInUse (naming the holder) or TierFailed."""
        lock_fd = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not shared:
                lock_fd = _lock(folder)
            _check_format(folder)
            data = folder / "data"
            for index in range(FANOUT):
                (data / f"{index:02x}").mkdir(parents=True, exist_ok=True)
            _fsync_folder(data)
            _fsync_folder(folder)
        except OSError as error:
            if lock_fd is not None:
                os.close(lock_fd)
            raise TierFailed(
                f"cannot use {folder} as write tier: {error.strerror}", remedy="give a folder that can be written"
            ) from error
        except BaseException:
            if lock_fd is not None:
                os.close(lock_fd)
            raise
        return cls(folder, free_space_ratio=free_space_ratio, lock_fd=lock_fd)

    @property
    def label(self) -> str:
        return f"folder {self._folder}"

    @property
    def identity(self) -> str:
        path = self._folder / "identity"
        try:
            if not path.exists():
                _write_once(path, f"folder {secrets.token_hex(12)}\n")
            return path.read_text().strip()
        except OSError as error:
            self.fail("read", path.name, error)

    def create(self, name: str) -> "FolderFile":
        try:
            fd = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.fail("create", name, error)
        return FolderFile(self, name, fd, name_synced=False)

    def open(self, name: str) -> "FolderFile":
        try:
            fd = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DirtyDataMissing(
                f"data file {name} of write tier {self.label} is gone",
                remedy="restore the folder; what the bucket already has is not affected",
            ) from error
        except OSError as error:
            self.fail("open", name, error)
        return FolderFile(self, name, fd, name_synced=True)

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            self.fail("delete", name, error)

    def names(self) -> Iterator[str]:
        for index in range(FANOUT):
            try:
                yield from os.listdir(self._data / f"{index:02x}")
            except OSError as error:
                self.fail("list", f"{index:02x}/", error)

    def room(self) -> Room:
        try:
            stats = os.statvfs(self._data)
        except OSError as error:
            self.fail("statvfs", "data/", error)
        return Room(stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize)

    def close(self) -> None:
        self.behind.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def claim(self, size: int) -> None:
        """Raise TierFull if writing `size` bytes would take what must stay free. Looks at the disk now and then only."""
        with self._room_mutex:
            self._unchecked_bytes += size
            now = time.monotonic()
            if self._unchecked_bytes < ROOM_CHECK_BYTES and now - self._room_checked_at < ROOM_CHECK_S:
                return
            room = self.room()
            if room.free_bytes - size < room.total_bytes * self._free_space_ratio:
                self._room_checked_at = float("-inf")  # look again at the next write: room may come back
                raise TierFull(
                    f"write tier {self.label} is full: {room.free_bytes} bytes free, and a share of "
                    f"{self._free_space_ratio:g} stays free",
                    remedy="wait for the writeback, or give it more room",
                )
            self._unchecked_bytes = 0
            self._room_checked_at = now

    def fail(self, action: str, name: str, error: OSError) -> NoReturn:
        """Raise what an OSError of this tier means."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TierFull(
                f"write tier {self.label} is full ({action} {name}: {error.strerror})",
                remedy="wait for the writeback, or give it more room",
            ) from error
        raise TierFailed(
            f"write tier {self.label} failed to {action} {name}: {error.strerror}", remedy="check the disk"
        ) from error

    def sync_name(self, name: str) -> None:
        """Make the directory entry of a data file durable."""
        _fsync_folder(self._path(name).parent)

    def _path(self, name: str) -> Path:
        return self._data / hashlib.blake2b(name.encode(), digest_size=1).hexdigest() / name


class FolderFile:
    """A data file of a FolderTier."""

    def __init__(self, tier: FolderTier, name: str, fd: int, *, name_synced: bool) -> None:
        self._tier = tier
        self._name = name
        self._fd = fd
        self._name_synced = name_synced
        self._failed: OSError | None = None
        self._queue: QueuedFile | None = None
        # The contiguous range written since write-out was last started.
        self._run_start = 0
        self._run_end = 0

    @property
    def name(self) -> str:
        return self._name

    def write(self, offset: int, data: Buffer) -> None:
        size = len(data)
        self._tier.claim(size)
        with memoryview(data) as view:
            # The aligned middle goes around the page cache, if it is large.
            head = min(-offset % ALIGNMENT_BYTES, size)
            body = (size - head) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
            if body < LARGE_WRITE_BYTES:
                head, body = size, 0
            try:
                self._write_cached(offset, view[:head])
                if body:
                    self._queued().write(offset + head, view[head : head + body])
                    self._write_cached(offset + head + body, view[head + body :])
            except OSError as error:
                self._tier.fail("write", self._name, error)

    def _write_cached(self, offset: int, data: memoryview) -> None:
        size = len(data)
        if not size:
            return
        if self._queue is not None and self._queue.touches(offset, size):
            self._queue.drain()
        written = os.pwrite(self._fd, data, offset)
        while written < size:
            written += os.pwrite(self._fd, data[written:], offset + written)
        if offset != self._run_end:
            self._run_start = offset
        self._run_end = offset + size
        if self._run_end - self._run_start >= WRITEOUT_BYTES:
            _start_writeout(self._fd, self._run_start, self._run_end - self._run_start)
            self._run_start = self._run_end

    def _queued(self) -> QueuedFile:
        if self._queue is None:
            self._queue = QueuedFile(self._tier.behind, self._fd)
        return self._queue

    def read(self, offset: int, size: int) -> Buffer:
        if self._queue is not None:
            self._queue.settle()
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    return data + bytes(size - len(data))
                data += more
        except OSError as error:
            self._tier.fail("read", self._name, error)
        return data

    def truncate(self, size: int) -> None:
        try:
            self._drain()
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._tier.fail("truncate", self._name, error)

    def sync(self) -> None:
        if self._failed is not None:
            self._tier.fail("sync", self._name, self._failed)
        try:
            self._drain()
            os.fdatasync(self._fd)
            if not self._name_synced:
                self._tier.sync_name(self._name)
                self._name_synced = True
        except OSError as error:
            self._failed = error
            self._tier.fail("sync", self._name, error)

    def _drain(self) -> None:
        if self._queue is not None:
            self._queue.drain()

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
            self._queue = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _write_once(path: Path, text: str) -> None:
    """Make a file, whole and durable, unless it has been made by somebody meanwhile."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()
    _fsync_folder(path.parent)


def _lock(folder: Path) -> int:
    """Take the folder for this process, or raise TierInUse naming who has it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = "another process"
        with contextlib.suppress(ValueError, KeyError):
            known = json.loads(os.pread(fd, 4096, 0))
            holder = f"process {known['pid']} on {known['host']} since {known['since']}"
        os.close(fd)
        raise TierInUse(
            f"write tier {folder} is in use by {holder}",
            remedy="unmount that one, mount with --read-only, or use another --write-tier",
        ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)
    return fd


def _check_format(folder: Path) -> None:
    """Refuse a folder of another format; mark a new one. Dirty data is never guessed at."""
    path = folder / "format"
    try:
        found = path.read_text()
    except FileNotFoundError:
        if (folder / "data").exists() and any(p.is_file() for p in (folder / "data").rglob("*")):
            raise TierFailed(
                f"write tier {folder} has data files but no format file", remedy="restore its file `format`"
            ) from None
        temporary = folder / "format.new"
        with temporary.open("w") as file:
            file.write(FORMAT)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        return
    if found != FORMAT:
        raise TierFailed(
            f"write tier {folder} has format {found.strip()!r}, this version knows {FORMAT.strip()!r}",
            remedy="use the version of Forebay that wrote it to empty it first (`forebay recover`)",
        )
