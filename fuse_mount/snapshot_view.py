"""`View` of a snapshot: a memory-mapped tree that never changes.

Every answer comes from the index without I/O, so `peek` never says "not known yet", names may be kept by the kernel
for ever, and a name that is not there is certainly not there. An inode is a row of the index plus one, so lookups
need not be counted and `forget` has nothing to do.

What the view does not do: read bytes. `version` says which object version a file is, exactly as the snapshot
recorded it; the cache fetches that version or fails (ObjectChanged), so a snapshot never shows other bytes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..snapshots.tree_index import Missing, TreeIndex
from ..tiers.version import ObjectVersion
from .view import Absent, DirEntry, Kind, Node

READ_BATCH: Final = 1024
XATTR_LIMIT_BYTES: Final = 60_000  # the kernel's own limit is 64 KiB


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """Which snapshot is mounted, for the extended attributes: the names the user gave, and the commit they meant."""

    dataset: str
    ref: str
    commit: str


class SnapshotView:
    """The tree of one snapshot in one layout. The index belongs to the caller, who closes it after the unmount."""

    def __init__(self, index: TreeIndex, name: SnapshotName) -> None:
        self._index = index
        self._name = name
        self._folder_count = index.folder_count
        self._folder_mtime_ns = index.header.commit_time_ns

    @property
    def negative_ttl_s(self) -> float:
        return math.inf

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        if not self._is_folder(parent):
            return Absent.ABSENT
        found = self._index.child(parent - 1, name)
        return Absent.ABSENT if found is Missing.MISSING else self.node(found + 1)

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        return self.peek(parent, name) or Absent.ABSENT

    def node(self, ino: int) -> Node:
        place = ino - 1
        if place < self._folder_count:
            return Node(ino, Kind.DIRECTORY, 0, self._folder_mtime_ns, math.inf)
        return Node(ino, Kind.FILE, self._index.size(place), self._index.mtime_ns(place), math.inf)

    def version(self, ino: int) -> ObjectVersion:
        if self._is_folder(ino):
            raise IsADirectoryError(self.path(ino))
        return self._index.object_version(ino - 1)

    def path(self, ino: int) -> bytes:
        return self._index.path(ino - 1)

    async def open_directory(self, ino: int) -> "SnapshotDirectory":
        if not self._is_folder(ino):
            raise NotADirectoryError(self.path(ino))
        return SnapshotDirectory(self._index, ino - 1)

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        """`dataset`, `ref`, `commit` on everything; on files also `path` (in the snapshot), `labels` (JSON) and `sha256`."""
        name = self._name
        found = {
            "user.forebay.dataset": name.dataset.encode(),
            "user.forebay.ref": name.ref.encode(),
            "user.forebay.commit": name.commit.encode(),
        }
        if self._is_folder(ino):
            return found
        node = ino - 1
        found["user.forebay.path"] = self._index.source_path(node)[:XATTR_LIMIT_BYTES]
        if labels := self._index.labels_json(node):
            found["user.forebay.labels"] = labels
        if sha256 := self._index.sha256(node):
            found["user.forebay.sha256"] = sha256
        return found

    def forget(self, ino: int, count: int) -> None:
        """Inodes are rows: nothing is counted."""

    def _is_folder(self, ino: int) -> bool:
        return ino <= self._folder_count


class SnapshotDirectory:
    """One open folder. Entries are decoded `READ_BATCH` at a time and the last batch is kept, because the kernel reads
    on from where its small buffer ended. A cookie is the place in the folder, so it stays good as long as the index does."""

    def __init__(self, index: TreeIndex, folder: int) -> None:
        self._index = index
        self._places = index.child_range(folder)
        self._batch: tuple[int, list[DirEntry]] = (0, [])

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        position = cookie
        while position < len(self._places):
            first, entries = self._batch
            if not first <= position < first + len(entries):
                first, entries = position, self._decode(position)
                self._batch = (first, entries)
            yield from entries[position - first :]
            position = first + len(entries)

    def _decode(self, position: int) -> list[DirEntry]:
        start = self._places.start + position
        rows = self._index.children(start, min(start + READ_BATCH, self._places.stop))
        folder_count = self._index.folder_count
        return [
            DirEntry(
                name,
                Node(node + 1, Kind.DIRECTORY if node < folder_count else Kind.FILE, size, mtime_ns, math.inf),
                cookie,
            )
            for cookie, (node, name, size, mtime_ns) in enumerate(rows, position + 1)
        ]
