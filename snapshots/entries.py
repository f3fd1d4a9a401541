"""What one line of a version is: the columns that every batch of entries has, and which paths are allowed.

Entries travel as Arrow record batches from the manifest to the page and back, never as one Python object per
file: a version has up to a billion of them. `ENTRY_SCHEMA` is that batch. Inside a version entries are sorted
by the UTF-8 bytes of the path, strictly, so a path occurs once.

`labels` is the JSON text (keys sorted, no spaces) of any JSON value, null when there are none.
`sha256` is 64 lowercase hex digits. `mtime_ns` is nanoseconds since the epoch. `size` is in bytes.
"""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ManifestError
from ..tiers.version import ObjectVersion

ENTRY_SCHEMA = pa.schema(
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

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
# An empty, `.` or `..` component, or a NUL anywhere.
BAD_PATH_REGEX = r"(^|/)\.{0,2}(/|$)|\x00"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as an object, for messages, conflicts and small results. `labels` is the decoded JSON value."""

    path: str
    version: ObjectVersion
    mtime_ns: int | None = None
    sha256: str | None = None
    labels: Any = None


def entries_of(batch: pa.RecordBatch) -> list[Entry]:
    """The rows of a batch as objects."""
    columns = (batch.column(name).to_pylist() for name in ENTRY_SCHEMA.names)
    return [
        Entry(
            path,
            ObjectVersion(store, key, etag, size, version_id),
            mtime_ns,
            sha256,
            None if labels is None else json.loads(labels),
        )
        for path, store, key, etag, version_id, size, mtime_ns, sha256, labels in zip(*columns, strict=True)
    ]


def batch_of(entries: list[Entry]) -> pa.RecordBatch:
    """A batch of the entries, in the given order."""
    rows = [
        (
            e.path,
            e.version.store,
            e.version.key,
            e.version.etag,
            e.version.version_id,
            e.version.size,
            e.mtime_ns,
            e.sha256,
            canonical_json(e.labels),
        )
        for e in entries
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(ENTRY_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)


def empty_batch() -> pa.RecordBatch:
    return batch_of([])


def concat_batches(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows, in order; the batches share a schema."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return empty_batch()
    return pa.concat_batches(batches)


_encode_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical_json(value: Any) -> str | None:
    """The one text of a JSON value: keys sorted, no spaces; None (no labels) stays None."""
    if value is None:
        return None
    return _encode_canonical(value)


def path_fault(path: str) -> str | None:
    """Why this path cannot be in a version, or None when it can."""
    if not path:
        return "the path is empty"
    if path.startswith("/"):
        return f"the path {path!r} is absolute; give it relative to the root of the dataset"
    if "\0" in path:
        return f"the path {path!r} holds a NUL"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            kind = f"a {part!r} component" if part else "an empty component"
            return f"the path {path!r} has {kind}"
        if len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            return f"the path {path[:80]!r}... has a component longer than {MAX_NAME_BYTES} bytes"
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        return f"the path {path[:80]!r}... is longer than {MAX_PATH_BYTES} bytes"
    return None


def check_path(path: str) -> str:
    """The path itself. Raises ManifestError when it cannot be in a version."""
    fault = path_fault(path)
    if fault:
        raise ManifestError(fault)
    return path


def bad_path_mask(paths: pa.Array) -> pa.Array:
    """Which of the paths `path_fault` has to look at: all bad ones, and a few long ones that may be good."""
    return pc.or_(pc.match_substring_regex(paths, BAD_PATH_REGEX), pc.greater(pc.binary_length(paths), MAX_NAME_BYTES))
