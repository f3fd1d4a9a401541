"""A folder as an under store (`file:///dir`): local disks, NFS, CephFS, Lustre.

The etag is made of inode, size and mtime (in ns), so that a file that is replaced *or changed in place* has another
version; it is checked before and after the bytes are read. What it cannot see is a change that keeps size and mtime.
Keys are paths relative to the folder; bytes that are no UTF-8 are held as surrogate escapes.

Symlinks are followed as long as they stay inside the folder. Those that leave it, links to nothing, loops, devices,
sockets and pipes are not shown; `counters.skipped` counts them by reason and each is logged once. An empty directory is listed
as a folder marker (`name/`, 0 bytes), as tools leave them in buckets.

Writes go to a hidden file in the same directory, are fsynced and then renamed (linked, for `if_absent`), under a lock
on the folder, so a reader sees the old or the new object, and a crash leaves the old one.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ...errors import (
    BucketNotFound,
    ObjectChanged,
    ObjectNotFound,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from ..understore import Buffer, ListPage, ObjectInfo
from ..version import ObjectVersion
from .calls import Calls
from .counters import StoreCounters
from .cursors import ListingCursors, Row, order
from .options import StoreOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_THREADS = 16
MAX_LOGGED_SKIPS = 1000
HIDDEN_PREFIX = ".forebay-incoming-"
METADATA_XATTR = "user.forebay.metadata"
_NO_SUCH_OBJECT = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class FolderStore:
    """Implements `UnderStore` over a directory. Blocking calls run in at most MAX_THREADS threads of its own."""

    def __init__(self, folder: Path, options: StoreOptions) -> None:
        self._root = os.path.abspath(folder)
        self.id = "file://" + quote(os.fsencode(self._root))
        self._logged_skips: set[str] = set()
        self._cursors = ListingCursors()
        threads = min(MAX_THREADS, options.max_connections)
        self._calls = Calls(self.id, timeout_s=options.timeout_s, max_connections=threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="folder-store")

    @property
    def counters(self) -> StoreCounters:
        return self._calls.counters

    def version(self, info: ObjectInfo) -> ObjectVersion:
        return ObjectVersion(self.id, info.key, info.etag, info.size)

    async def check(self) -> None:
        await self._run("check", "listing it", self._check)

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        if delimiter not in (None, "/"):
            raise UsageError(f"{self.id}: listing with delimiter {delimiter!r}", remedy="folders know only '/'")

        def page() -> ListPage:
            self._check()
            return self._cursors.page(prefix, delimiter, token, limit, lambda: self._walk(prefix, delimiter))

        return await self._run("list", f"listing of {prefix!r}", page)

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        return await self._run("head", f"look-up of {key!r}", lambda: self._head(key))

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        what = f"read of {version.key!r}"
        data = await self._run("get", what, lambda: self._read(version, offset, size))
        self.counters.bytes_read += size
        return data

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        def write(fd: int) -> None:
            view = memoryview(data).cast("B")
            while len(view):
                view = view[os.write(fd, view) :]

        what = f"writing of {key!r}"
        info = await self._run("put", what, lambda: self._write(key, write, metadata or {}, if_match, if_absent))
        self.counters.bytes_written += len(data)
        return info

    async def copy(
        self,
        source: ObjectVersion,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        def copy() -> ObjectInfo:
            with self._opened(source.key) as source_fd:
                self._require(source, source_fd)

                def write(fd: int) -> None:
                    left = source.size
                    while left:
                        moved = os.copy_file_range(source_fd, fd, left)
                        if not moved:
                            break
                        left -= moved
                    self._require(source, source_fd)

                kept = _metadata(source_fd) if metadata is None else metadata
                return self._write(key, write, kept, if_match, if_absent)

        return await self._run("copy", f"copy of {source.key!r} to {key!r}", copy)

    async def delete(self, key: str) -> bool:
        tries = 0

        def delete() -> None:
            nonlocal tries
            tries += 1
            self._delete(key)

        await self._run("delete", f"removal of {key!r}", delete)
        return tries == 1

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- In a thread. -----------------------------------------------------------------------------------

    async def _run(self, kind: str, what: str, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except OSError as error:
                raise self._sorted(error, what) from error

        return await self._calls.run(
            kind, what, lambda: asyncio.get_running_loop().run_in_executor(self._pool, guarded)
        )

    def _sorted(self, error: OSError, what: str) -> StoreError:
        reason = f"{self.id}: {what}: {os.strerror(error.errno) if error.errno else error}"
        if error.errno in _NO_SUCH_OBJECT:
            return ObjectNotFound(reason)
        if error.errno in _DENIED:
            return StoreDenied(reason, remedy="check the permissions of the folder")
        return StoreUnavailable(reason)

    def _check(self) -> None:
        try:
            mode = os.stat(self._root).st_mode
        except OSError as error:
            if error.errno in _NO_SUCH_OBJECT:
                raise BucketNotFound(f"{self.id}: no such folder", remedy="create it, or correct the path") from error
            raise
        if not stat.S_ISDIR(mode):
            raise BucketNotFound(f"{self.id}: is no folder", remedy="give the folder that holds the files")
        if not os.access(self._root, os.R_OK | os.X_OK):
            raise StoreDenied(f"{self.id}: no permission to list it", remedy="check the permissions of the folder")

    def _path(self, key: str) -> str | None:
        """The file path of a key; None for a key that no file can have."""
        parts = key.removesuffix("/").split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            return None
        return f"{self._root}/{key}"

    def _is_inside(self, path: str) -> bool:
        root = os.path.realpath(self._root)
        real = os.path.realpath(path)
        return real == root or real.startswith(root.rstrip("/") + "/")

    def _head(self, key: str) -> ObjectInfo | None:
        self._check()
        path = self._path(key)
        if path is None:
            return None
        try:
            if key.endswith("/"):
                status = os.stat(path)
                is_marker = stat.S_ISDIR(status.st_mode) and self._is_inside(path)
                return ObjectInfo(key, 0, _etag(status, size=0), status.st_mtime_ns) if is_marker else None
            with self._opened(key) as fd:
                status = os.fstat(fd)
                return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime_ns, metadata=_metadata(fd))
        except ObjectNotFound:
            return None
        except OSError as error:
            if error.errno in _NO_SUCH_OBJECT:
                return None
            raise

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """A descriptor of the regular file inside the folder that holds `key`; raises ObjectNotFound or OSError."""
        path = self._path(key)
        if path is None or key.endswith("/"):
            raise ObjectNotFound(f"{self.id}: no object {key!r}")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _NO_SUCH_OBJECT:
                self._check()
                raise ObjectNotFound(f"{self.id}: no object {key!r}") from error
            raise
        try:
            # What was really opened is asked, not the path again: a link may have been changed meanwhile.
            real = os.readlink(f"/proc/self/fd/{fd}")
            if not real.startswith(self._root.rstrip("/") + "/") and not self._is_inside(
                real.removesuffix(" (deleted)")
            ):
                raise ObjectNotFound(f"{self.id}: {key!r} is a link that leaves the folder")
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ObjectNotFound(f"{self.id}: {key!r} is no regular file")
            yield fd
        finally:
            os.close(fd)

    def _require(self, version: ObjectVersion, fd: int) -> None:
        status = os.fstat(fd)
        if _etag(status) != version.etag or status.st_size != version.size:
            raise ObjectChanged(
                f"{self.id}: {version.key!r} was changed", remedy="open it again for its present version"
            )

    def _read(self, version: ObjectVersion, offset: int, size: int) -> bytes:
        with self._opened(version.key) as fd:
            self._require(version, fd)
            data = os.pread(fd, size, offset)
            while len(data) < size:  # signals and some network file systems answer in pieces
                more = os.pread(fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            self._require(version, fd)
        if len(data) != size:
            raise StoreCorrupt(f"{self.id}: {version.key!r} gave {len(data)} bytes of {size} at {offset}")
        return data

    def _write(
        self,
        key: str,
        write: Callable[[int], None],
        metadata: Mapping[str, str],
        if_match: str | None,
        if_absent: bool,
    ) -> ObjectInfo:
        self._check()
        path = self._path(key)
        if path is None:
            raise UsageError(f"{self.id}: no file can be named {key!r}")
        if key.endswith("/"):
            os.makedirs(path, exist_ok=True)
            return ObjectInfo(key, 0, _etag(os.stat(path), size=0), os.stat(path).st_mtime_ns)
        parent = os.path.dirname(path)
        if not self._is_inside(parent):
            raise StoreDenied(f"{self.id}: {key!r} is behind a link that leaves the folder")
        os.makedirs(parent, exist_ok=True)
        incoming = f"{parent}/{HIDDEN_PREFIX}{secrets.token_hex(8)}"
        fd = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write(fd)
            self._keep_metadata(fd, metadata)
            os.fsync(fd)
            with self._locked():
                self._require_condition(key, if_match, if_absent)
                os.rename(incoming, path)
            status = os.fstat(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(incoming)
            raise
        finally:
            os.close(fd)
        _fsync_directory(parent)
        return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime_ns, metadata=dict(metadata))

    def _keep_metadata(self, fd: int, metadata: Mapping[str, str]) -> None:
        if not metadata:
            return
        try:
            os.setxattr(fd, METADATA_XATTR, json.dumps(dict(metadata)).encode())
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG):
                raise StoreError(
                    f"{self.id}: the file system cannot keep the object's metadata ({os.strerror(error.errno)})",
                    remedy="use a folder on a file system with extended attributes",
                ) from error
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Conditional writers, of all processes, one after the other."""
        fd = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _require_condition(self, key: str, if_match: str | None, if_absent: bool) -> None:
        if if_match is None and not if_absent:
            return
        present = self._head(key)
        if if_absent and present is not None:
            raise ObjectChanged(f"{self.id}: {key!r} exists already")
        if if_match is not None and (present is None or present.etag != if_match):
            raise ObjectChanged(f"{self.id}: {key!r} is no longer the version that was to be replaced")

    def _delete(self, key: str) -> None:
        self._check()
        path = self._path(key)
        if path is None:
            return
        try:
            if key.endswith("/"):
                os.rmdir(path)
            else:
                os.unlink(path)
        except OSError as error:
            # A directory that has entries is a folder without a marker: nothing to remove.
            if error.errno not in (*_NO_SUCH_OBJECT, errno.ENOTEMPTY, errno.EEXIST):
                raise
            return
        _fsync_directory(os.path.dirname(path.rstrip("/")))

    def _walk(self, prefix: str, delimiter: str | None) -> Iterator[Row]:
        base, _, stem = prefix.rpartition("/")
        base = f"{base}/" if "/" in prefix else ""
        if base and self._path(base) is None:
            return iter(())
        if base and not self._is_inside(f"{self._root}/{base}"):
            self._skip(base, "a link that leaves the folder")
            return iter(())
        return self._walk_folder(base, stem, delimiter is None, ())

    def _walk_folder(self, base: str, stem: str, deep: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Row]:
        """Rows of the folder `base` whose names start with `stem`, in key order; `above`: identities, against loops."""
        folder = f"{self._root}/{base}"
        try:
            own = os.stat(folder)
            if (own.st_dev, own.st_ino) in above:
                self._skip(base, "a link that leads in a circle")
                return
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(HIDDEN_PREFIX)]
        except OSError as error:
            if error.errno in _NO_SUCH_OBJECT:
                return
            raise
        if base and not stem and not entries:
            yield base, 0, _etag(own, size=0), own.st_mtime_ns
            return
        rows: list[tuple[bytes, str, os.DirEntry[str], bool]] = []
        for entry in entries:
            if not entry.name.startswith(stem):
                continue
            if entry.is_symlink() and not self._is_inside(entry.path):
                self._skip(base + entry.name, "a link that leaves the folder")
                continue
            is_folder = entry.is_dir()
            name = entry.name + "/" if is_folder else entry.name
            rows.append((order(name), name, entry, is_folder))
        rows.sort(key=lambda row: row[0])
        for _, name, entry, is_folder in rows:
            if is_folder:
                if deep:
                    yield from self._walk_folder(base + name, "", True, (*above, (own.st_dev, own.st_ino)))
                else:
                    yield base + name, 0, None, 0
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink():
                    self._skip(base + name, "a link to nothing")
                continue
            if stat.S_ISREG(status.st_mode):
                yield base + name, status.st_size, _etag(status), status.st_mtime_ns
            else:
                self._skip(base + name, "neither file nor folder")

    def _skip(self, key: str, reason: str) -> None:
        """Count and log (once) what is not shown."""
        if key in self._logged_skips:
            return
        self.counters.skipped[reason] += 1
        if len(self._logged_skips) < MAX_LOGGED_SKIPS:
            self._logged_skips.add(key)
            logger.warning("%s: %r is not shown: %s", self.id, key, reason)


def _etag(status: os.stat_result, *, size: int | None = None) -> str:
    """Synthetic etag; with `size` for folder markers, whose inode changes with every entry, it is only the inode."""
    if size is not None:
        return f"{status.st_ino:x}-folder"
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _metadata(fd: int) -> Mapping[str, str]:
    try:
        raw = os.getxattr(fd, METADATA_XATTR)
    except OSError:
        return {}  # none was written, or the file system keeps none
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
