"""A version back to a manifest: JSON lines that `dataset import` turns into the same version again."""

import json
from collections.abc import Iterator

import msgspec
import pyarrow as pa

from .locate import url_of

_encode = msgspec.json.Encoder().encode


def manifest_lines(batch: pa.RecordBatch) -> Iterator[bytes]:
    """One line (with its end) per entry of an ENTRY_SCHEMA batch.

    `path` is left out where it is the key, `store` is given where the URL alone does not say it (another endpoint).
    """
    names = ("path", "store", "key", "etag", "version_id", "size", "mtime_ns", "sha256", "labels")
    columns = [batch.column(name).to_pylist() for name in names]
    for path, store, key, etag, version_id, size, mtime_ns, sha256, labels in zip(*columns, strict=True):
        url = url_of(store, key)
        line: dict[str, object] = {"url": url}
        if path != key:
            line["path"] = path
        if not url.startswith(store + "/"):
            line["store"] = store
        line["size"] = size
        line["etag"] = etag
        if version_id is not None:
            line["versionId"] = version_id
        if mtime_ns is not None:
            line["mtimeNs"] = mtime_ns
        if sha256 is not None:
            line["sha256"] = sha256
        if labels is not None:
            line["labels"] = msgspec.Raw(labels.encode())
        try:
            yield _encode(line) + b"\n"
        except (UnicodeEncodeError, OverflowError):
            line["labels"] = json.loads(labels) if labels is not None else None
            yield json.dumps(line).encode() + b"\n"
