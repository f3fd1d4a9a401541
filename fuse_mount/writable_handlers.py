"""Requests of the wire on a writable mount: arguments taken apart, `Writing` asked, replies put together."""

import errno
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from ..cache.write.operations import Attributes
from ..tiers.understore import Buffer
from .parts import Parts
from .readonly import Handler, ReadOnlyHandlers, Reply
from .turns import Postponed
from .wire import (
    CREATE_IN,
    ENTRY_OUT,
    FALLOCATE_IN,
    FLUSH_IN,
    HEADER_BYTES,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    RENAME2_IN,
    RENAME_IN,
    SETATTR_IN,
    SETXATTR_IN,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    InitFlag,
    Op,
    OpenFlag,
    Valid,
    caller_of,
    name_of,
    names_of,
)
from .writable_appearance import WritableAppearance
from .writable_view import WritableView
from .writable_xattrs import WritableXattrs
from .writing import Answer, Writing

T = TypeVar("T")
_S_IFMT, _S_IFREG = 0o170000, 0o100000
_NS = 1_000_000_000
WRITE_BYTES = 1024 * 1024


class WritableHandlers(ReadOnlyHandlers):
    max_write_bytes = WRITE_BYTES
    # Else the kernel asks for security.capability before every write.
    extra_flags = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.ATOMIC_O_TRUNC

    def __init__(self, parts: Parts, writing: Writing) -> None:
        super().__init__(parts)
        assert isinstance(parts.view, WritableView)
        self.writing = writing
        self.xattrs = WritableXattrs(parts.view, parts.xattrs)
        self.appearance = WritableAppearance(parts.options, parts.view)

    @property
    def handlers(self) -> dict[int, Handler]:
        table = super().handlers
        table.update(
            {
                Op.SETATTR: self.setattr, Op.READLINK: self.readlink, Op.SYMLINK: self.symlink, Op.MKNOD: self.mknod,
                Op.MKDIR: self.mkdir, Op.UNLINK: self.unlink, Op.RMDIR: self.rmdir, Op.RENAME: self.rename,
                Op.RENAME2: self.rename2, Op.WRITE: self.write, Op.CREATE: self.create, Op.FLUSH: self.flush,
                Op.FSYNC: self.fsync, Op.SETXATTR: self.setxattr, Op.REMOVEXATTR: self.removexattr,
                Op.FALLOCATE: self.fallocate,
                # Every change of names is durable before it is answered, so there is nothing left to sync.
                Op.FSYNCDIR: lambda ino, request: b"",
                # EPERM is what link(2) says of a file system without hard links.
                Op.LINK: lambda ino, request: errno.EPERM,
                Op.TMPFILE: lambda ino, request: errno.EOPNOTSUPP,
            }
        )  # fmt: skip
        return table

    @property
    def undelivered(self) -> dict[int, Callable[[memoryview], None]]:
        return super().undelivered | {
            Op.MKDIR: self._take_back_entry,
            Op.SYMLINK: self._take_back_entry,
            Op.MKNOD: self._take_back_entry,
            Op.CREATE: self._take_back_created,
            Op.OPEN: self._take_back_opened,
        }

    def close(self) -> None:
        super().close()
        self.writing.close()

    def gauges(self) -> Mapping[str, int]:
        return {**super().gauges(), **self.writing.gauges()}

    # --- files --------------------------------------------------------------------------------------------

    def open(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:  # type: ignore[override]
        flags, _ = OPEN_IN.unpack_from(request, HEADER_BYTES)
        return _then(
            self.writing.open(ino, flags), lambda handle: self._open_out(handle, keep=self.writing.is_kept(ino))
        )

    def create(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        _, mode, _, _ = CREATE_IN.unpack_from(request, HEADER_BYTES)
        name = name_of(request, HEADER_BYTES + CREATE_IN.size)
        answer = self.writing.create(parent, name, self._attributes_of(request, mode))
        return _then(answer, lambda made: self.appearance.entry(made[0]) + self._open_out(made[1]))

    def read(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply] | Postponed:
        handle, offset, size = READ_IN.unpack_from(request, HEADER_BYTES)
        if self.writing.reads_plainly(handle, ino):
            return super().read(ino, request)
        return self.writing.read(handle, offset, size)

    def write(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        handle, offset, size, flags, _, _, _ = WRITE_IN.unpack_from(request, HEADER_BYTES)
        start = HEADER_BYTES + WRITE_IN.size
        data = request[start : start + size]
        if len(data) != size:
            raise ValueError(f"WRITE of {size} bytes in a request of {len(request)}")
        if flags & WRITE_KILL_SUIDGID:
            self.writing.drop_privileges(ino)
        return _then(self.writing.write(handle, offset, data), lambda written: WRITE_OUT.pack(written, 0))

    def flush(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        (handle,) = FLUSH_IN.unpack_from(request, HEADER_BYTES)
        return _then(self.writing.flush(handle), _empty)

    def fsync(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        (handle,) = FLUSH_IN.unpack_from(request, HEADER_BYTES)
        return _then(self.writing.sync(handle), _empty)

    def release(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:  # type: ignore[override]
        handle, _, _ = RELEASE_IN.unpack_from(request, HEADER_BYTES)
        return _then(self.writing.release(handle), _empty)

    def fallocate(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        handle, offset, length, mode, _ = FALLOCATE_IN.unpack_from(request, HEADER_BYTES)
        return _then(self.writing.allocate(handle, offset, length, mode), _empty)

    # --- attributes ---------------------------------------------------------------------------------------

    def setattr(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        valid, _, handle, size, _, _, mtime, _, _, mtime_ns, _, mode, _, uid, gid, _ = SETATTR_IN.unpack_from(
            request, HEADER_BYTES
        )
        when_ns = None
        if valid & Valid.MTIME_NOW:
            when_ns = time.time_ns()
        elif valid & Valid.MTIME:
            when_ns = mtime * _NS + mtime_ns
        answer = self.writing.set_attributes(
            ino,
            handle=handle if valid & Valid.FH else None,
            size=size if valid & Valid.SIZE else None,
            mode=mode if valid & Valid.MODE else None,
            uid=uid if valid & Valid.UID else None,
            gid=gid if valid & Valid.GID else None,
            mtime_ns=when_ns,
        )
        if valid & Valid.KILL_SUIDGID:
            self.writing.drop_privileges(ino)
        return _then(answer, self.appearance.attributes)

    def readlink(self, ino: int, request: memoryview) -> Reply:
        return self.writing.read_link(ino)

    def setxattr(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        size, flags = SETXATTR_IN.unpack_from(request, HEADER_BYTES)
        rest = bytes(request[HEADER_BYTES + SETXATTR_IN.size :])
        name, end, value = rest.partition(b"\0")
        if not end or len(value) < size:
            raise ValueError(f"SETXATTR of {size} bytes in a request of {len(request)}")
        return _then(self.writing.set_xattr(ino, name, value[:size], flags), _empty)

    def removexattr(self, ino: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        return _then(self.writing.remove_xattr(ino, name_of(request)), _empty)

    # --- names --------------------------------------------------------------------------------------------

    def mkdir(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        mode, _ = MKDIR_IN.unpack_from(request, HEADER_BYTES)
        name = name_of(request, HEADER_BYTES + MKDIR_IN.size)
        return _then(self.writing.mkdir(parent, name, self._attributes_of(request, mode)), self.appearance.entry)

    def mknod(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        mode, _, _, _ = MKNOD_IN.unpack_from(request, HEADER_BYTES)
        if mode & _S_IFMT not in (0, _S_IFREG):
            return errno.EPERM  # devices, pipes and sockets are nothing that an object could be
        name = name_of(request, HEADER_BYTES + MKNOD_IN.size)
        return _then(self.writing.make(parent, name, self._attributes_of(request, mode)), self.appearance.entry)

    def symlink(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        name, target = names_of(request, HEADER_BYTES)
        attributes = self._attributes_of(request, 0o777)
        return _then(self.writing.symlink(parent, name, target, attributes), self.appearance.entry)

    def unlink(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        return _then(self.writing.unlink(parent, name_of(request)), _empty)

    def rmdir(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        return _then(self.writing.rmdir(parent, name_of(request)), _empty)

    def rename(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        (new_parent,) = RENAME_IN.unpack_from(request, HEADER_BYTES)
        name, new_name = names_of(request, HEADER_BYTES + RENAME_IN.size)
        return _then(self.writing.rename(parent, name, new_parent, new_name, 0), _empty)

    def rename2(self, parent: int, request: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        new_parent, flags, _ = RENAME2_IN.unpack_from(request, HEADER_BYTES)
        name, new_name = names_of(request, HEADER_BYTES + RENAME2_IN.size)
        return _then(self.writing.rename(parent, name, new_parent, new_name, flags), _empty)

    # --- inside -------------------------------------------------------------------------------------------

    @staticmethod
    def _open_out(handle: int, *, keep: bool = True) -> bytes:
        return OPEN_OUT.pack(handle, OpenFlag.KEEP_CACHE if keep else 0, 0)

    @staticmethod
    def _attributes_of(request: memoryview, mode: int) -> Attributes:
        uid, gid, _ = caller_of(request)
        return Attributes(mode & 0o7777, uid, gid)

    def _take_back_created(self, reply: memoryview) -> None:
        self._take_back_entry(reply)
        self._take_back_opened(reply[ENTRY_OUT.size :])

    def _take_back_opened(self, reply: memoryview) -> None:
        handle, _, _ = OPEN_OUT.unpack_from(reply)
        self.writing.discard(handle)


def _then(answer: Answer[T], shape: Callable[[T], Buffer]) -> Reply | Coroutine[Any, Any, Reply]:
    """The reply made of an answer, now or later."""
    if isinstance(answer, Coroutine):
        return _shaped(answer, shape)
    return shape(answer)


async def _shaped(answer: Coroutine[Any, Any, T], shape: Callable[[T], Buffer]) -> Reply:
    return shape(await answer)


def _empty(nothing: object) -> bytes:
    return b""
