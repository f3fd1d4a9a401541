"""The tree index: one snapshot as a folder tree, memory-mapped, so that mounting a hundred million files takes no heap.

A snapshot is immutable, so its tree is built once per (commit, layout) and then only mapped. Every question is
answered from the mapping without asking MongoDB, so a mount goes on through an outage of it.

Nodes are numbered: the folders first (0 is the root), then the files in the order of the snapshot (path order):

    node < folder_count     folder `node`
    otherwise               file row `node - folder_count`

and an inode is `node + 1`: static, so nothing has to be counted when the kernel looks up or forgets.

Files of an index (`tree_index_columns` has the two shapes; docs/snapshot-mounts.md the fields):

    folder_parent folder_name                           per folder
    file_parent file_name size mtime origin etag        per file; `origin` points into the header's list of
    etag_tail key version_id sha256 label source_path     (store, key prefix) pairs
    label_text                                          the different label texts; `label` is their number, 0: none
    child_start child                                   children of folder f: child[child_start[f]:child_start[f+1]],
                                                          folders first, then files, each in path order
    bucket_start bucket                                 nodes but the root by XXH3-64(name, seed=parent)
    header.json                                         what it is of, its columns, their sizes and checksums

`header.json` is written last and carries its own checksum. `TreeIndex.open` checks every byte against it (reading,
not mapping: 1 GB of a 10 M file snapshot takes 0.2 s from the page cache), because a flipped bit here would be a
wrong name or a wrong key. A damaged index raises `IndexDamaged`; whoever asked for it builds it again.

Rejected: a B-tree file (SQLite: 25 us a lookup, five times the size); numpy scalars (100 ns an item); sorting the
children by name for a binary search (20 probes in a folder of a million, and by-label would need an external sort).
"""

import binascii
import enum
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import xxhash

from ..errors import IndexDamaged
from ..tiers.version import ObjectVersion
from .tree_index_columns import ColumnFile, Mapping, TextMapping, checksum_of

MAGIC: Final = "forebay-tree-index"
FORMAT: Final = 1
HEADER_NAME: Final = "header.json"
ETAG_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """How paths become folders: by path (`label_key` None), or `class/name` by the value of a label."""

    label_key: str | None = None

    @property
    def text(self) -> str:
        return "path" if self.label_key is None else f"label:{self.label_key}"


@dataclass(frozen=True, slots=True)
class Origin:
    """A store and a key prefix that many rows share: their key is the prefix plus their path in the snapshot."""

    store: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Header:
    """What an index is of. `commit_time_ns` is the mtime of folders, and of files of which none is recorded."""

    commit: str
    layout: str
    files: int
    folders: int
    total_bytes: int
    bucket_shift: int
    commit_time_ns: int
    origins: list[Origin]
    columns: dict[str, ColumnFile]
    renamed: int = 0
    magic: str = MAGIC
    format: int = FORMAT

    def encode(self) -> bytes:
        """Canonical JSON of the fields, wrapped with its checksum."""
        fields = json.dumps(asdict(self), sort_keys=True)
        return json.dumps({"checksum": xxhash.xxh3_64_hexdigest(fields.encode()), "header": fields}).encode()


class _Wrapped(msgspec.Struct):
    checksum: str
    header: str


def read_header(folder: Path) -> Header:
    """The header of the index in `folder`. Raises IndexDamaged (also when there is none)."""
    path = folder / HEADER_NAME
    try:
        wrapped = msgspec.json.decode(path.read_bytes(), type=_Wrapped)
        if xxhash.xxh3_64_hexdigest(wrapped.header.encode()) != wrapped.checksum:
            raise IndexDamaged(f"the tree index {folder} is damaged: {HEADER_NAME} does not match its checksum")
        header = msgspec.json.decode(wrapped.header, type=Header)
    except (OSError, msgspec.MsgspecError) as error:
        raise IndexDamaged(f"the tree index {folder} cannot be read: {error}") from error
    if header.magic != MAGIC or header.format != FORMAT:
        raise IndexDamaged(f"the tree index {folder} has format {header.magic} {header.format}, not {MAGIC} {FORMAT}")
    return header


def check_columns(folder: Path, header: Header) -> None:
    """Compare every byte of the index with the header. Raises IndexDamaged naming the first file that differs."""
    for name, column in header.columns.items():
        path = folder / name
        try:
            if path.stat().st_size != column.size_bytes or checksum_of(path) != column.checksum:
                raise IndexDamaged(f"the tree index {folder} is damaged: {name} does not match its checksum")
        except OSError as error:
            raise IndexDamaged(f"the tree index {folder} cannot be read: {error}") from error


class Missing(enum.Enum):
    """A name that is not in the folder (the tree is complete, so it is certainly not there)."""

    MISSING = "missing"


class TreeIndex:
    """An open index. Every method is safe from any thread and takes microseconds; `close` ends it."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.header = header
        self.folder_count = header.folders
        self.file_count = header.files
        self._mappings: list[Mapping | TextMapping] = []
        self._folder_name = self._texts("folder_name")
        self._file_name = self._texts("file_name")
        self._etag_tail = self._texts("etag_tail")
        self._key = self._texts("key")
        self._version_id = self._texts("version_id")
        self._sha256 = self._texts("sha256")
        self._source_path = self._texts("source_path")
        self._label_text = self._texts("label_text")
        self._folder_parent = self._numbers("folder_parent")
        self._file_parent = self._numbers("file_parent")
        self._size = self._numbers("size")
        self._mtime = self._numbers("mtime")
        self._origin = self._numbers("origin")
        self._etag = self._numbers("etag")
        self._label = self._numbers("label")
        self._child_start = self._numbers("child_start")
        self._child = self._numbers("child")
        self._bucket_start = self._numbers("bucket_start")
        self._bucket = self._numbers("bucket")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the index in `folder`, after checking all of it. Raises IndexDamaged."""
        header = read_header(folder)
        check_columns(folder, header)
        return cls(folder, header)

    def _numbers(self, name: str) -> memoryview:
        mapping = Mapping(self.folder / name, self.header.columns[name].typecode)
        self._mappings.append(mapping)
        return mapping.items

    def _texts(self, name: str) -> TextMapping:
        mapping = TextMapping(self.folder, name, self.header.columns)
        self._mappings.append(mapping)
        return mapping

    def close(self) -> None:
        for mapping in self._mappings:
            mapping.close()
        self._mappings.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- The tree ----------------------------------------------------------------------------------------

    @property
    def node_count(self) -> int:
        return self.folder_count + self.file_count

    def child(self, parent: int, name: bytes) -> int | Missing:
        """The node of that name in folder `parent`."""
        bucket = xxhash.xxh3_64_intdigest(name, parent) >> self.header.bucket_shift
        folder_count = self.folder_count
        for node in self._bucket[self._bucket_start[bucket] : self._bucket_start[bucket + 1]]:
            if node < folder_count:
                if self._folder_parent[node] == parent and self._folder_name[node] == name:
                    return node
            elif self._file_parent[node - folder_count] == parent and self._file_name[node - folder_count] == name:
                return node
        return Missing.MISSING

    def find(self, path: bytes) -> int | Missing:
        """The node at a path ("" is the root)."""
        node = 0
        for name in path.split(b"/") if path else ():
            found = self.child(node, name) if node < self.folder_count else Missing.MISSING
            if found is Missing.MISSING:
                return Missing.MISSING
            node = found
        return node

    def name(self, node: int) -> bytes:
        return self._folder_name[node] if node < self.folder_count else self._file_name[node - self.folder_count]

    def parent(self, node: int) -> int:
        return self._folder_parent[node] if node < self.folder_count else self._file_parent[node - self.folder_count]

    def path(self, node: int) -> bytes:
        """The path of a node in this layout."""
        names: list[bytes] = []
        while node:
            names.append(self.name(node))
            node = self.parent(node)
        return b"/".join(reversed(names))

    def child_range(self, folder: int) -> range:
        """The places of the children of a folder, for `children`."""
        return range(self._child_start[folder], self._child_start[folder + 1])

    def child_nodes(self, start: int, stop: int) -> list[int]:
        """The children at places [start, stop), only their numbers."""
        return self._child[start:stop].tolist()

    def children(self, start: int, stop: int) -> list[tuple[int, bytes, int, int]]:
        """(node, name, size in bytes, mtime in ns) of the children at places [start, stop), which must be of one folder."""
        nodes = self.child_nodes(start, stop)
        folder_count = self.folder_count
        split = next((i for i, node in enumerate(nodes) if node >= folder_count), len(nodes))
        now = self.header.commit_time_ns
        found = [(node, self._folder_name[node], 0, now) for node in nodes[:split]]
        files = nodes[split:]
        if not files:
            return found
        first, last = files[0] - folder_count, files[-1] - folder_count
        if last - first + 1 == len(files):  # the common case: nothing lies between them
            names = self._file_name.rows(first, last + 1)
            sizes = self._size[first : last + 1].tolist()
            mtimes = self._mtime[first : last + 1].tolist()
        else:
            rows = [node - folder_count for node in files]
            names = [self._file_name[row] for row in rows]
            sizes = [self._size[row] for row in rows]
            mtimes = [self._mtime[row] for row in rows]
        found.extend(zip(files, names, sizes, mtimes, strict=True))
        return found

    # --- Files -------------------------------------------------------------------------------------------

    def size(self, node: int) -> int:
        return self._size[node - self.folder_count]

    def mtime_ns(self, node: int) -> int:
        return self._mtime[node - self.folder_count]

    def source_path(self, node: int) -> bytes:
        """The path of a file in the snapshot, whatever the layout."""
        return self._source_path[node - self.folder_count] or self.path(node)

    def object_version(self, node: int) -> ObjectVersion:
        """The content of a file, as the snapshot records it."""
        row = node - self.folder_count
        origin = self.header.origins[self._origin[row]]
        key = self._key[row] or origin.prefix.encode("utf-8", "surrogateescape") + self.source_path(node)
        version_id = self._version_id[row]
        return ObjectVersion(
            origin.store,
            key.decode("utf-8", "surrogateescape"),
            self._etag_text(row),
            self._size[row],
            version_id.decode() if version_id else None,
        )

    def _etag_text(self, row: int) -> str:
        """An etag of 32 hex digits is kept as 16 bytes, with what follows them in `etag_tail`; another one is "=" and its text there."""
        tail = self._etag_tail[row].decode()
        if tail.startswith("="):
            return tail[1:]
        return binascii.hexlify(self._etag_bytes(row)).decode() + tail

    def _etag_bytes(self, row: int) -> bytes:
        return bytes(self._etag[row * ETAG_BYTES : (row + 1) * ETAG_BYTES])

    def sha256(self, node: int) -> bytes:
        """SHA-256 of the content in 64 hex digits; empty if the snapshot does not record it."""
        return self._sha256[node - self.folder_count]

    def labels_json(self, node: int) -> bytes:
        """The labels as canonical JSON; empty when there are none."""
        number = self._label[node - self.folder_count]
        return self._label_text[number] if number else b""

    def files(self) -> Iterator[int]:
        """Every file node, in path order."""
        return iter(range(self.folder_count, self.node_count))

    def describe(self) -> dict[str, Any]:
        """For `forebay status`."""
        header = self.header
        return {
            "commit": header.commit,
            "layout": header.layout,
            "files": header.files,
            "folders": header.folders,
            "bytes": header.total_bytes,
            "renamed": header.renamed,
            "index_bytes": sum(column.size_bytes for column in header.columns.values()),
        }
