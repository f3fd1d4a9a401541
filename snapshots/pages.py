"""A page: some thousand neighbouring entries of a version, named by the hash of its content.

Versions share pages by name, so a page is written once and never changed. `encode_page` turns entries into
canonical bytes (columns.py), `page_id` names them, `seal` compresses them for the store; `open_sealed` goes back
and refuses bytes that do not match their name. The same sealing serves the index pages of roots.py.

Where an object lies is stored compactly: a key that ends with the entry's path (the usual case) is kept as the
prefix in front of it, of which a page has one or two; only other keys are written out.
"""

import hashlib
import struct
from functools import cached_property
from typing import TypeAlias

import lz4.block
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import PageCorrupt
from .columns import ColumnFile, ColumnsCorrupt, encode_columns, string_parts
from .entries import ENTRY_SCHEMA
from .labels import RESIDUAL, TYPES, Place, assemble, column_name, place_of, shred

PageId: TypeAlias = bytes

LEAF, PART, ROOT = 1, 2, 3
KIND_NAMES = {LEAF: "page", PART: "root part", ROOT: "root page"}
ID_BYTES = 32
# Above any page that the builder makes (2 MiB and one entry), below the 16 MiB document limit of MongoDB.
MAX_PAGE_BYTES = 15 * 1024 * 1024
_SEAL = struct.Struct("<BI")
_LZ4 = 1

_PLAIN = ("path", "store", "etag", "version_id", "size", "mtime_ns", "sha256")


def page_id(data: bytes) -> PageId:
    """The name of a page: BLAKE2b-256 of its canonical bytes."""
    return hashlib.blake2b(data, digest_size=ID_BYTES, person=b"forebay-page").digest()


def seal(data: bytes) -> bytes:
    """The bytes that go into the store: method, length, LZ4 block."""
    return _SEAL.pack(_LZ4, len(data)) + bytes(lz4.block.compress(data, store_size=False))


def open_sealed(name: PageId, sealed: bytes, kind: int) -> ColumnFile:
    """The columns of a sealed page. Raises PageCorrupt when the bytes are not those of that name and kind."""
    what = f"{KIND_NAMES[kind]} {name.hex()}"
    try:
        method, size = _SEAL.unpack_from(sealed)
        if method != _LZ4 or size > 2 * MAX_PAGE_BYTES:
            raise ColumnsCorrupt("unknown compression or impossible length")
        data = bytes(lz4.block.decompress(sealed[_SEAL.size :], uncompressed_size=size))
        if len(data) != size or page_id(data) != name:
            raise ColumnsCorrupt("its bytes do not match its name")
        file = ColumnFile(data)
        if file.kind != kind:
            raise ColumnsCorrupt(f"it is a {KIND_NAMES.get(file.kind, 'thing of another kind')}")
    except (ColumnsCorrupt, struct.error, lz4.block.LZ4BlockError) as error:
        raise PageCorrupt(f"{what} is damaged: {error}", remedy=RESTORE_REMEDY) from error
    return file


RESTORE_REMEDY = "restore the metadata store from a backup, or import this version again; others are not touched"


def missing_page(name: PageId, kind: int = LEAF) -> PageCorrupt:
    """The error for a page that the store does not have."""
    return PageCorrupt(f"{KIND_NAMES[kind]} {name.hex()} is missing from the metadata store", remedy=RESTORE_REMEDY)


def page_columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns of a leaf page. `batch` has ENTRY_SCHEMA and is sorted by path without duplicates."""
    columns: dict[str, pa.Array] = {name: batch.column(name) for name in _PLAIN}
    columns["prefix"], columns["key"] = _split_keys(batch.column("key"), batch.column("path"))
    labels = batch.column("labels")
    if labels.null_count < len(labels):
        columns.update(shred(labels))
    return columns


def encode_page(batch: pa.RecordBatch) -> bytes:
    """The canonical bytes of a leaf page."""
    return encode_columns(LEAF, batch.num_rows, page_columns(batch))


def _split_keys(keys: pa.Array, paths: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(prefix, key): the part of the key in front of the path where it ends with it, else the whole key."""
    if keys.equals(paths):
        return pa.array([""], pa.string()).take(pa.array(np.zeros(len(keys), np.int64))), pa.nulls(
            len(keys), pa.string()
        )
    key_offsets, key_data = string_parts(keys)
    path_offsets, path_data = string_parts(paths)
    prefix_lengths = np.diff(key_offsets) - np.diff(path_offsets)
    ends_with = prefix_lengths >= 0
    # Compare the tails of all candidate keys with their paths at once: one index per byte of path.
    rows = np.flatnonzero(ends_with)
    path_lengths = np.diff(path_offsets)[rows]
    starts = np.repeat(np.cumsum(path_lengths) - path_lengths, path_lengths)
    within = np.arange(int(path_lengths.sum())) - starts
    tails = key_data[np.repeat(key_offsets[rows + 1] - path_lengths, path_lengths) + within]
    wanted = path_data[np.repeat(path_offsets[rows], path_lengths) + within]
    different = np.repeat(rows, path_lengths)[tails != wanted]
    ends_with[different] = False
    cut = np.where(ends_with, prefix_lengths, 0)
    prefixes = _prefixes(keys, cut, ends_with)
    return prefixes, pc.if_else(pa.array(ends_with), pa.scalar(None, pa.string()), keys)


def _prefixes(
    keys: pa.Array,
    lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    valid: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
) -> pa.Array:
    offsets, data = string_parts(keys)
    out = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=out[1:])
    within = np.arange(int(out[-1])) - np.repeat(out[:-1], lengths)
    taken = data[np.repeat(offsets[:-1], lengths) + within]
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    buffers = [bitmap, pa.py_buffer(out), pa.py_buffer(np.ascontiguousarray(taken))]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


class Page:
    """A leaf page that was read and proven; columns are decoded when they are asked for."""

    def __init__(self, name: PageId, file: ColumnFile) -> None:
        self.id = name
        self._file = file
        self._columns: dict[str, pa.Array] = {}

    @classmethod
    def open(cls, name: PageId, sealed: bytes) -> "Page":
        """Raises PageCorrupt."""
        return cls(name, open_sealed(name, sealed, LEAF))

    @property
    def row_count(self) -> int:
        return int(self._file.row_count)

    def column(self, name: str) -> pa.Array:
        """A column of ENTRY_SCHEMA, without decoding the others. Raises PageCorrupt."""
        if name not in self._columns:
            if name == "key":
                self._columns[name] = self._keys()
            elif name == "labels":
                self._columns[name] = assemble({n: self._stored(n, t) for n, t in self._label_types()}, self.row_count)
            else:
                self._columns[name] = self._stored(name, ENTRY_SCHEMA.field(name).type)
        return self._columns[name]

    def batch(self) -> pa.RecordBatch:
        """All entries of the page. Raises PageCorrupt."""
        return pa.RecordBatch.from_arrays([self.column(name) for name in ENTRY_SCHEMA.names], schema=ENTRY_SCHEMA)

    def chosen(self, mask: pa.Array) -> pa.RecordBatch:
        """The entries for which the mask is true; labels are put together only for those. Raises PageCorrupt."""
        labels = {name: self._stored(name, type_).filter(mask) for name, type_ in self._label_types()}
        columns = [self.column(name).filter(mask) for name in ENTRY_SCHEMA.names if name != "labels"]
        columns.append(assemble(labels, len(columns[0])))
        return pa.RecordBatch.from_arrays(columns, schema=ENTRY_SCHEMA)

    def label_column(self, place: Place, type_code: str) -> pa.Array | None:
        """The scalars of that type at that place, null where an entry has none; None when no entry has one."""
        name = column_name(place, type_code)
        return self.stored_label(name) if name in self.label_columns else None

    def stored_label(self, name: str) -> pa.Array:
        """A column of `label_columns` by its name in the page."""
        return self._stored(name, TYPES[name[5]])

    @cached_property
    def label_columns(self) -> frozenset[str]:
        """Names of the typed label columns of this page."""
        return frozenset(name for name in self._file.names if place_of(name))

    @cached_property
    def residual(self) -> pa.Array | None:
        """Labels that are no typed columns, as JSON per entry; None when there are none."""
        return self._stored(RESIDUAL, pa.string()) if RESIDUAL in self._file.names else None

    def _label_types(self) -> list[tuple[str, pa.DataType]]:
        found = [(name, place_of(name)) for name in self._file.names]
        typed = [(name, TYPES[place[1]]) for name, place in found if place]
        return [*typed, (RESIDUAL, pa.string())] if RESIDUAL in self._file.names else typed

    def _stored(self, name: str, type_: pa.DataType) -> pa.Array:
        try:
            return self._file.column(name, type_)
        except ColumnsCorrupt as error:
            raise PageCorrupt(f"page {self.id.hex()} is damaged: {error}", remedy=RESTORE_REMEDY) from error

    def _keys(self) -> pa.Array:
        prefix = self._stored("prefix", pa.string())
        keys = self._stored("key", pa.string())
        joined = pc.binary_join_element_wise(prefix, self.column("path"), "")
        return joined if keys.null_count == self.row_count else pc.coalesce(keys, joined)
