"""Any file system that fsspec knows, as an under store: `memory://`, `gs://`, `abfs://`, `hdfs://`, `http://`, `sftp://`...

The etag is what the file system calls etag, checksum or generation, else it is made of size and time of change. It is
asked before *and* after each read, since fsspec has no conditional reads: slower than S3 or a folder, and as strict as
the file system allows. Conditional writes are checked, then done: two writers at once are not kept apart.

The file systems are used through their blocking interface, in at most MAX_THREADS threads.
"""

import asyncio
import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec

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
from .options import StoreOptions, without_secrets

T = TypeVar("T")

MAX_THREADS = 16
_ETAG_FIELDS = ("etag", "ETag", "e_tag", "md5", "md5Hash", "checksum", "content_md5", "generation", "uid")
_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "modified", "updated", "timeModified", "created")


class FsspecStore:
    """Implements `UnderStore` over one fsspec file system, below the root given by the URL."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        """`url` names the root: for `scheme://container/prefix` the whole of it. Raises UsageError if it cannot be."""
        shown = without_secrets(url)
        try:
            # No listing cache: what is cached is decided by the namespace, and must be what the store says now.
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise UsageError(f"{shown}: {error}", remedy="install the package that fsspec names") from error
        except (ValueError, TypeError) as error:
            raise UsageError(f"{shown}: no such kind of store ({error})", remedy="see docs/under-stores.md") from error
        self._root = root.rstrip("/")
        self.id = shown.rstrip("/")
        self._cursors = ListingCursors()
        threads = min(MAX_THREADS, options.max_connections)
        self._calls = Calls(self.id, timeout_s=options.timeout_s, max_connections=threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fsspec-store")

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
            raise UsageError(f"{self.id}: listing with delimiter {delimiter!r}", remedy="use '/'")
        return await self._run(
            "list",
            f"listing of {prefix!r}",
            lambda: self._cursors.page(prefix, delimiter, token, limit, lambda: self._walk(prefix, delimiter)),
        )

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        return await self._run("head", f"look-up of {key!r}", lambda: self._head(key))

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        def read() -> bytes:
            self._require(version)
            data: bytes = self._fs.cat_file(self._path(version.key), start=offset, end=offset + size) if size else b""
            if len(data) != size:
                self._require(version)
                raise StoreCorrupt(f"{self.id}: {version.key!r} gave {len(data)} bytes of {size} at {offset}")
            self._require(version)
            return data

        data = await self._run("get", f"read of {version.key!r}", read)
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
        self._refuse_metadata(metadata)

        def write() -> ObjectInfo:
            self._require_condition(key, if_match, if_absent)
            path = self._path(key)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, bytes(data))
            return self._must_head(key)

        info = await self._run("put", f"writing of {key!r}", write)
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
        self._refuse_metadata(metadata)

        def copy() -> ObjectInfo:
            self._require(source)
            self._require_condition(key, if_match, if_absent)
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
            self._fs.cp_file(self._path(source.key), self._path(key))
            self._require(source)
            return self._must_head(key)

        return await self._run("copy", f"copy of {source.key!r} to {key!r}", copy)

    async def delete(self, key: str) -> bool:
        tries = 0

        def delete() -> None:
            nonlocal tries
            tries += 1
            if self._head(key) is not None:
                self._fs.rm_file(self._path(key))

        await self._run("delete", f"removal of {key!r}", delete)
        return tries == 1

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- In a thread. ---------------------------------------------------------------------------------------

    async def _run(self, kind: str, what: str, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except FileNotFoundError as error:
                raise ObjectNotFound(f"{self.id}: {what}: not found") from error
            except PermissionError as error:
                raise StoreDenied(f"{self.id}: {what}: denied", remedy="check the credentials") from error
            except NotImplementedError as error:
                raise UsageError(f"{self.id}: {what}: this kind of store cannot do it") from error
            except (OSError, RuntimeError, ValueError) as error:
                raise StoreUnavailable(f"{type(error).__name__}: {str(error)[:200]}") from error

        return await self._calls.run(
            kind, what, lambda: asyncio.get_running_loop().run_in_executor(self._pool, guarded)
        )

    def _check(self) -> None:
        try:
            self._fs.ls(self._root or "/", detail=False)
        except FileNotFoundError as error:
            raise BucketNotFound(f"{self.id}: does not exist", remedy="correct the URL") from error

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _head(self, key: str) -> ObjectInfo | None:
        try:
            found = self._fs.info(self._path(key))
        except FileNotFoundError:
            self._check()
            return None
        if found.get("type") == "directory":
            return None
        return ObjectInfo(key, int(found.get("size") or 0), _etag(found), _time_ns(found))

    def _must_head(self, key: str) -> ObjectInfo:
        info = self._head(key)
        if info is None:
            raise StoreUnavailable(f"{key!r} is not there right after it was written")
        return info

    def _require(self, version: ObjectVersion) -> None:
        info = self._head(version.key)
        if info is None:
            raise ObjectNotFound(f"{self.id}: no object {version.key!r} any more")
        if (info.etag, info.size) != (version.etag, version.size):
            raise ObjectChanged(f"{self.id}: {version.key!r} was overwritten", remedy="open it again")

    def _require_condition(self, key: str, if_match: str | None, if_absent: bool) -> None:
        if if_match is None and not if_absent:
            return
        present = self._head(key)
        if if_absent and present is not None:
            raise ObjectChanged(f"{self.id}: {key!r} exists already")
        if if_match is not None and (present is None or present.etag != if_match):
            raise ObjectChanged(f"{self.id}: {key!r} is no longer the version that was to be replaced")

    def _refuse_metadata(self, metadata: Mapping[str, str] | None) -> None:
        """Metadata that cannot be kept is refused, not dropped."""
        if metadata:
            raise StoreError(f"{self.id}: this kind of store keeps no metadata", remedy="use s3:// or file://")

    def _walk(self, prefix: str, delimiter: str | None) -> Iterator[Row]:
        base, slash, _ = prefix.rpartition("/")
        return self._walk_folder(base + slash, prefix, delimiter is None)

    def _walk_folder(self, base: str, prefix: str, deep: bool) -> Iterator[Row]:
        """Rows of the folder `base` (empty or ending in a slash) that start with `prefix`, in key order."""
        folder = self._path(base).rstrip("/")
        try:
            found = self._fs.ls(folder or "/", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            if not base:
                self._check()
            return
        rows: dict[str, Any] = {}
        for item in found:
            path = str(item["name"]).rstrip("/")
            if path == folder:
                continue  # a file of the folder's own name, as some file systems list it
            key = base + path.rpartition("/")[2]
            if item.get("type") == "directory":
                key += "/"
            if key.startswith(prefix):
                rows[key] = item
        for key in sorted(rows, key=order):
            item = rows[key]
            if not key.endswith("/"):
                yield key, int(item.get("size") or 0), _etag(item), _time_ns(item)
            elif deep:
                yield from self._walk_folder(key, prefix if prefix.startswith(key) else "", True)
            else:
                yield key, 0, None, 0


def _etag(found: Mapping[str, Any]) -> str:
    for field in _ETAG_FIELDS:
        value = found.get(field)
        if value:
            return str(value).strip('"')
    made_of = json.dumps([found.get("size"), found.get("ino"), _time_ns(found)])
    return hashlib.blake2b(made_of.encode(), digest_size=12).hexdigest()


def _time_ns(found: Mapping[str, Any]) -> int:
    """Time of change in ns since the epoch, in whatever form the file system gives it; 0 if it gives none."""
    for field in _TIME_FIELDS:
        value = found.get(field)
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime.datetime):
            if value.tzinfo is None:
                value = value.replace(tzinfo=datetime.UTC)
            return round(value.timestamp() * 1_000_000) * 1000
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return round(value * 1_000_000) * 1000
    return 0
