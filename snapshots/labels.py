"""Labels as typed columns: any JSON value in, any JSON value out, and vectorised filters in between.

Labels are free JSON, but what people select by are scalars at a few fixed places (`label.class`,
`label.review.score`). So a page keeps every scalar that it finds at some place as a column of its type, and the
rest (lists, nulls, empty objects, numbers beyond 64 bits) as JSON text in one residual column. The same
place may hold text in one entry and a number in the next: that gives two columns, each with nulls where the
other has the value.

A page has at most MAX_COLUMNS such columns; which ones is decided by count, then name, so that the page is a
function of its entries. Everything beyond stays in the residual: slower to filter, never lost.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .entries import canonical_json

Place: TypeAlias = tuple[str, ...]

MAX_COLUMNS = 64
MAX_DEPTH = 8
RESIDUAL = "labels"
TYPES: dict[str, pa.DataType] = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "b": pa.bool_()}

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder(order="deterministic").encode


def label_text(value: Any) -> str | None:
    """The JSON text of labels in a batch: keys sorted, so that equal labels have equal texts; None stays None.

    In a batch this is enough, and ten times faster than `canonical_json`, whose text goes into pages: the way this
    one writes numbers may change with the library.
    """
    if value is None:
        return None
    try:
        return _encode_json(value).decode()
    except OverflowError:
        return canonical_json(value)


def column_name(place: Place, type_code: str) -> str:
    """Name of the page column of a place: `label` + type code + the keys as a JSON list."""
    return f"label{type_code}" + json.dumps(place, ensure_ascii=False, separators=(",", ":"))


def place_of(name: str) -> tuple[Place, str] | None:
    """(place, type code) of a label column, None for other columns."""
    if not name.startswith("label") or len(name) < 7 or name[5] not in TYPES or name[6] != "[":
        return None
    return tuple(json.loads(name[6:])), name[5]


def shred(labels: pa.Array) -> dict[str, pa.Array]:
    """The page columns of a column of labels (JSON texts)."""
    coded = labels.dictionary_encode()
    values = [_decode_json(text) for text in coded.dictionary.to_pylist()]
    scalars: list[dict[tuple[Place, str], Any]] = []
    for value in values:
        scalars.append(dict(_scalars(value, ())) if isinstance(value, dict) else {})
    kept = _kept_columns(scalars, coded.indices)
    columns: dict[str, pa.Array] = {}
    for key in kept:
        distinct = pa.array([found.get(key) for found in scalars], TYPES[key[1]])
        columns[column_name(*key)] = distinct.take(coded.indices)
    rest = [canonical_json(_residual(value, (), kept)) for value in values]
    if any(text is not None for text in rest):
        columns[RESIDUAL] = pa.array(rest, pa.string()).take(coded.indices)
    return columns


def _scalars(value: dict[str, Any], place: Place) -> Iterator[tuple[tuple[Place, str], Any]]:
    for key, item in value.items():
        here = (*place, key)
        kind = type(item)
        if kind is str:
            yield (here, "s"), item
        elif kind is bool:
            yield (here, "b"), item
        elif kind is int:
            if _fits(item):
                yield (here, "i"), item
        elif kind is float:
            yield (here, "f"), item
        elif kind is dict and len(here) < MAX_DEPTH:
            yield from _scalars(item, here)


def _kept_columns(scalars: list[dict[tuple[Place, str], Any]], indices: pa.Array) -> set[tuple[Place, str]]:
    everything = {key for found in scalars for key in found}
    if len(everything) <= MAX_COLUMNS:
        return everything
    rows = np.bincount(np.asarray(indices.drop_null()), minlength=len(scalars))
    counts: Counter[tuple[Place, str]] = Counter()
    for found, times in zip(scalars, rows.tolist(), strict=True):
        for key in found:
            counts[key] += times
    return set(sorted(everything, key=lambda key: (-counts[key], column_name(*key)))[:MAX_COLUMNS])


def _residual(value: Any, place: Place, kept: set[tuple[Place, str]]) -> Any:
    """What the kept columns do not hold; None when nothing is left."""
    if not isinstance(value, dict):
        return value
    if not value:
        return value
    rest: dict[str, Any] = {}
    for key, item in value.items():
        here = (*place, key)
        kind = type(item)
        if kind is dict and item:
            left = _residual(item, here, kept)
            if left is not None:
                rest[key] = left
        elif kind not in _CODES or (here, _CODES[kind]) not in kept or not _fits(item):
            rest[key] = item
    return rest or None


def _fits(item: Any) -> bool:
    """Whether a scalar goes into a typed column: whole numbers only up to 64 bits."""
    return not isinstance(item, int) or -(1 << 63) <= item < 1 << 63


_CODES: dict[type, str] = {str: "s", bool: "b", int: "i", float: "f"}


def assemble(columns: dict[str, pa.Array], row_count: int) -> pa.Array:
    """The labels (as `label_text`) back from page columns (those of `shred`, others are ignored)."""
    pieces = [(place_of(name), array) for name, array in columns.items() if place_of(name) or name == RESIDUAL]
    if not pieces:
        return pa.nulls(row_count, pa.string())
    # Rows with the same labels are assembled once: the codes of all columns are folded into one number per row.
    combined = np.zeros(row_count, np.int64)
    dictionaries: list[list[Any]] = []
    for _, array in pieces:
        coded = array.dictionary_encode()
        codes = np.asarray(coded.indices.fill_null(-1)).astype(np.int64) + 1
        combined = combined * (len(coded.dictionary) + 1) + codes
        _, combined = np.unique(combined, return_inverse=True)
        dictionaries.append([codes, [None, *coded.dictionary.to_pylist()]])
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    texts: list[str | None] = []
    for row in first.tolist():
        value: Any = None
        for (where, _), (codes, distinct) in zip(pieces, dictionaries, strict=True):
            item = distinct[codes[row]]
            if item is None:
                continue
            if where is None:
                value = _overlay(_decode_json(item), value)
            else:
                value = {} if value is None else value
                _put(value, where[0], item)
        texts.append(label_text(value))
    return pa.array(texts, pa.string()).take(pa.array(inverse))


def _put(target: dict[str, Any], place: Place, item: Any) -> None:
    for key in place[:-1]:
        target = target.setdefault(key, {})
    target[place[-1]] = item


def _overlay(base: Any, over: Any) -> Any:
    """`over` laid into `base`; both are parts of one value, so they never hold the same place."""
    if isinstance(base, dict) and isinstance(over, dict):
        for key, item in over.items():
            base[key] = _overlay(base[key], item) if key in base else item
        return base
    return base if over is None else over


def residual_values(residual: pa.Array, place: Place) -> list[Any]:
    """What the residual column holds at a place, per row; None where it holds nothing (or null) there."""
    coded = residual.dictionary_encode()
    found: list[Any] = []
    for text in coded.dictionary.to_pylist():
        value: Any = _decode_json(text)
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        found.append(value)
    return [None if code is None else found[code] for code in coded.indices.to_pylist()]


def labels_equal(left: pa.Array, right: pa.Array) -> pa.Array:
    """Row by row, whether two columns of canonical labels are the same (null equals null)."""
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return pc.or_(both_null, pc.fill_null(pc.equal(left, right), False))
