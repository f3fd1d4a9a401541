"""The index above the pages: which page holds which paths, and what can be known without reading it.

A version is one *root page*, whose rows are *root parts*, whose rows are pages. Logically that is two levels, a
list of pages; it is cut into parts (boundaries chosen by content, like those of pages) so that no document grows
beyond a megabyte or so with a billion entries, and so that two versions share the parts that are equal.

A row says: first and last path, id, entries, bytes, and *zones*: what values the page holds, so that a filter can
skip it unread. Zones are a hint in one direction only: a page may be skipped when the zones exclude a match.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from .columns import ColumnFile, encode_columns
from .entries import canonical_json
from .labels import RESIDUAL, place_of
from .pages import PART, PageId, open_sealed

MAX_ZONES = 16
MAX_ZONE_VALUES = 8
MAX_ZONE_CHARS = 64


class Zones(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a page holds: lowest and highest size, and per label column its values.

    `complete` says that label columns not listed here do not occur in the page. `texts` hold all distinct values;
    `ranges` the lowest and highest.
    """

    low_size: int = 0
    high_size: int = 0
    texts: dict[str, list[str]] = {}
    ranges: dict[str, tuple[int | float, int | float]] = {}
    complete: bool = True


@dataclass(frozen=True, slots=True)
class PageRef:
    """One row of a root part (or, without zones, of a root page)."""

    first: str
    last: str
    id: PageId
    count: int
    size_bytes: int
    zones: Zones = field(default_factory=Zones)


def page_ref(name: PageId, columns: dict[str, pa.Array]) -> PageRef:
    """The row that stands for a page with these columns (those of `pages.page_columns`)."""
    paths, sizes = columns["path"], columns["size"]
    total = pc.sum(sizes).as_py() or 0
    return PageRef(paths[0].as_py(), paths[-1].as_py(), name, len(paths), int(total), _zones(columns))


def _zones(columns: dict[str, pa.Array]) -> Zones:
    span = pc.min_max(columns["size"]).as_py()
    texts: dict[str, list[str]] = {}
    ranges: dict[str, Any] = {}
    found = {name: place for name in sorted(columns) if (place := place_of(name))}
    complete = RESIDUAL not in columns and len(found) <= MAX_ZONES
    for name, (_, type_code) in list(found.items())[:MAX_ZONES]:
        column = columns[name]
        if type_code in "if":
            bounds = pc.min_max(column).as_py()
            ranges[name] = (bounds["min"], bounds["max"])
        elif type_code == "s" and (values := _few_values(column)) is not None:
            texts[name] = values
        else:
            complete = False
    return Zones(span["min"], span["max"], texts, ranges, complete)


def _few_values(column: pa.Array) -> list[str] | None:
    values = pc.unique(column.drop_null())
    if len(values) > MAX_ZONE_VALUES or pc.max(pc.utf8_length(values)).as_py() > MAX_ZONE_CHARS:
        return None
    found: list[str] = sorted(values.to_pylist())
    return found


_decode_zones = msgspec.json.Decoder(Zones).decode


def encode_refs(kind: int, refs: list[PageRef]) -> bytes:
    """Canonical bytes of a root part (rows are pages) or a root page (rows are parts)."""
    columns = {
        "first": pa.array([ref.first for ref in refs], pa.string()),
        "last": pa.array([ref.last for ref in refs], pa.string()),
        "id": pa.array([ref.id.hex() for ref in refs], pa.string()),
        "count": pa.array([ref.count for ref in refs], pa.int64()),
        "size_bytes": pa.array([ref.size_bytes for ref in refs], pa.int64()),
    }
    if kind == PART:
        columns["zones"] = pa.array([canonical_json(msgspec.to_builtins(ref.zones)) for ref in refs], pa.string())
    return encode_columns(kind, len(refs), columns)


def decode_refs(name: PageId, sealed: bytes, kind: int) -> list[PageRef]:
    """The rows of a sealed root part or root page. Raises PageCorrupt."""
    file = open_sealed(name, sealed, kind)
    columns = [_values(file, column) for column in ("first", "last", "id", "count", "size_bytes")]
    zones: list[Zones] = [Zones()] * file.row_count
    if kind == PART:
        zones = [_decode_zones(text) for text in _values(file, "zones")]
    return [
        PageRef(first, last, bytes.fromhex(hex_id), count, size_bytes, zone)
        for first, last, hex_id, count, size_bytes, zone in zip(*columns, zones, strict=True)
    ]


def _values(file: ColumnFile, name: str) -> list[Any]:
    type_ = pa.int64() if name in ("count", "size_bytes") else pa.string()
    values: list[Any] = file.column(name, type_).to_pylist()
    return values


def summary_ref(name: PageId, rows: list[PageRef]) -> PageRef:
    """The row of a root page that stands for a part with these rows."""
    return PageRef(rows[0].first, rows[-1].last, name, sum(r.count for r in rows), sum(r.size_bytes for r in rows))
