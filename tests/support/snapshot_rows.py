"""Entries for trees, and the index built of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from forebay.snapshots.tree_index import Layout, TreeIndex
from forebay.snapshots.tree_index_build import build_tree_index

COMMIT = "5a" * 32
COMMIT_TIME_NS = 1_700_000_000_000_000_000

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("store", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("version_id", pa.string()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("labels", pa.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """One entry; the key is `images/` + path if none is given."""

    path: str
    size: int = 1
    key: str | None = None
    etag: str = "0123456789abcdef0123456789abcdef"
    store: str = "s3://bucket"
    version_id: str | None = None
    mtime_ns: int | None = 1_600_000_000_000_000_000
    sha256: str | None = None
    labels: Any = None

    @property
    def full_key(self) -> str:
        return f"images/{self.path}" if self.key is None else self.key


def batches(rows: Sequence[Row], batch_rows: int = 7) -> Iterator[pa.RecordBatch]:
    """The rows in path order, in batches small enough that every seam is met."""
    ordered = sorted(rows, key=lambda row: row.path.encode())
    for start in range(0, len(ordered), batch_rows):
        part = ordered[start : start + batch_rows]
        columns = {
            "path": [r.path for r in part],
            "store": [r.store for r in part],
            "key": [r.full_key for r in part],
            "etag": [r.etag for r in part],
            "version_id": [r.version_id for r in part],
            "size": [r.size for r in part],
            "mtime_ns": [r.mtime_ns for r in part],
            "sha256": [r.sha256 for r in part],
            "labels": [None if r.labels is None else json.dumps(r.labels, sort_keys=True) for r in part],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def build(folder: Path, rows: Sequence[Row], *, label: str | None = None, batch_rows: int = 7) -> TreeIndex:
    """The open index of the rows; the caller closes it."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tree_index(
        folder, batches(rows, batch_rows), commit=COMMIT, commit_time_ns=COMMIT_TIME_NS, layout=Layout(label)
    )
    return TreeIndex.open(folder)
