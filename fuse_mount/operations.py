"""The read-only view as pyfuse3 operations: arguments translated, nothing decided.

It answers as `readonly.ReadOnlyHandlers` does, from the same parts. What pyfuse3 cannot express is absent: opens always
come here, interrupted requests go on until their deadline, and listings are never kept by the kernel.
"""

import asyncio
import errno
import functools
import itertools
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from .attributes import BLOCK_BYTES, FOREVER_S, LINKS, Appearance, FileSystemTotals
from .open_directory import OpenDirectory
from .parts import Parts
from .pyfuse3_shim import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
    readdir_reply,
)
from .pyfuse3_shim import Operations as Pyfuse3Operations
from .view import Absent, Node

_P = ParamSpec("_P")
_T = TypeVar("_T")
_S = TypeVar("_S", bound="ReadOnlyOperations")


def answered(
    method: Callable[Concatenate[_S, int, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[_S, int, _P], Coroutine[Any, Any, _T]]:
    """Let nothing but FUSEError out: anything else would end the session, or leave the request without an answer."""

    @functools.wraps(method)
    async def wrapper(self: _S, ino: int, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            return await method(self, ino, *args, **kwargs)
        except FUSEError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            code = self.boundary.errno_of(error, method.__name__, ino)
            # The task goes on to the next request, which nobody gave up.
            while task.cancelling():
                task.uncancel()
            raise FUSEError(code) from None
        finally:
            self._answering.discard(task)

    return wrapper


def _refused(name: str) -> Any:
    async def refuse(self: "ReadOnlyOperations", *args: object) -> None:
        raise FUSEError(errno.EROFS)

    refuse.__name__ = name
    return refuse


class ReadOnlyOperations(Pyfuse3Operations):
    """Operations of one read-only mount; `on_ready` is called when the kernel has agreed on the protocol."""

    supports_dot_lookup = False

    def __init__(self, parts: Parts, on_ready: Callable[[], None]) -> None:
        super().__init__()
        self.view = parts.view
        self.reads = parts.reads
        self.xattrs = parts.xattrs
        self.boundary = parts.boundary
        self.appearance = Appearance(parts.options)
        self._on_ready = on_ready
        self._directories: dict[int, OpenDirectory] = {}
        self._handle_numbers = itertools.count(1)
        self._answering: set[asyncio.Task[Any]] = set()

    def init(self) -> None:
        self._on_ready()

    def give_up(self) -> None:
        """Answer EINTR to whatever still waits."""
        for task in self._answering:
            task.cancel()

    def close(self) -> None:
        while self._directories:
            self._directories.popitem()[1].close()

    def gauges(self) -> dict[str, int]:
        return {
            "requests_waiting": len(self._answering),
            "open_directories": len(self._directories),
            **self.reads.counters(),
        }

    # --- names and attributes ---------------------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: int, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        found = self.view.peek(parent_inode, name)
        if found is None:
            found = await self.view.lookup(parent_inode, name)
        if isinstance(found, Absent):
            if self.view.negative_ttl_s <= 0:
                raise FUSEError(errno.ENOENT)
            absent = EntryAttributes()
            absent.st_ino = InodeT(0)
            absent.entry_timeout = min(self.view.negative_ttl_s, FOREVER_S)
            return absent
        return self._attributes(found)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.view.node(inode))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for ino, count in inode_list:
            try:
                self.reads.forget(ino)
                self.view.forget(ino, count)
            except Exception as error:
                self.boundary.errno_of(error, "forget", ino)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        totals = FileSystemTotals()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = totals.blocks
        data.f_bfree = data.f_bavail = totals.free_blocks
        data.f_files = totals.files
        data.f_ffree = data.f_favail = totals.free_files
        data.f_namemax = totals.name_bytes
        return data

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(node.ino)
        entry.generation = 0
        entry.entry_timeout = min(node.entry_ttl_s, FOREVER_S)
        entry.attr_timeout = FOREVER_S
        entry.st_mode = self.appearance.modes[int(node.kind)]
        entry.st_nlink = LINKS
        entry.st_uid = self.appearance.uid
        entry.st_gid = self.appearance.gid
        entry.st_rdev = 0
        entry.st_size = node.size
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = -(-node.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime_ns
        return entry

    # --- contents ---------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = self.reads.now(fh, off, size)
        if data is None:
            data = await self.reads.later(fh, off, size)
        return data  # type: ignore[return-value]  # any buffer is taken, whatever the stub says

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def flush(self, fh: FileHandleT) -> None:
        pass

    # --- folders ----------------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> FileHandleT:
        directory = OpenDirectory(self.view, await self.view.open_directory(inode), inode, self.appearance)
        handle = next(self._handle_numbers)
        self._directories[handle] = directory
        return FileHandleT(handle)

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._directories.get(fh)
        if directory is None:
            raise FUSEError(errno.EBADF)
        for entry in directory.entries(start_id, plus=True):
            attributes = self._attributes(entry.node)
            if not readdir_reply(token, FileNameT(entry.name), attributes, directory.offset_after(entry)):
                self.view.forget(entry.node.ino, 1)
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        directory = self._directories.pop(fh, None)
        if directory is not None:
            directory.close()

    # --- extended attributes ----------------------------------------------------------------------------

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.xattrs.value(inode, name)

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self.xattrs.names(inode)

    # --- everything that writes -------------------------------------------------------------------------

    mknod = _refused("mknod")
    mkdir = _refused("mkdir")
    unlink = _refused("unlink")
    rmdir = _refused("rmdir")
    symlink = _refused("symlink")
    rename = _refused("rename")
    link = _refused("link")
    create = _refused("create")
    write = _refused("write")
    setxattr = _refused("setxattr")
    removexattr = _refused("removexattr")
    setattr = _refused("setattr")
