"""A write side on a folder and a bucket, and what one sees through it: for tests.

`Lab` is what a mount does around a write side, without FUSE: it asks the listing where no node decides, and merges the two
for a look at everything. The listing here is the bucket itself, never a cached one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.cache.write.nodes import Kind, Node
from forebay.cache.write.open_files import OpenFile
from forebay.cache.write.operations import Attributes, Listed, ListedFolder, Shown
from forebay.cache.write.options import WriteOptions
from forebay.cache.write.records import Records, SqliteRecords
from forebay.cache.write.state import Below
from forebay.cache.write.write_side import Place, WriteSide
from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tiers.durable import FolderTier
from forebay.tiers.version import ObjectVersion

PLAIN = Attributes(0o644, 0, 0)
QUICK = {"writeback_delay_s": 0.0, "retry_first_s": 0.01, "retry_max_s": 0.05, "retire_after_s": 0.0}
FOLDER = "<folder>"


@dataclass
class BucketListing:
    """The listing of a mount that always shows the bucket as it is."""

    bucket: MultipartBucket

    def agrees(self, key: bytes, etag: str | None) -> bool:
        name = key.decode()
        if etag is None:
            return not any(one == name or one.startswith(name + "/") for one in self.bucket.objects)
        return name in self.bucket.objects and self.bucket.objects[name].etag == etag

    async def refresh(self, prefix: bytes) -> None:
        pass

    def expire(self, prefix: bytes) -> None:
        pass


@dataclass
class Lab:
    folder: Path
    bucket: MultipartBucket
    side: WriteSide

    is_ended: bool = False

    @classmethod
    def new(
        cls, folder: Path, bucket: MultipartBucket, prefix: bytes = b"", *, records: Records | None = None,
        what: str = "", now_ns: Callable[[], int] = time.time_ns, **options: Any,
    ) -> "Lab":  # fmt: skip
        """`records` are ones that others share; without, they are in the folder. `begin` it."""
        side = WriteSide(
            tier=FolderTier.at(folder, free_space_ratio=0.0, shared=records is not None),
            records=records if records is not None else SqliteRecords(folder / "records.db"),
            what=what,
            store=bucket,
            listing=BucketListing(bucket),
            prefix=prefix,
            options=WriteOptions(**{**QUICK, **options}),
            now_ns=now_ns,
        )
        return cls(folder, bucket, side)

    @classmethod
    async def start(cls, folder: Path, bucket: MultipartBucket, prefix: bytes = b"", **options: Any) -> "Lab":
        lab = cls.new(folder, bucket, prefix, **options)
        await lab.begin()
        return lab

    async def begin(self) -> None:
        """If it fails nothing is left open."""
        try:
            await self.side.start()
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        self.is_ended = True
        await self.side.close()

    async def crash(self) -> None:
        """Go away like a killed process: nothing more is synced or sent."""
        for task in self.side._tasks:
            task.cancel()
        self.side.writers = None  # nor is the lease given back
        await self.end()

    # --- What a mount does. ------------------------------------------------------------------------------

    def shown(self, path: bytes) -> Shown:
        found = self.side.resolve(path)
        if not isinstance(found, Below):
            return None
        key = found.key.decode()
        stored = self.bucket.objects.get(key)
        if stored is not None:
            return Listed(ObjectVersion(self.bucket.id, key, stored.etag, len(stored.data)), 1)
        return ListedFolder() if any(one.startswith(key + "/") for one in self.bucket.objects) else None

    def place(self, path: bytes) -> Place:
        """The path as a mount gives it: by the folder as it is now, wherever that goes meanwhile."""
        folder, _, name = path.rpartition(b"/")
        state = self.side.state
        found = state.resolve(folder)
        if not folder or not isinstance(found, Node):
            return path

        def now() -> bytes:
            present = state.by_id.get(found.id)
            at = state.path_of(present) if present is not None else None
            if at is None:
                raise FileNotFoundError(2, "the folder is gone")
            return at + b"/" + name

        return now

    def create(self, path: bytes) -> OpenFile:
        return self.side.create(self.place(path), PLAIN, self.shown(path))

    def write(self, path: bytes, data: bytes) -> None:
        """`open(path, "wb").write(data)`, closed."""
        if self.kind(path) is None:
            file = self.create(path)
        else:
            file = self.side.open(path, self.shown(path), writable=True, truncate=True)
        file.write(0, data)
        file.sync()
        file.release()

    def patch(self, path: bytes, offset: int, data: bytes) -> None:
        file = self.side.open(path, self.shown(path), writable=True)
        file.write(offset, data)
        file.sync()
        file.release()

    def truncate(self, path: bytes, size: int) -> None:
        file = self.side.open(path, self.shown(path), writable=True)
        file.truncate(size)
        file.sync()
        file.release()

    async def read(self, path: bytes) -> bytes:
        found = self.side.resolve(path)
        if isinstance(found, Node):
            file = self.side.open(path, writable=False)
            try:
                return bytes(await self.side.fetch(file, 0, file.size))
            finally:
                file.release()
        shown = self.shown(path)
        assert isinstance(shown, Listed), path
        return self.bucket.objects[shown.version.key].data

    def unlink(self, path: bytes) -> None:
        self.side.unlink(self.place(path), self.shown(path))

    def rmdir(self, path: bytes) -> None:
        if self.names(path):
            raise OSError(39, "not empty")
        self.side.rmdir(self.place(path), self.shown(path))

    def mkdir(self, path: bytes) -> None:
        self.side.mkdir(self.place(path), Attributes(0o755, 0, 0), self.shown(path))

    def rename(self, old: bytes, new: bytes) -> None:
        if self.kind(new) == Kind.DIRECTORY and self.names(new) and old != new:
            raise OSError(39, "not empty")
        self.side.rename(self.place(old), self.place(new), self.shown(old), self.shown(new))

    def kind(self, path: bytes) -> Kind | None:
        found = self.side.resolve(path)
        if isinstance(found, Node):
            return Kind(found.kind)
        shown = self.shown(path)
        if shown is None:
            return None
        return Kind.FILE if isinstance(shown, Listed) else Kind.DIRECTORY

    def names(self, path: bytes) -> set[bytes]:
        """What a listing of the folder shows: nodes over the listing."""
        found = self.side.resolve(path)
        nodes: dict[bytes, Node] = {}
        lower: bytes | None
        if isinstance(found, Node):
            nodes = self.side.state.children.get(found.id, {})
            lower = found.lower
        else:
            assert isinstance(found, Below), path
            lower = found.key + b"/"
        names = {name for name, node in nodes.items() if node.kind != Kind.WHITEOUT}
        if lower is not None:
            for key in self.bucket.objects:
                below = key.encode().removeprefix(lower) if key.encode().startswith(lower) else b""
                name = below.split(b"/")[0]
                if name and name not in nodes:
                    names.add(name)
        return names

    async def tree(self) -> dict[bytes, bytes | str]:
        """Every path: content of files, FOLDER for folders."""
        found: dict[bytes, bytes | str] = {}
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            for name in self.names(folder):
                path = folder + b"/" + name if folder else name
                if name == b".forebay" and not folder:
                    continue
                if self.kind(path) == Kind.DIRECTORY:
                    found[path] = FOLDER
                    waiting.append(path)
                else:
                    found[path] = await self.read(path)
        return found

    def bucket_tree(self) -> dict[bytes, bytes | str]:
        """What somebody sees who has only the bucket."""
        prefix = self.side.state.prefix.decode()
        found: dict[bytes, bytes | str] = {}
        for key, data in self.bucket.contents().items():
            if not key.startswith(prefix) or key == prefix:
                continue
            path = key[len(prefix) :].encode()
            parts = path.rstrip(b"/").split(b"/")
            for depth in range(1, len(parts)):
                found.setdefault(b"/".join(parts[:depth]), FOLDER)
            if path.endswith(b"/"):
                found.setdefault(path.rstrip(b"/"), FOLDER)
            else:
                found[path] = data
        return found
