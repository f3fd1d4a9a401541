"""Building a tree index from the entries of a snapshot, as a stream, in memory that does not grow with the snapshot.

    entries (Arrow batches in path order)
        -> a folder and a name for each (`PathPlacement`, or `LabelPlacement` for `class/name`)
        -> column files, appended
        -> children of each folder, and the lookup buckets: both are "group the nodes by a number"
        -> names that came out twice in one folder are told apart (by label only: paths are unique)
        -> header, sync, rename of the whole folder

In memory are one batch, the different label values (bounded) and one chunk of a counting sort.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..errors import PageCorrupt, SnapshotError
from .tree_index import ETAG_BYTES, HEADER_NAME, Header, Layout, Origin
from .tree_index_columns import ColumnFile, Numbers, NumberWriter, TextMapping, TextWriter, map_numbers, seal
from .tree_index_group import CHUNK_NODES, KeysOf, group_nodes
from .tree_index_layout import FolderTable, LabelPlacement, PathPlacement, Placement
from .tree_index_names import told_apart

NODE_LIMIT: Final = (1 << 32) - 2
ORIGIN_LIMIT: Final = 1 << 14
ORIGINS_PER_BATCH: Final = 16
LABEL_TEXT_LIMIT_BYTES: Final = 4096
LABEL_MEMO_LIMIT: Final = 1 << 16

Progress = Callable[[int], None]
"""Called with the number of entries done so far."""

NUMBER_COLUMNS: Final = {
    "folder_parent": "I",
    "file_parent": "I",
    "size": "q",
    "mtime": "q",
    "origin": "I",
    "etag": "B",
    "label": "I",
}
TEXT_COLUMNS: Final = (
    "folder_name", "file_name", "etag_tail", "key", "version_id", "sha256", "source_path", "label_text",
)  # fmt: skip
HASHES: Final = {"folder_hash": "Q", "file_hash": "Q"}  # XXH3-64(name, seed=parent); not part of the finished index


def build_tree_index(
    folder: Path,
    batches: Iterable[pa.RecordBatch],
    *,
    commit: str,
    commit_time_ns: int,
    layout: Layout,
    progress: Progress | None = None,
) -> None:
    """Write the index of the entries into `folder`, which must exist and be empty, and sync it.

    `batches` have ENTRY_SCHEMA (entries.py) and are sorted by path as bytes. Raises PageCorrupt if they are not sorted,
    SnapshotError if the layout cannot be made. What is in the folder after an exception is rubbish.
    """
    builder = TreeIndexBuilder(folder, commit, commit_time_ns, layout)
    try:
        for batch in batches:
            builder.add(batch)
            if progress is not None:
                progress(builder.file_count)
        builder.finish()
    finally:
        builder.close()


class TreeIndexBuilder:
    """The writers of all columns, and what they need to remember between batches."""

    def __init__(self, folder: Path, commit: str, commit_time_ns: int, layout: Layout) -> None:
        self._folder = folder
        self._commit = commit
        self._commit_time_ns = commit_time_ns
        self._layout = layout
        self._folders = FolderTable()
        self._placement: Placement = (
            PathPlacement(self._folders)
            if layout.label_key is None
            else LabelPlacement(self._folders, layout.label_key)
        )
        self._numbers = {n: NumberWriter(folder, n, code) for n, code in (NUMBER_COLUMNS | HASHES).items()}
        self._texts = {name: TextWriter(folder, name) for name in TEXT_COLUMNS}
        self._texts["label_text"].append_empty(1)
        self._label_numbers: dict[bytes, int] = {}
        self._origins: dict[Origin, int] = {}
        self._last_path = b""
        self._bytes = 0
        self.file_count = 0

    def close(self) -> None:
        for number in self._numbers.values():
            number.close()
        for text in self._texts.values():
            text.close()

    # --- Entries -----------------------------------------------------------------------------------------

    def add(self, batch: pa.RecordBatch) -> None:
        """Append the next entries."""
        if not batch.num_rows:
            return
        paths = _binary(batch, "path")
        listed = paths.to_pylist()
        self._check_order(listed)
        labels = batch.column("labels")
        parents, names = self._placement.place(listed, labels)
        if self.file_count + len(names) + self._folders.count > NODE_LIMIT:
            raise SnapshotError(f"a mount holds at most {NODE_LIMIT:,} files and folders")
        sizes = np.asarray(batch.column("size"))
        self._bytes += int(sizes.sum())
        self._numbers["size"].append(sizes)
        self._numbers["mtime"].append(self._mtimes(batch.column("mtime_ns")))
        self._numbers["file_parent"].append(np.array(parents, np.uint32))
        self._numbers["file_hash"].append(_hashes(names, parents))
        self._texts["file_name"].append_list(names)
        if self._layout.label_key is None:
            self._texts["source_path"].append_empty(len(names))
        else:
            self._texts["source_path"].append_list(listed)
        self._add_keys(_binary(batch, "store"), _binary(batch, "key"), paths)
        self._add_etags(_binary(batch, "etag"))
        for name in ("version_id", "sha256"):
            self._texts[name].append(*_blob(_binary(batch, name)))
        self._add_labels(labels)
        self._flush_folders()
        self.file_count += len(names)

    def _check_order(self, paths: list[bytes]) -> None:
        previous = self._last_path
        for path in paths:
            if path <= previous:
                raise PageCorrupt(f"the entries of {self._commit} are not in order: {path!r} follows {previous!r}")
            previous = path
        self._last_path = previous

    def _mtimes(self, column: pa.Array) -> Numbers:
        mtimes: Numbers = np.asarray(pc.fill_null(column, 0)).astype(np.int64)
        mtimes[mtimes == 0] = self._commit_time_ns
        return mtimes

    def _flush_folders(self) -> None:
        names, parents = self._folders.take()
        self._texts["folder_name"].append_list(names)
        self._numbers["folder_parent"].append(np.array(parents, np.uint32))
        self._numbers["folder_hash"].append(_hashes(names, parents))

    def _add_keys(self, stores: pa.Array, keys: pa.Array, paths: pa.Array) -> None:
        """Most keys are a prefix and the path: find those prefixes, and keep the text of the keys that are not."""
        origins = np.zeros(len(keys), np.uint32)
        spelled_out = np.zeros(len(keys), bool)
        for store in stores.unique().to_pylist():
            todo = np.flatnonzero(np.asarray(pc.equal(stores, store)))
            for _ in range(ORIGINS_PER_BATCH):
                if not len(todo) or len(self._origins) >= ORIGIN_LIMIT:
                    break
                key, path = keys[int(todo[0])].as_py(), paths[int(todo[0])].as_py()
                prefix = key[: -len(path)] if key.endswith(path) else None
                if prefix is None:
                    origins[todo[0]], spelled_out[todo[0]] = self._origin(store, b""), True
                    todo = todo[1:]
                    continue
                whole = len(todo) == len(keys)
                todo_keys, todo_paths = (keys, paths) if whole else (keys.take(todo), paths.take(todo))
                joined = pc.binary_join_element_wise(pa.scalar(prefix), todo_paths, pa.scalar(b""))
                same = np.asarray(pc.equal(todo_keys, joined))
                origins[todo[same]] = self._origin(store, prefix)
                todo = todo[~same]
            if len(todo):
                origins[todo] = self._origin(store, b"")
                spelled_out[todo] = True
        self._numbers["origin"].append(origins)
        if spelled_out.any():
            self._texts["key"].append(*_blob(pc.if_else(pa.array(spelled_out), keys, pa.scalar(b""))))
        else:
            self._texts["key"].append_empty(len(keys))

    def _origin(self, store: bytes, prefix: bytes) -> int:
        origin = Origin(store.decode(), prefix.decode("utf-8", "surrogateescape"))
        return self._origins.setdefault(origin, len(self._origins))

    def _add_etags(self, etags: pa.Array) -> None:
        blob, lengths = _blob(etags)
        if (lengths == 2 * ETAG_BYTES).all():
            digits = _HEX_VALUE[blob.reshape(len(etags), 2 * ETAG_BYTES)]
            if (digits < 16).all():
                self._numbers["etag"].append((digits[:, 0::2] << 4 | digits[:, 1::2]).reshape(-1))
                self._texts["etag_tail"].append_empty(len(etags))
                return
        heads: list[bytes] = []
        tails: list[bytes] = []
        for text in etags.to_pylist():
            found = _HEX_ETAG.match(text)
            heads.append(bytes.fromhex(found[1].decode()) if found else bytes(ETAG_BYTES))
            tails.append(found[2] if found else b"=" + text)
        self._numbers["etag"].append(np.frombuffer(b"".join(heads), np.uint8))
        self._texts["etag_tail"].append_list(tails)

    def _add_labels(self, labels: pa.Array) -> None:
        encoded = labels.dictionary_encode(null_encoding="encode")
        numbers = [self._label_number(text) for text in encoded.dictionary.cast(pa.binary()).to_pylist()]
        self._numbers["label"].append(np.array(numbers, np.uint32)[np.asarray(encoded.indices)])

    def _label_number(self, text: bytes | None) -> int:
        if not text or text == b"{}":
            return 0
        if len(text) > LABEL_TEXT_LIMIT_BYTES:
            text = b'{"_omitted_bytes":%d}' % len(text)
        number = self._label_numbers.get(text)
        if number is None:
            if len(self._label_numbers) >= LABEL_MEMO_LIMIT:
                self._label_numbers.clear()
            number = self._label_numbers[text] = self._texts["label_text"].count
            self._texts["label_text"].append_list([text])
        return number

    # --- The end -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Group the children and the lookup buckets, tell equal names apart, seal every file, write the header."""
        self._flush_folders()
        self.close()
        folders, files = self._folders.count, self.file_count
        nodes = folders + files
        parent_of = _column_pair(self._folder, "folder_parent", "file_parent", folders)
        group_nodes(parent_of, range(1, nodes), folders, self._folder / "child_start", self._folder / "child")
        bucket_bits = max((nodes - 1).bit_length(), 1)
        renamed = self._fill_buckets(bucket_bits)
        columns = self._seal()
        header = Header(
            commit=self._commit,
            layout=self._layout.text,
            files=files,
            folders=folders,
            total_bytes=self._bytes,
            bucket_shift=64 - bucket_bits,
            commit_time_ns=self._commit_time_ns,
            origins=list(self._origins),
            columns=columns,
            renamed=renamed,
        )
        path = self._folder / HEADER_NAME
        path.write_bytes(header.encode())
        seal(path, "B")

    def _fill_buckets(self, bits: int) -> int:
        """Group the nodes by hash; rename what came out twice, and group again. Returns how many were renamed."""
        folders, files = self._folders.count, self.file_count
        start_path, ids_path = self._folder / "bucket_start", self._folder / "bucket"
        renamed = 0
        while True:
            hash_of = _column_pair(self._folder, "folder_hash", "file_hash", folders)
            buckets_of = partial(_buckets, hash_of, np.uint64(64 - bits))
            group_nodes(buckets_of, range(1, folders + files), 1 << bits, start_path, ids_path)
            if self._layout.label_key is None:
                return 0
            twice = self._equal_hashes(hash_of, start_path, ids_path)
            if not len(twice):
                return renamed
            if renamed or twice[0] < folders:
                raise SnapshotError(f"two entries of {self._commit} have one name in the layout {self._layout.text}")
            self._rename(twice - folders)
            renamed = len(twice)

    def _equal_hashes(self, hash_of: KeysOf, start_path: Path, ids_path: Path) -> Numbers:
        """Nodes that share their 64-bit hash, and so their folder and name, in ascending order. Equal hashes share a bucket."""
        folders = self._folders.count
        start = map_numbers(start_path, "I")
        ids = map_numbers(ids_path, "I")
        found: list[Numbers] = [np.zeros(0, np.int64)]
        for lo in range(0, len(start) - 1, CHUNK_NODES):
            members = ids[start[lo] : start[min(lo + CHUNK_NODES, len(start) - 1)]].astype(np.int64)
            hashes = np.empty(len(members), np.uint64)
            is_file = members >= folders
            hashes[~is_file] = _gather(self._folder / "folder_hash", members[~is_file])
            hashes[is_file] = _gather(self._folder / "file_hash", members[is_file] - folders)
            order = np.argsort(hashes, kind="stable")
            as_before = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
            found.append(members[order[np.union1d(as_before, as_before + 1)]])
        return np.sort(np.concatenate(found))

    def _rename(self, rows: Numbers) -> None:
        """Write the names of files again, those of `rows` (ascending) told apart by their path."""
        files = {n: ColumnFile("B", 0, "") for n in ("file_name", "source_path") if (self._folder / n).exists()}
        names = TextMapping(self._folder, "file_name", files)
        sources = TextMapping(self._folder, "source_path", files)
        parents = map_numbers(self._folder / "file_parent", "I")
        fresh = self._folder / "fresh"
        fresh.mkdir()
        text, hashes = TextWriter(fresh, "file_name"), NumberWriter(fresh, "file_hash", "Q")
        for lo in range(0, self.file_count, CHUNK_NODES):
            hi = min(lo + CHUNK_NODES, self.file_count)
            part = names.rows(lo, hi)
            for row in rows[np.searchsorted(rows, lo) : np.searchsorted(rows, hi)].tolist():
                part[row - lo] = told_apart(part[row - lo], sources[row])
            text.append_list(part)
            hashes.append(_hashes(part, parents[lo:hi].tolist()))
        for closing in (text, hashes, names, sources):
            closing.close()
        for path in fresh.iterdir():
            path.rename(self._folder / path.name)
        fresh.rmdir()

    def _seal(self) -> dict[str, ColumnFile]:
        for name in HASHES:
            (self._folder / name).unlink()
        codes: dict[str, str] = NUMBER_COLUMNS | dict.fromkeys(("child_start", "child", "bucket_start", "bucket"), "I")
        for name in TEXT_COLUMNS:
            codes |= {name: "B", name + ".at": "Q"}
        return {n: seal(self._folder / n, code) for n, code in codes.items() if (self._folder / n).exists()}


_HEX_ETAG = re.compile(rb"([0-9a-f]{32})(.*)\Z", re.DOTALL)
_HEX_VALUE = np.full(256, 255, np.uint8)
_HEX_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _hashes(names: Sequence[bytes], parents: Sequence[int]) -> Numbers:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, names, parents), np.uint64, len(names))


def _binary(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column as plain binary, empty for null."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.fill_null(column.cast(pa.binary()), b"")


def _blob(column: pa.Array) -> tuple[Numbers, Numbers]:
    """The bytes of a binary column end to end, and the length of each row."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, "<i4")[column.offset : column.offset + len(column) + 1]
    blob = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data is not None else np.zeros(0, np.uint8)
    return blob, np.diff(ends)


def _column_pair(folder: Path, of_folders: str, of_files: str, folders: int) -> KeysOf:
    """A function that reads rows [lo, hi) of the two columns seen as one: folders first, then files."""
    typecode = (NUMBER_COLUMNS | HASHES)[of_folders]
    first, second = map_numbers(folder / of_folders, typecode), map_numbers(folder / of_files, typecode)

    def rows(lo: int, hi: int) -> Numbers:
        return np.concatenate((first[min(lo, folders) : hi], second[max(lo - folders, 0) : max(hi - folders, 0)]))

    return rows


def _buckets(hash_of: KeysOf, shift: np.uint64, lo: int, hi: int) -> Numbers:
    return (hash_of(lo, hi) >> shift).astype(np.uint32)


def _gather(path: Path, rows: Numbers) -> Numbers:
    return np.asarray(map_numbers(path, "Q")[rows])
