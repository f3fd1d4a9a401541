"""Requests of the wire, answered from a read-only view: one method per operation, and the table that names them.

A handler gets the inode and the whole request, and answers at once with bytes, an errno (positive int), `None` (no reply is
due), a coroutine where it must wait (the lane hands that to the event loop), or `Postponed` for a read whose turn has not
come. It may raise anything; the boundary translates. The request's memory is reused as soon as a handler returns, so what
a coroutine needs is copied out first.

A writable mount extends the table (`handlers`) with more operations and replaces OPEN, RELEASE, FLUSH and FSYNC; what
counts a lookup must also be in `undelivered`. Its `Kit` is given to `mount`.
"""

import errno
import itertools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from ..tiers.understore import Buffer
from .attributes import BLOCK_BYTES, Appearance, FileSystemTotals, absent_entry
from .open_directory import OpenDirectory
from .parts import Parts
from .turns import Postponed, Turns
from .view import Absent, Node
from .wire import (
    ENTRY_NODEID,
    FORGET_IN,
    GETXATTR_IN,
    GETXATTR_OUT,
    HEADER_BYTES,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    STATFS_OUT,
    InitFlag,
    Op,
    OpenFlag,
    direntplus_inodes,
    forgotten,
    name_of,
)

# Data, or a positive errno.
Reply: TypeAlias = Buffer | int
Handler: TypeAlias = Callable[[int, memoryview], Reply | Coroutine[Any, Any, Reply] | Postponed | None]

_WRITING = (
    Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.LINK, Op.WRITE, Op.CREATE,
    Op.SETXATTR, Op.REMOVEXATTR, Op.FALLOCATE, Op.TMPFILE,
)  # fmt: skip


class ReadOnlyHandlers:
    """The operations of one read-only mount."""

    # The largest WRITE the kernel may send; the smallest it accepts, as none will come.
    max_write_bytes = 4096
    # What is asked of the kernel beside what every mount asks.
    extra_flags = InitFlag(0)

    def __init__(self, parts: Parts) -> None:
        self.view = view = parts.view
        self.reads = parts.reads
        self.xattrs = parts.xattrs
        self.appearance = Appearance(parts.options)
        self.open_without_asking = False
        self._totals = FileSystemTotals()
        self._directories: dict[int, OpenDirectory] = {}
        # Large folders that are being listed without attributes, by inode: a lookup in one of them changes that.
        self._by_name_only: dict[int, OpenDirectory] = {}
        self._handle_numbers = itertools.count(1)
        self.turns = Turns(max(parts.options.lane_threads - 1, 1))
        self._absent = absent_entry(view.negative_ttl_s)
        listing_kept = OpenFlag.CACHE_DIR if view.negative_ttl_s == float("inf") else 0
        self._directory_flags = int(OpenFlag.KEEP_CACHE | listing_kept)

    @property
    def handlers(self) -> dict[int, Handler]:
        """Operation code -> handler. What is not in it is answered ENOSYS, which the kernel remembers."""
        table: dict[int, Handler] = {
            Op.LOOKUP: self.lookup,
            Op.FORGET: self.forget,
            Op.BATCH_FORGET: self.batch_forget,
            Op.GETATTR: self.getattr,
            Op.OPEN: self.open,
            Op.READ: self.read,
            Op.OPENDIR: self.opendir,
            Op.READDIR: self.readdir,
            Op.READDIRPLUS: self.readdirplus,
            Op.RELEASEDIR: self.releasedir,
            Op.STATFS: self.statfs,
            Op.GETXATTR: self.getxattr,
            Op.LISTXATTR: self.listxattr,
            Op.RELEASE: self.release,
            Op.IOCTL: lambda ino, request: errno.ENOTTY,
        }
        table.update(dict.fromkeys(_WRITING, lambda ino, request: errno.EROFS))
        return table

    @property
    def undelivered(self) -> dict[int, Callable[[memoryview], None]]:
        """Operation code -> what takes back a reply that never reached the kernel."""
        return {
            Op.LOOKUP: self._take_back_entry,
            Op.READDIRPLUS: self._take_back_listing,
            Op.OPENDIR: self._take_back_directory,
        }

    def close(self) -> None:
        """The mount is gone: let go of what the kernel can no longer release."""
        while self._directories:
            self._directories.popitem()[1].close()

    def gauges(self) -> Mapping[str, int]:
        return {"open_directories": len(self._directories), **self.reads.counters()}

    # --- names and attributes ---------------------------------------------------------------------------

    def lookup(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        name = name_of(request)
        if parent in self._by_name_only:
            directory = self._by_name_only.pop(parent, None)
            if directory is not None:
                directory.expect_lookups()
        found = self.view.peek(parent, name)
        if found is None:
            return self._lookup_later(parent, name)
        return self._entry(found)

    async def _lookup_later(self, parent: int, name: bytes) -> Reply:
        return self._entry(await self.view.lookup(parent, name))

    def _entry(self, found: Node | Absent) -> Reply:
        if isinstance(found, Absent):
            # nodeid 0 is "absent, and remember it"; without a time to remember, plain ENOENT.
            return self._absent if self.view.negative_ttl_s > 0 else errno.ENOENT
        return self.appearance.entry(found)

    def forget(self, ino: int, request: memoryview) -> None:
        (count,) = FORGET_IN.unpack_from(request, HEADER_BYTES)
        self._forget(ino, count)

    def batch_forget(self, ino: int, request: memoryview) -> None:
        for one, count in forgotten(request):
            self._forget(one, count)

    def _forget(self, ino: int, count: int) -> None:
        self.reads.forget(ino)
        self.view.forget(ino, count)

    def getattr(self, ino: int, request: memoryview) -> Reply:
        return self.appearance.attributes(self.view.node(ino))

    def statfs(self, ino: int, request: memoryview) -> Reply:
        t = self._totals
        return STATFS_OUT.pack(
            t.blocks, t.free_blocks, t.free_blocks, t.files, t.free_files, BLOCK_BYTES, t.name_bytes, BLOCK_BYTES
        )

    # --- contents ---------------------------------------------------------------------------------------

    def open(self, ino: int, request: memoryview) -> Reply:
        if self.open_without_asking:
            return errno.ENOSYS
        return OPEN_OUT.pack(0, OpenFlag.KEEP_CACHE, 0)

    def release(self, ino: int, request: memoryview) -> Reply:
        return b""

    def read(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply] | Postponed:
        _, offset, size = READ_IN.unpack_from(request, HEADER_BYTES)
        if not self.turns.take():
            return Postponed(ino, offset, size)
        return self.read_in_turn(ino, offset, size)

    def read_in_turn(self, ino: int, offset: int, size: int) -> Reply | Coroutine[Any, Any, Reply]:
        """A read for which a turn was taken; it is given back."""
        try:
            data = self.reads.now(ino, offset, size)
        finally:
            self.turns.give_back()
        return self.reads.later(ino, offset, size) if data is None else data

    def read_elsewhere(self, ino: int, offset: int, size: int) -> Coroutine[Any, Any, Reply]:
        """A read for which there is no turn."""
        return self.reads.later(ino, offset, size)

    # --- folders ----------------------------------------------------------------------------------------

    async def opendir_later(self, ino: int) -> Reply:
        directory = OpenDirectory(self.view, await self.view.open_directory(ino), ino, self.appearance)
        handle = next(self._handle_numbers)
        self._directories[handle] = directory
        return OPEN_OUT.pack(handle, self._directory_flags, 0)

    def opendir(self, ino: int, request: memoryview) -> Coroutine[Any, Any, Reply]:
        return self.opendir_later(ino)

    def readdir(self, ino: int, request: memoryview) -> Reply:
        handle, offset, size = READ_IN.unpack_from(request, HEADER_BYTES)
        return self._directory(handle).read(offset, size, plus=False)

    def readdirplus(self, ino: int, request: memoryview) -> Reply:
        handle, offset, size = READ_IN.unpack_from(request, HEADER_BYTES)
        directory = self._directory(handle)
        reply = directory.read(offset, size, plus=True)
        if directory.is_listed_by_name_only:
            self._by_name_only[ino] = directory
        return reply

    def releasedir(self, ino: int, request: memoryview) -> Reply:
        handle, _, _ = RELEASE_IN.unpack_from(request, HEADER_BYTES)
        directory = self._directories.pop(handle, None)
        if directory is not None:
            directory.close()
        self._by_name_only.pop(ino, None)
        return b""

    def _directory(self, handle: int) -> OpenDirectory:
        directory = self._directories.get(handle)
        if directory is None:
            raise OSError(errno.EBADF, f"no open folder {handle}")
        return directory

    # --- extended attributes ----------------------------------------------------------------------------

    def getxattr(self, ino: int, request: memoryview) -> Reply:
        size, _ = GETXATTR_IN.unpack_from(request, HEADER_BYTES)
        return sized(self.xattrs.value(ino, name_of(request, HEADER_BYTES + GETXATTR_IN.size)), size)

    def listxattr(self, ino: int, request: memoryview) -> Reply:
        size, _ = GETXATTR_IN.unpack_from(request, HEADER_BYTES)
        return sized(b"".join(name + b"\0" for name in self.xattrs.names(ino)), size)

    # --- replies that nobody got --------------------------------------------------------------------------

    def _take_back_entry(self, reply: memoryview) -> None:
        (ino,) = ENTRY_NODEID.unpack_from(reply)
        if ino:
            self.view.forget(ino, 1)

    def _take_back_listing(self, reply: memoryview) -> None:
        for ino in direntplus_inodes(reply):
            self.view.forget(ino, 1)

    def _take_back_directory(self, reply: memoryview) -> None:
        handle, _, _ = OPEN_OUT.unpack_from(reply)
        directory = self._directories.pop(handle, None)
        if directory is not None:
            directory.close()


def sized(value: bytes, size: int) -> Reply:
    """The answer about an attribute: its length when the caller probes with 0, ERANGE when it does not fit."""
    if size == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else errno.ERANGE
