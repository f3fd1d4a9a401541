"""A writable mount as pyfuse3 operations: arguments translated, nothing decided; `Writing` answers as it does for the lane."""

import errno
import stat
from collections.abc import Callable, Coroutine
from typing import TypeVar

from ..cache.write.operations import Attributes
from .operations import ReadOnlyOperations, answered
from .parts import Parts
from .pyfuse3_shim import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
)
from .view import Node
from .writable_appearance import WritableAppearance
from .writable_view import WritableView
from .writable_xattrs import WritableXattrs
from .writing import Answer, Writing

T = TypeVar("T")


async def _done(answer: Answer[T]) -> T:
    return await answer if isinstance(answer, Coroutine) else answer


class WritableOperations(ReadOnlyOperations):
    def __init__(self, parts: Parts, on_ready: Callable[[], None], writing: Writing) -> None:
        super().__init__(parts, on_ready)
        assert isinstance(parts.view, WritableView)
        self.writing = writing
        self.xattrs = WritableXattrs(parts.view, parts.xattrs)
        self._looks = WritableAppearance(parts.options, parts.view)
        self.appearance = self._looks
        # pyfuse3 gives the handle alone to read and write.
        self._ino_of: dict[int, int] = {}

    def close(self) -> None:
        super().close()
        self.writing.close()

    def gauges(self) -> dict[str, int]:
        return {**super().gauges(), **self.writing.gauges()}

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = super()._attributes(node)
        entry.st_mode = ModeT(self._looks.mode(node))
        entry.st_uid, entry.st_gid = self._looks.owner(node)
        return entry

    # --- files --------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: FlagT, ctx: RequestContext) -> FileInfo:
        handle = await _done(self.writing.open(inode, flags))
        self._ino_of[handle] = inode
        return FileInfo(fh=FileHandleT(handle), keep_cache=self.writing.is_kept(inode))

    @answered
    async def create(
        self, parent_inode: int, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node, handle = await _done(self.writing.create(parent_inode, name, _attributes_of(ctx, mode)))
        self._ino_of[handle] = node.ino
        return FileInfo(fh=FileHandleT(handle), keep_cache=True), self._attributes(node)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        ino = self._ino_of[fh]
        if self.writing.reads_plainly(fh, ino):
            data = self.reads.now(ino, off, size)
            return data if data is not None else await self.reads.later(ino, off, size)  # type: ignore[return-value]
        return bytes(await _done(self.writing.read(fh, off, size)))

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await _done(self.writing.write(fh, off, buf))

    @answered
    async def flush(self, fh: int) -> None:
        await _done(self.writing.flush(fh))

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await _done(self.writing.sync(fh))

    @answered
    async def release(self, fh: int) -> None:
        self._ino_of.pop(fh, None)
        await _done(self.writing.release(fh))

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass  # every change of names is durable before it is answered

    # --- attributes ---------------------------------------------------------------------------------------

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = await _done(
            self.writing.set_attributes(
                inode,
                handle=fh,
                size=attr.st_size if fields.update_size else None,
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
        )
        return self._attributes(node)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> FileNameT:
        return FileNameT(self.writing.read_link(inode))

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await _done(self.writing.set_xattr(inode, name, value, 0))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await _done(self.writing.remove_xattr(inode, name))

    # --- names --------------------------------------------------------------------------------------------

    @answered
    async def mkdir(self, parent_inode: int, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await _done(self.writing.mkdir(parent_inode, name, _attributes_of(ctx, mode))))

    @answered
    async def mknod(
        self, parent_inode: int, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        return self._attributes(await _done(self.writing.make(parent_inode, name, _attributes_of(ctx, mode))))

    @answered
    async def symlink(
        self, parent_inode: int, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        attributes = Attributes(0o777, ctx.uid, ctx.gid)
        return self._attributes(await _done(self.writing.symlink(parent_inode, name, target, attributes)))

    @answered
    async def unlink(self, parent_inode: int, name: FileNameT, ctx: RequestContext) -> None:
        await _done(self.writing.unlink(parent_inode, name))

    @answered
    async def rmdir(self, parent_inode: int, name: FileNameT, ctx: RequestContext) -> None:
        await self.writing.rmdir(parent_inode, name)

    @answered
    async def rename(
        self, parent_inode_old: int, name_old: FileNameT, parent_inode_new: InodeT, name_new: FileNameT, flags: FlagT,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        await _done(self.writing.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags))

    @answered
    async def link(
        self, inode: int, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        raise OSError(errno.EPERM, "there are no hard links")


def _attributes_of(ctx: RequestContext, mode: int) -> Attributes:
    return Attributes(stat.S_IMODE(mode & ~ctx.umask), ctx.uid, ctx.gid)
